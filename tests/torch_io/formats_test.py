"""Tests of ferd_jax.torch_io.formats: what is no file of weights is named."""

import gzip
import io
import lzma
import os
import tarfile
import zipfile

import numpy as np
import pytest

from ferd_jax import torch_io
from ferd_jax.torch_io import formats
from ferd_jax.weights import native


def zipped(*names):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name in names:
      archive.writestr(name, b'content')
  return buffer.getvalue()


def tarred(*names, form=tarfile.GNU_FORMAT):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w', format=form) as archive:
    for name in names:
      archive.addfile(tarfile.TarInfo(name))
  return buffer.getvalue()


def before_ustar(name):
  """Returns a tar archive as it was made before 1988."""
  head = bytearray(tarred(name)[:512])
  head[257:265] = bytes(8)
  head[148:156] = b' ' * 8
  head[148:156] = b'%06o\0 ' % sum(head)
  return bytes(head) + bytes(1024)


def numpy_file(value):
  buffer = io.BytesIO()
  np.save(buffer, value, allow_pickle=True)
  return buffer.getvalue()


@pytest.mark.parametrize(('content', 'message'), [
    (tarred('run/model.pth'), 'tar archive around run/model.pth; unpack it'),
    (tarred('a', form=tarfile.USTAR_FORMAT), 'tar archive of a, none'),
    (tarred('storages', 'tensors', 'pickle'), 'before 0.1.10.*save it again'),
    (before_ustar('a.pt'), 'tar archive around a.pt'),
    (gzip.compress(b'x', mtime=0), 'gzip.*gunzip'),
    (lzma.compress(b'x'), 'xz.*unxz'),
    (zipped('net/model.pt'), 'zip archive around net/model.pt; unpack it'),
    (zipped('readme.txt', 'a.py'), 'zip archive of readme.txt, a.py, none'),
    (zipped(), 'without any file'),
    (zipped('m/archive_format', 'm/models/model.json', 'm/byteorder'),
     'torch.export.load'),
    (zipped('serialized_exported_program.json', 'version'), 'torch.export'),
    (zipped('m/data.pkl', 'm/constants.pkl', 'm/code/x.py'), 'torch.jit.load'),
    (zipped('m/.data/extern_modules', 'm/model.pkl'), 'torch.package'),
    (zipped('config.json', 'model.weights.h5'), 'Keras'),
    (numpy_file({'params': {'w': np.zeros(3)}}), 'Python objects.*savez'),
    (numpy_file(np.zeros((2, 3))), r'one array of shape \(2, 3\).*savez'),
    (b'\x89HDF\r\n\x1a\n' + bytes(50), 'HDF5'),
    (b'\x08\x08\x12\x07pytorch\x1a\x032.0' + bytes(50), 'ONNX'),
    (b'{"weight_map": {}}', 'index of a checkpoint in several'),
    (b'{"a": 1}', 'JSON'), (b'\x85\xa6params', 'MessagePack'),
    (bytes(600), 'begins with zeros'), (b'GGUF' + bytes(50), 'GGUF'),
])
def test_what_it_is_instead(tmp_path, content, message):
  path = tmp_path / 'weights.pt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    torch_io.read_state_dict(path)
  assert '\n' not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(('names', 'message'), [
    (['data.pkl', 'version', 'byteorder'], 'unpacked content'),
    (['.metadata', '__0_0.distcp'], 'dcp_to_torch'),
    (['saved_model.pb'], 'SavedModel'),
    (['config.json', 'model.safetensors'], 'such as model.safetensors'),
    (['_CHECKPOINT_METADATA'], 'Orbax without network.json'),
    ([], 'no network of this package')])
def test_directories(tmp_path, names, message):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(ValueError, match=message):
    torch_io.read_state_dict(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_what_is_no_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero'):
    assert not native.is_native(path)
    with pytest.raises(ValueError, match='a device or a pipe, not a file'):
      torch_io.read_state_dict(path)


def test_what_is_read(tmp_path):
  path = tmp_path / 'x'
  for content, kind in ((zipped('m/data.pkl', 'm/version'), formats.TORCH),
                        (zipped('a.npy', 'b.npy'), formats.NPZ),
                        (b'\x80\x02\x8a\n', formats.TORCH),
                        (b'\x10' + bytes(7) + b'{', formats.SAFETENSORS)):
    path.write_bytes(content)
    assert formats.kind(path) == kind
