"""Names that PyTorch itself puts into keys, around the network's own.

Wrappers of modules (DataParallel, torch.compile, FSDP, checkpoint_wrapper,
AveragedModel; Lightning Fabric's, Opacus') put a name of theirs before those of
what they wrap, wherever it is in the network. Pruning, weight and spectral
normalisation split a weight into the tensors that it is computed from; it is
computed here as they do.

References: torch/_dynamo/eval_frame.py, torch/distributed/fsdp and
torch/distributed/algorithms/_checkpoint, torch/nn/parallel,
torch/optim/swa_utils.py, torch/nn/utils (parametrizations.py, prune.py,
weight_norm.py, spectral_norm.py).
"""

from collections.abc import Mapping
import re

import numpy as np

from ferd_jax.torch_io import pickled

StateDict = dict[str, np.ndarray]

_NAMES = frozenset({
    '_orig_mod', 'module', '_fsdp_wrapped_module', '_fpw_module',
    '_checkpoint_wrapped_module', '_dmp_wrapped_module',
    '_forward_module', '_module'})
# torch.optim.swa_utils.AveragedModel counts in it, beside `module.*`.
COUNTERS = frozenset({'n_averaged'})
_FLAT = frozenset({'flat_param', '_flat_param'})
# More names than the deepest network's keys have, and more characters.
_LONGEST, _DEEPEST = 500, 50


def checked(keys):
  """Raises Refusal for keys that no network has."""
  for key in keys:
    if len(key) > _LONGEST or key.count('.') > _DEEPEST:
      raise pickled.Refusal(
          f'it has a key of {len(key):,} characters and {key.count(".") + 1:,} '
          'names, which no network has.')


def cut(key: str) -> str:
  """Returns a key without the names of wrappers."""
  *modules, name = key.split('.')
  return '.'.join([*(part for part in modules if part not in _NAMES), name])


def unwrapped(arrays: Mapping[str, np.ndarray]) -> StateDict:
  """Returns arrays under the network's own names.

  Raises:
    pickled.Refusal: if two keys become one, or a weight is computed in a way
      that the file does not tell.
  """
  result: StateDict = {}
  before: dict[str, str] = {}
  for key, value in arrays.items():
    short = cut(key)
    if short in result:
      raise pickled.Refusal(f'its keys {before[short]} and {key} are both '
                            f'{short} without the names of wrappers.')
    result[short], before[short] = value, key
    if short.rpartition('.')[2] in _FLAT:
      raise pickled.Refusal(
          f'{key} holds the weights of many layers in one, as FSDP keeps them; '
          'save the full state dict (FullStateDictConfig).')
  return _computed(result)


def _computed(arrays):
  """Returns arrays with the weights that are stored in parts computed."""
  result = dict(arrays)
  for key in arrays:
    if key not in result:
      continue
    new = re.fullmatch(r'(.*?)parametrizations\.(\w+)\.(original0?)', key)
    old = re.fullmatch(r'(.*?)(\w+)_(orig|g)', key)
    if new:
      _replace(result, f'{new[1]}{new[2]}', _parametrised(
          arrays, f'{new[1]}parametrizations.{new[2]}.', new[3]))
    elif old:
      parts = _of_old_kind(arrays, f'{old[1]}{old[2]}', old[3])
      if parts:
        _replace(result, f'{old[1]}{old[2]}', parts)
  return result


def _replace(result, key, parts):
  """Puts a weight in the place of its parts."""
  names, value = parts
  for name in names:
    del result[name]
  if key in result:
    raise pickled.Refusal(f'its keys {key} and {names[0]} are the same weight.')
  result[key] = value


def _parametrised(arrays, head, kind):
  """Returns the parts and the value of a weight of torch.nn.utils.parametrize.
  """
  names = [key for key in arrays if key.startswith(head)]
  own = {name.removeprefix(head) for name in names}
  part = {name: arrays[head + name] for name in own}
  if own == {'original0', 'original1'}:
    return names, _weight_norm(part['original0'], part['original1'], head)
  if own == {'original', '0._u', '0._v'}:
    return names, _spectral(part['original'], part['0._u'], part['0._v'], head)
  raise pickled.Refusal(
      f'what is computed of {head}{kind} is not in the file; call '
      'torch.nn.utils.parametrize.remove_parametrizations before saving.')


def _of_old_kind(arrays, weight, kind):
  """Returns the parts and the value of a weight of hooks, None if it is none.
  """
  parts = {name: arrays.get(f'{weight}_{name}')
           for name in ('orig', 'mask', 'u', 'v', 'g')}
  have = {name for name, value in parts.items() if value is not None}
  names = [f'{weight}_{name}' for name in sorted(have)]
  if have == {'orig', 'mask'}:
    _check(parts['mask'].shape == parts['orig'].shape, weight)
    return names, _real(parts['orig'], weight) * _real(parts['mask'], weight)
  if have == {'g', 'v'}:
    return names, _weight_norm(parts['g'], parts['v'], weight)
  if have == {'orig', 'u', 'v'}:
    return names, _spectral(parts['orig'], parts['u'], parts['v'], weight)
  return None


def _weight_norm(g, v, name):
  """Returns g v / |v|, the norm over all axes that g does not have."""
  axes = tuple(axis for axis in range(v.ndim)
               if g.ndim == v.ndim and g.shape[axis] == 1)
  _check(g.ndim in (0, v.ndim) and all(
      side in (1, other) for side, other in zip(g.shape, v.shape,
                                                strict=False)), name)
  v = _real(v, name)
  norm = np.sqrt(np.sum(np.square(v), axis=axes if g.ndim else None,
                        keepdims=g.ndim > 0))
  with np.errstate(all='ignore'):  # What is not finite is found later on.
    return v * (_real(g, name) / norm)


def _spectral(weight, u, v, name):
  """Returns a weight over its largest singular value u W v, as kept."""
  _check(weight.ndim > 1 and u.shape == weight.shape[:1]
         and v.size * u.size == weight.size, name)
  weight = _real(weight, name)
  matrix = weight.reshape(len(weight), -1)
  with np.errstate(all='ignore'):
    return weight / (_real(u, name) @ (matrix @ _real(v, name).reshape(-1)))


def _real(value, name):
  """Returns numbers of a type that numpy computes with."""
  _check(np.can_cast(value.dtype, np.float32, 'same_kind'), name)
  wide = np.float64 if value.dtype == np.float64 else np.float32
  return np.asarray(value, wide)


def _check(fits, name):
  if not fits:
    raise pickled.Refusal(f'the parts of {name} do not fit one another.')
