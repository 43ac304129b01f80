"""Tests of ferd_jax.synthesis.bottleneck: noise levels and the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import losses
from ferd_jax.synthesis import bottleneck

BATCH, SIDE, CHANNELS, CLASSES = 4, 3, 6, 3
pytestmark = pytest.mark.usefixtures('float64')


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


HEAD = 2 * draw(CHANNELS, CLASSES, seed=1)
LATENTS = 0.6 * draw(BATCH, SIDE, SIDE, CHANNELS)
LABELS = np.arange(BATCH) % CLASSES


def tail(latents):
  return jnp.mean(latents, axis=(1, 2)) @ HEAD


def constant_tail(latents):
  return jnp.zeros((latents.shape[0], CLASSES)) + 0 * jnp.sum(latents)


def keys(seed=0, batch=BATCH):
  return jax.random.split(jax.random.key(seed), batch)


def levels(settings, tail_fn=tail, seed=0):
  def run(latents, labels, keys):
    return bottleneck.noise_levels(tail_fn, latents, labels, keys, settings)
  if not settings.unroll:
    run = jax.jit(run)
  # Without `jit`, operations are compiled once for all tests.
  return np.asarray(run(jnp.asarray(LATENTS), jnp.asarray(LABELS), keys(seed)))


def settings(**options):
  return bottleneck.Bottleneck(**{'steps': 5, 'unroll': True} | options)


def test_spatial_variance_is_unbiased():
  flat = LATENTS.reshape(BATCH, -1, CHANNELS)
  np.testing.assert_allclose(bottleneck.spatial_variance(LATENTS),
                             flat.var(1, ddof=1))


def test_penalty_is_zero_at_equality_and_positive_elsewhere():
  variance = np.logspace(-3, 3, 13)
  got = np.array(bottleneck.penalty(variance[:, None], variance[None]))
  diagonal = np.eye(13, dtype=bool)
  np.testing.assert_allclose(got[diagonal], 0, atol=1e-6)
  assert got[~diagonal].min() > 0.1
  ratio = variance[:, None] / variance[None]
  np.testing.assert_allclose(got, ratio - np.log(ratio) - 1, rtol=1e-5,
                             atol=1e-6)


def test_penalty_of_zero_variance_is_finite():
  assert np.isfinite(bottleneck.penalty(np.zeros(1), np.ones(1))).all()


def test_noise_takes_the_features_variance_without_cross_entropy():
  got = levels(settings(steps=1500, learning_rate=0.01, unroll=False),
               constant_tail)
  variance = LATENTS.reshape(BATCH, -1, CHANNELS).var(1, ddof=1)
  np.testing.assert_allclose(got ** 2, variance, rtol=1e-3)


def test_noise_that_nothing_reads_stays_as_it_starts():
  got = levels(settings(beta=0.), constant_tail)
  np.testing.assert_allclose(got, np.log(2))


def test_sum_and_mean_are_the_same_up_to_beta():
  mean = levels(settings(kl='mean', beta=0.3))
  summed = levels(settings(kl='sum', beta=0.15 / CHANNELS))
  np.testing.assert_allclose(summed, mean, atol=1e-12)
  strong = levels(settings(kl='sum', beta=0.3))
  assert np.abs(strong - mean).max() > 1e-3


def reference(steps, learning_rate=0.1, beta=0.3):
  """Adam on the analytic gradient of the objective, in NumPy."""
  def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

  variance = LATENTS.reshape(BATCH, -1, CHANNELS).var(1, ddof=1)
  lam, first, second = (np.zeros((BATCH, CHANNELS)) for _ in range(3))
  for i in range(steps):
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), [CHANNELS])
                      for key in keys()])
    sigma = np.log1p(np.exp(lam))
    logits = (LATENTS.mean((1, 2)) + sigma * noise) @ HEAD
    entropy = noise * ((softmax(logits) - np.eye(CLASSES)[LABELS]) @ HEAD.T)
    information = (1 / sigma - variance / sigma ** 3) / CHANNELS
    gradient = (entropy + beta * information) / BATCH / (1 + np.exp(-lam))
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient ** 2
    lam -= (learning_rate * first / (1 - 0.9 ** (i + 1))
            / (np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8))
  return np.log1p(np.exp(lam))


def test_trajectory_against_numpy():
  np.testing.assert_allclose(levels(settings()), reference(5), atol=1e-7)


def test_unrolling_changes_nothing():
  np.testing.assert_allclose(levels(settings(unroll=False)),
                             levels(settings()), atol=1e-12)


def test_noise_is_constant_over_space():
  # A tail of spatial differences does not see such noise, whatever its key.
  def differences(latents):
    return (latents[:, 0, 0] - latents[:, 1, 2]) @ HEAD
  expected = levels(settings(), constant_tail)
  for seed in range(2):
    np.testing.assert_allclose(levels(settings(), differences, seed),
                               expected, atol=1e-9)
  assert np.abs(levels(settings(), tail, 0)
                - levels(settings(), tail, 1)).max() > 1e-3


def test_shards_see_the_same_noise_and_mask():
  variance = np.asarray(bottleneck.spatial_variance(LATENTS))

  def shard(latents, labels, keys):
    sigma = bottleneck.noise_levels(tail, latents, labels, keys, settings(),
                                    axis_name='i')
    mask = bottleneck.non_robust_mask(
        sigma, bottleneck.spatial_variance(latents), axis_name='i')
    return sigma, mask

  def split(array):
    return array.reshape(2, 2, *array.shape[1:])
  sigma, mask = jax.jit(jax.vmap(shard, axis_name='i'))(
      split(LATENTS), split(LABELS), split(keys()))
  whole = levels(settings())
  np.testing.assert_allclose(sigma.reshape(BATCH, CHANNELS), whole, atol=1e-12)
  np.testing.assert_array_equal(
      mask.reshape(BATCH, 1, 1, CHANNELS),
      bottleneck.non_robust_mask(whole, variance))
  # The threshold is that of the shard with the greater variances.
  shard_max = variance.reshape(2, -1).max(1)
  assert shard_max[0] != shard_max[1]


SIGMA = np.sqrt([[0.9, 4., 5.], [0.5, 1.5, 3.]])
VARIANCE = np.array([[1., 4., 2.], [1., 0.5, 0.25]])


def test_global_mask():
  got = bottleneck.non_robust_mask(SIGMA, VARIANCE)
  assert got.shape == (2, 1, 1, 3)
  # Equality, 4 > 4, is not robust: the comparison is strict.
  np.testing.assert_array_equal(got[:, 0, 0], [[1, 1, 0], [1, 1, 1]])


def test_per_sample_mask():
  got = bottleneck.non_robust_mask(SIGMA, VARIANCE, mask='per_sample')
  np.testing.assert_array_equal(got[:, 0, 0], [[1, 1, 0], [1, 0, 0]])


def test_mask_is_strict():
  sigma, above = np.full((1, 2), 2.), np.nextafter(2., 3)
  variance = np.array([[4., 1.]])
  for mask in bottleneck.MASKS:
    np.testing.assert_array_equal(
        bottleneck.non_robust_mask(sigma, variance, mask=mask),
        np.ones((1, 1, 1, 2)))
    np.testing.assert_array_equal(
        bottleneck.non_robust_mask(sigma * above / 2, variance, mask=mask),
        np.zeros((1, 1, 1, 2)))


def test_global_mask_of_shards_uses_the_largest_variance_of_all():
  got = jax.vmap(
      lambda sigma, variance: bottleneck.non_robust_mask(sigma, variance,
                                                         axis_name='i'),
      axis_name='i')(SIGMA[:, None], VARIANCE[:, None])
  np.testing.assert_array_equal(got.reshape(2, 3), [[1, 1, 0], [1, 1, 1]])


def uniformity_loss(latents, matrix):
  sigma = bottleneck.noise_levels(tail, latents, LABELS, keys(), settings())
  mask = bottleneck.non_robust_mask(sigma, bottleneck.spatial_variance(latents),
                                    mask='per_sample')
  logits = jnp.mean(latents * mask, axis=(1, 2)) @ matrix
  return jnp.mean(losses.uniformity(logits)), mask


def test_gradient_of_uniformity_reaches_the_image_through_the_latent_only():
  gradient, mask = jax.grad(uniformity_loss, has_aux=True)(
      jnp.asarray(LATENTS), jnp.asarray(HEAD))
  assert 0 < np.mean(mask) < 1
  logits = (LATENTS * np.asarray(mask)).mean((1, 2)) @ HEAD
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  by_channel = (probs - 1 / CLASSES) @ HEAD.T / BATCH / SIDE ** 2
  expected = np.asarray(mask) * by_channel[:, None, None]
  np.testing.assert_allclose(gradient,
                             np.broadcast_to(expected, LATENTS.shape),
                             atol=1e-14)


def test_noise_levels_and_mask_have_no_gradient():
  gradient = jax.grad(lambda latents: jnp.sum(bottleneck.noise_levels(
      tail, latents, LABELS, keys(), settings(steps=2))))(
          jnp.asarray(LATENTS))
  np.testing.assert_array_equal(gradient, np.zeros_like(LATENTS))
  by_sigma, by_variance = jax.grad(
      lambda *args: jnp.sum(bottleneck.non_robust_mask(*args)), (0, 1))(
          SIGMA, VARIANCE)
  np.testing.assert_array_equal(by_sigma, np.zeros_like(SIGMA))
  np.testing.assert_array_equal(by_variance, np.zeros_like(SIGMA))


@pytest.mark.parametrize(('options', 'message'), [
    ({'steps': 0}, 'steps=0'), ({'beta': -0.3}, 'beta=-0.3'),
    ({'learning_rate': 0.}, 'learning_rate=0.0'), ({'kl': 'max'}, "kl='max'"),
    ({'mask': 'local'}, "mask='local'")])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    bottleneck.Bottleneck(**options)
