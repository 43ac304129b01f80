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

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import validate
from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file

StateDict = dict[str, np.ndarray]

# Keys under which checkpoints wrap their state dict, before any other. Those
# on one line are versions of one training run, of which the first is taken.
_WRAPPERS = (
    ('state_dict',),
    ('model_state_dict',),
    ('model',),
    ('net',),
    ('ema', 'state_dict_ema', 'ema_state_dict', 'model_ema'),
    ('last', 'best'),
)
_DEEPEST = 8  # levels of wrappers that are looked into
# Buffers of a normalising layer, the names of which follow no convention.
NORMALISER_NAMES = {'mean': 'mean', 'mu': 'mean', 'std': 'std', 'sigma': 'std'}
# torch.optim.swa_utils.AveragedModel counts in it, beside `module.*`.
_COUNTER = 'n_averaged'


def read_state_dict(path: str | os.PathLike[str],
                    select: str | None = None) -> StateDict:
  """Reads a safetensors, npz or PyTorch file.

  Wrappers such as {'state_dict': ...} are opened, at any depth, and prefixes
  common to all keys cut off (see `strip_prefixes`).

  Args:
    path: the file.
    select: the key of the wrapper to open, where a file has several; its whole
      path with dots, 'best.state_dict', where it is not at the top.

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
    raise ValueError(f'Cannot read {path}, which may be damaged or hold more '
                     f'than a state dict: {errors.reason(error)}') from error
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

  That is the first name of all keys, as often as they share it: `module.` of
  DataParallel, `model.`, `0.` of a Sequential(network), `_orig_mod.` and so
  on. Buffers of a normalising layer beside the network, as in
  Sequential(normaliser, network), share nothing with it; they are kept, as
  `normalize.*`. The counter of averaged networks is left out.
  """
  result = {key: value for key, value in state_dict.items()
            if key.rpartition('.')[2] != _COUNTER}
  while True:
    buffers = {}
    for key in result:
      head, _, name = key.rpartition('.')
      if '.' not in head and name in NORMALISER_NAMES:
        buffers.setdefault(head, {})[key] = (
            f'normalize.{name}' if head else name)
    names = _normaliser(buffers, result)
    heads = {key.partition('.')[0] for key in result if key not in names}
    if len(heads) != 1 or heads & result.keys():
      return {names.get(key, key): value for key, value in result.items()}
    start = len(heads.pop()) + 1
    stripped = {names.get(key) or key[start:]: value
                for key, value in result.items()}
    if len(stripped) < len(result):  # Two normalising layers.
      return result
    result = stripped


def _normaliser(buffers, state_dict):
  """Returns new names of the buffers of the one normalising layer, if any.

  Args:
    buffers: {first name of the key: {key: new name}}, '' for keys of one name.
    state_dict: with all keys.
  """
  layers = [names for head, names in buffers.items()
            if len(names) < len(state_dict) and all(
                key in names for key in state_dict
                if head and key.startswith(f'{head}.'))]
  if len(layers) != 1:
    return {}
  return layers[0]


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
  if select is None and _is_state_dict(loaded):
    return loaded
  found = _wrapped(loaded)
  if select is not None:
    if select not in found:
      raise pickled.Refusal(f'expected select={select!r} to name a dict of '
                            f'tensors; its keys are {keys}.')
    return found[select]
  if not found:
    raise pickled.Refusal(f'it holds no dict of tensors; its keys are {keys}.')
  first = []
  for versions in _WRAPPERS:
    paths = [path for name in versions for path in found
             if _known(path) == name]
    first += [path for path in paths if _known(path) == _known(paths[0])]
  first = first or list(found)
  if len({id(found[path]) for path in first}) > 1:
    raise pickled.Refusal('it holds several state dicts; select one of '
                          f'{", ".join(first)}.')
  return found[first[0]]


def _wrapped(loaded):
  """Returns the state dicts in a dict of dicts, by their keys with dots."""
  found, seen, queue = {}, set(), [('', loaded)]
  for start, value in queue:  # It grows.
    seen.add(id(value))  # A file's dicts may hold one another.
    for key, item in value.items():
      if not isinstance(key, str) or not isinstance(item, Mapping):
        continue  # The numbers in an optimiser's state are no names.
      if _is_state_dict(item):
        found[start + key] = item
      elif id(item) not in seen and start.count('.') < _DEEPEST:
        queue.append((f'{start}{key}.', item))
  return found


def _known(path):
  """Returns the first key of a path that is a usual wrapper, or None."""
  usual = {name for versions in _WRAPPERS for name in versions}
  return next((key for key in path.split('.') if key in usual), None)


def _numpy_types(state_dict):
  """Returns arrays of numpy's own types, to which bfloat16 does not belong."""
  return {key: value.astype(np.float32) if value.dtype.name == 'bfloat16'
          else value for key, value in state_dict.items()}
