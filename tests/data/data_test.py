"""Tests of ferd_jax.data; none of them uses the network."""

import dataclasses
import email.message
import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.error
import zipfile

import numpy as np
from PIL import Image
import pytest
from scipy import io as scipy_io

from ferd_jax import data
from ferd_jax.core import downloads
from ferd_jax.data import archives
from ferd_jax.data import arrays as data_arrays
from ferd_jax.data import builders
from ferd_jax.data import formats

_ROOT = pathlib.Path(__file__).parents[2]
# Real files that a developer may have beside the repository.
_SHARED = _ROOT.parent / 'shared' / 'data'
_RNG = np.random.default_rng(0)

needs_cifar = pytest.mark.skipif(
    not (_SHARED / 'tfds').exists(), reason='needs CIFAR as TFDS prepared it')
needs_fashion_mnist = pytest.mark.skipif(
    not (_SHARED / 'fashion-mnist').exists(), reason='needs the IDX files')
needs_tiny_imagenet = pytest.mark.skipif(
    not (_SHARED / 'tiny-imagenet-200-sample.zip').exists(),
    reason='needs the sample archive')


@pytest.fixture(autouse=True)
def opened(monkeypatch):
  """Cuts the network off; returns the list of URLs that were asked for."""
  urls = []

  def connect(url, headers):
    del headers
    urls.append(url)
    raise urllib.error.URLError('no route to host')

  monkeypatch.setattr(downloads, 'connect', connect)
  return urls


def _official(content, archive):
  """Returns an archive's entry as if `content` were the official file."""
  digest = hashlib.new(archive.algorithm, content).hexdigest()
  return dataclasses.replace(archive, size=len(content), checksum=digest)


def _place(monkeypatch, data_dir, builder, contents, sizes):
  """Puts made-up archives where the builder takes them for the official."""
  directory = data_dir / 'downloads' / builder.name
  directory.mkdir(parents=True)
  pairs = list(zip(builder.ARCHIVES, contents, strict=True))
  for archive, content in pairs:
    (directory / archive.filename).write_bytes(content)
  monkeypatch.setattr(builder, 'ARCHIVES', [_official(c, a) for a, c in pairs])
  monkeypatch.setattr(builder, 'SIZES', sizes)
  return directory


def _idx(array):
  header = bytes([0, 0, 8, array.ndim])
  header += b''.join(n.to_bytes(4, 'big') for n in array.shape)
  return gzip.compress(header + array.tobytes())


def _tar(members):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for name, content in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def _cifar_records(count, num_labels, num_classes):
  """Returns images [N, 32, 32, 3], labels [N, L] and the official bytes."""
  images = _RNG.integers(0, 256, (count, 32, 32, 3), np.uint8)
  labels = _RNG.integers(0, num_classes, (count, num_labels), np.uint8)
  planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
  return images, labels, np.concatenate([labels, planes], 1).tobytes()


def _assert_same_examples(examples, images, labels):
  """Checks equality up to the order, which TFDS shuffles."""
  found = zip(examples.images, examples.labels, strict=True)
  expected = zip(images, labels, strict=True)
  assert examples.images.shape == images.shape
  assert sorted((x.tobytes(), int(y)) for x, y in found) == sorted(
      (x.tobytes(), int(y)) for x, y in expected)


@pytest.fixture
def fashion_mnist(monkeypatch, tmp_path):
  """Places 6 training and 4 test images; returns them by split."""
  arrays = {
      split: (_RNG.integers(0, 256, (n, 28, 28), np.uint8),
              _RNG.integers(0, 10, n, np.uint8))
      for split, n in (('train', 6), ('test', 4))}
  contents = [_idx(a) for pair in arrays.values() for a in pair]
  sizes = {'train': 6, 'test': 4}
  _place(monkeypatch, tmp_path, builders.FashionMNIST, contents, sizes)
  return arrays


# Names.


def test_unknown_name_lists_the_known():
  for function in (data.info, data.load):
    with pytest.raises(ValueError, match='cifar1.*digits.*cifar100.*npz') as e:
      function('cifar1')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, num_classes, shape, last', [
    ('digits', 10, (8, 8, 1), '9'),
    ('mnist', 10, (28, 28, 1), '9'),
    ('svhn', 10, (32, 32, 3), '9'),
    ('stl10', 10, (96, 96, 3), 'truck'),
    ('fashion_mnist', 10, (28, 28, 1), 'Ankle boot'),
    ('cifar10', 10, (32, 32, 3), 'truck'),
    ('cifar100', 100, (32, 32, 3), 'worm'),
    ('tiny_imagenet', 200, (64, 64, 3), 'acorn'),
])
def test_info(name, num_classes, shape, last):
  info = data.info(name)
  assert name in data.NAMES
  assert info.num_classes == len(set(info.class_names)) == num_classes
  assert info.image_shape == shape
  assert info.class_names[-1] == last


# Arrays.


def test_digits():
  parts = {split: data.load('digits', split) for split in ('train', 'test')}
  assert len(parts['test'].labels) == 599
  assert len(parts['train'].labels) == 1198
  for part in parts.values():
    assert part.images.dtype == np.uint8
    assert part.images.shape == (len(part.labels), 8, 8, 1)
    assert (part.images.min(), part.images.max()) == (0, 255)
    assert part.labels.dtype == np.int32
    assert set(part.labels) == set(range(10))
    assert part.class_names == data.info('digits').class_names
  # The first labels of load_digits are 0, 1, 2, ...
  assert list(parts['test'].labels[:3]) == [0, 3, 6]
  assert list(parts['train'].labels[:4]) == [1, 2, 4, 5]
  # 13 of 16 is the first pixel of the first row that is not 0 or 5.
  assert parts['test'].images[0, 0, 3, 0] == round(13 * 255 / 16)


@pytest.mark.parametrize('split, count', [
    ('test[:10]', 10),
    ('test[590:]', 9),
    ('test[-5:]', 5),
    ('test[:10%]', 60),
    ('train[50%:]', 599),
    ('train+test', 1797),
    ('all', 1797),
])
def test_slices(split, count):
  assert len(data.load('digits', split).labels) == count


def test_slices_keep_the_order():
  whole = data.load('digits').images
  np.testing.assert_array_equal(data.load('digits', 'test[10:20]').images,
                                whole[10:20])


@pytest.mark.parametrize('split', [
    'val', 'test[', 'test[5]', 'test[600:]', 'test[5:5]', 'all[:3]'])
def test_wrong_split(split):
  with pytest.raises(ValueError, match='digits.*'):
    data.load('digits', split)


def _npz(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def test_npz(tmp_path):
  x = _RNG.integers(0, 256, (7, 5, 4, 3), np.uint8)
  y = np.array([0, 1, 2, 0, 1, 2, 0], np.int64)
  path = _npz(tmp_path / 'a.npz', x=x, y=y)
  for split in ('train', 'test'):
    examples = data.load(path, split)
    np.testing.assert_array_equal(examples.images, x)
    np.testing.assert_array_equal(examples.labels, y)
    assert examples.images.dtype == np.uint8
    assert examples.labels.dtype == np.int32
  np.testing.assert_array_equal(data.load(path, 'test[2:4]').images, x[2:4])
  assert data.info(path) == data.DatasetInfo(3, (5, 4, 3), ('0', '1', '2'))
  # A slice knows of all classes.
  assert data.load(path, 'test[:1]').class_names == ('0', '1', '2')
  with pytest.raises(ValueError, match='one term'):
    data.load(path, 'train+test')
  with pytest.raises(ValueError, match='validation'):
    data.load(path, 'validation')


def test_npz_class_names(tmp_path):
  x, y = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1], np.uint8)
  names = ['cat', 'dog', 'eel']
  path = _npz(tmp_path / 'a.npz', x=x, y=y, class_names=names)
  assert data.load(path).class_names == tuple(names)
  assert data.info(path).num_classes == 3


_X = np.zeros((2, 4, 4, 1), np.uint8)
_Y = np.array([0, 1])


@pytest.mark.parametrize('arrays, message', [
    ({'x': _X}, 'missing y'),
    ({'pictures': _X, 'tags': _Y}, 'missing x and y.*Keras.*pictures, tags'),
    ({'x_train': _X, 'y_train': _Y}, 'missing x and y.*x_test'),
    ({'x': _X.astype(np.float32), 'y': _Y}, 'x must be uint8.*float32'),
    ({'x': _X[0], 'y': _Y}, r'y 2|x must be uint8'),
    ({'x': _X[..., 0, 0], 'y': _Y}, r'x must be uint8.*\[2, 4\]'),
    # Each with the cure.
    ({'x': _X / np.float32(255), 'y': _Y}, r'save np.round\(x \* 255\)'),
    ({'x': _X.astype(np.float32) + 255, 'y': _Y}, r'save x.astype\(np.uint8\)'),
    ({'x': _X.astype(np.int64) + 9, 'y': _Y}, r'save x.astype\(np.uint8\)'),
    ({'x': _X == 0, 'y': _Y}, r'save x.astype\(np.uint8\) \* 255'),
    ({'x': _X.astype(np.uint16) + 999, 'y': _Y},
     r'up to 999; save \(x // 257\).astype\(np.uint8\)'),
    ({'x': np.zeros((4, 4, 3, 2), np.uint8), 'y': _Y},
     r'last axis save np.moveaxis\(x, -1, 0\)'),
    ({'x': _X - 1.5, 'y': _Y}, 'from -1.5 to -1.5; undo the normalisation'),
    ({'x': np.zeros((2, 3, 4, 8), np.uint8), 'y': _Y},
     r'channels first.*save x.transpose\(0, 2, 3, 1\)'),
    ({'x': _X, 'y': _Y + 1}, r'labels are 1..2 and must begin at 0; subtract'),
    ({'x': _X, 'y': _Y + 1, 'class_names': ['a', 'b']}, 'subtract 1'),
    ({'x': _X, 'y': np.array([0, 255])}, 'between 0 and 255, which 1 image'),
    ({'x': _X, 'y': np.array([0, 255]), 'class_names': ['a', 'b']},
     'at least 256 strings.*remove the 1 image'),
    ({'x': _X, 'y': np.eye(2, dtype=int)}, r'one-hot labels save y.argmax'),
    ({'x': _X, 'y': np.array(['a', 'b'])}, 'save class_names, y = np.unique'),
    ({'x': _X, 'y': _Y * 1.}, r'save y.astype\(np.int64\)'),
    ({'test_images': _X, 'test_labels': _Y - 1}, 'remove images without'),
    ({'x': _X, 'y': _Y.astype(np.float32)}, 'y must be integer.*float32'),
    ({'x': _X, 'y': _Y[:, None, None]}, r'y must be integer.*\[2, 1, 1\]'),
    ({'x': _X, 'y': _Y[:1]}, '2 examples but y 1'),
    ({'x': _X[:0], 'y': _Y[:0]}, 'x is empty'),
    ({'x': _X, 'y': _Y - 1}, 'at least 0, the smallest is -1'),
    ({'x': _X, 'y': _Y * 2**20}, 'below 1048576, the largest is 1048576'),
    ({'x': _X, 'y': _Y * 2**31}, 'below 1048576, the largest is 2147483648'),
    # One class more than that is 0 in 64 bits.
    ({'x': _X, 'y': np.full(2, 2**64 - 1, np.uint64)},
     'below 1048576, the largest is 18446744073709551615'),
    ({'x': _X, 'y': _Y.astype('m8[s]')}, 'y must be integer.*timedelta'),
    ({'x': _X, 'y': np.array([0, None])}, 'allow_pickle'),
    ({'x': _X, 'y': _Y, 'class_names': ['cat']}, 'at least 2 strings'),
    ({'x': _X, 'y': _Y, 'class_names': [1, 2]}, 'at least 2 strings'),
])
def test_npz_errors(tmp_path, arrays, message):
  path = _npz(tmp_path / 'a.npz', **arrays)
  for function in (data.load, data.info):
    with pytest.raises(ValueError, match=f'a.npz is not.*{message}'):
      function(path)


@pytest.mark.parametrize('names', [
    {'train': ('x_train', 'y_train'), 'test': ('x_test', 'y_test')},
    {split: (f'{split}_images', f'{split}_labels')
     for split in ('train', 'val', 'test')}])
def test_layouts_with_splits(tmp_path, names):
  """Those of Keras and of MedMNIST, grey and with a column of labels."""
  sizes, arrays = {'train': 5, 'val': 3, 'test': 4}, {}
  for split, (x, y) in names.items():
    arrays[x] = _RNG.integers(0, 256, (sizes[split], 4, 4), np.uint8)
    arrays[y] = np.arange(sizes[split])[:, None]
  path = _npz(tmp_path / 'a.npz', **arrays)
  assert data.info(path) == data.DatasetInfo(5, (4, 4, 1), tuple('01234'))
  for split, (x, y) in names.items():
    examples = data.load(path, split)
    np.testing.assert_array_equal(examples.images[..., 0], arrays[x])
    np.testing.assert_array_equal(examples.labels, arrays[y][:, 0])
  both = data.load(path, 'train[1:2]+test')
  assert both.labels.tolist() == [1, 0, 1, 2, 3]
  with pytest.raises(ValueError, match='Unknown split'):
    data.load(path, 'validation')


def test_npz_of_other_names(tmp_path):
  path = _npz(tmp_path / 'a.npz', images=_X, labels=_Y,
              class_names=np.array([b'a', 'ü'.encode()]))
  assert data.load(path).class_names == ('a', 'ü')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 broken', b'text'])
def test_npz_of_other_bytes(tmp_path, content):
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='a.npz is not a usable dataset'):
    data.load(str(path))


def test_npz_whose_members_are_no_arrays(tmp_path):
  path = tmp_path / 'a.npz'
  for member in ('x', 'x.npy'):
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr(member, 'text')
      archive.writestr('y', 'text')
    with pytest.raises(ValueError, match=f'a.npz is not.*: {member} cannot be'):
      data.load(str(path))


def test_npz_whose_header_hides_examples(tmp_path):
  # Only the checksum of the whole member tells.
  path = tmp_path / 'a.npz'
  np.savez(path, x=_X, y=_Y)
  content = path.read_bytes()
  assert content.count(b'(2, 4, 4, 1)') == 1
  path.write_bytes(content.replace(b'(2, 4, 4, 1)', b'(2, 4, 3, 1)'))
  with pytest.raises(ValueError, match='a.npz is not.*x.npy cannot be.*CRC'):
    data.load(str(path))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, save):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (7, 5, 4, 3), np.uint8)
  y = np.arange(7)
  path = tmp_path / 'a.npz'
  save(path, x=x, y=y, class_names=list('abcdefg'))
  intact = path.read_bytes()
  refused = 0
  for _ in range(100):
    content = bytearray(intact)
    for position in rng.integers(len(intact), size=2):
      content[position] = rng.integers(256)
    path.write_bytes(content)
    try:
      examples = data.load(str(path))
    except ValueError as error:
      assert str(error).startswith(f'{path} is not a usable dataset: ')
      assert str(error).isprintable()
      refused += 1
    else:
      np.testing.assert_array_equal(examples.images, x)
      np.testing.assert_array_equal(examples.labels, y)
  assert refused > 50


def test_npz_holding_one_plain_array(tmp_path):
  with open(tmp_path / 'a.npz', 'wb') as file:
    np.save(file, _X)
  with pytest.raises(ValueError, match='a.npz is not a usable dataset'):
    data.load(str(tmp_path / 'a.npz'))


def test_npz_that_expands(tmp_path, monkeypatch):
  path = str(tmp_path / 'a.npz')
  np.savez_compressed(path, x=np.zeros((4000, 8, 8, 3), np.uint8),
                      y=np.arange(4000) % 2)
  assert data.info(path).num_classes == 2
  monkeypatch.setattr(data_arrays, '_LARGEST', 0)
  with pytest.raises(ValueError, match='expand to 800,256 bytes, more than'):
    data.load(path)


def test_npz_missing(tmp_path):
  with pytest.raises(FileNotFoundError):
    data.load(str(tmp_path / 'a.npz'))


# Directories that TFDS prepared.


@needs_cifar
@pytest.mark.parametrize('name, per_class',
                         [('cifar10', 1000), ('cifar100', 100)])
def test_cifar_as_prepared_by_tfds(name, per_class, opened):
  directory = str(_SHARED / 'tfds')
  examples = data.load(name, data_dir=directory, download=False)
  assert examples.images.shape == (10000, 32, 32, 3)
  assert examples.images.dtype == np.uint8
  assert examples.labels.dtype == np.int32
  num_classes = data.info(name).num_classes
  np.testing.assert_array_equal(np.bincount(examples.labels),
                                np.full(num_classes, per_class))
  part = data.load(name, 'test[100:103]', data_dir=directory)
  np.testing.assert_array_equal(part.images, examples.images[100:103])
  names = (_SHARED / 'tfds' / name / '3.0.2/label.labels.txt').read_text()
  assert examples.class_names == tuple(names.split())
  # The directory lacks the train split.
  with pytest.raises(ValueError, match=f"{name}.*3.0.2.*'train'.*'test'"):
    data.load(name, 'train', data_dir=directory)
  assert not opened


@needs_cifar
def test_import_and_reading_leave_tensorflow_alone(tmp_path):
  # Stands for an installed TensorFlow and tells whether anything imports it.
  (tmp_path / 'tensorflow.py').write_text(
      'import pathlib\npathlib.Path(__file__).with_name("seen").touch()\n')
  code = f"""
import sys
from ferd_jax import data
assert 'tensorflow_datasets' not in sys.modules
data.load('digits')
assert 'tensorflow_datasets' not in sys.modules
data.load('cifar10', 'test[:10]', data_dir={str(_SHARED / 'tfds')!r})
assert 'tensorflow' not in sys.modules
"""
  env = os.environ | {'PYTHONPATH': f'{_ROOT}:{tmp_path}'}
  run = subprocess.run([sys.executable, '-c', code], env=env,
                       capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  # No warnings either.
  assert run.stdout + run.stderr == ''
  assert not (tmp_path / 'seen').exists()


def test_directory_without_dataset_info(tmp_path):
  (tmp_path / 'cifar10' / '3.0.2').mkdir(parents=True)
  with pytest.raises(ValueError, match='3.0.2 is not a prepared dataset'):
    data.load('cifar10', data_dir=str(tmp_path))


def test_directory_in_another_format(fashion_mnist, tmp_path):
  data.load('fashion_mnist', data_dir=str(tmp_path))
  directory = tmp_path / 'fashion_mnist' / '3.0.1'
  for path in directory.glob('*array_record*'):
    path.rename(str(path).replace('array_record', 'tfrecord'))
  path = directory / 'dataset_info.json'
  path.write_text(path.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='tfrecord but array_record.*data_dir'):
    data.load('fashion_mnist', data_dir=str(tmp_path))
  # Gone altogether.
  for path in directory.glob('*tfrecord*'):
    path.unlink()
  with pytest.raises(ValueError, match='array_record is needed'):
    data.load('fashion_mnist', data_dir=str(tmp_path))


@pytest.mark.parametrize('name, keep', [
    ('dataset_info.json', 0.5),
    ('dataset_info.json', None),
    ('features.json', 0.5),
    ('features.json', None),
    ('fashion_mnist-test.array_record-00000-of-00001', 0),
    ('fashion_mnist-test.array_record-00000-of-00001', 0.5),
    ('fashion_mnist-test.array_record-00000-of-00001', 0.99),
])
def test_damaged_directory(fashion_mnist, tmp_path, name, keep):
  data.load('fashion_mnist', data_dir=str(tmp_path))
  directory = tmp_path / 'fashion_mnist' / '3.0.1'
  content = (directory / name).read_bytes()
  damaged = b'{}' if keep is None else content[:int(keep * len(content))]
  (directory / name).write_bytes(damaged)
  with pytest.raises(ValueError) as e:
    data.load('fashion_mnist', data_dir=str(tmp_path))
  message = str(e.value)
  assert message.startswith(f'{directory} cannot be read')
  assert message.endswith('Delete it to have it prepared again.')
  assert '\n' not in message


def test_directory_of_another_dataset(fashion_mnist, tmp_path):
  data.load('fashion_mnist', data_dir=str(tmp_path))
  directory = tmp_path / 'fashion_mnist' / '3.0.1'
  path = directory / 'features.json'
  path.write_text(path.read_text().replace('"label"', '"digit"'))
  with pytest.raises(ValueError, match='3.0.1 cannot be read.*label'):
    data.load('fashion_mnist', data_dir=str(tmp_path))


def test_directory_that_may_not_be_read(fashion_mnist, tmp_path, monkeypatch):
  data.load('fashion_mnist', data_dir=str(tmp_path))

  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied', 'features.json')

  monkeypatch.setattr(builders.tfds, 'builder_from_directory', refuse)
  # Nothing is wrong with it, so nobody should delete it.
  with pytest.raises(PermissionError, match='features.json'):
    data.load('fashion_mnist', data_dir=str(tmp_path))


# Preparation.


def test_fashion_mnist(fashion_mnist, tmp_path, monkeypatch, opened):
  # An installed TensorFlow must not be needed either.
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  for split, (images, labels) in fashion_mnist.items():
    examples = data.load('fashion_mnist', split, data_dir=str(tmp_path))
    _assert_same_examples(examples, images[..., None], labels)
    assert examples.labels.dtype == np.int32
  assert not opened


def test_default_directory(fashion_mnist, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert len(data.load('fashion_mnist', download=False).labels) == 4
  assert (tmp_path / 'fashion_mnist' / '3.0.1' / 'features.json').exists()


def test_prepared_directory_serves_tfds(fashion_mnist, tmp_path, capsys):
  import tensorflow_datasets as tfds
  examples = data.load('fashion_mnist', data_dir=str(tmp_path))
  assert not capsys.readouterr().out
  source = tfds.data_source('fashion_mnist', split='test',
                            data_dir=str(tmp_path), download=False)
  images = np.stack([example['image'] for example in source])
  np.testing.assert_array_equal(images, examples.images)
  builder = tfds.builder('fashion_mnist', data_dir=str(tmp_path))
  assert type(builder).__module__.startswith('tensorflow_datasets')
  assert builder.info.features['label'].names == list(examples.class_names)


def test_interrupted_preparation(fashion_mnist, tmp_path, monkeypatch):
  calls = []

  def interrupted(image):
    calls.append(image)
    if len(calls) == 8:  # In the second split.
      raise KeyboardInterrupt
    return encode(image)

  encode = formats.encode_png
  monkeypatch.setattr(formats, 'encode_png', interrupted)
  with pytest.raises(KeyboardInterrupt):
    data.load('fashion_mnist', data_dir=str(tmp_path))
  assert not any((tmp_path / 'fashion_mnist').iterdir())
  examples = data.load('fashion_mnist', data_dir=str(tmp_path))
  assert len(examples.labels) == 4


def test_killed_preparation_is_not_taken_for_complete(fashion_mnist, tmp_path):
  # What a killed process leaves.
  left = tmp_path / 'fashion_mnist' / 'incomplete.ABCDEF_3.0.1'
  left.mkdir(parents=True)
  (left / 'fashion_mnist-test.array_record-00000-of-00001').touch()
  examples = data.load('fashion_mnist', data_dir=str(tmp_path))
  assert len(examples.labels) == 4


def test_two_processes_prepare_at_once(fashion_mnist, tmp_path, monkeypatch):
  prepare = builders._prepare

  def other_is_faster(*args):
    prepare(*args)
    prepare(*args)  # what TFDS then raises cannot rename its directory
    raise FileExistsError('the other process')
  monkeypatch.setattr(builders, '_prepare', other_is_faster)
  examples = data.load('fashion_mnist', data_dir=str(tmp_path))
  assert len(examples.labels) == 4


def test_data_dir_in_a_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="data_dir='gs://bucket/tfds'"):
    data.load('cifar10', data_dir='gs://bucket/tfds')
  assert not list(tmp_path.iterdir())


def test_too_few_examples(fashion_mnist, tmp_path, monkeypatch):
  monkeypatch.setattr(builders.FashionMNIST, 'SIZES', {'train': 6, 'test': 5})
  with pytest.raises(ValueError, match='expected 5 test examples, found 4'):
    data.load('fashion_mnist', data_dir=str(tmp_path))
  assert not any((tmp_path / 'fashion_mnist').iterdir())


def test_not_idx(tmp_path):
  (tmp_path / 'a.gz').write_bytes(gzip.compress(b'something else'))
  with pytest.raises(ValueError, match='a.gz is not an IDX file'):
    formats.read_idx(tmp_path / 'a.gz')


def test_cifar10(tmp_path, monkeypatch):
  batches = [_cifar_records(2, 1, 10) for _ in range(6)]
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  content = _tar({
      f'cifar-10-batches-bin/{name}': batch[2]
      for name, batch in zip(names, batches, strict=True)})
  sizes = {'train': 10, 'test': 2}
  _place(monkeypatch, tmp_path, builders.Cifar10, [content], sizes)
  images, labels, _ = batches[-1]
  _assert_same_examples(data.load('cifar10', data_dir=str(tmp_path)), images,
                        labels[:, 0])
  _assert_same_examples(
      data.load('cifar10', 'train', data_dir=str(tmp_path)),
      np.concatenate([batch[0] for batch in batches[:-1]]),
      np.concatenate([batch[1][:, 0] for batch in batches[:-1]]))


def test_cifar100_labels_are_fine(tmp_path, monkeypatch):
  images, labels, records = _cifar_records(5, 2, 20)
  content = _tar({'cifar-100-binary/train.bin': records,
                  'cifar-100-binary/test.bin': records})
  sizes = {'train': 5, 'test': 5}
  _place(monkeypatch, tmp_path, builders.Cifar100, [content], sizes)
  _assert_same_examples(data.load('cifar100', data_dir=str(tmp_path)), images,
                        labels[:, 1])


@needs_cifar
@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_features_are_those_of_tfds(name):
  directory = _SHARED / 'tfds' / name / '3.0.2'
  import tensorflow_datasets as tfds
  expected = tfds.builder_from_directory(directory).info.features
  builder = {'cifar10': builders.Cifar10, 'cifar100': builders.Cifar100}[name]
  found = builder(files=[], data_dir='/nonexistent').info.features
  assert found.to_json() == expected.to_json()
  for key in ('label', 'coarse_label'):
    if key in expected:
      assert found[key].names == expected[key].names


def test_mnist(tmp_path, monkeypatch):
  images = _RNG.integers(0, 256, (4, 28, 28), np.uint8)
  labels = np.arange(4, dtype=np.uint8)
  _place(monkeypatch, tmp_path, builders.Mnist,
         [_idx(images), _idx(labels)] * 2, {'train': 4, 'test': 4})
  examples = data.load('mnist', data_dir=str(tmp_path))
  _assert_same_examples(examples, images[..., None], labels)


def test_svhn(tmp_path, monkeypatch):
  images = _RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
  def mat(labels):
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {'X': images.transpose(1, 2, 3, 0),
                              'y': np.array(labels, np.uint8)[:, None]})
    return buffer.getvalue()
  _place(monkeypatch, tmp_path, builders.SvhnCropped,
         [mat([1, 2, 3]), mat([10, 1, 9])], {'train': 3, 'test': 3})
  examples = data.load('svhn', data_dir=str(tmp_path))
  _assert_same_examples(examples, images, [0, 1, 9])
  assert sorted(examples.ids) == [b'test_000000', b'test_000001',
                                  b'test_000002']
  for content in (b'text', mat([0, 1, 2])):
    (tmp_path / 'a.mat').write_bytes(content)
    with pytest.raises(ValueError, match='a.mat is not a file of SVHN'):
      formats.read_svhn(tmp_path / 'a.mat')


def test_stl10(tmp_path, monkeypatch):
  images = _RNG.integers(0, 256, (2, 96, 96, 3), np.uint8)
  members = {}
  for split in ('test', 'train'):
    members[f'stl10_binary/{split}_X.bin'] = images.transpose(
        0, 3, 2, 1).tobytes()
    members[f'stl10_binary/{split}_y.bin'] = bytes([1, 10])
  _place(monkeypatch, tmp_path, builders.Stl10, [_tar(members)],
         {'train': 2, 'test': 2})
  examples = data.load('stl10', data_dir=str(tmp_path))
  _assert_same_examples(examples, images, [0, 9])
  (tmp_path / 'a.tar.gz').write_bytes(_tar({'stl10_binary/test_X.bin': b''}))
  with pytest.raises(KeyError, match='test_y.bin'):
    formats.read_stl10(tmp_path / 'a.tar.gz', 'test')


@pytest.mark.parametrize('name, builder', [
    ('mnist', builders.Mnist), ('svhn_cropped', builders.SvhnCropped),
    ('stl10', builders.Stl10)])
def test_versions_and_archives_are_those_of_tfds(name, builder):
  """Directories of either then serve the other."""
  import tensorflow_datasets as tfds
  theirs = tfds.builder_cls(name)
  assert str(theirs.VERSION) == str(builder.VERSION)
  known = {pathlib.PurePosixPath(url).name: (info.size, info.checksum)
           for url, info in theirs.url_infos.items()}
  for archive in builder.ARCHIVES:
    assert known[archive.filename] == (archive.size, archive.checksum)


def test_tiny_imagenet_makes_grey_images_rgb(tmp_path, monkeypatch):
  def jpeg(shape):
    buffer = io.BytesIO()
    image = Image.fromarray(_RNG.integers(0, 256, shape, np.uint8))
    image.save(buffer, format='jpeg')
    decoded = np.asarray(Image.open(buffer).convert('RGB'))
    return buffer.getvalue(), decoded

  grey, grey_pixels = jpeg((64, 64))
  colour, colour_pixels = jpeg((64, 64, 3))
  root = 'tiny-imagenet-200'
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr(f'{root}/train/n12267677/images/n12267677_0.JPEG', grey)
    archive.writestr(f'{root}/train/n12267677/n12267677_boxes.txt', '')
    archive.writestr(f'{root}/val/images/val_0.JPEG', grey)
    archive.writestr(f'{root}/val/images/val_1.JPEG', colour)
    archive.writestr(f'{root}/test/images/test_0.JPEG', colour)
    archive.writestr(
        f'{root}/val/val_annotations.txt',
        'val_0.JPEG\tn12267677\t0\t0\t9\t9\n'
        'val_1.JPEG\tn01443537\t0\t0\t9\t9\n')
  _place(monkeypatch, tmp_path, builders.TinyImagenet, [buffer.getvalue()],
         {'train': 1, 'test': 2})
  examples = data.load('tiny_imagenet', data_dir=str(tmp_path))
  pixels = np.stack([grey_pixels, colour_pixels])
  _assert_same_examples(examples, pixels, [199, 0])
  train = data.load('tiny_imagenet', 'train', data_dir=str(tmp_path))
  _assert_same_examples(train, pixels[:1], [199])


# Real archives.


@needs_fashion_mnist
def test_official_fashion_mnist_test_images(tmp_path, monkeypatch):
  (tmp_path / 'downloads').mkdir()
  source = _SHARED / 'fashion-mnist'
  (tmp_path / 'downloads' / 'fashion_mnist').symlink_to(source)
  monkeypatch.setattr(builders.FashionMNIST, 'SIZES', {'test': 10000})
  examples = data.load('fashion_mnist', data_dir=str(tmp_path))
  images = formats.read_idx(source / 't10k-images-idx3-ubyte.gz')
  labels = formats.read_idx(source / 't10k-labels-idx1-ubyte.gz')
  _assert_same_examples(examples, images[..., None], labels)
  np.testing.assert_array_equal(np.bincount(labels), np.full(10, 1000))


@pytest.mark.slow
@needs_fashion_mnist
def test_official_fashion_mnist(tmp_path):
  (tmp_path / 'downloads').mkdir()
  source = _SHARED / 'fashion-mnist'
  (tmp_path / 'downloads' / 'fashion_mnist').symlink_to(source)
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    examples = data.load('fashion_mnist', split, data_dir=str(tmp_path))
    images = formats.read_idx(source / f'{prefix}-images-idx3-ubyte.gz')
    labels = formats.read_idx(source / f'{prefix}-labels-idx1-ubyte.gz')
    _assert_same_examples(examples, images[..., None], labels)


@needs_tiny_imagenet
def test_sample_of_tiny_imagenet(tmp_path, monkeypatch):
  content = (_SHARED / 'tiny-imagenet-200-sample.zip').read_bytes()
  sizes = {'train': 400, 'test': 1000}
  _place(monkeypatch, tmp_path, builders.TinyImagenet, [content], sizes)
  test = data.load('tiny_imagenet', data_dir=str(tmp_path))
  assert test.images.shape == (1000, 64, 64, 3)
  train = data.load('tiny_imagenet', 'train', data_dir=str(tmp_path))
  np.testing.assert_array_equal(np.bincount(train.labels), np.full(200, 2))
  # The names are those that the archive gives to the sorted WordNet ids.
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    words = archive.read('tiny-imagenet-200/words.txt').decode().splitlines()
    wnids = archive.read('tiny-imagenet-200/wnids.txt').decode().split()
  names = dict(line.split('\t') for line in words)
  assert test.class_names == tuple(
      names[wnid].split(',')[0] for wnid in sorted(wnids))


# Archives.


def _archive(content, filename='a.bin'):
  return _official(
      content, archives.Archive(f'https://example.org/b/{filename}', 0, ''))


class _Response(io.BytesIO):
  """What a server answers that does not say how long it is."""
  headers, status = email.message.Message(), 200


def test_no_network_says_which_files_go_where(tmp_path, opened):
  with pytest.raises(FileNotFoundError) as e:
    data.load('cifar10', data_dir=str(tmp_path))
  (archive,) = builders.Cifar10.ARCHIVES
  assert opened == [archive.url]
  for part in ('no route to host', str(tmp_path / 'downloads' / 'cifar10'),
               'cifar-10-binary.tar.gz', '170,052,171 bytes', archive.checksum,
               archive.url):
    assert part in str(e.value)
  assert e.value.__cause__ is None and e.value.__suppress_context__
  assert not (tmp_path / 'cifar10').exists()


def test_only_missing_files_are_listed(tmp_path, opened):
  (tmp_path / 'a.bin').write_bytes(b'first')
  contents = {'a.bin': b'first', 'b.bin': b'x', 'c.bin': b'y'}
  wanted = [_archive(content, name) for name, content in contents.items()]
  with pytest.raises(FileNotFoundError) as e:
    archives.fetch(wanted, tmp_path, download=True)
  assert opened == ['https://example.org/b/b.bin']
  assert 'b.bin' in str(e.value) and 'c.bin' in str(e.value)
  assert 'a.bin' not in str(e.value)


@pytest.mark.parametrize('name', [
    'cifar100', 'fashion_mnist', 'tiny_imagenet', 'svhn', 'stl10'])
def test_without_download_the_network_is_left_alone(name, tmp_path, opened):
  with pytest.raises(FileNotFoundError, match='switched off'):
    data.load(name, data_dir=str(tmp_path), download=False)
  assert not opened
  assert not any(tmp_path.iterdir())


def test_download(tmp_path, monkeypatch, capsys):
  content = _RNG.bytes(3_000_000)
  archive = _archive(content)
  monkeypatch.setattr(downloads, 'connect',
                      lambda url, headers: _Response(content))
  directory = tmp_path / 'downloads'
  assert archives.fetch([archive], directory, True) == [directory / 'a.bin']
  assert (directory / 'a.bin').read_bytes() == content
  assert list(directory.iterdir()) == [directory / 'a.bin']
  assert 'Downloading a.bin' in capsys.readouterr().err


def test_download_of_something_else(tmp_path, monkeypatch):
  archive = _archive(b'right')
  monkeypatch.setattr(downloads, 'connect',
                      lambda url, headers: _Response(b'wrong!'))
  with pytest.raises(ValueError) as e:
    archives.fetch([archive], tmp_path, True)
  for part in (archive.url, archive.checksum, 'expected 5', 'found 6'):
    assert part in str(e.value)
  assert hashlib.sha256(b'wrong!').hexdigest() in str(e.value)
  assert not any(tmp_path.iterdir())


def test_broken_download_leaves_nothing(tmp_path, monkeypatch):
  class Broken(_Response):

    def read(self, size):
      raise TimeoutError('timed out')

  monkeypatch.setattr(downloads, 'connect', lambda url, headers: Broken())
  with pytest.raises(FileNotFoundError, match='timed out'):
    archives.fetch([_archive(b'right')], tmp_path, True)
  assert not any(tmp_path.iterdir())


def test_wrong_file_placed_by_hand(fashion_mnist, tmp_path, opened):
  directory = tmp_path / 'downloads' / 'fashion_mnist'
  path = directory / 't10k-labels-idx1-ubyte.gz'
  size = path.stat().st_size
  path.write_bytes(b'x' * size)
  expected = builders.FashionMNIST.ARCHIVES[3].checksum
  for download in (False, True):
    with pytest.raises(FileNotFoundError, match='is damaged') as e:
      data.load('fashion_mnist', data_dir=str(tmp_path), download=download)
    assert str(path) in str(e.value) and expected in str(e.value)
    assert path.exists() and len(opened) == download
  assert not (tmp_path / 'fashion_mnist').exists()


def test_first_examples_in_the_sources_own_order():
  images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
  labels = np.arange(5, dtype=np.int32)
  ids = np.array([b'test_00003', b'test_00010', b'test_00001', b'test_00000',
                  b'test_00002'])
  first = data.Examples(images, labels, ('a',) * 5, ids).first(3)
  assert first.labels.tolist() == first.images.ravel().tolist() == [3, 2, 4]
  assert first.ids.tolist() == [b'test_00000', b'test_00001', b'test_00002']
  assert data.Examples(images, labels, ('a',) * 5).first(2).labels.tolist() == [
      0, 1]


def test_ids_of_cifar10_sort_into_its_own_order():
  folder = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'tfds'
  if not folder.exists():  # Nobody has to have it to run the tests.
    pytest.skip('no CIFAR-10')
  examples = data.load('cifar10', 'test', data_dir=str(folder), download=False)
  names = [examples.class_names[label] for label in examples.first(4).labels]
  assert names == ['cat', 'ship', 'ship', 'airplane']  # of test_batch.bin
