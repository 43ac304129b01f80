"""Terms of the losses of generators, of which each method weighs some.

All are descended. Each returns a scalar of a shard of the batch, whose mean
over the axis is that of the global batch; means over examples need no axis.
L_bn is `losses.moment_gap`.

References: DAFL arXiv:1904.01186, ZSKT arXiv:1905.09768, DFAD
  arXiv:1912.11006, DFQ arXiv:2005.04136, DeepInversion arXiv:1912.08795, CMI
  arXiv:2105.08584, Fast arXiv:2112.06253, DFHL-RS arXiv:2312.05924, and the
  code that `docs/baselines.md` names.
"""

from collections.abc import Iterator
import math

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives

# JS' of DeepInversion: its temperature, and where it clamps probabilities.
_JS_TEMPERATURE, _JS_RANGE = 3., (0.01, 0.99)


def label_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns L_oh, the mean cross-entropy with int labels `[B]`."""
  return jnp.mean(losses.cross_entropy(logits, labels))


def confidence(logits: jax.Array) -> jax.Array:
  """Returns L_oh with the classes that the logits `[B, K]` themselves say."""
  return label_loss(logits, jnp.argmax(logits, axis=-1))


def smoothed_label_kl(logits: jax.Array, labels: jax.Array,
                      smoothing: float) -> jax.Array:
  """Returns the mean KL(smooth(label) || softmax(logits)).

  Args:
    logits: `[B, K]`.
    labels: int `[B]`.
    smoothing: probability that the target shares among all other classes.
  """
  classes = logits.shape[-1]
  onehot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
  targets = ((1 - smoothing) * onehot
             + smoothing / (classes - 1) * (1 - onehot))
  known = jax.scipy.special.xlogy(targets, targets)
  divergence = known - targets * jax.nn.log_softmax(logits)
  return jnp.mean(jnp.sum(divergence, axis=-1))


def balance(logits: jax.Array, *, base: float = math.e,
            axis_name: str | None = None) -> jax.Array:
  """Returns sum_c p_c log p_c of the mean prediction p of the batch.

  At least -log K, which it is where all classes are predicted equally often.

  Args:
    logits: `[B, K]`.
    base: of the logarithm.
    axis_name: mapped axis over which the batch is sharded.
  """
  # By logarithms: where a class's probability underflows, the gradient of
  # p log p would be no number.
  log_probs = jax.nn.log_softmax(logits)
  largest = collectives.pmax(
      lax.stop_gradient(jnp.max(log_probs, axis=0)), axis_name)
  mean = collectives.pmean(
      jnp.mean(jnp.exp(log_probs - largest[None]), axis=0), axis_name)
  log_mean = jnp.log(mean) + largest
  return jnp.sum(jnp.exp(log_mean) * log_mean) / math.log(base)


def activation(features: jax.Array) -> jax.Array:
  """Returns -mean |feature| of what the classifier reads, `[B, F]`."""
  return -jnp.mean(jnp.abs(features))


def negative_kl(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Returns -mean KL(teacher || student) of logits `[B, K]`."""
  return -jnp.mean(losses.kl_divergence(teacher, student))


def negative_kl_where_equal(teacher: jax.Array,
                            student: jax.Array) -> jax.Array:
  """Returns `negative_kl` with 0 for examples of differing predictions."""
  equal = jnp.argmax(teacher, axis=-1) == jnp.argmax(student, axis=-1)
  divergence = losses.kl_divergence(teacher, student)
  return -jnp.mean(jnp.where(equal, divergence, 0))


def negative_l1(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Returns -mean |teacher - student| over all logits `[B, K]`."""
  return -jnp.mean(jnp.abs(teacher - student))


def clamped_js(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Returns JS', DeepInversion's divergence of logits `[B, K]`, a mean.

  With a, b the predictions at temperature 3 and m their mean, all three then
  clamped to [0.01, 0.99], it is (KL(m || a) + KL(m || b)) / 2: the arguments
  are in the order of the public code, and clamped ones add up to no 1. It is 0
  for equal predictions.
  """
  first, second = (jax.nn.softmax(logits / _JS_TEMPERATURE)
                   for logits in (student, teacher))
  mixture = 0.5 * (first + second)
  first, second, mixture = (jnp.clip(probs, *_JS_RANGE)
                            for probs in (first, second, mixture))
  divergences = (mixture * (jnp.log(mixture) - jnp.log(probs))
                 for probs in (first, second))
  return 0.5 * sum(jnp.mean(jnp.sum(each, axis=-1)) for each in divergences)


def contrastive(queries: jax.Array, keys: jax.Array,
                cached_queries: jax.Array, cached_keys: jax.Array,
                present: jax.Array, temperature: float, *,
                axis_name: str | None = None) -> jax.Array:
  """Returns CMI's L_cr: each image is to be told from all others.

  The cross-entropy of `query . key / temperature` over the keys of the whole
  batch and of the bank, with the key of the same image as the label: its mean
  over the batch, plus that over the bank's rows, if there are any.

  Args:
    queries: `[B, D]`, of unit length, of this shard's local views.
    keys: `[B, D]`, the same of the global views; no gradient reaches them.
    cached_queries: `[M, D]`, of images of before, the same on every shard.
    cached_keys: `[M, D]`.
    present: bool `[M]`, which of those there are.
    temperature: above 0.
    axis_name: mapped axis over which the batch is sharded.
  """
  keys, cached_keys = lax.stop_gradient((keys, cached_keys))
  own = collectives.example_indices(len(queries), axis_name)
  keys = jnp.concatenate([collectives.all_gather(keys, axis_name), cached_keys])
  batch = len(keys) - len(cached_keys)
  absent = jnp.concatenate([jnp.zeros(batch, bool), ~present])

  def entropies(queries, labels):
    logits = queries @ keys.T / temperature
    logits = jnp.where(absent[None], -jnp.inf, logits)
    return losses.cross_entropy(logits, labels)
  # A row that is not there has no key either: any label that has one will do.
  cached = entropies(cached_queries, jnp.where(
      present, batch + jnp.arange(len(cached_queries)), 0))
  cached_mean = (jnp.sum(jnp.where(present, cached, 0))
                 / jnp.maximum(jnp.sum(present), 1))
  return jnp.mean(entropies(queries, own)) + cached_mean


def total_variation_l1(images: jax.Array) -> jax.Array:
  """Returns the sum of the mean absolute differences in four directions.

  Args:
    images: `[B, H, W, C]`.
  """
  return sum(jnp.mean(jnp.abs(each)) for each in _differences(images))


def total_variation_l2(images: jax.Array,
                       axis_name: str | None = None) -> jax.Array:
  """Returns the sum of the norms of the differences in four directions.

  The norms are Euclidean ones of the whole global batch.

  Args:
    images: `[B, H, W, C]`.
    axis_name: mapped axis over which the batch is sharded.
  """
  return sum(losses.euclidean_norm(each, axis_name)
             for each in _differences(images))


def _differences(images: jax.Array) -> Iterator[jax.Array]:
  """Yields differences of neighbours: in rows, columns and both diagonals."""
  yield images[:, :, 1:] - images[:, :, :-1]
  yield images[:, 1:] - images[:, :-1]
  yield images[:, 1:, 1:] - images[:, :-1, :-1]
  yield images[:, 1:, :-1] - images[:, :-1, 1:]
