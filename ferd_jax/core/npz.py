"""Arrays of .npz files, of which nothing is believed before it is there.

`numpy.load` allocates what the header of an array says, and expands what is
compressed to any size. Here both are bounded by what the caller allows.
"""

import ast
from collections.abc import Collection
from collections.abc import Iterable
import math
import os
import re
import struct
import zipfile

import numpy as np

from ferd_jax.core import errors

_MAGIC = b'\x93NUMPY'
_LONGEST_HEADER = 10_000
_CHUNK = 1 << 20


def read(path: str | os.PathLike[str], largest: int,
         only: Collection[str] | None = None) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name.

  Args:
    path: of a zip archive with an .npy file for each array.
    largest: bytes that all of them may have, expanded.
    only: the names of those to read; None for all.

  Raises:
    ValueError: if they would be larger, or hold objects, or the file is
      damaged.
    OSError: if it cannot be opened.
  """
  arrays = {}
  try:
    with zipfile.ZipFile(path) as archive:
      entries = [entry for entry in archive.infolist() if only is None
                 or entry.filename.removesuffix('.npy') in only]
      check_sizes(entries, os.path.getsize(path), largest)
      for entry in entries:
        name = entry.filename.removesuffix('.npy')
        if name in arrays:
          raise ValueError(f'it holds {errors.shown(name)} twice.')
        if name != entry.filename:
          with archive.open(entry) as file:
            arrays[name] = _array(file, entry.file_size, errors.shown(name))
  except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError,
          struct.error) as error:
    raise ValueError(f'it is damaged ({errors.reason(error)}).') from error
  return arrays


def check_sizes(entries: Iterable[zipfile.ZipInfo], size: int, largest: int
                ) -> None:
  """Raises ValueError for entries that would take more than is allowed.

  Args:
    entries: of an archive, that are to be read.
    size: of the archive's file, in bytes.
    largest: bytes that all of them may have, expanded.
  """
  entries = list(entries)
  # Entries that lie on each other would cost more than the file's size.
  if sum(entry.compress_size for entry in entries) > size:
    raise ValueError('it is damaged: its parts are larger than it.')
  # Of the other methods zipfile does not limit what a few bytes expand to.
  if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
         for entry in entries):
    raise ValueError('it is compressed as numpy.savez does not do.')
  expanded = sum(entry.file_size for entry in entries)
  if expanded > largest:
    raise ValueError(f'its arrays expand to {expanded:,} bytes, more than the '
                     f'{largest:,} that are read of a file of its size.')


def _array(file, size, name):
  """Returns the array in an .npy file of so many bytes."""
  head = _exactly(file, 8, name)
  if head[:6] != _MAGIC or head[6] not in (1, 2, 3):
    raise ValueError(f'its {name} is no array of NumPy.')
  wide = head[6] > 1
  length, = struct.unpack('<I' if wide else '<H',
                          _exactly(file, 4 if wide else 2, name))
  if length > _LONGEST_HEADER:
    raise ValueError(f'its {name} has a header of {length:,} bytes.')
  text = _exactly(file, length, name).decode('latin1')
  dtype, order, shape = _header(text, name)
  rest = size - 8 - (4 if wide else 2) - length
  if math.prod(shape) * dtype.itemsize != rest:
    raise ValueError(f'its {name} has {rest:,} bytes for the shape '
                     f'{errors.shown(str(shape))} of {dtype}.')
  values = np.empty(rest, np.uint8)
  place = memoryview(values)
  while place:
    count = file.readinto(place[:_CHUNK])
    if not count:
      raise ValueError(f'its {name} ends too early.')
    place = place[count:]
  if file.read(1):
    raise ValueError(f'its {name} is longer than it says.')
  return np.ndarray(shape, dtype, values, order=order)


def _header(text, name):
  """Returns data type, order and shape, which the header says."""
  try:
    values = ast.literal_eval(text.strip())
    descr, fortran, shape = (
        values[key] for key in ('descr', 'fortran_order', 'shape'))
    # No objects, and no records, which may hold some.
    valid = isinstance(descr, str) and re.fullmatch(
        r'[<>|=]?([biufc]\d{1,2}|[US]\d{1,9}|V2)', descr)
    if valid and isinstance(shape, tuple) and all(
        type(side) is int and 0 <= side < 2 ** 62 for side in shape):
      return np.dtype(descr), 'F' if fortran else 'C', shape
  except Exception as error:
    # Of a text that is no dict, nested too deeply, or without its keys.
    raise ValueError(f'its {name} has a header that is none.') from error
  raise ValueError(f'its {name} holds objects or records, not numbers; save an '
                   'array of numbers.')


def _exactly(file, size, name):
  data = file.read(size)
  if len(data) != size:
    raise ValueError(f'its {name} ends too early.')
  return data
