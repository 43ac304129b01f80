"""The norms of attacks: balls, steps, starts and distances, per example.

What a norm is to the attacks lives in one object of it, see `of`. Arrays are
`[B, ...]`; what there is one of per example, such as a radius, is `[B]` or a
scalar.
"""

import math
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax.attacks import bisection

# Of balls; L0 counts entries that differ, and only measures.
Norm = Literal['Linf', 'L2', 'L1']
Distance = Literal['L0', 'L1', 'L2', 'Linf']
NORMS: tuple[str, ...] = typing.get_args(Norm)
DISTANCES: tuple[str, ...] = typing.get_args(Distance)
Start = Literal['zero', 'uniform', 'normal']
STARTS: tuple[str, ...] = typing.get_args(Start)
TINY = 1e-12  # added to norms that divide, as AutoAttack does
_ONE_IN = 100  # of the entries is moved by a step of L1, as in SLIDE


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


def rounding(bounds: tuple[float, float], dtype: jax.typing.DTypeLike) -> float:
  """Returns how far a pixel may leave the bounds, or its ball, by rounding."""
  low, high = bounds
  return 1e-6 * (high - low) + 4 * float(np.finfo(dtype).eps) * max(
      abs(low), abs(high))


def same(dtype: jax.typing.DTypeLike) -> float:
  """Returns the relative difference of two computations of one number."""
  return 8 * float(np.finfo(dtype).eps)


class Geometry:
  """What a norm is to the attacks, which a subclass for each says.

  Attributes:
    order: of the norm, as `numpy.linalg.norm` takes it.
  """
  order: float

  def length(self, values: jax.Array, axis: int | tuple[int, ...],
             keepdims: bool = False) -> jax.Array:
    """Returns the norm over an axis, or several as one."""
    raise NotImplementedError

  def size(self, delta: jax.Array) -> jax.Array:
    """Returns the norm of each example of `delta` `[B, ...]`, `[B]`."""
    return self.length(flat(delta), -1)

  def dual_size(self, gradient: jax.Array) -> jax.Array:
    """Returns the dual norm `[B]` of gradients `[B, ...]`.

    A difference of logits over it is the distance to where a linear model has
    none.
    """
    raise NotImplementedError

  def diameter(self, shape: tuple[int, ...],
               bounds: tuple[float, float]) -> float:
    """Returns the largest distance of two images of a shape within bounds."""
    low, high = bounds
    return (high - low) * math.prod(shape) ** (1 / self.order)

  def project(self, x_adv: jax.Array, x: jax.Array, eps: jax.Array | float,
              bounds: tuple[float, float]) -> jax.Array:
    """Returns `x_adv` in the eps-ball around `x` and inside the bounds.

    Linf and L1 give the closest such point (in L1 by the Euclidean distance);
    L2 scales into the ball and then clips.

    Args:
      x_adv: `[B, ...]`.
      x: `[B, ...]`, centres of the balls, inside the bounds.
      eps: radius, scalar or `[B]`.
      bounds: lowest and highest pixel value.
    """
    raise NotImplementedError

  def direction(self, gradient: jax.Array, x: jax.Array,
                bounds: tuple[float, float]) -> jax.Array:
    """Returns a step `[B, ...]` of norm 1 uphill.

    In Linf (signs) and L2 (the unit vector) it is the one that ascends most.
    In L1 that would be one entry; there it is the signs of the 1% with the
    steepest gradients among those that no bound stops, as in SLIDE.

    Args:
      gradient: `[B, ...]`.
      x: `[B, ...]`, where it was taken.
      bounds: lowest and highest pixel value.

    References: Tramer & Boneh 2019, arXiv:1904.13000 (SLIDE).
    """
    raise NotImplementedError

  def uniform(self, keys: jax.Array, x: jax.Array,
              eps: jax.Array | float) -> jax.Array:
    """Returns noise `[B, ...]` uniform in the eps-ball.

    Args:
      keys: `[B]`, one per example.
      x: `[B, ...]`, for shape and dtype.
      eps: radius, scalar or `[B]`.
    """
    return jax.vmap(lambda key, eps: self._uniform(
        key, x.shape[1:], x.dtype, eps))(
            keys, jnp.broadcast_to(eps, x.shape[:1]))

  def surface(self, keys: jax.Array, x: jax.Array,
              eps: jax.Array) -> jax.Array:
    """Returns noise `[B, ...]` of norm eps, where AutoAttack's attacks start.

    Uniform noise over its largest entry (Linf), or normal noise over its norm.

    Args:
      keys: `[B]`, one per example.
      x: `[B, ...]`, for shape and dtype.
      eps: radius, scalar or `[B]`.
    """
    noise = jax.vmap(lambda key: self._noise(key, x.shape[1:], x.dtype))(keys)
    return (per_example(eps, x) * noise
            / (per_example(self.size(noise), x) + TINY))

  def _uniform(self, key, shape, dtype, eps):
    raise NotImplementedError

  def _noise(self, key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


class _Linf(Geometry):
  order = np.inf

  def length(self, values, axis, keepdims=False):
    return jnp.max(jnp.abs(values), axis=axis, keepdims=keepdims, initial=0)

  def dual_size(self, gradient):
    return jnp.sum(jnp.abs(flat(gradient)), axis=-1)

  def project(self, x_adv, x, eps, bounds):
    eps = per_example(eps, x)
    return jnp.clip(jnp.clip(x_adv, x - eps, x + eps), *bounds)

  def direction(self, gradient, x, bounds):
    return jnp.sign(gradient)

  def _uniform(self, key, shape, dtype, eps):
    return jax.random.uniform(key, shape, dtype, -eps, eps)

  def _noise(self, key, shape, dtype):
    return 2 * jax.random.uniform(key, shape, dtype) - 1


class _L2(Geometry):
  order = 2

  def length(self, values, axis, keepdims=False):
    return jnp.sqrt(jnp.sum(jnp.square(values), axis=axis, keepdims=keepdims))

  def dual_size(self, gradient):
    return self.size(gradient)

  def project(self, x_adv, x, eps, bounds):
    eps = per_example(eps, x)
    delta = x_adv - x
    length = per_example(self.size(delta), x)
    return jnp.clip(x + delta / (length + TINY) * jnp.minimum(eps, length),
                    *bounds)

  def direction(self, gradient, x, bounds):
    return gradient / (per_example(self.size(gradient), gradient) + TINY)

  def _uniform(self, key, shape, dtype, eps):
    direction_key, radius_key = jax.random.split(key)
    vector = jax.random.normal(direction_key, shape, dtype)
    radius = (jax.random.uniform(radius_key, (), dtype)
              ** (1 / math.prod(shape)))
    length = jnp.sqrt(jnp.sum(jnp.square(vector)))
    return eps * radius * vector / (length + TINY)


class _L1(Geometry):
  order = 1

  def length(self, values, axis, keepdims=False):
    return jnp.sum(jnp.abs(values), axis=axis, keepdims=keepdims)

  def dual_size(self, gradient):
    return jnp.max(jnp.abs(flat(gradient)), axis=-1, initial=0)

  def project(self, x_adv, x, eps, bounds):
    # Entry by entry the closest point is sign(u) * min(b, max(|u| - level, 0)),
    # u being the move asked for and b what the bounds leave of it. The sum of
    # these falls with the level, and is neither convex nor concave in it.
    boxed = jnp.clip(x_adv, *bounds)
    move = flat(x_adv - x)
    asked, room = jnp.abs(move), jnp.abs(flat(boxed - x))
    def left(level):
      return jnp.minimum(room, jnp.maximum(asked - level[:, None], 0))
    level = bisection.first(
        lambda level: jnp.sum(left(level), axis=-1) <= eps,
        jnp.max(asked, axis=-1, initial=0))
    inside = jnp.sum(room, axis=-1) <= eps
    # What XLA computes for each use anew differs in the last bits: no more than
    # that is left of entries that are to go.
    noise = same(x.dtype) * jnp.maximum(jnp.abs(x), jnp.abs(x_adv))
    kept = left(level)
    kept = jnp.where(kept > flat(noise), kept, 0)
    pulled = x + (jnp.sign(move) * kept).reshape(x.shape)
    return where(inside, boxed, jnp.clip(pulled, *bounds))

  def direction(self, gradient, x, bounds):
    low, high = bounds
    stopped = (((x <= low) & (gradient < 0))
               | ((x >= high) & (gradient > 0)))
    count = -(-math.prod(x.shape[1:]) // _ONE_IN)
    return sparse_signs(jnp.where(stopped, 0, gradient),
                        jnp.full(x.shape[:1], count, jnp.int32))

  def _uniform(self, key, shape, dtype, eps):
    # Of n + 1 exponential variates the shares of n are uniform in the simplex.
    size_key, sign_key = jax.random.split(key)
    size = math.prod(shape)
    sizes = jax.random.exponential(size_key, (size + 1,), dtype)
    signs = jax.random.rademacher(sign_key, shape, dtype)
    return eps * signs * (sizes[:size] / jnp.sum(sizes)).reshape(shape)


class _L0(Geometry):
  """Only measures: its balls are searched by attacks of their own."""
  order = 0

  def length(self, values, axis, keepdims=False):
    return jnp.sum((values != 0).astype(values.dtype), axis=axis,
                   keepdims=keepdims)

  def diameter(self, shape, bounds):
    return float(math.prod(shape))


_GEOMETRIES: dict[Distance, Geometry] = {
    'Linf': _Linf(), 'L2': _L2(), 'L1': _L1(), 'L0': _L0()}


def of(norm: Distance) -> Geometry:
  """Returns the geometry of one of `DISTANCES`; L0 has no balls."""
  return _GEOMETRIES[norm]


def sparse_signs(gradient: jax.Array, count: jax.Array) -> jax.Array:
  """Returns the signs of the entries with the largest sizes, of L1 norm 1.

  Entries as large as the last that counts are kept too.

  Args:
    gradient: `[B, ...]`.
    count: int `[B]`, how many, at least 1.

  Returns:
    `[B, ...]`, 0 elsewhere and where all of a gradient is 0.
  """
  sizes = jnp.abs(flat(gradient))
  last = bisection.first(
      lambda level: jnp.sum(sizes > level[:, None], axis=-1,
                            dtype=count.dtype) < count,
      jnp.max(sizes, axis=-1))
  last = last[:, None] * (1 - same(sizes.dtype))
  signs = jnp.where(sizes >= last, jnp.sign(flat(gradient)), 0)
  # As upstream: so little that a float32 count stays what it is.
  signs = signs / (jnp.sum(jnp.abs(signs), axis=-1, keepdims=True) + 1e-10)
  return signs.reshape(gradient.shape)


def start(kind: Start, keys: jax.Array, x: jax.Array, eps: jax.Array | float,
          noise: float, norm: Norm = 'Linf') -> jax.Array:
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
    return x + of(norm).uniform(keys, x, eps)
  return x + noise * jax.vmap(
      lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
