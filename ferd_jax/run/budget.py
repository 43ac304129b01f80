"""What a run spends: counted from the method, not measured."""

import dataclasses

from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.run import method as methods
from ferd_jax.synthesis import base

_FORWARD, _BOTH = passes.Passes(1), passes.Passes(1, 1)


@dataclasses.dataclass(frozen=True)
class Budget:
  """What some epochs of a run spend, evaluations apart.

  Attributes:
    images: that were made for the student, real ones not among them.
    generator_steps: of the synthesis.
    student_steps: of the student.
    teacher_forward, teacher_backward: passes of images through teachers, those
      of the sampler's measurement and of metrics among them; None if a part of
      the method does not say its `passes`.
  """
  images: int
  generator_steps: int
  student_steps: int
  teacher_forward: float | None
  teacher_backward: float | None


def of(method: methods.Method, epochs: int) -> Budget:
  """Returns what a method spends in its first epochs.

  Args:
    method: what is trained and how.
    epochs: how many.
  """
  rounds = method.synthesis.rounds
  trained = max(0, epochs - method.warmup_epochs) * rounds.per_epoch
  made = epochs * rounds.per_epoch
  student_steps = trained * rounds.student_steps
  found = _passes(method, epochs, made, student_steps)
  images = (made * method.synthesis.batch_size if rounds.pooled
            else student_steps * method.distillation.batch_size)
  return Budget(
      images=0 if rounds.reads_data else images,
      generator_steps=made * rounds.generator_steps,
      student_steps=student_steps,
      teacher_forward=None if found is None else found.forward,
      teacher_backward=None if found is None else found.backward)


def _passes(method, epochs, rounds, student_steps):
  """Returns all passes through teachers, None if a part does not say its own.

  It follows `train.epoch` and `distill.step`.
  """
  synthesis, settings = method.synthesis, method.distillation
  parts = synthesis, settings.inner
  if any(getattr(part, 'passes', None) is None for part in parts):
    return None
  batch, pooled = synthesis.batch_size, synthesis.rounds.pooled
  unlabelled = not synthesis.samples_labels
  a_round = synthesis.passes * synthesis.rounds.generator_steps
  if pooled:  # Labels, where none are drawn, and how often they are right.
    a_round += _FORWARD * (1 + unlabelled)
  reads = settings.reads_clean
  if unlabelled and not pooled:  # Labels of the views.
    reads = {*reads, frozens.ROBUST}
  step = settings.inner.passes + _FORWARD * (
      len(reads) + len(settings.outer.needs.t_adv))
  an_epoch = _measuring(method.sampler.measurement)
  if unlabelled and (method.sampler.measurement is not None or not pooled):
    an_epoch += _FORWARD
  return (a_round * (batch * rounds) + an_epoch * (batch * epochs)
          + step * (settings.batch_size * student_steps))


def _measuring(measurement: base.Measurement | None) -> passes.Passes:
  """Returns the passes per image of what a sampler measures."""
  if measurement is None or measurement.network == frozens.STUDENT:
    return passes.Passes()
  if measurement.attack is None:
    return _FORWARD
  steps = measurement.attack.num_steps * measurement.attack.num_restarts
  return _FORWARD + _BOTH * steps
