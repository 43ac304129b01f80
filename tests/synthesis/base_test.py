"""Tests of ferd_jax.synthesis.base: rounds, sums per class, specs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferd_jax.core import parallel
from ferd_jax.synthesis import base


def test_class_sums():
  labels = np.array([0, 2, 2, 0, 2, 1])
  values = np.arange(1, 7, dtype=np.float32)
  got = base.class_sums(values, labels, 4)
  np.testing.assert_allclose(got.values, [5, 6, 10, 0])
  np.testing.assert_array_equal(got.counts, [2, 1, 3, 0])
  # Every shard has those of the whole batch.
  shards = jax.vmap(
      lambda values, labels: base.class_sums(values, labels, 4, axis_name='i'),
      axis_name='i')(values.reshape(2, 3), labels.reshape(2, 3))
  for shard in range(2):
    np.testing.assert_allclose(shards.values[shard], got.values)
    np.testing.assert_array_equal(shards.counts[shard], got.counts)


def test_arrays_per_example_are_sharded():
  latents = jnp.zeros((4, 3))
  state = optax.adam(1.).init(latents)
  found = base.per_example(state)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  assert found[0].mu is found[0].nu is parallel.SHARDED
  assert found[0].count is parallel.REPLICATED


@pytest.mark.parametrize(('options', 'message'), [
    ({'generator_steps': 0}, '^Expected steps=0'),
    ({'student_steps': 0}, 'student_steps=0'),
    ({'per_epoch': 0}, 'rounds=0'), ({'per_epoch': 1.5}, 'rounds=1.5')])
def test_invalid_rounds(options, message):
  with pytest.raises(ValueError, match=message):
    base.Rounds(**{'generator_steps': 1, 'student_steps': 1} | options)


def test_real_images_need_no_generator_steps():
  assert not base.Rounds(0, 1, reads_data=True).generator_steps
  with pytest.raises(ValueError, match='^Expected steps=-1'):
    base.Rounds(-1, 1, reads_data=True)
