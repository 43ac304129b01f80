"""A toy of each part of a method, with state of its own.

They stand for methods that are unlike FERD: pixels in place of a generator,
kept from epoch to epoch; fresh images without labels; a sampler that measures
the student; an attack on two networks that sees class state and reports; a
loss that reads the teachers on attacked images.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import distillation
from ferd_jax import losses
from ferd_jax import synthesis
from ferd_jax.core import class_sums
from ferd_jax.core import collectives
from ferd_jax.distillation import base as distillation_base
from ferd_jax.models import forward
from ferd_jax.models import passes
from ferd_jax.run import settings
from ferd_jax.synthesis import base as synthesis_base


class Canvas(flax.struct.PyTreeNode):
  """Pixels, and how many steps they had."""
  pixels: jax.Array
  steps: jax.Array


@dataclasses.dataclass(frozen=True)
class ToySynthesis:
  """Pixels that the teacher is sure of, never begun anew.

  Attributes:
    teacher: module.
    image_shape: (H, W, channels).
    student_steps: a round.
    steps: generator steps a round.
    batch_size: images at a time.
    rate: of gradient descent.
    noise: standard deviation of what makes images fresh.
  """
  teacher: nn.Module
  image_shape: tuple[int, int, int]
  student_steps: int
  steps: int = 1
  batch_size: int = 8
  rate: float = 1e3
  noise: float = 0.05

  samples_labels = False
  passes = passes.Passes(1, 1)

  @property
  def rounds(self):
    return synthesis_base.Rounds(self.steps, self.student_steps, per_epoch=2,
                                 pooled=False)

  def init(self, key):
    shape = (self.batch_size, *self.image_shape)
    return Canvas(jax.random.normal(key, shape), jnp.zeros([], jnp.int32))

  def begin(self, kept, probs, indices, key, *, axis_name=None):
    del probs, indices, key, axis_name
    return kept

  def step(self, state, frozen, key, *, axis_name=None):
    del key
    def entropy(pixels):
      logits = forward.logits(self.teacher, frozen.teachers['robust'],
                              nn.sigmoid(pixels))
      return jnp.sum(losses.soft_cross_entropy(logits, logits))
    value, gradient = jax.value_and_grad(entropy)(state.pixels)
    metrics = collectives.pmean(
        {'loss': value / state.pixels.shape[0]}, axis_name)
    return Canvas(state.pixels - self.rate * gradient, state.steps + 1), metrics

  def images(self, state, frozen, key, *, axis_name=None):
    del frozen
    number = state.pixels.shape[0]
    keys = collectives.example_keys(
        key, collectives.example_indices(number, axis_name))
    noise = jax.vmap(lambda k: jax.random.normal(k, self.image_shape))(keys)
    images = nn.sigmoid(state.pixels) + self.noise * noise
    return jnp.clip(images, 0, 1), None

  measured_images = images

  def end(self, kept, state, *, axis_name=None):
    del kept, axis_name
    return state

  def specs(self):
    canvas = Canvas(synthesis_base.SHARDED, synthesis_base.REPLICATED)
    return canvas, canvas

  def generator(self, kept):
    del kept


class Losses(flax.struct.PyTreeNode):
  """Probabilities, and running means of the student's losses."""
  probs: jax.Array
  means: jax.Array


@dataclasses.dataclass(frozen=True)
class ToySampler:
  """More of what the student predicts badly.

  Attributes:
    momentum: of the running means.
  """
  momentum: float = 0.5

  measurement = synthesis_base.Measurement(statistic=losses.cross_entropy,
                                           network='student')

  def init(self, num_classes):
    return Losses(jnp.full([num_classes], 1 / num_classes),
                  jnp.zeros([num_classes]))

  def update(self, state, measured):
    now = measured.values / jnp.maximum(measured.counts, 1)
    means = jnp.where(measured.counts > 0,
                      state.means + self.momentum * (now - state.means),
                      state.means)
    return Losses(jax.nn.softmax(means), means)


@dataclasses.dataclass(frozen=True)
class ToyInner(distillation_base.Stateless):
  """Drives student and teacher apart, harder for classes of large weight.

  Attributes:
    eps: radius.
    step_size: in the unit of the images.
    steps: how many.
  """
  eps: float
  step_size: float
  steps: int = 2

  needs, notices = ('robust',), ('kappa',)

  @property
  def passes(self):
    return passes.Passes(1, 1) * self.steps

  def __call__(self, state, networks, images, labels, t_clean, class_state,
               keys):
    del state, keys
    weights = class_state.weights[labels] if hasattr(
        class_state, 'weights') else 1.

    def objective(x):
      s_adv, t_adv = networks.student(x), networks.teachers['robust'](x)
      withstood = jnp.argmax(s_adv, -1) == jnp.argmax(t_clean['robust'], -1)
      return (weights * losses.kl_divergence(t_adv, s_adv),
              {'kappa': withstood.astype(x.dtype)})
    start = images + 0.5 * self.step_size
    found, noticed = attacks.ascend(
        objective, images, start, eps=self.eps, step_size=self.step_size,
        num_steps=self.steps)
    return distillation_base.Attacked(found, noticed)


class Weights(flax.struct.PyTreeNode):
  """Weights of the classes, and what they will be made of."""
  weights: jax.Array
  sums: jax.Array


@dataclasses.dataclass(frozen=True)
class ToyOuter:
  """KL to the teacher on attacked images, weighted by class and by kappa.

  Attributes:
    rate: of the class weights.
  """
  rate: float = 0.1

  needs = distillation_base.Needs(t_clean=('robust',), t_adv=('robust',),
                                  adversarial_first=True)

  def init(self, num_classes):
    return Weights(jnp.ones([num_classes]), jnp.zeros([num_classes]))

  def __call__(self, state, outputs, *, axis_name=None):
    kappa = outputs.noticed.get('kappa', jnp.zeros(outputs.labels.shape))
    weights = state.weights[outputs.labels] / (1 + kappa)
    adv = weights * losses.kl_divergence(outputs.t_adv['robust'], outputs.s_adv)
    means = {'adv_loss': outputs.mean(adv),
             'clean_loss': outputs.mean(losses.kl_divergence(
                 outputs.t_clean['robust'], outputs.s_clean))}
    sums = class_sums.over_batch(
        lax.stop_gradient(adv), outputs.labels, len(state.sums),
        axis_name=axis_name).values
    return sum(means.values()), state.replace(sums=state.sums + sums), means

  def end_epoch(self, state, epoch):
    del epoch
    weights = state.weights + self.rate * state.sums
    return Weights(weights / jnp.mean(weights), jnp.zeros_like(state.sums))


def register() -> dict[str, Any]:
  """Registers the toys; returns them by group."""
  found = {'synthesis': ToySynthesis, 'sampler': ToySampler,
           'inner': ToyInner, 'outer': ToyOuter}
  synthesis.SYNTHESES.register('unlike_ferd', ToySynthesis)
  synthesis.SAMPLERS.register('unlike_ferd', ToySampler)
  distillation.INNERS.register('unlike_ferd', ToyInner)
  distillation.OUTERS.register('unlike_ferd', ToyOuter)
  return found


def use_all(config) -> None:
  """Puts a toy into every group of a config."""
  for group in register():
    settings.use(config, group, 'unlike_ferd')
