"""Buffers of normalising layers, which codes call as they like.

They are known by their shape, one value per channel that is broadcast over
images, and told apart by what their names say: new_mean and new_std, means and
sds, mu and sigma. A variance or a factor is neither of the two.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import re

import numpy as np

PREFIX = 'normalize.'  # Their names here, normalize.mean and normalize.std.

_MEANS = {'mean', 'means', 'mu', 'mus', 'm', 'avg', 'average', 'averages'}
_STDS = {'std', 'stds', 'sd', 'sds', 'sigma', 'sigmas', 'stdev', 'stdevs',
         'stddev', 'stddevs', 'deviation', 'deviations', 's'}
# Beside one of those, they say that it is something else.
_OTHERS = {'inv', 'inverse', 'log', 'var', 'variance', 'running', 'sq',
           'square', 'squared', 'reciprocal', 'rstd', 'batch'}
_MOST_CHANNELS = 4  # of images


def role(key: str) -> str | None:
  """Returns 'mean', 'std' or None, whatever the last name of a key says."""
  name = key.rpartition('.')[2]
  words = set(re.findall('[a-z]+', re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name)
                         .lower()))
  if words & _OTHERS:
    return None
  roles = [role for role, known in (('mean', _MEANS), ('std', _STDS))
           if words & known]
  return roles[0] if len(roles) == 1 else None


def is_per_channel(value: np.ndarray) -> bool:
  """Returns whether an array has one value for each channel of images."""
  return value.size in range(1, _MOST_CHANNELS + 1) and (
      sum(side > 1 for side in value.shape) <= 1)


def find(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
  """Returns the normalising layers among arrays.

  A layer is one of all whose keys begin alike that has a mean, a standard
  deviation, or both, and nothing else.

  Args:
    arrays: by key.

  Returns:
    {'mean': key, 'std': key}, or one of the two, by what the keys of the layer
    begin with; '' for keys of a single name.
  """
  found: dict[str, dict[str, list[str]]] = {}
  for key, value in arrays.items():
    name = role(key)
    if name is not None and is_per_channel(value):
      found.setdefault(key.rpartition('.')[0], {}).setdefault(
          name, []).append(key)
  layers = {head: {name: keys[0] for name, keys in roles.items()}
            for head, roles in found.items()
            if all(len(keys) == 1 for keys in roles.values())}
  return _of_their_own(layers, arrays)


def _of_their_own(layers, keys: Iterable[str]):
  """Returns the layers that have no other keys, but for those of one name."""
  count = dict.fromkeys(layers, 0)
  if set(count) - {''}:
    for key in keys:
      head = key
      while head:
        head = head.rpartition('.')[0]
        if head in count:
          count[head] += 1
  return {head: roles for head, roles in layers.items()
          if not head or count[head] == len(roles)}


def renamed(roles: Mapping[str, str]) -> dict[str, str]:
  """Returns the names here of a layer's keys, `find`'s the other way round."""
  return {key: f'{PREFIX}{name}' for name, key in roles.items()}


def named(names: str, keys: Collection[str]) -> dict[str, str]:
  """Returns a layer that a person names.

  Args:
    names: the key of the mean and that of the standard deviation, or the ends
      of them, with a comma: 'norm.a,norm.b'.
    keys: those of the file.

  Raises:
    ValueError: if they name no two keys.
  """
  roles = {}
  parts = [part.strip() for part in names.split(',')]
  if len(parts) == 2:
    for name, part in zip(('mean', 'std'), parts, strict=True):
      ends = [key for key in keys if key == part or key.endswith(f'.{part}')]
      if part in ends or len(ends) == 1:
        roles[name] = part if part in ends else ends[0]
  if len(roles) != 2:
    raise ValueError(f'Expected normaliser={names!r} to name the keys of mean '
                     'and standard deviation, such as norm.a,norm.b.')
  return roles


def unclear(arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Returns keys of arrays that may be a normaliser's, but have other names.

  Those are of a shape that is broadcast over images, or the only two of a layer
  and of one shape.
  """
  layers: dict[str, list[tuple[int, ...]]] = {}
  for key, value in arrays.items():
    layers.setdefault(key.rpartition('.')[0], []).append(value.shape)
  return [key for key, value in arrays.items()
          if is_per_channel(value) and (
              value.ndim >= 3 and role(key) is None
              or _is_pair(layers[key.rpartition('.')[0]]))]


def _is_pair(shapes):
  return len(shapes) == 2 and shapes[0] == shapes[1]
