"""Examples that are arrays already: scikit-learn's digits and .npz files."""

import os
from typing import BinaryIO
import zipfile

import numpy as np

from ferd_jax.core import errors
from ferd_jax.data import splits
from ferd_jax.data.examples import DatasetInfo
from ferd_jax.data.examples import Examples

# Every third digit is a test image: scikit-learn has no official split.
_DIGITS_TEST_STRIDE = 3

# Labels count the classes, and every class gets a name. One stray label must
# not fill the memory with names; no data set has nearly as many classes.
_MAX_CLASSES = 1 << 20


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

  The file is one set of examples: 'train' and 'test' both name all of it, so
  that a training and a test file can each be given wherever a dataset's name
  can. Slices select rows, in the order of the file.

  Args:
    path: file with the arrays `x`, uint8 `[N, H, W, C]`, and `y`, `[N]` of any
      integer type, below 2**20. Optional `class_names`, `[K]` of strings;
      without it there are max(y) + 1 classes, named by their numbers.
    split: 'train', 'test' or a slice of them in TFDS's syntax.

  Returns:
    The chosen rows.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not such a file, or there is no such split.
  """
  images, labels, class_names = _read_npz(path)
  ranges = splits.row_ranges(
      split, {'train': [len(labels)], 'test': [len(labels)]}, path)
  if len(ranges) != 1:
    # A sum such as 'train+test' would hold the same examples twice.
    raise ValueError(f'{path} is one set of examples: split must be one term, '
                     f'got {split!r}.')
  (_, start, stop) = ranges[0]
  return Examples(images[start:stop], labels[start:stop], class_names)


def npz_info(path: str) -> DatasetInfo:
  """Describes a file that `npz` can load; the same arguments and errors."""
  images, _, class_names = _read_npz(path)
  return DatasetInfo(len(class_names), images.shape[1:], class_names)


def _read_npz(path: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Returns checked images, labels (int32) and class names of a whole file."""
  path = os.path.expanduser(path)
  # Errors of opening it, such as a missing file, name the path themselves.
  with open(path, 'rb') as file:
    try:
      return _read_archive(file)
    except Exception as error:
      raise ValueError(f'{path} is not a usable dataset: '
                       f'{errors.reason(error)}.') from error


def _read_archive(
    file: BinaryIO) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Does it for `_read_npz`; damage to the file can raise any error."""
  if not zipfile.is_zipfile(file):
    raise ValueError('it is not an archive of arrays')
  with zipfile.ZipFile(file) as archive:
    members = {name.removesuffix('.npy'): name for name in archive.namelist()}
    missing = {'x', 'y'} - members.keys()
    if missing:
      raise ValueError(
          f'missing {" and ".join(sorted(missing))}; needs x and y, '
          f'has {", ".join(sorted(members)) or "nothing"}')
    x, y = (_read_member(archive, members[name]) for name in 'xy')
    names = (_read_member(archive, members['class_names'])
             if 'class_names' in members else None)
  _check_arrays(x, y)
  num_classes = int(y.max()) + 1
  if names is None:
    names = np.arange(num_classes)
  elif names.ndim != 1 or names.dtype.kind != 'U' or len(names) < num_classes:
    raise ValueError(
        f'class_names must be at least {num_classes} strings (the largest '
        f'label is {num_classes - 1}), is {_describe(names)}')
  return x, y.astype(np.int32), tuple(map(str, names))


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


def _check_arrays(x: np.ndarray, y: np.ndarray) -> None:
  """Raises ValueError unless x are images and y their labels."""
  if x.dtype != np.uint8 or x.ndim != 4:
    raise ValueError(f'x must be uint8 [N, H, W, C], is {_describe(x)}')
  if y.dtype.kind not in 'iu' or y.ndim != 1:
    raise ValueError(f'y must be integer [N], is {_describe(y)}')
  if len(x) != len(y):
    raise ValueError(f'x holds {len(x)} examples but y {len(y)}')
  if not x.size:
    raise ValueError(f'x is empty: {_describe(x)}')
  if y.min() < 0:
    raise ValueError(f'labels must be at least 0, the smallest is {y.min()}')
  if y.max() >= _MAX_CLASSES:
    raise ValueError(
        f'labels must be below {_MAX_CLASSES}, the largest is {y.max()}')


def _describe(array: np.ndarray) -> str:
  return f'{array.dtype} {list(array.shape)}'
