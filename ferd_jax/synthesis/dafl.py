"""DAFL: images that the teacher is sure of, of all classes, strongly active.

References: Chen et al. 2019, arXiv:1904.01186; GitHub
  huawei-noah/Data-Efficient-Model-Compression DAFL/DAFL-train.py.
"""

from collections.abc import Mapping
import dataclasses

import jax

from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import on_the_fly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dafl(on_the_fly.OnTheFly):
  """DAFL's synthesis, with the constants of its code for CIFAR-10.

  Attributes:
    w_oh: weight of the cross-entropy with the teacher's own prediction.
    w_balance: weight of the negative entropy, in decimal logarithms, of the
      batch's mean prediction.
    w_act: weight of -mean |feature| of the input of the teacher's last layer.
  """
  batch_size: int = 1024
  nz: int = 1000
  generator_lr: float = 0.02
  beta1: float = 0.9
  student_steps_per_round: int = 1
  w_oh: float = 0.05
  w_balance: float = 5.
  w_act: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    if self.w_act and batches.observed_shapes(
        self.teacher, self.image_shape).features is None:
      raise validate.SettingError(
          'w_act', self.w_act, 'to be 0 for a teacher without a dense layer.')

  @property
  def weights(self) -> Mapping[str, float]:
    """The weights of the terms, by name."""
    return {'oh': self.w_oh, 'balance': self.w_balance, 'act': self.w_act}

  def terms(self, images: jax.Array, frozen: frozens.Frozen, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the terms of the loss; see `on_the_fly.OnTheFly`."""
    seen = forward.observed(self.teacher, frozen.teachers[frozens.ROBUST],
                            images)
    found = {}
    if self.w_oh:
      found['oh'] = generator_losses.confidence(seen.logits)
    if self.w_balance:
      found['balance'] = generator_losses.balance(seen.logits, base=10,
                                                  axis_name=axis_name)
    if self.w_act:
      found['act'] = generator_losses.activation(seen.features)
    return found
