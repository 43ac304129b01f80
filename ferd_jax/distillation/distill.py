"""The student phase: pool images -> attack on the student -> student update.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD test.py.
"""

from collections.abc import Callable
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
from ferd_jax.core import validate
from ferd_jax.distillation import base
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
  """
  teachers: Mapping[str, nn.Module]
  student: nn.Module
  inner: base.Inner
  outer: base.Outer
  optimizer: optax.GradientTransformation
  batch_size: int
  pad: int
  flip: bool

  def __post_init__(self):
    validate.count(batch_size=self.batch_size)
    validate.count(0, pad=self.pad)
    for name in self.reads_clean + self.outer.needs.t_adv:
      if name not in self.teachers:
        raise ValueError(
            f'Expected a teacher {name!r}, which the method needs; there '
            f'{"is" if len(self.teachers) == 1 else "are"} '
            f'{", ".join(map(repr, self.teachers))}.')

  @property
  def reads_clean(self) -> tuple[str, ...]:
    """The teachers whose logits on clean images somebody reads, each once."""
    return tuple(dict.fromkeys((*self.inner.needs, *self.outer.needs.t_clean)))


class StudentState(flax.struct.PyTreeNode):
  """What a student step changes, the same on every device.

  Attributes:
    variables: of the student, `params` and `batch_stats`.
    opt_state: of its optimiser.
    outer: what the outer loss keeps, such as GKL's prior.
  """
  variables: Any
  opt_state: Any
  outer: Any


class StudentBatch(flax.struct.PyTreeNode):
  """The images of a step, sharded.

  Attributes:
    images: `[B, H, W, C]` in [0, 1].
    labels: int32 `[B]`, the sampled classes; None for what the `ROBUST`
      teacher predicts.
  """
  images: jax.Array
  labels: jax.Array | None


def sgd(schedule: Callable[[jax.Array], jax.Array], momentum: float,
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


def cosine_by_epoch(learning_rate: float, num_epochs: int, first_epoch: int,
                    steps_per_epoch: int
                    ) -> Callable[[jax.Array], jax.Array]:
  """Returns the schedule that falls to 0 by a cosine, once an epoch.

  Args:
    learning_rate: of epoch 0.
    num_epochs: after which it would be 0.
    first_epoch: that of the first step; those before, a warm-up, count.
    steps_per_epoch: steps after which the rate falls.

  Raises:
    SettingError: for a setting out of range.
  """
  validate.rate(learning_rate=learning_rate)
  validate.count(num_epochs=num_epochs, steps_per_epoch=steps_per_epoch)

  def schedule(step):
    epoch = first_epoch + step // steps_per_epoch
    return 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * epoch / num_epochs))
  return schedule


def init(settings: Settings, variables: Any,
         num_classes: int) -> StudentState:
  """Returns the state before the first step of a student."""
  return StudentState(
      variables=variables,
      opt_state=settings.optimizer.init(variables['params']),
      outer=settings.outer.init(num_classes))


def step(settings: Settings, state: StudentState, batch: StudentBatch,
         frozen: frozens.Frozen, key: jax.Array, *,
         axis_name: str | None = None
         ) -> tuple[StudentState, dict[str, jax.Array]]:
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
    The new state and scalar metrics: the loss, what the outer loss says, means
    of what the attack noticed, and how often the student agrees with the
    `ROBUST` teacher on clean and on attacked images, as far as they are known.
  """
  keys = collectives.example_keys(
      key, collectives.example_indices(batch.images.shape[0], axis_name))
  view_keys, attack_keys = (collectives.fold_in(keys, i) for i in range(2))
  images = augment.random_crop_flip(view_keys, batch.images, pad=settings.pad,
                                    flip=settings.flip)
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
    outputs, batch_stats = _outputs(
        settings, {**state.variables, 'params': params}, state.outer, images,
        labels, t_clean, teachers, attack_keys, frozen.epoch, axis_name)
    loss, outer, metrics = settings.outer(state.outer, outputs,
                                          axis_name=axis_name)
    chex.assert_rank([loss, *metrics.values()], 0)
    metrics = metrics | _agreements(outputs) | {
        f'noticed_{name}': jnp.mean(value.astype(loss.dtype))
        for name, value in outputs.noticed.items()}
    return loss, (batch_stats, outer, metrics | {'loss': loss})

  params = state.variables['params']
  gradient, (batch_stats, outer, metrics) = jax.grad(
      loss_fn, has_aux=True)(params)
  gradient = collectives.pmean(gradient, axis_name)
  metrics = collectives.pmean(metrics, axis_name)
  updates, opt_state = settings.optimizer.update(gradient, state.opt_state,
                                                 params)
  params = optax.apply_updates(params, updates)
  return StudentState(
      variables={**state.variables, 'params': params,
                 'batch_stats': batch_stats},
      opt_state=opt_state, outer=outer), metrics


def _outputs(settings, variables, class_state, images, labels, t_clean,
             teachers, keys, epoch, axis_name):
  """Returns what both losses may read, and the student's new statistics."""
  needs, student = settings.outer.needs, settings.student

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
        networks, images, labels, t_clean, class_state, keys))

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
  return outputs, variables['batch_stats']


def _agreements(outputs):
  """Returns how often student and teacher predict the same, where known."""
  if frozens.ROBUST not in outputs.t_clean:
    return {}
  predictions = jnp.argmax(outputs.t_clean[frozens.ROBUST], axis=-1)
  found = {}
  for name, logits in (('clean', outputs.s_clean), ('adv', outputs.s_adv)):
    if logits is not None:
      agree = jnp.argmax(logits, axis=-1) == predictions
      found[f'{name}_agreement'] = jnp.mean(agree.astype(logits.dtype))
  return found
