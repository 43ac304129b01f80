"""Projection onto a hyperplane within a box, the inner problem of FAB."""

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax.attacks import bisection
from ferd_jax.attacks import geometry

# Normals up to so much per width of the box count as 0 in L2 and L1, as
# upstream: the way to a bound in units of them has no bound.
_FLAT = 1e-8


def project_onto_hyperplane(p: jax.Array, w: jax.Array, b: jax.Array,
                            bounds: tuple[float, float],
                            norm: geometry.Norm) -> jax.Array:
  """Returns the smallest move from `p` to the plane that stays in the box.

  In the closest point every coordinate has gone equally far (Linf), or as far
  as its weight (L2), unless a bound stopped it. How far is found exactly. In
  L1 those of the largest weights have gone to their bounds, and the next ones
  as far as is left: those of one weight by the same share of their ways.

  Where the plane does not meet the box, all coordinates go to the bound that
  is nearer to it. Coordinates of weight 0 do not move, in L2 and L1 neither
  those with |w| <= 1e-8 / (high - low).

  Args:
    p: points `[B, ...]` inside the bounds.
    w: `[B, ...]`, normals of the planes, of any length.
    b: `[B]`; the plane is where <w, u> = b.
    bounds: lowest and highest value.
    norm: one of `geometry.NORMS`, to be minimised.

  Returns:
    d `[B, ...]`, with <w, p + d> = b and p + d inside the bounds, rounding
    aside.

  References: Croce & Hein 2020, arXiv:1907.02044, Sec. 2; GitHub
    fra31/auto-attack autoattack/fab_projections.py.
  """
  low, high = bounds
  shape = p.shape
  p, w = geometry.flat(p), geometry.flat(w)
  # A product and a sum: accelerators round the factors of a dot product.
  excess = jnp.sum(w * p, axis=-1) - b
  # From here on the plane lies where <w, u> is lower.
  w = w * geometry.per_example(jnp.where(excess < 0, -1, 1).astype(w.dtype), w)
  room = jnp.where(w > 0, p - low, high - p)
  move = _MOVES[norm](w, room, jnp.abs(excess), _FLAT / (high - low))
  return -move.reshape(shape)


def _move_equally(w, room, gap, flat):
  """Returns the move of Linf."""
  del flat  # A weight of any size is one.
  level = _water_level(jnp.abs(w), room, gap)
  return jnp.sign(w) * jnp.minimum(level, room)


def _move_by_weight(w, room, gap, flat):
  """Returns the move of L2."""
  size = jnp.abs(w)
  moves = size > flat
  w = jnp.where(moves, w, 0)
  stop = jnp.where(moves, room / jnp.where(moves, size, 1), 0)
  level = _water_level(jnp.square(w), stop, gap)
  return w * jnp.minimum(level, stop)


def _move_the_steepest(w, room, gap, flat):
  """Returns the move of L1."""
  size = jnp.abs(w)
  size = jnp.where(size > flat, size, 0)
  closes = size * room
  def closed_by(moves):
    return jnp.sum(jnp.where(moves, closes, 0), axis=-1, keepdims=True)
  level = bisection.first(
      lambda level: closed_by(size > level[:, None])[:, 0] <= gap,
      jnp.max(size, axis=-1))[:, None]
  same = geometry.same(w.dtype)
  steeper = size > level * (1 + same)
  is_last = (size >= level * (1 - same)) & ~steeper
  last = closed_by(is_last)
  share = jnp.where(last > 0, (gap[:, None] - closed_by(steeper))
                    / jnp.where(last > 0, last, 1), 0)
  return jnp.sign(w) * room * jnp.where(
      is_last, jnp.clip(share, 0, 1), steeper.astype(w.dtype))


# By norm: (w `[B, D]`, whose negative points to the plane, room `[B, D]` until
# a bound, gap `[B]` that <w, move> has to close, largest |w| that counts as 0)
# -> `[B, D]`.
_MOVES = {'Linf': _move_equally, 'L2': _move_by_weight,
          'L1': _move_the_steepest}


def _water_level(weights, stops, volume):
  """Returns the level at which sum weights * min(level, stops) is the volume.

  Args:
    weights: `[B, D]`, at least 0.
    stops: `[B, D]`, finite.
    volume: `[B]`, at least 0.

  Returns:
    `[B, 1]`, the largest number where no level is enough.
  """
  # The sum is concave in the level: Newton's steps from 0 never go beyond the
  # one sought, and the first that closes no further coordinate is exact.
  # A handful of steps, where sorting the coordinates took a quarter of FAB's
  # time.
  # Higher than all stops; at an infinity `jax_debug_infs` would stop.
  endless = jnp.finfo(stops.dtype).max
  def step(levels):
    level, _ = levels
    is_open = stops > level
    filled = jnp.sum(jnp.where(is_open, 0, weights * stops), axis=-1,
                     keepdims=True)
    open_weight = jnp.sum(jnp.where(is_open, weights, 0), axis=-1,
                          keepdims=True)
    higher = jnp.where(open_weight > 0, (volume[:, None] - filled)
                       / jnp.where(open_weight > 0, open_weight, 1), endless)
    return jnp.maximum(level, higher), level
  start = jnp.zeros_like(volume)[:, None]
  return lax.while_loop(lambda levels: jnp.any(levels[0] > levels[1]), step,
                        (start, start - 1))[0]
