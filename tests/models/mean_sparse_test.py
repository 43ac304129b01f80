"""Tests of ferd_jax.models.mean_sparse; torch_io_test compares networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax.models import mean_sparse

VARIABLES = {mean_sparse.COLLECTION: {
    'mean': jnp.array([1., 0.]), 'var': jnp.array([4., 1.]),
    'threshold': jnp.array(0.5)}}


@pytest.mark.parametrize('straight', [False, True])
def test_what_is_near_the_mean_becomes_it(straight):
  layer = mean_sparse.MeanSparse(straight)
  x = jnp.array([[0.3, 0.6], [1.9, -0.4], [2.1, 0.5]])
  found, pull_back = jax.vjp(lambda x: layer.apply(VARIABLES, x), x)
  # Less than 1 from 1, less than 0.5 from 0.
  expected = np.array([[1., 0.6], [1., 0.], [2.1, 0.5]], np.float32)
  np.testing.assert_array_equal(found, expected)
  gradient, = pull_back(jnp.ones_like(x))
  np.testing.assert_array_equal(
      gradient, 1. if straight else (expected == np.asarray(x)))


def test_a_threshold_of_0_changes_nothing():
  variables = {mean_sparse.COLLECTION: VARIABLES[mean_sparse.COLLECTION] | {
      'threshold': jnp.array(0.)}}
  x = jnp.array([[1., 0.], [1.1, -0.1]])
  np.testing.assert_array_equal(
      mean_sparse.MeanSparse().apply(variables, x), x)
  # So it is for networks that are drawn, not read.
  model = models.build('meansparse_dm_wrn_10_1', 3, width=4)
  drawn = models.init_variables(model, jax.random.key(0), (8, 8, 1))
  plain = models.build('dm_wrn_10_1', 3, width=4)
  images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
  np.testing.assert_array_equal(
      model.apply(drawn, images), plain.apply(
          {name: drawn[name] for name in ('params', 'batch_stats')}, images))


def test_doubt():
  build = models.build
  assert 'AutoAttack overrate' in mean_sparse.doubt(
      build('meansparse_dm_wrn_10_1', 3))
  for model in (build('meansparse_ra_wrn_1_1_1', 3, straight_through=True),
                build('dm_wrn_10_1', 3), build('resnet18', 3)):
    assert mean_sparse.doubt(model) is None
