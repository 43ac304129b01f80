"""Networks that compute in bfloat16 keep in float32 what needs it."""

import functools

import as_if_trained
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import losses
from ferd_jax import models
from ferd_jax.models import forward
from ferd_jax.models import layers

_BFLOAT16 = jnp.dtype(jnp.bfloat16)
_SHAPE = (8, 8, 3)
_ARCHS = {
    'wrn_10_1': {'width': 4}, 'dm_wrn_10_1': {'width': 4},
    'resnet_1_1_1_1': {'width': 4, 'stem': '7x7/2', 'pooling': 'max'},
    'resnet_bottleneck_1_1_1_1': {'width': 4},
    'cifar_resnet8': {'width': 4, 'mean': (0.5,), 'std': (0.2,)},
    'preact_resnet_1_1_1_1': {'width': 4}, 'mobilenet_v2': {'width': 4}}


def _inner(jaxpr):
  """Yields the equations of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      found = getattr(value, 'jaxpr', value)
      if hasattr(found, 'eqns'):
        yield from _inner(found)


def check(jaxpr, *wide):
  """Asserts what is computed in which type; returns how many convolutions.

  Args:
    jaxpr: of the computation.
    *wide: further primitives that have to be in float32.
  """
  convolutions = 0
  for equation in _inner(jaxpr.jaxpr):
    name = equation.primitive.name
    types = {value.aval.dtype for value in equation.invars
             if hasattr(value.aval, 'dtype')}
    if name == 'conv_general_dilated':
      convolutions += 1
      assert types == {_BFLOAT16}, equation
    elif name in ('exp', 'log', 'rsqrt', 'sqrt', 'dot_general', *wide):
      assert _BFLOAT16 not in types, equation
    elif name == 'reduce_sum' and _BFLOAT16 in types:
      # Of the copies of an upsampled pixel, or of inputs used twice.
      sizes = equation.invars[0].aval.size, equation.outvars[0].aval.size
      assert sizes[0] <= 4 * sizes[1], equation
  return convolutions


@pytest.mark.parametrize('arch', [
    *list(_ARCHS)[:-1], pytest.param('mobilenet_v2', marks=pytest.mark.slow)])
def test_only_convolutions_are_in_bfloat16(arch, monkeypatch):
  # As on accelerators: on CPU a depthwise convolution is none.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  model = models.build(arch, 10, dtype=jnp.bfloat16, **_ARCHS[arch])
  variables = models.abstract_variables(model, _SHAPE)
  for leaf in jax.tree.leaves(variables):
    assert leaf.dtype == jnp.float32

  def loss(params, x, labels):
    given = variables_of(params)
    logits, moments = forward.logits_and_moments(model, given, x)
    trained, stats = forward.train_logits(model, given, x)
    for leaf in jax.tree.leaves((logits, moments, trained, stats)):
      assert leaf.dtype == jnp.float32
    assert not losses.margin(logits, labels).dtype == _BFLOAT16
    return (jnp.sum(losses.cross_entropy(logits, labels) + trained[:, 0])
            + losses.moment_gap(moments, given['batch_stats']))

  stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables[
      'batch_stats'])
  def variables_of(params):
    return {'params': params, 'batch_stats': stats}
  images = jax.ShapeDtypeStruct((2, *_SHAPE), jnp.float32)
  labels = jax.ShapeDtypeStruct((2,), jnp.int32)
  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(
      variables['params'], images, labels)
  assert check(jaxpr) > 9
  for leaf in jaxpr.out_avals:
    assert leaf.dtype == jnp.float32


def test_what_is_observed_is_in_float32():
  model = models.build('cifar_resnet8', 10, width=4, dtype=_BFLOAT16)
  images = jax.ShapeDtypeStruct((2, *_SHAPE), jnp.float32)
  observed = jax.eval_shape(
      lambda variables, x: forward.observed(model, variables, x)[:5],
      models.abstract_variables(model, _SHAPE), images)
  for leaf in jax.tree.leaves(observed):
    assert leaf.dtype == jnp.float32


def test_generators_make_float32_images_in_bfloat16():
  model = models.Generator(side=8, width=4, dtype=_BFLOAT16)
  variables = models.abstract_variables(model, (5,))

  def loss(variables, latents):
    images, stats = model.apply(variables, latents, mutable=['batch_stats'])
    for leaf in jax.tree.leaves((images, stats)):
      assert leaf.dtype == jnp.float32
    return jnp.sum(images)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(
      variables, jax.ShapeDtypeStruct((2, 5), jnp.float32))
  # Forward, and back to inputs and kernels.
  assert check(jaxpr, 'logistic') == 9


@pytest.mark.parametrize('dtype', [None, _BFLOAT16])
def test_moments_of_the_running_statistics_themselves_have_no_gap(dtype):
  norm = layers.BatchNorm(dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (16, 8, 8, 5)) * 3 + 7
  x = x.astype(jnp.bfloat16)
  variables = norm.init(jax.random.key(0), x, train=False)
  _, found = norm.apply(variables, x, train=False, mutable=['moments'])
  moments = found['moments']
  assert moments['mean'].dtype == jnp.float32
  expected = np.asarray(x, np.float64).reshape(-1, 5)
  np.testing.assert_allclose(moments['mean'], expected.mean(0), rtol=1e-5)
  np.testing.assert_allclose(moments['var'], expected.var(0), rtol=1e-4)
  exact = {'mean': jnp.float32(expected.mean(0)),
           'var': jnp.float32(expected.var(0))}
  assert losses.moment_gap(moments, exact) < 1e-4


@pytest.fixture(scope='module')
def trained():
  model = models.build('resnet_1_1_1_1', 10, width=8)
  return model, as_if_trained.random_variables(model, _SHAPE, seed=0)


def test_bfloat16_is_close(trained):
  model, variables = trained
  images = jax.random.uniform(jax.random.key(1), (32, *_SHAPE))
  labels = jnp.arange(32) % 10

  @jax.jit
  def both(images):
    def loss(images, dtype):
      logits = forward.logits(forward.in_precision(model, dtype), variables,
                              images)
      return jnp.sum(losses.cross_entropy(logits, labels)), logits
    return [jax.grad(loss, has_aux=True)(images, dtype)
            for dtype in (None, _BFLOAT16)]
  (exact_gradient, exact), (gradient, logits) = both(images)
  assert not np.array_equal(logits, exact)
  largest = float(jnp.max(jnp.abs(exact)))
  np.testing.assert_allclose(logits, exact, atol=0.01 * largest)
  error = jnp.linalg.norm(gradient - exact_gradient)
  assert error < 0.1 * jnp.linalg.norm(exact_gradient)


class _Own(nn.Module):
  """Somebody's network, which knows of no precision, or of Flax's."""
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
    return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class _Fixed(nn.Module):
  """It has the field, and does not use it."""
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(x.mean((1, 2)))


def test_networks_from_elsewhere():
  own = forward.in_precision(_Own(), _BFLOAT16)
  assert own.dtype == _BFLOAT16
  assert forward.in_precision(own, None) == own
  none = nn.Sequential([])
  assert forward.in_precision(none, _BFLOAT16) == none
  for model, follows in ((_Own(), True), (_Fixed(), False)):
    variables = models.abstract_variables(model, _SHAPE)
    assert forward.follows_precision(
        model, variables, _SHAPE, _BFLOAT16) is follows
  images = jnp.zeros((2, *_SHAPE))
  variables = models.init_variables(own, jax.random.key(0), _SHAPE)
  assert own.apply(variables, images).dtype == _BFLOAT16
  assert forward.logits(own, variables, images).dtype == jnp.float32


def test_options():
  model = models.build('resnet18', 10, dtype='bfloat16')
  assert model == models.build('resnet18', 10, dtype=jnp.bfloat16)
  with pytest.raises(ValueError, match="dtype='int32'"):
    models.build('resnet18', 10, dtype=jnp.int32)


@pytest.mark.slow
def test_a_transformer_computes_in_bfloat16():
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  net = dict(width=6, patch=4)
  wide = models.build('xcit_1_2', 10, **net)
  variables = wide.init(jax.random.key(1), images)
  model = models.build('xcit_1_2', 10, dtype=_BFLOAT16, **net)
  jaxpr = jax.make_jaxpr(functools.partial(forward.logits, model))(
      variables, images)
  dots = [equation.invars[0].aval.dtype for equation in _inner(jaxpr.jaxpr)
          if equation.primitive.name == 'dot_general']
  assert dots.count(_BFLOAT16) == len(dots) - 1  # All but the last layer.
  for equation in _inner(jaxpr.jaxpr):
    if equation.primitive.name in ('exp', 'rsqrt', 'sqrt'):
      assert equation.invars[0].aval.dtype == jnp.float32
  logits = forward.logits(model, variables, images)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, forward.logits(wide, variables, images),
                             atol=0.03)
