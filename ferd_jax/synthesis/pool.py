"""The pool of synthetic images: every round's join it, none is removed.

It lives in host memory (`device_pool` has it on the devices, too), and on disk
as one file per epoch, so that saving an epoch costs the same at the end of a
run as at its start.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import parallel as parallels
from ferd_jax.core import validate

DTYPES = ('float32', 'uint8')


class DamagedPool(OSError):
  """A file of the pool that is not what an epoch wrote.

  Attributes:
    epoch: whose file it is.
  """

  def __init__(self, path: epath.Path, epoch: int, reason: str):
    super().__init__(f'Cannot read {path}: {reason}.')
    self.epoch = epoch


@dataclasses.dataclass
class Pool:
  """Synthetic images and the labels they were made for.

  Attributes:
    images: `[capacity, H, W, C]`, float32 in [0, 1], or uint8 in 0..255.
    labels: int32 `[capacity]`; kept also where the teacher disagrees.
    count: how many are filled.
  """
  images: np.ndarray
  labels: np.ndarray
  count: int = 0

  @classmethod
  def empty(cls, capacity: int, image_shape: tuple[int, ...],
            dtype: str = 'float32') -> 'Pool':
    """Returns a pool for `capacity` images; nothing is copied as it fills."""
    validate.one_of(DTYPES, dtype=dtype)
    return cls(images=np.zeros((capacity, *image_shape), dtype),
               labels=np.zeros(capacity, np.int32))

  def append(self, images: np.ndarray, labels: np.ndarray) -> None:
    """Adds images `[B, H, W, C]`, float in [0, 1], and labels `[B]`.

    Raises:
      FloatingPointError: for images that are not finite: as uint8 they would
        look like others.
    """
    if not np.isfinite(images).all():
      raise FloatingPointError('Not finite: synthetic images.')
    if self.images.dtype == np.uint8:
      images = np.round(np.asarray(images) * 255)
    new = slice(self.count, self.count + len(labels))
    self.images[new], self.labels[new] = images, labels
    self.count += len(labels)

  def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float32 in [0, 1] and labels at the indices."""
    images = self.images[index]
    if images.dtype == np.uint8:
      images = images.astype(np.float32) / 255
    return images, self.labels[index]

  def batches(self, key: jax.Array, batch_size: int,
              num_batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of the whole pool, reshuffled whenever exhausted.

    Args:
      key: typed PRNG key that their order follows from.
      batch_size: images of a batch.
      num_batches: how many.
    """
    for index in index_plan(key, self.count, len(self.labels), batch_size,
                            num_batches):
      yield self.take(index)

  def placed(self, key: jax.Array, batch_size: int, num_batches: int,
             parallel: parallels.Parallel) -> Iterator[tuple[Any, Any]]:
    """Yields the same batches, each placed with its examples over devices.

    Args:
      key: as for `batches`.
      batch_size: as there.
      num_batches: as there.
      parallel: the device mapping.
    """
    for batch in self.batches(key, batch_size, num_batches):
      yield parallel.shard(batch)

  def save_last(self, directory: epath.Path, epoch: int, size: int) -> None:
    """Writes the last `size` images as the file of `epoch`, atomically."""
    last = slice(self.count - size, self.count)
    with atomic.writing(_file(directory, epoch)) as file:
      np.savez(file, images=self.images[last], labels=self.labels[last])

  def last_digest(self, size: int) -> str:
    """Returns the digest of the last `size` images and their labels."""
    last = slice(self.count - size, self.count)
    found = hashlib.sha256(np.ascontiguousarray(self.images[last]))
    found.update(np.ascontiguousarray(self.labels[last]))
    return found.hexdigest()

  def restore(self, directory: epath.Path, num_epochs: int, size: int,
              num_classes: int, digests: Sequence[str] = ()) -> list[str]:
    """Fills an empty pool from the files of epochs 1..num_epochs.

    Args:
      directory: with the files.
      num_epochs: how many.
      size: images of each epoch.
      num_classes: K; labels are below.
      digests: of the first epochs, as `last_digest` returned them then.

    Returns:
      The digests of all these epochs.

    Raises:
      DamagedPool: if one cannot be read, or is of another number, shape or
        type of images, or has labels of other classes or another digest.
    """
    self.count, found = 0, []
    for epoch in range(1, num_epochs + 1):
      path = _file(directory, epoch)
      try:
        with path.open('rb') as file:
          arrays = np.load(file)
          images, labels = arrays['images'], arrays['labels']
      except FileNotFoundError:
        raise DamagedPool(path, epoch, 'there is no such file') from None
      except Exception as error:  # zipfile, zlib and NumPy have their own.
        raise DamagedPool(path, epoch, errors.reason(error)) from error
      wrong = self._wrong(images, labels, size, num_classes)
      if wrong:
        raise DamagedPool(path, epoch, wrong)
      new = slice(self.count, self.count + size)
      self.images[new], self.labels[new] = images, labels
      self.count += size
      found.append(self.last_digest(size))
      if epoch <= len(digests) and found[-1] != digests[epoch - 1]:
        raise DamagedPool(path, epoch, 'these are not the images that epoch '
                          f'{epoch} made')
    return found

  def _wrong(self, images, labels, size, num_classes):
    """Returns what is wrong with an epoch's arrays, or nothing."""
    if images.dtype != self.images.dtype:
      return (f'its images are of type {images.dtype}, those of this run '
              f'{self.images.dtype}')
    shape = (size, *self.images.shape[1:])
    if images.shape != shape:
      return (f'its images have the shape {images.shape}, those of an epoch of '
              f'this run {shape}')
    if labels.dtype != self.labels.dtype or labels.shape != (size,):
      return (f'its labels are {labels.dtype} of shape {labels.shape}, those '
              f'of this run {self.labels.dtype} of shape {(size,)}')
    if labels.min() < 0 or labels.max() >= num_classes:
      return (f'it has labels from {labels.min()} to {labels.max()}, expected '
              f'0 to {num_classes - 1}')
    if not np.isfinite(images).all():
      return 'it has images that are not finite'
    return ''


def index_plan(key: jax.Array, count: int, capacity: int, batch_size: int,
               num_batches: int,
               weights: np.ndarray | None = None) -> np.ndarray:
  """Returns indices `[num_batches, batch_size]` that pass over the pool.

  Permutations of the pool, one after the other, cut into batches: every image
  is drawn floor or ceil of `num_batches * batch_size / count` times. Each
  permutation sorts random numbers, one for each place of the pool, that only
  the key decides: wherever a pool is kept, its order is the same.

  With weights an image is drawn in proportion to its own. Its nth turn, from
  0, comes at the time `(n + u) / weight`, u uniform in [0, 1): equal weights
  give permutations one after the other again, the same ones.

  Args:
    key: typed PRNG key.
    count: images in the pool.
    capacity: for how many there is place; what is drawn has this fixed size,
      so that no epoch compiles again.
    batch_size: images of a batch.
    num_batches: how many.
    weights: `[count]`, at least 0, not all 0; None for equal ones.
  """
  total = num_batches * batch_size
  def numbers(turn):
    return np.asarray(_numbers(jax.random.fold_in(key, turn), capacity))[:count]
  if weights is None:
    passes = -(-total // count)
    order = np.concatenate([np.argsort(numbers(turn), kind='stable')
                            for turn in range(passes)])
    return order[:total].reshape(num_batches, batch_size)
  # By the time `until` an image has had `floor(until * weight)` turns or more:
  # all together enough.
  weights = np.asarray(weights, np.float64) / np.max(weights)
  until = (total + count) / np.sum(weights)
  indices, times = [], []
  for turn in range(int(np.ceil(until))):
    due, = np.nonzero(until * weights > turn)
    indices.append(due)
    times.append((turn + numbers(turn)[due] / 2 ** 32) / weights[due])
  order = np.argsort(np.concatenate(times), kind='stable')[:total]
  return np.concatenate(indices)[order].reshape(num_batches, batch_size)


@functools.partial(jax.jit, static_argnums=1)
def _numbers(key, capacity):
  return jax.random.bits(key, (capacity,))


def _file(directory: epath.Path, epoch: int) -> epath.Path:
  return directory / f'epoch_{epoch:05d}.npz'
