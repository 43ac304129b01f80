"""Where a run is, as schedules in outer losses ask: in epochs of the student.

The originals train on data from their first epoch, and change a rate at some
of 200 or 300; here the first epochs are a warm-up without the student. What
they have as an epoch is a share of the student's epochs here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ferd_jax.core import validate


@dataclasses.dataclass(frozen=True)
class StudentEpochs:
  """The epochs in which the student is trained; a base for outer losses.

  Attributes:
    num_epochs: of the run.
    warmup_epochs: of them, the first, without the student.
  """
  num_epochs: int
  warmup_epochs: int

  def reached(self, milestone: float, completed: jax.Array) -> jax.Array:
    """Returns whether the student had so many epochs, a bool scalar.

    Args:
      milestone: up to 1 a share of the student's epochs, rounded to whole
        ones; above 1 their number.
      completed: int32 scalar, epochs of the run.
    """
    epochs = milestone
    if milestone <= 1:
      epochs = milestone * (self.num_epochs - self.warmup_epochs)
    return completed - self.warmup_epochs >= round(epochs)

  def decayed(self, rate: float, milestones: tuple[float, ...],
              completed: jax.Array) -> jax.Array:
    """Returns the rate, a tenth of it after each milestone that is reached."""
    for milestone in milestones:
      rate = jnp.where(self.reached(milestone, completed), 0.1 * rate, rate)
    return jnp.asarray(rate)


def check_milestones(**milestones: tuple[float, ...] | float) -> None:
  """Raises SettingError unless all are numbers above or at 0."""
  for name, values in milestones.items():
    for value in values if isinstance(values, tuple) else (values,):
      validate.non_negative(**{name: value})
