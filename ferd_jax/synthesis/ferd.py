"""The generator phase: Fairness-Aware Examples (FAEs) from the teacher alone.

An epoch starts with a new generator, new latents and labels drawn from the
class probabilities (`init`), takes N_G generator steps (`step`), and ends with
the margins (`measure`) of the teacher under PGD-20, from which the next epoch's
class probabilities follow.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD
  datafree/synthesis/IBD_module_cmi.py; the layout of an epoch is that of
  Fast-Datafree, arXiv:2112.06253.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from ferd_jax import losses
from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.synthesis import bottleneck
from ferd_jax.synthesis import losses as generator_losses

KEEP = ('best', 'last')
MARGIN_BATCHES = ('last_view', 'best')
# L_adv weights classes by the teacher's prediction at this temperature, which
# makes them nearly uniform (public code).
_ADV_TEMPERATURE = 100.


@dataclasses.dataclass(frozen=True)
class Synthesis:
  """Settings of the generator phase, static under `jit`.

  Attributes:
    generator: module latents `[B, nz]` -> images `[B, H, W, C]` in (0, 1).
    teacher: module whose BatchNorm statistics, logits and tap are used.
    student: module that L_adv compares with the teacher.
    tap: stage of the teacher whose output the bottleneck splits.
    batch_size: images an epoch, over all devices.
    nz: size of a latent.
    generator_lr: Adam's learning rate for the generator.
    latent_lr: Adam's learning rate for the latents.
    w_bn, w_oh, w_adv, w_uni: weights of L_bn, L_oh, L_adv, L_uni; a term of
      weight 0 is not computed.
    bottleneck: settings of the mask that L_uni uses.
    margin_batch: which images' margins: 'last_view' or 'best'.
    keep: which step's images enter the pool: 'best' or 'last'.
    pad: largest shift of the views, in pixels.
    flip: whether views are mirrored at random.
  """
  generator: nn.Module
  teacher: nn.Module
  student: nn.Module
  tap: str
  batch_size: int
  nz: int
  generator_lr: float
  latent_lr: float
  w_bn: float
  w_oh: float
  w_adv: float
  w_uni: float
  bottleneck: bottleneck.Bottleneck
  margin_batch: str
  keep: str
  pad: int
  flip: bool

  def __post_init__(self):
    validate.positive(batch_size=self.batch_size, nz=self.nz,
                      generator_lr=self.generator_lr,
                      latent_lr=self.latent_lr)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv,
                          w_uni=self.w_uni, pad=self.pad)
    if not (self.w_bn or self.w_oh or self.w_adv or self.w_uni):
      raise ValueError('Expected one of w_bn, w_oh, w_adv, w_uni above 0.')
    validate.one_of(KEEP, keep=self.keep)
    validate.one_of(MARGIN_BATCHES, margin_batch=self.margin_batch)
    validate.one_of(self.teacher.stages[:-1], tap=self.tap)

  @property
  def generator_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.generator_lr, b1=0.5)

  @property
  def latent_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.latent_lr, b1=0.5)


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


class SynthesisBatch(flax.struct.PyTreeNode):
  """What a generator step reads and leaves unchanged, all replicated.

  Attributes:
    teacher: variables of the teacher.
    student: variables of the student.
    adv_scale: scalar that multiplies w_adv (0 to switch L_adv off for an epoch
      without compiling again).
  """
  teacher: Any
  student: Any
  adv_scale: jax.Array


def init(settings: Synthesis, probs: jax.Array, indices: jax.Array,
         key: jax.Array, *,
         axis_name: str | None = None) -> SynthesisState:
  """Returns the state of a new generator phase.

  Args:
    settings: of the generator phase.
    probs: `[C]` class probabilities.
    indices: int `[B]`, positions in the global batch, 0..batch_size-1.
    key: typed PRNG key of this phase.
    axis_name: mapped axis over which the batch is sharded; not needed here.
  """
  del axis_name
  generator_key, example_key = jax.random.split(key)
  keys = collectives.example_keys(example_key, indices)
  log_probs = jnp.log(probs)

  def draw(key):
    label_key, latent_key = jax.random.split(key)
    label = jax.random.categorical(label_key, log_probs)
    latent = jax.random.normal(latent_key, [settings.nz], probs.dtype)
    return label.astype(jnp.int32), latent
  labels, latents = jax.vmap(draw)(keys)
  # Two latents are enough to shape the parameters.
  variables = settings.generator.init(generator_key, latents[:2])
  params = variables['params']
  side = settings.generator.side
  images = jnp.zeros([len(indices), side, side, settings.generator.channels],
                     probs.dtype)
  return SynthesisState(
      generator=GeneratorState(
          params=params, batch_stats=variables['batch_stats'],
          opt_state=settings.generator_optimizer.init(params),
          best_loss=jnp.asarray(jnp.inf, probs.dtype)),
      examples=ExampleState(
          latents=latents,
          opt_state=settings.latent_optimizer.init(latents),
          labels=labels, best_images=images, view=images))


def step(settings: Synthesis, state: SynthesisState,
         batch: SynthesisBatch, key: jax.Array, *,
         axis_name: str | None = None
         ) -> tuple[SynthesisState, dict[str, jax.Array]]:
  """Takes one step on the generator and the latents.

  Args:
    settings: of the generator phase.
    state: of the generator phase.
    batch: the frozen networks.
    key: typed PRNG key of this step.
    axis_name: mapped axis over which the examples are sharded.

  Returns:
    The new state and scalar metrics: the loss, its terms, the fraction of
    non-robust channels, and how often the teacher predicts the sampled label.
  """
  generator, examples = state.generator, state.examples
  labels = examples.labels
  keys = collectives.example_keys(
      key, collectives.example_indices(labels.shape[0], axis_name))
  view_keys, mask_keys = (collectives.fold_in(keys, i) for i in range(2))

  def loss_fn(params, latents):
    images, updates = settings.generator.clone(axis_name=axis_name).apply(
        {'params': params, 'batch_stats': generator.batch_stats}, latents,
        mutable=['batch_stats'])
    view = augment.random_crop_flip(view_keys, images, pad=settings.pad,
                                    flip=settings.flip)
    loss, metrics = view_loss(settings, view, labels, mask_keys, batch,
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

  updates, generator_opt = settings.generator_optimizer.update(
      params_grad, generator.opt_state)
  params = optax.apply_updates(generator.params, updates)
  updates, latent_opt = settings.latent_optimizer.update(
      latents_grad, examples.opt_state)
  latents = optax.apply_updates(examples.latents, updates)

  loss = metrics['loss']
  if settings.keep == 'best':
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


def view_loss(settings: Synthesis, view: jax.Array, labels: jax.Array,
              keys: jax.Array, batch: SynthesisBatch, *,
              axis_name: str | None = None
              ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the generator's loss on augmented images, and its terms.

  Args:
    settings: of the generator phase.
    view: images `[B, H, W, C]`.
    labels: int `[B]`, sampled.
    keys: typed PRNG keys `[B]`, for the bottleneck's noise.
    batch: the frozen networks.
    axis_name: mapped axis over which the examples are sharded.
  """
  latents, tap_moments = forward.logits_and_moments(
      settings.teacher, batch.teacher, view, stop=settings.tap)
  logits, tail_moments = forward.logits_and_moments(
      settings.teacher, batch.teacher, latents, start=settings.tap)
  correct = jnp.argmax(logits, axis=-1) == labels
  metrics = {'agreement': jnp.mean(correct.astype(view.dtype))}
  terms = {}
  if settings.w_bn:
    running = batch.teacher['batch_stats']
    terms['bn'] = sum(
        generator_losses.moment_gap(moments, running, axis_name=axis_name)
        for moments in (tap_moments, tail_moments))
  if settings.w_oh:
    terms['oh'] = jnp.mean(losses.cross_entropy(logits, labels))
  if settings.w_adv:
    student_logits = forward.logits(settings.student, batch.student, view)
    terms['adv'] = -losses.decoupled_kl(
        logits, student_logits, jax.nn.softmax(logits / _ADV_TEMPERATURE),
        axis_name=axis_name)
  if settings.w_uni:
    def tail_fn(latents):
      return forward.logits(settings.teacher, batch.teacher, latents,
                            start=settings.tap)
    sigma = bottleneck.noise_levels(tail_fn, latents, labels, keys,
                                  settings.bottleneck, axis_name=axis_name)
    mask = bottleneck.non_robust_mask(
        sigma, bottleneck.spatial_variance(latents),
        mask=settings.bottleneck.mask, axis_name=axis_name)
    terms['uni'] = jnp.mean(losses.uniformity(tail_fn(latents * mask)))
    metrics['non_robust'] = jnp.mean(mask)
  weights = {'bn': settings.w_bn, 'oh': settings.w_oh,
             'adv': settings.w_adv * batch.adv_scale, 'uni': settings.w_uni}
  loss = sum(weights[name] * term for name, term in terms.items())
  return loss, metrics | terms | {'loss': loss}


def margin_images(settings: Synthesis,
                  examples: ExampleState) -> jax.Array:
  """Returns the images whose attacked margins are measured, `[B, H, W, C]`."""
  return (examples.best_images if settings.margin_batch == 'best'
          else examples.view)


def measure(settings: Synthesis, examples: ExampleState,
            attacked: jax.Array, teacher: Any, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
  """Returns the attacked teacher's margins per class, and its agreement.

  Args:
    settings: of the generator phase.
    examples: after the last generator step.
    attacked: `margin_images` after the margin attack on the teacher.
    teacher: variables of the teacher.
    axis_name: mapped axis over which the examples are sharded.

  Returns:
    Sums over the global batch: `margin_sums` `[C]` and `counts` `[C]` of the
    attacked images' margins, and the scalar `agreement`, how often the teacher
    predicts the sampled label of a kept image.
  """
  logits_fn = forward.logits_fn(settings.teacher, teacher)
  logits = logits_fn(attacked)
  margins = losses.margin(logits, examples.labels)
  onehot = jax.nn.one_hot(examples.labels, logits.shape[-1],
                          dtype=margins.dtype)
  margin_sums = jnp.sum(margins[:, None] * onehot, axis=0)
  correct = jnp.argmax(logits_fn(examples.best_images), -1) == examples.labels
  return {
      'margin_sums': collectives.psum(margin_sums, axis_name),
      'counts': collectives.psum(jnp.sum(onehot, axis=0), axis_name),
      'agreement': collectives.pmean(
          jnp.mean(correct.astype(margins.dtype)), axis_name),
  }
