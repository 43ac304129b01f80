"""FERD's generator phase: Fairness-Aware Examples from the teacher alone.

An epoch starts with a new generator, new latents and labels drawn from the
class probabilities, and takes N_G generator steps; the images of the best one
are the epoch's FAEs.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD
  datafree/synthesis/IBD_module_cmi.py; the layout of an epoch is that of
  Fast-Datafree, arXiv:2112.06253.
"""

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from ferd_jax import losses
from ferd_jax import models
from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import base
from ferd_jax.synthesis import bottleneck as bottlenecks
from ferd_jax.weights import native

KEEP = ('best', 'last')
MEASURED = ('last_view', 'best')
# L_adv weights classes by the teacher's prediction at this temperature, which
# makes them nearly uniform (public code).
_ADV_TEMPERATURE = 100.


class GeneratorState(flax.struct.PyTreeNode):
  """The replicated part of a generator phase.

  Attributes:
    params: of the generator.
    batch_stats: running statistics of its BatchNorm layers, without effect:
      images are always made on batch statistics.
    opt_state: of the generator's optimiser.
    best_loss: scalar, the smallest loss so far.
  """
  params: Any
  batch_stats: Any
  opt_state: Any
  best_loss: jax.Array


class ExampleState(flax.struct.PyTreeNode):
  """The per-example part of a generator phase.

  Attributes:
    latents: `[B, nz]`, trained along with the generator.
    opt_state: of the latents' own optimiser.
    labels: int32 `[B]`, the sampled classes.
    best_images: `[B, H, W, C]`, not augmented, of the step with the least loss.
    view: `[B, H, W, C]`, the augmented images of the last step.
  """
  latents: jax.Array
  opt_state: Any
  labels: jax.Array
  best_images: jax.Array
  view: jax.Array


class SynthesisState(flax.struct.PyTreeNode):
  """State of a generator phase: replicated and per-example parts."""
  generator: GeneratorState
  examples: ExampleState


@dataclasses.dataclass(frozen=True)
class Ferd:
  """FERD's synthesis; see `base.Synthesis`.

  Attributes:
    teacher: module whose BatchNorm statistics, logits and tap are used.
    student: module that L_adv compares with the teacher.
    image_shape: (side, side, channels).
    pad: largest shift of the views, in pixels.
    flip: whether views are mirrored at random.
    warmup_epochs: in which the student is not trained.
    student_steps: N_S, of an epoch.
    steps: N_G, generator steps an epoch.
    batch_size: images an epoch, over all devices.
    nz: size of a latent.
    width: channels of the generator, even.
    generator_lr: Adam's learning rate for the generator.
    latent_lr: Adam's learning rate for the latents.
    w_bn: weight of L_bn, the gap to the teacher's BatchNorm statistics; a term
      of weight 0 is not computed.
    w_oh: weight of L_oh, the cross-entropy with the sampled label.
    w_adv: weight of L_adv, the disagreement of teacher and student.
    w_uni: weight of L_uni, a uniform prediction from non-robust features.
    warmup_adv: whether L_adv counts while the student is untrained.
    keep: which step's images enter the pool: 'best' or 'last'.
    measured: which images' margins steer the sampler: 'last_view' or 'best'.
    tap: stage of the teacher whose output L_uni splits; '' is the
      architecture's default.
    bottleneck: settings of the mask that L_uni uses.
  """
  teacher: nn.Module
  student: nn.Module
  image_shape: tuple[int, int, int]
  pad: int
  flip: bool
  warmup_epochs: int
  student_steps: int
  steps: int = 200
  batch_size: int = 256
  nz: int = 100
  width: int = 128
  generator_lr: float = 2e-3
  latent_lr: float = 0.015
  w_bn: float = 5.
  w_oh: float = 1.
  w_adv: float = 1.
  w_uni: float = 5.
  warmup_adv: bool = True
  keep: str = 'best'
  measured: str = 'last_view'
  tap: str = ''
  bottleneck: bottlenecks.Bottleneck = bottlenecks.Bottleneck()

  samples_labels = True

  def __post_init__(self):
    validate.count(steps=self.steps, batch_size=self.batch_size, nz=self.nz,
                   width=self.width)
    validate.divisible(2, 'channels', width=self.width)
    side, width, _ = self.image_shape
    if side != width or side % 4:
      raise ValueError(
          f'Expected square images, their side divisible by 4, not '
          f'{self.image_shape}: the generator makes no others.')
    validate.rate(generator_lr=self.generator_lr, latent_lr=self.latent_lr)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv,
                          w_uni=self.w_uni, pad=self.pad)
    if not (self.w_bn or self.w_oh or self.w_adv or self.w_uni):
      raise validate.SettingError(
          'w_bn', self.w_bn, 'or one of w_oh, w_adv, w_uni above 0.')
    validate.one_of(KEEP, keep=self.keep)
    validate.one_of(MEASURED, measured=self.measured)
    if self.w_bn:
      self._check_moments()
    if self.w_uni:
      self._check_tap()

  def _check_moments(self):
    """Raises SettingError if the teacher reports no moments."""
    if not forward.reports_moments(self.teacher, self._teacher_shapes,
                                   self.image_shape):
      raise validate.SettingError(
          'w_bn', self.w_bn, 'to be 0 for a teacher without BatchNorm layers '
          'that report the moments of their input, as those of '
          'ferd_jax.models do.')

  def _check_tap(self):
    """Raises SettingError if the teacher cannot be split at the tap."""
    stages = forward.stages(self.teacher)
    if not stages:
      raise validate.SettingError(
          'w_uni', self.w_uni, 'to be 0 for a teacher without stages, which '
          'cannot be split at a tap.')
    validate.one_of(stages[:-1], tap=self.tap_stage)
    image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    latent = jax.eval_shape(
        lambda variables, x: forward.logits(self.teacher, variables, x,
                                            stop=self.tap_stage),
        self._teacher_shapes, image)
    if len(latent.shape) != 4 or latent.shape[1] * latent.shape[2] < 2:
      raise validate.SettingError(
          'tap', self.tap_stage, 'to have more than one position, got the '
          f'shape {latent.shape[1:]}; choose an earlier stage of {stages}.')

  @functools.cached_property
  def _teacher_shapes(self):
    return jax.eval_shape(
        lambda key: models.init_variables(self.teacher, key, self.image_shape),
        jax.random.key(0))

  @property
  def rounds(self) -> base.Rounds:
    """One generator phase, whose images join the pool, and a student phase."""
    return base.Rounds(self.steps, self.student_steps)

  @property
  def tap_stage(self) -> str:
    """The stage at which L_uni splits the teacher."""
    return self.tap or forward.default_tap(self.teacher)

  @property
  def generator_module(self) -> models.Generator:
    """Maps latents `[B, nz]` to images `[B, side, side, channels]`."""
    side, _, channels = self.image_shape
    return models.Generator(side=side, channels=channels, width=self.width)

  @property
  def generator_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.generator_lr, b1=0.5)

  @property
  def latent_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.latent_lr, b1=0.5)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Returns variables of a generator: those of the epoch before are kept.

    Every epoch begins anew; they are there to be exported.
    """
    return models.init_variables(self.generator_module, key, (self.nz,))

  def begin(self, kept: Any, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *,
            axis_name: str | None = None) -> SynthesisState:
    """Returns the state of a new phase: generator, latents and labels."""
    del kept, axis_name
    generator_key, example_key = jax.random.split(key)
    keys = collectives.example_keys(example_key, indices)
    log_probs = jnp.log(probs)

    def draw(key):
      label_key, latent_key = jax.random.split(key)
      label = jax.random.categorical(label_key, log_probs)
      latent = jax.random.normal(latent_key, [self.nz], probs.dtype)
      return label.astype(jnp.int32), latent
    labels, latents = jax.vmap(draw)(keys)
    # Two latents are enough to shape the parameters.
    variables = self.generator_module.init(generator_key, latents[:2])
    params = variables['params']
    images = jnp.zeros([len(indices), *self.image_shape], probs.dtype)
    return SynthesisState(
        generator=GeneratorState(
            params=params, batch_stats=variables['batch_stats'],
            opt_state=self.generator_optimizer.init(params),
            best_loss=jnp.asarray(jnp.inf, probs.dtype)),
        examples=ExampleState(
            latents=latents, opt_state=self.latent_optimizer.init(latents),
            labels=labels, best_images=images, view=images))

  def step(self, state: SynthesisState, frozen: frozens.Frozen,
           key: jax.Array, *, axis_name: str | None = None
           ) -> tuple[SynthesisState, dict[str, jax.Array]]:
    """Takes one step on the generator and the latents.

    Args:
      state: of the generator phase.
      frozen: teacher, student and epoch.
      key: typed PRNG key of this step.
      axis_name: mapped axis over which the examples are sharded.

    Returns:
      The new state and scalar metrics: the loss, its terms, the fraction of
      non-robust channels, and how often the teacher predicts the sampled
      label.
    """
    generator, examples = state.generator, state.examples
    labels = examples.labels
    keys = collectives.example_keys(
        key, collectives.example_indices(labels.shape[0], axis_name))
    view_keys, mask_keys = (collectives.fold_in(keys, i) for i in range(2))
    module = self.generator_module.clone(axis_name=axis_name)

    def loss_fn(params, latents):
      images, updates = module.apply(
          {'params': params, 'batch_stats': generator.batch_stats}, latents,
          mutable=['batch_stats'])
      view = augment.random_crop_flip(view_keys, images, pad=self.pad,
                                      flip=self.flip)
      loss, metrics = self.view_loss(view, labels, mask_keys, frozen,
                                     axis_name=axis_name)
      return loss, (images, view, updates['batch_stats'], metrics)

    (params_grad, latents_grad), (images, view, batch_stats, metrics) = (
        jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(
            generator.params, examples.latents))
    metrics = collectives.pmean(metrics, axis_name)
    params_grad = collectives.pmean(params_grad, axis_name)
    # A shard's loss is a mean over its own examples only, and the transpose of
    # a collective sums over shards: both make the gradient too large by the
    # number of shards.
    shards = collectives.axis_size(axis_name)
    latents_grad = latents_grad / shards

    updates, generator_opt = self.generator_optimizer.update(
        params_grad, generator.opt_state)
    params = optax.apply_updates(generator.params, updates)
    updates, latent_opt = self.latent_optimizer.update(
        latents_grad, examples.opt_state)
    latents = optax.apply_updates(examples.latents, updates)

    loss = metrics['loss']
    if self.keep == 'best':
      better = loss < generator.best_loss
      best_images = jnp.where(better, images, examples.best_images)
      best_loss = jnp.where(better, loss, generator.best_loss)
    else:
      best_images, best_loss = images, loss
    state = SynthesisState(
        generator=GeneratorState(
            params=params, batch_stats=batch_stats, opt_state=generator_opt,
            best_loss=best_loss),
        examples=examples.replace(latents=latents, opt_state=latent_opt,
                                  best_images=best_images, view=view))
    return state, metrics

  def view_loss(self, view: jax.Array, labels: jax.Array, keys: jax.Array,
                frozen: frozens.Frozen, *, axis_name: str | None = None
                ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the generator's loss on augmented images, and its terms.

    Args:
      view: images `[B, H, W, C]`.
      labels: int `[B]`, sampled.
      keys: typed PRNG keys `[B]`, for the bottleneck's noise.
      frozen: teacher, student and epoch.
      axis_name: mapped axis over which the examples are sharded.
    """
    teacher = frozen.teachers[frozens.ROBUST]
    latents, moments, tail = view, [], {}
    if self.w_uni:
      tail = {'start': self.tap_stage}
      latents, found = forward.logits_and_moments(
          self.teacher, teacher, view, stop=self.tap_stage)
      moments.append(found)
    logits, found = forward.logits_and_moments(self.teacher, teacher, latents,
                                               **tail)
    moments.append(found)
    correct = jnp.argmax(logits, axis=-1) == labels
    metrics = {'agreement': jnp.mean(correct.astype(view.dtype))}
    terms = {}
    if self.w_bn:
      running = teacher['batch_stats']
      terms['bn'] = sum(
          losses.moment_gap(found, running, axis_name=axis_name)
          for found in moments)
    if self.w_oh:
      terms['oh'] = jnp.mean(losses.cross_entropy(logits, labels))
    if self.w_adv:
      student_logits = forward.logits(self.student, frozen.student, view)
      terms['adv'] = -losses.decoupled_kl(
          logits, student_logits, jax.nn.softmax(logits / _ADV_TEMPERATURE),
          axis_name=axis_name)
    if self.w_uni:
      terms['uni'], metrics['non_robust'] = self._uniformity(
          teacher, latents, labels, keys, axis_name)
    warming_up = frozen.epoch < self.warmup_epochs
    adv_scale = jnp.where(warming_up & (not self.warmup_adv), 0., 1.).astype(
        view.dtype)
    weights = {'bn': self.w_bn, 'oh': self.w_oh,
               'adv': self.w_adv * adv_scale, 'uni': self.w_uni}
    loss = sum(weights[name] * term for name, term in terms.items())
    return loss, metrics | terms | {'loss': loss}

  def _uniformity(self, teacher, latents, labels, keys, axis_name):
    """Returns L_uni and the fraction of non-robust channels."""
    def tail_fn(latents):
      return forward.logits(self.teacher, teacher, latents,
                            start=self.tap_stage)
    settings = self.bottleneck
    if self.tap_stage == forward.stages(self.teacher)[-2]:
      # The head alone is left, where nothing convolves: no need to unroll.
      settings = dataclasses.replace(settings, unroll=False)
    sigma = bottlenecks.noise_levels(tail_fn, latents, labels, keys, settings,
                                     axis_name=axis_name)
    mask = bottlenecks.non_robust_mask(
        sigma, bottlenecks.spatial_variance(latents), mask=settings.mask,
        axis_name=axis_name)
    uni = jnp.mean(losses.uniformity(tail_fn(latents * mask)))
    return uni, jnp.mean(mask)

  def images(self, state: SynthesisState, frozen: frozens.Frozen,
             key: jax.Array, *, axis_name: str | None = None
             ) -> tuple[jax.Array, jax.Array]:
    """Returns the FAEs `[B, H, W, C]` of the phase and their labels."""
    del frozen, key, axis_name  # They are kept.
    return state.examples.best_images, state.examples.labels

  def measured_images(self, state: SynthesisState, frozen: frozens.Frozen,
                      key: jax.Array, *, axis_name: str | None = None
                      ) -> tuple[jax.Array, jax.Array]:
    """Returns the images `[B, H, W, C]` whose margins count, and labels."""
    del frozen, key, axis_name
    examples = state.examples
    return (examples.best_images if self.measured == 'best'
            else examples.view), examples.labels

  def end(self, kept: Any, state: SynthesisState, *,
          axis_name: str | None = None) -> dict[str, Any]:
    """Returns the generator's variables."""
    del kept, axis_name
    return {'params': state.generator.params,
            'batch_stats': state.generator.batch_stats}

  def specs(self) -> tuple[Any, Any]:
    """Returns where the generator and the examples live."""
    latents = jax.ShapeDtypeStruct((1, self.nz), jnp.float32)
    opt_state = jax.eval_shape(self.latent_optimizer.init, latents)
    return base.REPLICATED, SynthesisState(
        generator=base.REPLICATED,
        examples=ExampleState(
            latents=base.SHARDED, opt_state=base.per_example(opt_state),
            labels=base.SHARDED, best_images=base.SHARDED, view=base.SHARDED))

  def generator(self, kept: dict[str, Any]
                ) -> tuple[nn.Module, native.Network, dict[str, Any]]:
    """Returns the last epoch's generator."""
    module = self.generator_module
    network = native.Network(
        models.GENERATOR, module.channels, None,
        {'side': module.side, 'width': module.width, 'nz': self.nz})
    return module, network, kept
