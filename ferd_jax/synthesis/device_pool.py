"""A pool whose images are on the devices, too, where batches are gathered.

Host memory stays its record, from which checkpoints are written; no image goes
to a device more than once, and none with a student's step.
"""

from collections.abc import Iterator
import functools
from typing import Any

from etils import epath
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ferd_jax.core import collectives
from ferd_jax.core import parallel as parallels
from ferd_jax.synthesis import pool as pools

HOST, REPLICATED, SHARDED = 'host', 'replicated', 'sharded'
PLACES = (HOST, REPLICATED, SHARDED)
_R, _S = parallels.REPLICATED, parallels.SHARDED


def create(place: str, capacity: int, image_shape: tuple[int, ...], dtype: str,
           parallel: parallels.Parallel) -> pools.Pool:
  """Returns an empty pool.

  Args:
    place: of `PLACES`.
    capacity: images that there is place for.
    image_shape: (H, W, C).
    dtype: of `pools.DTYPES`.
    parallel: the device mapping.
  """
  if place == HOST:
    return pools.Pool.empty(capacity, image_shape, dtype)
  return DevicePool(
      pools.Pool.empty(capacity, image_shape, dtype), parallel,
      sharded=place == SHARDED and parallel.num_devices > 1)


class DevicePool(pools.Pool):
  """A pool on the devices: the whole of it on each, or a part.

  Its batches are those of a pool in host memory, bit for bit.
  """

  def __init__(self, pool: pools.Pool, parallel: parallels.Parallel,
               sharded: bool):
    """Takes over a pool.

    Args:
      pool: the record in host memory.
      parallel: the device mapping.
      sharded: whether each device has its part of the places.
    """
    super().__init__(pool.images, pool.labels, pool.count)
    self._parallel, self._sharded = parallel, sharded
    self._stored, self._sent, self._piece = None, 0, None
    spec = _S if sharded else _R
    self._put = parallel.compile(
        functools.partial(_put, sharded), (spec, _R, _R), spec, donate=(0,))
    self._gather = parallel.compile(
        functools.partial(_gather, sharded), (spec, _R if sharded else _S), _S)

  def restore(self, directory: epath.Path, num_epochs: int, size: int,
              *args: Any, **kwargs: Any) -> list[str]:
    """Does what `Pool.restore` does."""
    self._sent, self._piece = 0, size
    return super().restore(directory, num_epochs, size, *args, **kwargs)

  def placed(self, key: jax.Array, batch_size: int, num_batches: int,
             parallel: parallels.Parallel) -> Iterator[tuple[Any, Any]]:
    """Yields the batches of `Pool.placed`, gathered on the devices."""
    del parallel  # It is that of this pool.
    self._send()
    place = (self._parallel.replicate if self._sharded else
             self._parallel.shard)
    for index in pools.index_plan(key, self.count, len(self.labels),
                                  batch_size, num_batches):
      yield self._gather(self._stored, place(index.astype(np.int32)))

  def _send(self):
    """Puts the images that the devices do not have yet."""
    if self._stored is None:
      # A part for each device, some of whose places may stay empty.
      places = len(self.labels) + -len(self.labels) % (
          self._parallel.num_devices if self._sharded else 1)
      empty = (np.zeros((places, *self.images.shape[1:]), self.images.dtype),
               np.zeros(places, np.int32))
      self._stored = (self._parallel.shard(empty) if self._sharded else
                      self._parallel.replicate(empty))
    while self._sent < self.count:
      # What is sent is on every device for a moment: after a restart no more
      # than in an epoch.
      new = slice(self._sent, min(self.count, self._sent + (
          self._piece or self.count)))
      self._stored = self._put(self._stored, self._parallel.replicate(
          (self.images[new], self.labels[new])), self._parallel.replicate(
              np.int32(self._sent)))
      self._sent = new.stop


def _put(sharded, stored, new, first, *, axis_name=None):
  """Returns images and labels `[N, ...]` with new ones from a place on."""
  count = len(new[1])
  if not sharded or axis_name is None:
    return jax.tree.map(
        lambda old, fresh: lax.dynamic_update_slice_in_dim(old, fresh, first,
                                                           0), stored, new)
  places = collectives.example_indices(len(stored[1]), axis_name) - first
  is_new = (places >= 0) & (places < count)
  def choose(old, fresh):
    flags = jnp.reshape(is_new, (-1,) + (1,) * (old.ndim - 1))
    return jnp.where(flags, fresh[jnp.clip(places, 0, count - 1)], old)
  return jax.tree.map(choose, stored, new)


def _gather(sharded, stored, index, *, axis_name=None):
  """Returns this shard's images, float32 in [0, 1], and labels of a batch."""
  if not sharded or axis_name is None:
    images, labels = (each[index] for each in stored)
  else:
    count = len(stored[1])
    places = index - collectives.example_indices(count, axis_name)[0]
    is_here = (places >= 0) & (places < count)
    def found(each):
      flags = jnp.reshape(is_here, (-1,) + (1,) * (each.ndim - 1))
      # Zeros are added to what one of the shards has.
      return lax.psum_scatter(
          jnp.where(flags, each[jnp.clip(places, 0, count - 1)], 0),
          axis_name, tiled=True)
    images, labels = map(found, stored)
  if images.dtype == jnp.uint8:
    # A table, as compilers multiply instead of dividing.
    images = jnp.asarray(np.arange(256, dtype=np.float32) / 255)[images]
  return images, labels
