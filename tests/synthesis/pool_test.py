"""Tests of ferd_jax.synthesis.pool."""

from etils import epath
import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from ferd_jax.synthesis import pool as pools

SHAPE = (4, 4, 1)
CAPACITY = 48


def plan_of(seed, count, batch_size, num_batches, capacity=CAPACITY):
  return pools.index_plan(jax.random.key(seed), count, capacity, batch_size,
                          num_batches)


def draw(size, seed):
  rng = np.random.default_rng(seed)
  return (rng.uniform(size=(size, *SHAPE)).astype(np.float32),
          rng.integers(0, 10, size))


def restore(pool, directory, num_epochs, size=3, **options):
  return pool.restore(epath.Path(directory), num_epochs, size, 10, **options)


def filled(epochs, size, dtype='float32', capacity=None):
  pool = pools.Pool.empty(capacity or epochs * size, SHAPE, dtype)
  for epoch in range(epochs):
    pool.append(*draw(size, epoch))
  return pool


def test_grows_by_a_batch_an_epoch_and_keeps_the_first_images():
  pool = pools.Pool.empty(15, SHAPE)
  storage = pool.images
  for epoch in range(5):
    pool.append(*draw(3, epoch))
    assert pool.count == 3 * (epoch + 1)
  assert pool.images is storage  # Nothing was copied.
  for epoch in range(5):
    images, labels = pool.take(np.arange(3 * epoch, 3 * epoch + 3))
    expected_images, expected_labels = draw(3, epoch)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
  assert images.dtype == np.float32 and labels.dtype == np.int32


def test_a_full_pool_takes_no_more():
  pool = filled(2, 3)
  with pytest.raises(ValueError):
    pool.append(*draw(3, 9))
  assert pool.count == 6


@pytest.mark.parametrize('dtype', pools.DTYPES)
def test_images_stay_in_range(dtype):
  pool = pools.Pool.empty(2, SHAPE, dtype)
  pool.append(np.stack([np.zeros(SHAPE), np.ones(SHAPE)]), np.arange(2))
  images, _ = pool.take(np.arange(2))
  assert images.dtype == np.float32
  np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1])
  images, _ = filled(1, 8, dtype).take(np.arange(8))
  assert 0 <= images.min() < 0.1 and 0.9 < images.max() <= 1


def test_uint8_rounds_to_the_nearest_level():
  values = np.array([0.4, 0.6, 1.4, 254.4, 254.6], np.float32) / 255
  pool = pools.Pool.empty(5, (1, 1, 1), 'uint8')
  pool.append(values.reshape(5, 1, 1, 1), np.zeros(5))
  np.testing.assert_array_equal(pool.images.ravel(), [0, 1, 1, 254, 255])
  exact = draw(8, 0)[0]
  rounded, _ = filled(1, 8, 'uint8').take(np.arange(8))
  assert np.abs(rounded - exact).max() <= 0.5 / 255 + 1e-7


def test_unknown_dtype():
  with pytest.raises(ValueError, match="dtype='float16'"):
    pools.Pool.empty(2, SHAPE, 'float16')


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(count=st.integers(1, 40), batch_size=st.integers(1, 50),
                  num_batches=st.integers(1, 12))
def test_plan_draws_every_image_floor_or_ceil_times(count, batch_size,
                                                    num_batches):
  plan = plan_of(0, count, batch_size, num_batches)
  assert plan.shape == (num_batches, batch_size)
  times = np.bincount(plan.ravel(), minlength=count)
  assert len(times) == count
  assert set(times) <= {plan.size // count, -(-plan.size // count)}
  for first in range(0, plan.size - count + 1, count):
    one_pass = plan.ravel()[first:first + count]
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(count))


def test_plan_reshuffles_each_pass_and_depends_on_the_key_only():
  plan = plan_of(0, 20, 10, 4)
  first, second = plan.reshape(2, 20)
  assert not np.array_equal(first, second)
  assert not np.array_equal(first, np.arange(20))
  np.testing.assert_array_equal(plan_of(0, 20, 10, 4), plan)
  # Neither how the passes are cut, nor how much place there is left.
  np.testing.assert_array_equal(plan_of(0, 20, 5, 8), plan.reshape(8, 5))
  np.testing.assert_array_equal(plan_of(0, 20, 10, 6)[:4], plan)
  for capacity in (20, 21, 64):
    np.testing.assert_array_equal(plan_of(0, 20, 10, 4, capacity), plan)
  assert not np.array_equal(plan_of(1, 20, 10, 4), plan)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    weights=st.lists(st.sampled_from([0., 0.01, 0.3, 1., 7.]), min_size=1,
                     max_size=CAPACITY).filter(any),
    batch_size=st.integers(1, 50), num_batches=st.integers(1, 6))
def test_plan_draws_images_by_their_weights(weights, batch_size, num_batches):
  plan = pools.index_plan(jax.random.key(0), len(weights), CAPACITY, batch_size,
                          num_batches, np.array(weights))
  assert plan.shape == (num_batches, batch_size)
  times = np.bincount(plan.ravel(), minlength=len(weights))
  # At every moment two images had turns in proportion, but for a turn each.
  for weight, turns in zip(weights, times, strict=True):
    for other, others in zip(weights, times, strict=True):
      assert (turns - 1) * other <= (others + 1) * weight + 1e-9
      assert weight or not turns


@pytest.mark.parametrize('weight', [0.1, 1, 3.])
def test_equal_weights_are_none(weight):
  plan = pools.index_plan(jax.random.key(0), 20, CAPACITY, 7, 9,
                          np.full(20, weight))
  np.testing.assert_array_equal(plan, plan_of(0, 20, 7, 9))


def test_every_image_may_stand_everywhere():
  # Not a rotation, nor any other few of the permutations.
  found = {tuple(plan_of(seed, 3, 3, 1)[0]) for seed in range(60)}
  assert len(found) == 6


def test_plan_compiles_nothing_as_the_pool_fills(caplog):
  plan_of(0, 1, 5, 3)
  with jax.log_compiles():
    for count in (2, 17, CAPACITY):
      plan_of(1, count, 7, 4)
    assert not caplog.messages
    plan_of(0, 1, 5, 3, CAPACITY + 1)
    assert caplog.messages  # What compiles is seen here.


def test_batches_cover_the_filled_part():
  pool = filled(2, 3, capacity=30)
  batches = list(pool.batches(jax.random.key(0), 4, 3))
  assert [images.shape for images, _ in batches] == [(4, *SHAPE)] * 3
  images = np.concatenate([images for images, _ in batches])
  labels = np.concatenate([labels for _, labels in batches])
  for i in range(6):
    same = (images == pool.images[i]).all((1, 2, 3))
    assert same.sum() == 2
    assert (labels[same] == pool.labels[i]).all()


@pytest.mark.parametrize('dtype', pools.DTYPES)
def test_restored_pool_equals_the_saved_one(tmp_path, dtype):
  directory = epath.Path(tmp_path) / 'pool'
  pool = pools.Pool.empty(12, SHAPE, dtype)
  for epoch in (1, 2, 3):
    pool.append(*draw(3, epoch))
    pool.save_last(directory, epoch, 3)
  restored = pools.Pool.empty(12, SHAPE, dtype)
  restore(restored, directory, 3)
  assert restored.count == 9
  np.testing.assert_array_equal(restored.images, pool.images)
  np.testing.assert_array_equal(restored.labels, pool.labels)
  # An older epoch, as after a checkpoint that was not the last.
  earlier = pools.Pool.empty(12, SHAPE, dtype)
  restore(earlier, directory, 2)
  assert earlier.count == 6
  np.testing.assert_array_equal(earlier.images[:6], pool.images[:6])
  earlier.append(*draw(3, 3))
  np.testing.assert_array_equal(earlier.images, pool.images)


def test_saved_files_do_not_grow_with_the_pool(tmp_path):
  directory = epath.Path(tmp_path)
  pool = pools.Pool.empty(30, SHAPE)
  for epoch in range(1, 11):
    pool.append(*draw(3, epoch))
    pool.save_last(directory, epoch, 3)
  sizes = {path.stat().st_size for path in tmp_path.iterdir()}
  assert len(list(tmp_path.iterdir())) == 10  # No partial file is left.
  assert len(sizes) == 1


def test_saving_an_epoch_again_replaces_its_file(tmp_path):
  directory = epath.Path(tmp_path)
  for seed in (1, 2):
    pool = pools.Pool.empty(3, SHAPE)
    pool.append(*draw(3, seed))
    pool.save_last(directory, 1, 3)
  restored = pools.Pool.empty(3, SHAPE)
  restore(restored, directory, 1)
  np.testing.assert_array_equal(restored.images, draw(3, 2)[0])


def _restore_one(path, error, **options):
  with pytest.raises(pools.DamagedPool, match=error) as raised:
    restore(pools.Pool.empty(6, SHAPE), path, 2, **options)
  assert 'epoch_00002' in str(raised.value) and raised.value.epoch == 2


def _two_epochs(path):
  """Writes two epochs and returns their digests and the second file."""
  pool, digests = pools.Pool.empty(6, SHAPE), []
  for epoch in (1, 2):
    pool.append(*draw(3, epoch))
    pool.save_last(epath.Path(path), epoch, 3)
    digests.append(pool.last_digest(3))
  return digests, path / 'epoch_00002.npz'


def test_missing_epoch(tmp_path):
  filled(1, 3).save_last(epath.Path(tmp_path), 1, 3)
  _restore_one(tmp_path, 'there is no such file')


def test_damaged_file_is_named(tmp_path):
  _, path = _two_epochs(tmp_path)
  path.write_bytes(path.read_bytes()[:200])
  _restore_one(tmp_path, 'Cannot read ')


@pytest.mark.parametrize(('changes', 'error'), [
    (lambda images, labels: (images[:2], labels[:2]), r'\(2, 4, 4, 1\).*\(3'),
    (lambda images, labels: (images.astype(np.float64), labels), 'float64'),
    (lambda images, labels: (images[..., 0], labels), r'shape \(3, 4, 4\)'),
    (lambda images, labels: (images, labels + 99), 'labels from .* 0 to 9'),
    (lambda images, labels: (images, labels - 20), 'labels from -'),
    (lambda images, labels: (images, labels.astype(float)), 'labels are float'),
    (lambda images, labels: (images, labels[:, None]), r'shape \(3, 1\)'),
    (lambda images, labels: (images * np.float32(np.nan), labels), 'finite'),
    (lambda images, labels: (images / 2, labels), 'not the images that ep'),
    (lambda images, labels: (images, labels[::-1]), 'not the images that')])
def test_wrong_file_is_named(tmp_path, changes, error):
  digests, path = _two_epochs(tmp_path)
  with np.load(path) as arrays:
    images, labels = changes(arrays['images'], arrays['labels'])
  np.savez(path, images=images, labels=labels)
  _restore_one(tmp_path, error, digests=digests)


def test_digests_of_a_restored_pool(tmp_path):
  digests, _ = _two_epochs(tmp_path)
  assert len(set(digests)) == 2
  assert restore(pools.Pool.empty(6, SHAPE), tmp_path, 2) == digests


@pytest.mark.parametrize('dtype', pools.DTYPES)
def test_images_that_are_not_finite_do_not_join(dtype):
  pool = pools.Pool.empty(3, SHAPE, dtype)
  images, labels = draw(3, 0)
  images[1, 0, 0, 0] = np.nan
  with pytest.raises(FloatingPointError, match='synthetic images'):
    pool.append(images, labels)
  assert pool.count == 0
