"""Tests of ferd_jax.synthesis.trained_latents; ferd_test.py has the rest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.core import parallel
from ferd_jax.synthesis import trained_latents

PART = nets.make(trained_latents.TrainedLatents, keep='last',
                 measured='last_view')


def loss_fn(images, shift):
  """Returns how far the mean is from a shift, and that as the view."""
  distance = jnp.square(jnp.mean(images) - shift['shift'])
  return trained_latents.Loss(images + 1, {'loss': distance}, aux=images)


@pytest.fixture(scope='module')
def start():
  key = jax.random.key(0)
  examples = PART.drawn(jnp.full(3, 1 / 3), jnp.arange(nets.BATCH), key)
  return PART.begun(PART.drawn_generator(examples, key), examples)


@pytest.fixture(scope='module')
def found(start):
  return nets.jit(functools.partial(PART.descend, loss_fn=loss_fn))(
      start, extra={'shift': jnp.float32(0.3)})


def test_extra_is_differentiated_and_not_changed(found):
  mean = np.mean(found.aux)
  np.testing.assert_allclose(found.extra_gradient['shift'],
                             -2 * (mean - 0.3), rtol=1e-5)
  np.testing.assert_allclose(found.metrics['loss'], (mean - 0.3) ** 2,
                             rtol=1e-5)


def test_gradient_is_what_the_optimiser_got(found):
  for got, moment in zip(
      jax.tree.leaves(found.gradient),
      jax.tree.leaves(found.generator.opt_state[0].mu), strict=True):
    np.testing.assert_allclose(moment, 0.5 * got, rtol=1e-6)


def test_last_images_are_kept_and_views_measured(start, found):
  worse = start.replace(generator=start.generator.replace(
      best_loss=jnp.float32(-1)))
  best = dataclasses.replace(PART, keep='best')
  for part, is_new in ((PART, True), (best, False)):
    after = nets.jit(functools.partial(part.descend, loss_fn=loss_fn))(
        worse, extra={'shift': jnp.float32(0.3)})
    assert bool(after.better) == is_new
    assert np.any(after.examples.best_images) == is_new
  state = trained_latents.SynthesisState(found.generator, found.examples)
  view, labels = PART.measured_images(state, None, None)
  np.testing.assert_allclose(view, found.aux + 1, rtol=1e-6)
  assert labels is found.examples.labels
  images, _ = PART.images(state, None, None)
  np.testing.assert_array_equal(images, found.aux)
  assert best.measured_images(state, None, None)[0] is view


def test_extra_part_has_specs_of_its_own(start):
  specs = PART.phase_specs({'own': parallel.SHARDED})
  leaves = jax.tree.broadcast(specs, start.replace(extra={'own': (1, 2)}))
  assert leaves.extra == {'own': (parallel.SHARDED, parallel.SHARDED)}
  assert PART.specs()[0] is parallel.REPLICATED
