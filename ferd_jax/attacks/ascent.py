"""Projected sign ascent in an L-infinity ball, the loop of every attack here.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import loops


def project(x_adv: jax.Array, x: jax.Array, eps: float,
            bounds: tuple[float, float]) -> jax.Array:
  """Returns x_adv clipped to the eps-ball around x, then to the bounds."""
  return jnp.clip(jnp.clip(x_adv, x - eps, x + eps), *bounds)


def sign_ascent(objective: Callable[[jax.Array], jax.Array], start: jax.Array,
                x: jax.Array, *, eps: float, step_size: float, num_steps: int,
                bounds: tuple[float, float] = (0., 1.),
                unroll: bool | None = None) -> jax.Array:
  """Returns `start` after sign-gradient ascent of a per-example objective.

  Args:
    objective: images `[B, H, W, C]` -> values `[B]`; they are summed before
      the gradient, so examples do not interact.
    start: `[B, H, W, C]`, taken as it is: it may lie outside the bounds.
    x: `[B, H, W, C]`, centres of the eps-balls.
    eps: radius in the unit of `x`.
    step_size: in the unit of `x`.
    num_steps: how many steps; after each, the ball, then the bounds.
    bounds: lowest and highest pixel value.
    unroll: see `loops.repeat`.

  Returns:
    `[B, H, W, C]`, gradient stopped.
  """
  gradient = jax.grad(lambda images: jnp.sum(objective(images)))

  def step(_, x_adv):
    ascended = x_adv + step_size * jnp.sign(gradient(x_adv))
    return project(ascended, x, eps, bounds)

  return lax.stop_gradient(
      loops.repeat(num_steps, step, lax.stop_gradient(start), unroll=unroll))


def noise_keys(key: jax.Array, batch_size: int) -> jax.Array:
  """Returns one key per example from one key, or the `[B]` keys given.

  An example's noise then depends on its own key only: padding the batch or
  splitting it over devices does not change it, if the caller passes the keys
  of the examples' global indices.
  """
  if key.ndim:
    return key
  fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold_in(key, jnp.arange(batch_size))
