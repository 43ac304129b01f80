"""Tests of ferd_jax.attacks.bisection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import bisection


@functools.partial(jax.jit, static_argnums=1)
def kth_largest(values, k):
  return bisection.first(
      lambda level: jnp.sum(values > level[:, None], axis=-1) < k,
      jnp.max(values, axis=-1))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_order_statistics(dtype):
  rng = np.random.default_rng(0)
  values = np.abs(rng.normal(size=(8, 30))
                  * 10. ** rng.integers(-30, 30, (8, 1))).astype(dtype)
  values[1:3] = np.round(values[1:3])  # Many ties.
  values[3] = 0
  values[4, 5:] = 0
  with jax.enable_x64(dtype == np.float64):
    for k in (1, 2, 7, 30):
      got = kth_largest(values, k)
      assert got.dtype == dtype
      np.testing.assert_array_equal(got, np.sort(values, axis=-1)[:, -k])


def test_levels_between_numbers():
  # The lowest float whose square, as computed, is at least the number.
  numbers = np.array([2., 1e-30, 9., 3e30], np.float32)
  root = jax.jit(lambda x: bisection.first(
      lambda level: level * level >= x, jnp.maximum(x, 1)))
  got = np.asarray(root(numbers))
  assert (got * got >= numbers).all()
  below = np.nextafter(got, np.float32(0))
  assert (below * below < numbers).all()
  assert got[2] == 3


def test_condition_that_always_holds():
  highest = jnp.array([3., 0.])
  got = bisection.first(lambda level: level >= 0, highest)
  np.testing.assert_array_equal(got, [0, 0])
