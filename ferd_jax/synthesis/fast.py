"""Fast: few steps an epoch, from a generator that learns to be adapted.

References: Fang et al. 2022, arXiv:2112.06253; GitHub zju-vipa/Fast-Datafree
  datafree/synthesis/fast_meta.py; Reptile, arXiv:1803.02999.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import optax

from ferd_jax import losses
from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import trained_latents

META = ('fomaml', 'reptile')
# Reptile's gradient is so many times the way from the copy back (public code).
_REPTILE = 67.
# What `reset_epoch` draws anew: the generator's first layers, by name.
_FIRST = ('l1_0', 'conv_blocks_0')


class Kept(flax.struct.PyTreeNode):
  """What is kept between phases.

  Attributes:
    params: of the meta generator.
    batch_stats: of the last copy's BatchNorm layers, to be exported.
    opt_state: of the meta generator's optimiser.
    moments: running averages of the moments of the teacher's inputs.
    phases: int32 scalar, phases so far.
  """
  params: Any
  batch_stats: Any
  opt_state: Any
  moments: Any
  phases: jax.Array


class Extra(flax.struct.PyTreeNode):
  """What a phase has beside generator and examples.

  Attributes:
    params: of the meta generator, from which this phase began.
    gradient: the sum of the copy's gradients.
    average: the running moments, as the phase began.
    moments: those of the last step.
    phases: int32 scalar, phases before.
  """
  params: Any
  gradient: Any
  average: Any
  moments: Any
  phases: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast(trained_latents.TrainedLatents):
  """Fast's synthesis, with the constants of its five steps for ResNets.

  Attributes:
    generator_steps: of a phase; the rates belong to their number.
    generator_lr: Adam's learning rate for the copy of the generator.
    latent_lr: Adam's learning rate for the latents.
    w_bn: weight of L_bn', the gap to the teacher's BatchNorm statistics of a
      running average of the batches' moments.
    w_oh: weight of L_oh, the cross-entropy with the sampled label.
    w_adv: weight of -mean KL(teacher || student) where both predict the same;
      it counts from the last warm-up epoch on.
    meta: how the generator learns from its copy: 'fomaml' by the sum of its
      gradients, 'reptile' by the way that it went.
    momentum: of the running average of the moments.
    reset_epoch: at whose start the generator's first layers are drawn anew; 0
      for never.
  """
  generator_steps: int = 5
  generator_lr: float = 3e-3
  latent_lr: float = 0.01
  w_bn: float = 10.
  w_oh: float = 0.5
  w_adv: float = 1.33
  meta: str = 'fomaml'
  momentum: float = 0.9
  reset_epoch: int = 140

  def __post_init__(self):
    super().__post_init__()
    validate.count(generator_steps=self.generator_steps)
    validate.count(0, reset_epoch=self.reset_epoch)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv)
    if not (self.w_bn or self.w_oh or self.w_adv):
      raise validate.SettingError('w_bn', self.w_bn,
                                  'or one of w_oh, w_adv above 0.')
    validate.in_range(0, 1, momentum=self.momentum)
    validate.one_of(META, meta=self.meta)
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)

  @property
  def rounds(self) -> base.Rounds:
    """One phase, whose images join the pool, and the student's steps."""
    return base.Rounds(self.generator_steps, self.student_steps)

  @property
  def meta_optimizer(self) -> optax.GradientTransformation:
    """Of the meta generator."""
    return optax.adam(self.generator_lr * self.generator_steps, b1=0.5)

  def init(self, key: jax.Array) -> Kept:
    """Returns a new meta generator and its optimiser."""
    variables = super().init(key)
    params = variables['params']
    return Kept(
        params=params, batch_stats=variables['batch_stats'],
        opt_state=self.meta_optimizer.init(params),
        moments=batches.no_moments(self.teacher, self.image_shape),
        phases=jnp.zeros([], jnp.int32))

  def begin(self, kept: Kept, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None
            ) -> trained_latents.SynthesisState:
    """Returns the state of a phase: the meta generator's copy, new latents."""
    del axis_name
    generator_key, example_key = jax.random.split(key)
    examples = self.drawn(probs, indices, example_key)
    params = kept.params
    if self.reset_epoch:
      new = self.drawn_generator(examples, generator_key)['params']
      resets = kept.phases + 1 == self.reset_epoch
      params = params | {name: jax.tree.map(
          lambda drawn, old: jnp.where(resets, drawn, old),
          _recentred(new[name]), params[name]) for name in _FIRST}
    variables = {'params': params, 'batch_stats': kept.batch_stats}
    return self.begun(variables, examples, Extra(
        params=params, gradient=jax.tree.map(jnp.zeros_like, params),
        average=kept.moments, moments=kept.moments, phases=kept.phases))

  def step(self, state: trained_latents.SynthesisState,
           frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None
           ) -> tuple[trained_latents.SynthesisState, dict[str, jax.Array]]:
    """Takes a step on the copy and the latents; see `base.Synthesis`."""
    extra = state.extra
    keys = collectives.example_keys(key, collectives.example_indices(
        len(state.examples.labels), axis_name))

    def loss_fn(images, _):
      return running_loss(
          self, images, state.examples.labels, keys, frozen, extra.average,
          first=extra.phases == 0,
          adversarial=frozen.epoch + 1 >= self.warmup_epochs,
          axis_name=axis_name)
    found = self.descend(state, loss_fn, axis_name=axis_name)
    extra = extra.replace(
        gradient=jax.tree.map(jnp.add, extra.gradient, found.gradient),
        moments=found.aux)
    return trained_latents.SynthesisState(
        found.generator, found.examples, extra), found.metrics

  def end(self, kept: Kept, state: trained_latents.SynthesisState, *,
          axis_name: str | None = None) -> Kept:
    """Returns the meta generator after its step."""
    del axis_name
    extra = state.extra
    gradient = extra.gradient
    if self.meta == 'reptile':
      gradient = jax.tree.map(lambda start, end: _REPTILE * (start - end),
                              extra.params, state.generator.params)
    updates, opt_state = self.meta_optimizer.update(gradient, kept.opt_state)
    return Kept(
        params=optax.apply_updates(extra.params, updates),
        batch_stats=state.generator.batch_stats, opt_state=opt_state,
        moments=followed(extra.moments, extra.average, self.momentum,
                         first=extra.phases == 0),
        phases=extra.phases + 1)

  def specs(self) -> tuple[Any, Any]:
    """Returns that all but the examples is the same everywhere."""
    return base.REPLICATED, self.phase_specs(base.REPLICATED)

  def generator(self, kept: Kept):
    """Returns the meta generator."""
    return super().generator({'params': kept.params,
                              'batch_stats': kept.batch_stats})


def running_loss(settings: Any, images: jax.Array, labels: jax.Array,
                 keys: jax.Array, frozen: frozens.Frozen, average: Any, *,
                 first: jax.Array, adversarial: jax.Array,
                 axis_name: str | None = None) -> trained_latents.Loss:
  """Returns Fast's loss of images, and the moments of their batch.

  Args:
    settings: the part, with `teacher`, `student`, `pad`, `flip`, `momentum`
      and the weights.
    images: `[B, H, W, C]`.
    labels: int `[B]`.
    keys: typed PRNG keys `[B]`, of the views.
    frozen: teachers, student and epoch.
    average: running moments of the teacher's BatchNorm layers.
    first: whether there is no average yet.
    adversarial: whether the student counts.
    axis_name: mapped axis over which the examples are sharded.
  """
  view = augment.random_crop_flip(keys, images, pad=settings.pad,
                                  flip=settings.flip)
  teacher = frozen.teachers[frozens.ROBUST]
  logits, moments = forward.logits_and_moments(settings.teacher, teacher, view)
  moments = losses.global_moments(moments, axis_name)
  agree = jnp.argmax(logits, axis=-1) == labels
  metrics = {'agreement': jnp.mean(agree.astype(images.dtype))}
  terms = {}
  if settings.w_bn:
    running = followed(moments, average, settings.momentum, first=first)
    terms['bn'] = losses.moment_gap(running, teacher['batch_stats'])
  if settings.w_oh:
    terms['oh'] = generator_losses.label_loss(logits, labels)
  if settings.w_adv:
    terms['adv'] = jnp.where(
        adversarial, generator_losses.negative_kl_where_equal(
            logits, forward.logits(settings.student, frozen.student, view)), 0)
  weights = {'bn': settings.w_bn, 'oh': settings.w_oh, 'adv': settings.w_adv}
  loss = sum(weights[name] * term for name, term in terms.items())
  return trained_latents.Loss(view, metrics | terms | {'loss': loss},
                              lax.stop_gradient(moments))


def followed(moments: Any, average: Any, momentum: float, *,
             first: jax.Array) -> Any:
  """Returns `momentum * average + (1 - momentum) * moments`, by layer.

  Args:
    moments: of a global batch, `losses.global_moments`.
    average: of such moments, of the phases before.
    momentum: weight of the average.
    first: whether there is no average yet: then it is the moments.
  """
  weight = jnp.where(first, 0, momentum)
  return jax.tree.map(lambda old, new: weight * old + (1 - weight) * new,
                      average, moments)


def _recentred(layer: Any) -> Any:
  """Returns a drawn layer with a BatchNorm's scale around 0, not around 1."""
  # As public code resets it: all weights N(0, 0.02).
  return layer | ({'scale': layer['scale'] - 1} if 'scale' in layer else {})
