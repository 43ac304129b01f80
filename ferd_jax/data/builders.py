"""TFDS builders that prepare array_record files without TensorFlow.

TFDS's own builders of the same datasets need TensorFlow to read archives and to
encode images. These write the same splits, features, keys (so the same order)
and versions, hence either's directories serve the other.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import pathlib
from typing import Any
import zipfile

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from ferd_jax.core import errors
from ferd_jax.data import archives
from ferd_jax.data import class_names
from ferd_jax.data import formats
from ferd_jax.data import splits

_CIFAR_URL = 'https://www.cs.toronto.edu/~kriz'
# The authors' own server, S3's for web sites, has no https.
_FASHION_MNIST_URL = (
    'https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/'
    'data/fashion')
_MNIST_URL = 'https://storage.googleapis.com/cvdf-datasets/mnist'
_SVHN_URL = 'https://ufldl.stanford.edu/housenumbers'


class _LocalInfo(tfds.core.DatasetInfo):
  """Does not ask Google Cloud Storage, as every new builder otherwise does."""

  def initialize_from_bucket(self) -> None:
    pass


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the datasets have in common.

  A subclass's name in snake case is the dataset's. TFDS registers names, where
  its own builders already are.

  Attributes:
    ARCHIVES: the official files.
    SIZES: number of examples of each split.
  """
  VERSION: tfds.core.Version
  ARCHIVES: tuple[archives.Archive, ...]
  SIZES: Mapping[str, int]

  def __init__(self, *, files: list[pathlib.Path], **kwargs: Any):
    """Constructs a builder.

    Args:
      files: where the archives are, in the order of `ARCHIVES`.
      **kwargs: see `tfds.core.DatasetBuilder`.
    """
    self._files = files
    super().__init__(**kwargs)

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return _LocalInfo(
        builder=self,
        features=tfds.features.FeaturesDict(self._features()),
        supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # It can only download with TFDS's own errors.
    return {split: self._generate_checked(split) for split in self.SIZES}

  def _generate_checked(self, split: str) -> Iterator[tuple[Any, dict]]:
    """Yields a split's examples and raises ValueError if some are missing."""
    count = 0
    for example in self._generate_examples(split):
      yield example
      count += 1
    if count != self.SIZES[split]:
      raise ValueError(f'{self.name}: expected {self.SIZES[split]} {split} '
                       f'examples, found {count}.')


class Cifar10(_Builder, skip_registration=True):
  """CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html)."""
  VERSION = tfds.core.Version('3.0.2')
  ARCHIVES = (
      archives.Archive(
          f'{_CIFAR_URL}/cifar-10-binary.tar.gz', 170052171,
          'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'),)
  SIZES = {'train': 50000, 'test': 10000}

  _LABELS: Mapping[str, tuple[str, ...]] = {'label': class_names.CIFAR10}
  _BATCHES = {
      'train': tuple(f'cifar-10-batches-bin/data_batch_{i}.bin'
                     for i in range(1, 6)),
      'test': ('cifar-10-batches-bin/test_batch.bin',)}

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(32, 32, 3)),
        **{key: tfds.features.ClassLabel(names=names)
           for key, names in self._LABELS.items()}}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    images, labels = formats.read_cifar(
        self._files[0], self._BATCHES[split], len(self._LABELS))
    for i, (image, values) in enumerate(zip(images, labels, strict=True)):
      yield i, {
          'id': f'{split}_{i:05d}',
          'image': formats.encode_png(image),
          **dict(zip(self._LABELS, map(int, values), strict=True))}


class Cifar100(Cifar10, skip_registration=True):
  """CIFAR-100; `label` is the fine one."""
  ARCHIVES = (
      archives.Archive(
          f'{_CIFAR_URL}/cifar-100-binary.tar.gz', 168513733,
          '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'),)

  # In the order of the bytes of a record.
  _LABELS = {
      'coarse_label': class_names.CIFAR100_COARSE,
      'label': class_names.CIFAR100}
  _BATCHES = {
      'train': ('cifar-100-binary/train.bin',),
      'test': ('cifar-100-binary/test.bin',)}


class Mnist(_Builder, skip_registration=True):
  """MNIST (http://yann.lecun.com/exdb/mnist)."""
  VERSION = tfds.core.Version('3.0.1')
  ARCHIVES = (
      archives.Archive(
          f'{_MNIST_URL}/train-images-idx3-ubyte.gz', 9912422,
          '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'),
      archives.Archive(
          f'{_MNIST_URL}/train-labels-idx1-ubyte.gz', 28881,
          '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'),
      archives.Archive(
          f'{_MNIST_URL}/t10k-images-idx3-ubyte.gz', 1648877,
          '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'),
      archives.Archive(
          f'{_MNIST_URL}/t10k-labels-idx1-ubyte.gz', 4542,
          'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'))
  SIZES = {'train': 60000, 'test': 10000}

  _LABEL_FEATURE = tfds.features.ClassLabel(num_classes=10)

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
        'image': tfds.features.Image(shape=(28, 28, 1)),
        'label': self._LABEL_FEATURE}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    files = self._files[:2] if split == 'train' else self._files[2:]
    images, labels = map(formats.read_idx, files)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {
          'image': formats.encode_png(image[..., None]),
          'label': int(label)}


class FashionMNIST(Mnist, skip_registration=True):
  """Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist)."""
  ARCHIVES = (
      archives.Archive(
          f'{_FASHION_MNIST_URL}/train-images-idx3-ubyte.gz', 26421880,
          '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84'),
      archives.Archive(
          f'{_FASHION_MNIST_URL}/train-labels-idx1-ubyte.gz', 29515,
          'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845'),
      archives.Archive(
          f'{_FASHION_MNIST_URL}/t10k-images-idx3-ubyte.gz', 4422102,
          '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073'),
      archives.Archive(
          f'{_FASHION_MNIST_URL}/t10k-labels-idx1-ubyte.gz', 5148,
          '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5'))

  _LABEL_FEATURE = tfds.features.ClassLabel(names=class_names.FASHION_MNIST)


class SvhnCropped(_Builder, skip_registration=True):
  """SVHN's cropped digits (http://ufldl.stanford.edu/housenumbers).

  Without TFDS's split of 531,131 extra images, a download of 1.3 GB.
  """
  VERSION = tfds.core.Version('3.1.0')
  ARCHIVES = (
      archives.Archive(
          f'{_SVHN_URL}/train_32x32.mat', 182040794,
          '435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8'),
      archives.Archive(
          f'{_SVHN_URL}/test_32x32.mat', 64275384,
          'cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b'))
  SIZES = {'train': 73257, 'test': 26032}

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(32, 32, 3)),
        'label': tfds.features.ClassLabel(num_classes=10)}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    images, labels = formats.read_svhn(self._files[split == 'test'])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'id': f'{split}_{i:06d}', 'image': formats.encode_png(image),
                'label': int(label)}


class Stl10(_Builder, skip_registration=True):
  """STL-10 (https://cs.stanford.edu/~acoates/stl10), without unlabelled."""
  VERSION = tfds.core.Version('1.0.0')
  ARCHIVES = (
      archives.Archive(
          'https://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz',
          2640397119,
          'f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866'),)
  SIZES = {'train': 5000, 'test': 8000}

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
        'image': tfds.features.Image(shape=(96, 96, 3)),
        'label': tfds.features.ClassLabel(names=class_names.STL10)}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    images, labels = formats.read_stl10(self._files[0], split)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': formats.encode_png(image), 'label': int(label)}


class TinyImagenet(_Builder, skip_registration=True):
  """Tiny-ImageNet-200 of Stanford's CS231n; TFDS has none."""
  VERSION = tfds.core.Version('1.0.0')
  ARCHIVES = (
      archives.Archive(
          'https://cs231n.stanford.edu/tiny-imagenet-200.zip', 248100043,
          '90528d7ca1a48142e341f4ef8d21d0de', 'md5'),)
  SIZES = {'train': 100000, 'test': 10000}

  def _features(self) -> dict[str, tfds.features.FeatureConnector]:
    return {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(64, 64, 3)),
        'label': tfds.features.ClassLabel(
            names=class_names.TINY_IMAGENET.values())}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    labels = {wnid: i for i, wnid in enumerate(class_names.TINY_IMAGENET)}
    with zipfile.ZipFile(self._files[0]) as archive:
      for name, wnid in formats.list_tiny_imagenet(archive)[split]:
        key = name.rsplit('/', 1)[-1].removesuffix('.JPEG')
        yield key, {
            'id': key,
            'image': formats.rgb(archive.read(name)),
            'label': labels[wnid]}


_BUILDERS = {builder.name: builder
             for builder in (Mnist, FashionMNIST, SvhnCropped, Cifar10,
                            Cifar100, Stl10, TinyImagenet)}


def read(name: str, split: str, data_dir: pathlib.Path,
         download: bool
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Reads a dataset, which it prepares first if need be.

  Args:
    name: the dataset.
    split: what to read, in TFDS's syntax.
    data_dir: TFDS's directory. The dataset is or will be in
      <name>/<version> in it, the archives in downloads/<name>.
    download: whether missing archives may be downloaded.

  Returns:
    Images uint8 `[N, H, W, C]` and labels int32 `[N]`, in TFDS's (shuffled,
    always the same) order, and the examples' ids `[N]`, if they have any.

  Raises:
    FileNotFoundError: if archives are missing; says which.
    ValueError: if an archive differs from the official one, the directory is
      not usable or there is no such split.
  """
  directory = data_dir / name / str(_BUILDERS[name].VERSION)
  with _quiet():
    if not directory.exists():
      try:
        _prepare(name, data_dir, download)
      except OSError:
        # Of processes that prepare it at once, one gets to rename its result.
        if not (directory / 'dataset_info.json').exists():
          raise
    elif not (directory / 'dataset_info.json').exists():
      raise ValueError(
          f'{directory} is not a prepared dataset: it has no '
          'dataset_info.json. Delete it to have it prepared.')
    with _naming(directory):
      builder = tfds.builder_from_directory(directory)
      shard_lengths = {
          k: v.shard_lengths for k, v in builder.info.splits.items()}
      formats_here = builder.info.available_file_formats()
    ranges = splits.row_ranges(split, shard_lengths, str(directory))
    if tfds.core.FileFormat.ARRAY_RECORD not in formats_here:
      found = ', '.join(f.value for f in formats_here) or 'no data files'
      raise ValueError(
          f'{directory} holds {found} but array_record is needed. Give '
          'another data_dir to have the dataset prepared there.')
    with _naming(directory):
      examples = []
      for term, start, stop in ranges:
        source = builder.as_data_source(
            term, file_format=tfds.core.FileFormat.ARRAY_RECORD)
        examples += source.__getitems__(range(start, stop))
      images = np.stack([example['image'] for example in examples])
      labels = np.array([example['label'] for example in examples], np.int32)
      ids = np.array([example['id'] for example in examples]
                     ) if 'id' in examples[0] else None
  return images, labels, ids


@contextlib.contextmanager
def _naming(directory: pathlib.Path) -> Iterator[None]:
  """Makes one error of all that damaged files in a directory can raise.

  TFDS parses with json, protobuf, Riegeli and Pillow, none of which says in
  which data set it failed.
  """
  try:
    yield
  except (ImportError, MemoryError, PermissionError):
    # Nothing is wrong with the files.
    raise
  except Exception as error:
    raise ValueError(
        f'{directory} cannot be read as a prepared dataset: '
        f'{errors.reason(error)}. Delete it to have it prepared again.'
    ) from error


def _prepare(name: str, data_dir: pathlib.Path, download: bool) -> None:
  """Writes <data_dir>/<name>/<version>, complete or not at all."""
  cls = _BUILDERS[name]
  files = archives.fetch(cls.ARCHIVES, data_dir / 'downloads' / name, download)
  # TFDS prints an announcement of unknown sizes; its progress bars are on
  # stderr and stay.
  with contextlib.redirect_stdout(io.StringIO()):
    # Writes into a temporary directory, which is renamed at the end.
    cls(files=files, data_dir=data_dir).download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format=tfds.core.FileFormat.ARRAY_RECORD)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides TFDS's warnings, such as its advice to install OpenCV."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)
