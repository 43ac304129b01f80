"""A generator that is trained against the student, whose images are not kept.

What DAFL, ZSKT, DFAD and DFQ have in common: the generator and its optimiser
go through the whole run, rounds of generator and student steps take turns, and
the student's images are made for its steps alone. No labels are drawn.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

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


class GeneratorState(flax.struct.PyTreeNode):
  """What is kept between epochs.

  Attributes:
    params: of the generator.
    batch_stats: of its BatchNorm layers, without effect: images are always
      made on batch statistics.
    opt_state: of its optimiser.
  """
  params: Any
  batch_stats: Any
  opt_state: Any


class Phase(flax.struct.PyTreeNode):
  """State of an epoch.

  Attributes:
    generator: as it is kept.
    latents: `[B, nz]`, of the last generator step.
  """
  generator: GeneratorState
  latents: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnTheFly:
  """Base of the methods; see `base.Synthesis`.

  A method has `weights`, of its terms by name, and `terms`.

  Attributes:
    teacher: module that the images are made from.
    student: module that is compared with the teacher.
    image_shape: (side, side, channels).
    student_steps: N_S, of an epoch.
    num_epochs: of the run.
    batch_size: images a step, over all devices; the student's, too.
    nz: size of a latent.
    width: channels of the generator, even.
    dtype: in which it computes; None: float32.
    wide_start: whether its first convolution reads twice as many.
    generator_lr: Adam's learning rate.
    beta1: Adam's decay of the mean gradient.
    generator_steps: of a round.
    student_steps_per_round: that follow them; they divide distill.steps.
    fresh: whether every student step gets images of its own, not those of the
      round's last latents.
  """
  teacher: nn.Module
  student: nn.Module
  image_shape: tuple[int, int, int]
  student_steps: int
  num_epochs: int
  batch_size: int = 256
  nz: int = 256
  width: int = 128
  wide_start: bool = False
  generator_lr: float = 1e-3
  beta1: float = 0.5
  generator_steps: int = 1
  student_steps_per_round: int = 5
  fresh: bool = True
  dtype: jnp.dtype | None = parts.given(None)

  samples_labels = False
  passes = passes.Passes(1, 1)

  def __post_init__(self):
    validate.count(batch_size=self.batch_size, nz=self.nz, width=self.width)
    validate.divisible(2, 'channels', width=self.width)
    batches.check_side(self.image_shape)
    validate.rate(generator_lr=self.generator_lr)
    validate.in_range(0, 1, beta1=self.beta1)
    validate.count(generator_steps=self.generator_steps)
    _ = self.rounds  # It checks the rest.
    validate.non_negative(
        **{f'w_{name}': weight for name, weight in self.weights.items()})
    if not any(self.weights.values()):
      name = next(iter(self.weights))
      raise validate.SettingError(f'w_{name}', 0., 'or another weight above 0.')

  @property
  def weights(self) -> Mapping[str, float]:
    """The weights of the terms, by name; one of weight 0 is not computed."""
    raise NotImplementedError

  def terms(self, images: jax.Array, frozen: frozens.Frozen, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the terms of the loss of this shard's images, by name."""
    raise NotImplementedError

  def rate_of_epoch(self, epoch: jax.Array) -> jax.Array | float:
    """Returns by what the learning rate is multiplied after so many epochs."""
    del epoch
    return 1.

  @property
  def rounds(self) -> base.Rounds:
    """Generator and student steps, so that an epoch has N_S of the latter."""
    return batches.rounds(self.student_steps, self.student_steps_per_round,
                          self.generator_steps, pooled=False)

  @property
  def generator_module(self) -> models.Generator:
    """Maps latents `[B, nz]` to images `[B, side, side, channels]`."""
    side, _, channels = self.image_shape
    return models.Generator(side=side, channels=channels, width=self.width,
                            wide_start=self.wide_start, dtype=self.dtype)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Adam; what `rate_of_epoch` says comes to its updates."""
    return optax.adam(self.generator_lr, b1=self.beta1)

  def init(self, key: jax.Array) -> GeneratorState:
    """Returns a new generator and its optimiser."""
    variables = models.init_variables(self.generator_module, key, (self.nz,))
    return GeneratorState(
        params=variables['params'], batch_stats=variables['batch_stats'],
        opt_state=self.optimizer.init(variables['params']))

  def begin(self, kept: GeneratorState, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None) -> Phase:
    """Returns the generator as it is; no labels are drawn."""
    del probs, axis_name
    return Phase(kept, batches.normal(key, indices, (self.nz,)))

  def step(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None) -> tuple[Phase, dict[str, jax.Array]]:
    """Takes a step on the generator, with new latents; see `base.Synthesis`."""
    generator = state.generator
    latents = self._new_latents(state, key, axis_name)
    module = self.generator_module.clone(axis_name=axis_name)

    def loss_fn(params):
      images, updates = module.apply(
          {'params': params, 'batch_stats': generator.batch_stats}, latents,
          mutable=['batch_stats'])
      found = self.terms(images, frozen, axis_name=axis_name)
      weights = self.weights
      loss = sum(weights[name] * term for name, term in found.items())
      return loss, (updates['batch_stats'], found | {'loss': loss})

    gradient, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
        generator.params)
    gradient, metrics = collectives.pmean((gradient, metrics), axis_name)
    updates, opt_state = self.optimizer.update(gradient, generator.opt_state)
    rate = self.rate_of_epoch(frozen.epoch)
    updates = jax.tree.map(lambda update: rate * update, updates)
    params = optax.apply_updates(generator.params, updates)
    return Phase(GeneratorState(params, batch_stats, opt_state),
                 latents), metrics

  def images(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
             axis_name: str | None = None) -> tuple[jax.Array, None]:
    """Returns images `[B, H, W, C]` of the generator as it is."""
    del frozen
    latents = state.latents
    if self.fresh:
      latents = self._new_latents(state, key, axis_name)
    module = self.generator_module.clone(axis_name=axis_name)
    generator = state.generator
    return module.apply({'params': generator.params,
                         'batch_stats': generator.batch_stats}, latents), None

  def _new_latents(self, state, key, axis_name):
    indices = collectives.example_indices(len(state.latents), axis_name)
    return batches.normal(key, indices, (self.nz,))

  def measured_images(self, state: Phase, frozen: frozens.Frozen,
                      key: jax.Array, *, axis_name: str | None = None
                      ) -> tuple[jax.Array, None]:
    """Returns what `images` does."""
    return self.images(state, frozen, key, axis_name=axis_name)

  def end(self, kept: GeneratorState, state: Phase, *,
          axis_name: str | None = None) -> GeneratorState:
    """Returns the generator as it is."""
    del kept, axis_name
    return state.generator

  def specs(self) -> tuple[Any, Any]:
    """Returns that only latents belong to examples."""
    return base.REPLICATED, Phase(base.REPLICATED, base.SHARDED)

  def generator(self, kept: GeneratorState
                ) -> tuple[nn.Module, native.Network, dict[str, Any]]:
    """Returns the generator as it is."""
    module = self.generator_module
    options = {'side': module.side, 'width': module.width, 'nz': self.nz}
    if module.wide_start:
      options['wide_start'] = True
    network = native.Network(models.GENERATOR, module.channels, None, options)
    return module, network, {'params': kept.params,
                             'batch_stats': kept.batch_stats}
