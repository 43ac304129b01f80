"""The student phase: pool images -> attack on the student -> student update.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD test.py.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.distillation import inner
from ferd_jax.distillation import outer
from ferd_jax.models import forward


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Settings of the student phase, static under `jit`.

  Attributes:
    teacher: module of the teacher.
    student: module of the student.
    inner: the inner attack.
    outer: the outer loss.
    batch_size: images a step, over all devices.
    learning_rate: SGD's at the first epoch.
    num_epochs: length of the cosine schedule, warm-up epochs included.
    momentum: of SGD, not Nesterov's.
    weight_decay: times every parameter, added to the gradient before the
      momentum.
    pad: largest shift of the augmentation, in pixels.
    flip: whether images are mirrored at random.
  """
  teacher: nn.Module
  student: nn.Module
  inner: inner.UniformTarget
  outer: outer.DecoupledKL
  batch_size: int
  learning_rate: float
  num_epochs: int
  momentum: float
  weight_decay: float
  pad: int
  flip: bool

  def __post_init__(self):
    validate.positive(batch_size=self.batch_size, num_epochs=self.num_epochs,
                      learning_rate=self.learning_rate)
    validate.non_negative(weight_decay=self.weight_decay, pad=self.pad)
    validate.in_range(0, 1, momentum=self.momentum)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """SGD up to the learning rate, which `step` multiplies by itself."""
    return optax.chain(optax.add_decayed_weights(self.weight_decay),
                       optax.trace(self.momentum))


class StudentBatch(flax.struct.PyTreeNode):
  """What a student step reads and leaves unchanged.

  Attributes:
    images: `[B, H, W, C]` in [0, 1], from the pool; sharded.
    labels: int32 `[B]`, the sampled classes; sharded.
    teacher: variables of the teacher; replicated.
  """
  images: jax.Array
  labels: jax.Array
  teacher: Any


def learning_rate(settings: Distillation, epoch: jax.Array) -> jax.Array:
  """Returns the rate after `epoch` completed epochs: cosine from the first."""
  phase = jnp.pi * epoch / settings.num_epochs
  return 0.5 * settings.learning_rate * (1 + jnp.cos(phase))


def step(settings: Distillation, state: Any, batch: StudentBatch,
         key: jax.Array, *, axis_name: str | None = None
         ) -> tuple[Any, dict[str, jax.Array]]:
  """Takes one step on the student.

  In this order: a clean forward pass in training mode, the inner attack on the
  student in evaluation mode with the statistics just updated, a forward pass
  in training mode on the attacked images, one SGD step on both losses.

  Args:
    settings: of the student phase.
    state: of the run.
    batch: images, labels and the teacher.
    key: typed PRNG key of this step.
    axis_name: mapped axis over which the examples are sharded.

  Returns:
    The new state, of which the student, its optimiser and the class state
    changed, and scalar metrics: the loss, its terms, and how often the student
    agrees with the teacher on clean and on attacked images.
  """
  keys = collectives.example_keys(
      key, collectives.example_indices(batch.labels.shape[0], axis_name))
  view_keys, attack_keys = (collectives.fold_in(keys, i) for i in range(2))
  images = augment.random_crop_flip(view_keys, batch.images, pad=settings.pad,
                                    flip=settings.flip)
  teacher_fn = forward.logits_fn(settings.teacher, batch.teacher)
  teacher_logits = lax.stop_gradient(teacher_fn(images))

  def loss_fn(params):
    logits, batch_stats = forward.train_logits(
        settings.student,
        {'params': params, 'batch_stats': state.student['batch_stats']},
        images, axis_name=axis_name)
    frozen = lax.stop_gradient({'params': params, 'batch_stats': batch_stats})
    attacked = settings.inner(
        forward.logits_fn(settings.student, frozen), teacher_fn, attack_keys,
        images, batch.labels, teacher_logits)
    adv_logits, batch_stats = forward.train_logits(
        settings.student, {'params': params, 'batch_stats': batch_stats},
        attacked, axis_name=axis_name)
    loss, metrics = settings.outer(
        state.class_state, teacher_logits, logits, adv_logits, batch.labels,
        axis_name=axis_name)
    predictions = jnp.argmax(teacher_logits, axis=-1)
    for name, student_logits in (('clean', logits), ('adv', adv_logits)):
      agree = jnp.argmax(student_logits, axis=-1) == predictions
      metrics[f'{name}_agreement'] = jnp.mean(agree.astype(logits.dtype))
    return loss, (batch_stats, metrics | {'loss': loss})

  params = state.student['params']
  gradient, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(params)
  gradient = collectives.pmean(gradient, axis_name)
  metrics = collectives.pmean(metrics, axis_name)
  direction, opt_state = settings.optimizer.update(
      gradient, state.opt_state, params)
  rate = learning_rate(settings, state.epoch)
  params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, params,
                        direction)
  state = state.replace(
      student={'params': params, 'batch_stats': batch_stats},
      opt_state=opt_state,
      class_state=settings.outer.accumulate(
          state.class_state, teacher_logits, batch.labels,
          axis_name=axis_name))
  return state, metrics
