"""Attacks towards classes that the student takes others for.

FAIR-TAT's idea, and the rival of UTAEs: where these favour no target, it
favours the classes that errors fall on.
"""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import inner

RULES = ('false_positives', 'confusion')


class Confusion(flax.struct.PyTreeNode):
  """Which class is attacked towards which, and what it comes from.

  Attributes:
    probs: `[K, K]`, row c the probabilities of the targets of class c, 0 for c
      itself.
    counts: `[K, K]`, attacked images of this epoch by label and by the class
      that the student predicts.
  """
  probs: jax.Array
  counts: jax.Array


@dataclasses.dataclass(frozen=True)
class SimilarTarget(inner.Ascent):
  """Descends CE(S(x'), t), t drawn by how classes are mistaken under attack.

  The student's predictions on the attacked images of an epoch, in training
  mode, are what the next one's targets are drawn by; until then all classes
  but the label are alike.

  Attributes:
    rule: 'false_positives': softmax of `sharpness` times the share of all
      errors that fell on a class (FAIR-TAT); 'confusion': softmax of
      `sharpness` times the share of errors within the label's own class that
      did, so that a class is attacked towards those that it is taken for. A
      class without errors keeps its row.
    sharpness: 0 makes all targets alike.

  References: GitHub TejaswiniMedi/FAIR-TAT target_train_new.py,
    Targeted_attack.py.
  """
  rule: str = 'false_positives'
  sharpness: float = 2.

  start, clip_start = 'uniform', True

  def __post_init__(self):
    super().__post_init__()
    validate.one_of(RULES, rule=self.rule)
    validate.non_negative(sharpness=self.sharpness)

  def init(self, num_classes: int) -> Confusion:
    """Returns uniform targets and no counts."""
    shape = [num_classes, num_classes]
    return Confusion(probs=_normalised(jnp.ones(shape, jnp.float32)),
                     counts=jnp.zeros(shape, jnp.float32))

  def objective(self, networks: base.Networks,
                given: inner.Given) -> inner.Objective:
    """Returns -CE(S(x'), t)."""
    log_probs = jnp.log(given.state.probs[given.labels])
    targets = jax.vmap(jax.random.categorical)(
        collectives.fold_in(given.keys, 1), log_probs)
    def ascended(x):
      logits = networks.student(x)
      return -losses.cross_entropy(logits, targets), logits
    return ascended

  def update(self, state: Confusion, outputs: base.Outputs, *,
             axis_name: str | None = None) -> Confusion:
    """Returns the state with a batch's predictions counted.

    Raises:
      ValueError: if the outer loss does not read the student on attacked
        images, so that nobody knows its predictions.
    """
    if outputs.s_adv is None:
      raise ValueError('Expected an outer loss that reads the student on '
                       'attacked images, for inner.name of a target by class.')
    num_classes = outputs.s_adv.shape[-1]
    def onehot(classes):
      return jax.nn.one_hot(classes, num_classes, dtype=state.counts.dtype)
    counts = jnp.matmul(onehot(outputs.labels).T,
                        onehot(jnp.argmax(outputs.s_adv, axis=-1)),
                        precision=lax.Precision.HIGHEST)
    return state.replace(
        counts=state.counts + collectives.psum(counts, axis_name))

  def end_epoch(self, state: Confusion, epoch: jax.Array) -> Confusion:
    """Returns the targets of the next epoch."""
    del epoch
    errors = state.counts * _others(state.counts)
    if self.rule == 'false_positives':
      errors = jnp.broadcast_to(jnp.sum(errors, axis=0), errors.shape)
    totals = jnp.sum(errors, axis=-1, keepdims=True)
    seen = totals > 0
    shares = errors / jnp.where(seen, totals, 1)
    probs = jax.nn.softmax(self.sharpness * shares, axis=-1,
                           where=_others(shares) > 0)
    return Confusion(probs=jnp.where(seen, probs, state.probs),
                     counts=jnp.zeros_like(state.counts))


def _normalised(weights):
  """Returns rows that sum to 1, without what is on the diagonal."""
  weights = weights * _others(weights)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _others(like):
  """Returns 0 on the diagonal and 1 elsewhere."""
  return 1 - jnp.eye(len(like), dtype=like.dtype)
