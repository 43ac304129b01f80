"""Maps PyTorch state dicts to Flax variables and back.

One rule serves every model, with the names of `layouts`; the layout of a state
dict is the one with which it has most keys in common.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from ferd_jax import models
from ferd_jax.core import errors
from ferd_jax.models import mean_sparse
from ferd_jax.models import staged
from ferd_jax.torch_io import choosing
from ferd_jax.torch_io import files
from ferd_jax.torch_io import layouts
from ferd_jax.torch_io import normalisers
from ferd_jax.torch_io import recognise

# Last name of a Flax variable -> of a PyTorch tensor, where they differ.
_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'embedding'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
    (mean_sparse.COLLECTION, 'mean'): 'running_mean',
    (mean_sparse.COLLECTION, 'var'): 'running_var',
}

# Collections of numbers that a network computes by.
FLOATS = ('params', 'batch_stats', mean_sparse.COLLECTION)
# The ends of keys of what no forward pass reads.
_UNUSED = ('.num_batches_tracked', '.flag_update_statistics', '.batch_num')
_CLASSIFIERS = ('fc', 'linear', 'classifier', 'logits', 'head')


def torch_shapes(model: nn.Module,
                 image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a model's tensors by PyTorch's names.

  Allocates nothing. The counters `num_batches_tracked` are included.

  Args:
    model: a classifier or a generator.
    image_shape: shape of one input, without the batch.
  """
  leaves = _abstract(model, tuple(image_shape))
  paths = _keyed(leaves, layouts.of_model(model)[0])
  shapes = {key: _torch_shape(path, leaves[path].shape)
            for key, path in paths.items()}
  return shapes | dict.fromkeys(_counters(shapes), ())


def variables_from_state_dict(model: nn.Module,
                              state_dict: Mapping[str, np.ndarray],
                              image_shape: Sequence[int]) -> dict[str, Any]:
  """Converts a PyTorch state dict to the variables of a model.

  Args:
    model: a classifier or a generator.
    state_dict: arrays by name, without wrappers and prefixes, as
      `files.read_state_dict` returns them. Unused `sub_block1.*` copies of
      WideResNets and counters of batches are ignored; buffers of normalising
      layers have to agree with the model's `mean` and `std`.
    image_shape: shape of one input, without the batch: (H, W, C) for a
      classifier, (nz,) for a generator.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32, of which either is {} where
    the model has none. Its further collections come with them, in their own
    types.

  Raises:
    ValueError: if tensors are missing, unexpected, misshaped (all in one
      message), no real numbers, not finite or variances below 0 (the first ten
      of a kind), or contradict the model's normalisation.
  """
  found = _used(state_dict)
  paths, wanted, leaves = _expected(model, found, image_shape)
  found = _check_normalisation(model, found, wanted)
  _check_keys(model, wanted, found, image_shape)
  values = checked_values(
      {key: found[key] for key, path in paths.items() if path[0] in FLOATS},
      [key for key, path in paths.items() if path[-1] == 'var'])
  others = {key: found[key] for key in paths if key not in values}
  _check_real(others)

  # What numbers further collections hold is the model's affair: it may count.
  flat = {path: jnp.asarray(
      _to_flax(path, values[key]) if key in values
      else np.asarray(others[key], leaves[path].dtype))
          for key, path in paths.items()}
  return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(flat)}


def fits(model: nn.Module, state_dict: Mapping[str, np.ndarray],
         image_shape: Sequence[int]) -> bool:
  """Returns whether keys and shapes are exactly those of a model.

  Args:
    model: a classifier or a generator.
    state_dict: as for `variables_from_state_dict`.
    image_shape: the same.
  """
  own = _used(state_dict)
  for key in normalisers.renamed({'mean': 'mean', 'std': 'std'}).values():
    own.pop(key, None)
  _, wanted, _ = _expected(model, own, image_shape)
  return wanted == {key: value.shape for key, value in own.items()}


def marks(model: nn.Module, image_shape: Sequence[int]) -> tuple[str, ...]:
  """Returns one key of a model by each of the layouts that it is read from."""
  leaves = _abstract(model, tuple(image_shape))
  # A long one: other layers may have the end of a short one.
  return tuple(max(_keyed(leaves, layout), key=len)
               for layout in layouts.of_model(model) if leaves)


def checked_values(values: Mapping[str, np.ndarray],
                   variances: Sequence[str] = ()) -> dict[str, np.ndarray]:
  """Returns weights as float32, if they are numbers that a network computes by.

  Args:
    values: by name.
    variances: the names of those.

  Raises:
    ValueError: if some are no real numbers, not finite as float32, or variances
      below 0; of each kind the first ten are named.
  """
  _check_real(values)
  # What is too large for float32 becomes infinite, which the check reports.
  with np.errstate(over='ignore'):
    values = {key: np.asarray(value, np.float32)
              for key, value in values.items()}
  bad = [key for key, value in values.items() if not np.isfinite(value).all()]
  if bad:
    raise ValueError('Expected weights that are finite as float32; not finite: '
                     f'{_some(bad)}.')
  # The root of a negative variance would only be NaN later on.
  negative = [f'{key} ({values[key].min():g})' for key in variances
              if values[key].size and values[key].min() < 0]
  if negative:
    raise ValueError('Expected variances of at least 0; negative: '
                     f'{_some(negative)}.')
  return values


def _used(state_dict):
  """Returns the arrays that a forward pass uses."""
  return {key: value for key, value in state_dict.items()
          if not key.endswith(_UNUSED)
          and not key.startswith('sub_block1.')}


def _expected(model, found, image_shape):
  """Returns a model's paths and shapes by PyTorch's names, and its leaves.

  In the layout that has most keys in common with what was found.
  """
  leaves = _abstract(model, tuple(image_shape), limit=len(found))
  keyed = [_keyed(leaves, layout) for layout in layouts.of_model(model)]
  paths = max(keyed, key=lambda keys: len(keys.keys() & found.keys()))
  return paths, {key: _torch_shape(path, leaves[path].shape)
                 for key, path in paths.items()}, leaves


def normalisation(state_dict: Mapping[str, np.ndarray]
                  ) -> dict[str, tuple[float, ...]]:
  """Returns the `mean` and `std` in the buffers of a normalising layer.

  Args:
    state_dict: as `files.read_state_dict` returns it.

  Returns:
    Both, or nothing if there are no such buffers. What is absent of the two is
    0 or 1.

  Raises:
    ValueError: if they hold no real numbers.
  """
  stored = {name: value for name, _, value in _buffers(state_dict)}
  if not stored:
    return {}
  sizes = {value.size for value in stored.values()}
  values = {name: np.broadcast_to(_as_vector(stored.get(name, default)),
                                  max(sizes)) if sizes <= {1, max(sizes)}
            else _as_vector(stored[name])
            for name, default in (('mean', 0.), ('std', 1.))}
  return {name: tuple(value.tolist()) for name, value in values.items()}


def state_dict_from_variables(model: nn.Module,
                              variables: Mapping[str, Any]
                              ) -> dict[str, np.ndarray]:
  """Converts the variables of a model to a PyTorch state dict.

  The inverse of `variables_from_state_dict`, in the naming of the network's
  usual PyTorch code, with zero counters, so that strict loading accepts it.

  Args:
    model: a classifier or a generator.
    variables: {'params': ..., 'batch_stats': ...}; what further collections
      hold is written as buffers.

  Returns:
    Contiguous arrays in the precision of the variables, by PyTorch's names.

  Raises:
    ValueError: if the model's layout gives two variables one name.
  """
  flat = traverse_util.flatten_dict(dict(variables))
  paths = _keyed(flat, layouts.of_model(model)[0])
  state_dict = {key: _to_torch(path, np.asarray(flat[path]))
                for key, path in paths.items()}
  return state_dict | _counters(state_dict)


def load_variables(path: str | os.PathLike[str], model: nn.Module,
                   image_shape: Sequence[int],
                   select: str | None = None) -> dict[str, Any]:
  """Reads the variables of a model from a file of PyTorch weights.

  See `files.read` and `variables_from_state_dict`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read or does not fit the model.
  """
  weights = files.read(path, select, choosing.Wanted(
      marks(model, image_shape),
      lambda arrays: fits(model, arrays, image_shape)))
  try:
    return variables_from_state_dict(model, weights.arrays, image_shape)
  except ValueError as error:
    text = weights.in_its_words(str(error))
    raise ValueError(f'{os.fspath(path)}: {text}') from error


def _abstract(model, image_shape, limit=None):
  """Returns the shapes of the variables by path, {('params', ...): shape}.

  Args:
    model: a classifier or a generator.
    image_shape: of one input.
    limit: number of arrays that are there; None for any.
  """
  if limit is not None:
    limit += -limit % 1000  # Of one network a few more or less are there.
  if isinstance(model, models.StagedModel) and layouts.is_own(model):
    # Nothing of these says anything of shapes, and tracing takes a while.
    style = ({'padding': 'both', 'activation': 'relu'}
             if isinstance(model, staged.StyledModel) else {})
    model = model.clone(mean=None, std=None, standardise=False, axis_name=None,
                        **style)
    image_shape = (32, 32, image_shape[-1])
  try:
    return _abstract_once(model, image_shape, limit)
  except TypeError:  # A module of somebody else's that has no hash.
    return _abstract_once.__wrapped__(model, image_shape, limit)


# Files are compared before they are converted, and tracing takes a while.
@functools.lru_cache(maxsize=16)
def _abstract_once(model, image_shape, limit):
  return traverse_util.flatten_dict(
      models.abstract_variables(model, image_shape, limit))


def _keyed(paths, layout):
  """Returns {name in PyTorch: path} of Flax paths."""
  keyed = {}
  for path in paths:
    key = _torch_key(path, layout)
    if key in keyed:
      raise ValueError(
          f'Expected names of their own for {"/".join(keyed[key])} and '
          f'{"/".join(path)}, which are both {key} by the layout of '
          f'{layout.definition}.')
    keyed[key] = path
  return keyed


def _torch_key(path, layout):
  """Returns the name in PyTorch of a Flax path ('params', ..., 'kernel')."""
  collection, *modules, leaf = path
  dotted = '.'.join(re.sub(r'_(\d+)$', r'.\1', name) for name in modules)
  leaf = _LEAVES.get((collection, leaf), leaf)
  # A network may have variables of its own, beside those of its submodules.
  return f'{layout.rename(dotted)}.{leaf}' if modules else leaf


def _counters(keys):
  """Returns what layers with statistics in `keys` count, at zero.

  Of BatchNorm and, where there is a threshold, of MeanSparse.
  """
  counters = {}
  for key in keys:
    head, _, leaf = key.rpartition('.')
    if leaf != 'running_mean':
      continue
    if f'{head}.threshold' in keys:
      counters[f'{head}.flag_update_statistics'] = np.zeros((), np.int64)
      counters[f'{head}.batch_num'] = np.zeros((), np.float32)
    else:
      counters[f'{head}.num_batches_tracked'] = np.zeros((), np.int64)
  return counters


# Kernels: [k, ..., C_in, C_out] <-> [C_out, C_in, k, ...], of which linear
# layers without k and the depthwise [3, 3, 1, C] are special cases. Scalars,
# which numpy makes vectors of when it makes them contiguous, stay ones.


def _is_kernel(path, ndim):
  return path[0] == 'params' and path[-1] == 'kernel' and ndim > 1


def _torch_shape(path, shape):
  return (*shape[:-3:-1], *shape[:-2]) if _is_kernel(path, len(shape)) else (
      tuple(shape))


def _to_torch(path, value):
  if _is_kernel(path, value.ndim):
    value = np.moveaxis(value, (-1, -2), (0, 1))
  return np.ascontiguousarray(value).reshape(value.shape)


def _to_flax(path, value):
  if _is_kernel(path, value.ndim):
    value = np.moveaxis(value, (0, 1), (-1, -2))
  return np.ascontiguousarray(value).reshape(value.shape)


def _check_normalisation(model, state_dict, wanted):
  """Returns the entries that are no normaliser's buffers, checked to agree.

  Raises:
    ValueError: if a buffer differs from the model's mean or std, or holds no
      real numbers.
  """
  buffers = _buffers({key: value for key, value in state_dict.items()
                      if key not in wanted})
  for name, key, value in buffers:
    field = getattr(model, name, None)
    expected = {'mean': 0.0, 'std': 1.0}[name] if field is None else field
    stored = np.asarray(value, np.float64).reshape(-1)
    try:
      agrees = np.allclose(stored, expected, rtol=0, atol=1e-5)
    except ValueError:
      agrees = False
    if not agrees:
      values = ', '.join(f'{number:.6g}' for number in stored[:10])
      raise ValueError(f'Expected {name}={field} of the model to equal {key} '
                       f'in the weights, ({values}).')
  named = {key for _, key, _ in buffers}
  return {key: value for key, value in state_dict.items() if key not in named}


def _buffers(state_dict):
  """Returns (name of the field, key, value) of a normalising layer's buffers.
  """
  layers = normalisers.find(state_dict)
  # Under any name where they stand by themselves, else under this package's.
  head = '' if '' in layers else normalisers.PREFIX.rstrip('.')
  found = [(name, key, state_dict[key]) for own in {head, 'normalize'}
           for name, key in layers.get(own, {}).items()]
  _check_real({key: value for _, key, value in found})
  return found


def _as_vector(value):
  return np.asarray(value, np.float64).reshape(-1)


def _check_real(state_dict):
  """Raises one ValueError for all arrays that are no real numbers.

  Conversion would drop imaginary parts, and fail at strings without the key.
  """
  # This knows bfloat16 and float8 as well, unlike the letters of dtype.kind.
  bad = [f'{key} ({value.dtype})' for key, value in state_dict.items()
         if not np.can_cast(value.dtype, np.float32, 'same_kind')]
  if bad:
    raise ValueError('Expected weights that are real numbers; of another '
                     f'type: {_some(bad)}.')


def _check_keys(model, wanted, found, image_shape):
  """Raises one ValueError for everything in which the keys differ."""
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys())
  misshaped = sorted(key for key in wanted.keys() & found.keys()
                     if found[key].shape != wanted[key])
  if not (missing or unexpected or misshaped):
    return
  parts = []
  if missing:
    parts.append(f'missing: {_some(missing)}')
  if unexpected:
    parts.append(f'unexpected: {_some(unexpected)}')
  if misshaped:
    shown = [f'{key} {found[key].shape} where the model has {wanted[key]}'
             for key in misshaped]
    parts.append(f'misshaped: {_some(shown)}')
  if missing or unexpected:
    hint = _architecture_hint(found)
  else:
    hint = (_classes_hint(wanted, found, misshaped)
            or _size_hint(wanted, found, misshaped, image_shape)
            or _architecture_hint(found))
  raise ValueError(f'The weights do not fit {type(model).__name__}.{hint} '
                   f'Keys {"; ".join(parts)}.{_normaliser_hint(found, wanted)}')


def _some(texts):
  """Returns ten texts at most, and how many there are if that is more."""
  shown = ', '.join(errors.shown(text, 200) for text in texts[:10])
  return shown if len(texts) <= 10 else f'{shown}, ... ({len(texts)} in all)'


def _architecture_hint(found):
  """Returns a sentence on what the weights are, or nothing."""
  arrays = {key: value for key, value in found.items() if value.ndim}
  try:
    return f' The keys are those of {recognise.recognise(arrays)}.'
  except ValueError:
    other = recognise.foreign(arrays)
    return f' The keys are those of {other}.' if other else ''


def _normaliser_hint(found, wanted):
  """Returns a sentence if some keys may be a normalising layer's, or nothing.
  """
  keys = normalisers.unclear({key: value for key, value in found.items()
                              if key not in wanted})
  if not keys:
    return ''
  return (f' If {_some(keys)} normalise the images, name those of mean and '
          'standard deviation by normaliser.')


def _classes_hint(wanted, found, misshaped):
  """Returns a sentence if only the number of classes differs, or nothing."""
  name = misshaped[-1].split('.')[0]
  weight, bias = f'{name}.weight', f'{name}.bias'
  if name in _CLASSIFIERS and misshaped == [bias, weight] and (
      found[weight].shape[1:] == wanted[weight][1:]):
    return (f' The weights have {found[weight].shape[0]} classes, the model '
            f'has num_classes={wanted[weight][0]}.')
  return ''


def _size_hint(wanted, found, misshaped, image_shape):
  """Returns a sentence if only inputs of linear layers differ, or nothing."""
  if all(len(wanted[key]) == 2 and found[key].ndim == 2 and
         len(found[key]) == wanted[key][0] for key in misshaped):
    return (' They may be for images of another shape than '
            f'image_shape={tuple(image_shape)}.')
  return ''
