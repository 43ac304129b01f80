"""The official archives' formats: IDX, CIFAR's binary one, Tiny-ImageNet's."""

from collections.abc import Iterable
import gzip
import io
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

from ferd_jax.core import errors

_IDX_UINT8 = 0x08
_CIFAR_SHAPE = (3, 32, 32)
_STL10_SHAPE = (3, 96, 96)


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Reads a gzipped IDX file of bytes (http://yann.lecun.com/exdb/mnist).

  Args:
    path: the .gz file.

  Returns:
    uint8, of the shape that the file's header gives.

  Raises:
    ValueError: if the file holds something else.
  """
  with gzip.open(path) as file:
    content = file.read()
  zeros, dtype, rank = struct.unpack_from('>HBB', content)
  if zeros or dtype != _IDX_UINT8:
    raise ValueError(f'{path} is not an IDX file of bytes.')
  shape = struct.unpack_from(f'>{rank}I', content, 4)
  return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_cifar(path: pathlib.Path, members: Iterable[str],
               num_labels: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads batches of CIFAR's binary version.

  A record is `num_labels` bytes of labels and 3,072 bytes of a channels-first
  image (https://www.cs.toronto.edu/~kriz/cifar.html).

  Args:
    path: the .tar.gz file.
    members: names of the batches in it.
    num_labels: 1 for CIFAR-10, 2 (coarse, fine) for CIFAR-100.

  Returns:
    Images uint8 `[N, 32, 32, 3]` and labels uint8 `[N, num_labels]`.

  Raises:
    KeyError: if the archive lacks a batch.
    ValueError: if a batch is not a whole number of records.
  """
  with tarfile.open(path) as tar:
    content = b''.join(_content(tar, name) for name in members)
  records = np.frombuffer(content, np.uint8).reshape(
      -1, num_labels + np.prod(_CIFAR_SHAPE))
  images = records[:, num_labels:].reshape(-1, *_CIFAR_SHAPE)
  return images.transpose(0, 2, 3, 1), records[:, :num_labels]


def read_svhn(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads SVHN's cropped digits (http://ufldl.stanford.edu/housenumbers).

  Args:
    path: the .mat file, with `X` `[32, 32, 3, N]` and `y` `[N, 1]`, in which
      10 is the digit 0.

  Returns:
    Images uint8 `[N, 32, 32, 3]` and labels uint8 `[N]`, the digits.

  Raises:
    ValueError: if the file holds something else.
  """
  from scipy import io as scipy_io  # Takes a while, and few need it.
  try:
    content = scipy_io.loadmat(path, variable_names=('X', 'y'))
    images, labels = content['X'], content['y'][:, 0]
  except Exception as error:  # Damage can raise any error.
    raise ValueError(f'{path} is not a file of SVHN: '
                     f'{errors.reason(error)}.') from error
  if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or (
      labels.min() < 1 or labels.max() > 10):
    raise ValueError(f'{path} is not a file of SVHN: X is {images.dtype} '
                     f'{images.shape}, y in {labels.min()}..{labels.max()}.')
  return images.transpose(3, 0, 1, 2), (labels % 10).astype(np.uint8)


def read_stl10(path: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads STL-10's binary version (https://cs.stanford.edu/~acoates/stl10).

  Images are channels first, their columns before their rows, and labels begin
  at 1.

  Args:
    path: the .tar.gz file.
    split: 'train' or 'test'.

  Returns:
    Images uint8 `[N, 96, 96, 3]` and labels uint8 `[N]`, from 0.

  Raises:
    KeyError: if the archive lacks the split.
    ValueError: if it is not a whole number of images.
  """
  content = {}
  wanted = {f'stl10_binary/{split}_{name}.bin': name for name in 'Xy'}
  with tarfile.open(path) as tar:
    for member in tar:  # The rest of it is 2.5 GB of unlabelled images.
      name = member.name.removeprefix('./')
      if name in wanted:
        content[wanted[name]] = np.frombuffer(_content(tar, member), np.uint8)
      if len(content) == 2:
        break
  missing = sorted(set('Xy') - content.keys())
  if missing:
    raise KeyError(f'{path} has no stl10_binary/{split}_{missing[0]}.bin.')
  images = content['X'].reshape(-1, *_STL10_SHAPE)
  return images.transpose(0, 3, 2, 1), content['y'] - np.uint8(1)


def list_tiny_imagenet(
    archive: zipfile.ZipFile) -> dict[str, list[tuple[str, str]]]:
  """Lists the labelled images of tiny-imagenet-200.zip.

  Args:
    archive: the open file. Its unlabelled test images are of no use here, so
      its validation images are the test split.

  Returns:
    For 'train' and 'test', (name of the JPEG in the archive, WordNet id).
  """
  root = 'tiny-imagenet-200'
  # tiny-imagenet-200/train/<WordNet id>/images/<WordNet id>_<number>.JPEG
  train = [(name, name.split('/')[2]) for name in archive.namelist()
           if name.startswith(f'{root}/train/') and name.endswith('.JPEG')]
  # Lines are: file name, WordNet id, bounding box; separated by tabs.
  lines = archive.read(f'{root}/val/val_annotations.txt').decode().splitlines()
  fields = (line.split('\t') for line in lines)
  test = [(f'{root}/val/images/{name}', wnid) for name, wnid, *_ in fields]
  return {'train': train, 'test': test}


def encode_png(image: np.ndarray) -> bytes:
  """Encodes uint8 `[H, W, 1 or 3]` without loss."""
  return _png(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))


def rgb(encoded: bytes) -> bytes:
  """Returns an encoded RGB image unchanged, any other as an RGB PNG."""
  with Image.open(io.BytesIO(encoded)) as image:
    return encoded if image.mode == 'RGB' else _png(image.convert('RGB'))


def _content(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
  """Returns the bytes of a file in an archive.

  Raises:
    KeyError: if there is none, or it is a directory.
  """
  file = tar.extractfile(member)
  if file is None:
    raise KeyError(f'{member!r} is no file of the archive.')
  return file.read()


def _png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, format='png')
  return buffer.getvalue()
