"""Examples that are arrays already: scikit-learn's digits and .npz files."""

from collections.abc import Collection
import os
from typing import BinaryIO
import zipfile

import numpy as np

from ferd_jax.core import buckets
from ferd_jax.core import errors
from ferd_jax.core import npz as npz_files
from ferd_jax.data import splits
from ferd_jax.data.examples import DatasetInfo
from ferd_jax.data.examples import Examples

# Every third digit is a test image: scikit-learn has no official split.
_DIGITS_TEST_STRIDE = 3

# Labels count the classes, and every class gets a name. One stray label must
# not fill the memory with names; no data set has nearly as many classes.
_MAX_CLASSES = 1 << 20
# Nor does it lack many in a row: a label far above all others, such as 255,
# says that an image has no class.
_MAX_GAP = 10
# What a compressed file may expand to, in bytes and as a multiple of its size:
# pictures do not shrink as zeros do.
_LARGEST, _LARGEST_MULTIPLE = 1 << 30, 64


def digits(split: str) -> Examples:
  """Loads scikit-learn's `load_digits`: 1,797 grey images of 8x8 pixels.

  Row i of scikit-learn's array is in 'test' (599 images) if i is a multiple of
  3, and else in 'train' (1,198 images). Its 17 grey levels are spread over
  0..255.

  Args:
    split: 'train', 'test' or a part of them in TFDS's syntax.

  Returns:
    Images uint8 `[N, 8, 8, 1]` in scikit-learn's order.

  Raises:
    ValueError: if there is no such split.
  """
  from sklearn import datasets  # Takes about a second.
  source = datasets.load_digits()
  images = np.round(source.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = source.target.astype(np.int32)
  is_test = np.arange(len(labels)) % _DIGITS_TEST_STRIDE == 0
  rows = {'train': np.flatnonzero(~is_test), 'test': np.flatnonzero(is_test)}
  ranges = splits.row_ranges(
      split, {name: [len(r)] for name, r in rows.items()}, 'digits')
  chosen = np.concatenate([rows[name][a:b] for name, a, b in ranges])
  return Examples(images[chosen], labels[chosen],
                  tuple(map(str, source.target_names)))


def npz(path: str, split: str) -> Examples:
  """Loads anybody's own examples from a file that `np.savez` wrote.

  A file with one set of examples serves as 'train' and as 'test', so that a
  training and a test file can each be given wherever a dataset's name can. One
  in the layout of Keras or of MedMNIST has splits of its own. Slices select
  rows, in the order of the file.

  Args:
    path: file with the arrays `x`, uint8 `[N, H, W, C]` or `[N, H, W]`, and
      `y`, `[N]` or `[N, 1]` of any integer type, from 0. They may also be
      called `images` and `labels`, `x_train` and so on (Keras), or
      `train_images` and so on (MedMNIST). Optional `class_names`, `[K]` of
      strings; without it there are max(y) + 1 classes, named by their numbers.
    split: of the file, or a slice in TFDS's syntax.

  Returns:
    The chosen rows.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not such a file, or there is no such split; it
      says what to change in the file.
  """
  sets, class_names = _read_npz(path)
  ranges = splits.row_ranges(
      split, {name: [len(labels)] for name, (_, labels) in sets.items()}, path)
  if len(ranges) != 1 and sets['train'][0] is sets['test'][0]:
    # A sum such as 'train+test' would hold the same examples twice.
    raise ValueError(f'{path} is one set of examples: split must be one term, '
                     f'got {split!r}.')
  images, labels = zip(*(
      [values[start:stop] for values in sets[name]]
      for name, start, stop in ranges), strict=True)
  return Examples(np.concatenate(images), np.concatenate(labels), class_names)


def npz_info(path: str) -> DatasetInfo:
  """Describes a file that `npz` can load; the same arguments and errors."""
  sets, class_names = _read_npz(path)
  images, _ = next(iter(sets.values()))
  return DatasetInfo(len(class_names), images.shape[1:], class_names)


_Sets = dict[str, tuple[np.ndarray, np.ndarray]]


def _read_npz(path: str) -> tuple[_Sets, tuple[str, ...]]:
  """Returns checked images and labels (int32) by split, and class names."""
  # Errors of opening it, such as a missing file, name the path themselves.
  with buckets.local(path) as copy, open(copy, 'rb') as file:
    try:
      return _read_archive(file)
    except Exception as error:
      raise ValueError(f'{path} is not a usable dataset: '
                       f'{errors.reason(error)}.') from error


def _read_archive(file: BinaryIO) -> tuple[_Sets, tuple[str, ...]]:
  """Does it for `_read_npz`; damage to the file can raise any error."""
  if not zipfile.is_zipfile(file):
    raise ValueError('it is not an archive of arrays')
  with zipfile.ZipFile(file) as archive:
    members = {name.removesuffix('.npy'): name for name in archive.namelist()}
    layout = _layout(members)
    size = file.seek(0, os.SEEK_END)
    npz_files.check_sizes(
        [archive.getinfo(members[name])
         for name in {*sum(layout.values(), ()), 'class_names'} & set(members)],
        size, _LARGEST + _LARGEST_MULTIPLE * size)
    arrays = {name: _read_member(archive, members[name])
              for name in dict.fromkeys(sum(layout.values(), ()))}
    given = (_read_member(archive, members['class_names'])
             if 'class_names' in members else None)
  for x, y in dict.fromkeys(layout.values()):
    arrays[x], arrays[y] = _images(x, arrays[x]), _labels(y, arrays[y])
    if len(arrays[x]) != len(arrays[y]):
      # As in the .mat files of SVHN.
      cure = (f'; of images along the last axis save np.moveaxis({x}, -1, 0)'
              if arrays[x].shape[-1] == len(arrays[y]) else '')
      raise ValueError(f'{x} holds {len(arrays[x])} examples but {y} '
                       f'{len(arrays[y])}{cure}')
  shapes = {arrays[x].shape[1:] for x, _ in layout.values()}
  if len(shapes) > 1:
    raise ValueError(f'images of all splits must have one shape, have {shapes}')
  labels = np.concatenate([arrays[y] for _, y in dict.fromkeys(
      layout.values())])
  names = _class_names(given, labels)
  return {split: (arrays[x], arrays[y].astype(np.int32))
          for split, (x, y) in layout.items()}, names


def _layout(members: Collection[str]) -> dict[str, tuple[str, str]]:
  """Returns the names of images and labels by split."""
  for pair in (('x', 'y'), ('images', 'labels')):
    if set(pair) <= set(members):
      return {'train': pair, 'test': pair}
  for x, y in (('x_{}', 'y_{}'), ('{}_images', '{}_labels')):
    found = {split: (x.format(split), y.format(split))
             for split in ('train', 'val', 'test')}
    found = {split: pair for split, pair in found.items()
             if set(pair) <= set(members)}
    if 'test' in found:
      return found
  missing = sorted({'x', 'y'} - set(members))
  raise ValueError(
      f'missing {" and ".join(missing)}; needs x and y, or x_test and y_test '
      "(Keras' layout), or test_images and test_labels (MedMNIST's), has "
      f'{", ".join(sorted(members)) or "nothing"}')


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads one array, as np.load does, and its checksum."""
  try:
    with archive.open(name) as member:
      # Pickles can run code and no valid file needs them.
      array = np.lib.format.read_array(member, allow_pickle=False)
      # The checksum is compared at the end of the member, before which a
      # damaged header can let the array end.
      member.read()
  except Exception as error:
    # zipfile, zlib, ast and numpy each raise errors of their own kinds.
    raise ValueError(
        f'{name} cannot be read: {errors.reason(error)}') from error
  return array


def _images(name: str, x: np.ndarray) -> np.ndarray:
  """Returns images `[N, H, W, C]`, or raises ValueError with the cure."""
  if x.dtype != np.uint8:
    raise ValueError(f'{name} must be uint8 [N, H, W, C], is {_describe(x)}'
                     f'{_as_bytes(name, x)}')
  if x.ndim == 3:
    x = x[..., None]  # Grey images need no axis for it.
  if x.ndim != 4:
    raise ValueError(f'{name} must be uint8 [N, H, W, C], is {_describe(x)}')
  if not x.size:
    raise ValueError(f'{name} is empty: {_describe(x)}')
  _, first, _, last = x.shape
  if first in (1, 3) and last not in (1, 3):
    raise ValueError(f'{name} has its channels first, {_describe(x)}; save '
                     f'{name}.transpose(0, 2, 3, 1)')
  return x


def _as_bytes(name: str, x: np.ndarray) -> str:
  """Returns how images become uint8, after a semicolon, or nothing."""
  if x.dtype.kind not in 'biuf' or not x.size:
    return ''
  low, high = x.min(), x.max()
  if x.dtype.kind == 'f' and 0 <= low and high <= 1:
    return f'; save np.round({name} * 255).astype(np.uint8)'
  if 0 <= low and 1 < high <= 255:
    return f'; save {name}.astype(np.uint8)'
  if x.dtype.kind == 'b':
    return f'; save {name}.astype(np.uint8) * 255'
  if x.dtype == np.uint16:
    return f', up to {high}; save ({name} // 257).astype(np.uint8)'
  return (f', from {low:g} to {high:g}; undo the normalisation, which belongs '
          'into the network, and save bytes of 0..255')


def _labels(name: str, y: np.ndarray) -> np.ndarray:
  """Returns labels `[N]`, or raises ValueError with the cure."""
  if y.ndim == 2 and y.shape[1] == 1:
    y = y[:, 0]
  cure = ''
  if y.ndim == 2:
    cure = f'; of one-hot labels save {name}.argmax(-1)'
  elif y.dtype.kind in 'SU':
    cure = (f'; save class_names, {name} = np.unique({name}, '
            'return_inverse=True)')
  elif y.dtype.kind == 'f' and y.ndim == 1 and (y == np.round(y)).all():
    cure = f'; save {name}.astype(np.int64)'
  if y.dtype.kind not in 'iu' or y.ndim != 1:
    raise ValueError(f'{name} must be integer [N], is {_describe(y)}{cure}')
  if not len(y):
    raise ValueError(f'{name} is empty: {_describe(y)}')
  if y.min() < 0:
    raise ValueError(
        f'labels must be at least 0, the smallest is {y.min()} of '
        f'{_count(y < 0)}; remove images without a class')
  if y.max() >= _MAX_CLASSES:
    raise ValueError(
        f'labels must be below {_MAX_CLASSES}, the largest is {y.max()}')
  return y


def _class_names(names: np.ndarray | None, y: np.ndarray) -> tuple[str, ...]:
  """Returns one name a class, or raises ValueError with the cure."""
  found = np.unique(y)
  num_classes = int(found[-1]) + 1
  if names is None:
    jumps = np.diff(found)
    if found[0] == 1:
      raise ValueError(
          f'labels are 1..{found[-1]} and must begin at 0; subtract 1, or add '
          'class_names if no image is of class 0')
    if len(jumps) and jumps.max() > _MAX_GAP:
      after = int(found[jumps.argmax() + 1])
      raise ValueError(
          f'there are no labels between {int(found[jumps.argmax()])} and '
          f'{after}, which {_count(y >= after)} have; remove these, or add '
          'class_names if there are so many classes')
    return tuple(map(str, range(num_classes)))
  if names.dtype.kind == 'S':
    names = np.char.decode(names, 'utf-8')
  if names.ndim != 1 or names.dtype.kind != 'U':
    raise ValueError(
        f'class_names must be at least {num_classes} strings (the largest '
        f'label is {num_classes - 1}), is {_describe(names)}')
  if len(names) < num_classes:
    cure = ('subtract 1: labels begin at 0' if (
        found[0] == 1 and len(names) == num_classes - 1) else
            f'remove the {_count(y >= len(names))} without a name, or name '
            'their classes')
    raise ValueError(
        f'class_names must be at least {num_classes} strings (the largest '
        f'label is {num_classes - 1}), is {_describe(names)}; {cure}')
  return tuple(map(str, names))


def _count(mask: np.ndarray) -> str:
  number = int(mask.sum())
  return f'{number} image' if number == 1 else f'{number} images'


def _describe(array: np.ndarray) -> str:
  return f'{array.dtype} {list(array.shape)}'
