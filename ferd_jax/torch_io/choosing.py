"""Which of the arrays in a file are the network.

Checkpoints hold a state dict among much else: wrapped in dicts, beside those of
other networks or of averages, under a prefix, with numbers and counters in it.
Nothing of that is guessed. Candidates are all dicts with arrays in them, and in
each of them what stands under a prefix; a caller that knows what it looks for
gives a `Wanted`, and the one that is complete is taken. Where several are, or
may be meant, they are named for `select`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from ferd_jax.core import errors
from ferd_jax.torch_io import normalisers
from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file
from ferd_jax.torch_io import wrappers

StateDict = dict[str, np.ndarray]

TOP = '.'  # Selects what is not inside of anything.
# Keys under which checkpoints wrap their state dict, before any other. Those
# on one line are versions of one training run, of which the first is taken.
_USUAL = (
    ('state_dict',),
    ('model_state_dict',),
    ('model',),
    ('net',),
    ('ema', 'state_dict_ema', 'ema_state_dict', 'model_ema'),
    ('last', 'best'),
)
# Words of keys of other versions of what is beside them.
_VERSIONS = {'ema', 'swa', 'average', 'averaged', 'avg', 'shadow', 'best'}
_DEEPEST = 8  # levels of dicts and lists that are looked into
_LONGEST_LIST = 64  # of state dicts
_LONGEST_KEY = 200  # of a dict of dicts
_MOST_NETWORKS = 32  # that are tried
_MOST_ARRAYS = 8_000  # of a network; ResNet-1202 has 6,000.
_MOST_STORED = 40_000  # of several
# Of Lightning's and others' own data, whatever its type.
_NO_WEIGHTS = ('_extra_state',)


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is looked for.

  Attributes:
    marks: keys of which a network has at least one.
    fits: returns whether arrays are exactly those of a network, `normalize.*`
      and the counters of batches aside.
  """
  marks: tuple[str, ...]
  fits: Callable[[Mapping[str, np.ndarray]], bool]


@dataclasses.dataclass(frozen=True)
class Weights:
  """The arrays of a network in a file.

  Attributes:
    arrays: by the network's own names, and `normalize.mean` and `normalize.std`
      of a normalising layer.
    where: the keys and the prefix, with dots, that they were found under; ''
      where the file holds nothing else.
    left_out: what was beside them, by key; for each what it is, or ''.
    names: the file's names of what is called `normalize.*` here.
    path: the part of `where` that is keys.
    unclear: what was beside them and may normalise the images, by its shape.
  """
  arrays: StateDict
  where: str = ''
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  path: str = ''
  unclear: tuple[str, ...] = ()

  def in_its_words(self, text: str) -> str:
    """Returns a message with the file's own names in it."""
    for name, own in self.names.items():
      text = text.replace(name, errors.shown(own))
    return text

  def remark(self) -> str:
    """Returns what is worth saying of it in half a line, or ''."""
    where = f'found at {errors.shown(self.where)}' if self.where else ''
    items = [errors.shown(key, 60) + (f' ({what})' if what else '')
             for key, what in self.left_out.items()]
    more = f', ... ({len(items)} in all)' if len(items) > 8 else ''
    left = f'left out: {", ".join(items[:8])}{more}' if items else ''
    return '; '.join(filter(None, (where, left)))


@dataclasses.dataclass(frozen=True)
class _Dict:
  """A dict with arrays, at a path of keys; `unread` are tensors."""
  path: str
  arrays: StateDict
  others: Mapping[str, str]
  unread: Mapping[str, pickled.Unread] = dataclasses.field(default_factory=dict)


def choose(loaded: Any, select: str | None = None,
           wanted: Wanted | None = None, normaliser: str | None = None,
           largest: float = float('inf')) -> Weights:
  """Returns the network in what a file holds.

  Args:
    loaded: dicts, lists, arrays, plain values and `pickled.Unread`.
    select: the path, with dots, to the dict of the network, the prefix of its
      keys, or both; '.' for the outermost dict.
    wanted: what a network is; None takes a whole dict.
    normaliser: see `normalisers.named`.
    largest: bytes that the arrays of a dict may have.

  Raises:
    pickled.Refusal: if there is none, or several.
  """
  dicts = list(_dicts(loaded))
  if not dicts:
    raise pickled.Refusal(_nothing(loaded))
  for each in dicts:
    wrappers.checked(each.arrays)
    size = sum(value.nbytes for value in each.arrays.values())
    if size > largest:
      raise pickled.Refusal(
          f'its tensors repeat or expand what it stores to {size:,} bytes, '
          f'more than the {largest:,.0f} that are read of a file of its size.')
  if select is not None:
    dicts, named = _selected(dicts, loaded, select, normaliser)
    normaliser = None if named else normaliser
  complete = [found for each in dicts
              for found in _networks(each, wanted, normaliser)]
  if complete:
    first = _first(_distinct(complete))
    if len(first) > 1:
      raise _several(found.where for found in first)
    _check_versions(first[0], dicts, complete, wanted)
    return first[0]
  # Nothing is complete: the differences of what was meant will be told.
  dicts = [each for each in dicts if _looks_like_weights(each.arrays)] or dicts
  first = _first(_distinct(dicts))
  if len(first) > 1:
    raise _several(each.path for each in first)
  if wanted is None:
    for key, item in first[0].unread.items():
      raise pickled.Refusal(_refused(key, item))
  whole = _whole(first[0], normaliser)
  if wanted is not None and len(_weights_only(whole.arrays)) > _MOST_ARRAYS:
    raise pickled.Refusal(f'it holds {len(whole.arrays):,} arrays in one dict, '
                          'and no complete network among them.')
  return whole


def _weights_only(arrays):
  return [key for key in arrays if not key.endswith('num_batches_tracked')]


def _dicts(loaded) -> Iterator[_Dict]:
  """Yields every dict that has arrays, however deep it is."""
  queue, seen = [], set()
  if isinstance(loaded, Mapping | list | tuple):
    queue.append(('', loaded))
  for path, value in queue:  # It grows.
    if isinstance(value, Mapping):
      found = _of_dict(path, value)
      if found is not None:
        yield found
    # A file's dicts may hold one another, and one may have two names.
    if id(value) in seen or path.count('.') >= _DEEPEST:
      continue
    seen.add(id(value))
    for key, item in _items(value):
      if isinstance(item, Mapping | list | tuple):
        queue.append((f'{path}.{key}' if path else key, item))


def _items(value):
  """Returns what is in a dict or list, by names that a path can have."""
  if isinstance(value, Mapping):
    # The numbers in an optimiser's state are no names.
    return [(key, item) for key, item in value.items()
            if isinstance(key, str) and len(key) <= _LONGEST_KEY]
  if len(value) <= _LONGEST_LIST:
    return [(str(i), item) for i, item in enumerate(value)]
  return []


def _of_dict(path, value):
  """Returns what is of interest in a dict, None if no array is."""
  tensors, from_numpy, others = {}, {}, {}
  for key, item in value.items():
    if not isinstance(key, str):
      continue
    last = key.rpartition('.')[2]
    if last in wrappers.COUNTERS:
      others[key] = 'a counter'
    elif last in _NO_WEIGHTS:
      others[key] = ''
    elif isinstance(item, torch_file.NumpyArray):
      from_numpy[key] = item.view(np.ndarray)
    elif isinstance(item, np.ndarray):
      tensors[key] = item
    else:
      others[key] = _kind(item)
  if any(item.ndim for item in tensors.values()):
    normaliser = {key for roles in normalisers.find(from_numpy).values()
                  if len(roles) == 2 for key in roles.values()}
    tensors |= {key: from_numpy.pop(key) for key in normaliser}
    arrays, beside = tensors, dict.fromkeys(from_numpy, 'an array of NumPy')
  else:
    arrays, beside = from_numpy, dict.fromkeys(tensors, 'a number')
  if not any(item.ndim for item in arrays.values()):
    return None
  if len(arrays) > _MOST_STORED:
    raise pickled.Refusal(f'it holds {len(arrays):,} arrays in one dict, more '
                          f'than {_MOST_STORED:,}, which no network has.')
  return _Dict(path, arrays, others | beside, {
      key: value[key] for key in others
      if isinstance(value[key], pickled.Unread) and value[key].is_tensor})


def _kind(item):
  if isinstance(item, pickled.Unread):
    return f'{item}, which is not read; {item.cure}'
  return type(item).__name__


def _refused(key, item):
  return f'{errors.shown(key)} is {_kind(item)}.'


def _networks(found, wanted, normaliser) -> Iterator[Weights]:
  """Yields the complete networks in a dict, of all its prefixes."""
  if wanted is None:
    return
  # Its own names may be those that wrappers have.
  if len(_weights_only(found.arrays)) <= _MOST_ARRAYS and wanted.fits(
      found.arrays):
    yield Weights(found.arrays, found.path, found.others, path=found.path)
    return
  arrays = wrappers.unwrapped(found.arrays)
  prefixes = _prefixes(arrays, wanted.marks)
  if len(prefixes) > _MOST_NETWORKS:
    raise pickled.Refusal(
        f'it holds {len(prefixes):,} networks or parts of them; select one, '
        f'such as {errors.shown(_joined(found.path, prefixes[0]))}.')
  seen: list[Any] = []
  # The outer ones first: copies are inside of what attacks or averages them.
  for prefix in sorted(prefixes, key=lambda prefix: prefix.count('.')):
    inside = {key[len(prefix):]: value for key, value in arrays.items()
              if key.startswith(prefix)}
    if any(_same(inside, other) for other in seen):
      continue
    seen.append(inside)
    weights, _ = _under(found, arrays, prefix, normaliser)
    for extra in ({}, *_numbers(weights.arrays)):
      kept = {key: value for key, value in weights.arrays.items()
              if key not in extra}
      left = dict(weights.left_out) | extra
      if len(_weights_only(kept)) <= _MOST_ARRAYS and wanted.fits(kept):
        yield dataclasses.replace(weights, arrays=kept, left_out=left)
        break


def _numbers(arrays):
  """Returns what may be no weights: counters, then all single numbers."""
  numbers = {key: 'a counter' if value.dtype.kind in 'iu' else 'a number'
             for key, value in arrays.items()
             if not value.ndim and not key.endswith('num_batches_tracked')}
  counters = {key: what for key, what in numbers.items()
              if what == 'a counter'}
  return [extra for extra in (counters, numbers) if extra]


def _prefixes(arrays, marks):
  """Returns what stands before the keys that mark a network, once each."""
  prefixes = {}
  for key in arrays:
    for mark in marks:
      if key == mark or key.endswith(f'.{mark}'):
        prefixes[key[:len(key) - len(mark)]] = None
  return list(prefixes)


def _under(found, arrays, prefix, normaliser):
  """Returns what a dict has under a prefix, with the normaliser beside it."""
  inside, outside = {}, {}
  for key, value in arrays.items():
    if key.startswith(prefix):
      inside[key[len(prefix):]] = value
    else:
      outside[key] = value
  names = _normaliser(inside, outside, prefix, normaliser)
  result = {names.get(key, key): value for key, value in inside.items()}
  result |= {names[key]: value for key, value in outside.items()
             if key in names}
  left = {key: value for key, value in outside.items() if key not in names}
  return Weights(result, _joined(found.path, prefix),
                 dict(found.others) | _groups(left, prefix),
                 {new: own for own, new in names.items()}, found.path,
                 _unclear(left, prefix)), left


def _unclear(left, prefix):
  """Returns the keys beside a network that may be those of its normaliser."""
  return tuple(key for key in normalisers.unclear(left)
               if any(prefix.startswith(head) for head in _heads(key)))


def _heads(key):
  """Returns what a layer's key, and what it is in, begin with."""
  layer = key.rpartition('.')[0]
  around = layer.rpartition('.')[0]
  return [f'{name}.' if name else '' for name in (layer, around)]


def _normaliser(inside, outside, prefix, normaliser):
  """Returns new names of the keys of the one normalising layer, if any.

  It is inside, or beside the network or what that is in. What is elsewhere
  belongs to another network.
  """
  if normaliser is not None:
    try:
      return normalisers.renamed(normalisers.named(
          normaliser, [*inside, *outside]))
    except ValueError as error:
      raise pickled.Refusal(str(error)) from error
  levels = [{head: roles for head, roles in normalisers.find(inside).items()
             if '.' not in head and len(roles) < len(inside)}]
  beside = normalisers.find(outside)
  parent = prefix.rstrip('.')
  while parent:
    parent = parent.rpartition('.')[0]
    levels.append({head: roles for head, roles in beside.items()
                   if head == parent or head.rpartition('.')[0] == parent
                   and head})
  levels = [level for level in levels if level]
  if len(levels) > 1:
    raise _several_normalisers([roles for level in levels
                                for roles in level.values()])
  return _one(levels[0], inside | outside) if levels else {}


def _one(layers, arrays):
  """Returns the new names of the one layer that is meant."""
  first, *rest = layers.values()
  for other in rest:
    if other.keys() != first.keys() or not all(
        _equal(arrays[key], arrays[first[name]])
        for name, key in other.items()):
      raise _several_normalisers(layers.values())
  return normalisers.renamed(first)


def _several_normalisers(layers):
  keys = [errors.shown(key, 60) for roles in layers for key in roles.values()]
  return pickled.Refusal(
      f'it has several normalising layers, {", ".join(keys[:8])}; name the '
      'keys of mean and standard deviation by normaliser.')


def _groups(keys, prefix):
  """Returns what keys begin with where they leave a prefix, with a star."""
  groups, path = {}, prefix.split('.')
  for key in sorted(keys):
    names = key.split('.')
    same = 0
    while same < len(names) - 1 and names[same] == path[same]:
      same += 1
    head = '.'.join(names[:same + 1])
    groups[head if head == key else f'{head}.*'] = ''
  return groups


def stripped(arrays: Mapping[str, np.ndarray],
             normaliser: str | None = None) -> StateDict:
  """Returns arrays without the prefixes that all of their keys share.

  That is the first name of all keys, as often as they share it. The keys of a
  normalising layer beside the network, as in Sequential(normaliser, network),
  share nothing with it; they become `normalize.mean` and `normalize.std`.
  Names of PyTorch's wrappers are cut off wherever they stand.

  Raises:
    pickled.Refusal: if two keys become one, or it has several normalising
      layers that differ.
  """
  found = _of_dict('', arrays) or _Dict('', dict(arrays), {})
  return _whole(found, normaliser).arrays


def _whole(found, normaliser):
  arrays = wrappers.unwrapped(found.arrays)
  layers = normalisers.find(arrays)
  own = {key for roles in layers.values() for key in roles.values()}
  if len(own) == len(arrays):
    own = set()
  heads = [key.split('.')[:-1] for key in arrays if key not in own]
  shared = []
  for names in zip(*heads, strict=False):
    if len(set(names)) != 1:
      break
    shared.append(names[0])
  weights, left = _under(found, arrays, ''.join(
      f'{name}.' for name in shared), normaliser)
  return dataclasses.replace(weights, arrays=weights.arrays | left,
                             where=found.path, left_out=found.others)


def _selected(dicts, loaded, select, normaliser):
  """Returns the dicts, or the part of one, that a person selects.

  And whether it is a part, to which its normalising layer has been added.
  """
  name = select.removesuffix('*').strip('.')
  if select == TOP:
    name = ''
  for each in dicts:
    if each.path == name:
      return [each], False
  inside = [each for each in dicts if name
            and each.path.startswith(f'{name}.')]
  if inside:
    return inside, False
  parts = []
  for each in dicts:
    for rest in dict.fromkeys((name.removeprefix(f'{each.path}.'), name)):
      for arrays in (each.arrays, _cut(each.arrays)):
        if rest and any(key.startswith(f'{rest}.') for key in arrays):
          parts.append(_part(each, arrays, f'{rest}.', normaliser))
          break
  parts = _distinct(parts)
  if len(parts) == 1:
    return parts, True
  if parts:
    raise _several(part.path for part in parts)
  raise pickled.Refusal(
      f'expected select={select!r} to name a dict of tensors or what the keys '
      f'of a network begin with; its keys are {_keys(loaded, dicts)}.')


def _cut(arrays):
  """Returns arrays without wrappers' names, as far as they stay distinct."""
  return {wrappers.cut(key): value for key, value in arrays.items()}


def _part(each, arrays, prefix, normaliser):
  """Returns what is under a prefix as a dict, with normalisers beside it."""
  weights, _ = _under(each, arrays, prefix, normaliser)
  return _Dict(weights.where, weights.arrays, weights.left_out)


def _keys(loaded, dicts):
  """Returns the first keys of what a file holds, for a message."""
  if isinstance(loaded, Mapping) and loaded:
    names = sorted(errors.shown(str(key), 60) for key in loaded)
  else:
    names = [errors.shown(each.path) for each in dicts]
  return ', '.join(names[:10]) or 'none'


def _nothing(loaded):
  """Returns what a file without any dict of arrays holds."""
  if isinstance(loaded, pickled.Unread):
    return (f'it holds an object of {loaded.name}, such as a whole module, not '
            f'a state dict; {loaded.cure}.')
  if not isinstance(loaded, Mapping | list | tuple):
    return f'it holds a {type(loaded).__name__}, not a state dict.'
  unread = [(key, item) for key, item in _items(loaded)
            if isinstance(item, pickled.Unread)]
  if unread:
    key, item = unread[0]
    return f'it holds no dict of tensors; {_refused(key, item)}'
  kind = '' if isinstance(loaded, Mapping) else f' in a {type(loaded).__name__}'
  return f'it holds no dict of tensors{kind}; its keys are {_keys(loaded, [])}.'


def _several(paths: Iterable[str]) -> pickled.Refusal:
  names = [errors.shown(path or TOP) for path in paths]
  more = f', ... ({len(names)} in all)' if len(names) > 10 else ''
  return pickled.Refusal('it holds several state dicts; select one of '
                         f'{", ".join(names[:10])}{more}.')


def _first(found):
  """Returns those that may be meant: of the usual names, if any has one."""
  first = []
  for versions in _USUAL:
    named = [each for name in versions for each in found
             if _usual(each.path) == name]
    first += [each for each in named
              if _usual(each.path) == _usual(named[0].path)]
  if not first:
    return found
  outermost = [each for each in found if not each.path
               and _looks_like_weights(each.arrays)]
  return outermost + first + [each for each in found if _is_version(each.path)]


def _usual(path):
  """Returns the first key of a path that is a usual wrapper, or None."""
  usual = {name for versions in _USUAL for name in versions}
  return next((key for key in path.split('.') if key in usual), None)


def _is_version(path):
  """Returns whether a path of no usual name says that it is a version."""
  return _usual(path) is None and not _VERSIONS.isdisjoint(
      re.findall('[a-z]+', path.lower()))


def _looks_like_weights(arrays):
  return any('.' in key for key in arrays)


def _check_versions(chosen, dicts, complete, wanted):
  """Raises Refusal if another dict has most of the same keys, incomplete.

  It may be the one that is meant, and damaged.
  """
  for each in dicts:
    if any(found.path == each.path for found in complete) or (
        _usual(each.path) is None and _usual(chosen.path) is not None):
      continue
    arrays = _cut(each.arrays)
    for prefix in _prefixes(arrays, wanted.marks):
      shared = sum(prefix + key in arrays for key in chosen.arrays)
      if 2 * shared > len(chosen.arrays):
        raise _several([chosen.where, _joined(each.path, prefix)])


def _distinct(found):
  """Returns what differs, of each that is there twice the first."""
  result = []
  for each in found:
    if not any(_same(each.arrays, other.arrays) for other in result):
      result.append(each)
  return result


def _same(arrays, others):
  return arrays is others or arrays.keys() == others.keys() and all(
      _equal(value, others[key]) for key, value in arrays.items())


def _equal(value, other):
  if value is other:
    return True
  if value.shape != other.shape or value.dtype != other.dtype:
    return False
  place = value.__array_interface__['data'][0], value.strides
  if place == (other.__array_interface__['data'][0], other.strides):
    return True
  return value.tobytes() == other.tobytes()


def _joined(path, prefix):
  return '.'.join(filter(None, (path, prefix.strip('.'))))
