"""Sums per class over a batch or an epoch, and the means that they make."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ferd_jax.core import collectives


class Sums(NamedTuple):
  """What was measured of each class, over the global batch or many.

  Attributes:
    values: `[K]`, sums over a class's images.
    counts: `[K]`, images of each class.
  """
  values: jax.Array
  counts: jax.Array

  def means(self, otherwise: jax.Array | float) -> jax.Array:
    """Returns the mean of each class, `otherwise` for one without images."""
    present = self.counts > 0
    return jnp.where(present, self.values / jnp.where(present, self.counts, 1),
                     otherwise)


def zeros(num_classes: int) -> Sums:
  """Returns the sums of nothing."""
  return Sums(jnp.zeros([num_classes], jnp.float32),
              jnp.zeros([num_classes], jnp.float32))


def over_batch(values: jax.Array, labels: jax.Array, num_classes: int, *,
               axis_name: str | None = None) -> Sums:
  """Returns the sums of `values` `[B]` per class, over the global batch.

  Args:
    values: `[B]`.
    labels: int `[B]` in 0..K-1.
    num_classes: K.
    axis_name: mapped axis over which the batch is sharded.
  """
  onehot = jax.nn.one_hot(labels, num_classes, dtype=values.dtype)
  return collectives.psum(
      Sums(jnp.sum(values[:, None] * onehot, axis=0), jnp.sum(onehot, axis=0)),
      axis_name)


def add(sums: Sums, more: Sums) -> Sums:
  """Returns the sums over both."""
  return Sums(sums.values + more.values, sums.counts + more.counts)
