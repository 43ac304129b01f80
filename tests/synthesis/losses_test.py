"""Tests of ferd_jax.synthesis.losses against NumPy and closed forms."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.synthesis import losses


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


# One compilation is faster than one for each operation.
def grad(function):
  return jax.jit(jax.grad(function))


def vmap(function, **options):
  return jax.jit(jax.vmap(function, **options))


def draw(*shape, seed=0, scale=2.):
  return np.random.default_rng(seed).normal(0, scale, shape)


def moments(x):
  return {'mean': x.mean(0), 'var': x.var(0)}


def two_layers(x, z):
  return {'bn': moments(x), 'block': {'bn1': moments(z)}}


def running_stats(seed=3):
  rng = np.random.default_rng(seed)
  def layer(channels):
    return {'mean': rng.normal(size=channels),
            'var': rng.uniform(0.5, 2, channels)}
  return {'bn': layer(3), 'block': {'bn1': layer(4), 'bn2': layer(4)}}


def test_moment_gap_sums_the_norms_of_all_layers():
  x, z, running = draw(8, 3), draw(8, 4, seed=1), running_stats()
  pairs = ((x, running['bn']), (z, running['block']['bn1']))
  expected = sum(np.sqrt(((stats['var'] - a.var(0)) ** 2).sum())
                 + np.sqrt(((stats['mean'] - a.mean(0)) ** 2).sum())
                 for a, stats in pairs)
  np.testing.assert_allclose(losses.moment_gap(two_layers(x, z), running),
                             expected)


def test_moment_gap_and_its_gradient_are_zero_at_equality():
  stats = running_stats()
  value, gradient = jax.jit(jax.value_and_grad(losses.moment_gap))(
      stats, stats)
  assert value == 0
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_gradient_of_moment_gap_has_unit_norm():
  x, running = draw(8, 3), running_stats()
  gradient = grad(losses.moment_gap)({'bn': moments(x)}, running)['bn']
  gap = x.mean(0) - running['bn']['mean']
  np.testing.assert_allclose(gradient['mean'], gap / np.linalg.norm(gap))
  np.testing.assert_allclose(np.linalg.norm(gradient['var']), 1)


def test_moment_gap_of_shards_equals_that_of_the_batch():
  # The means of the shards differ much more than the values within them.
  offset = np.repeat([[-9.], [0.], [5.]], 4, axis=0)
  x, z, running = draw(12, 3) + offset, draw(12, 4, seed=1), running_stats()

  def shard_gap(x, z):
    return losses.moment_gap(two_layers(x, z), running, axis_name='i')
  got = vmap(shard_gap, axis_name='i')(x.reshape(3, 4, 3),
                                           z.reshape(3, 4, 4))
  expected = losses.moment_gap(two_layers(x, z), running)
  np.testing.assert_allclose(got, [expected] * 3)


def test_moment_gap_of_shards_does_not_cancel_in_float32():
  x = np.float32(draw(12, 3) + 1000)
  running = jax.tree.map(np.float32, running_stats())
  got = vmap(
      lambda x: losses.moment_gap({'bn': moments(x)}, running, axis_name='i'),
      axis_name='i')(jnp.asarray(x.reshape(3, 4, 3)))
  exact = x.astype(np.float64)
  np.testing.assert_allclose(
      got[0], losses.moment_gap({'bn': moments(exact)}, running_stats()),
      rtol=1e-5)
