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
import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import models
from ferd_jax.torch_io import files
from ferd_jax.torch_io import layouts
from ferd_jax.torch_io import recognise

# Last name of a Flax variable -> of a PyTorch tensor, where they differ.
_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'embedding'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}

_FLOATS = ('params', 'batch_stats')
_CLASSIFIERS = ('fc', 'linear', 'classifier', 'logits')


def torch_shapes(model: nn.Module,
                 image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a model's tensors by PyTorch's names.

  Allocates nothing. The counters `num_batches_tracked` are included.

  Args:
    model: a classifier or a generator.
    image_shape: shape of one input, without the batch.
  """
  leaves = _abstract(model, image_shape)
  paths = _keyed(leaves, layouts.of_model(model)[0])
  shapes = {key: _torch_shape(path, leaves[path].shape)
            for key, path in paths.items()}
  return shapes | {key: () for key in _counters(shapes)}


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
  found = {key: value for key, value in state_dict.items()
           if not key.endswith('num_batches_tracked')
           and not key.startswith('sub_block1.')}
  found = _check_normalisation(model, found)

  leaves = _abstract(model, image_shape)
  keyed = [_keyed(leaves, layout) for layout in layouts.of_model(model)]
  paths = max(keyed, key=lambda keys: len(keys.keys() & found.keys()))
  wanted = {key: _torch_shape(path, leaves[path].shape)
            for key, path in paths.items()}
  _check_keys(model, wanted, found, image_shape)

  _check_real({key: found[key] for key in paths})
  # What is too large for float32 becomes infinite, which the check reports.
  with np.errstate(over='ignore'):
    values = {key: np.asarray(found[key], np.float32) for key in paths}
  bad = [key for key, value in values.items() if not np.isfinite(value).all()]
  if bad:
    raise ValueError('Expected weights that are finite as float32; not finite: '
                     f'{_some(bad)}.')
  # The root of a negative variance would only be NaN later on.
  negative = [f'{key} ({values[key].min():g})' for key, path in paths.items()
              if path[-1] == 'var' and values[key].min() < 0]
  if negative:
    raise ValueError('Expected variances of at least 0; negative: '
                     f'{_some(negative)}.')

  # What numbers further collections hold is the model's affair: it may count.
  flat = {path: jnp.asarray(
      _to_flax(path, values[key]) if path[0] in _FLOATS
      else np.asarray(found[key], leaves[path].dtype))
          for key, path in paths.items()}
  return {'params': {}, 'batch_stats': {}, **traverse_util.unflatten_dict(flat)}


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
  size = np.size(next(iter(stored.values())))
  return {name: tuple(np.asarray(stored.get(name, np.full(size, default)),
                                 np.float64).reshape(-1).tolist())
          for name, default in (('mean', 0.), ('std', 1.))}


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
  counters = {key: np.zeros((), np.int64) for key in _counters(state_dict)}
  return state_dict | counters


def load_variables(path: str | os.PathLike[str], model: nn.Module,
                   image_shape: Sequence[int],
                   select: str | None = None) -> dict[str, Any]:
  """Reads the variables of a model from a file of PyTorch weights.

  See `files.read_state_dict` and `variables_from_state_dict`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read or does not fit the model.
  """
  state_dict = files.read_state_dict(path, select)
  try:
    return variables_from_state_dict(model, state_dict, image_shape)
  except ValueError as error:
    raise ValueError(f'{os.fspath(path)}: {error}') from error


def _abstract(model, image_shape):
  """Returns the shapes of the variables by path, {('params', ...): shape}."""
  init = functools.partial(models.init_variables, model,
                           image_shape=tuple(image_shape))
  return traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)))


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
  """Returns the names of the counters of all BatchNorm layers in `keys`."""
  suffix = '.running_mean'
  return [key.removesuffix(suffix) + '.num_batches_tracked'
          for key in keys if key.endswith(suffix)]


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


def _check_normalisation(model, state_dict):
  """Returns the entries that are no normaliser's buffers, checked to agree.

  Raises:
    ValueError: if a buffer differs from the model's mean or std, or holds no
      real numbers.
  """
  buffers = _buffers(state_dict)
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
  """Returns (name of the field, key, value) of normalising layers' buffers."""
  found = []
  for key, value in state_dict.items():
    name = files.NORMALISER_NAMES.get(key.removeprefix('normalize.'))
    if name is not None:
      _check_real({key: value})
      found.append((name, key, value))
  return found


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
                   f'Keys {"; ".join(parts)}.')


def _some(texts):
  """Returns ten texts at most, and how many there are if that is more."""
  shown = ', '.join(texts[:10])
  return shown if len(texts) <= 10 else f'{shown}, ... ({len(texts)} in all)'


def _architecture_hint(found):
  """Returns a sentence on what the weights are, or nothing."""
  try:
    arrays = {key: value for key, value in found.items() if value.ndim}
    return f' The keys are those of {recognise.recognise(arrays)}.'
  except ValueError:
    return ''


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
