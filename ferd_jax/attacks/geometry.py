"""Balls, steps and starts of attacks: L-infinity and L2, per example.

Arrays are `[B, ...]`; what there is one of per example, such as a radius, is
`[B]` or a scalar.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

NORMS = ('Linf', 'L2')
# What images can be measured in; L0 counts entries that differ.
DISTANCES = ('L0', 'L1', 'L2', 'Linf')
_DUALS = {'L1': 'Linf', 'L2': 'L2', 'Linf': 'L1'}
STARTS = ('zero', 'uniform', 'normal')
TINY = 1e-12  # added to norms that divide, as AutoAttack does


def per_example(values: jax.Array | float, x: jax.Array) -> jax.Array:
  """Returns `[B]` values shaped to broadcast against `x` `[B, ...]`."""
  values = jnp.asarray(values)
  if not values.ndim:
    return values
  return values.reshape(values.shape + (1,) * (x.ndim - 1))


def flat(x: jax.Array) -> jax.Array:
  """Returns `x` `[B, ...]` as `[B, n]`."""
  return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
  """Returns `new` where the example's mask `[B]` is true, else `old`."""
  return jnp.where(per_example(mask, new), new, old)


def size(delta: jax.Array, norm: str) -> jax.Array:
  """Returns the norm of each example of `delta` `[B, ...]`, `[B]`.

  Args:
    delta: `[B, ...]`.
    norm: one of `DISTANCES`.
  """
  delta = flat(delta)
  if norm == 'L0':
    return jnp.sum((delta != 0).astype(delta.dtype), axis=-1)
  if norm == 'L1':
    return jnp.sum(jnp.abs(delta), axis=-1)
  if norm == 'Linf':
    return jnp.max(jnp.abs(delta), axis=-1, initial=0)
  return jnp.sqrt(jnp.sum(jnp.square(delta), axis=-1))


def diameter(shape: tuple[int, ...], norm: str,
             bounds: tuple[float, float]) -> float:
  """Returns the largest distance of two images of a shape within bounds."""
  low, high = bounds
  entries = float(math.prod(shape))
  if norm == 'L0':
    return entries
  return (high - low) * {'L1': entries, 'L2': entries ** 0.5, 'Linf': 1.}[norm]


def dual_size(gradient: jax.Array, norm: str) -> jax.Array:
  """Returns the norm `[B]` that turns a difference into a distance.

  A linear function of slope `gradient` changes by at most the product of this
  and of a move's `norm`.

  Args:
    gradient: `[B, ...]`.
    norm: 'L1', 'L2' or 'Linf', of the move.
  """
  return size(gradient, _DUALS[norm])


def rounding(bounds: tuple[float, float], dtype: jax.typing.DTypeLike) -> float:
  """Returns how far a pixel may leave the bounds, or its ball, by rounding."""
  low, high = bounds
  return 1e-6 * (high - low) + 4 * float(np.finfo(dtype).eps) * max(
      abs(low), abs(high))


def project(x_adv: jax.Array, x: jax.Array, eps: jax.Array | float,
            bounds: tuple[float, float], norm: str = 'Linf') -> jax.Array:
  """Returns `x_adv` in the eps-ball around `x`, then clipped to the bounds.

  Args:
    x_adv: `[B, ...]`.
    x: `[B, ...]`, centres of the balls, inside the bounds.
    eps: radius, scalar or `[B]`.
    bounds: lowest and highest pixel value.
    norm: one of `NORMS`.
  """
  eps = per_example(eps, x)
  if norm == 'Linf':
    return jnp.clip(jnp.clip(x_adv, x - eps, x + eps), *bounds)
  delta = x_adv - x
  length = per_example(size(delta, norm), x)
  return jnp.clip(x + delta / (length + TINY) * jnp.minimum(eps, length),
                  *bounds)


def direction(gradient: jax.Array, norm: str) -> jax.Array:
  """Returns the step of size 1 that ascends most: sign or unit vector."""
  if norm == 'Linf':
    return jnp.sign(gradient)
  length = per_example(size(gradient, norm), gradient)
  return gradient / (length + TINY)


def uniform(keys: jax.Array, x: jax.Array, eps: jax.Array,
            norm: str) -> jax.Array:
  """Returns noise `[B, ...]` uniform in the eps-ball.

  Args:
    keys: `[B]`, one per example.
    x: `[B, ...]`, for shape and dtype.
    eps: radius, scalar or `[B]`.
    norm: one of `NORMS`.
  """
  shape = x.shape[1:]
  def draw(key, eps):
    if norm == 'Linf':
      return jax.random.uniform(key, shape, x.dtype, -eps, eps)
    direction_key, radius_key = jax.random.split(key)
    vector = jax.random.normal(direction_key, shape, x.dtype)
    radius = (jax.random.uniform(radius_key, (), x.dtype)
              ** (1 / math.prod(shape)))
    length = jnp.sqrt(jnp.sum(jnp.square(vector)))
    return eps * radius * vector / (length + TINY)
  return jax.vmap(draw)(keys, jnp.broadcast_to(eps, x.shape[:1]))


def start(kind: str, keys: jax.Array, x: jax.Array, eps: jax.Array | float,
          noise: float, norm: str = 'Linf') -> jax.Array:
  """Returns where an attack begins, `[B, ...]`, not clipped to any bounds.

  Args:
    kind: one of `STARTS`: the images themselves, uniform in the ball, or
      normal around them.
    keys: typed PRNG keys `[B]`, one per example.
    x: images `[B, ...]`.
    eps: radius, scalar or `[B]`.
    noise: standard deviation of the 'normal' start.
    norm: one of `NORMS`.
  """
  if kind == 'zero':
    return x
  if kind == 'uniform':
    return x + uniform(keys, x, eps, norm)
  return x + noise * jax.vmap(
      lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def surface(keys: jax.Array, x: jax.Array, eps: jax.Array,
            norm: str) -> jax.Array:
  """Returns noise `[B, ...]` of norm eps, where AutoAttack's attacks start.

  Uniform noise over its largest entry (Linf), or a random direction (L2).

  Args:
    keys: `[B]`, one per example.
    x: `[B, ...]`, for shape and dtype.
    eps: radius, scalar or `[B]`.
    norm: one of `NORMS`.
  """
  shape = x.shape[1:]
  def draw(key):
    if norm == 'Linf':
      return 2 * jax.random.uniform(key, shape, x.dtype) - 1
    return jax.random.normal(key, shape, x.dtype)
  noise = jax.vmap(draw)(keys)
  return (per_example(eps, x) * noise
          / (per_example(size(noise, norm), x) + TINY))
