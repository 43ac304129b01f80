"""DFAD: images on which the logits of student and teacher are far apart.

References: Fang et al. 2019, arXiv:1912.11006; GitHub
  VainF/Data-Free-Adversarial-Distillation DFAD_cifar.py.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import on_the_fly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dfad(on_the_fly.OnTheFly):
  """DFAD's synthesis, with the constants of its code for CIFAR.

  Attributes:
    w_adv: weight of -mean |teacher's logits - student's|.
    milestones: shares of the epochs after each of which the learning rate is
      divided by 10; () for never.
  """
  beta1: float = 0.9
  w_adv: float = 1.
  milestones: tuple[float, ...] = (0.2, 0.4)

  def __post_init__(self):
    super().__post_init__()
    for milestone in self.milestones:
      validate.in_range(0, 1, milestones=milestone)

  @property
  def weights(self) -> Mapping[str, float]:
    """The weight of the only term."""
    return {'adv': self.w_adv}

  def rate_of_epoch(self, epoch: jax.Array) -> jax.Array | float:
    """Returns by what the learning rate is multiplied after so many epochs."""
    passed = jnp.zeros([])
    for milestone in self.milestones:
      passed += epoch >= milestone * self.num_epochs
    return 0.1 ** passed

  def terms(self, images: jax.Array, frozen: frozens.Frozen, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the term of the loss; see `on_the_fly.OnTheFly`."""
    del axis_name
    teacher = forward.logits(self.teacher, frozen.teachers[frozens.ROBUST],
                             images)
    student = forward.logits(self.student, frozen.student, images)
    return {'adv': generator_losses.negative_l1(teacher, student)}
