"""NAYER's noisy layers: a generator that starts from what a class is.

Its input is an embedding of the label, through one of many random layers that
are drawn anew in every phase; there are no latents. In the original a language
model embeds the names of the classes. Here nothing but the teacher is asked: a
class is its row of the teacher's classifier, which knows what it is like.

References: Tran et al. 2024 (CVPR), NAYER; GitHub tmtuan1307/NAYER
  datafree/synthesis/nayer.py, datafree/models/generator.py.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax import lax
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
from ferd_jax.synthesis import fast
from ferd_jax.weights import native

EMBEDDINGS = ('classifier', 'gaussian', 'one_hot')
_EPSILON = 1e-5  # of BatchNorm
_GENERATOR = 'generator'
_NOISY = ('noisy_kernel', 'noisy_bias')


class NoisyGenerator(nn.Module):
  """Maps labels to images, by one of several random layers.

  Attributes:
    side, channels, width: of the generator that makes images of latents.
    layers: how many noisy layers there are.
    nz: their outputs, the generator's latents.
    axis_name: axis over which BatchNorm synchronises.
    dtype: in which the generator computes.
  """
  side: int
  channels: int
  width: int
  layers: int
  nz: int
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, embeddings: jax.Array, labels: jax.Array,
               layers: jax.Array) -> jax.Array:
    """Returns images `[B, side, side, channels]`.

    Args:
      embeddings: `[K, D]`, of the classes.
      labels: int `[B]`.
      layers: int `[B]`, which noisy layer makes an image.
    """
    classes, size = embeddings.shape
    scale = self.param('norm_scale', nn.initializers.ones, (size,))
    bias = self.param('norm_bias', nn.initializers.zeros, (size,))
    kernel = self.param('noisy_kernel', nn.initializers.normal(1.),
                        (self.layers, size, self.nz))
    noisy_bias = self.param('noisy_bias', nn.initializers.zeros,
                            (self.layers, self.nz))
    # BatchNorm over the batch's embeddings, of which there are few.
    shares = jnp.mean(jax.nn.one_hot(labels, classes, dtype=embeddings.dtype),
                      axis=0)
    if not self.is_initializing():
      shares = collectives.pmean(shares, self.axis_name)
    centred = embeddings - (shares @ embeddings)[None]
    variance = shares @ jnp.square(centred)
    normed = (centred * (scale * lax.rsqrt(variance + _EPSILON))[None]
              + bias[None])
    latents = jnp.einsum('cd,kdo->cko', normed, kernel) + noisy_bias[None]
    generator = models.Generator(
        self.side, self.channels, self.width, axis_name=self.axis_name,
        dtype=self.dtype, name=_GENERATOR)
    return generator(latents[labels, layers])


class Kept(flax.struct.PyTreeNode):
  """What is kept between phases.

  Attributes:
    params: of the noisy generator.
    batch_stats: of its BatchNorm layers, to be exported.
    embeddings: `[K, D]`, those that are drawn once; () for others.
    moments: running averages of the moments of the teacher's inputs.
    phases: int32 scalar, phases so far.
  """
  params: Any
  batch_stats: Any
  embeddings: Any
  moments: Any
  phases: jax.Array


class Phase(flax.struct.PyTreeNode):
  """State of a phase.

  Attributes:
    kept: of the noisy generator as it is trained; its moments are those of the
      phases before.
    opt_state: of its optimiser.
    best_loss: scalar, the smallest loss so far.
    moments: of the last step.
    indices: int `[B]`, positions in the global batch.
    labels: int32 `[B]`, the sampled classes.
    best_images: `[B, H, W, C]`, not augmented, of the step with the least loss.
  """
  kept: Kept
  opt_state: Any
  best_loss: jax.Array
  moments: Any
  indices: jax.Array
  labels: jax.Array
  best_images: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nayer:
  """NAYER's synthesis, with the constants of its code for CIFAR-10.

  Attributes:
    teacher: module whose BatchNorm statistics and logits are used.
    student: module that is compared with the teacher.
    image_shape: (side, side, channels).
    num_classes: K.
    pad: largest shift of the views, in pixels.
    flip: whether views are mirrored at random.
    warmup_epochs: in which the student is not trained.
    student_steps: N_S, of an epoch.
    generator_steps: of a round.
    rounds_per_epoch: phases of an epoch, each followed by its share of the
      student's steps.
    batch_size: images a round, over all devices.
    nz: outputs of a noisy layer.
    width: channels of the generator, even.
    generator_lr: Adam's learning rate.
    embedding: what a class is: its row of the teacher's 'classifier', a fixed
      'gaussian' vector, or 'one_hot'.
    embedding_size: of a 'gaussian' one.
    w_bn: weight of L_bn', see Fast.
    w_oh: weight of L_oh, the cross-entropy with the sampled label.
    w_adv: weight of -mean KL(teacher || student) where both predict the same;
      it counts after the warm-up.
    momentum: of the running average of the moments.
    reset_every: epochs after which the generator is drawn anew; 0 for never.
    keep: which step's images enter the pool: 'best' or 'last'.
    dtype: in which the generator computes; None: float32.
  """
  teacher: nn.Module
  student: nn.Module
  image_shape: tuple[int, int, int]
  num_classes: int
  pad: int
  flip: bool
  warmup_epochs: int
  student_steps: int
  generator_steps: int = 30
  rounds_per_epoch: int = 2
  batch_size: int = 400
  nz: int = 1000
  width: int = 128
  generator_lr: float = 4e-3
  embedding: str = 'classifier'
  embedding_size: int = 512
  w_bn: float = 10.
  w_oh: float = 0.5
  w_adv: float = 1.33
  momentum: float = 0.9
  reset_every: int = 10
  keep: str = 'best'
  dtype: jnp.dtype | None = parts.given(None)

  samples_labels = True
  passes = passes.Passes(1, 1)

  def __post_init__(self):
    validate.count(
        generator_steps=self.generator_steps, batch_size=self.batch_size,
        rounds_per_epoch=self.rounds_per_epoch, nz=self.nz, width=self.width,
        embedding_size=self.embedding_size)
    validate.divisible(2, 'channels', width=self.width)
    batches.check_shares(self.student_steps, self.rounds_per_epoch)
    batches.check_side(self.image_shape)
    validate.rate(generator_lr=self.generator_lr)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv,
                          pad=self.pad)
    if not (self.w_bn or self.w_oh or self.w_adv):
      raise validate.SettingError('w_bn', self.w_bn,
                                  'or one of w_oh, w_adv above 0.')
    validate.in_range(0, 1, momentum=self.momentum)
    validate.count(0, reset_every=self.reset_every)
    validate.one_of(batches.KEEP, keep=self.keep)
    validate.one_of(EMBEDDINGS, embedding=self.embedding)
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)
    if self.embedding == 'classifier' and batches.observed_shapes(
        self.teacher, self.image_shape).features is None:
      raise validate.SettingError(
          'embedding', self.embedding,
          'to be another choice for a teacher without a dense layer.')

  @property
  def rounds(self) -> base.Rounds:
    """Phases, each followed by its share of the student's steps."""
    return base.Rounds(
        self.generator_steps, self.student_steps // self.rounds_per_epoch,
        per_epoch=self.rounds_per_epoch)

  @property
  def generator_module(self) -> models.Generator:
    """What follows the noisy layers."""
    side, _, channels = self.image_shape
    return models.Generator(side=side, channels=channels, width=self.width,
                            dtype=self.dtype)

  @property
  def module(self) -> NoisyGenerator:
    """Maps labels to images, by one noisy layer per turn of the classes."""
    layers = math.ceil(self.batch_size / self.num_classes)
    side, _, channels = self.image_shape
    return NoisyGenerator(side, channels, self.width, layers, self.nz,
                          dtype=self.dtype)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Of everything, new in every phase."""
    return optax.adam(self.generator_lr, b1=0.5)

  @property
  def _embedded(self):
    """Returns the shape of the embeddings."""
    size = {'one_hot': self.num_classes, 'gaussian': self.embedding_size}.get(
        self.embedding)
    if size is None:
      size = batches.observed_shapes(
          self.teacher, self.image_shape).features.shape[-1]
    return (self.num_classes, size)

  def _new(self, key):
    number = jnp.zeros([2], jnp.int32)
    return self.module.init(key, jnp.zeros(self._embedded), number, number)

  def init(self, key: jax.Array) -> Kept:
    """Returns a new generator, and embeddings if they are drawn."""
    generator_key, embedding_key = jax.random.split(key)
    variables = self._new(generator_key)
    embeddings = ()
    if self.embedding == 'gaussian':
      embeddings = jax.random.normal(embedding_key, self._embedded)
    return Kept(
        params=variables['params'], batch_stats=variables['batch_stats'],
        embeddings=embeddings,
        moments=batches.no_moments(self.teacher, self.image_shape),
        phases=jnp.zeros([], jnp.int32))

  def begin(self, kept: Kept, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None) -> Phase:
    """Returns the state of a phase: new noisy layers, balanced labels."""
    del axis_name
    generator_key, label_key = jax.random.split(key)
    new = self._new(generator_key)
    params = kept.params | {name: new['params'][name] for name in _NOISY}
    if self.reset_every:
      resets = kept.phases % (self.reset_every * self.rounds_per_epoch) == 0
      params = jax.tree.map(
          lambda drawn, old: jnp.where(resets, drawn, old), new['params'],
          params)
    labels = batches.balanced_labels(label_key, probs, indices,
                                     self.batch_size)
    images = jnp.zeros([len(indices), *self.image_shape], probs.dtype)
    return Phase(
        kept=kept.replace(params=params),
        opt_state=self.optimizer.init(params),
        best_loss=jnp.asarray(jnp.inf, probs.dtype), moments=kept.moments,
        indices=indices, labels=labels, best_images=images)

  def step(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None) -> tuple[Phase, dict[str, jax.Array]]:
    """Takes a step on all of the generator; see `base.Synthesis`."""
    kept, labels = state.kept, state.labels
    keys = collectives.example_keys(key, state.indices)
    module = self.module.clone(axis_name=axis_name)
    layers = state.indices // self.num_classes
    embeddings = self._embeddings(kept, frozen)

    def objective(params):
      images, updates = module.apply(
          {'params': params, 'batch_stats': kept.batch_stats}, embeddings,
          labels, layers, mutable=['batch_stats'])
      loss = fast.running_loss(
          self, images, labels, keys, frozen, kept.moments,
          first=kept.phases == 0,
          adversarial=frozen.epoch >= self.warmup_epochs, axis_name=axis_name)
      return loss.metrics['loss'], (images, updates['batch_stats'], loss)

    gradient, (images, batch_stats, loss) = jax.grad(
        objective, has_aux=True)(kept.params)
    gradient, metrics = collectives.pmean((gradient, loss.metrics), axis_name)
    updates, opt_state = self.optimizer.update(gradient, state.opt_state)
    _, best_images, best_loss = batches.kept(
        self.keep, metrics['loss'], images, state.best_loss, state.best_images)
    return state.replace(
        kept=kept.replace(params=optax.apply_updates(kept.params, updates),
                          batch_stats=batch_stats),
        opt_state=opt_state, best_loss=best_loss, moments=loss.aux,
        best_images=best_images), metrics

  def _embeddings(self, kept, frozen):
    """Returns what the classes are, `[K, D]`."""
    if self.embedding == 'gaussian':
      return kept.embeddings
    if self.embedding == 'one_hot':
      return jnp.eye(self.num_classes)
    teacher = frozen.teachers[frozens.ROBUST]
    layer = teacher['params']
    for name in batches.observed_shapes(self.teacher,
                                        self.image_shape).classifier:
      layer = layer[name]
    return layer['kernel'].T

  def images(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
             axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the images `[B, H, W, C]` of the phase and their labels."""
    del frozen, key, axis_name  # They are kept.
    return state.best_images, state.labels

  def measured_images(self, state: Phase, frozen: frozens.Frozen,
                      key: jax.Array, *, axis_name: str | None = None
                      ) -> tuple[jax.Array, jax.Array]:
    """Returns what `images` does."""
    return self.images(state, frozen, key, axis_name=axis_name)

  def end(self, kept: Kept, state: Phase, *,
          axis_name: str | None = None) -> Kept:
    """Returns the generator, and the running moments with those of the phase.
    """
    del kept, axis_name
    now = state.kept
    return now.replace(
        moments=fast.followed(state.moments, now.moments, self.momentum,
                              first=now.phases == 0),
        phases=now.phases + 1)

  def specs(self) -> tuple[Any, Any]:
    """Returns where the generator and the examples live."""
    return base.REPLICATED, Phase(
        kept=base.REPLICATED, opt_state=base.REPLICATED,
        best_loss=base.REPLICATED, moments=base.REPLICATED,
        indices=base.SHARDED, labels=base.SHARDED, best_images=base.SHARDED)

  def generator(self, kept: Kept
                ) -> tuple[nn.Module, native.Network, dict[str, Any]]:
    """Returns what follows the noisy layers; their outputs are its latents."""
    module = self.generator_module
    network = native.Network(
        models.GENERATOR, module.channels, None,
        {'side': module.side, 'width': module.width, 'nz': self.nz})
    return module, network, {'params': kept.params[_GENERATOR],
                             'batch_stats': kept.batch_stats[_GENERATOR]}
