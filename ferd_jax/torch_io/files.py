"""Reads and writes state dicts, as numpy arrays under PyTorch's names.

The content of a file decides how it is read, never its name: checkpoints are
called .pt, .pth, .th, .tar or .model at will. None needs PyTorch, and nothing
that a file names is executed.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import npz
from ferd_jax.core import validate
from ferd_jax.torch_io import choosing
from ferd_jax.torch_io import formats
from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file

StateDict = dict[str, np.ndarray]

# What the arrays of a network may take, in bytes: so many times the file, and
# so many more. Compressed files expand, and tensors may repeat elements.
LARGEST_RATIO, LARGEST_EXTRA = 16, 64 << 20

# Data types of safetensors that are none of numpy's, by their names there.
_SAFETENSORS = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
    'BF16': jnp.bfloat16, 'F8_E4M3': jnp.float8_e4m3fn,
    'F8_E5M2': jnp.float8_e5m2, 'F8_E8M0': jnp.float8_e8m0fnu,
    'F8_E4M3FNUZ': jnp.float8_e4m3fnuz, 'F8_E5M2FNUZ': jnp.float8_e5m2fnuz,
    'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8,
    'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8,
    'BOOL': np.bool_, 'C64': np.complex64,
}


def read(path: str | os.PathLike[str], select: str | None = None,
         wanted: choosing.Wanted | None = None,
         normaliser: str | None = None) -> choosing.Weights:
  """Reads the weights in a safetensors, npz or PyTorch file.

  Wrappers such as {'state_dict': ...} are opened, at any depth, prefixes common
  to all keys and the names of PyTorch's wrappers cut off, and what is no array
  is left out; see `choosing`.

  Args:
    path: the file.
    select: which of several, see `choosing.choose`.
    wanted: what is looked for, to find it among others.
    normaliser: the keys of a normalising layer, see `normalisers.named`.

  Returns:
    Arrays by PyTorch's name, of the types in the file; bfloat16 and float8 are
    those of the package ml_dtypes.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read, or holds no weights, or several.
  """
  path = os.fspath(path)
  if not os.path.exists(path):
    raise FileNotFoundError(f'Expected a file of weights at {path}.')
  reader = _reader(path)
  try:
    loaded = reader(path)
  except pickled.Refusal as error:
    raise ValueError(f'Cannot read {path}: {error}') from error
  except Exception as error:
    # The libraries raise errors of their own kinds for damaged files, with
    # messages of many lines.
    raise ValueError(f'Cannot read {path}, which may be damaged or hold more '
                     f'than a state dict: {errors.reason(error)}') from error
  try:
    return choosing.choose(loaded, select, wanted, normaliser, _largest(path))
  except pickled.Refusal as error:
    raise ValueError(f'Cannot use {path}: {error}') from error


def read_state_dict(path: str | os.PathLike[str],
                    select: str | None = None) -> StateDict:
  """Returns the arrays that `read` reads, of a whole dict."""
  return read(path, select).arrays


def check_format(path: str | os.PathLike[str]) -> None:
  """Raises ValueError unless a file starts as one of weights does."""
  _reader(path)


def write_state_dict(path: str | os.PathLike[str],
                     state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict, in the format that the name of the file ends with.

  The file appears whole or not at all.

  Args:
    path: ends with `.pt` or `.pth`, which `torch.load(weights_only=True)`
      opens, or with `.safetensors`.
    state_dict: arrays by PyTorch's name.

  Raises:
    ValueError: if the name of the file ends otherwise, or an array's type is
      none of PyTorch's.
  """
  suffix = epath.Path(path).suffix
  validate.one_of(('.pt', '.pth', '.safetensors'), suffix=suffix)
  with atomic.writing(epath.Path(path)) as file:
    if suffix == '.safetensors':
      file.write(safetensors.numpy.save(dict(state_dict),
                                        metadata={'format': 'pt'}))
    else:
      torch_file.write(file, state_dict)


def strip_prefixes(state_dict: Mapping[str, np.ndarray]) -> StateDict:
  """Returns a state dict without what wrapping modules put into its keys.

  See `choosing.stripped`.

  Raises:
    ValueError: if two keys become one, or it has several normalising layers.
  """
  return choosing.stripped(state_dict)


def _largest(path):
  return LARGEST_RATIO * os.path.getsize(path) + LARGEST_EXTRA


def _reader(path):
  """Returns the function that reads the file, or raises ValueError."""
  kind = formats.kind(path)
  if kind in _READERS:
    return _READERS[kind]
  raise ValueError(f'Cannot read {os.fspath(path)}: {kind}')


def _read_npz(path) -> dict[str, Any]:
  try:
    return npz.read(path, _largest(path))
  except ValueError as error:
    raise pickled.Refusal(str(error)) from error


def _read_safetensors(path):
  with open(path, 'rb') as file:
    content = file.read()
  arrays = {}
  for name, entry in safetensors.deserialize(content):
    kind = _SAFETENSORS.get(entry['dtype'])
    if kind is None:
      arrays[name] = pickled.Unread(f'tensor of type {entry["dtype"]}',
                                    'save it as torch.float32')
      continue
    arrays[name] = np.frombuffer(entry['data'], kind).reshape(entry['shape'])
  return arrays


_READERS = {formats.TORCH: torch_file.read, formats.NPZ: _read_npz,
            formats.SAFETENSORS: _read_safetensors}
