"""Tests of ferd_jax.distill: the student step, recomputed part by part."""

import functools

import as_if_trained
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import models
from ferd_jax.distillation import distill
from ferd_jax.distillation import inner
from ferd_jax.distillation import outer
from ferd_jax.models import forward
from ferd_jax.models import layers
from ferd_jax.run import state as states
from ferd_jax.synthesis import class_weights

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


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def random_variables(seed):
  return as_if_trained.random_variables(MODEL, SHAPE, seed)


# No noise at the start and no augmentation: nothing depends on the keys.
SETTINGS = distill.Distillation(
    teacher=MODEL, student=MODEL,
    inner=inner.UniformTarget(
        attacks.UTAE(eps=0.1, step_size=0.1, num_steps=1, noise=0.)),
    outer=outer.DecoupledKL(), batch_size=BATCH, learning_rate=0.1,
    num_epochs=220, momentum=MOMENTUM, weight_decay=DECAY, pad=0, flip=False)


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
  teacher = random_variables(0)
  return [distill.StudentBatch(
      images=jnp.asarray(rng.uniform(size=(BATCH, *SHAPE))),
      labels=jnp.array([0, 2, 1, 2]), teacher=teacher) for _ in range(2)]


@pytest.fixture(scope='module')
def start():
  student = random_variables(1)
  prior = np.random.default_rng(2).dirichlet(np.ones(CLASSES), CLASSES)
  return states.FerdState(
      student=student,
      opt_state=SETTINGS.optimizer.init(student['params']),
      class_weights=class_weights.init(CLASSES),
      class_state=outer.ClassPrior(
          prior=jnp.asarray(prior), sums=jnp.zeros((CLASSES, CLASSES))),
      epoch=jnp.asarray(20), key=jax.random.key(0))


@pytest.fixture(scope='module')
def run(start, batches):
  """Returns the states and metrics of two steps."""
  step = jit(distill.step, static_argnums=0)
  state, found = start, []
  for i, batch in enumerate(batches):
    state, metrics = step(SETTINGS, state, batch, jax.random.key(i))
    found.append((state, metrics))
  return found


@jit
def reference(student, class_state, batch):
  """Returns gradient, statistics, loss and terms of a step, in the open."""
  x = batch.images
  teacher_logits = forward.logits(MODEL, batch.teacher, x)
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
    value, _ = SETTINGS.outer(class_state, teacher_logits, logits, adv_logits,
                              batch.labels)
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
def expected(start, batches, run):
  before = [start, run[0][0]]
  return [reference(state.student, state.class_state, batch)
          for state, batch in zip(before, batches, strict=True)]


def test_learning_rate_is_a_cosine_from_the_first_epoch():
  # Epochs 1, 21 and 220 follow 0, 20 and 219 completed ones.
  for epoch, rate in ((0, 0.1), (20, 0.09797), (219, 5.10e-6), (110, 0.05)):
    np.testing.assert_allclose(distill.learning_rate(SETTINGS, epoch), rate,
                               rtol=1e-3)
  np.testing.assert_allclose(
      distill.learning_rate(SETTINGS, jnp.asarray(20)),
      0.05 * (1 + np.cos(np.pi * 20 / 220)))


def test_statistics_are_those_of_clean_then_attacked_images(run, expected):
  for (state, _), reference in zip(run, expected, strict=True):
    assert_close(state.student['batch_stats'], reference['batch_stats'])
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
  params = numbers(start.student['params'])
  momentum = jax.tree.map(np.zeros_like, params)
  for (state, _), reference in zip(run, expected, strict=True):
    gradient = jax.tree.map(lambda g, p: np.asarray(g) + DECAY * p,
                            reference['gradient'], params)
    momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, gradient)
    params = jax.tree.map(lambda p, m: p - rate * m, params, momentum)
    assert_close(numbers(state.student['params']), params)


def test_sgd_against_torch(start):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  params = {'scale': jnp.asarray(rng.normal(size=3)),
            'kernel': jnp.asarray(rng.normal(size=(3, 2)))}
  leaves = {name: torch.tensor(np.array(value), requires_grad=True)
            for name, value in params.items()}
  sgd = torch.optim.SGD(leaves.values(), lr=0.1, momentum=MOMENTUM,
                        weight_decay=DECAY)
  opt_state = SETTINGS.optimizer.init(params)
  for epoch in range(3):
    gradient = {name: rng.normal(size=p.shape) for name, p in params.items()}
    rate = distill.learning_rate(SETTINGS, epoch)
    direction, opt_state = SETTINGS.optimizer.update(gradient, opt_state,
                                                     params)
    params = jax.tree.map(lambda p, d, r=rate: p - r * d, params, direction)
    for group in sgd.param_groups:
      group['lr'] = float(rate)
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
  np.testing.assert_allclose(state.class_state.sums, sums)
  assert_equal(state.class_state.prior, start.class_state.prior)


def test_everything_else_stays(start, run, batches):
  state = run[-1][0]
  assert_equal(state.class_weights, start.class_weights)
  assert state.epoch == start.epoch
  assert state.key == start.key
  assert_equal(batches[0].teacher, random_variables(0))
  assert_equal(start.student, random_variables(1))


@pytest.mark.parametrize(('options', 'message'), [
    ({'learning_rate': 0.}, 'learning_rate=0.0'),
    ({'momentum': 1.5}, 'momentum=1.5'), ({'num_epochs': 0}, 'num_epochs=0'),
    ({'weight_decay': -1.}, 'weight_decay=-1.0'), ({'pad': -1}, 'pad=-1'),
    ({'batch_size': 0}, 'batch_size=0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    distill.Distillation(**vars(SETTINGS) | options)
