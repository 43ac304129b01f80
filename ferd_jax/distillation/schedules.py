"""Learning rates of the student's optimiser, by the step.

`SCHEDULES` are those that `config.distill.schedule` chooses.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from ferd_jax.core import validate

Schedule = Callable[[jax.Array], jax.Array]
SCHEDULES = ('cosine', 'milestones', 'one_cycle')
_DECAY = 0.1  # at each milestone


def build(name: str, learning_rate: float, *, num_epochs: int,
          first_epoch: int, steps_per_epoch: int,
          milestones: Sequence[int] = ()) -> Schedule:
  """Returns a schedule of `SCHEDULES`.

  Args:
    name: which.
    learning_rate: the largest.
    num_epochs: of the run.
    first_epoch: that of the first step; those before, a warm-up, count.
    steps_per_epoch: student steps an epoch.
    milestones: epochs, of 'milestones'; () for the others.

  Raises:
    SettingError: for a setting out of range, or milestones that do nothing.
  """
  validate.one_of(SCHEDULES, schedule=name)
  if name != 'milestones' and milestones:
    raise validate.SettingError(
        'milestones', tuple(milestones),
        f"to be (), or schedule={name!r} to be 'milestones'.")
  if name == 'cosine':
    return cosine_by_epoch(learning_rate, num_epochs, first_epoch,
                           steps_per_epoch)
  if name == 'milestones':
    return decay_at_milestones(learning_rate, milestones, num_epochs,
                               first_epoch, steps_per_epoch)
  _check(learning_rate, num_epochs, steps_per_epoch)
  # Up in the first 30% of the steps from a 25th, then down, by cosines.
  return optax.cosine_onecycle_schedule(
      (num_epochs - first_epoch) * steps_per_epoch, learning_rate)


def cosine_by_epoch(learning_rate: float, num_epochs: int, first_epoch: int,
                    steps_per_epoch: int) -> Schedule:
  """Returns the schedule that falls to 0 by a cosine, once an epoch.

  Args:
    learning_rate: of epoch 0.
    num_epochs: after which it would be 0.
    first_epoch: that of the first step; those before, a warm-up, count.
    steps_per_epoch: steps after which the rate falls.

  Raises:
    SettingError: for a setting out of range.
  """
  _check(learning_rate, num_epochs, steps_per_epoch)

  def schedule(step):
    epoch = first_epoch + step // steps_per_epoch
    return 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * epoch / num_epochs))
  return schedule


def decay_at_milestones(learning_rate: float, milestones: Sequence[int],
                        num_epochs: int, first_epoch: int,
                        steps_per_epoch: int) -> Schedule:
  """Returns the schedule that falls to a tenth at each of some epochs.

  Args:
    learning_rate: until the first milestone.
    milestones: so many epochs are completed when the rate falls, ascending.
    num_epochs: of the run.
    first_epoch: that of the first step; those before, a warm-up, count.
    steps_per_epoch: steps an epoch.

  Raises:
    SettingError: for a setting out of range, or milestones that are not
      ascending epochs of the run.
  """
  _check(learning_rate, num_epochs, steps_per_epoch)
  milestones = tuple(milestones)
  if not milestones or any(
      low >= high for low, high in zip((0, *milestones),
                                       (*milestones, num_epochs), strict=True)):
    raise validate.SettingError(
        'milestones', milestones, 'to be ascending epochs, some of '
        f'1..{num_epochs - 1}.')

  def schedule(step):
    epoch = first_epoch + step // steps_per_epoch
    passed = jnp.sum(epoch >= jnp.asarray(milestones))
    return learning_rate * _DECAY ** passed
  return schedule


def _check(learning_rate, num_epochs, steps_per_epoch):
  validate.rate(learning_rate=learning_rate)
  validate.count(num_epochs=num_epochs, steps_per_epoch=steps_per_epoch)
