"""A method: synthesis x sampler x inner attack x outer loss, on devices."""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import data
from ferd_jax.core import class_sums
from ferd_jax.core import collectives
from ferd_jax.core import parallel as parallels
from ferd_jax.core import scalars
from ferd_jax.distillation import distill
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import base

REPLICATED, SHARDED = parallels.REPLICATED, parallels.SHARDED


@dataclasses.dataclass(frozen=True)
class Method:
  """What is trained and how, all that an epoch needs beside its state.

  Attributes:
    synthesis: makes the images.
    sampler: says how often which class is made.
    distillation: settings of the student phase: networks, inner attack, outer
      loss, optimiser.
    warmup_epochs: in which images are made and no student is trained.
    num_classes: K.
    image_shape: (H, W, channels).
    parallel: the device mapping.
    training_data: real examples for a synthesis that reads such, else None.
  """
  synthesis: base.Synthesis
  sampler: base.Sampler
  distillation: distill.Settings
  warmup_epochs: int
  num_classes: int
  image_shape: tuple[int, int, int]
  parallel: parallels.Parallel
  training_data: data.Examples | None = None


class Judgement(NamedTuple):
  """What the teacher says of images.

  Attributes:
    agreement: how often it predicts their labels, a scalar.
    labels: int `[B]`, those that it predicts.
    confidence: `[B]`, with which probability.
  """
  agreement: jax.Array
  labels: jax.Array
  confidence: jax.Array


class Steps(NamedTuple):
  """The compiled functions of a method.

  `phase` stands for the synthesis' state in a generator phase, `real` for a
  batch of real images, for a synthesis that reads such, or nothing.
  """
  begin: Callable  # kept, probs, indices, key -> phase
  generate: Callable | None  # phase, Frozen, key -> phase, Scalars
  images: Callable  # phase, Frozen, key, real -> images, labels
  judge: Callable  # images, labels, Frozen -> Judgement
  end: Callable  # kept, phase -> kept
  # StudentState, StudentBatch, Frozen, key -> its state, Scalars, Pairs
  student: Callable
  measured_images: Callable  # phase, Frozen, key, real -> images, labels
  attack: Callable | None  # variables, key, images, labels, indices=: images
  measure: Callable | None  # images, labels, variables -> Sums
  # States of sampler, inner and outer, epoch, Sums | None -> the first four.
  end_epoch: Callable


def compile_steps(method: Method) -> Steps:
  """Returns the steps mapped over the devices."""
  synthesis, sampler = method.synthesis, method.sampler
  settings = method.distillation
  teacher = settings.teachers.get(frozens.ROBUST)
  kept, phase = synthesis.specs()
  step, measurement = method.parallel.compile, sampler.measurement
  batch = distill.StudentBatch(images=SHARDED, labels=SHARDED)
  rounds = synthesis.rounds
  made_of = (phase, REPLICATED, REPLICATED) + rounds.reads_data * (SHARDED,)

  def labelled(make, needs_labels, *args, axis_name=None):
    """Returns images and their labels, the teacher's if none are sampled."""
    images, labels = make(*args, axis_name=axis_name)
    chex.assert_shape(images, (None, *method.image_shape))
    if synthesis.samples_labels:
      chex.assert_shape(labels, images.shape[:1])
      return images, labels
    if not needs_labels:
      return images, None  # Each student step predicts them for its own view.
    logits = forward.logits(teacher, args[1].teachers[frozens.ROBUST], images)
    return images, jnp.argmax(logits, axis=-1).astype(jnp.int32)

  attack = measure = None
  if measurement is not None:
    network = (settings.student if measurement.network == frozens.STUDENT
               else settings.teachers[measurement.network])
    if measurement.attack is not None:
      attack = attacks.jit(
          measurement.attack, functools.partial(forward.logits, network),
          method.parallel)
    measure = step(
        functools.partial(_measure, measurement, network, method.num_classes),
        (SHARDED, SHARDED, REPLICATED), REPLICATED)
  return Steps(
      begin=step(synthesis.begin,
                 (kept, REPLICATED, SHARDED, REPLICATED), phase),
      generate=None if not rounds.generator_steps else step(
          scalars.packed(synthesis.step), (phase, REPLICATED, REPLICATED),
          (phase, REPLICATED), donate=(0,)),
      images=step(
          functools.partial(labelled, synthesis.images, rounds.pooled),
          made_of, (SHARDED, SHARDED)),
      judge=step(functools.partial(_judge, teacher),
                 (SHARDED, SHARDED, REPLICATED),
                 Judgement(REPLICATED, SHARDED, SHARDED)),
      end=step(synthesis.end, (kept, phase), kept),
      student=step(
          scalars.packed(functools.partial(distill.step, settings)),
          (REPLICATED, batch, REPLICATED, REPLICATED),
          (REPLICATED, REPLICATED, SHARDED), donate=(0,)),
      measured_images=step(
          functools.partial(labelled, synthesis.measured_images, True),
          made_of, (SHARDED, SHARDED)),
      attack=attack, measure=measure,
      end_epoch=step(
          functools.partial(_end_epoch, sampler, settings),
          (REPLICATED,) * 5, (REPLICATED,) * 4))


def _judge(model, images, labels, frozen, *, axis_name=None):
  """Returns what the `ROBUST` teacher says of images."""
  logits = forward.logits(model, frozen.teachers[frozens.ROBUST], images)
  predictions = jnp.argmax(logits, -1)
  correct = predictions == labels
  return Judgement(
      collectives.pmean(jnp.mean(correct.astype(logits.dtype)), axis_name),
      predictions, jnp.max(jax.nn.softmax(logits), axis=-1))


def _measure(measurement, model, num_classes, images, labels, variables, *,
             axis_name=None):
  """Returns the sums of the sampler's statistic per class."""
  logits = forward.logits(model, variables, images)
  return class_sums.over_batch(measurement.statistic(logits, labels), labels,
                               num_classes, axis_name=axis_name)


def _end_epoch(sampler, settings, sampler_state, inner, outer, epoch, measured,
               *, axis_name=None):
  """Returns the states of the parts, and the epoch, afterwards."""
  del axis_name  # Sums are those of the global batch already.
  epoch = epoch + 1
  return (sampler.update(sampler_state, measured),
          *distill.end_epoch(settings, inner, outer, epoch), epoch)
