"""Tests of ferd_jax.models.xcit; torch_io_test compares it with PyTorch."""

import functools

import as_if_trained
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax.models import forward

jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.mark.parametrize(('size', 'patch', 'tokens'), [
    (8, 4, 2), (8, 1, 8), (28, 4, 7), (32, 4, 8), (32, 16, 2), (30, 8, 4),
    (4, 4, 1)])
def test_tokens(size, patch, tokens):
  model = models.build('xcit_1_2', 3, width=1, patch=patch)
  image = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
  variables = models.abstract_variables(model, (size, size, 1))
  def both(variables, x):
    return (forward.logits(model, variables, x, stop='blocks_0'),
            forward.logits(model, variables, x))
  found, logits = jax.eval_shape(both, variables, image)
  assert found.shape == (2, tokens, tokens, 8) and logits.shape == (2, 3)


@pytest.mark.parametrize(('arch', 'parameters'), [
    ('xcit_s12', 25_872_154), ('xcit_m12', 45_893_290),
    ('xcit_l12', 103_031_338)])
def test_size_of_published_networks(arch, parameters):
  variables = models.abstract_variables(models.build(arch, 10), (32, 32, 3))
  assert parameters == sum(
      leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(('arch', 'width'), [
    ('xcit_1_2', 1), ('meansparse_ra_wrn_1_1_1', 4)])
def test_moments_of_teachers_are_those_of_their_batch_norms(arch, width):
  model = models.build(arch, 3, width=width)
  variables = models.abstract_variables(model, (8, 8, 1))
  assert forward.reports_moments(model, variables, (8, 8, 1))


def test_training_pass_moves_statistics_and_has_gradients():
  model = models.build('xcit_1_2', 3, width=1)
  variables = as_if_trained.random_variables(model, (8, 8, 1), seed=0)
  x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
  def loss(params):
    logits, stats = forward.train_logits(
        model, variables | {'params': params}, x)
    return jnp.sum(jnp.square(logits)), stats
  gradients, stats = jit(jax.grad(loss, has_aux=True))(variables['params'])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert np.abs(gradients['blocks_0']['attn']['temperature']).max() > 0
  assert np.abs(gradients['cls_token']).max() > 0
  assert all(jax.tree.leaves(jax.tree.map(
      lambda a, b: not np.array_equal(a, b), stats,
      variables['batch_stats'])))


def test_an_image_of_zeros_has_a_finite_gradient():
  # Whose queries may be 0 for all tokens, which are divided by their norm.
  model = models.build('xcit_1_2', 3, width=1)
  variables = as_if_trained.random_variables(model, (8, 8, 1), seed=0)
  variables = variables | {'params': jax.tree.map(jnp.zeros_like,
                                                  variables['params'])}
  gradient = jit(jax.grad(lambda x: jnp.sum(forward.logits(
      model, variables, x))))(jnp.zeros((2, 8, 8, 1)))
  assert np.isfinite(gradient).all()
