"""Tests of ferd_jax.models.forward, on modules of other people."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import lenet
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax.models import forward
from ferd_jax.models import layers

SHAPE = (4, 4, 2)


class Normed(nn.Module):
  """Flax's own BatchNorm, told `train`."""
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Synchronised(nn.Module):
  """The same, with a field for the axis."""
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, use_running_average):
    x = nn.BatchNorm(axis_name=self.axis_name)(
        x, use_running_average=use_running_average)
    return nn.Dense(3)(x.mean((1, 2)))


class Dropped(nn.Module):
  """Dropout, told `deterministic`."""
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, deterministic):
    x = nn.Dropout(self.rate)(x.mean((1, 2)), deterministic=deterministic)
    return nn.Dense(3)(x)


class Modeless(nn.Module):
  """Nothing to tell, and a constant in a collection of its own."""

  @nn.compact
  def __call__(self, x):
    scale = self.variable('constants', 'scale', lambda: jnp.full((2,), 3.))
    return nn.Dense(3)(x.mean((1, 2)) * scale.value[None])


class Reporting(nn.Module):
  """This package's BatchNorm in a module without stages, beside Flax's."""
  both: bool = False

  @nn.compact
  def __call__(self, x, training=False):
    x = layers.BatchNorm()(x, train=training)
    if self.both:
      x = nn.BatchNorm(use_running_average=not training)(x)
    return nn.Dense(3)(x.mean((1, 2)))


def drawn(model, shape=SHAPE):
  return models.init_variables(model, jax.random.key(0), shape)


def images(count=4, shape=SHAPE):
  return jnp.asarray(lenet.images(count, shape))


def test_stages_of_a_network_from_outside():
  model = lenet.LeNet5(5)
  assert forward.stages(model) == model.stages
  assert forward.default_tap(model) == 'conv2'
  variables, x = drawn(model, lenet.SHAPE), images(2, lenet.SHAPE)
  logits = forward.logits(model, variables, x)
  for stage in model.stages:
    latent = forward.logits(model, variables, x, stop=stage)
    np.testing.assert_array_equal(
        forward.logits(model, variables, latent, start=stage), logits)
  out, stats = forward.train_logits(model, variables, x)
  np.testing.assert_array_equal(out, logits)
  assert stats == {}
  assert forward.logits_and_moments(model, variables, x)[1] == {}


@pytest.mark.parametrize(('model', 'evaluating', 'training'), [
    (Normed(), {'train': False}, {'train': True}),
    (Synchronised(), {'use_running_average': True},
     {'use_running_average': False}),
    (Dropped(), {'deterministic': True}, {'deterministic': False}),
    (Reporting(), {'training': False}, {'training': True}),
    (Modeless(), {}, {}),
    (models.build('cifar_resnet8', 3, width=2), {'train': False},
     {'train': True}),
    (models.Generator(8), {}, {}),
])
def test_the_mode_is_found_in_the_signature(model, evaluating, training):
  assert forward.mode_arguments(model, train=False) == evaluating
  assert forward.mode_arguments(model, train=True) == training


@pytest.mark.parametrize('model', [Normed(), Synchronised(), Dropped(),
                                   Reporting(), Modeless()])
def test_modules_that_know_nothing_of_stages(model):
  variables, x = drawn(model), images()
  assert {'params', 'batch_stats'} <= set(variables)
  assert forward.stages(model) == () and forward.default_tap(model) is None
  logits = forward.logits(model, variables, x)
  assert logits.shape == (4, 3)
  np.testing.assert_array_equal(
      forward.logits_fn(model, variables)(x), logits)
  np.testing.assert_array_equal(
      forward.logits_and_moments(model, variables, x)[0], logits)
  for kwargs in ({'start': 'conv1'}, {'stop': 'conv1'}):
    with pytest.raises(ValueError, match="'conv1'.* has no stages") as error:
      forward.logits(model, variables, x, **kwargs)
    assert '\n' not in str(error.value)


def test_flax_batch_norm_is_trained():
  model, x = Normed(), images()
  variables = drawn(model)
  out, stats = forward.train_logits(model, variables, x)
  expected, updates = model.apply(variables, x, True, mutable=['batch_stats'])
  np.testing.assert_array_equal(out, expected)
  jax.tree.map(np.testing.assert_array_equal, stats, updates['batch_stats'])
  assert not np.allclose(out, forward.logits(model, variables, x))
  assert np.any(stats['BatchNorm_0']['mean'])
  out, stats = forward.train_logits(Modeless(), drawn(Modeless()), x)
  assert stats == {}


def test_statistics_are_synchronised_where_there_is_an_axis():
  model, x = Synchronised(), images()
  variables = drawn(model)
  whole, stats = forward.train_logits(model, variables, x)
  shards, shard_stats = jax.vmap(
      lambda x: forward.train_logits(model, variables, x, axis_name='data'),
      axis_name='data')(x.reshape(2, 2, *SHAPE))
  np.testing.assert_allclose(shards.reshape(4, 3), whole, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5),
               shard_stats, stats)


@pytest.mark.parametrize(('model', 'expected'), [
    (Normed(), False), (Synchronised(), True), (Modeless(), True),
    (Dropped(), True), (Reporting(), False),
    (models.build('cifar_resnet8', 3, width=2), True)])
def test_who_synchronises(model, expected):
  assert forward.synchronises(model, jax.eval_shape(
      lambda: drawn(model))) == expected


@pytest.mark.parametrize(('model', 'expected'), [
    (Normed(), False), (Synchronised(), False), (Modeless(), False),
    (Reporting(), True), (Reporting(both=True), False),
    (models.build('cifar_resnet8', 3, width=2), True)])
def test_who_reports_moments(model, expected):
  variables = jax.eval_shape(lambda: drawn(model))
  assert forward.reports_moments(model, variables, SHAPE) == expected


def test_random_numbers_are_refused_in_training():
  variables = drawn(Dropped())
  with pytest.raises(ValueError, match='model=Dropped to draw no random '
                     'numbers') as error:
    forward.train_logits(Dropped(), variables, images())
  assert '\n' not in str(error.value)
  # At rate 0 it draws none.
  out, _ = forward.train_logits(Dropped(0.), variables, images())
  np.testing.assert_array_equal(
      out, forward.logits(Dropped(0.), variables, images()))


def test_further_collections_are_kept():
  variables = drawn(Modeless())
  assert set(variables) == {'params', 'batch_stats', 'constants'}
  np.testing.assert_array_equal(variables['constants']['scale'], [3., 3.])


def test_what_a_pass_shows():
  model, x = models.build('cifar_resnet8', 3, width=2), images()
  variables, paths = drawn(model), []

  @jax.jit
  def run(x):
    seen = forward.observed(model, variables, x)
    paths.append(seen.classifier)  # It is no array.
    outputs = [forward.logits(model, variables, x, stop=stage)
               for stage in model.stages[:-1]]
    return (seen._replace(classifier=()), outputs,
            forward.logits_and_moments(model, variables, x))
  seen, outputs, (logits, moments) = run(x)
  np.testing.assert_allclose(seen.logits, logits, rtol=1e-5, atol=1e-5)
  assert jax.tree.structure(seen.moments) == jax.tree.structure(moments)
  # An image's means are of what the batch's are.
  means = sorted(float(layer['mean'][0]) for layer in jax.tree.leaves(
      moments, is_leaf=lambda each: 'mean' in each))
  np.testing.assert_allclose(
      sorted(float(np.mean(each[:, 0])) for each in seen.norm_inputs), means,
      rtol=1e-4, atol=1e-5)
  assert len(seen.stage_outputs) == len(model.stages)
  for found, out in zip(seen.stage_outputs[:-1], outputs, strict=True):
    np.testing.assert_allclose(found, np.mean(out, axis=(1, 2)), rtol=1e-4,
                               atol=1e-5)
  head = variables['params']
  for name in paths[0]:
    head = head[name]
  np.testing.assert_allclose(
      seen.features @ head['kernel'] + head['bias'][None], logits, rtol=1e-4,
      atol=1e-5)


def test_layers_of_flax_show_themselves_too():
  model, x = Normed(), images()
  seen = forward.observed(model, drawn(model), x)
  assert seen.stage_outputs == [] and len(seen.norm_inputs) == 1
  assert seen.features.shape[0] == len(x) and seen.classifier
