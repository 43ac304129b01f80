"""In which order a targeted attack takes the wrong classes."""

from collections.abc import Callable
import typing
from typing import Literal

import jax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.core import loops
from ferd_jax.core import validate

# 'logits': the highest first; 'malt': those the model is steepest towards.
Order = Literal['logits', 'malt']
ORDERS: tuple[str, ...] = typing.get_args(Order)
CANDIDATES = 100  # of MALT, the classes with the highest logits


def check_order(order: str, num_targets: int) -> None:
  """Raises ValueError for an order that there is not, or that orders nothing.

  Args:
    order: of the targets that an attack chooses.
    num_targets: how many it chooses; 0 for none.
  """
  validate.one_of(ORDERS, target_order=order)
  if order != ORDERS[0] and not num_targets:
    raise ValueError(f'Expected num_targets beside target_order={order!r}, '
                     'which says which they are.')


def ranked_classes(scores: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the class with the rank-th highest score, int32 `[B]`.

  Args:
    scores: `[B, K]`, such as logits.
    rank: `[B]`, 1 for the highest. Among equal scores the later class ranks
      first, as in AutoAttack.
  """
  order = jnp.argsort(scores, axis=-1)
  position = scores.shape[-1] - rank[:, None]
  return jnp.take_along_axis(order, position, axis=-1)[:, 0].astype(jnp.int32)


def malt_scores(evaluate: Callable[[jax.Array], jax.Array], x: jax.Array,
                labels: jax.Array, norm: geometry.Distance,
                unroll: bool | None = None) -> jax.Array:
  """Returns how close the classes are where the model is linear, `[B, K]`.

  The score of class t is minus `(max_j z_j - z_t) / ||grad (z_t - z_y)||_q`,
  q dual to the norm of the attack: minus the way to the class. The label is
  given the highest score of all, so that targets begin at rank 2. Only the 100
  wrong classes with the highest logits are candidates; all others, and
  candidates without a finite gradient, rank behind. One gradient is computed at
  a time, so that memory does not grow with the number of classes. Scores have
  the precision of the images at least.

  Args:
    evaluate: images `[B, ...]` -> logits `[B, K]`.
    x: clean images `[B, ...]`.
    labels: int `[B]`.
    norm: 'L1', 'L2' or 'Linf'.
    unroll: None unrolls short loops on CPU.

  References: Melamed et al. 2024, arXiv:2407.02240, Sec. 3; GitHub
    odeliamel/MALT, which leaves classes without a gradient in, as the first.
  """
  def finite(images):
    return losses.unmasked(evaluate(images), x.dtype)
  logits, pull_back = jax.vjp(finite, x)
  num_classes = logits.shape[-1]
  def one_hot(classes):
    return jax.nn.one_hot(classes, num_classes, dtype=logits.dtype)
  highest = jnp.max(logits, axis=-1)
  limits = jnp.finfo(logits.dtype)
  is_label = one_hot(labels)
  others = jnp.where(is_label > 0, limits.min, logits)

  def score(number, scores):
    classes = ranked_classes(others, jnp.broadcast_to(
        jnp.asarray(number + 1, jnp.int32), labels.shape))
    is_class = one_hot(classes)
    gradient, = pull_back(is_class - is_label)
    slope = geometry.of(norm).dual_size(gradient).astype(logits.dtype)
    gap = highest - jnp.sum(logits * is_class, axis=-1)
    # No further than a number can say, or along a slope that is none.
    leads = ((slope > 0) & (slope < jnp.inf)
             & (gap < limits.max / 4 * jnp.minimum(slope, 1)))
    distance = jnp.where(leads, gap / jnp.where(leads, slope, 1),
                         limits.max / 4)
    return jnp.where(is_class > 0, -distance[:, None], scores)
  start = jnp.where(is_label > 0, limits.max, jnp.zeros_like(logits)
                    + limits.min / 2)
  return loops.repeat(min(CANDIDATES, num_classes - 1), score, start,
                      unroll=unroll)
