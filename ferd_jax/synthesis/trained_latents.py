"""A generator and the latents of one batch, trained together for a phase.

What FERD, CMI, Fast and DFHL-RS have in common: labels are drawn, latents are
parameters, and the images of the step with the least loss join the pool.

Reference: the layout is Fast-Datafree's, GitHub zju-vipa/Fast-Datafree.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from ferd_jax import models
from ferd_jax.core import collectives
from ferd_jax.core import parts
from ferd_jax.core import validate
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches
from ferd_jax.weights import native

MEASURED = ('last_view', 'best')


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

  @property
  def variables(self) -> dict[str, Any]:
    """The generator's variables."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


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
  """State of a generator phase: replicated and per-example parts.

  Attributes:
    generator: the generator.
    examples: the batch.
    extra: what else a method has in it.
  """
  generator: GeneratorState
  examples: ExampleState
  extra: Any = ()


class Loss(NamedTuple):
  """What a method says of the images of a step.

  Attributes:
    view: `[B, H, W, C]`, the images as the teacher saw them.
    metrics: scalars of the shard, `loss` among them, which is descended.
    aux: anything else.
  """
  view: jax.Array
  metrics: dict[str, jax.Array]
  aux: Any = ()


class Descent(NamedTuple):
  """What a step comes to.

  Attributes:
    generator: after it.
    examples: after it.
    metrics: means over all shards.
    better: whether the images of this step are those kept now.
    aux: of `Loss`.
    gradient: of the generator's parameters.
    extra_gradient: of what was differentiated beside it.
  """
  generator: GeneratorState
  examples: ExampleState
  metrics: dict[str, jax.Array]
  better: jax.Array
  aux: Any
  gradient: Any
  extra_gradient: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedLatents:
  """Base of the methods; see `base.Synthesis`.

  Attributes:
    teacher: module whose BatchNorm statistics and logits are used.
    student: module that is compared with the teacher.
    image_shape: (side, side, channels).
    pad: largest shift of the views, in pixels.
    flip: whether views are mirrored at random.
    warmup_epochs: in which the student is not trained.
    student_steps: N_S, of an epoch.
    batch_size: images a phase, over all devices.
    nz: size of a latent.
    width: channels of the generator, even.
    dtype: in which it computes; None: float32.
    generator_lr: Adam's learning rate for the generator.
    latent_lr: Adam's learning rate for the latents.
    keep: which step's images enter the pool: 'best' or 'last'.
    measured: which images the sampler measures: 'last_view' or 'best'.
  """
  teacher: nn.Module
  student: nn.Module
  image_shape: tuple[int, int, int]
  pad: int
  flip: bool
  warmup_epochs: int
  student_steps: int
  batch_size: int = 256
  nz: int = 256
  width: int = 128
  generator_lr: float = 1e-3
  latent_lr: float = 1e-3
  keep: str = 'best'
  measured: str = 'best'
  dtype: jnp.dtype | None = parts.given(None)

  samples_labels = True
  passes = passes.Passes(1, 1)

  def __post_init__(self):
    validate.count(batch_size=self.batch_size, nz=self.nz, width=self.width)
    validate.divisible(2, 'channels', width=self.width)
    batches.check_side(self.image_shape)
    validate.rate(generator_lr=self.generator_lr, latent_lr=self.latent_lr)
    validate.non_negative(pad=self.pad)
    validate.one_of(batches.KEEP, keep=self.keep)
    validate.one_of(MEASURED, measured=self.measured)

  @property
  def generator_module(self) -> models.Generator:
    """Maps latents `[B, nz]` to images `[B, side, side, channels]`."""
    side, _, channels = self.image_shape
    return models.Generator(side=side, channels=channels, width=self.width,
                            dtype=self.dtype)

  @property
  def generator_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.generator_lr, b1=0.5)

  @property
  def latent_optimizer(self) -> optax.GradientTransformation:
    return optax.adam(self.latent_lr, b1=0.5)

  def init(self, key: jax.Array) -> Any:
    """Returns variables of a generator."""
    return models.init_variables(self.generator_module, key, (self.nz,))

  def begun(self, variables: Any, examples: ExampleState,
            extra: Any = ()) -> SynthesisState:
    """Returns the state of a phase that starts with a generator.

    Args:
      variables: of the generator; its optimiser is a new one.
      examples: `drawn`.
      extra: of the method.
    """
    params = variables['params']
    return SynthesisState(
        generator=GeneratorState(
            params=params, batch_stats=variables['batch_stats'],
            opt_state=self.generator_optimizer.init(params),
            best_loss=jnp.asarray(jnp.inf, examples.latents.dtype)),
        examples=examples, extra=extra)

  def drawn(self, probs: jax.Array, indices: jax.Array,
            key: jax.Array) -> ExampleState:
    """Returns labels and latents of a phase, each example's by its position.

    Args:
      probs: `[K]`, class probabilities.
      indices: int `[B]`, positions in the global batch.
      key: typed PRNG key.
    """
    keys = collectives.example_keys(key, indices)
    log_probs = jnp.log(probs)

    def draw(key):
      label_key, latent_key = jax.random.split(key)
      label = jax.random.categorical(label_key, log_probs)
      latent = jax.random.normal(latent_key, [self.nz], probs.dtype)
      return label.astype(jnp.int32), latent
    labels, latents = jax.vmap(draw)(keys)
    images = jnp.zeros([len(indices), *self.image_shape], probs.dtype)
    return ExampleState(
        latents=latents, opt_state=self.latent_optimizer.init(latents),
        labels=labels, best_images=images, view=images)

  def drawn_generator(self, examples: ExampleState,
                      key: jax.Array) -> dict[str, Any]:
    """Returns variables of a generator that knows nothing."""
    # Two latents are enough to shape the parameters.
    return self.generator_module.init(key, examples.latents[:2])

  def descend(self, state: SynthesisState,
              loss_fn: Callable[[jax.Array, Any], Loss], extra: Any = (), *,
              axis_name: str | None = None) -> Descent:
    """Takes one step on the generator and the latents.

    Args:
      state: of the phase.
      loss_fn: (images, extra) -> loss, of this shard.
      extra: pytree that is differentiated, too, and not changed.
      axis_name: mapped axis over which the examples are sharded.
    """
    generator, examples = state.generator, state.examples
    module = self.generator_module.clone(axis_name=axis_name)

    def objective(params, latents, extra):
      images, updates = module.apply(
          {'params': params, 'batch_stats': generator.batch_stats}, latents,
          mutable=['batch_stats'])
      loss = loss_fn(images, extra)
      return loss.metrics['loss'], (images, updates['batch_stats'], loss)

    (gradient, latents_gradient, extra_gradient), (
        images, batch_stats, loss) = jax.grad(
            objective, argnums=(0, 1, 2), has_aux=True)(
                generator.params, examples.latents, extra)
    metrics = collectives.pmean(loss.metrics, axis_name)
    gradient, extra_gradient = collectives.pmean((gradient, extra_gradient),
                                                 axis_name)
    # A shard's loss is a mean over its own examples only, and the transpose of
    # a collective sums over shards: both make the gradient too large by the
    # number of shards.
    shards = collectives.axis_size(axis_name)
    latents_gradient = latents_gradient / shards

    updates, generator_opt = self.generator_optimizer.update(
        gradient, generator.opt_state)
    params = optax.apply_updates(generator.params, updates)
    updates, latent_opt = self.latent_optimizer.update(
        latents_gradient, examples.opt_state)
    latents = optax.apply_updates(examples.latents, updates)
    better, best_images, best_loss = batches.kept(
        self.keep, metrics['loss'], images, generator.best_loss,
        examples.best_images)
    return Descent(
        generator=GeneratorState(
            params=params, batch_stats=batch_stats, opt_state=generator_opt,
            best_loss=best_loss),
        examples=examples.replace(latents=latents, opt_state=latent_opt,
                                  best_images=best_images, view=loss.view),
        metrics=metrics, better=better, aux=loss.aux, gradient=gradient,
        extra_gradient=extra_gradient)

  def images(self, state: SynthesisState, frozen: frozens.Frozen,
             key: jax.Array, *, axis_name: str | None = None
             ) -> tuple[jax.Array, jax.Array]:
    """Returns the images `[B, H, W, C]` of the phase and their labels."""
    del frozen, key, axis_name  # They are kept.
    return state.examples.best_images, state.examples.labels

  def measured_images(self, state: SynthesisState, frozen: frozens.Frozen,
                      key: jax.Array, *, axis_name: str | None = None
                      ) -> tuple[jax.Array, jax.Array]:
    """Returns the images `[B, H, W, C]` that the sampler measures, labels."""
    del frozen, key, axis_name
    examples = state.examples
    return (examples.best_images if self.measured == 'best'
            else examples.view), examples.labels

  def end(self, kept: Any, state: SynthesisState, *,
          axis_name: str | None = None) -> Any:
    """Returns the generator's variables."""
    del kept, axis_name
    return state.generator.variables

  def specs(self) -> tuple[Any, Any]:
    """Returns where the generator and the examples live."""
    return base.REPLICATED, self.phase_specs(base.REPLICATED)

  def phase_specs(self, extra: Any) -> SynthesisState:
    """Returns where a phase's state lives, its extra part as it is said."""
    latents = jax.ShapeDtypeStruct((1, self.nz), jnp.float32)
    opt_state = jax.eval_shape(self.latent_optimizer.init, latents)
    return SynthesisState(
        generator=base.REPLICATED,
        examples=ExampleState(
            latents=base.SHARDED, opt_state=base.per_example(opt_state),
            labels=base.SHARDED, best_images=base.SHARDED, view=base.SHARDED),
        extra=extra)

  def generator(self, kept: dict[str, Any]
                ) -> tuple[nn.Module, native.Network, dict[str, Any]]:
    """Returns the last phase's generator."""
    module = self.generator_module
    network = native.Network(
        models.GENERATOR, module.channels, None,
        {'side': module.side, 'width': module.width, 'nz': self.nz})
    return module, network, kept
