"""Reads and writes files of `torch.save` without PyTorch.

There are two formats: a zip archive of a pickle and one file per storage (since
PyTorch 1.6), and one stream of five pickles with the storages behind them. Both
are described by PyTorch's `torch/serialization.py`; what tensors are pickled as
by `torch/_utils.py`.
"""

from collections.abc import Callable
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
# more elements than these one is no weight.
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
# Elements of quantised tensors, which are passed over but not read.
_PASSED_OVER = {'QInt8': np.int8, 'QUInt8': np.uint8, 'QInt32': np.int32,
                'QUInt4x2': np.uint8, 'QUInt2x4': np.uint8}
# Data types whose tensors lie in storages of bytes.
_IN_BYTES = {
    'uint16': np.uint16, 'uint32': np.uint32, 'uint64': np.uint64,
    'float8_e4m3fn': jnp.float8_e4m3fn, 'float8_e5m2': jnp.float8_e5m2,
    'float8_e4m3fnuz': jnp.float8_e4m3fnuz,
    'float8_e5m2fnuz': jnp.float8_e5m2fnuz,
    'float8_e8m0fnu': jnp.float8_e8m0fnu,
}
_DTYPES = (
    'float', 'float16', 'float32', 'float64', 'half', 'double', 'bfloat16',
    'int', 'int8', 'int16', 'int32', 'int64', 'short', 'long', 'uint8', 'bool',
    'complex64', 'complex128', 'cfloat', 'cdouble', 'complex32', 'chalf',
    'float4_e2m1fn_x2', 'qint8', 'quint8', 'qint32', 'quint4x2', 'quint2x4',
    'bits8', 'bits16', 'bits1x8', 'bits2x4', 'bits4x2',
    *(f'{sign}int{size}' for sign in ('', 'u') for size in range(1, 8)),
    *_IN_BYTES)

_AS_FLOATS = 'save it as torch.float32'
_NUMBERS = 'save an array of numbers'
_CURES = {
    'torch._utils._rebuild_sparse_tensor': 'save it dense, by .to_dense()',
    'torch._utils._rebuild_sparse_csr_tensor': 'save it dense, by .to_dense()',
    'torch._utils._rebuild_qtensor':
        'save the network before it is quantised, or by .dequantize()',
    'torch._utils._rebuild_nested_tensor': 'save the tensors in it',
    'torch._utils._rebuild_meta_tensor_no_storage':
        'it has no values; save the network itself',
    'torch.distributed.tensor.DTensor': 'save its .full_tensor()',
    'torch.distributed._tensor.api.DTensor': 'save its .full_tensor()',
}


class NumpyArray(np.ndarray):
  """An array that is a NumPy array in the file, not a tensor."""


def read(path: str | os.PathLike[str]) -> Any:
  """Returns what `torch.save` put into a file, with arrays for tensors.

  Args:
    path: a file of either format; what it was saved from (CPU, CUDA) does not
      matter.

  Returns:
    Dicts (of any kind), lists, tuples and plain values as they were saved. For
    tensors and parameters read-only numpy arrays of the same bits, which may
    be views of one storage, as the tensors are; bfloat16 and float8 are data
    types of the package ml_dtypes. For arrays of NumPy's numbers a
    `NumpyArray`; for everything else a `pickled.Unread`.

  Raises:
    pickled.Refusal: if the file is damaged, or asks for much more memory than
      its size.
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
  """Where the elements of a tensor lie, in elements of its own type."""
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype

  def array(self):
    """Returns the values as a read-only view of the storage."""
    size = self.dtype.itemsize
    # It compares with the storage's end once more.
    return np.ndarray(self.shape, self.dtype, self.storage.values,
                      size * self.offset if 0 not in self.shape else 0,
                      [size * stride for stride in self.strides])


class _Array:
  """A numpy array while its pickle is read: shape, type and bytes."""

  def __init__(self):
    self.shape, self.dtype, self.order, self.data = None, None, 'C', b''

  def set_state(self, state):
    _, self.shape, self.dtype, fortran, self.data = state
    self.order = 'F' if fortran else 'C'

  def array(self):
    """Returns the values as a read-only array, or why there are none."""
    if isinstance(self.dtype, pickled.Unread):
      return pickled.Unread(self.dtype.name.replace('dtype', 'ndarray'),
                            self.dtype.cure)
    if not isinstance(self.dtype, _NumpyType) or type(self.data) is not bytes:
      return pickled.Unread('numpy.ndarray of objects', _NUMBERS)
    dtype, shape = self.dtype.dtype, self.shape
    if not isinstance(shape, tuple) or not all(
        type(size) is int and size >= 0 for size in shape):
      raise pickled.Refusal('it has a numpy array of no possible shape.')
    if math.prod(shape) * dtype.itemsize != len(self.data):
      raise pickled.Refusal(f'it has {len(self.data)} bytes for a numpy array '
                            f'of shape {_shown(shape)}.')
    return np.ndarray(shape, dtype, self.data, order=self.order
                      ).view(NumpyArray)


class _Namespace(dict):
  """Attributes of an `argparse.Namespace`."""

  def set_state(self, state):
    self.update({pickled.checked_key(key): value
                 for key, value in state.items()})


class _NumpyType:
  """The type of a numpy array of numbers."""

  def __init__(self, code):
    self.dtype = np.dtype(code).newbyteorder('<')

  def set_state(self, state):
    if state[1] == '>':
      self.dtype = self.dtype.newbyteorder('>')


def _numpy_type(code, *_):
  if isinstance(code, str) and re.fullmatch('[<|>]?(f12|f16|c24|c32)', code):
    return pickled.Unread('numpy.dtype of longdouble', 'save it as float64')
  if not isinstance(code, str) or not re.fullmatch(
      '[<|>]?([biu][1248]|f[248]|c8|c16)', code):
    return pickled.Unread('numpy.dtype of objects', _NUMBERS)
  return _NumpyType(code.lstrip('<>|'))


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None,
            metadata=None):
  """Returns a tensor that lies within its storage, see `torch/_utils.py`."""
  del requires_grad, hooks
  if isinstance(storage, pickled.Unread):
    return storage
  if metadata:
    return pickled.Unread('tensor with conjugate or negative bits',
                          'save its .resolve_conj().resolve_neg()')
  dtype = storage.root.dtype if isinstance(storage, _Part) else storage.dtype
  return _placed(storage, offset, shape, strides, dtype)


def _tensor_of_bytes(storage, offset, shape, strides, requires_grad=False,
                     hooks=None, dtype=None, metadata=None):
  """Returns a tensor of a type that no typed storage has."""
  del requires_grad, hooks, metadata
  if isinstance(storage, pickled.Unread):
    return storage
  kind = dtype.removeprefix('torch.') if isinstance(dtype, str) else ''
  if kind not in _IN_BYTES:
    return pickled.Unread(f'tensor of type {errors.shown(kind)}', _AS_FLOATS)
  if not isinstance(storage, _Storage) or storage.dtype != np.uint8:
    raise pickled.Refusal('it is damaged: it has a tensor of no storage.')
  return _placed(storage, offset, shape, strides, np.dtype(_IN_BYTES[kind]))


def _placed(storage, offset, shape, strides, dtype):
  """Returns a tensor after checking that it lies within its storage."""
  numbers = (offset, *shape, *strides)
  if (not isinstance(storage, _Storage | _Part) or len(shape) != len(strides)
      or len(shape) > 32
      or not all(type(number) is int and 0 <= number < 2 ** 62
                 for number in numbers)):
    raise pickled.Refusal('it has a tensor of no possible shape.')
  end = offset
  if 0 not in shape:
    end += 1 + sum((size - 1) * stride
                   for size, stride in zip(shape, strides, strict=True))
  size = storage.size
  if isinstance(storage, _Storage) and storage.dtype != dtype:
    size = storage.size // dtype.itemsize
    if size * dtype.itemsize != storage.size:
      raise pickled.Refusal('it has a storage that ends within an element.')
  if end > size:
    raise pickled.Refusal(f'it has a tensor of shape {tuple(shape)} that does '
                          'not fit its storage.')
  if math.prod(shape) > max(size, _LARGEST_REPEATED):
    raise pickled.Refusal(f'it has a tensor of shape {tuple(shape)} that '
                          f'repeats {size} elements.')
  if isinstance(storage, _Part):
    storage, offset = storage.root, storage.start + offset
  return _Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def _tensor_of_class(function, kind, arguments, _):
  """Returns a tensor that has attributes of its own, without them."""
  if kind != 'torch.Tensor' or not isinstance(function, pickled.Constructor):
    return kind if isinstance(kind, pickled.Unread) else pickled.Unread(
        'subclass of torch.Tensor')
  return function.build(*arguments)


def _same(value, *_):
  return value


def _dict(items=()):
  if type(items) is dict:
    return items
  return {pickled.checked_key(key): value for key, value in items}


def _default_dict(_=None, items=()):
  return _dict(items)


def _shape(sizes):
  if type(sizes) is not tuple:
    raise pickled.Refusal('it has a shape that is none.')
  return sizes


def _numpy_scalar(kind, data):
  if not isinstance(kind, _NumpyType) or type(data) is not bytes:
    return pickled.Unread('numpy scalar that is no number')
  if len(data) != kind.dtype.itemsize:
    raise pickled.Refusal('it has a numpy scalar of another size.')
  return np.frombuffer(data, kind.dtype)[0].item()


def _new_array(kind, *_):
  return _Array() if kind == 'numpy.ndarray' else kind


def _array_of_buffer(data, dtype, shape, order='C'):
  array = _Array()
  array.set_state((1, shape, dtype, order == 'F', data))
  return array


def _encode(text, encoding='utf-8'):
  if encoding not in ('latin1', 'utf-8'):
    raise pickled.Refusal('it contains text of an unknown encoding.')
  return text.encode(encoding)


def _bytes(data=b'', *encoding):
  """Returns the bytes of a bytearray, which may not be a number of zeros."""
  if isinstance(data, str):
    return _encode(data, *encoding)
  if type(data) is not bytes:
    return pickled.Unread('bytearray of no bytes')
  return data


def _device(kind, index=None):
  if not isinstance(kind, str) or not isinstance(index, int | None):
    return pickled.Unread('torch.device')
  return kind if index is None else f'{kind}:{index}'


def _of_class(kind, *_):
  return kind if isinstance(kind, pickled.Unread) else pickled.Unread('object')


def _shown(shape):
  return errors.shown(str(shape[:8]))


# Functions that pickles may call, by what they stand for.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_bytes,
    'torch._utils._rebuild_parameter': _same,
    'torch._utils._rebuild_parameter_with_state': _same,
    'torch._utils._rebuild_device_tensor_from_numpy': _same,
    'torch._utils._rebuild_device_tensor_from_cpu_tensor': _same,
    'torch._utils._rebuild_xla_tensor': _same,
    'torch._tensor._rebuild_from_type_v2': _tensor_of_class,
    'torch.Size': _shape,
    'torch.device': _device,
    'collections.OrderedDict': _dict,
    'collections.Counter': _dict,
    'collections.defaultdict': _default_dict,
    'copyreg._reconstructor': _of_class,
    'copy_reg._reconstructor': _of_class,
    'builtins.set': lambda values=(): set(map(pickled.checked_key, values)),
    'builtins.bytes': _bytes,
    'builtins.bytearray': _bytes,
    'builtins.complex': complex,
    'argparse.Namespace': lambda: _Namespace(),
    '_codecs.encode': _encode,
    'numpy.dtype': _numpy_type,
    'numpy.core.multiarray.scalar': _numpy_scalar,
    'numpy._core.multiarray.scalar': _numpy_scalar,
    'numpy.core.multiarray._reconstruct': _new_array,
    'numpy._core.multiarray._reconstruct': _new_array,
    'numpy.core.numeric._frombuffer': _array_of_buffer,
    'numpy._core.numeric._frombuffer': _array_of_buffer,
}
# What files may name. Only what state dicts, and the settings and counters
# that are saved beside them, are made of.
_NAMES = {
    name: pickled.Unread(name, cure) for name, cure in _CURES.items()
} | {
    f'torch.{name}Storage': _StorageType(np.dtype(dtype))
    for name, dtype in (_STORAGES | _PASSED_OVER).items()
} | {f'torch.{name}': f'torch.{name}' for name in _DTYPES} | {
    'torch.storage.UntypedStorage': _StorageType(np.dtype(np.uint8)),
    'torch.Tensor': 'torch.Tensor', 'torch._tensor.Tensor': 'torch.Tensor',
    'torch.nn.parameter.Parameter': 'torch.Tensor',
    'torch.nn.parameter.Buffer': 'torch.Tensor',
    'numpy.ndarray': 'numpy.ndarray',
} | {
    name: pickled.Constructor(function)
    for name, function in _FUNCTIONS.items()}


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
    raise pickled.Refusal('it is a pickle, but not one of torch.save; where it '
                          'is trusted, load it and save the arrays by '
                          'numpy.savez.')
  storages = _Storages(6)
  parts = []
  for persistent in (_nothing, _nothing, storages.of, _nothing):
    part, end = pickled.load(data, _NAMES, persistent, end)
    parts.append(part)
  protocol, system, value, keys = parts
  if protocol != _STREAM_PROTOCOL or not isinstance(system, dict):
    raise pickled.Refusal('it is of an unknown protocol of torch.save.')
  if system.get('little_endian') is not True:
    raise pickled.Refusal('it was saved on a big-endian machine.')
  if not isinstance(keys, list) or not all(
      isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
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
    if reference[0] == 'module' and len(reference) == 4:
      return _of_class(reference[1])  # With its source code.
    if reference[0] == 'storage' and isinstance(reference[1], pickled.Unread):
      if self._num_fields == 5:
        return reference[1]
      # What follows it in a stream cannot be found.
      raise pickled.Refusal(f'it has a storage that is not read, '
                            f'{reference[1].name}; {reference[1].cure}.')
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


_CONTAINERS = (dict, list, tuple, _Array)  # A _Tensor is a tuple.


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
    if isinstance(item, _Tensor | _Array):
      if id(item) not in done:
        done[id(item)] = item.array()
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
            item.values() if isinstance(item, dict) else item)
                  if isinstance(part, _CONTAINERS)]
    kept.append(item)  # No other object may get its id.
  return finished(value)
