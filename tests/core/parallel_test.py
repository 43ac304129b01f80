"""The numbers do not depend on how many devices compute them, or how."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import whole_epoch

from ferd_jax.core import parallel

_MAPPINGS = [('pmap', 4), *(
    pytest.param(*mapping, marks=pytest.mark.slow) for mapping in (
        ('pmap', 1), ('pmap', 2), ('shard_map', 1), ('shard_map', 2),
        ('shard_map', 4)))]


@pytest.fixture(scope='module')
def reference_float64():
  with jax.enable_x64(True):
    return whole_epoch.epoch('jit', 1, np.float64, 3)


@pytest.mark.parametrize('mode, num_devices', _MAPPINGS)
def test_float64_steps_do_not_depend_on_devices(
    mode, num_devices, reference_float64):
  with jax.enable_x64(True):
    found = whole_epoch.epoch(mode, num_devices, np.float64, 3)
  assert found['images'].dtype == np.float64
  chex.assert_trees_all_close(found, reference_float64, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope='module')
def reference_float32():
  return whole_epoch.epoch('jit', 1, np.float32, 1)


# What depends on the devices shows in float64; this is about the tolerance.
@pytest.mark.slow
@pytest.mark.parametrize('mode, num_devices', [('pmap', 4), ('shard_map', 2)])
def test_float32_step_does_not_depend_on_devices(
    mode, num_devices, reference_float32):
  found = whole_epoch.epoch(mode, num_devices, np.float32, 1)
  chex.assert_trees_all_close(found, reference_float32, rtol=1e-5, atol=1e-5)


def test_reference_moves(reference_float64):
  # The comparison above means something only if the steps did something.
  state = reference_float64['state']
  assert state.epoch == 1
  assert not np.allclose(state.sampler.probs, 0.1)
  assert not np.allclose(state.student.outer.prior, 0.1)
  assert len(reference_float64['metrics']) == 6
  assert reference_float64['pool']['count'] == 16
  losses = [float(m['loss']) for m in reference_float64['metrics']]
  assert len(set(losses)) == len(losses)
  masks = [float(m['non_robust']) for m in reference_float64['metrics']
           if 'non_robust' in m]
  assert len(masks) == 3 and all(0 < density < 1 for density in masks)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_shard_and_gather_are_inverse(mode):
  mapping = parallel.create(mode, tuple(jax.devices()))
  tree = {'a': np.arange(24.).reshape(8, 3), 'b': np.arange(8)}
  for name, array in mapping.gather(mapping.shard(tree)).items():
    np.testing.assert_array_equal(array, tree[name])


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_arguments_may_be_none(mode):
  # pmap itself takes part of the model for the missing argument here.
  mapping = parallel.create(mode, tuple(jax.devices()))
  replicated, sharded = parallel.REPLICATED, parallel.SHARDED
  def step(model, images, key, *, axis_name=None):
    del axis_name
    weights, bias = model
    out = images @ weights + bias[None]
    return out if key is None else out + jax.random.uniform(key)
  compiled = mapping.compile(step, (replicated, sharded, replicated), sharded)
  model = (np.ones((3, 2), np.float32), np.arange(2, dtype=np.float32))
  images = np.arange(24, dtype=np.float32).reshape(8, 3)
  expected = images @ model[0] + model[1]
  for key in (None, jax.random.key(0), None):
    found = mapping.gather(compiled(
        mapping.replicate(model), mapping.shard(images),
        None if key is None else mapping.replicate(key)))
    noise = 0 if key is None else jax.random.uniform(key)
    np.testing.assert_allclose(found, expected + noise, rtol=1e-6)


def test_replicate_keeps_values_and_keys():
  mapping = parallel.create('shard_map', tuple(jax.devices()))
  placed = mapping.replicate({'x': jnp.arange(3), 'key': jax.random.key(7)})
  assert placed['x'].sharding.is_fully_replicated
  np.testing.assert_array_equal(placed['x'], np.arange(3))
  np.testing.assert_array_equal(jax.random.key_data(placed['key']),
                                jax.random.key_data(jax.random.key(7)))


def test_auto_mode():
  devices = tuple(jax.devices())
  assert parallel.create('auto', devices[:1]).mode == 'jit'
  assert parallel.create('auto', devices).mode == 'pmap'


def test_jit_takes_one_device():
  assert parallel.create('jit', tuple(jax.devices())).num_devices == 1


def test_unknown_mode():
  with pytest.raises(ValueError, match="parallel='vmap'"):
    parallel.create('vmap')


@pytest.mark.parametrize('given, words', [
    (('127.0.0.1:1', None, None), '--num_processes is absent'),
    ((None, 2, 0), '--coordinator is absent'),
    (('127.0.0.1', 2, 0), 'coordinator=.*HOST:PORT'),
    (('127.0.0.1:1', 2, 2), 'process_id=2'),
    (('127.0.0.1:1', 0, 0), 'num_processes=0')])
def test_others_that_cannot_be_joined(given, words):
  with pytest.raises(ValueError, match=words):
    parallel.join_processes(*given)
