"""Every synthesis in a run: gone on with, on devices, networks untouched."""

import chex
import jax
import numpy as np
import pytest
import tiny

from ferd_jax import synthesis
from ferd_jax import train
from ferd_jax.core import parallel
from ferd_jax.models import frozen as frozens
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.run import work_directory
from ferd_jax.synthesis import pool as pools

NAMES = ('dafl', 'zskt', 'dfad', 'dfq', 'deepinversion', 'cmi', 'fast',
         'dfhl_rs', 'nayer')
# What a shard asks the others for: moments, their bank, statistics.
_COLLECTIVE = {'deepinversion': 'shard_map', 'cmi': 'pmap'}


def build(name, mode='jit'):
  """Returns a tiny experiment with a synthesis."""
  config = tiny.config(warmup_epochs=0, parallel=mode)
  settings.use(config, 'synthesis', name)
  settings.use(config, 'sampler', 'uniform')
  tiny.shrink(config.synthesis)
  config.inner.steps = 1
  return tiny.shared(config, 1 if mode == 'jit' else 4)


def host(experiment, state):
  return jax.tree.map(np.asarray, states.without_keys(
      states.gathered(experiment.method, state)))


def test_every_synthesis_is_listed():
  own = {name for name in synthesis.SYNTHESES if synthesis.SYNTHESES.find(
      name).__module__.startswith('ferd_jax.')}
  assert own == {'ferd', 'real', *NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_epochs_are_finite_and_gone_on_with_bit_for_bit(name, tmp_path):
  experiment = build(name)
  method, teachers = experiment.method, experiment.place_teachers()
  work_directory.claim(tmp_path, experiment.identity)
  steps, rounds = experiment.steps, method.synthesis.rounds
  made = rounds.pooled * rounds.per_epoch * method.synthesis.batch_size
  pool = pools.Pool.empty(2 * made, method.image_shape)
  initial = host(experiment, experiment.initial_state(0))
  before = {name: jax.tree.map(np.array, each)
            for name, each in teachers.items()}

  done = train.epoch(method, steps, experiment.initial_state(0), teachers,
                     pool)
  first = host(experiment, done.state)
  tiny.save(experiment, tmp_path, 1, done.state, pool, made)
  done = train.epoch(method, steps, done.state, teachers, pool)
  second = host(experiment, done.state)

  again = pools.Pool.empty(2 * made, method.image_shape)
  restored = tiny.resume(experiment, tmp_path, again, made)
  chex.assert_trees_all_equal(host(experiment, restored), first)
  resumed = train.epoch(method, steps, restored, teachers, again)
  chex.assert_trees_all_equal(host(experiment, resumed.state), second)
  np.testing.assert_array_equal(resumed.images, done.images)
  np.testing.assert_array_equal(again.images, pool.images)

  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(second))
  assert np.isfinite(list(done.metrics.values())).all()
  assert done.images.min() >= 0 and done.images.max() <= 1
  assert set(done.labels) <= set(range(method.num_classes))
  assert pool.count == 2 * made
  chex.assert_trees_all_equal(teachers, before)
  assert not np.array_equal(
      initial.student.variables['params']['head']['kernel'],
      second.student.variables['params']['head']['kernel'])
  # What is kept differs after each epoch, if anything is.
  kept = jax.tree.leaves(second.synthesis)
  assert not kept or any(
      not np.array_equal(old, new) for old, new in zip(
          jax.tree.leaves(first.synthesis), kept, strict=True))
  assert len(kept) > 0 or name == 'deepinversion'


def _phase(experiment):
  """Returns what a synthesis makes and keeps after a phase of two steps."""
  method = experiment.method
  steps, state = experiment.steps, experiment.initial_state(0)
  frozen = frozens.Frozen(experiment.place_teachers(),
                          state.student.variables, state.epoch)
  networks = jax.tree.map(np.array, (frozen.teachers, frozen.student))

  def key(number):
    return method.parallel.replicate(jax.random.key(number))
  indices = method.parallel.shard(np.arange(method.synthesis.batch_size))
  kept, found = state.synthesis, []
  probs = np.zeros(method.num_classes, np.float32)
  probs[[3, 5]] = 0.5
  phase = steps.begin(kept, method.parallel.replicate(probs), indices, key(0))
  for number in range(2):
    phase, metrics = steps.generate(phase, frozen, key(number + 1))
    found.append(metrics.read())
  images, labels = steps.images(phase, frozen, key(3))
  kept = states.gathered(method, state.replace(
      synthesis=steps.end(kept, phase))).synthesis
  # Neither teacher nor student is another one afterwards.
  chex.assert_trees_all_equal((frozen.teachers, frozen.student), networks)
  if labels is not None:
    labels = method.parallel.gather(labels)
    # They are those that the sampler wants.
    assert set(labels) <= {3, 5}
  return jax.tree.map(np.asarray, (
      found, method.parallel.gather(images), labels, kept))


@pytest.mark.parametrize(('name', 'mode'), [
    *_COLLECTIVE.items(),
    *(pytest.param(name, 'pmap', marks=pytest.mark.slow)
      for name in NAMES if name not in _COLLECTIVE)])
def test_numbers_do_not_depend_on_the_devices(name, mode):
  chex.assert_trees_all_close(
      _phase(build(name, mode)), _phase(build(name)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('name', NAMES)
def test_specs_say_what_belongs_to_examples(name):
  part = build(name).method.synthesis
  kept = jax.eval_shape(part.init, jax.random.key(0))
  probs = jax.ShapeDtypeStruct((10,), np.float32)

  def begun(size):
    return jax.eval_shape(part.begin, kept, probs, np.arange(size),
                          jax.random.key(0))
  kept_specs, phase_specs = part.specs()
  assert kept_specs is parallel.REPLICATED
  whole, half = begun(8), begun(4)
  specs = jax.tree.leaves(jax.tree.broadcast(phase_specs, whole))
  for spec, one, other in zip(specs, jax.tree.leaves(whole),
                              jax.tree.leaves(half), strict=True):
    grows = one.shape != other.shape
    assert (spec is parallel.SHARDED) == grows
    assert not grows or one.shape == (8, *other.shape[1:])
