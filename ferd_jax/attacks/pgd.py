"""PGD and its one-step case FGSM, on any loss, in the L-infinity ball."""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import loops
from ferd_jax import losses
from ferd_jax import validate
from ferd_jax.attacks import ascent

STARTS = ('zero', 'uniform', 'normal')


@dataclasses.dataclass(frozen=True)
class PGD:
  """Projected gradient ascent; call it as `attack(logits_fn, key, x, y)`.

  Frozen and hashable, so it may be a static argument of `jit`.

  Attributes:
    eps: radius of the L-infinity ball, at least 0, in the unit of the images.
    step_size: at least 0, in the unit of the images.
    num_steps: how many, at least 1; the last iterate is returned.
    loss: (logits `[B, K]`, y) -> `[B]`, ascended.
    start: 'uniform' in the ball, 'normal' with standard deviation 0.001, or
      'zero' (the image itself). FGSM is one step of size eps from 'zero'.
    clip_start: whether the start is clipped to the bounds before the first
      gradient; sources differ.
    bounds: lowest and highest pixel value.
    unroll: None unrolls the loop on CPU only.

  Raises:
    ValueError: for a setting out of range.

  References: Madry et al. 2018, arXiv:1706.06083, Sec. 2.
  """
  eps: float
  step_size: float
  num_steps: int
  loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy
  start: str = 'uniform'
  clip_start: bool = True
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  def __post_init__(self):
    validate.non_negative(eps=self.eps, step_size=self.step_size)
    validate.positive(num_steps=self.num_steps)
    validate.one_of(STARTS, start=self.start)
    ascent.freeze(self, 'eps', 'step_size')

  def __call__(self, logits_fn: Callable[[jax.Array], jax.Array],
               key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns adversarial images.

    Args:
      logits_fn: images `[B, H, W, C]` -> logits `[B, K]`.
      key: one PRNG key, or `[B]` keys, one per example; typed or legacy.
      x: floating-point images `[B, H, W, C]` within `bounds`.
      y: what `loss` takes, by default int labels `[B]` in 0..K-1; every array
        in it has a batch axis. Labels out of range cannot be found while
        tracing. At one the cross-entropy is NaN without a gradient, so that
        image stays at its start, projected; but -K..-1 count from the end, as
        in NumPy. The Carlini-Wagner loss ascends the highest logit. Other
        images are not affected.

    Returns:
      `[B, H, W, C]` within eps of `x` and inside `bounds`, gradient stopped.

    Raises:
      ValueError: while tracing, if x is not floating-point, or `y` or `key`
        do not fit its batch size.
    """
    x = ascent.checked_images(x, y=y)
    adversarial = loops.repeat(
        self.num_steps, lambda _, x_adv: self.step(logits_fn, x_adv, x, y),
        lax.stop_gradient(self.initialise(key, x)), unroll=self.unroll)
    return lax.stop_gradient(adversarial)

  def initialise(self, key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the start `[B, H, W, C]`.

    Args:
      key: as for the call.
      x: as for the call.

    Raises:
      ValueError: as for the call.
    """
    x = ascent.checked_images(x)
    keys = ascent.noise_keys(key, x.shape[0])
    if self.start == 'zero':
      return x
    def noise(key):
      if self.start == 'normal':
        return 0.001 * jax.random.normal(key, x.shape[1:], x.dtype)
      return jax.random.uniform(key, x.shape[1:], x.dtype, -self.eps, self.eps)
    start = x + jax.vmap(noise)(keys)
    return jnp.clip(start, *self.bounds) if self.clip_start else start

  def step(self, logits_fn: Callable[[jax.Array], jax.Array],
           x_adv: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the next iterate `[B, H, W, C]`, projected.

    Args:
      logits_fn: as for the call.
      x_adv: `[B, H, W, C]`, the start or the last iterate.
      x: as for the call.
      y: as for the call.

    Raises:
      ValueError: as for the call, or if x_adv has another batch size.
    """
    x = ascent.checked_images(x, x_adv=x_adv, y=y)
    return ascent.sign_step(
        lambda images: self.loss(logits_fn(images), y), x_adv, x, eps=self.eps,
        step_size=self.step_size, bounds=self.bounds)
