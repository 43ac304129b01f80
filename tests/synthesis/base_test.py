"""Tests of ferd_jax.synthesis.base: rounds and specs."""

import jax
import jax.numpy as jnp
import optax
import pytest

from ferd_jax.core import parallel
from ferd_jax.synthesis import base


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
