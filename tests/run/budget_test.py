"""The counted budget is what a teacher that counts sees of an epoch."""

import functools
import threading

from flax import linen as nn
import jax
import numpy as np
import pytest
import tiny
import toys

from ferd_jax import models
from ferd_jax import train
from ferd_jax.models import passes
from ferd_jax.run import budget
from ferd_jax.run import settings
from ferd_jax.synthesis import pool as pools

_SHAPE = (8, 8, 1)
_SEEN = {'forward': 0., 'backward': 0.}


_ONE_AT_A_TIME = threading.Lock()


def _see(direction, share, x):
  def count(size):
    with _ONE_AT_A_TIME:  # Callbacks come from several threads.
      _SEEN[direction] += share * int(size)
  jax.debug.callback(count, x.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _counted(share, x):
  _see('forward', share, x)
  return x


def _forward(share, x):
  return _counted(share, x), None


def _backward(share, _, gradient):
  _see('backward', share, gradient)
  return (gradient,)


_counted.defvjp(_forward, _backward)


class Counting(tiny.TwoLayers):
  """Notes every image that goes through it, and every gradient back."""

  def run_stage(self, stage, x, train):
    if not self.is_initializing():
      x = _counted(_shares()[stage], x)
    return super().run_stage(stage, x, train)


@functools.cache
def _shares():
  """Returns the share of each stage in a pass."""
  model = tiny.TwoLayers(10)
  tails = [1., *(passes.tail_share(model, _SHAPE, stage)
                 for stage in model.stages[:-1]), 0.]
  return {stage: before - after for stage, before, after in zip(
      model.stages, tails, tails[1:], strict=False)}


def _experiment(parts):
  config = tiny.config(warmup_epochs=0, **{'augment.pad': 0})
  for group, (name, options) in parts.items():
    settings.use(config, group, name, **options)
  config.inner.steps = 1  # Less to compile.
  if config.synthesis.name == 'ferd':
    config.synthesis.bottleneck.steps = 1
  elif config.synthesis.name != 'unlike_ferd':
    tiny.shrink(config.synthesis)
  _shares()
  teacher = Counting(10)
  return tiny.build(config, teacher=(teacher, models.init_variables(
      tiny.TwoLayers(10), jax.random.key(0), _SHAPE)))


def _spent(experiment):
  """Returns what the teacher sees of an epoch."""
  method, steps = experiment.method, experiment.steps
  rounds = method.synthesis.rounds
  pool = pools.Pool.empty(rounds.pooled * rounds.per_epoch *
                          method.synthesis.batch_size,
                          method.image_shape)
  state, teachers = experiment.initial_state(0), experiment.place_teachers()
  jax.effects_barrier()
  _SEEN.update(forward=0., backward=0.)
  train.epoch(method, steps, state, teachers, pool)
  jax.effects_barrier()
  return dict(_SEEN)


_FERD = {'synthesis': ('ferd', {}), 'sampler': ('margin_softmax', {}),
         'inner': ('utae', {}), 'outer': ('decoupled_kl', {})}
# What the parts of other methods say.
INNERS = ('ce', 'rslad', 'trades', 'adaad', 'saad', 'hee', 'similar_target')
SYNTHESES = ('dafl', 'zskt', 'dfad', 'dfq', 'deepinversion', 'cmi', 'fast',
             'dfhl_rs', 'nayer')
toys.register()
_TOYS = {group: ('unlike_ferd', {}) for group in _FERD}


@pytest.mark.parametrize('parts', [
    _FERD, _TOYS,
    pytest.param(
        _FERD | {'sampler': ('uniform', {}), 'inner': ('utae', {
            'source': 'teacher'}), 'synthesis': ('ferd', {'w_uni': 0.})},
        marks=pytest.mark.slow),
    pytest.param(
        _FERD | {'synthesis': ('ferd', {
            'w_bn': 0., 'w_oh': 0., 'w_adv': 0., 'tap': 'conv1'})},
        marks=pytest.mark.slow),
    _FERD | {'synthesis': ('ferd', {'attacked_steps': 2})},
    *(pytest.param(_FERD | {'inner': (name, {}), 'outer': ('rslad', {})},
                   marks=pytest.mark.slow) for name in INNERS),
    *(pytest.param(_FERD | {'synthesis': (name, {}),
                            'sampler': ('uniform', {})},
                   marks=pytest.mark.slow) for name in SYNTHESES)],
    ids=['ferd', 'toys', 'teacher_attacked', 'earlier_tap', 'attacked_views',
         *INNERS, *SYNTHESES])
def test_passes_are_those_that_a_teacher_counts(parts, monkeypatch):
  experiment = _experiment(parts)
  # Counting is no share of the network.
  share = passes.tail_share
  monkeypatch.setattr(passes, 'tail_share', lambda model, *rest: share(
      tiny.TwoLayers(10), *rest))
  expected = _spent(experiment)
  got = budget.of(experiment.method, 1)
  np.testing.assert_allclose(
      [got.teacher_forward, got.teacher_backward],
      [expected['forward'], expected['backward']],
      # A view of CMI's is not asked for its logits: of this network 5% of a
      # pass, of a real one next to nothing.
      rtol=0.03 if experiment.config.synthesis.name == 'cmi' else 1e-6)
  assert got.teacher_forward > 0


def test_budget_of_a_run():
  config = tiny.config(num_epochs=5, warmup_epochs=2)
  method = tiny.build(config).method
  found = budget.of(method, 5)
  assert (found.images, found.generator_steps, found.student_steps) == (
      5 * 8, 5 * 2, 3 * 2)
  # Twice as many warm-up epochs cost less than half of all: no student.
  warmup = budget.of(method, 2)
  assert warmup.student_steps == 0
  np.testing.assert_allclose(
      found.teacher_forward - 5 / 2 * warmup.teacher_forward, 3 * 2 * 8)


def test_images_of_a_method_without_a_pool():
  config = tiny.config(num_epochs=3, warmup_epochs=1)
  toys.use_all(config)
  found = budget.of(tiny.build(config).method, 3)
  # Two rounds an epoch, each image seen once.
  assert found.student_steps == 2 * 2 * 2
  assert found.images == found.student_steps * 8


def test_part_that_does_not_say_its_passes(monkeypatch):
  config = tiny.config()
  settings.use(config, 'inner', 'unlike_ferd')
  method = tiny.build(config).method
  assert budget.of(method, 1).teacher_forward > 0
  monkeypatch.delattr(toys.ToyInner, 'passes')
  found = budget.of(method, 1)
  assert found.teacher_forward is None and found.teacher_backward is None
  assert found.images and found.generator_steps


class _Dense(models.StagedModel):
  """64 pixels -> 32 -> 10."""
  stages = ('one', 'two')
  default_tap = 'one'

  def run_stage(self, stage, x, train):
    del train
    return nn.Dense(32 if stage == 'one' else self.num_classes, name=stage)(
        x.reshape(len(x), -1))


def test_share_of_a_tail():
  one, two = 2 * 64 * 32 + 32, 2 * 32 * 10 + 10
  share = passes.tail_share(_Dense(10), (8, 8, 1), 'one')
  assert share == pytest.approx(two / (one + two), rel=1e-3)
  assert passes.tail_share(_Dense(10), (8, 8, 1), 'two') == 0
