"""Uniform-Target Adversarial Examples (UTAE), the attack that trains students.

RSLAD's inner maximisation pushes the attacked model's prediction away from
the teacher's; which wrong class it lands on is left to the model, and a few
classes take most of it. UTAE also pulls the prediction towards the uniform
distribution, so that no target is preferred.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import numpy as np

from ferd_jax import loops
from ferd_jax import losses
from ferd_jax import validate
from ferd_jax.attacks import ascent


@dataclasses.dataclass(frozen=True)
class UTAE:
  """Ascends KL(P_T || P) - gamma KL(U || P) over the attacked model's P.

  Call it as `attack(logits_fn, key, x, teacher_logits)`: an attack whose `y`
  are the teacher's logits on the clean images. With gamma = 0 it is RSLAD's
  attack, bit for bit.

  Attributes:
    eps: radius of the L-infinity ball, at least 0, in the unit of the images.
    step_size: at least 0, in the unit of the images.
    num_steps: how many, at least 1; the last iterate is returned.
    gamma: weight of the uniform-target term, at least 0; the paper finds
      0.1-0.5 best.
    noise: standard deviation of the Gaussian start, which is not clipped, at
      least 0.
    bounds: lowest and highest pixel value.
    unroll: None unrolls the loop on CPU only.

  Raises:
    ValueError: for a setting out of range.

  References: FERD, arXiv:2509.20793; for gamma = 0 RSLAD, arXiv:2108.07969,
    and GitHub mayaobuduyao/FERD query_sample.py (where gamma is 0).
  """
  eps: float
  step_size: float
  num_steps: int
  gamma: float = 0.3
  noise: float = 0.001
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  def __post_init__(self):
    validate.non_negative(eps=self.eps, step_size=self.step_size,
                          gamma=self.gamma, noise=self.noise)
    validate.positive(num_steps=self.num_steps)
    ascent.freeze(self, 'eps', 'step_size', 'gamma', 'noise')

  def objective(self, logits: jax.Array,
                teacher_logits: jax.Array) -> jax.Array:
    """Returns what the attack ascends, `[B]`.

    Its gradient in `logits` is (1 - gamma) P - P_T + gamma U.

    Args:
      logits: `[B, K]` of the attacked model on the attacked images.
      teacher_logits: `[B, K]` of the teacher on the clean images.

    Raises:
      ValueError: if the shapes differ; one class would broadcast.
    """
    if np.shape(teacher_logits) != np.shape(logits):
      raise ValueError(
          f'Expected teacher_logits of shape {np.shape(teacher_logits)} to '
          f'have the shape of the logits, {np.shape(logits)}.')
    gap = losses.kl_divergence(teacher_logits, logits)
    if self.gamma == 0:
      return gap
    return gap - self.gamma * losses.uniformity(logits)

  def __call__(self, logits_fn: Callable[[jax.Array], jax.Array],
               key: jax.Array, x: jax.Array,
               teacher_logits: jax.Array) -> jax.Array:
    """Returns adversarial images.

    Args:
      logits_fn: the attacked model, images `[B, H, W, C]` -> logits `[B, K]`.
      key: one PRNG key, or `[B]` keys, one per example; typed or legacy.
      x: floating-point images `[B, H, W, C]` within `bounds`.
      teacher_logits: `[B, K]`, of the teacher on `x`.

    Returns:
      `[B, H, W, C]` within eps of `x` and inside `bounds`, gradient stopped.

    Raises:
      ValueError: while tracing, if x is not floating-point, or teacher_logits
        or `key` do not fit its batch size or the K of `logits_fn`.
    """
    x = ascent.checked_images(x, teacher_logits=teacher_logits)
    keys = ascent.noise_keys(key, x.shape[0])
    noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))
    def step(_, x_adv):
      return ascent.sign_step(
          lambda images: self.objective(logits_fn(images), teacher_logits),
          x_adv, x, eps=self.eps, step_size=self.step_size,
          bounds=self.bounds)
    adversarial = loops.repeat(
        self.num_steps, step, lax.stop_gradient(x + self.noise * noise(keys)),
        unroll=self.unroll)
    return lax.stop_gradient(adversarial)
