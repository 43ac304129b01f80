"""DeepInversion: pixels that are optimised themselves, without a generator.

References: Yin et al. 2020, arXiv:1912.08795; GitHub NVlabs/DeepInversion
  cifar10/deepinversion_cifar10.py, whose constants are the defaults;
  zju-vipa/CMI datafree/synthesis/deepinversion.py, which distils with it.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import views

VARIATIONS = ('l1', 'l2')


class Phase(flax.struct.PyTreeNode):
  """State of a phase.

  Attributes:
    pixels: `[B, H, W, C]`, normalised by `mean` and `std`.
    opt_state: of their optimiser.
    labels: int32 `[B]`, the sampled classes.
    best_pixels: `[B, H, W, C]`, of the step with the least loss.
    best_loss: scalar, that.
  """
  pixels: jax.Array
  opt_state: Any
  labels: jax.Array
  best_pixels: jax.Array
  best_loss: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepInversion:
  """DeepInversion's synthesis; see `base.Synthesis`.

  Attributes:
    teacher: module whose BatchNorm statistics and logits are used.
    student: module that is compared with the teacher.
    image_shape: (H, W, channels).
    student_steps: N_S, of an epoch.
    steps: on the pixels, an epoch.
    batch_size: images an epoch, over all devices.
    learning_rate: of Adam, on normalised pixels.
    beta1: Adam's decay of the mean gradient.
    beta2: Adam's decay of the mean squared gradient.
    mean: of all pixels; where they start and what the norms are relative to.
    std: of all pixels; their unit.
    roll: largest cyclic shift of the view of a step, of the whole batch.
    roll_flip: whether the whole batch is mirrored, too, in half of the steps.
    w_bn: weight of L_bn, the gap to the teacher's BatchNorm statistics.
    w_oh: weight of the cross-entropy with the sampled label.
    w_tv: weight of the total variation.
    variation: 'l2', norms over the whole view of the batch; or 'l1', means
      over the images.
    w_l2: weight of the norm of the whole batch.
    w_js: weight of minus the divergence of student and teacher; 'Adaptive
      DeepInversion' with one above 0.
    clip_js: whether a divergence above 1 counts as 1.
    keep: which images enter the pool: 'best', those of the step with the least
      loss, or 'last', those after the last step, as the public code does
      whatever it says.
  """
  teacher: nn.Module
  student: nn.Module
  image_shape: tuple[int, int, int]
  student_steps: int
  steps: int = 2000
  batch_size: int = 256
  learning_rate: float = 0.1
  beta1: float = 0.9
  beta2: float = 0.999
  mean: float = 0.5
  std: float = 0.25
  roll: int = 2
  roll_flip: bool = False
  w_bn: float = 100.
  w_oh: float = 1.
  w_tv: float = 2.5e-5
  variation: str = 'l2'
  w_l2: float = 0.
  w_js: float = 0.
  clip_js: bool = True
  keep: str = 'best'

  samples_labels = True
  passes = passes.Passes(1, 1)

  def __post_init__(self):
    validate.count(steps=self.steps, batch_size=self.batch_size)
    validate.count(0, roll=self.roll)
    validate.in_range(0, min(self.image_shape[:2]) - 1, roll=self.roll)
    validate.rate(learning_rate=self.learning_rate)
    validate.positive(std=self.std)
    validate.in_range(0, 1, beta1=self.beta1, beta2=self.beta2, mean=self.mean)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_tv=self.w_tv,
                          w_l2=self.w_l2, w_js=self.w_js)
    if not (self.w_bn or self.w_oh or self.w_js):
      raise validate.SettingError('w_bn', self.w_bn,
                                  'or one of w_oh, w_js above 0.')
    validate.one_of(VARIATIONS, variation=self.variation)
    validate.one_of(batches.KEEP, keep=self.keep)
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)

  @property
  def rounds(self) -> base.Rounds:
    """One phase, whose images join the pool, and the student's steps."""
    return base.Rounds(self.steps, self.student_steps)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """Adam, of the pixels."""
    return optax.adam(self.learning_rate, b1=self.beta1, b2=self.beta2)

  def init(self, key: jax.Array) -> tuple[()]:
    """Returns nothing: every phase begins anew."""
    del key
    return ()

  def begin(self, kept: tuple[()], probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None) -> Phase:
    """Returns noise, and labels with balanced counts."""
    del kept, axis_name
    pixel_key, label_key = jax.random.split(key)
    pixels = self._clipped(batches.normal(pixel_key, indices,
                                          self.image_shape))
    return Phase(
        pixels=pixels, opt_state=self.optimizer.init(pixels),
        labels=batches.balanced_labels(label_key, probs, indices,
                                       self.batch_size),
        best_pixels=pixels, best_loss=jnp.asarray(jnp.inf, pixels.dtype))

  def step(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None) -> tuple[Phase, dict[str, jax.Array]]:
    """Takes a step on the pixels; see `base.Synthesis`."""
    gradient, metrics = jax.grad(self.loss, has_aux=True)(
        state.pixels, state.labels, frozen, key, axis_name=axis_name)
    # Means over a shard, and transposed collectives, are too large by the
    # number of shards.
    gradient = gradient / collectives.axis_size(axis_name)
    metrics = collectives.pmean(metrics, axis_name)
    updates, opt_state = self.optimizer.update(gradient, state.opt_state)
    pixels = self._clipped(optax.apply_updates(state.pixels, updates))
    _, best_pixels, best_loss = batches.kept(
        self.keep, metrics['loss'],
        pixels if self.keep == 'last' else state.pixels, state.best_loss,
        state.best_pixels)
    return state.replace(pixels=pixels, opt_state=opt_state,
                         best_pixels=best_pixels,
                         best_loss=best_loss), metrics

  def loss(self, pixels: jax.Array, labels: jax.Array, frozen: frozens.Frozen,
           key: jax.Array, *, axis_name: str | None = None
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of this shard, and its terms.

    Args:
      pixels: `[B, H, W, C]`, normalised.
      labels: int `[B]`.
      frozen: teachers, student and epoch.
      key: typed PRNG key of the view.
      axis_name: mapped axis over which the examples are sharded.
    """
    view = views.roll(key, pixels, self.roll, flip=self.roll_flip)
    images = self.mean + self.std * view
    teacher = frozen.teachers[frozens.ROBUST]
    logits, moments = forward.logits_and_moments(self.teacher, teacher, images)
    agree = jnp.argmax(logits, axis=-1) == labels
    metrics = {'agreement': jnp.mean(agree.astype(pixels.dtype))}
    terms, weights = {}, {'bn': self.w_bn, 'oh': self.w_oh, 'tv': self.w_tv,
                          'l2': self.w_l2, 'js': -self.w_js}
    if self.w_bn:
      terms['bn'] = losses.moment_gap(moments, teacher['batch_stats'],
                                      axis_name=axis_name)
    if self.w_oh:
      terms['oh'] = generator_losses.label_loss(logits, labels)
    if self.w_tv:
      terms['tv'] = (generator_losses.total_variation_l1(pixels)
                     if self.variation == 'l1' else
                     generator_losses.total_variation_l2(view, axis_name))
    if self.w_l2:
      terms['l2'] = losses.euclidean_norm(view, axis_name)
    if self.w_js:
      js = collectives.pmean(generator_losses.clamped_js(
          logits, forward.logits(self.student, frozen.student, images)),
                             axis_name)
      terms['js'] = jnp.clip(js, 0, 1) if self.clip_js else js
    loss = sum(weights[name] * term for name, term in terms.items())
    return loss, metrics | terms | {'loss': loss}

  def _clipped(self, pixels):
    """Returns normalised pixels whose images are within [0, 1]."""
    return jnp.clip(pixels, (0 - self.mean) / self.std,
                    (1 - self.mean) / self.std)

  def images(self, state: Phase, frozen: frozens.Frozen, key: jax.Array, *,
             axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the images `[B, H, W, C]` of the phase and their labels."""
    del frozen, key, axis_name  # They are kept.
    images = self.mean + self.std * state.best_pixels
    return jnp.clip(images, 0, 1), state.labels  # Up to rounding they are.

  def measured_images(self, state: Phase, frozen: frozens.Frozen,
                      key: jax.Array, *, axis_name: str | None = None
                      ) -> tuple[jax.Array, jax.Array]:
    """Returns what `images` does."""
    return self.images(state, frozen, key, axis_name=axis_name)

  def end(self, kept: tuple[()], state: Phase, *,
          axis_name: str | None = None) -> tuple[()]:
    """Returns nothing."""
    del kept, state, axis_name
    return ()

  def specs(self) -> tuple[Any, Any]:
    """Returns that all but the loss belongs to examples."""
    pixels = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    opt_state = jax.eval_shape(self.optimizer.init, pixels)
    return base.REPLICATED, Phase(
        pixels=base.SHARDED, opt_state=base.per_example(opt_state),
        labels=base.SHARDED, best_pixels=base.SHARDED,
        best_loss=base.REPLICATED)

  def generator(self, kept: tuple[()]) -> None:
    """Returns None: there is none."""
    del kept
