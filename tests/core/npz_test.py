"""Tests of ferd_jax.core.npz, against numpy."""

import io
import zipfile

import numpy as np
import pytest

from ferd_jax.core import npz

LARGE = 1 << 20


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
  arrays = {'f8': np.arange(6.).reshape(2, 3), 'order': np.asfortranarray(
      np.arange(6, dtype='i2').reshape(2, 3)), 'big': np.arange(3, dtype='>f4'),
            'empty': np.zeros((0, 4)), 'scalar': np.array(True),
            'text': np.array('größe'), 'a/b': np.ones(3, np.complex64)}
  save(tmp_path / 'a.npz', **arrays)
  got = npz.read(tmp_path / 'a.npz', LARGE)
  assert got.keys() == arrays.keys()
  for name, value in arrays.items():
    assert got[name].dtype == value.dtype and got[name].shape == value.shape
    np.testing.assert_array_equal(got[name], value)
  assert set(npz.read(tmp_path / 'a.npz', LARGE, ['f8'])) == {'f8'}


def archive(path, name, content, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', method) as file:
    file.writestr(name, content)


def npy(value, **header):
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(buffer, header)
  return buffer.getvalue() + value


@pytest.mark.parametrize(('content', 'message'), [
    (npy(bytes(8), descr='<f4', fortran_order=False, shape=(10 ** 12,)),
     'a has 8 bytes for the shape'),
    (npy(bytes(8), descr='<f4', fortran_order=False, shape=(1,)), '8 bytes'),
    (npy(b'', descr='|O', fortran_order=False, shape=(1,)), 'objects'),
    (npy(b'', descr=[('x', '<f4')], fortran_order=False, shape=(1,)),
     'records'),
    (b'\x93NUMPY\x01\x00\xff\x00', 'ends too early'), (b'text', 'ends too ea'),
    (b'\x93NUMPY\x02\x00\xff\xff\xff\x7f', 'header of 2,147,483,647 bytes'),
    (b'\x93NUMPY\x01\x00\x02\x00((', 'header that is none')])
def test_arrays_that_are_not_what_they_say(tmp_path, content, message):
  archive(tmp_path / 'a.npz', 'a.npy', content)
  with pytest.raises(ValueError, match=message):
    npz.read(tmp_path / 'a.npz', LARGE)


def test_what_would_expand_too_far(tmp_path):
  content = npy(bytes(10 ** 6), descr='|u1', fortran_order=False,
                shape=(10 ** 6,))
  archive(tmp_path / 'a.npz', 'a.npy', content, zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='expand to 1,000,128 bytes, more than '):
    npz.read(tmp_path / 'a.npz', 10 ** 6)
  assert npz.read(tmp_path / 'a.npz', 2 * 10 ** 6)['a'].size == 10 ** 6
  # It says that it is small.
  data = bytearray((tmp_path / 'a.npz').read_bytes())
  place = data.find(b'PK\x01\x02')
  data[place + 24:place + 28] = (200).to_bytes(4, 'little')
  (tmp_path / 'a.npz').write_bytes(data)
  with pytest.raises(ValueError, match='it is damaged .Bad CRC'):
    npz.read(tmp_path / 'a.npz', 10 ** 6)
  archive(tmp_path / 'a.npz', 'a.npy', content, zipfile.ZIP_BZIP2)
  with pytest.raises(ValueError, match='compressed as numpy.savez does not'):
    npz.read(tmp_path / 'a.npz', 2 * 10 ** 6)
