"""Outer minimisations: what a student step descends, and its class state.

An outer loss is a frozen dataclass with four functions. `init(num_classes)`
returns its per-class state; calling it returns the loss; `accumulate` adds a
batch to the state, and `end_epoch` updates it between epochs. A new method
adds one here and leaves `distill.step` as it is.
"""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate

PRIORS = ('class_mean', 'sample', 'one_hot')
NORMS = ('weights', 'batch')
_SAMPLE_TEMPERATURE = 100.


class ClassPrior(flax.struct.PyTreeNode):
  """The teacher's mean prediction per class.

  Attributes:
    prior: `[C, C]`, row c for images labelled c, of the epoch before.
    sums: `[C, C]`, sums of predictions over this epoch's images.
  """
  prior: jax.Array
  sums: jax.Array


@dataclasses.dataclass(frozen=True)
class DecoupledKL:
  """FERD's loss: w_clean IKL(t, s) + w_adv IKL(t, s_adv).

  Both targets are the teacher's logits on the clean images.

  Attributes:
    w_clean: weight of the clean term.
    w_adv: weight of the adversarial term.
    prior: the wMSE's class weights: 'class_mean' the teacher's mean prediction
      for the label's class in the epoch before, 'sample' its nearly uniform
      prediction at temperature 100, 'one_hot' the label, for which the wMSE
      vanishes and the soft cross-entropy is left.
    norm: 'weights' (GKL) or 'batch' (IKL), see `losses.decoupled_kl`.
    power: exponent of the class_mean prior.

  References: FERD, arXiv:2509.20793; arXiv:2305.13948; arXiv:2503.08038.
  """
  w_clean: float = 5 / 6
  w_adv: float = 1 / 6
  prior: str = 'class_mean'
  norm: str = 'weights'
  power: float = 1.

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean, w_adv=self.w_adv,
                          power=self.power)
    validate.one_of(PRIORS, prior=self.prior)
    validate.one_of(NORMS, norm=self.norm)

  def init(self, num_classes: int) -> ClassPrior:
    """Returns a uniform prior and empty sums."""
    shape = [num_classes, num_classes]
    return ClassPrior(prior=jnp.full(shape, 1 / num_classes, jnp.float32),
                      sums=jnp.zeros(shape, jnp.float32))

  def __call__(self, class_state: ClassPrior, teacher_logits: jax.Array,
               logits: jax.Array, adv_logits: jax.Array, labels: jax.Array, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss, a shard's share, and its two terms.

    Args:
      class_state: of this loss.
      teacher_logits: `[B, C]` on the clean images.
      logits: `[B, C]`, the student's on the clean images.
      adv_logits: `[B, C]`, the student's on the attacked images.
      labels: int `[B]`, sampled.
      axis_name: mapped axis over which the batch is sharded.
    """
    weights = self._weights(class_state, teacher_logits, labels)
    clean, adv = (
        losses.decoupled_kl(teacher_logits, student_logits, weights,
                            norm=self.norm, axis_name=axis_name)
        for student_logits in (logits, adv_logits))
    loss = self.w_clean * clean + self.w_adv * adv
    return loss, {'clean_loss': clean, 'adv_loss': adv}

  def _weights(self, class_state, teacher_logits, labels):
    if self.prior == 'one_hot':
      weights = jax.nn.one_hot(labels, teacher_logits.shape[-1],
                               dtype=teacher_logits.dtype)
    elif self.prior == 'sample':
      weights = jax.nn.softmax(teacher_logits / _SAMPLE_TEMPERATURE)
    else:
      weights = class_state.prior[labels] ** self.power
    return lax.stop_gradient(weights)

  def accumulate(self, class_state: ClassPrior, teacher_logits: jax.Array,
                 labels: jax.Array, *,
                 axis_name: str | None = None) -> ClassPrior:
    """Returns the state with a clean batch's predictions added."""
    onehot = jax.nn.one_hot(labels, teacher_logits.shape[-1],
                            dtype=teacher_logits.dtype)
    # At full precision: these are sums over an epoch.
    sums = jnp.matmul(onehot.T, jax.nn.softmax(teacher_logits),
                      precision=lax.Precision.HIGHEST)
    return class_state.replace(
        sums=class_state.sums + collectives.psum(sums, axis_name))

  def end_epoch(self, class_state: ClassPrior) -> ClassPrior:
    """Returns the state for the next epoch; unseen classes keep their row."""
    totals = jnp.sum(class_state.sums, axis=-1, keepdims=True)
    seen = totals > 0
    prior = jnp.where(seen, class_state.sums / jnp.where(seen, totals, 1),
                      class_state.prior)
    return ClassPrior(prior=prior, sums=jnp.zeros_like(class_state.sums))
