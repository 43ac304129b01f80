"""DFQ: L_bn, confident and balanced predictions, and a student that differs.

No code of its authors is public; this is the re-implementation that papers
compare with.

References: Choi et al. 2020, arXiv:2005.04136; GitHub zju-vipa/CMI
  datafree/synthesis/generative.py.
"""

from collections.abc import Mapping
import dataclasses

import jax

from ferd_jax import losses
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import on_the_fly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dfq(on_the_fly.OnTheFly):
  """DFQ's synthesis, with the constants of the re-implementation.

  Attributes:
    w_bn: weight of L_bn, the gap to the teacher's BatchNorm statistics.
    w_oh: weight of the cross-entropy with the teacher's own prediction.
    w_adv: weight of -mean KL(teacher || student).
    w_balance: weight of the negative entropy of the batch's mean prediction.
  """
  wide_start: bool = True
  student_steps_per_round: int = 10
  w_bn: float = 1.
  w_oh: float = 1.
  w_adv: float = 1.
  w_balance: float = 20.

  def __post_init__(self):
    super().__post_init__()
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)

  @property
  def weights(self) -> Mapping[str, float]:
    """The weights of the terms, by name."""
    return {'bn': self.w_bn, 'oh': self.w_oh, 'adv': self.w_adv,
            'balance': self.w_balance}

  def terms(self, images: jax.Array, frozen: frozens.Frozen, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the terms of the loss; see `on_the_fly.OnTheFly`."""
    teacher = frozen.teachers[frozens.ROBUST]
    logits, moments = forward.logits_and_moments(self.teacher, teacher, images)
    found = {}
    if self.w_bn:
      found['bn'] = losses.moment_gap(moments, teacher['batch_stats'],
                                      axis_name=axis_name)
    if self.w_oh:
      found['oh'] = generator_losses.confidence(logits)
    if self.w_adv:
      found['adv'] = generator_losses.negative_kl(
          logits, forward.logits(self.student, frozen.student, images))
    if self.w_balance:
      found['balance'] = generator_losses.balance(logits, axis_name=axis_name)
    return found
