"""Methods unlike FERD fit: toys of each part, and each part by itself."""

import dataclasses

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toys

from ferd_jax import distillation
from ferd_jax import synthesis
from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax.core import collectives
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.run import work_directory
from ferd_jax.synthesis import base
from ferd_jax.synthesis import pool as pools


def _toy_config(**changes):
  config = tiny.config(num_epochs=4, **changes)
  toys.use_all(config)
  return config


def _saved(experiment, workdir, epoch):
  """Returns the state of an epoch as saved, on the host."""
  with checkpointing.Checkpoints(workdir, experiment.method) as checkpoints:
    state = checkpoints.restore(
        experiment.initial_state(experiment.config.seed), epoch)
  state = states.gathered(experiment.method, state)
  return jax.tree.map(np.asarray, state.replace(
      key=jax.random.key_data(state.key)))


def _saved_initial(experiment):
  return jax.tree.map(np.asarray, states.without_keys(
      experiment.initial_state(experiment.config.seed)))


def _interrupted_at(phase, number):
  """Returns a `train.epoch` that is interrupted at a step of an epoch."""
  epoch = train.epoch

  def interrupted(method, steps, state, teachers, pool, on_step):
    if int(state.epoch) + 1 == number:
      def on_step(name, values):
        del values
        if name == phase:
          raise KeyboardInterrupt
    return epoch(method, steps, state, teachers, pool, on_step)
  return interrupted


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  experiment = tiny.claim(_toy_config(), workdir)
  train.train(experiment, workdir)
  return experiment, workdir


@pytest.mark.parametrize('mode, devices', [
    ('jit', 1), *(pytest.param(mode, 4, marks=pytest.mark.slow)
                  for mode in ('pmap', 'shard_map'))])
def test_toys_are_trained_stopped_and_gone_on_with(
    mode, devices, whole, tmp_path, monkeypatch):
  config = _toy_config(parallel=mode)
  expected = whole
  if devices > 1:
    workdir = tmp_path / 'whole'
    expected = tiny.claim(config, workdir, devices), workdir
    train.train(*expected)
  experiment = tiny.claim(config, tmp_path / 'run', devices)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'epoch', _interrupted_at('distill', 3))
    with pytest.raises(KeyboardInterrupt):
      train.train(experiment, tmp_path / 'run')
  train.train(experiment, tmp_path / 'run')
  resumed = _saved(experiment, tmp_path / 'run', 4)
  chex.assert_trees_all_equal(resumed, _saved(*expected, 4))
  # The numbers are those of one device, whose examples it could go on with.
  chex.assert_trees_all_close(resumed, _saved(*whole, 4), rtol=1e-3, atol=1e-3)
  assert jax.tree.map(np.shape, resumed) == jax.tree.map(
      np.shape, _saved(*whole, 4))


def test_state_of_every_part_moves(whole):
  experiment, workdir = whole
  first, last = (_saved(experiment, workdir, epoch) for epoch in (3, 4))
  # Two rounds of two steps: how much is computed stays the config's.
  assert last.synthesis.steps == first.synthesis.steps + 4 == 16
  initial = _saved_initial(experiment)
  assert not np.array_equal(initial.synthesis.pixels, last.synthesis.pixels)
  assert not np.array_equal(first.sampler.probs, last.sampler.probs)
  np.testing.assert_allclose(last.sampler.probs.sum(), 1, rtol=1e-5)
  weights = last.student.outer.weights
  assert not np.allclose(weights, 1)
  np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)


def test_examples_are_restored_on_another_number_of_devices(whole):
  experiment, workdir = whole
  other = tiny.build(_toy_config(parallel='pmap'), 4)
  work_directory.claim(workdir, other.identity)
  chex.assert_trees_all_equal(_saved(other, workdir, 4),
                              _saved(experiment, workdir, 4))


def test_fresh_images_fill_no_pool(whole):
  _, workdir = whole
  assert not (workdir / 'pool').exists()


def test_report_of_the_attack_is_logged(whole):
  lines = (whole[1] / 'metrics.jsonl').read_text().splitlines()
  assert 'distill/noticed_kappa' not in lines[0]  # warm-up
  assert all('distill/noticed_kappa' in line for line in lines[1:])


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
  """Returns a whole run with everything that FERD's paper has not."""
  workdir = tmp_path_factory.mktemp('averaged')
  experiment = tiny.claim(_all_further(), workdir)
  train.train(experiment, workdir)
  return experiment, workdir


def _all_further(**changes):
  config = tiny.config(num_epochs=3, **changes)
  config.distill.average, config.distill.mix = 0.9, 'cutmix'
  config.synthesis.attacked_steps, config.synthesis.adv_agreed = 1, True
  config.sampler.memory = 0.5
  config.synthesis.rounds_per_epoch = 2
  config.synthesis.new_generator = False
  return config


def test_further_settings_together_are_gone_on_with(averaged, tmp_path,
                                                    monkeypatch):
  experiment = tiny.claim(_all_further(), tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'epoch', _interrupted_at('distill', 3))
    with pytest.raises(KeyboardInterrupt):
      train.train(experiment, tmp_path)
  train.train(experiment, tmp_path)
  chex.assert_trees_all_equal(_saved(experiment, tmp_path, 3),
                              _saved(*averaged, 3))


@pytest.mark.slow
def test_further_settings_together_on_four_devices(averaged, tmp_path):
  experiment = tiny.claim(_all_further(parallel='pmap'), tmp_path, 4)
  train.train(experiment, tmp_path)
  chex.assert_trees_all_close(_saved(experiment, tmp_path, 3),
                              _saved(*averaged, 3), rtol=1e-3, atol=1e-3)


def test_exported_student_is_the_average(averaged):
  experiment, workdir = averaged
  student = _saved(*averaged, 3).student
  exported = torch_io.load_variables(
      workdir / 'export' / 'student.safetensors', experiment.student,
      experiment.method.image_shape)
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, dict(exported)),
                              dict(student.average.variables))
  assert not np.array_equal(exported['params']['head']['kernel'],
                            student.variables['params']['head']['kernel'])


# The attack that a loss was published with; else any.
_FITTING = {'absld': 'rslad', 'adaad': 'adaad', 'trades': 'trades',
            'ard': 'ce', 'mtard': 'ce', 'saad': 'saad',
            'unlike_ferd': 'unlike_ferd'}
_USUAL = {'synthesis': 'unlike_ferd', 'sampler': 'uniform', 'inner': 'rslad',
          'outer': 'rslad'}


def _combinations():
  """Returns each part once, among others that compile fast or fit it.

  Of the syntheses two that are most unlike: tests/synthesis/methods_test.py
  and tests/real_images_test.py have the others.
  """
  toys.register()
  groups = dict(settings.REGISTRIES) | {'synthesis': ('ferd', 'unlike_ferd')}
  found = {}
  for group, registry in groups.items():
    for part in registry:
      parts = _USUAL | {group: part}
      if group == 'outer':
        parts['inner'] = _FITTING.get(part, 'rslad')
      found['-'.join(parts.values())] = parts
  # States of classes by the teacher's labels, of images that no pool keeps.
  for outer in ('fair_rslad', 'absld', 'decoupled_kl'):
    parts = _USUAL | {'synthesis': 'dfad', 'outer': outer}
    found['-'.join(parts.values())] = parts
  return found


def _with_parts(parts):
  config = tiny.config(warmup_epochs=0)
  config.inner.steps = 1
  for group, name in parts.items():
    settings.use(config, group, name)
  if set(parts['outer'].split('_')) & {'mtard', 'iad2'}:
    config.teachers.clean = settings.network()
    config.teachers.clean.update(
        arch='cifar_resnet8', path='random', width=4)
  return config


# Toys of all parts, FERD's own, a state of each kind, two networks.
_QUICK = ('ferd-uniform-rslad-rslad', 'unlike_ferd-margin_softmax-rslad-rslad',
          'unlike_ferd-unlike_ferd-rslad-rslad',
          'unlike_ferd-uniform-unlike_ferd-rslad',
          'unlike_ferd-uniform-unlike_ferd-unlike_ferd',
          'unlike_ferd-uniform-utae-rslad', 'unlike_ferd-uniform-ce-mtard',
          'dfad-uniform-rslad-fair_rslad')


@pytest.mark.parametrize('parts', [
    pytest.param(parts, id=name,
                 marks=() if name in _QUICK else pytest.mark.slow)
    for name, parts in _combinations().items()])
def test_every_part_takes_epochs_and_is_resumed(parts, tmp_path):
  experiment = tiny.build(_with_parts(parts))
  method, steps = experiment.method, experiment.steps
  teachers = experiment.place_teachers()
  rounds = method.synthesis.rounds
  made = rounds.pooled * rounds.per_epoch * method.synthesis.batch_size
  seen = []

  def epoch(state, pool):
    done = train.epoch(method, steps, state, teachers, pool,
                       lambda phase, values: seen.append(phase))
    assert done.images.shape[1:] == method.image_shape
    assert set(done.labels) <= set(range(method.num_classes))
    return done.state

  def whole(state):
    return jax.tree.map(np.asarray, states.without_keys(
        states.gathered(method, state)))
  state = experiment.initial_state(0)
  student = jax.tree.map(np.asarray, state.student.variables['params'])
  pool = pools.Pool.empty(2 * made, method.image_shape)
  state = epoch(state, pool)
  assert seen.count('synthesis') == rounds.generator_steps * rounds.per_epoch
  assert seen.count('distill') == rounds.student_steps * rounds.per_epoch
  assert pool.count == made
  tiny.save(experiment, tmp_path, 1, state, pool, made)
  saved = whole(state)
  expected = whole(epoch(state, pool))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
  assert any(not np.array_equal(old, new) for old, new in zip(
      jax.tree.leaves(student),
      jax.tree.leaves(expected.student.variables['params']), strict=True))
  # As it goes on from the checkpoint, bit for bit.
  pool = pools.Pool.empty(2 * made, method.image_shape)
  state = tiny.resume(experiment, tmp_path, pool, made)
  chex.assert_trees_all_equal(whole(state), saved)
  chex.assert_trees_all_equal(whole(epoch(state, pool)), expected)


class _Draws(flax.struct.PyTreeNode):
  """Weights that are drawn anew, and the key that draws them."""
  key: jax.Array
  weights: jax.Array


@dataclasses.dataclass(frozen=True)
class _DrawsWeights(toys.ToyOuter):
  """A loss with a PRNG key in its state."""

  def init(self, num_classes):
    return _Draws(jax.random.key(7), jnp.ones([num_classes]))

  def __call__(self, state, outputs, *, axis_name=None):
    weights = state.weights[outputs.labels]
    loss, _, metrics = super().__call__(
        toys.Weights(state.weights, jnp.zeros_like(state.weights)),
        outputs.replace(weights=weights), axis_name=axis_name)
    key, draw = jax.random.split(state.key)
    drawn = jax.random.uniform(draw, state.weights.shape)
    return loss, _Draws(key, drawn), metrics

  def end_epoch(self, state, epoch):
    return state


def test_keys_in_the_state_of_a_part_are_gone_on_with(tmp_path):
  distillation.OUTERS.register('draws', _DrawsWeights)
  config = _toy_config(parallel='pmap')
  settings.use(config, 'outer', 'draws')
  found = []
  for name, stops in (('whole', [3]), ('stopped', [2, 3])):
    for stop in stops:
      experiment = tiny.claim(config, tmp_path / name, 2)
      train.train(experiment, tmp_path / name, stop_after=stop)
    with checkpointing.Checkpoints(
        tmp_path / name, experiment.method) as checkpoints:
      state = checkpoints.restore(experiment.initial_state(0), 3)
    key = state.student.outer.key
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    found.append(jax.tree.map(np.asarray, states.without_keys(
        states.gathered(experiment.method, state))))
  chex.assert_trees_all_equal(*found)
  assert not np.array_equal(found[0].student.outer.key,
                            jax.random.key_data(jax.random.key(7)))
  assert len(np.unique(found[0].student.outer.weights)) == 10


def test_uniform_sampler_attacks_and_measures_nothing():
  config = tiny.config()
  settings.use(config, 'sampler', 'uniform')
  steps = tiny.build(config).steps
  assert steps.attack is None and steps.measure is None


def test_second_teacher_by_name():
  config = tiny.config()
  config.teachers.clean = settings.network()
  config.teachers.clean.arch = 'cifar_resnet8'
  config.teachers.clean.path, config.teachers.clean.width = 'random', 4
  experiment = tiny.build(config)
  assert list(experiment.teachers) == ['robust', 'clean']
  assert set(experiment.place_teachers()) == {'robust', 'clean'}
  assert set(experiment.identity['teacher_digests']) == {'robust', 'clean'}


def test_fresh_images_need_the_student_s_batch_size():
  config = _toy_config()
  config.distill.batch_size = 16
  with pytest.raises(ValueError, match='distill.batch_size=16.*batch_size=8'):
    tiny.build(config)


def test_no_key_comes_twice_in_an_epoch(monkeypatch):
  # Two rounds, fresh images, and a sampler that measures.
  experiment = tiny.build(_toy_config(warmup_epochs=0))
  method, steps, seen = experiment.method, experiment.steps, []

  def noting(name, position):
    function = getattr(steps, name)
    def call(*args, **options):
      seen.append((name, tuple(np.asarray(
          jax.random.key_data(args[position])).tolist())))
      return function(*args, **options)
    return call
  noted = steps._replace(**{
      name: noting(name, position) for name, position in (
          ('begin', 3), ('generate', 2), ('images', 2), ('student', 3),
          ('measured_images', 2))})
  pool = pools.Pool.empty(0, method.image_shape)
  train.epoch(method, noted, experiment.initial_state(0),
              experiment.place_teachers(), pool)
  assert len(seen) == 1 + 2 * 2 + 2 * 2 + 2 * 2 + 1
  assert len({key for _, key in seen}) == len(seen)


def test_rounds_draw_the_pool_in_other_orders(monkeypatch):
  orders = []
  plan = pools.index_plan
  monkeypatch.setattr(pools, 'index_plan', lambda *args: orders.append(
      plan(*args)) or orders[-1])
  config = tiny.config(warmup_epochs=0)
  experiment = tiny.build(config)
  method = experiment.method
  ferd = type(method.synthesis)
  monkeypatch.setattr(ferd, 'rounds', property(
      lambda self: base.Rounds(1, 4, per_epoch=2)))
  pool = pools.Pool.empty(3 * 8, method.image_shape)
  pool.append(np.zeros((8, *method.image_shape)), np.zeros(8))
  train.epoch(method, experiment.steps, experiment.initial_state(0),
              experiment.place_teachers(), pool)
  first, second = orders
  assert not np.array_equal(first[0], second[0])
  assert pool.count == 24


@dataclasses.dataclass(frozen=True)
class _LooksAtTheStudent(toys.ToySynthesis):
  """Its images depend on the student, as it is at each step."""

  def images(self, state, frozen, key, *, axis_name=None):
    images, labels = super().images(state, frozen, key, axis_name=axis_name)
    bias = jnp.sum(frozen.student['params']['head']['bias'])
    return jnp.clip(images + 0 * bias, 0, 1), labels

  def end(self, kept, state, *, axis_name=None):
    # Made of all examples, for all devices.
    total = collectives.pmean(jnp.mean(state.pixels), axis_name)
    return state.replace(steps=state.steps + (total > 1e9))

  measured_images = images


def test_fresh_images_may_depend_on_the_student():
  synthesis.SYNTHESES.register('looks', _LooksAtTheStudent)
  config = _toy_config(warmup_epochs=0)
  settings.use(config, 'synthesis', 'looks')
  experiment = tiny.build(config)
  method = experiment.method
  done = train.epoch(
      method, experiment.steps, experiment.initial_state(0),
      experiment.place_teachers(), pools.Pool.empty(0, method.image_shape))
  assert done.state.epoch == 1


def test_choice_by_synthetic_images_needs_a_pool():
  config = _toy_config(**{'eval.select': 'synthetic_pgd', 'eval.every': 1})
  with pytest.raises(ValueError, match="select='synthetic_pgd'.*'unlike_ferd'"):
    tiny.build(config)


@dataclasses.dataclass(frozen=True)
class _Optional(toys.ToyOuter):
  """A setting that may be unset.

  Attributes:
    scale: of the loss; unset for none.
  """
  scale: float | None = None


def test_setting_of_one_s_own_that_may_be_unset():
  distillation.OUTERS.register('optional', _Optional)
  config = tiny.config()
  settings.use(config, 'outer', 'optional')
  config.lock()
  config.outer.scale = 0.5
  assert tiny.build(config).method.distillation.outer.scale == 0.5
  config.outer.scale = None
  assert tiny.build(config).method.distillation.outer.scale is None
  assert settings.may_be_unset('outer.scale', config)
  assert not settings.may_be_unset('outer.rate', config)
  assert set(settings.meanings(config)) >= {'outer.scale', 'outer.rate'}
