"""Losses on logits, per example unless the name or docstring says otherwise.

All take raw logits `[B, C]` and return `[B]`; callers reduce, since the
originals differ in their reductions. Attacks ascend, training descends.
"""

from typing import Any
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ferd_jax.core import collectives

Divisor = Literal['weights', 'batch']  # of the wMSE, see `decoupled_kl`
_MASKED = -1e9  # the logit of a class that is never predicted


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label], `[B]`, for int labels `[B]`."""
  return -_logit_of(jax.nn.log_softmax(logits), labels)


def soft_cross_entropy(target_logits: jax.Array,
                       logits: jax.Array) -> jax.Array:
  """Returns the cross-entropy to softmax(target_logits), `[B]`.

  No gradient reaches `target_logits`. It differs from the KL divergence by the
  targets' entropy, a constant for whoever trains `logits`.
  """
  targets = lax.stop_gradient(jax.nn.softmax(target_logits))
  return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(target_logits: jax.Array, logits: jax.Array) -> jax.Array:
  """Returns KL(softmax(target_logits) || softmax(logits)), `[B]`."""
  log_p = jax.nn.log_softmax(target_logits)
  log_q = jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
  """Returns the entropy of softmax(logits) in nats, `[B]`."""
  log_probs = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def tempered_kl(target_logits: jax.Array, logits: jax.Array,
                temperature: float) -> jax.Array:
  """Returns T^2 KL(softmax(target_logits / T) || softmax(logits / T)), `[B]`.

  The factor keeps the gradient's size at about that of T = 1.

  References: Hinton et al. 2015, arXiv:1503.02531, Sec. 2.
  """
  return temperature ** 2 * kl_divergence(target_logits / temperature,
                                          logits / temperature)


def uniformity(logits: jax.Array) -> jax.Array:
  """Returns KL(U || softmax(logits)), `[B]`, U the uniform distribution.

  At least 0, and 0 only for constant logits. This is FERD's L_uni when the
  logits come from the non-robust features, and its uniform-target term when
  they come from the attacked model.
  """
  num_classes = logits.shape[-1]
  log_probs = jax.nn.log_softmax(logits)
  return -jnp.log(num_classes) - jnp.mean(log_probs, axis=-1)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns z_y - max_{j != y} z_j, `[B]`, for int labels `[B]`.

  It is positive where the logits say y, negative where another class, and 0 for
  a tie.
  """
  is_label = jax.nn.one_hot(_int_classes(labels), logits.shape[-1], dtype=bool)
  label_logit = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
  # No infinity, at which `jax_debug_infs` would stop.
  lowest = jnp.finfo(logits.dtype).min
  other = jnp.max(jnp.where(is_label, lowest, logits), axis=-1)
  return label_logit - other


def carlini_wagner(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns max_{j != y} z_j - z_y, `[B]`, what CW-inf ascends.

  The usual clamp at confidence 50 is never active for image classifiers and is
  left out. Reference: Carlini & Wagner 2017, arXiv:1608.04644, Sec. V.
  """
  return -margin(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the difference-of-logits ratio, `[B]`, which does not scale.

  `-(z_y - max_{j != y} z_j) / (z_1st - z_3rd + 1e-12)`, sorted logits z: in
  [-1, 0] for a correct prediction, at least 0 for a wrong one. With y third it
  is 1 with a gradient of rounding noise. Two classes have no third logit:
  then it is the margin, undivided.

  Reference: Croce & Hein 2020, arXiv:2003.01690, Eq. 6.
  """
  gap = carlini_wagner(logits, labels)
  if logits.shape[-1] < 3:
    return gap
  ordered = jnp.sort(logits, axis=-1)
  return gap / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: jax.Array, labels: jax.Array,
                 targets: jax.Array) -> jax.Array:
  """Returns the targeted difference-of-logits ratio, `[B]`.

  `-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2 + 1e-12)`. Less than four
  classes have no fourth logit: then it is `targeted_margin`.

  Reference: Croce & Hein 2020, arXiv:2003.01690, Eq. 7.
  """
  gap = targeted_margin(logits, labels, targets)
  if logits.shape[-1] < 4:
    return gap
  ordered = jnp.sort(logits, axis=-1)
  return gap / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
                + 1e-12)


def targeted_margin(logits: jax.Array, labels: jax.Array,
                    targets: jax.Array) -> jax.Array:
  """Returns z_t - z_y, `[B]`, for int targets `[B]`."""
  return _logit_of(logits, targets) - _logit_of(logits, labels)


def targeted_cross_entropy(logits: jax.Array, labels: jax.Array,
                           targets: jax.Array) -> jax.Array:
  """Returns log softmax(logits)[target], `[B]`; ascent leads to the target."""
  del labels  # They say what success is, not where to go.
  return -cross_entropy(logits, targets)


def divergence_from(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
  """Returns KL(softmax(target_logits) || softmax(logits)), `[B]`.

  `kl_divergence` with its arguments as attacks pass them, TRADES' inner loss
  for the model's logits on the clean images.

  Raises:
    ValueError: if the shapes differ; one class would broadcast.
  """
  if jnp.shape(target_logits) != jnp.shape(logits):
    raise ValueError(
        f'Expected target_logits of shape {jnp.shape(target_logits)} to have '
        f'the shape of the logits, {jnp.shape(logits)}.')
  return kl_divergence(target_logits, logits)


# In place of labels.
divergence_from.takes_logits = True  # type: ignore[attr-defined]  # a mark


def predicts(logits: jax.Array) -> jax.Array:
  """Returns for which examples logits `[B, K]` predict a class, bool `[B]`.

  A class of -inf is masked, one that is never predicted; anything else that is
  not finite, or nothing but masked classes, predicts nothing.
  """
  # No NaN is in an order.
  return (jnp.all(logits < jnp.inf, axis=-1)
          & jnp.any(logits > -jnp.inf, axis=-1))


def unmasked(logits: jax.Array,
             precision: jax.typing.DTypeLike | None = None) -> jax.Array:
  """Returns logits with a finite number, far below all others, for -inf.

  It is 1e9 below 0 for logits in the usual range. Differences of logits stay
  finite then, and so do losses; no gradient reaches a masked class.

  Args:
    logits: `[B, K]`.
    precision: that the result has at least, such as that of the images: half
      precision has no such number, and its differences are mostly rounding.
  """
  if precision is not None:
    # NumPy's rule: JAX's knows none where promotion is strict.
    logits = logits.astype(np.promote_types(logits.dtype, precision))
  masked = logits == -jnp.inf
  lowest = jnp.min(jnp.where(masked, 0, logits), axis=-1, keepdims=True)
  floor = lax.stop_gradient(jnp.minimum(2 * lowest, _MASKED))
  return jnp.where(masked, floor.astype(logits.dtype), logits)


def wide_enough(leaf: Any) -> Any:
  """Returns an array, of integers in a type that holds their number too."""
  dtype = jnp.result_type(leaf)
  if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4:
    return leaf.astype(np.int32)  # Compared with 300 in uint8, 44 is no less.
  return leaf


def _int_classes(classes):
  """Returns int classes `[B]` in a type that holds the number of classes too.

  Raises:
    ValueError: for what is no class per image, such as one-hot ones.
  """
  dtype = jnp.result_type(classes)
  if np.ndim(classes) != 1 or not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError('Expected int labels [B] for this loss, got '
                     f'{dtype} {np.shape(classes)}.')
  return wide_enough(jnp.asarray(classes))


def _logit_of(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(
      logits, _int_classes(classes)[:, None], axis=-1)[:, 0]


def weighted_mse(target_logits: jax.Array, logits: jax.Array,
                 weights: jax.Array) -> jax.Array:
  """Returns the pairwise wMSE of logit differences, unnormalised, `[B]`.

  With d = target_logits - logits it equals
  `0.25 * sum_jk w_j w_k (d_j - d_k)^2`, computed in its centred form
  `0.5 * W * sum_c w_c (d_c - mu)^2`, W = sum_c w_c, mu = sum_c w_c d_c / W,
  which costs O(C) and does not cancel. Gradients flow to both logits and to
  the weights.

  Args:
    target_logits: `[B, C]`.
    logits: `[B, C]`.
    weights: `[B, C]`, at least 0, every row with a positive sum.

  Returns:
    `[B]`.

  References: Cui et al., arXiv:2305.13948, Sec. 3 (decoupled KL).
  """
  diff = target_logits - logits
  total = jnp.sum(weights, axis=-1)
  mean = jnp.sum(weights * diff, axis=-1) / total
  spread = jnp.sum(weights * jnp.square(diff - mean[:, None]), axis=-1)
  return 0.5 * total * spread


def decoupled_kl(target_logits: jax.Array, logits: jax.Array,
                 weights: jax.Array, *, norm: Divisor = 'weights',
                 axis_name: str | None = None) -> jax.Array:
  """Returns the decoupled KL loss of a batch: wMSE + soft cross-entropy.

  Args:
    target_logits: `[B, C]`; the soft targets are not differentiated, the logit
      differences and the weights are.
    logits: `[B, C]`.
    weights: `[B, C]` class weights of the wMSE term.
    norm: 'weights' divides wMSE by sum_b W_b^2 (GKL), 'batch' by B (IKL).
    axis_name: mapped axis over which the batch is sharded.

  Returns:
    A scalar: with an axis, this shard's share, whose mean over the axis is the
    loss of the global batch.

  References: IKL arXiv:2305.13948, GKL arXiv:2503.08038; GitHub
    jiequancui/DKL.
  """
  wmse = jnp.mean(weighted_mse(target_logits, logits, weights))
  if norm == 'weights':
    wmse /= _mean_squared_total(weights, axis_name)
  return wmse + jnp.mean(soft_cross_entropy(target_logits, logits))


def decoupled_kl_terms(target_logits: jax.Array, logits: jax.Array,
                       weights: jax.Array, *, norm: Divisor = 'weights',
                       w_wmse: float = 1., w_ce: float = 1.,
                       temperature: float = 1.,
                       axis_name: str | None = None) -> jax.Array:
  """Returns each example's part of `decoupled_kl`, `[B]`: its mean is that.

  Args:
    target_logits: `[B, C]`.
    logits: `[B, C]`.
    weights: `[B, C]` class weights of the wMSE term.
    norm: see `decoupled_kl`.
    w_wmse: coefficient of the wMSE.
    w_ce: coefficient of the soft cross-entropy.
    temperature: by which the logits of the soft cross-entropy are divided,
      without a factor in return.
    axis_name: mapped axis over which the batch is sharded.
  """
  wmse = weighted_mse(target_logits, logits, weights)
  if norm == 'weights':
    wmse /= _mean_squared_total(weights, axis_name)
  return w_wmse * wmse + w_ce * soft_cross_entropy(
      target_logits / temperature, logits / temperature)


def _mean_squared_total(weights, axis_name):
  squared_totals = jnp.square(jnp.sum(weights, axis=-1))
  return collectives.pmean(jnp.mean(squared_totals), axis_name)


def global_moments(moments, axis_name: str | None = None):
  """Returns moments of the global batch from those of a shard of it.

  Args:
    moments: nested dict with `{'mean': [C], 'var': [C]}` per BatchNorm layer,
      the (biased) moments of its input over this shard of the batch.
    axis_name: mapped axis over which the batch is sharded.
  """
  if 'mean' not in moments:
    return {name: global_moments(layer, axis_name)
            for name, layer in moments.items()}
  mean = collectives.pmean(moments['mean'], axis_name)
  # The variance of the global batch from those of its shards: within plus
  # between, which does not cancel as E[x^2] - E[x]^2 does.
  var = collectives.pmean(
      moments['var'] + jnp.square(moments['mean'] - mean), axis_name)
  return {'mean': mean, 'var': var}


def moment_gap(moments, running, *, axis_name: str | None = None) -> jax.Array:
  """Returns L_bn, the distance of batch moments from running statistics.

  `sum_l ||running_var_l - var_l||_2 + ||running_mean_l - mean_l||_2` over the
  BatchNorm layers l, norms not squared.

  Args:
    moments: nested dict with `{'mean': [C], 'var': [C]}` per BatchNorm layer,
      the (biased) moments of its input over this shard of the batch.
    running: the same layers (or more) of a `batch_stats` collection.
    axis_name: mapped axis over which the batch is sharded.

  Returns:
    A scalar, the same on every shard. Its gradient at 0 is 0, not NaN.

  References: Yin et al. 2020 (DeepInversion), arXiv:1912.08795, Sec. 3.2.
  """
  def gap(layer, stats):
    if 'mean' not in layer:
      return sum(gap(layer[name], stats[name]) for name in layer)
    return (euclidean_norm(stats['var'] - layer['var'])
            + euclidean_norm(stats['mean'] - layer['mean']))
  return gap(global_moments(moments, axis_name), running)


def euclidean_norm(x: jax.Array, axis_name: str | None = None) -> jax.Array:
  """Returns the Euclidean norm of all of an array; its gradient at 0 is 0.

  Args:
    x: of any shape, a shard of the array with an axis.
    axis_name: mapped axis over which the array is sharded.
  """
  square = collectives.psum(jnp.sum(jnp.square(x)), axis_name)
  nonzero = square > 0
  return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)
