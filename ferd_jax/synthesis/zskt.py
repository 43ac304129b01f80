"""ZSKT: images on which student and teacher diverge.

Its student term on attention maps needs networks of one family and is no part
of a synthesis: what the student descends is the outer loss.

References: Micaelli & Storkey 2019, arXiv:1905.09768; GitHub
  polo5/ZeroShotKnowledgeTransfer solver.py.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import optax

from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import on_the_fly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zskt(on_the_fly.OnTheFly):
  """ZSKT's synthesis, with the constants of its code.

  Attributes:
    w_adv: weight of minus the mean over batch and classes of the terms of
      KL(teacher || student).
    clip_norm: largest norm of the generator's gradient.
    cosine: whether the learning rate falls to 0 by a cosine over the epochs.
  """
  batch_size: int = 128
  nz: int = 100
  beta1: float = 0.9
  student_steps_per_round: int = 10
  fresh: bool = False
  w_adv: float = 1.
  clip_norm: float = 5.
  cosine: bool = True

  def __post_init__(self):
    super().__post_init__()
    validate.positive(clip_norm=self.clip_norm)

  @property
  def weights(self) -> Mapping[str, float]:
    """The weight of the only term."""
    return {'adv': self.w_adv}

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Adam on clipped gradients."""
    return optax.chain(optax.clip_by_global_norm(self.clip_norm),
                       super().optimizer)

  def rate_of_epoch(self, epoch: jax.Array) -> jax.Array | float:
    """Returns by what the learning rate is multiplied after so many epochs."""
    if not self.cosine:
      return 1.
    return 0.5 * (1 + jnp.cos(jnp.pi * epoch / self.num_epochs))

  def terms(self, images: jax.Array, frozen: frozens.Frozen, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the term of the loss; see `on_the_fly.OnTheFly`."""
    del axis_name
    teacher = forward.logits(self.teacher, frozen.teachers[frozens.ROBUST],
                             images)
    student = forward.logits(self.student, frozen.student, images)
    classes = teacher.shape[-1]
    return {'adv': generator_losses.negative_kl(teacher, student) / classes}
