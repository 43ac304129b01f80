"""Reads and writes state dicts, as numpy arrays under PyTorch's names.

The content of a file decides how it is read, never its name: checkpoints are
called .pt, .pth, .th, .tar or .model at will. None needs PyTorch, and nothing
that a file names is executed.
"""

from collections.abc import Mapping
import os
import re
from typing import Any
import zipfile

from etils import epath
import numpy as np
import safetensors
import safetensors.numpy

from ferd_jax import atomic
from ferd_jax import validate
from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file

StateDict = dict[str, np.ndarray]

# Keys under which checkpoints wrap their state dict. Those on one line are
# versions of one training run, of which the first is taken.
_WRAPPERS = (
    ('state_dict',),
    ('model_state_dict',),
    ('model',),
    ('net',),
    ('ema', 'state_dict_ema'),
    ('last', 'best'),
)
_PREFIXES = ('module.', 'model.')
# Buffers of a normalising layer, the names of which follow no convention.
NORMALISER_NAMES = {'mean': 'mean', 'mu': 'mean', 'std': 'std', 'sigma': 'std'}


def read_state_dict(path: str | os.PathLike[str],
                    select: str | None = None) -> StateDict:
  """Reads a safetensors, npz or PyTorch file.

  Wrappers such as {'state_dict': ...} are opened, and prefixes common to all
  keys cut off (see `strip_prefixes`).

  Args:
    path: the file.
    select: the key of the wrapper to open, where a file has several.

  Returns:
    Arrays by PyTorch's name; bfloat16 becomes float32.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read as a state dict, or holds objects
      other than plain data, which the message names.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'Expected a file of weights at {path}.')
  read = _reader(path)
  try:
    loaded = read(path)
  except pickled.Refusal as error:
    raise ValueError(f'Cannot read {path}: {error}') from error
  except Exception as error:
    # The libraries raise errors of their own kinds for damaged files, with
    # messages of many lines.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f'Cannot read {path}, which may be damaged or hold more '
                     f'than a state dict: {reason}') from error
  try:
    return strip_prefixes(_numpy_types(_unwrap(loaded, select)))
  except pickled.Refusal as error:
    raise ValueError(f'Cannot use {path}: {error}') from error


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
  path = epath.Path(path)
  validate.one_of(('.pt', '.pth', '.safetensors'), suffix=path.suffix)
  with atomic.writing(path) as file:
    if path.suffix == '.safetensors':
      file.write(safetensors.numpy.save(dict(state_dict),
                                        metadata={'format': 'pt'}))
    else:
      torch_file.write(file, state_dict)


def strip_prefixes(state_dict: Mapping[str, np.ndarray]) -> StateDict:
  """Cuts off the prefixes that wrapping modules put before every key.

  These are `module.` and `model.`, repeatedly, and the index of a network in a
  `Sequential(network)` or `Sequential(normaliser, network)`. The buffers of
  such a normaliser are kept, as `normalize.*`.
  """
  result = _strip_common(dict(state_dict))
  heads = {key.split('.')[0] for key in result}
  if heads == {'0'}:
    result = {key[2:]: value for key, value in result.items()}
  elif heads in ({'1'}, {'0', '1'}) and all(
      key[2:] in NORMALISER_NAMES for key in result if key.startswith('0.')):
    result = {
        f'normalize.{key[2:]}' if key.startswith('0.') else key[2:]: value
        for key, value in result.items()}
  return _strip_common(result)


def _strip_common(state_dict):
  """Cuts `module.` and `model.` off, as long as all keys start with one."""
  while True:
    for prefix in _PREFIXES:
      if state_dict and all(key.startswith(prefix) for key in state_dict):
        state_dict = {key[len(prefix):]: value
                      for key, value in state_dict.items()}
        break
    else:
      return state_dict


def _reader(path):
  """Returns the function that reads the file, or raises ValueError."""
  with open(path, 'rb') as file:
    head = file.read(512)
  if head.startswith(b'PK\x03\x04'):
    return _read_zip
  if head[8:9] == b'{':
    return _read_safetensors
  if head.startswith(b'\x80'):
    return torch_file.read
  raise ValueError(f'Cannot read {path}: {_describe(head)}')


def _describe(head):
  """Says what a file that starts with `head` is instead of weights."""
  if not head:
    return 'the file is empty.'
  if head.lstrip()[:1] == b'<':
    return 'it is an HTML page, saved instead of the file; download it again.'
  if head.startswith(b'version https://git-lfs'):
    return 'it is a Git LFS pointer; fetch the file itself with git lfs pull.'
  if head[257:262] == b'ustar':
    return 'it is a tar archive of old PyTorch; re-save it with a newer one.'
  if head.startswith(b'\x93NUMPY'):
    return 'it holds one array, not named ones; re-save it as npz.'
  return ('its content is none of safetensors, npz, or a file of torch.save.')


def _read_zip(path):
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
  if any(re.fullmatch(r'[^/]+/(constants\.pkl|code/.*)', name)
         for name in names):
    raise pickled.Refusal('it is a TorchScript program; save its state_dict '
                          'instead.')
  if any(re.fullmatch(r'[^/]+/data\.pkl', name) for name in names):
    return torch_file.read(path)
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def _read_safetensors(path):
  return safetensors.numpy.load_file(path)


def _is_state_dict(value):
  return isinstance(value, Mapping) and len(value) > 0 and all(
      isinstance(key, str) and isinstance(item, np.ndarray)
      for key, item in value.items())


def _unwrap(loaded: Any, select: str | None) -> Mapping[str, Any]:
  """Returns the state dict inside of what a file holds."""
  if not isinstance(loaded, Mapping):
    raise pickled.Refusal(f'it holds a {type(loaded).__name__}, not a state '
                          'dict.')
  keys = ', '.join(sorted(str(key) for key in loaded)[:10]) or 'none'
  if select is not None:
    if not _is_state_dict(loaded.get(select)):
      raise pickled.Refusal(f'expected select={select!r} to name a dict of '
                            f'tensors; its keys are {keys}.')
    return loaded[select]
  found = []
  for names in _WRAPPERS:
    found += [name for name in names if _is_state_dict(loaded.get(name))][:1]
  if len(found) > 1:
    raise pickled.Refusal('it holds several state dicts; select one of '
                          f'{", ".join(found)}.')
  if found:
    return loaded[found[0]]
  if not _is_state_dict(loaded):
    raise pickled.Refusal(f'it holds no dict of tensors; its keys are {keys}.')
  return loaded


def _numpy_types(state_dict):
  """Returns arrays of numpy's own types, to which bfloat16 does not belong."""
  return {key: value.astype(np.float32) if value.dtype.name == 'bfloat16'
          else value for key, value in state_dict.items()}
