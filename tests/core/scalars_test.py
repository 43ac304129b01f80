"""Tests of ferd_jax.core.scalars: the metrics of a step in one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.core import parallel
from ferd_jax.core import scalars


def test_values_come_back_by_name():
  found = scalars.Scalars.of({'loss': jnp.float32(0.25), 'agreement': 1.,
                              'count': jnp.int32(7), 'right': jnp.bool_(True)})
  assert found.names == ('agreement', 'count', 'loss', 'right')
  assert found.values.shape == (4,) and found.values.dtype == jnp.float32
  got = found.read()
  assert got == {'loss': 0.25, 'agreement': 1., 'count': 7., 'right': 1.}
  assert all(type(value) is float for value in got.values())


def test_the_widest_type_holds_them_all():
  with jax.enable_x64(True):
    third = np.float64(1) / 3
    found = scalars.Scalars.of({'a': jnp.asarray(third),
                                'b': jnp.asarray(0.1, jnp.float32)})
    assert found.read() == {'a': third, 'b': float(np.float32(0.1))}


def test_no_metrics():
  found = scalars.Scalars.of({})
  assert found.values.shape == (0,) and found.read() == {}


def test_what_is_no_number_is_read_as_such():
  got = scalars.Scalars.of({'a': jnp.nan, 'b': -jnp.inf}).read()
  assert np.isnan(got['a']) and got['b'] == -np.inf


def test_order_does_not_show():
  one, two = (scalars.Scalars.of({name: float(ord(name)) for name in names})
              for names in ('abc', 'cba'))
  assert jax.tree.structure(one) == jax.tree.structure(two)
  np.testing.assert_array_equal(one.values, two.values)
  # Other names are another structure: they are no leaves.
  assert len(jax.tree.leaves(one)) == 1
  other = scalars.Scalars.of({'a': 1., 'b': 2., 'd': 3.})
  assert jax.tree.structure(other) != jax.tree.structure(one)


def test_a_metric_that_is_no_scalar():
  with pytest.raises(ValueError):
    scalars.Scalars.of({'a': jnp.zeros(2), 'b': 0.})


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_packed_step_on_devices(mode):
  def step(state, images, *, axis_name=None):
    """Adds them up."""
    total = jnp.sum(images)
    if axis_name is not None:
      total = jax.lax.psum(total, axis_name)
    return state + total, {'total': total, 'before': state}
  packed = scalars.packed(step)
  assert packed.__name__ == 'step' and packed.__doc__ == 'Adds them up.'
  mapping = parallel.create(mode, tuple(jax.devices()))
  compiled = mapping.compile(
      packed, (parallel.REPLICATED, parallel.SHARDED),
      (parallel.REPLICATED, parallel.REPLICATED))
  state, found = compiled(mapping.replicate(jnp.float32(3)),
                          mapping.shard(np.arange(8, dtype=np.float32)))
  assert float(state) == 31
  assert found.read() == {'before': 3., 'total': 28.}
