"""Tests of ferd_jax.distillation.distill: the step, recomputed part by part."""

import dataclasses
import functools

import as_if_trained
from flax import core as flax_core
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferd_jax import models
from ferd_jax.core import collectives
from ferd_jax.core import mixing
from ferd_jax.distillation import base
from ferd_jax.distillation import distill
from ferd_jax.distillation import inner
from ferd_jax.distillation import outer
from ferd_jax.distillation import schedules
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import layers

CLASSES, BATCH, SHAPE = 3, 4, (8, 8, 1)
MOMENTUM, DECAY = 0.9, 0.05


class TwoLayers(models.StagedModel):
  """A classifier that compiles fast."""

  @property
  def stages(self):
    return ('conv1', 'conv2', 'head')

  def run_stage(self, stage, x, train):
    if stage == 'head':
      return layers.Dense(self.num_classes, name=stage)(layers.global_mean(x))
    x = layers.Conv(4, strides=2, name=stage)(x)
    norm = layers.BatchNorm(self.axis_name, name=f'{stage}_bn')
    return nn.relu(norm(x, train=train))


MODEL = TwoLayers(CLASSES)

# Compiling for speed takes longer than these tests run.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})
pytestmark = pytest.mark.usefixtures('float64')


def random_variables(seed):
  return as_if_trained.random_variables(MODEL, SHAPE, seed)


class Noiseless(inner.UniformTarget):
  """UTAEs from the images themselves."""
  start = 'zero'


# No noise at the start and no augmentation: nothing depends on the keys.
SETTINGS = distill.Settings(
    teachers=flax_core.FrozenDict({frozens.ROBUST: MODEL}), student=MODEL,
    inner=Noiseless(eps=0.1, step_size=0.1, steps=1),
    outer=outer.DecoupledKL(),
    optimizer=distill.sgd(schedules.cosine_by_epoch(0.1, 220, 20, 2), MOMENTUM,
                          DECAY),
    batch_size=BATCH, pad=0, flip=False)


def numbers(tree):
  return jax.tree.map(np.array, tree)


def assert_equal(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close(first, second):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8,
                                 atol=1e-10), first, second)


@pytest.fixture(scope='module')
def batches():
  rng = np.random.default_rng(5)
  return [distill.StudentBatch(
      images=jnp.asarray(rng.uniform(size=(BATCH, *SHAPE))),
      labels=jnp.array([0, 2, 1, 2])) for _ in range(2)]


@pytest.fixture(scope='module')
def frozen():
  return frozens.Frozen(teachers={frozens.ROBUST: random_variables(0)},
                        student=None, epoch=jnp.asarray(20))


@pytest.fixture(scope='module')
def start():
  state = distill.init(SETTINGS, random_variables(1), CLASSES)
  prior = np.random.default_rng(2).dirichlet(np.ones(CLASSES), CLASSES)
  return state.replace(outer=outer.ClassPrior(
      prior=jnp.asarray(prior), sums=jnp.zeros((CLASSES, CLASSES))))


@functools.partial(jit, static_argnums=0)
def step(settings, *args):
  """Returns state and metrics of a step."""
  state, metrics, _ = distill.step(settings, *args)
  return state, metrics


@pytest.fixture(scope='module')
def run(start, batches, frozen):
  """Returns the states and metrics of two steps."""
  state, found = start, []
  for i, batch in enumerate(batches):
    state, metrics = step(SETTINGS, state, batch, frozen, jax.random.key(i))
    found.append((state, metrics))
  return found


@jit
def reference(student, class_state, batch, frozen):
  """Returns gradient, statistics, loss and terms of a step, in the open."""
  x = batch.images
  teacher_logits = forward.logits(MODEL, frozen.teachers[frozens.ROBUST], x)
  _, after_clean = forward.train_logits(MODEL, student, x)

  def attack(batch_stats):
    def objective(x):
      logits = forward.logits(MODEL, student | {'batch_stats': batch_stats}, x)
      target = jax.nn.softmax(teacher_logits)
      log_probs = jax.nn.log_softmax(logits)
      divergence = -jnp.sum(target * log_probs)
      uniform = -jnp.sum(log_probs) / CLASSES
      return divergence - 0.3 * uniform
    moved = x + 0.1 * jnp.sign(jax.grad(objective)(x))
    return jnp.clip(jnp.clip(moved, x - 0.1, x + 0.1), 0, 1)
  attacked = attack(after_clean)
  too_early = attack(student['batch_stats'])

  def loss(params):
    logits, batch_stats = forward.train_logits(
        MODEL, student | {'params': params}, x)
    adv_logits, batch_stats = forward.train_logits(
        MODEL, {'params': params, 'batch_stats': batch_stats}, attacked)
    value, _, _ = SETTINGS.outer(class_state, base.Outputs(
        labels=batch.labels, t_clean={frozens.ROBUST: teacher_logits}, t_adv={},
        s_clean=logits, s_adv=adv_logits, noticed={}, epoch=frozen.epoch))
    return value, batch_stats
  (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(
      student['params'])
  _, reverse = forward.train_logits(MODEL, student, attacked)
  _, reverse = forward.train_logits(
      MODEL, student | {'batch_stats': reverse}, x)
  return {'gradient': gradient, 'batch_stats': batch_stats, 'loss': value,
          'attacked': attacked, 'too_early': too_early, 'reverse': reverse,
          'teacher_logits': teacher_logits}


@pytest.fixture(scope='module')
def expected(start, batches, frozen, run):
  before = [start, run[0][0]]
  return [reference(state.variables, state.outer, batch, frozen)
          for state, batch in zip(before, batches, strict=True)]


def test_learning_rate_is_a_cosine_from_the_first_epoch():
  # Epochs 1, 21 and 220 follow 0, 20 and 219 completed ones.
  schedule = schedules.cosine_by_epoch(0.1, 220, 0, 1)
  for epoch, rate in ((0, 0.1), (20, 0.09797), (219, 5.10e-6), (110, 0.05)):
    np.testing.assert_allclose(schedule(epoch), rate, rtol=1e-3)
  np.testing.assert_allclose(
      schedule(jnp.asarray(20)), 0.05 * (1 + np.cos(np.pi * 20 / 220)))


def test_learning_rate_falls_once_an_epoch_and_counts_the_warm_up():
  schedule = schedules.cosine_by_epoch(0.1, 10, 3, 4)
  rates = [float(schedule(jnp.asarray(step))) for step in range(28)]
  by_epoch = 0.05 * (1 + np.cos(np.pi * np.arange(3, 10) / 10))
  np.testing.assert_allclose(rates, np.repeat(by_epoch, 4))


def test_statistics_are_those_of_clean_then_attacked_images(run, expected):
  for (state, _), reference in zip(run, expected, strict=True):
    assert_close(state.variables['batch_stats'], reference['batch_stats'])
    # What the test could not tell apart otherwise: another order, or an
    # attack on the statistics before the clean pass.
    first, second = (jax.tree.leaves(reference[name])[0]
                     for name in ('batch_stats', 'reverse'))
    assert np.abs(first - second).max() > 1e-5
    assert not np.array_equal(reference['attacked'], reference['too_early'])


def test_loss(run, expected):
  for (_, metrics), reference in zip(run, expected, strict=True):
    np.testing.assert_allclose(metrics['loss'], reference['loss'])
    np.testing.assert_allclose(
        metrics['loss'],
        5 / 6 * metrics['clean_loss'] + 1 / 6 * metrics['adv_loss'])
    for name in ('clean_agreement', 'adv_agreement'):
      assert float(metrics[name]) * BATCH in range(BATCH + 1)


def test_two_steps_of_sgd_with_momentum_and_weight_decay(start, run, expected):
  rate = 0.05 * (1 + np.cos(np.pi * 20 / 220))
  params = numbers(start.variables['params'])
  momentum = jax.tree.map(np.zeros_like, params)
  for (state, _), reference in zip(run, expected, strict=True):
    gradient = jax.tree.map(lambda g, p: np.asarray(g) + DECAY * p,
                            reference['gradient'], params)
    momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, gradient)
    params = jax.tree.map(lambda p, m: p - rate * m, params, momentum)
    assert_close(numbers(state.variables['params']), params)


def test_one_more_link_of_the_optimiser(start, batches, frozen, run, expected):
  gradient = numbers(expected[0]['gradient'])
  norm = np.sqrt(sum((leaf ** 2).sum() for leaf in jax.tree.leaves(gradient)))
  clipped = dataclasses.replace(SETTINGS, optimizer=optax.chain(
      optax.clip_by_global_norm(norm / 4), SETTINGS.optimizer))
  state = start.replace(
      opt_state=clipped.optimizer.init(start.variables['params']))
  got, metrics = step(clipped, state, batches[0], frozen, jax.random.key(0))
  rate = 0.05 * (1 + np.cos(np.pi * 20 / 220))
  assert_close(numbers(got.variables['params']), jax.tree.map(
      lambda p, g: p - rate * (g / 4 + DECAY * p),
      numbers(start.variables['params']), gradient))
  # Nothing but the optimiser differs.
  assert_close(numbers(metrics), numbers(run[0][1]))
  assert_close(numbers(got.outer), numbers(run[0][0].outer))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_optimiser_is_the_formula_bit_for_bit(dtype):
  learning_rate, num_epochs, first_epoch, steps = 0.1, 6, 2, 3
  optimizer = distill.sgd(
      schedules.cosine_by_epoch(learning_rate, num_epochs, first_epoch, steps),
      MOMENTUM, DECAY)
  rng = np.random.default_rng(0)
  params = {'scale': jnp.asarray(rng.normal(size=7), dtype),
            'kernel': jnp.asarray(rng.normal(size=(5, 4)), dtype)}
  opt_state = optimizer.init(params)
  expected = numbers(params)
  momentum = jax.tree.map(np.zeros_like, expected)
  for i in range(4 * steps):
    gradient = jax.tree.map(
        lambda p: rng.normal(size=p.shape).astype(dtype), expected)
    updates, opt_state = optimizer.update(
        jax.tree.map(jnp.asarray, gradient), opt_state, params)
    params = optax.apply_updates(params, updates)

    phase = jnp.pi * jnp.asarray(first_epoch + i // steps) / num_epochs
    rate = np.asarray(0.5 * learning_rate * (1 + jnp.cos(phase)), dtype)
    direction = jax.tree.map(lambda g, p: g + dtype(DECAY) * p, gradient,
                             expected)
    momentum = jax.tree.map(lambda d, m: d + dtype(MOMENTUM) * m, direction,
                            momentum)
    expected = jax.tree.map(lambda p, m, r=rate: p - r * m, expected, momentum)
    assert_equal(numbers(params), expected)
  assert expected['scale'].dtype == params['scale'].dtype == dtype


def test_sgd_against_torch():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  params = {'scale': jnp.asarray(rng.normal(size=3)),
            'kernel': jnp.asarray(rng.normal(size=(3, 2)))}
  leaves = {name: torch.tensor(np.array(value), requires_grad=True)
            for name, value in params.items()}
  sgd = torch.optim.SGD(leaves.values(), lr=0.1, momentum=MOMENTUM,
                        weight_decay=DECAY)
  schedule = schedules.cosine_by_epoch(0.1, 3, 0, 1)
  optimizer = distill.sgd(schedule, MOMENTUM, DECAY)
  opt_state = optimizer.init(params)
  for epoch in range(3):
    gradient = {name: rng.normal(size=p.shape) for name, p in params.items()}
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    for group in sgd.param_groups:
      group['lr'] = float(schedule(epoch))
    for name, leaf in leaves.items():
      leaf.grad = torch.tensor(gradient[name])
    sgd.step()
    for name, leaf in leaves.items():
      np.testing.assert_allclose(params[name], leaf.detach().numpy())


def test_prior_accumulates_the_teachers_clean_predictions(start, run, expected,
                                                          batches):
  sums = np.zeros((CLASSES, CLASSES))
  for batch, reference in zip(batches, expected, strict=True):
    np.add.at(sums, np.array(batch.labels),
              np.array(jax.nn.softmax(reference['teacher_logits'])))
  state = run[-1][0]
  np.testing.assert_allclose(state.outer.sums, sums)
  assert_equal(state.outer.prior, start.outer.prior)


def test_everything_else_stays(start, run, frozen):
  assert run[-1][0].variables.keys() == start.variables.keys()
  assert_equal(frozen.teachers[frozens.ROBUST], random_variables(0))
  assert_equal(start.variables, random_variables(1))
  assert frozen.epoch == 20


def test_state_at_the_start():
  variables = random_variables(1)
  state = distill.init(SETTINGS, variables, CLASSES)
  assert state.variables is variables
  assert_equal(state.outer, SETTINGS.outer.init(CLASSES))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  # Of the parameters alone; statistics are none of the optimiser's.
  shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)
            if leaf.shape]
  assert shapes == [leaf.shape for leaf in jax.tree.leaves(variables['params'])]


def test_average_follows_the_student(batches, frozen, start):
  settings = dataclasses.replace(SETTINGS, average=0.2)
  variables = random_variables(1)
  state = distill.init(settings, variables, CLASSES)
  assert_equal(state.average.variables, variables)
  assert distill.init(SETTINGS, variables, CLASSES).average is None
  expected, trained = numbers(variables), start
  for number, batch in enumerate(batches):
    key = jax.random.key(number)
    state, _ = step(settings, state.replace(outer=trained.outer), batch, frozen,
                    key)
    trained, _ = step(SETTINGS, trained, batch, frozen, key)
    # (1 + n) / (10 + n) is below 0.2 after the first step, not the second.
    rate = float(np.float32((2 / 11, 0.2)[number]))
    expected = jax.tree.map(
        lambda old, new, rate=rate: rate * old + (1 - rate) * new, expected,
        numbers(trained.variables))
  assert_close(state.variables, trained.variables)  # Nothing else changes.
  assert_close(state.average.variables, expected)
  assert_equal(state.reported, state.average.variables)
  assert trained.reported is trained.variables
  assert state.average.steps == 2


def test_mixed_images_are_asked_of_the_teacher_anew(batches, frozen, start):
  """The step on mixed images is the step on a batch of such images."""
  settings = dataclasses.replace(SETTINGS, mix='cutmix', mix_share=1.)
  key = jax.random.key(3)
  mix_keys = collectives.fold_in(
      collectives.example_keys(key, np.arange(BATCH)), 2)
  mixed = mixing.mix('cutmix', mix_keys, batches[0].images, 1.)
  assert not np.array_equal(mixed, batches[0].images)
  found, metrics = step(settings, start, batches[0], frozen, key)
  expected, expected_metrics = step(
      SETTINGS, start, batches[0].replace(images=mixed), frozen, key)
  assert_close(found, expected)
  assert_close(metrics, expected_metrics)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: dataclasses.replace(SETTINGS, mix='cut'), "mix='cut'"),
    (lambda: dataclasses.replace(SETTINGS, mix='mixup', teachers={}),
     "mix='mixup'.*teacher"),
    (lambda: dataclasses.replace(SETTINGS, mix_share=2.), 'mix_share=2.0'),
    (lambda: dataclasses.replace(SETTINGS, average=1.), 'average=1.0'),
    (lambda: schedules.cosine_by_epoch(0., 220, 20, 2), 'learning_rate=0.0'),
    (lambda: schedules.cosine_by_epoch(0.1, 0, 20, 2), 'num_epochs=0'),
    (lambda: schedules.cosine_by_epoch(0.1, 220, 20, 0), 'steps_per_epoch=0'),
    (lambda: distill.sgd(lambda step: 0.1, 1.5, DECAY), 'momentum=1.5'),
    (lambda: distill.sgd(lambda step: 0.1, MOMENTUM, -1.), 'weight_decay=-1.0'),
    (lambda: dataclasses.replace(SETTINGS, pad=-1), 'pad=-1'),
    (lambda: dataclasses.replace(SETTINGS, batch_size=0), 'batch_size=0')])
def test_invalid_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()
