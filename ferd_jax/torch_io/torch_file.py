"""Reads and writes files of `torch.save` without PyTorch.

There are two formats: a zip archive of a pickle and one file per storage (since
PyTorch 1.6), and one stream of five pickles with the storages behind them. Both
are described by PyTorch's `torch/serialization.py`; what tensors are pickled as
by `torch/_utils.py`.
"""

from collections.abc import Mapping
import math
import os
import re
import struct
from typing import Any
from typing import BinaryIO
from typing import NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from ferd_jax.core import errors
from ferd_jax.torch_io import pickled

# Tensors may show elements of their storage again and again (`expand`). With
# more elements than these one is no weight, and no copy of it would fit.
_LARGEST_REPEATED = 2 ** 27

# What the first two pickles of a stream hold.
_STREAM_MAGIC = 0x1950a86a20f9469cfc6c
_STREAM_PROTOCOL = 1001

# Data types by the names of their storages.
_STORAGES = {
    'Float': np.float32, 'Double': np.float64, 'Half': np.float16,
    'BFloat16': jnp.bfloat16, 'Long': np.int64, 'Int': np.int32,
    'Short': np.int16, 'Char': np.int8, 'Byte': np.uint8, 'Bool': np.bool_,
    'ComplexFloat': np.complex64, 'ComplexDouble': np.complex128,
}
_DTYPES = (
    'float', 'float16', 'float32', 'float64', 'half', 'double', 'bfloat16',
    'int', 'int8', 'int16', 'int32', 'int64', 'short', 'long', 'uint8', 'bool',
    'complex64', 'complex128')


def read(path: str | os.PathLike[str]) -> Any:
  """Returns what `torch.save` put into a file, with arrays for tensors.

  Args:
    path: a file of either format; what it was saved from (CPU, CUDA) does not
      matter.

  Returns:
    Dicts (of any kind), lists, tuples and plain values as they were saved. For
    tensors and parameters read-only numpy arrays of the same bits, which may
    be views of one storage, as the tensors are; bfloat16 is the data type of
    the package ml_dtypes.

  Raises:
    pickled.Refusal: if the file holds objects of any other kind, named in the
      message, or is damaged.
    OSError: if it cannot be opened.
  """
  with open(path, 'rb') as file:
    head = file.read(2)
  try:
    return _read_zip(path) if head == b'PK' else _read_stream(path)
  except pickled.Refusal:
    raise
  except Exception as error:
    # The zipfile module has errors of many kinds for damaged archives.
    raise pickled.Refusal('it is damaged, download it again '
                          f'({errors.reason(error)}).') from error


def write(file: BinaryIO, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict in the zip format.

  `torch.load(..., weights_only=True)` returns it as an OrderedDict of
  contiguous tensors on the CPU. Equal dicts give equal bytes.

  Args:
    file: to write into, empty.
    state_dict: arrays by name, of the data types that `read` knows.

  Raises:
    ValueError: for arrays of any other type.
  """
  arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value))
            for name, value in state_dict.items()}
  program = [_GLOBAL % b'collections\nOrderedDict', b')R(']
  for key, (name, array) in enumerate(arrays.items()):
    program += _tensor_program(name, str(key), array)
  contents = {'data.pkl': b'\x80\x02' + b''.join(program) + b'u.',
              'byteorder': b'little'}
  contents |= {f'data/{key}': array.astype(array.dtype.newbyteorder('<'),
                                           copy=False).tobytes()
               for key, array in enumerate(arrays.values())}
  contents['version'] = b'3\n'
  with zipfile.ZipFile(file, 'w') as archive:
    for name, content in contents.items():
      entry = zipfile.ZipInfo(f'archive/{name}')
      # Contents begin at multiples of 64 bytes, so that they can be mapped.
      head = file.tell() + 30 + len(entry.filename) + 4
      padding = -head % 64
      entry.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
      archive.writestr(entry, content)


_GLOBAL = b'c%b\n'


def _tensor_program(name, key, array):
  """Returns what pushes a name and its tensor, `_rebuild_tensor_v2(...)`."""
  storage = next((storage for storage, dtype in _STORAGES.items()
                  if np.dtype(dtype) == array.dtype), None)
  if storage is None:
    names = ', '.join(np.dtype(dtype).name for dtype in _STORAGES.values())
    raise ValueError(f'Expected {name} of type {array.dtype} to be of one of '
                     f'{names}.')
  strides = [math.prod(array.shape[i + 1:]) for i in range(array.ndim)]
  return [
      _text(name), _GLOBAL % b'torch._utils\n_rebuild_tensor_v2', b'(',
      b'(', _text('storage'), _GLOBAL % f'torch\n{storage}Storage'.encode(),
      _text(key), _text('cpu'), _integer(array.size), b'tQ',
      _integer(0), _integers(array.shape), _integers(strides), b'\x89',
      _GLOBAL % b'collections\nOrderedDict', b')R', b'tR']


def _text(text):
  data = text.encode()
  return b'X' + struct.pack('<I', len(data)) + data


def _integer(value):
  if value < 2 ** 31:
    return b'J' + struct.pack('<i', value)
  return b'\x8a\x08' + struct.pack('<q', value)


def _integers(values):
  return b'(' + b''.join(map(_integer, values)) + b't'


class _StorageType(NamedTuple):
  dtype: np.dtype


class _Storage:
  """Elements of one type, which a stream holds behind what refers to them."""

  def __init__(self, dtype, size):
    if type(size) is not int or size < 0:
      raise pickled.Refusal('it has a storage without a size.')
    self.dtype, self.size = np.dtype(dtype), size
    self.values = None

  def fill(self, data):
    if len(data) != self.size * self.dtype.itemsize:
      raise pickled.Refusal(
          f'it has {len(data)} bytes for {self.size} elements of '
          f'{self.dtype.name}.')
    self.values = np.frombuffer(data, self.dtype)


class _Part(NamedTuple):
  """A part of a storage that is a storage of its own, in elements."""
  root: _Storage
  start: int
  size: int


class _Tensor(NamedTuple):
  """Where the elements of a tensor lie, in elements of its storage."""
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self):
    """Returns the values as a read-only view of the storage."""
    itemsize = self.storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        self.storage.values[self.offset:], self.shape,
        [itemsize * stride for stride in self.strides], writeable=False)


class _Namespace(dict):
  """Attributes of an `argparse.Namespace`."""

  def set_state(self, state):
    self.update({pickled.checked_key(key): value
                 for key, value in state.items()})


class _NumpyType:
  """The type of a numpy scalar."""

  def __init__(self, code, *_):
    if not re.fullmatch('[<|]?([biu][1248]|f[248])', code):
      raise pickled.Refusal(f'it contains a numpy type {code!r}.')
    self.dtype = np.dtype(code).newbyteorder('<')

  def set_state(self, state):
    if state[1] not in ('<', '|', '='):
      raise pickled.Refusal('it contains numpy scalars of the byte order '
                            f'{state[1]!r}.')


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None,
            metadata=None):
  """Returns a tensor that lies within its storage, see `torch/_utils.py`."""
  del requires_grad, hooks
  if metadata:
    raise pickled.Refusal('it has tensors with conjugate or negative bits.')
  numbers = (offset, *shape, *strides)
  if (not isinstance(storage, _Storage | _Part) or len(shape) != len(strides)
      or not all(type(number) is int and number >= 0 for number in numbers)):
    raise pickled.Refusal('it has a tensor of no possible shape.')
  end = offset
  if 0 not in shape:
    end += 1 + sum((size - 1) * stride
                   for size, stride in zip(shape, strides, strict=True))
  if end > storage.size:
    raise pickled.Refusal(f'it has a tensor of shape {tuple(shape)} that does '
                          'not fit its storage.')
  if math.prod(shape) > max(storage.size, _LARGEST_REPEATED):
    raise pickled.Refusal(f'it has a tensor of shape {tuple(shape)} that '
                          f'repeats {storage.size} elements.')
  if isinstance(storage, _Part):
    storage, offset = storage.root, storage.start + offset
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _same(value, *_):
  return value


def _dict(items=()):
  if type(items) is dict:
    return items
  return {pickled.checked_key(key): value for key, value in items}


def _shape(sizes):
  if type(sizes) is not tuple:
    raise pickled.Refusal('it has a shape that is none.')
  return sizes


def _numpy_scalar(kind, data):
  if len(data) != kind.dtype.itemsize:
    raise pickled.Refusal('it has a numpy scalar of another size.')
  return np.frombuffer(data, kind.dtype)[0].item()


def _encode(text, encoding='utf-8'):
  if encoding not in ('latin1', 'utf-8'):
    raise pickled.Refusal(f'it contains text in {encoding!r}.')
  return text.encode(encoding)


def _device(kind, index=None):
  return kind if index is None else f'{kind}:{index}'


# What files may name. Only what state dicts, and the settings and counters
# that are saved beside them, are made of.
_NAMES = {
    f'torch.{name}Storage': _StorageType(np.dtype(dtype))
    for name, dtype in _STORAGES.items()
} | {f'torch.{name}': f'torch.{name}' for name in _DTYPES} | {
    name: pickled.Constructor(function) for name, function in {
        'torch._utils._rebuild_tensor': _tensor,
        'torch._utils._rebuild_tensor_v2': _tensor,
        'torch._utils._rebuild_parameter': _same,
        'torch._utils._rebuild_parameter_with_state': _same,
        'torch.Size': _shape,
        'torch.device': _device,
        'collections.OrderedDict': _dict,
        'collections.Counter': _dict,
        'builtins.set': lambda values=(): set(map(pickled.checked_key, values)),
        'builtins.bytearray': lambda data=b'': bytes(data),
        'builtins.complex': complex,
        'argparse.Namespace': lambda: _Namespace(),
        'pathlib.PosixPath': lambda *parts: '/'.join(parts),
        'pathlib.WindowsPath': lambda *parts: '\\'.join(parts),
        '_codecs.encode': _encode,
        'numpy.dtype': _NumpyType,
        'numpy.core.multiarray.scalar': _numpy_scalar,
        'numpy._core.multiarray.scalar': _numpy_scalar,
    }.items()}


def _read_zip(path):
  with zipfile.ZipFile(path) as archive:
    # Entries that lie on each other would cost more than the file's size.
    if sum(entry.compress_size for entry in archive.infolist()
           ) > os.path.getsize(path):
      raise pickled.Refusal('it is damaged: its parts are larger than it.')
    entries = {}
    for entry in archive.infolist():
      if entry.filename in entries:
        raise pickled.Refusal(f'it holds {entry.filename} twice.')
      entries[entry.filename] = entry
    pickles = [name for name in entries
               if re.fullmatch(r'[^/]+/data\.pkl', name)]
    if len(pickles) != 1:
      raise pickled.Refusal('it is a zip archive, but not one of torch.save.')
    root = pickles[0].removesuffix('data.pkl')

    def content(name):
      """Returns the bytes of an entry, whose checksum zipfile compares."""
      entry = entries.get(root + name)
      if entry is None:
        raise pickled.Refusal(f'it misses its part {name}.')
      # Nothing gets larger than the file.
      if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise pickled.Refusal(f'its part {name} is compressed or encrypted, '
                              'which torch.save does not do.')
      return archive.read(entry)

    if root + 'byteorder' in entries and content('byteorder') != b'little':
      raise pickled.Refusal('it was saved on a big-endian machine.')
    storages = _Storages(5)
    value = pickled.load(content('data.pkl'), _NAMES, storages.of).value
    for key, storage in storages.items():
      storage.fill(content(f'data/{key}'))
  return _with_arrays(value)


def _read_stream(path):
  with open(path, 'rb') as file:
    data = file.read()
  magic, end = pickled.load(data, _NAMES, _nothing)
  if magic != _STREAM_MAGIC:
    raise pickled.Refusal('it is a pickle, but not one of torch.save.')
  storages = _Storages(6)
  parts = []
  for persistent in (_nothing, _nothing, storages.of, _nothing):
    part, end = pickled.load(data, _NAMES, persistent, end)
    parts.append(part)
  protocol, system, value, keys = parts
  if protocol != _STREAM_PROTOCOL or not isinstance(system, dict):
    raise pickled.Refusal(f'it is of the unknown protocol {protocol!r}.')
  if system.get('little_endian') is not True:
    raise pickled.Refusal('it was saved on a big-endian machine.')
  if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(
      map(repr, storages)):
    raise pickled.Refusal('it is damaged: it lists other storages than its '
                          'tensors have.')
  for key in keys:
    storage = storages[key]
    size = int.from_bytes(data[end:end + 8], 'little', signed=True)
    start, end = end + 8, end + 8 + storage.size * storage.dtype.itemsize
    if end > len(data):
      raise pickled.Refusal(pickled.ENDS_EARLY)
    if size != storage.size:
      raise pickled.Refusal(f'it is damaged: a storage has {size} elements '
                            f'where {storage.size} are expected.')
    storage.fill(memoryview(data)[start:end])
  if end != len(data):
    raise pickled.Refusal(f'it is damaged: {len(data) - end} bytes follow its '
                          'end.')
  return _with_arrays(value)


def _nothing(_):
  raise pickled.Refusal('it is damaged: it refers to storages too early.')


class _Storages(dict):
  """Storages by key, as persistent ids of a number of fields refer to them."""

  def __init__(self, num_fields):
    super().__init__()
    self._num_fields = num_fields

  def of(self, reference):
    """Returns the storage of a persistent id."""
    if not isinstance(reference, tuple) or not reference:
      raise pickled.Refusal('it is damaged: it refers to nothing known.')
    if reference[0] == 'module':
      raise pickled.Refusal('it holds a whole module with its code, not a '
                            'state dict; save its state_dict with torch.')
    if (reference[0] != 'storage' or len(reference) != self._num_fields
        or not isinstance(reference[1], _StorageType)
        or not isinstance(reference[2], str)):
      raise pickled.Refusal('it is damaged: it refers to nothing known.')
    (dtype,), key, _, size = reference[1:5]
    storage = self.setdefault(key, _Storage(dtype, size))
    if (storage.dtype, storage.size) != (dtype, size):
      raise pickled.Refusal(f'it takes its storage {key} for two types.')
    if self._num_fields == 5 or reference[5] is None:
      return storage
    # Only old files have these.
    _, start, size = reference[5]
    if not (type(start) is type(size) is int and 0 <= start
            and 0 <= size <= storage.size - start):
      raise pickled.Refusal(f'it has a part outside of its storage {key}.')
    return _Part(storage, start, size)


def _with_arrays(value):
  """Returns a value with arrays in the places of tensors.

  Without recursion: a damaged pickle may be nested as deeply as it is long, or
  contain itself.
  """
  done, kept = {}, []
  def finished(item):
    return done.get(id(item), item)
  stack = [(value, False)]
  while stack:
    item, ready = stack.pop()
    if isinstance(item, _Tensor):
      done.setdefault(id(item), item.array())
    elif type(item) in (dict, list, tuple, _Namespace):
      if ready:
        if isinstance(item, tuple):
          done[id(item)] = tuple(map(finished, item))
        elif isinstance(item, dict):
          item.update({key: finished(part) for key, part in item.items()})
        else:
          item[:] = map(finished, item)
      elif id(item) not in done:
        done[id(item)] = item
        stack.append((item, True))
        stack += [(part, False) for part in (
            item.values() if isinstance(item, dict) else item)]
    kept.append(item)  # No other object may get its id.
  return finished(value)
