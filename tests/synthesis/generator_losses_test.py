"""Tests of ferd_jax.synthesis.generator_losses against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.synthesis import generator_losses

B, K = 6, 5
pytestmark = pytest.mark.usefixtures('float64')


def logits(seed, scale=3.):
  return scale * np.random.default_rng(seed).normal(size=(B, K))


def softmax(x):
  exp = np.exp(x - x.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


T, S = logits(0), logits(1)
LABELS = np.array([0, 4, 2, 2, 1, 3])
KL = (softmax(T) * (np.log(softmax(T)) - np.log(softmax(S)))).sum(-1)


def test_cross_entropies():
  entropies = -np.log(softmax(T))
  np.testing.assert_allclose(generator_losses.label_loss(T, LABELS),
                             entropies[np.arange(B), LABELS].mean())
  np.testing.assert_allclose(generator_losses.confidence(T),
                             entropies.min(-1).mean())


@pytest.mark.parametrize('smoothing', [0., 0.2, 0.02])
def test_smoothed_labels(smoothing):
  targets = np.full((B, K), smoothing / (K - 1))
  targets[np.arange(B), LABELS] = 1 - smoothing
  np.testing.assert_allclose(targets.sum(-1), 1)
  expected = np.where(
      targets > 0,
      targets * (np.log(np.maximum(targets, 1e-300)) - np.log(softmax(S))), 0)
  np.testing.assert_allclose(
      generator_losses.smoothed_label_kl(S, LABELS, smoothing),
      expected.sum(-1).mean())


def test_smoothed_label_kl_is_0_for_the_target_and_has_gradients():
  targets = np.full((B, K), 0.2 / (K - 1))
  targets[np.arange(B), LABELS] = 0.8
  np.testing.assert_allclose(generator_losses.smoothed_label_kl(
      np.log(targets), LABELS, 0.2), 0, atol=1e-12)
  for smoothing in (0., 0.2):
    gradient = jax.grad(generator_losses.smoothed_label_kl)(S, LABELS,
                                                            smoothing)
    targets = np.full((B, K), smoothing / (K - 1))
    targets[np.arange(B), LABELS] = 1 - smoothing
    np.testing.assert_allclose(gradient, (softmax(S) - targets) / B)


def test_balance():
  mean = softmax(T).mean(0)
  np.testing.assert_allclose(generator_losses.balance(T),
                             (mean * np.log(mean)).sum())
  np.testing.assert_allclose(generator_losses.balance(T, base=10),
                             (mean * np.log10(mean)).sum())
  # Equal predictions of each class are the least.
  even = 50. * np.eye(K)
  np.testing.assert_allclose(generator_losses.balance(even), -np.log(K))
  assert generator_losses.balance(T) > -np.log(K)
  # One class alone: 0, with gradients that are numbers.
  alone = np.zeros((B, K))
  alone[:, 0] = 2000.
  np.testing.assert_allclose(generator_losses.balance(alone), 0)
  assert np.isfinite(jax.grad(generator_losses.balance)(alone)).all()


def test_activation():
  features = logits(2)
  np.testing.assert_allclose(generator_losses.activation(features),
                             -np.abs(features).mean())


def test_divergences_of_student_and_teacher():
  np.testing.assert_allclose(generator_losses.negative_kl(T, S), -KL.mean())
  np.testing.assert_allclose(generator_losses.negative_l1(T, S),
                             -np.abs(T - S).mean())
  # Both networks' logits have a gradient: it is to reach the image.
  for name in ('negative_kl', 'negative_l1', 'negative_kl_where_equal'):
    loss = getattr(generator_losses, name)
    for gradient in jax.grad(loss, argnums=(0, 1))(T, S + T):
      assert np.abs(gradient).max() > 0.01, name


def test_only_equal_predictions_count():
  equal = T.argmax(-1) == S.argmax(-1)
  assert 0 < equal.sum() < B
  np.testing.assert_allclose(
      generator_losses.negative_kl_where_equal(T, S), -(KL * equal).mean())
  far = S.copy()
  far[np.arange(B), (T.argmax(-1) + 1) % K] = 99.
  assert generator_losses.negative_kl_where_equal(T, far) == 0
  near = 0.1 * T  # The same classes everywhere.
  np.testing.assert_allclose(
      generator_losses.negative_kl_where_equal(T, near),
      generator_losses.negative_kl(T, near))


def test_clamped_js():
  a, b = softmax(S / 3), softmax(T / 3)
  m = (a + b) / 2
  a, b, m = (np.clip(p, 0.01, 0.99) for p in (a, b, m))
  expected = 0.5 * ((m * np.log(m / a)).sum(-1).mean()
                    + (m * np.log(m / b)).sum(-1).mean())
  np.testing.assert_allclose(generator_losses.clamped_js(T, S), expected)
  assert generator_losses.clamped_js(T, T) == 0
  # The order of the arguments of KL is the code's, not the textbook's.
  textbook = 0.5 * ((a * np.log(a / m)).sum(-1).mean()
                    + (b * np.log(b / m)).sum(-1).mean())
  assert abs(expected - textbook) > 1e-3


def _unit(seed, number):
  rows = np.random.default_rng(seed).normal(size=(number, 3))
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _contrast(queries, keys, batch, temperature):
  rows = queries @ keys.T / temperature
  entropies = -np.log(softmax(rows)[np.arange(len(rows)), np.arange(len(rows))])
  cached = entropies[batch:].mean() if len(rows) > batch else 0.
  return entropies[:batch].mean() + cached


@pytest.mark.parametrize('there', [(), (1,), (0, 1, 3), (0, 1, 2, 3)])
def test_contrast_with_what_the_bank_has(there):
  q, k, cq, ck = (_unit(i, n) for i, n in enumerate((B, B, 4, 4)))
  present = np.isin(np.arange(4), there)
  got = generator_losses.contrastive(q, k, cq, ck, present, 0.2)
  expected = _contrast(np.concatenate([q, cq[present]]),
                       np.concatenate([k, ck[present]]), B, 0.2)
  np.testing.assert_allclose(got, expected)


def test_contrast_sends_gradients_to_the_queries_only():
  args = [_unit(i, n) for i, n in enumerate((B, B, 4, 4))]
  present = np.array([True, False, True, True])
  gradients = jax.grad(
      lambda *args: generator_losses.contrastive(*args, present, 0.2),
      argnums=(0, 1, 2, 3))(*args)
  assert [bool(np.any(each)) for each in gradients] == [
      True, False, True, False]
  assert all(np.isfinite(each).all() for each in gradients)
  assert not np.any(gradients[2][1])  # It is not there.


def _images():
  return np.random.default_rng(3).uniform(size=(B, 5, 4, 2))


def test_total_variation():
  x = _images()
  differences = [x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1],
                 x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]]
  np.testing.assert_allclose(generator_losses.total_variation_l1(x),
                             sum(np.abs(d).mean() for d in differences))
  np.testing.assert_allclose(generator_losses.total_variation_l2(x),
                             sum(np.sqrt((d ** 2).sum()) for d in differences))
  flat = jnp.ones((2, 4, 4, 1))
  assert generator_losses.total_variation_l2(flat) == 0
  assert np.isfinite(jax.grad(generator_losses.total_variation_l2)(flat)).all()


@pytest.mark.parametrize('name, args', [
    ('balance', (T,)), ('total_variation_l2', (_images(),))])
def test_terms_of_the_batch_are_those_of_all_shards(name, args):
  loss = getattr(generator_losses, name)
  shards = [np.reshape(x, (3, 2, *x.shape[1:])) for x in args]
  # Gradients as those of every shard's own loss, as steps take them.
  values, gradients = jax.vmap(
      jax.value_and_grad(lambda x: loss(x, axis_name='i')),
      axis_name='i')(*shards)
  value, gradient = jax.value_and_grad(loss)(*args)
  np.testing.assert_allclose(values, np.full(3, value))
  np.testing.assert_allclose(gradients.reshape(gradient.shape) / 3, gradient)


def test_contrast_of_shards_is_that_of_the_batch():
  q, k, cq, ck = (_unit(i, n) for i, n in enumerate((B, B, 4, 4)))
  present = np.array([True, False, True, True])

  def loss(q, k, axis_name=None):
    return generator_losses.contrastive(q, k, cq, ck, present, 0.2,
                                        axis_name=axis_name)
  shards = [x.reshape(3, 2, 3) for x in (q, k)]
  values, gradients = jax.vmap(jax.value_and_grad(
      lambda q, k: loss(q, k, 'i')), axis_name='i')(*shards)
  value, gradient = jax.value_and_grad(loss)(q, k)
  np.testing.assert_allclose(np.mean(values), value)
  np.testing.assert_allclose(gradients.reshape(gradient.shape) / 3, gradient)
