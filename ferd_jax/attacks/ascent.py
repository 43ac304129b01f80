"""Projected gradient ascent on any function of the images.

The step of `attacks.PGD`, and a loop around it for inner attacks whose
objective reads more than one network, or that report what they saw on the way.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.core import loops


def advance(x_adv: jax.Array, gradient: jax.Array, x: jax.Array,
            eps: jax.Array | float, step_size: float, *,
            norm: geometry.Norm = 'Linf',
            bounds: tuple[float, float] = (0., 1.)) -> jax.Array:
  """Returns the next iterate `[B, ...]`: a step uphill, projected.

  Args:
    x_adv: iterate `[B, ...]`.
    gradient: `[B, ...]`, of what is ascended.
    x: `[B, ...]`, centres of the balls.
    eps: radius, a scalar or `[B]`.
    step_size: in the attack's norm.
    norm: one of `geometry.NORMS`.
    bounds: lowest and highest pixel value.
  """
  space = geometry.of(norm)
  x_adv = x_adv + step_size * space.direction(gradient, x_adv, bounds)
  return space.project(x_adv, x, eps, bounds)


def ascend(objective: Callable[[jax.Array], tuple[jax.Array, Any]],
           x: ArrayLike, start: ArrayLike, *, eps: ArrayLike,
           step_size: float, num_steps: int, norm: geometry.Norm = 'Linf',
           bounds: tuple[float, float] = (0., 1.),
           unroll: bool | None = None) -> tuple[jax.Array, Any]:
  """Returns attacked images, and what the objective noticed on the way.

  Args:
    objective: images `[B, ...]` -> (values `[B]`, which are ascended, and a
      pytree of arrays `[B]`, such as whether an image is still predicted
      right, that is summed over the iterates the gradient is taken at; bools
      are counted). It may read any number of networks.
    x: images `[B, ...]` within the bounds, centres of the balls.
    start: `[B, ...]`, the first iterate.
    eps: radius, a scalar or `[B]`, in the unit of the images.
    step_size: in the unit of the images, in the attack's norm.
    num_steps: how many, at least 1.
    norm: one of `geometry.NORMS`.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Returns:
    The last iterate `[B, ...]`, within eps of `x` and the bounds, gradient
    stopped, and the sums over the steps.

  Raises:
    ValueError: if the objective does not return one value per image, or x and
      start are no arrays of one shape.
  """
  centres, first = (inputs.on_device(inputs.array(name, images))
              for name, images in (('x', x), ('start', start)))
  if first.shape != centres.shape:
    raise ValueError(f'Expected start of shape {first.shape} to have the shape '
                     f'of x, {centres.shape}.')

  def total(images):
    values, noticed = objective(images)
    if values.shape != centres.shape[:1]:
      raise ValueError('Expected the objective to return one value per image, '
                       f'{centres.shape[:1]}, got {values.shape}.')
    return jnp.sum(values), noticed  # The sum keeps examples apart.

  def step(_, carry):
    images, sums = carry
    gradient, noticed = jax.grad(total, has_aux=True)(images)
    images = advance(images, gradient, centres, eps, step_size, norm=norm,
                     bounds=bounds)
    return images, jax.tree.map(jnp.add, sums, noticed)

  def nothing(like):  # The sum of two bools is one.
    return jnp.zeros(like.shape, jnp.int32 if like.dtype == bool
                     else like.dtype)
  sums = jax.tree.map(nothing, jax.eval_shape(objective, first)[1])
  found = loops.repeat(num_steps, step, (first, sums), unroll=unroll)
  return lax.stop_gradient(found)
