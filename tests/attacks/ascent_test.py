"""Tests of ferd_jax.attacks.ascent: a loop around any objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import ascent
from ferd_jax.attacks import geometry

EPS, STEP, STEPS = 0.25, 0.1, 4
SHAPE = (5, 3, 2, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=SHAPE).astype(np.float32)
START = (IMAGES + RNG.uniform(-EPS, EPS, SHAPE)).clip(0, 1).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0])


def net(seed):
  rng = np.random.default_rng(seed)
  first, second = (rng.normal(size=shape).astype(np.float32)
                   for shape in ((6, 8), (8, 3)))
  return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


NET, OTHER = net(1), net(2)


def cross_entropy(images):
  return losses.cross_entropy(NET(images), LABELS), {}


def ascend(objective, x=IMAGES, start=START, **options):
  return ascent.ascend(
      objective, jnp.asarray(x), jnp.asarray(start),
      **{'eps': EPS, 'step_size': STEP, 'num_steps': STEPS, 'unroll': True}
      | options)


@pytest.mark.parametrize('bounds', [(0., 1.), (-0.5, 1.5)])
@pytest.mark.parametrize('norm', geometry.NORMS)
def test_iterates_are_those_of_pgd_bit_for_bit(norm, bounds):
  iterates = [START]
  for num_steps in range(1, STEPS + 1):
    pgd = attacks.PGD(EPS, STEP, num_steps, norm=norm, bounds=bounds,
                      unroll=True)
    expected = pgd(NET, jax.random.key(0), jnp.asarray(IMAGES), LABELS,
                   x_init=jnp.asarray(START))
    got, noticed = ascend(cross_entropy, num_steps=num_steps, norm=norm,
                          bounds=bounds)
    assert got.dtype == jnp.float32 and noticed == {}
    np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(got, iterates[-1])
    iterates.append(np.array(got))


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_a_radius_of_each_image(norm):
  radii = jnp.asarray([0., 0.05, 0.1, 0.2, 0.3])
  got, _ = ascend(cross_entropy, start=IMAGES, eps=radii, norm=norm)
  pgd = attacks.PGD(EPS, STEP, STEPS, norm=norm, start='zero', unroll=True)
  np.testing.assert_array_equal(
      got, pgd(NET, jax.random.key(0), jnp.asarray(IMAGES), LABELS, eps=radii))
  np.testing.assert_array_equal(got[0], IMAGES[0])


def test_rolling_changes_nothing():
  def objective(images):
    values, _ = cross_entropy(images)
    return values, {'value': values}
  for one, two in zip(ascend(objective, unroll=False)[0],
                      ascend(objective)[0], strict=True):
    np.testing.assert_allclose(one, two, atol=1e-6)
  rolled, unrolled = (ascend(objective, unroll=unroll)[1]['value']
                      for unroll in (False, True))
  np.testing.assert_allclose(rolled, unrolled, rtol=1e-5)


def test_objective_of_two_networks():
  def objective(images):
    gap = losses.kl_divergence(NET(IMAGES), NET(images))
    return gap + 2 * losses.cross_entropy(OTHER(images), LABELS), {}
  got, _ = ascend(objective)
  expected = jnp.asarray(START)
  for _ in range(STEPS):
    first, second = (
        np.array(jax.grad(lambda images, f=f: jnp.sum(f(images)))(expected))
        for f in (lambda images: losses.kl_divergence(NET(IMAGES), NET(images)),
                  lambda images: losses.cross_entropy(OTHER(images), LABELS)))
    # Neither decides alone.
    assert (np.sign(first) != np.sign(second)).any()
    moved = np.array(expected) + np.float32(STEP) * np.sign(first + 2 * second)
    moved = np.clip(moved, IMAGES - np.float32(EPS), IMAGES + np.float32(EPS))
    expected = jnp.asarray(np.clip(moved, 0, 1))
  np.testing.assert_allclose(got, expected, atol=1e-6)
  before, after = (objective(jnp.asarray(x))[0] for x in (START, got))
  assert (after > before).all()


@pytest.mark.parametrize('dtype', [bool, np.int32, np.float32])
def test_kappa_counts_iterates_that_are_predicted_right(dtype):
  labels = np.array(NET(jnp.asarray(IMAGES))).argmax(-1)
  labels[0] = (labels[0] + 1) % 3  # One is wrong from the start.

  def objective(images):
    logits = NET(images)
    right = jnp.argmax(logits, -1) == labels
    return losses.cross_entropy(logits, labels), {
        'kappa': right.astype(dtype), 'nested': (logits[:, 0],)}
  _, noticed = ascend(objective, start=IMAGES, num_steps=10, step_size=0.03)
  kappa, sums = np.zeros(len(IMAGES)), np.zeros(len(IMAGES))
  images = jnp.asarray(IMAGES)
  for _ in range(10):  # At the last iterate no gradient is taken.
    logits = np.array(NET(images))
    kappa += logits.argmax(-1) == labels
    sums += logits[:, 0]
    images, _ = ascend(objective, start=images, num_steps=1, step_size=0.03)
  np.testing.assert_array_equal(noticed['kappa'], kappa)
  np.testing.assert_allclose(noticed['nested'][0], sums, rtol=1e-4, atol=1e-4)
  assert kappa[0] == 0 and len(set(kappa)) > 2 and 1 < kappa.max()


def test_nothing_has_a_gradient():
  def total(x):
    def objective(images):
      values = losses.cross_entropy(NET(images), LABELS) * jnp.sum(x)
      return values, {'value': values}
    images, noticed = ascend(objective, x, x, num_steps=2)
    return jnp.sum(images) + jnp.sum(noticed['value'])
  np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(IMAGES)),
                                np.zeros(SHAPE))


@pytest.mark.parametrize('reduce', [
    jnp.mean, functools.partial(jnp.sum, keepdims=True),
    lambda values: values[:, None], lambda values: values[:2]])
def test_one_value_per_image(reduce):
  def objective(images):
    values, noticed = cross_entropy(images)
    return reduce(values), noticed
  with pytest.raises(ValueError, match=r'one value per image, \(5,\), got \('):
    ascend(objective)
