"""Robust and non-robust channels of a latent, by an information bottleneck.

Noise is added to each channel of the teacher's latent at the tap and is made
as strong as the prediction allows. A channel that bears more noise than any
channel's own spatial variance is robust; the others form the non-robust mask,
on whose features the generator's L_uni asks for a uniform prediction.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD models/IFP.py.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
import optax

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import loops
from ferd_jax.core import parts
from ferd_jax.core import validate

KLS = ('mean', 'sum')
MASKS = ('global', 'per_sample')
_TINY = 1e-10  # keeps the logarithms finite, as in the reference code


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Settings of the bottleneck.

  Attributes:
    steps: Adam steps on the noise level.
    learning_rate: of Adam.
    beta: weight of the penalty on information.
    kl: 'mean' averages half the penalty over channels, 'sum' adds the whole
      up. sum with beta 0.15/C is mean with beta 0.3; sum with 0.3 makes no
      channel robust.
    mask: 'global' compares with the largest variance of the batch,
      'per_sample' with that of the example.
    unroll: None unrolls the loop on CPU if the tail convolves.
  """
  steps: int = 50
  learning_rate: float = 0.1
  beta: float = 0.3
  kl: str = 'mean'
  mask: str = 'global'
  unroll: bool | None = parts.fixed(None)

  def __post_init__(self):
    validate.attack_steps(steps=self.steps)
    validate.rate(learning_rate=self.learning_rate)
    validate.non_negative(beta=self.beta)
    validate.one_of(KLS, kl=self.kl)
    validate.one_of(MASKS, mask=self.mask)


def spatial_variance(latents: jax.Array) -> jax.Array:
  """Returns the unbiased variance over positions, `[B, C]`, >= float32."""
  return jnp.var(latents, axis=(1, 2), ddof=1,
                 dtype=jnp.promote_types(latents.dtype, jnp.float32))


def penalty(variance: jax.Array, noise_variance: jax.Array) -> jax.Array:
  """Returns v/s^2 + log(s^2/v) - 1, `[B, C]`: 0 iff they agree, else above."""
  noise_variance = noise_variance + _TINY
  return (variance / noise_variance
          + jnp.log(noise_variance / (variance + _TINY)) - 1)


def noise_levels(tail_fn: Callable[[jax.Array], jax.Array],
                 latents: jax.Array, labels: jax.Array, keys: jax.Array,
                 settings: Bottleneck, *,
                 axis_name: str | None = None) -> jax.Array:
  """Returns the standard deviations sigma of the noise, `[B, C]`.

  Args:
    tail_fn: latents `[B, h, w, C]` -> logits; the rest of the teacher.
    latents: `[B, h, w, C]`, gradient stopped here.
    labels: int `[B]`.
    keys: typed PRNG keys `[B]`.
    settings: of the bottleneck.
    axis_name: mapped axis over which the batch is sharded.
  """
  latents = lax.stop_gradient(latents)
  variance = spatial_variance(latents)
  batch = latents.shape[0] * collectives.axis_size(axis_name)
  optimizer = optax.adam(settings.learning_rate)

  def objective(levels, noise):
    sigma = jax.nn.softplus(levels)
    noisy = latents + sigma[:, None, None, :] * noise[:, None, None, :]
    entropy = losses.cross_entropy(tail_fn(noisy), labels)
    per_channel = penalty(variance, jnp.square(sigma))
    if settings.kl == 'mean':
      information = 0.5 * jnp.mean(per_channel, axis=-1)
    else:
      information = jnp.sum(per_channel, axis=-1)
    # The mean over the global batch: Adam's eps makes the scale matter.
    return jnp.sum(entropy + settings.beta * information) / batch

  def step(i, carry):
    levels, opt_state = carry
    noise = jax.vmap(lambda key: jax.random.normal(
        key, variance.shape[1:], variance.dtype))(collectives.fold_in(keys, i))
    gradient = jax.grad(objective)(levels, noise)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return levels + updates, opt_state

  levels = jnp.zeros_like(variance)
  levels, _ = loops.repeat(settings.steps, step,
                            (levels, optimizer.init(levels)),
                            unroll=settings.unroll)
  return jax.nn.softplus(levels)


def non_robust_mask(sigma: jax.Array, variance: jax.Array, *,
                    mask: str = 'global',
                    axis_name: str | None = None) -> jax.Array:
  """Returns 1 for non-robust channels and 0 for robust ones, `[B, 1, 1, C]`.

  A channel is robust iff sigma^2 exceeds the largest variance, strictly. No
  gradient flows.

  Args:
    sigma: `[B, C]` noise levels.
    variance: `[B, C]` spatial variances of the latent.
    mask: 'global' or 'per_sample', over what the largest is taken.
    axis_name: mapped axis over which the batch is sharded.
  """
  sigma, variance = lax.stop_gradient((sigma, variance))
  threshold = jnp.max(variance, axis=-1, keepdims=True)
  if mask == 'global':
    threshold = collectives.pmax(jnp.max(threshold), axis_name)
  robust = jnp.square(sigma) > threshold
  return (1 - robust.astype(sigma.dtype))[:, None, None, :]
