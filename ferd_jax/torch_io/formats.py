"""What a file is, by its content: a format that is read, or what else.

Names of files say nothing, but what a file is instead of weights, and how to
make weights of it, can be said of many.
"""

import os
import re
import tarfile
import zipfile

import numpy as np

from ferd_jax.core import errors

TORCH, NPZ, SAFETENSORS = 'torch', 'npz', 'safetensors'

_WEIGHTS = re.compile(
    r'\.(pt|pth|th|ckpt|bin|safetensors|npz|model|pth\.tar|tar|pkl)$', re.I)
_KERAS = ('it is a file of Keras (HDF5); its layers are not those of PyTorch: '
          'save the arrays under the names of the PyTorch network by '
          'numpy.savez.')
_MOST_MEMBERS = 100  # of an archive that are looked at
# What files begin with, at which byte, and what they are.
_BEGINNINGS = (
    (0, b'version https://git-lfs',
     'it is a Git LFS pointer; fetch the file itself with git lfs pull.'),
    (0, b'\x89HDF\r\n\x1a\n', _KERAS),
    (0, b'\x1f\x8b', 'it is compressed by gzip; decompress it with gunzip.'),
    (0, b'BZh', 'it is compressed by bzip2; decompress it with bunzip2.'),
    (0, b'\xfd7zXZ\0', 'it is compressed by xz; decompress it with unxz.'),
    (0, b'\x28\xb5\x2f\xfd',
     'it is compressed by zstd; decompress it with unzstd.'),
    (0, b'7z\xbc\xaf\x27\x1c', 'it is a 7z archive; unpack it first.'),
    (0, b'Rar!', 'it is a rar archive; unpack it first.'),
    (0, b'GGUF', 'it is a GGUF file of a language model, not of PyTorch.'),
    (4, b'TFL3', 'it is a program of TensorFlow Lite; take the weights that '
     'it was made of.'),
    (0, b'%PDF', 'it is a PDF document.'),
    (0, b'\x89PNG', 'it is a picture.'),
    (0, b'\xff\xd8\xff', 'it is a picture.'),
    (0, b'\x7fELF', 'it is a program.'),
    (0, b'PAR1', 'it is a Parquet table.'),
)
_ONNX = ('it is an ONNX program; take the PyTorch file that it was exported '
         'from, or save its initializers by numpy.savez under the names of '
         'the PyTorch network.')


def kind(path: str | os.PathLike[str]) -> str:
  """Returns one of the formats, or a sentence that says what it is instead.

  Raises:
    OSError: if it cannot be read.
  """
  if os.path.isdir(path):
    return _directory(path)
  if os.path.exists(path) and not os.path.isfile(path):
    # It may never end, or never begin.
    return 'it is a device or a pipe, not a file.'
  with open(path, 'rb') as file:
    head = file.read(512)
  if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
    return _zip(path)
  if head[8:9] == b'{' and not head.startswith(b'\x80'):
    return SAFETENSORS
  if head.startswith(b'\x93NUMPY'):
    return _npy(path)
  for start, beginning, sentence in _BEGINNINGS:
    if head.startswith(beginning, start):
      return sentence
  if head[257:262] == b'ustar' or _is_old_tar(head):
    return _tar(path)
  if head.startswith(b'\x80') and len(head) > 1 and 0 < head[1] < 6:
    return TORCH
  return _rest(head, path)


def _rest(head, path):
  """Returns what a file is that begins like no other."""
  if not head:
    return 'the file is empty.'
  if not head.strip(b'\0'):
    return 'it begins with zeros, as a download does that was not completed.'
  if head.lstrip()[:1] == b'<':
    return 'it is an HTML page, saved instead of the file; download it again.'
  # Field 1 of a protocol buffer, the version, then the producer or the graph.
  if head[:1] == b'\x08' and head[2:3] in (b'\x12', b':', b'B', b'\x1a') and (
      b'onnx' in head.lower() or b'pytorch' in head
      or os.fspath(path).endswith('.onnx')):
    return _ONNX
  text = head.lstrip()
  if text[:1] in (b'{', b'['):
    if b'weight_map' in head:
      return ('it is the index of a checkpoint in several files; give the file '
              'with the weights.')
    return 'it is JSON, which holds settings or results, not weights.'
  if 0x81 <= head[0] <= 0x8f or head[0] in (0xde, 0xdf):
    return ('it is MessagePack, perhaps of Flax; save the arrays under the '
            'names of the PyTorch network by numpy.savez.')
  return 'its content is none of safetensors, npz, or a file of torch.save.'


def _zip(path):
  try:
    with zipfile.ZipFile(path) as archive:
      names = [entry.filename for entry in archive.infolist()]
  except Exception as error:
    # zipfile has errors of many kinds for damaged archives.
    return f'it is damaged, download it again ({errors.reason(error)}).'
  def has(pattern):
    return any(re.fullmatch(pattern, name) for name in names)
  if has(r'[^/]+/(constants\.pkl|code/.*)'):
    return ('it is a TorchScript program; load it with torch.jit.load and save '
            'its state_dict().')
  if has(r'([^/]+/)?(archive_format|serialized_exported_program\.json|'
         r'models/[^/]+\.json)'):
    return ('it is a program of torch.export (.pt2); load it with '
            'torch.export.load and save its state_dict.')
  if has(r'([^/]+/)?\.data/(extern_modules|python_version)'):
    return ('it is a package of torch.package; load the network from it and '
            'save its state_dict().')
  if has(r'[^/]+/data\.pkl'):
    return TORCH
  if 'model.weights.h5' in names:
    return _KERAS
  if names and all(name.endswith(('.npy', '/')) for name in names):
    return NPZ
  return f'it is a zip archive{_around(names)}'


def _around(names):
  """Returns what to do about an archive with such files in it."""
  names = [name for name in names if not name.endswith('/')]
  inside = [name for name in names[:_MOST_MEMBERS] if _WEIGHTS.search(name)]
  if inside:
    shown = errors.shown(inside[0])
    return f' around {shown}; unpack it, and give that file.'
  if not names:
    return ' without any file.'
  shown = ', '.join(errors.shown(name, 40) for name in names[:3])
  return (f' of {shown}{", ..." if len(names) > 3 else ""}, none of which is '
          'known as weights; unpack it.')


def _is_old_tar(head):
  """Returns whether 512 bytes are a tar header of before 1988."""
  if len(head) < 512 or not head[:1].strip(b'\0'):
    return False
  try:
    said = int(head[148:156].strip(b' \0') or b'x', 8)
  except ValueError:
    return False
  return said == sum(head[:148]) + 8 * 32 + sum(head[156:])


def _tar(path):
  names = []
  try:
    with tarfile.open(path, 'r:') as archive:
      while len(names) < _MOST_MEMBERS:
        member = archive.next()
        if member is None:
          break
        names.append(member.name)
  except Exception as error:
    # Of damage, in many kinds.
    if not names:
      return f'it is a damaged tar archive ({errors.reason(error)}).'
  if {'storages', 'tensors', 'pickle'} <= set(names):
    return ('it is a tar archive of PyTorch before 0.1.10; load it with '
            'torch.load and save it again.')
  return f'it is a tar archive{_around(names)}'


def _npy(path):
  try:
    with open(path, 'rb') as file:
      version = np.lib.format.read_magic(file)
      read = (np.lib.format.read_array_header_1_0 if version == (1, 0)
              else np.lib.format.read_array_header_2_0)
      shape, _, dtype = read(file)
  except Exception as error:
    # Of damage, in many kinds.
    return f'it is a damaged .npy file ({errors.reason(error)}).'
  if dtype.hasobject:
    return ('it is an .npy file of pickled Python objects, perhaps a dict of '
            'parameters, which are not read; take the PyTorch file of the same '
            'network, or where the file is trusted, load it with numpy and '
            'save its arrays under the names of the PyTorch network by '
            'numpy.savez.')
  return (f'it is one array of shape {errors.shown(str(shape))}, not named '
          'ones; save them by numpy.savez.')


def _directory(path):
  """Returns what a directory is that is no network of this package."""
  names = sorted(os.listdir(path))
  def has(*wanted):
    return any(name in names for name in wanted)
  if has('data.pkl') and has('data', 'version'):
    return ('it is the unpacked content of a file of torch.save; give the file '
            'itself.')
  if '.metadata' in names and any(name.endswith('.distcp') for name in names):
    return ('it is a checkpoint of torch.distributed; make a file of it by '
            'python -m torch.distributed.checkpoint.format_utils dcp_to_torch '
            'DIRECTORY FILE.')
  if has('saved_model.pb', 'keras_metadata.pb'):
    return 'it is a SavedModel of TensorFlow, not of PyTorch.'
  if has('_CHECKPOINT_METADATA', '_METADATA', 'manifest.ocdbt'):
    return ('it is a checkpoint of Orbax without network.json, which says what '
            'the network is.')
  inside = [name for name in names if _WEIGHTS.search(name)]
  if inside:
    return f'it is a directory; give the file, such as {inside[0]} in it.'
  return 'it is a directory, and no network of this package.'
