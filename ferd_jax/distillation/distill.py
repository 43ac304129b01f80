"""The student phase: pool images -> attack on the student -> student update.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD test.py.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
from flax import linen as nn
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import mixing
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import schedules
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the student phase, static under `jit`.

  Attributes:
    teachers: modules by name.
    student: module of the student.
    inner: the inner attack.
    outer: the outer loss.
    optimizer: of the student's parameters, with its schedule.
    batch_size: images a step, over all devices.
    pad: largest shift of the augmentation, in pixels.
    flip: whether images are mirrored at random.
    mix: how images are mixed with one another, of `mixing.KINDS`. What reads
      labels takes that of the image that most of it shows.
    mix_share: of a batch that is mixed.
    average: decay of the running average of the student; 0: none is kept.
  """
  teachers: Mapping[str, nn.Module]
  student: nn.Module
  inner: base.Inner
  outer: base.Outer
  optimizer: optax.GradientTransformation
  batch_size: int
  pad: int
  flip: bool
  mix: str = 'none'
  mix_share: float = 0.5
  average: float = 0.

  def __post_init__(self):
    validate.count(batch_size=self.batch_size)
    validate.count(0, pad=self.pad)
    validate.one_of(mixing.KINDS, mix=self.mix)
    validate.in_range(0, 1, mix_share=self.mix_share, average=self.average)
    if self.average == 1:
      raise validate.SettingError(
          'average', self.average, 'below 1, where it would never move.')
    if self.mix != 'none' and frozens.ROBUST not in self.teachers:
      raise validate.SettingError(
          'mix', self.mix, "'none' without a teacher: nobody could be asked "
          'what a mixed image shows.')
    for name in self.reads_clean + self.outer.needs.t_adv:
      if name not in self.teachers:
        raise ValueError(
            f'Expected a teacher {name!r}, which the method needs; there '
            f'{"are" if len(self.teachers) > 1 else "is"} '
            f'{", ".join(map(repr, self.teachers)) or "none"}. Groups of '
            'config.teachers are further ones.')
    for name in self.outer.needs.noticed:
      if name not in self.inner.notices:
        raise ValueError(
            f'Expected the inner attack {type(self.inner).__name__} to notice '
            f'{name!r}, which the outer loss {type(self.outer).__name__} '
            'reads.')

  @property
  def reads_clean(self) -> tuple[str, ...]:
    """The teachers whose logits on clean images somebody reads, each once."""
    return tuple(dict.fromkeys((*self.inner.needs, *self.outer.needs.t_clean)))


class Average(flax.struct.PyTreeNode):
  """A running average of the student.

  Attributes:
    variables: averaged, statistics as well as parameters.
    steps: int32 scalar, how many were averaged.
  """
  variables: Any
  steps: jax.Array

  def include(self, variables: Any, decay: float) -> 'Average':
    """Returns the average with one step's variables more.

    The decay rises to its value, as (1 + n) / (10 + n) after n steps, so that
    the untrained network is soon forgotten.
    """
    steps = self.steps + 1
    count = steps.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + count) / (10 + count))
    def mean(old, new):
      return (old + (1 - rate.astype(old.dtype)) * (new - old)
              if jnp.issubdtype(old.dtype, jnp.floating) else new)
    return Average(jax.tree.map(mean, self.variables, variables), steps)


class StudentState(flax.struct.PyTreeNode):
  """What a student step changes, the same on every device.

  Attributes:
    variables: of the student, `params` and `batch_stats`.
    opt_state: of its optimiser.
    inner: what the inner attack keeps.
    outer: what the outer loss keeps, such as GKL's prior.
    average: of the variables, None if none is kept.
  """
  variables: Any
  opt_state: Any
  inner: Any
  outer: Any
  average: Average | None = None

  @property
  def reported(self) -> Any:
    """The variables to evaluate and to compare with: averaged, if they are."""
    return self.variables if self.average is None else self.average.variables


class StudentBatch(flax.struct.PyTreeNode):
  """The images of a step, sharded.

  Attributes:
    images: `[B, H, W, C]` in [0, 1].
    labels: int32 `[B]`, the sampled classes; None for what the `ROBUST`
      teacher predicts.
  """
  images: jax.Array
  labels: jax.Array | None


class Pairs(flax.struct.PyTreeNode):
  """What a step saw.

  Attributes:
    images: `[B, H, W, C]` in [0, 1], the views of the batch.
    attacked: `[B, H, W, C]`, what the inner attack made of them.
    labels: int32 `[B]`.
  """
  images: jax.Array
  attacked: jax.Array
  labels: jax.Array


def sgd(schedule: schedules.Schedule, momentum: float,
        weight_decay: float) -> optax.GradientTransformation:
  """Returns SGD as PyTorch has it.

  Args:
    schedule: the learning rate after so many steps.
    momentum: not Nesterov's.
    weight_decay: times every parameter, added to the gradient before the
      momentum.

  Raises:
    SettingError: for a setting out of range.
  """
  validate.in_range(0, 1, momentum=momentum)
  if momentum == 1:
    raise validate.SettingError('momentum', momentum, '< 1, or steps grow '
                                'without end.')
  validate.in_range(0, 1, weight_decay=weight_decay)
  return optax.chain(optax.add_decayed_weights(weight_decay),
                     optax.sgd(schedule, momentum))


def init(settings: Settings, variables: Any,
         num_classes: int) -> StudentState:
  """Returns the state before the first step of a student."""
  return StudentState(
      variables=variables,
      opt_state=settings.optimizer.init(variables['params']),
      inner=settings.inner.init(num_classes),
      outer=settings.outer.init(num_classes),
      average=Average(
          # Buffers of its own: those of the state are used up.
          jax.tree.map(jnp.copy, variables), jnp.zeros([], jnp.int32)
      ) if settings.average else None)


def step(settings: Settings, state: StudentState, batch: StudentBatch,
         frozen: frozens.Frozen, key: jax.Array, *,
         axis_name: str | None = None
         ) -> tuple[StudentState, dict[str, jax.Array], Pairs]:
  """Takes one step on the student.

  In this order, unless the outer loss has its adversarial pass first: a clean
  forward pass in training mode, the inner attack on the student in evaluation
  mode with the statistics just updated, a forward pass in training mode on the
  attacked images, one optimiser step on the outer loss of both.

  Args:
    settings: of the student phase.
    state: of the student.
    batch: images and labels.
    frozen: the teachers and the epoch.
    key: typed PRNG key of this step.
    axis_name: mapped axis over which the examples are sharded.

  Returns:
    The new state; scalar metrics: the loss, what the outer loss says, means
    of what the attack noticed, and how often the student agrees with the
    `ROBUST` teacher on clean and on attacked images (with the labels, where
    that teacher is not read), as far as they are known; and the images, to be
    looked at.
  """
  keys = collectives.example_keys(
      key, collectives.example_indices(batch.images.shape[0], axis_name))
  view_keys, attack_keys, mix_keys = (
      collectives.fold_in(keys, i) for i in range(3))
  images = augment.random_crop_flip(view_keys, batch.images, pad=settings.pad,
                                    flip=settings.flip)
  images = mixing.mix(settings.mix, mix_keys, images, settings.mix_share,
                      axis_name=axis_name)
  teachers = {name: forward.logits_fn(model, frozen.teachers[name])
              for name, model in settings.teachers.items()}
  reads_clean = settings.reads_clean
  if batch.labels is None:
    reads_clean = dict.fromkeys((*reads_clean, frozens.ROBUST))
  t_clean = {name: lax.stop_gradient(teachers[name](images))
             for name in reads_clean}
  labels = batch.labels
  if labels is None:
    labels = jnp.argmax(t_clean[frozens.ROBUST], axis=-1).astype(jnp.int32)

  def loss_fn(params):
    outputs, batch_stats, attacked = _outputs(
        settings, state, params, images, labels, t_clean, teachers, attack_keys,
        frozen.epoch, axis_name)
    loss, outer, metrics = settings.outer(state.outer, outputs,
                                          axis_name=axis_name)
    inner = settings.inner.update(state.inner, lax.stop_gradient(outputs),
                                  axis_name=axis_name)
    chex.assert_rank([loss, *metrics.values()], 0)
    metrics = metrics | _agreements(outputs) | {
        f'noticed_{name}': jnp.mean(value.astype(loss.dtype))
        for name, value in outputs.noticed.items()}
    return loss, (batch_stats, inner, outer, metrics | {'loss': loss},
                  attacked)

  params = state.variables['params']
  gradient, (batch_stats, inner, outer, metrics, attacked) = jax.grad(
      loss_fn, has_aux=True)(params)
  gradient = collectives.pmean(gradient, axis_name)
  metrics = collectives.pmean(metrics, axis_name)
  updates, opt_state = settings.optimizer.update(gradient, state.opt_state,
                                                 params)
  params = optax.apply_updates(params, updates)
  variables = {**state.variables, 'params': params,
               'batch_stats': batch_stats}
  average = state.average
  if average is not None:
    average = average.include(variables, settings.average)
  return StudentState(variables=variables, opt_state=opt_state, inner=inner,
                      outer=outer, average=average), metrics, Pairs(
                          images, attacked, labels)


def end_epoch(settings: Settings, inner: Any, outer: Any,
              epoch: jax.Array) -> tuple[Any, Any]:
  """Returns the states of inner attack and outer loss for the next epoch.

  Args:
    settings: of the student phase.
    inner: state of the inner attack.
    outer: state of the outer loss.
    epoch: int32 scalar, epochs completed with this one.
  """
  return (settings.inner.end_epoch(inner, epoch),
          settings.outer.end_epoch(outer, epoch))


def _outputs(settings, state, params, images, labels, t_clean, teachers, keys,
             epoch, axis_name):
  """Returns what both losses may read, the student's new statistics, images.
  """
  needs, student = settings.outer.needs, settings.student
  variables = {**state.variables, 'params': params}

  def train(variables, images):
    logits, batch_stats = forward.train_logits(student, variables, images,
                                               axis_name=axis_name)
    return logits, {**variables, 'batch_stats': batch_stats}

  def attack(variables):
    fixed = lax.stop_gradient(variables)
    networks = base.Networks(
        student=forward.logits_fn(student, fixed),
        student_train=lambda x: train(fixed, x)[0], teachers=teachers)
    return lax.stop_gradient(settings.inner(
        state.inner, networks, images, labels, t_clean, state.outer, keys))

  s_clean = s_adv = None
  if needs.s_clean and not needs.adversarial_first:
    s_clean, variables = train(variables, images)
  attacked = attack(variables)
  # What a part of somebody else's gets wrong would broadcast.
  chex.assert_equal_shape([images, attacked.images])
  chex.assert_shape(list(attacked.noticed.values()), labels.shape)
  if needs.s_adv:
    s_adv, variables = train(variables, attacked.images)
  if needs.s_clean and needs.adversarial_first:
    s_clean, variables = train(variables, images)
  t_adv = {name: lax.stop_gradient(teachers[name](attacked.images))
           for name in needs.t_adv}
  outputs = base.Outputs(
      labels=labels, t_clean=t_clean, t_adv=t_adv, s_clean=s_clean,
      s_adv=s_adv, noticed=attacked.noticed, epoch=epoch)
  return outputs, variables['batch_stats'], attacked.images


def _agreements(outputs):
  """Returns how often the student predicts what the teacher does.

  Where no teacher is read, how often it predicts the label: its accuracy.
  """
  name_of, predictions = 'accuracy', outputs.labels
  if frozens.ROBUST in outputs.t_clean:
    name_of = 'agreement'
    predictions = jnp.argmax(outputs.t_clean[frozens.ROBUST], axis=-1)
  found = {}
  for name, logits in (('clean', outputs.s_clean), ('adv', outputs.s_adv)):
    if logits is not None:
      agree = jnp.argmax(logits, axis=-1) == predictions
      found[f'{name}_{name_of}'] = jnp.mean(agree.astype(logits.dtype))
  return found
