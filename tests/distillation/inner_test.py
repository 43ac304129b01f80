"""Tests of ferd_jax.distillation.inner: which network is attacked, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.distillation import base
from ferd_jax.distillation import inner
from ferd_jax.models import frozen

EPS, STEP = 8 / 255, 2 / 255
SHAPE = (4, 3, 2, 1)
RNG = np.random.default_rng(0)
IMAGES, TEACHER_LOGITS = RNG.uniform(size=SHAPE), 3 * RNG.normal(size=(4, 3))
FIRST, SECOND = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 3))
LABELS = np.array([0, 1, 2, 1])


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def keys():
  return jax.random.split(jax.random.key(0), len(IMAGES))


def net(x):
  return jnp.tanh(x.reshape(len(x), -1) @ FIRST) @ SECOND


def no_net(x):
  raise AssertionError('This network must not be read.')


@pytest.mark.parametrize('source', inner.SOURCES)
def test_source_is_the_only_network_read(source):
  found = inner.UniformTarget(EPS, STEP, steps=2, gamma=0.2, source=source)
  nets = {name: no_net for name in inner.SOURCES} | {source: net}
  networks = base.Networks(
      student=nets['student'], student_train=no_net,
      teachers={frozen.ROBUST: nets['teacher'], 'other': no_net})
  # Neither labels nor a class state have a part in it.
  got = found(networks, jnp.asarray(IMAGES), None,
              {frozen.ROBUST: TEACHER_LOGITS, 'other': None}, None, keys())
  attack = attacks.UTAE(EPS, STEP, 2, gamma=0.2)
  np.testing.assert_array_equal(
      got.images, attack(net, keys(), jnp.asarray(IMAGES), TEACHER_LOGITS))
  assert np.abs(got.images - IMAGES).max() > STEP
  assert got.noticed == {}


def test_settings_are_those_of_the_attack():
  found = inner.UniformTarget(EPS, STEP)
  assert found.needs == (frozen.ROBUST,)
  assert found.source == 'student'
  assert found.attack == attacks.UTAE(EPS, STEP, 10, gamma=0.3)


def test_images_have_no_gradient():
  found = inner.UniformTarget(EPS, STEP, steps=1)

  def total(x, matrix, teacher_logits):
    def student(x):
      return jnp.tanh(x.reshape(len(x), -1) @ matrix) @ SECOND
    networks = base.Networks(student, no_net, {frozen.ROBUST: no_net})
    attacked = found(networks, x, LABELS, {frozen.ROBUST: teacher_logits}, None,
                     keys())
    return jnp.sum(attacked.images)
  gradients = jax.grad(total, argnums=(0, 1, 2))(
      jnp.asarray(IMAGES), jnp.asarray(FIRST), jnp.asarray(TEACHER_LOGITS))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(('options', 'message'), [
    ({'source': 'both'}, "source='both'"), ({'steps': 0}, '^Expected steps=0'),
    ({'gamma': -0.1}, 'gamma=-0.1'), ({'eps': -1.}, 'eps=-1.0'),
    ({'step_size': -1.}, 'step_size=-1.0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    inner.UniformTarget(**{'eps': EPS, 'step_size': STEP} | options)
