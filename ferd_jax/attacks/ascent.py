"""Projected sign ascent in an L-infinity ball, the step of every attack here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ferd_jax import collectives


def project(x_adv: jax.Array, x: jax.Array, eps: float,
            bounds: tuple[float, float]) -> jax.Array:
  """Returns x_adv clipped to the eps-ball around x, then to the bounds."""
  return jnp.clip(jnp.clip(x_adv, x - eps, x + eps), *bounds)


def sign_step(objective: Callable[[jax.Array], jax.Array], x_adv: jax.Array,
              x: jax.Array, *, eps: float, step_size: float,
              bounds: tuple[float, float] = (0., 1.)) -> jax.Array:
  """Returns x_adv after one step of sign-gradient ascent, projected.

  Args:
    objective: images `[B, H, W, C]` -> values `[B]`; they are summed before
      the gradient, so examples do not interact.
    x_adv: `[B, H, W, C]`, taken as it is: it may lie outside the bounds.
    x: `[B, H, W, C]`, centres of the eps-balls.
    eps: radius in the unit of `x`.
    step_size: in the unit of `x`.
    bounds: lowest and highest pixel value.

  Returns:
    `[B, H, W, C]`, clipped to the ball, then to the bounds.
  """
  gradient = jax.grad(lambda images: jnp.sum(objective(images)))(x_adv)
  return project(x_adv + step_size * jnp.sign(gradient), x, eps, bounds)


def noise_keys(key: jax.Array, batch_size: int) -> jax.Array:
  """Returns one key per example from one key, or the `[B]` keys given.

  An example's noise then depends on its own key only: padding the batch or
  splitting it over devices does not change it, if the caller passes the keys
  of the examples' global indices.
  """
  if key.ndim:
    return key
  return collectives.example_keys(key, jnp.arange(batch_size))
