"""Tests of ferd_jax.core.class_sums: over shards, means, absent classes."""

import jax
import numpy as np

from ferd_jax.core import class_sums


def test_sums_over_a_batch():
  labels = np.array([0, 2, 2, 0, 2, 1])
  values = np.arange(1, 7, dtype=np.float32)
  got = class_sums.over_batch(values, labels, 4)
  np.testing.assert_allclose(got.values, [5, 6, 10, 0])
  np.testing.assert_array_equal(got.counts, [2, 1, 3, 0])
  # Every shard has those of the whole batch.
  shards = jax.vmap(
      lambda values, labels: class_sums.over_batch(
          values, labels, 4, axis_name='i'),
      axis_name='i')(values.reshape(2, 3), labels.reshape(2, 3))
  for shard in range(2):
    np.testing.assert_allclose(shards.values[shard], got.values)
    np.testing.assert_array_equal(shards.counts[shard], got.counts)


def test_means_of_an_epoch():
  first = class_sums.over_batch(np.float32([1, 2, 6]), np.array([0, 0, 2]), 4)
  second = class_sums.over_batch(np.float32([3, 0]), np.array([0, 2]), 4)
  total = class_sums.add(class_sums.add(class_sums.zeros(4), first), second)
  np.testing.assert_allclose(total.means(-1.), [2, -1, 3, -1])
  np.testing.assert_allclose(total.means(np.arange(4.)), [2, 1, 3, 3])
