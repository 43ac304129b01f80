"""CMI: inversion that tells each image from those of before.

References: Fang et al. 2021, arXiv:2105.08584; GitHub zju-vipa/CMI
  datafree/synthesis/contrastive.py.
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
from ferd_jax.models import frozen as frozens
from ferd_jax.models import layers
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import trained_latents
from ferd_jax.synthesis import views

FEATURES = ('norm_inputs', 'stage_outputs')


class Head(nn.Module):
  """Projects features `[B, D]` onto the unit sphere, `[B, features]`.

  Attributes:
    features: dimensions of the sphere's space.
  """
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(layers.Dense(x.shape[-1], name='hidden')(x))
    x = layers.Dense(self.features, name='out')(x)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The square root has no gradient at 0.
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))


class Memory(flax.struct.PyTreeNode):
  """What the contrast is made with; it goes through the whole run.

  Attributes:
    head: parameters of the head.
    opt_state: of its optimiser.
    bank: `[N, 2, D]`, features of local and global views of former images.
    count: int32 scalar, images that were ever put into the bank.
  """
  head: Any
  opt_state: Any
  bank: jax.Array
  count: jax.Array


class Kept(flax.struct.PyTreeNode):
  """What is kept between phases.

  Attributes:
    generator: variables of the last generator, to be exported.
    memory: what the contrast is made with.
  """
  generator: Any
  memory: Memory


class Extra(flax.struct.PyTreeNode):
  """What a phase has beside generator and examples.

  Attributes:
    memory: what the contrast is made with.
    best_features: `[B, 2, D]`, of the views of the images that are kept.
  """
  memory: Memory
  best_features: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cmi(trained_latents.TrainedLatents):
  """CMI's synthesis, with the constants of its code for CIFAR.

  Attributes:
    steps: generator steps an epoch.
    batch_size: images an epoch, over all devices.
    w_bn: weight of L_bn, the gap to the teacher's BatchNorm statistics.
    w_oh: weight of L_oh, the cross-entropy with the sampled label.
    w_adv: weight of -mean KL(teacher || student) where both predict the same.
    w_cr: weight of L_cr, the contrast of images.
    temperature: of the contrast.
    head_lr: Adam's learning rate for the head.
    head_features: outputs of the head.
    bank_size: images in the bank, at least a batch.
    bank_draws: of them, that a step contrasts with.
    features: what an image is to the head: spatial means of the
      'norm_inputs', inputs of all BatchNorm layers of the teacher, or of its
      'stage_outputs', which are fewer.
  """
  steps: int = 200
  w_bn: float = 1.
  w_oh: float = 1.
  w_adv: float = 0.5
  w_cr: float = 0.8
  temperature: float = 0.2
  head_lr: float = 1e-3
  head_features: int = 256
  bank_size: int = 40_960
  bank_draws: int = 4096
  features: str = 'norm_inputs'

  passes = passes.Passes(2, 2)  # two views

  def __post_init__(self):
    super().__post_init__()
    validate.count(steps=self.steps, head_features=self.head_features,
                   bank_draws=self.bank_draws)
    validate.count(self.batch_size, bank_size=self.bank_size)
    validate.positive(temperature=self.temperature, head_lr=self.head_lr,
                      w_cr=self.w_cr)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv)
    validate.one_of(FEATURES, features=self.features)
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)
    if not self.feature_size:
      raise validate.SettingError(
          'features', self.features, 'to be something that the teacher has.')

  @property
  def rounds(self) -> base.Rounds:
    """One phase, whose images join the pool, and the student's steps."""
    return base.Rounds(self.steps, self.student_steps)

  @property
  def head(self) -> Head:
    """What projects the features."""
    return Head(self.head_features)

  @property
  def head_optimizer(self) -> optax.GradientTransformation:
    """The head's own."""
    return optax.adam(self.head_lr)

  @property
  def feature_size(self) -> int:
    """D, the features of an image."""
    return sum(part.shape[-1] for part in self._features(
        batches.observed_shapes(self.teacher, self.image_shape)))

  def _features(self, seen: forward.Observed) -> list[jax.Array]:
    if self.features == 'norm_inputs':
      return seen.norm_inputs
    # What the classifier reads follows from the inputs of the last stages.
    return seen.stage_outputs[:-2]

  def init(self, key: jax.Array) -> Kept:
    """Returns a generator, a new head and an empty bank."""
    generator_key, head_key = jax.random.split(key)
    size = self.feature_size
    head = self.head.init(head_key, jnp.zeros([1, size]))['params']
    return Kept(
        generator=super().init(generator_key),
        memory=Memory(
            head=head, opt_state=self.head_optimizer.init(head),
            bank=jnp.zeros([self.bank_size, 2, size]),
            count=jnp.zeros([], jnp.int32)))

  def begin(self, kept: Kept, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None
            ) -> trained_latents.SynthesisState:
    """Returns the state of a phase: a new generator, latents and labels."""
    del axis_name
    generator_key, example_key = jax.random.split(key)
    examples = self.drawn(probs, indices, example_key)
    memory = kept.memory
    shape = (len(indices), *memory.bank.shape[1:])
    return self.begun(
        self.drawn_generator(examples, generator_key), examples,
        Extra(memory, jnp.zeros(shape, memory.bank.dtype)))

  def step(self, state: trained_latents.SynthesisState,
           frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None
           ) -> tuple[trained_latents.SynthesisState, dict[str, jax.Array]]:
    """Takes a step on generator, latents and head; see `base.Synthesis`."""
    extra = state.extra
    view_key, draw_key = jax.random.split(key)
    keys = collectives.example_keys(view_key, collectives.example_indices(
        len(state.examples.labels), axis_name))
    cached, present = drawn_of_bank(extra.memory, self.bank_draws, draw_key)

    def loss_fn(images, head):
      return self.loss(images, head, state.examples.labels, keys, frozen,
                       cached, present, axis_name=axis_name)
    found = self.descend(state, loss_fn, extra.memory.head,
                         axis_name=axis_name)
    updates, opt_state = self.head_optimizer.update(
        found.extra_gradient, extra.memory.opt_state)
    memory = extra.memory.replace(
        head=optax.apply_updates(extra.memory.head, updates),
        opt_state=opt_state)
    best_features = jnp.where(found.better, found.aux, extra.best_features)
    return trained_latents.SynthesisState(
        found.generator, found.examples,
        Extra(memory, best_features)), found.metrics

  def loss(self, images: jax.Array, head: Any, labels: jax.Array,
           keys: jax.Array, frozen: frozens.Frozen, cached: jax.Array,
           present: jax.Array, *, axis_name: str | None = None
           ) -> trained_latents.Loss:
    """Returns the loss of images, and the features of their views.

    Args:
      images: `[B, H, W, C]`.
      head: parameters of the head.
      labels: int `[B]`.
      keys: typed PRNG keys `[B]`, of the views.
      frozen: teachers, student and epoch.
      cached: `[M, 2, D]`, features of former images.
      present: bool `[M]`, which of those there are.
      axis_name: mapped axis over which the examples are sharded.
    """
    global_keys, local_keys = (collectives.fold_in(keys, i) for i in range(2))
    view = augment.random_crop_flip(global_keys, images, pad=self.pad,
                                    flip=self.flip)
    local = views.random_resized_crop(local_keys, images, flip=self.flip)
    teacher = frozen.teachers[frozens.ROBUST]
    seen, seen_locally = (
        forward.observed(self.teacher, teacher, each) for each in (view, local))
    features = jnp.stack([
        jnp.concatenate(self._features(each), axis=-1)
        for each in (seen_locally, seen)], axis=1)
    logits = seen.logits
    agree = jnp.argmax(logits, axis=-1) == labels
    metrics = {'agreement': jnp.mean(agree.astype(images.dtype))}

    def project(features):
      return self.head.apply({'params': head}, features)
    terms = {'cr': generator_losses.contrastive(
        project(features[:, 0]), project(features[:, 1]),
        project(cached[:, 0]), project(cached[:, 1]), present,
        self.temperature, axis_name=axis_name)}
    if self.w_bn:
      terms['bn'] = losses.moment_gap(seen.moments, teacher['batch_stats'],
                                      axis_name=axis_name)
    if self.w_oh:
      terms['oh'] = generator_losses.label_loss(logits, labels)
    if self.w_adv:
      terms['adv'] = generator_losses.negative_kl_where_equal(
          logits, forward.logits(self.student, frozen.student, view))
    weights = {'bn': self.w_bn, 'oh': self.w_oh, 'adv': self.w_adv,
               'cr': self.w_cr}
    loss = sum(weights[name] * term for name, term in terms.items())
    return trained_latents.Loss(view, metrics | terms | {'loss': loss},
                                jax.lax.stop_gradient(features))

  def end(self, kept: Kept, state: trained_latents.SynthesisState, *,
          axis_name: str | None = None) -> Kept:
    """Returns the generator, and the memory with the images that are kept."""
    del kept
    memory = state.extra.memory
    features = collectives.all_gather(state.extra.best_features, axis_name)
    places = (memory.count + jnp.arange(len(features))) % self.bank_size
    return Kept(
        generator=state.generator.variables,
        memory=memory.replace(bank=memory.bank.at[places].set(features),
                              count=memory.count + len(features)))

  def specs(self) -> tuple[Any, Any]:
    """Returns that the memory is the same everywhere."""
    return base.REPLICATED, self.phase_specs(
        Extra(base.REPLICATED, base.SHARDED))

  def generator(self, kept: Kept):
    """Returns the last phase's generator."""
    return super().generator(kept.generator)


def drawn_of_bank(memory: Memory, number: int,
                  key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns entries of the bank without replacement, and which there are.

  Args:
    memory: with the bank `[N, 2, D]`.
    number: how many, at most N.
    key: typed PRNG key, the same on every shard.

  Returns:
    `[M, 2, D]` and bool `[M]`, M the lesser of `number` and N: all that there
    are if there are fewer.
  """
  size = len(memory.bank)
  filled = jnp.arange(size) < memory.count
  order = jnp.where(filled, jax.random.uniform(key, [size]), -1)
  _, chosen = jax.lax.top_k(order, min(number, size))
  return memory.bank[chosen], filled[chosen]
