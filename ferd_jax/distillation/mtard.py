"""MTARD: a robust and a clean teacher, and a balance between them."""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import divergences
from ferd_jax.distillation import student_epochs
from ferd_jax.models import frozen

_TINY = 1e-12  # of losses that divide


class Balance(flax.struct.PyTreeNode):
  """Which teacher counts how much.

  Attributes:
    w_clean: scalar, weight of the clean teacher; the robust one has the rest.
    first: `[2]`, adversarial and clean loss of the first step.
    started: bool scalar, whether there was one.
  """
  w_clean: jax.Array
  first: jax.Array
  started: jax.Array


@dataclasses.dataclass(frozen=True)
class MTARD(student_epochs.StudentEpochs):
  """w_adv KL(P_robust(x') || P_S(x')) + w_clean KL(P_clean(x) || P_S(x)).

  Times `scale`. In each step, with `l` a loss over its value in the first one,
  `w_clean <- w_clean - rate (w_clean - l_clean / (l_adv + l_clean))` and
  `w_adv = 1 - w_clean`, which start at a half; the losses are those of the
  global batch, and the new weights count in the same step.

  Attributes:
    rate: of the balance.
    milestones: after which the rate is a tenth, shares of the student's epochs
      or, above 1, numbers of them; the original has 215, 260 and 285 of 300.
    scale: of the loss; that of the original, a tenth, is its mean over ten
      classes, or ten times its mean over a hundred.

  References: MTARD, ECCV 2022; GitHub zhaoshiji123/MTARD
    mtard_resnet18_cifar10.py.
  """
  rate: float = 0.025
  milestones: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
  scale: float = 0.1

  needs = base.Needs(t_clean=(divergences.CLEAN,), t_adv=(frozen.ROBUST,),
                     adversarial_first=True)

  def __post_init__(self):
    validate.in_range(0, 1, rate=self.rate)
    validate.positive(scale=self.scale)
    student_epochs.check_milestones(milestones=self.milestones)

  def init(self, num_classes: int) -> Balance:
    """Returns equal weights."""
    del num_classes
    return Balance(w_clean=jnp.asarray(0.5, jnp.float32),
                   first=jnp.ones([2], jnp.float32),
                   started=jnp.asarray(False))

  def __call__(self, state: Balance, outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, Balance, dict[str, jax.Array]]:
    """Returns the loss, the new balance, and the terms; see `base.Outer`."""
    adv = outputs.mean(losses.kl_divergence(outputs.t_adv[frozen.ROBUST],
                                            outputs.s_adv))
    clean = outputs.mean(losses.kl_divergence(
        outputs.t_clean[divergences.CLEAN], outputs.s_clean))
    state = self._balanced(
        state, collectives.pmean(lax.stop_gradient(jnp.stack([adv, clean])),
                                 axis_name), outputs.epoch)
    loss = self.scale * ((1 - state.w_clean) * adv + state.w_clean * clean)
    return loss, state, {'adv_loss': adv, 'clean_loss': clean,
                         'w_clean': state.w_clean}

  def _balanced(self, state, now, completed):
    """Returns the balance after a step with these losses."""
    first = jnp.where(state.started, state.first, now).astype(
        state.first.dtype)
    ratios = now / jnp.maximum(first, _TINY)
    total = jnp.sum(ratios)
    # Two losses that are 0 say nothing.
    wanted = jnp.where(total > 0, ratios[1] / jnp.where(total > 0, total, 1),
                       state.w_clean)
    rate = self.decayed(self.rate, self.milestones, completed)
    w_clean = state.w_clean - rate * (state.w_clean - wanted)
    return Balance(w_clean=w_clean.astype(state.w_clean.dtype), first=first,
                   started=jnp.asarray(True))

  def end_epoch(self, state: Balance, epoch: jax.Array) -> Balance:
    """Returns the same balance."""
    del epoch
    return state
