"""Base of the classifiers: named stages, where a pass can stop and resume."""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax.core import validate
from ferd_jax.models import layers


def standardised(x: jax.Array) -> jax.Array:
  """Returns images `[B, H, W, C]`, each less its mean over its deviation.

  Both are over all n values of an image, the deviation with n - 1, and never
  less than 1 / sqrt(n), so that an image of one colour has a gradient.

  References: Ding et al. 2020, arXiv:1812.02637; RobustBench/robustbench,
    model_zoo/cifar10.py, Ding2020MMANet.
  """
  axes, count = (1, 2, 3), math.prod(x.shape[1:])
  centred = x - jnp.mean(x, axis=axes, keepdims=True)
  var = (jnp.sum(jnp.square(centred), axis=axes, keepdims=True)
         / max(count - 1, 1))
  return centred * lax.rsqrt(jnp.maximum(var, 1 / count))


class StagedModel(nn.Module):
  """A classifier that runs stage after stage.

  `apply(v, x, stop=s)` returns the output of stage `s`, and
  `apply(v, latent, start=s)` continues after it, so that the second applied to
  the first is the full pass. Initialise by the full path.

  Attributes:
    num_classes: number of logits.
    mean, std: per-channel normalisation of the images, or None for none.
    standardise: whether every image is normalised by its own mean and standard
      deviation over all pixels and channels instead, see `standardised`.
    axis_name: axis over which BatchNorm synchronises in train mode.
    dtype: in which its layers compute, see `layers`; None: that of images and
      parameters. Logits are at least float32.
  """
  num_classes: int
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  standardise: bool = False
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @property
  def stages(self) -> tuple[str, ...]:
    """The names of the stages in order, each named by its last submodule."""
    raise NotImplementedError

  @property
  def default_tap(self) -> str:
    """The stage whose output is split into robust and non-robust features."""
    raise NotImplementedError

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    """Returns the output of one stage, given that of the one before it."""
    raise NotImplementedError

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False,
               start: str | None = None,
               stop: str | None = None) -> jax.Array:
    """Runs the stages after `start` up to and including `stop`.

    Args:
      x: float [B, H, W, C] images in [0, 1], or the output of stage `start`.
      train: whether BatchNorm uses the batch's statistics, and updates the
        running ones if 'batch_stats' is mutable.
      start: the stage whose output `x` is; None for images.
      stop: the last stage to run; None for all.

    Returns:
      Logits [B, num_classes], or the output of stage `stop`.

    Raises:
      ValueError: if a stage does not exist, or `stop` comes before `start`, or
        the images have another rank, type or channel count.
    """
    first = 0 if start is None else self._position(start) + 1
    last = len(self.stages) if stop is None else self._position(stop) + 1
    if last < first:
      raise ValueError(f'Expected stop={stop!r} not before start={start!r}.')
    if start is None:
      x = self._normalise(x)
    for stage in self.stages[first:last]:
      x = self.run_stage(stage, x, train)
    return x

  def _position(self, stage):
    validate.one_of(self.stages, stage=stage)
    return self.stages.index(stage)

  def _normalise(self, x):
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError('Expected floating-point images [B, H, W, C], got '
                       f'{x.dtype} {x.shape}.')
    if self.standardise:
      return standardised(x)
    if self.mean is None:
      return x
    if len(self.mean) not in (1, x.shape[-1]):
      raise ValueError(f'Expected mean={self.mean} to have one value for each '
                       f'of the {x.shape[-1]} channels.')
    mean, std = (jnp.asarray(values, x.dtype).reshape(1, 1, 1, -1)
                 for values in (self.mean, self.std))
    return (x - mean) / std


class StyledModel(StagedModel):
  """A staged classifier whose layers share a style.

  Attributes:
    activation: one of `layers.ACTIVATIONS`.
    padding: one of `layers.PADDINGS`.
  """
  activation: str = 'relu'
  padding: str = 'both'

  @property
  def style(self) -> layers.Style:
    """What its layers have in common."""
    return layers.Style(self.activation, self.padding, self.axis_name,
                        dtype=self.dtype)
