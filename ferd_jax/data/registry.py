"""Datasets by name."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re

from ferd_jax.core import validate
from ferd_jax.data import arrays
from ferd_jax.data import class_names
from ferd_jax.data.examples import DatasetInfo
from ferd_jax.data.examples import Examples


def _info(image_shape: tuple[int, int, int],
          names: tuple[str, ...]) -> DatasetInfo:
  return DatasetInfo(len(names), image_shape, names)


_DIGITS = tuple(map(str, range(10)))
_INFOS = {
    'digits': _info((8, 8, 1), _DIGITS),
    'mnist': _info((28, 28, 1), _DIGITS),
    'fashion_mnist': _info((28, 28, 1), class_names.FASHION_MNIST),
    'svhn': _info((32, 32, 3), _DIGITS),
    'cifar10': _info((32, 32, 3), class_names.CIFAR10),
    'cifar100': _info((32, 32, 3), class_names.CIFAR100),
    'stl10': _info((96, 96, 3), class_names.STL10),
    'tiny_imagenet': _info((64, 64, 3),
                           tuple(class_names.TINY_IMAGENET.values())),
}

NAMES = tuple(_INFOS)
_TFDS_NAMES = {'svhn': 'svhn_cropped'}  # where they differ


def info(name: str) -> DatasetInfo:
  """Describes a dataset; reads nothing unless it is a file.

  Args:
    name: one of `NAMES` or the path of an .npz file.

  Returns:
    Its classes and the shape of its images.

  Raises:
    FileNotFoundError: if there is no such .npz file.
    ValueError: if the name is unknown or the .npz file not usable.
  """
  if name.endswith('.npz'):
    return arrays.npz_info(name)
  if name not in _INFOS:
    raise validate.SettingError(
        'name', name, f'to be one of {", ".join(NAMES)}, or the path of an '
        f'.npz file.{validate.nearest(name, NAMES)}')
  return _INFOS[name]


@contextlib.contextmanager
def blamed(name: str) -> Iterator[None]:
  """Blames a file of examples for weights of another number of classes.

  The labels of a file say how many classes there are if it has no
  `class_names`, and may lack the last ones.

  Args:
    name: of the dataset that weights are loaded for.

  Raises:
    ValueError: the one raised inside, with what to change in the file.
  """
  try:
    yield
  except ValueError as error:
    wrong = re.search(r'num_classes=(\d+) was expected', str(error))
    if wrong is None or not name.endswith('.npz'):
      raise
    raise ValueError(
        f'{name} has {wrong[1]} classes, the weights others ({error}). If '
        'classes have no image in it, add class_names with all of them.'
    ) from error


def load(name: str, split: str = 'test', *, data_dir: str | None = None,
         download: bool = True) -> Examples:
  """Loads labelled images into memory.

  The first use of a data set other than 'digits' downloads the official archive
  (up to 248 MB, 2.6 GB for 'stl10') and prepares its labelled splits with TFDS,
  but without TensorFlow. Without internet, put the archive into
  <data_dir>/downloads/<name>; the error message says which. Directories that
  TFDS itself prepared as array_record are read as they are.

  Args:
    name: one of `NAMES` or the path of an .npz file (see `arrays.npz`).
    split: 'train', 'test' or a part or sum of them in TFDS's syntax, such as
      'test[:1000]' or 'train[:10%]'. Tiny-ImageNet's 'test' is its official
      validation set.
    data_dir: TFDS's directory; by default $TFDS_DATA_DIR or else
      ~/tensorflow_datasets. 'digits' and files need none.
    download: whether the network may be used.

  Returns:
    The examples; those from TFDS in its order, which is a fixed shuffle.

  Raises:
    FileNotFoundError: if a file is missing; says which, and where to put it.
    ValueError: if the name or split is unknown, or a file is not as it should
      be.
  """
  if name.endswith('.npz'):
    return arrays.npz(name, split)
  names = info(name).class_names
  if name == 'digits':
    return arrays.digits(split)
  # TFDS takes a second to import, which the sources above can do without.
  from ferd_jax.data import builders
  directory = str(data_dir or os.environ.get('TFDS_DATA_DIR')
                  or '~/tensorflow_datasets')
  if '://' in directory:
    raise validate.SettingError('data_dir', directory,
                                'to be a directory of this machine.')
  images, labels, ids = builders.read(_TFDS_NAMES.get(name, name), split,
                                      pathlib.Path(directory).expanduser(),
                                      download)
  return Examples(images, labels, names, ids)
