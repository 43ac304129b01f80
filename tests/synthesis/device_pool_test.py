"""Pools on the devices give the batches of one in host memory, bit for bit."""

from etils import epath
import jax
import numpy as np
import pytest

from ferd_jax.core import parallel as parallels
from ferd_jax.synthesis import device_pool
from ferd_jax.synthesis import pool as pools

_SHAPE = (4, 4, 1)


def _new(seed, size=8):
  rng = np.random.default_rng(seed)
  return (rng.uniform(size=(size, *_SHAPE)).astype(np.float32),
          rng.integers(0, 10, size).astype(np.int32))


def _assert_same(pool, expected, parallel, seed, number=5):
  key = jax.random.key(seed)
  for found, batch in zip(pool.placed(key, 4, number, parallel),
                          expected.batches(key, 4, number), strict=True):
    for one, other in zip(parallel.gather(found), batch, strict=True):
      assert one.dtype == other.dtype
      np.testing.assert_array_equal(one, other)


# Seven devices would divide no batch; 18 places leave some of four's empty.
@pytest.mark.parametrize('dtype', pools.DTYPES)
@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
@pytest.mark.parametrize('place', ['replicated', 'sharded'])
def test_batches_are_those_of_host_memory(place, mode, dtype, tmp_path):
  parallel = parallels.create(mode, tuple(jax.devices()))
  pool = device_pool.create(place, 18, _SHAPE, dtype, parallel)
  expected = pools.Pool.empty(18, _SHAPE, dtype)
  for epoch in range(2):
    for each in (pool, expected):
      each.append(*_new(epoch))
      each.save_last(epath.Path(tmp_path), epoch + 1, 8)
    _assert_same(pool, expected, parallel, epoch)
  # As a run that goes on fills it.
  for each in (pool, expected):
    each.append(*_new(5, 2))
    each.restore(epath.Path(tmp_path), 1, 8, 10)
  assert pool.count == 8
  _assert_same(pool, expected, parallel, 7)


def test_all_bytes_are_the_same_numbers():
  parallel = parallels.create('jit')
  pool = device_pool.create('replicated', 16, _SHAPE, 'uint8', parallel)
  pool.append(np.arange(256, dtype=np.float32).reshape(16, *_SHAPE) / 255,
              np.zeros(16, np.int32))
  expected = pools.Pool(pool.images, pool.labels, 16)
  _assert_same(pool, expected, parallel, 0, number=4)


def test_nothing_compiles_again_and_parts_are_parts():
  parallel = parallels.create('shard_map', tuple(jax.devices()))
  pool = device_pool.create('sharded', 16, _SHAPE, 'float32', parallel)
  for epoch in range(2):
    pool.append(*_new(epoch))
    list(pool.placed(jax.random.key(0), 4, 2, parallel))
  assert pool._gather._cache_size() == pool._put._cache_size() == 1
  images, _ = pool._stored
  assert images.addressable_shards[0].data.shape == (4, *_SHAPE)
  assert device_pool.create('host', 4, _SHAPE, 'uint8', parallel).images.nbytes


@pytest.mark.parametrize('place', ['replicated', 'sharded'])
def test_a_run_that_goes_on_sends_an_epoch_at_a_time(place, tmp_path,
                                                     monkeypatch):
  # A whole pool at once would be on every device before it is in parts.
  parallel = parallels.create('shard_map', tuple(jax.devices()))
  kept = pools.Pool.empty(32, _SHAPE)
  for epoch in range(3):
    kept.append(*_new(epoch))
    kept.save_last(epath.Path(tmp_path), epoch + 1, 8)
  pool = device_pool.create(place, 32, _SHAPE, 'float32', parallel)
  sent, replicate = [], parallels.Parallel.replicate
  def noting(self, tree):
    if isinstance(tree, tuple):
      sent.append(len(tree[1]))
    return replicate(self, tree)
  monkeypatch.setattr(parallels.Parallel, 'replicate', noting)
  pool.restore(epath.Path(tmp_path), 3, 8, 10)
  list(pool.placed(jax.random.key(0), 4, 1, parallel))
  pool.append(*_new(3))
  list(pool.placed(jax.random.key(0), 4, 1, parallel))
  assert sent[place == 'replicated':] == [8, 8, 8, 8]  # after empty places
  assert pool._put._cache_size() == 1


def test_host_memory_is_the_default():
  pool = device_pool.create('host', 4, _SHAPE, 'float32',
                            parallels.create('jit'))
  assert type(pool) is pools.Pool
