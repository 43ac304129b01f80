"""Losses of generators beyond those on logits."""

import jax
import jax.numpy as jnp

from ferd_jax.core import collectives


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
    mean = collectives.pmean(layer['mean'], axis_name)
    # The variance of the global batch from those of its shards: within plus
    # between, which does not cancel as E[x^2] - E[x]^2 does.
    var = collectives.pmean(
        layer['var'] + jnp.square(layer['mean'] - mean), axis_name)
    return _norm(stats['var'] - var) + _norm(stats['mean'] - mean)
  return gap(moments, running)


def _norm(x: jax.Array) -> jax.Array:
  """Returns the Euclidean norm of a vector; its gradient at 0 is 0."""
  square = jnp.sum(jnp.square(x))
  nonzero = square > 0
  return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)
