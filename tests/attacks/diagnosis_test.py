"""Tests of ferd_jax.attacks.diagnosis: sound, masked and broken models."""

import json

import jax
import jax.numpy as jnp
import noting
import numpy as np
import pytest

import ferd_jax
from ferd_jax import attacks
from ferd_jax import data
from ferd_jax.attacks import diagnosis
from ferd_jax.core import parallel

# Each is a dozen compilations; of those of one kind, one is enough every time.
slow = pytest.mark.slow
SHAPE, NUM_IMAGES, EPS = (3, 3, 1), 24, 0.06
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(NUM_IMAGES, *SHAPE)).astype('f')
FIRST = RNG.normal(size=(9, 12)).astype('f')
SECOND = RNG.normal(size=(12, 4)).astype('f')


def net(weights, x):
  """A net whose cross-entropy is a guide everywhere."""
  first, second = (jnp.asarray(array, x.dtype) for array in weights)
  return jnp.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second


WEIGHTS = FIRST, SECOND
Y = np.array(jnp.argmax(net(WEIGHTS, jnp.asarray(X)), -1))


def plain(x):
  return net(WEIGHTS, x)


@slow
def test_unbounded_ascent_counts_images_that_come_and_go():
  # A real model on which one image of 64 is fooled in every other step.
  teacher = ferd_jax.load_model('digits_resnet8_adv')
  examples = data.load('digits', 'test').first(70)
  found = attacks.diagnose(
      teacher, jax.random.key(0), examples.images / np.float32(255),
      examples.labels, 1., norm='L1', num_images=64, num_queries=2,
      num_draws=2)
  assert 'left by an unbounded attack' not in found.failed, found.table()


def diagnose(model, x=X, **options):
  options = {'num_queries': 100, 'num_draws': 30, 'batch_size': NUM_IMAGES
             } | options
  return attacks.diagnose(model, jax.random.key(0), x, Y, EPS, **options)


@pytest.mark.parametrize(('norm', 'factor'), [
    ('Linf', 1), pytest.param('L2', 3, marks=slow),
    pytest.param('L1', 7, marks=slow)])
def test_sound(norm, factor):
  # Variables as an argument of what is compiled, and more images than a batch.
  model, eps = jax.tree_util.Partial(net, WEIGHTS), factor * EPS
  reporter = noting.Reporter()
  found = attacks.diagnose(
      model, jax.random.key(0), X, Y, eps, norm=norm, num_queries=100,
      num_draws=30, batch_size=16, progress=reporter)
  task, = reporter.tasks
  assert sum(task.counts) == NUM_IMAGES * diagnosis.forward_passes(
      norm, 100, 30)
  assert found.sound and not found.failed, found.table()
  assert 0 < found.accuracies['PGD-20'] < 1
  assert found.accuracies['APGD-CE'] <= found.accuracies['one step']
  assert found.accuracies['4 eps'] < found.accuracies['PGD-20']
  assert len(found.checks) == 16 and found.num_images == NUM_IMAGES
  assert repr(found) == (
      f'Diagnosis(16 checks on 24 images, {norm} eps {eps:.4g}, all passed)')
  lines = found.table().splitlines()
  assert len(lines) == 4 + 16 and all(line.endswith('| ok |')
                                      for line in lines[4:])
  assert json.loads(json.dumps(found.json_values()))['eps'] == eps


# Masked.


@pytest.mark.parametrize(('norm', 'factor'), [
    ('Linf', 1), pytest.param('L1', 7, marks=slow)])
def test_quantised_input(norm, factor):
  found = attacks.diagnose(
      lambda x: plain(jnp.round(x * 12) / 12), jax.random.key(0), X, Y,
      factor * EPS, norm=norm, num_queries=100, num_draws=30,
      batch_size=NUM_IMAGES)
  assert {'zero gradients', 'left by an unbounded attack',
          'black box less white box'} <= set(found.failed)
  assert found['zero gradients'].value == 1
  assert found.accuracies['PGD-20'] == 1 > found.accuracies['Square-100']
  assert 'zero gradients: ' in found.table()


def test_scaled_logits():
  # A softmax that is 1 to the last digit: the cross-entropy has no gradient.
  found = diagnose(lambda x: 1e4 * plain(x))
  assert {'zero gradients', 'black box less white box'} <= set(found.failed)
  assert not {'called again', 'traced again', 'moved by tiny noise',
              'probabilities in place of logits'} & set(found.failed)


def from_pixels(x):
  """A layer whose noise is another for every image, and the same next time."""
  seeds = jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32),
                  axis=(1, 2, 3), dtype=jnp.uint32)
  return jax.vmap(lambda seed: jax.random.normal(
      jax.random.key(seed), (4,)))(seeds)


@slow
def test_stochastic_layer_of_fixed_seeds():
  found = diagnose(lambda x: plain(x) + 0.7 * from_pixels(x))
  assert 'moved by tiny noise' in found.failed
  assert not {'called again', 'traced again'} & set(found.failed)


def test_stochastic_layer_with_a_key():
  def model(x, key):
    return plain(x + 0.05 * jax.random.normal(key, x.shape))
  found = diagnose(model, stochastic=True)
  assert 'another key' in found.failed and 'Randomised' in found.table()
  # Under one key it is a function as any other, of its whole batch.
  assert not {'called again', 'zero gradients',
              'left by an unbounded attack'} & set(found.failed)


@slow
def test_stochastic_layer_that_calls_back():
  rng = np.random.default_rng(0)
  def noisy(x):
    noise = jax.pure_callback(
        lambda x: rng.normal(size=x.shape).astype(x.dtype),
        jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))
    return plain(x + 0.05 * noise)
  assert 'called again' in diagnose(noisy).failed


def test_gradients_that_lead_back():
  """The first step goes up, all that follow go down again."""
  def uphill(x):
    on_grid = jnp.all(jnp.round(255 * x) == 255 * x, axis=(1, 2, 3),
                      keepdims=True)
    return jnp.where(on_grid, 1., -1.)
  @jax.custom_vjp
  def model(x):
    return plain(x)
  def backwards(x, pull):
    return (jax.vjp(plain, x)[1](pull)[0] * uphill(x),)
  model.defvjp(lambda x: (plain(x), x), backwards)
  grid = (np.round(255 * X) / np.float32(255)).astype('f')
  y = np.array(jnp.argmax(plain(jnp.asarray(grid)), -1))
  found = attacks.diagnose(model, jax.random.key(0), grid, y, EPS,
                           num_queries=100, num_draws=100, batch_size=24)
  assert {'one step less iterative', 'found by noise alone'} <= set(
      found.failed)
  assert not {'zero gradients', 'called again', 'traced again'
              } & set(found.failed)


@slow
def test_labels_of_chance():
  few = np.where(np.arange(NUM_IMAGES) < 6, Y, (Y + 1) % 4)
  found = attacks.diagnose(plain, jax.random.key(0), X, few, EPS,
                           num_queries=2, num_draws=2, batch_size=6)
  assert found['clean accuracy'].value == 0.25 and found.num_images == 6
  assert 'clean accuracy' in found.failed


@slow
def test_probabilities():
  found = diagnose(lambda x: jax.nn.softmax(30 * plain(x)))
  assert 'probabilities in place of logits' in found.failed


# Broken.


def dynamic():
  """A model that is another one in every trace."""
  rng = np.random.default_rng(0)
  return lambda x: plain(x) + 0.05 * rng.normal(size=4).astype('f')[None]


def test_dynamic():
  found = diagnose(dynamic())
  assert 'traced again' in found.failed and not found.sound
  assert repr(found).endswith(')') and 'failed: ' in repr(found)


def test_other_when_gradients_are_taken():
  @jax.custom_vjp
  def shown(x):
    return plain(x)
  shown.defvjp(lambda x: (plain(-x), x), lambda x, pull: (jnp.zeros_like(x),))
  assert 'traced again' in diagnose(shown).failed


@slow
def test_other_when_nobody_compiles():
  def model(x):
    return plain(x) if isinstance(x, jax.core.Tracer) else plain(-x)
  assert 'traced again' in diagnose(model).failed


def test_depends_on_its_batch():
  found = diagnose(lambda x: plain(x - 0.3 * jnp.mean(x, axis=0,
                                                      keepdims=True)))
  assert 'depends on its batch' in found.failed


def test_images_scaled_twice():
  found = attacks.diagnose(
      lambda x: plain(255 * x), jax.random.key(0), X / 255, Y, EPS / 255,
      num_queries=20, num_draws=2, batch_size=NUM_IMAGES)
  assert 'largest pixel' in found.failed
  assert found['largest pixel'].value == pytest.approx(X.max() / 255)


def test_a_model_that_scales_images_again():
  def model(x):
    return plain(x / 255)
  y = np.array(jnp.argmax(model(jnp.asarray(X)), -1))
  found = attacks.diagnose(model, jax.random.key(0), X, y, EPS, num_queries=2,
                           num_draws=2, batch_size=NUM_IMAGES)
  assert {'differs between images', 'left by an unbounded attack'} == set(
      found.failed)


def test_what_cannot_be_diagnosed():
  with pytest.raises(ValueError, match='classified right'):
    attacks.diagnose(plain, jax.random.key(0), X, (Y + 1) % 4, EPS)
  with pytest.raises(ValueError, match='finite logits'):
    diagnose(lambda x: plain(x) * jnp.nan)
  with pytest.raises(ValueError, match='norm='):
    diagnose(plain, norm='L3')
  with pytest.raises(ValueError, match='eps=9 below'):
    attacks.diagnose(plain, jax.random.key(0), X, Y, 9)


def test_a_key_on_several_devices():
  """What is drawn under one depends on how many images a device has."""
  def model(x, key):
    return plain(x + 0.05 * jax.random.normal(key, x.shape))
  found = diagnose(model, stochastic=True, num_queries=2, num_draws=2,
                   parallel=parallel.create('shard_map', tuple(
                       jax.devices()[:4])))
  assert 'another key' in found.failed
  assert not {'called again', 'traced again'} & set(found.failed)
