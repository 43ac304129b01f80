"""Square, the random search of AutoAttack: it reads logits, no gradients.

Images are grids here, `[B, *spatial, C]`: a vector `[B, D]` counts as D
positions of one channel. On images `[B, H, W, C]` this is the published
attack; with other numbers of spatial axes the square is an interval or a cube.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.core import validate

# After these queries, of 10000, the window's share of the image is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_MAX_TILES = 5  # along each axis, of the starts of L2 and L1


class Draws(NamedTuple):
  """What is random in one query.

  Attributes:
    corner: int32 `[B, axes]`, first position of the window along every axis.
    other: the same of the second window, which Linf has none of.
    axis: int32 `[B]`, the spatial axis that a pattern is split along.
    signs: -1 or 1, `[B, C]`.
  """
  corner: jax.Array
  other: jax.Array
  axis: jax.Array
  signs: jax.Array


class SquareState(NamedTuple):
  """Of every example.

  Attributes:
    iteration: int32 `[B]`, 0 before the start was evaluated.
    candidate: `[B, ...]`, to be evaluated next.
    x_best: `[B, ...]`, with the lowest margin.
    margin_best: `[B]`, z_y - max_{j != y} z_j of `x_best`, with targets their
      cross-entropy; the largest number before an evaluation gave finite logits.
    fooled: bool `[B]`, whether the margin of `x_best` (of targets
      max_{j != t} z_j - z_t) is at most 0, which ends the search. At exactly 0
      the model may still predict y.
    finite: bool `[B]`, whether all logits were.
  """
  iteration: jax.Array
  candidate: jax.Array
  x_best: jax.Array
  margin_best: jax.Array
  fooled: jax.Array
  finite: jax.Array


def window_shares(num_queries: int, p_init: float,
                  rescale: bool) -> np.ndarray:
  """Returns the share of the image that each query changes.

  Args:
    num_queries: how many there are.
    p_init: share at first, in (0, 1].
    rescale: whether the halvings, made for 10000 queries, are spread over
      `num_queries`.

  Returns:
    float64 `[num_queries]`.
  """
  query = np.arange(num_queries)
  if rescale:
    query = (query / num_queries * 10000).astype(int)
  halvings = np.sum(query[:, None] > np.array(_HALVINGS), axis=1)
  return p_init / 2. ** halvings


def window_sides(shape: Sequence[int], num_queries: int, p_init: float,
                 rescale: bool, norm: geometry.Norm) -> np.ndarray:
  """Returns the side of the window of each query, in positions.

  Args:
    shape: spatial shape.
    num_queries: how many there are.
    p_init: share of the image at first, in (0, 1].
    rescale: as for `window_shares`.
    norm: one of `geometry.NORMS`. In L2 and L1 sides are odd, and at least 3
      if they fit.

  Returns:
    int32 `[num_queries]`, in 1..min(shape).
  """
  shares = window_shares(num_queries, p_init, rescale)
  sides = np.rint((shares * math.prod(shape)) ** (1 / len(shape))).astype(
      np.int32)
  if _PATCHES[norm].odd:
    sides = np.maximum(sides, 3)
    sides += sides % 2 == 0
  return np.clip(sides, 1, min(shape))


def window(shape: Sequence[int], corner: jax.Array,
           side: jax.Array) -> jax.Array:
  """Returns which positions lie in a window, bool `[B, *shape, 1]`.

  Args:
    shape: spatial shape.
    corner: int `[B, axes]`, the window's first position along every axis.
    side: int `[B]`.
  """
  inside = jnp.ones((), bool)
  for axis, offset in enumerate(_offsets(shape, corner)):
    inside = inside & _along(
        axis, len(shape), (offset >= 0) & (offset < side[:, None]))
  return inside


def pattern(shape: Sequence[int], corner: jax.Array, side: jax.Array,
            axis: jax.Array, dtype: jax.typing.DTypeLike,
            norm: geometry.Norm) -> jax.Array:
  """Returns what L2 and L1 put into a window, called eta upstream.

  Along one axis the window is cut in two halves. Each is a pyramid, the sum
  over k = 0..side // 2 of the boxes that reach k positions from its centre
  times `1 / (k + 1)^2` (L1: `^4`), of norm 1; the second is negative.

  Args:
    shape: spatial shape.
    corner: int `[B, axes]`, the window's first position along every axis.
    side: int `[B]`, at least 1.
    axis: int `[B]`, the one that is cut.
    dtype: of the result.
    norm: 'L2' or 'L1'.

  Returns:
    `[B, *shape, 1]`, 0 outside of the window, where its norm is 1.
  """
  num_axes, patches = len(shape), _PATCHES[norm]
  half = side[:, None] // 2
  # A pyramid at distance m from its centre is the sum from k = m to half. It
  # is a difference of sums to the largest k, small like its terms.
  terms = 1. / np.arange(1, max(shape) // 2 + 2) ** patches.power
  sums = jnp.asarray(np.append(np.cumsum(terms[::-1])[::-1], 0.), dtype)
  height = jnp.asarray(jnp.finfo(dtype).max, dtype)
  upper = jnp.zeros((), bool)
  for i, offset in enumerate(_offsets(shape, corner)):
    is_cut = axis[:, None] == i
    second = is_cut & (offset >= half)
    centre = jnp.where(is_cut, half // 2, half)
    centre = jnp.where(second, half + (side[:, None] - half) // 2, centre)
    distance = jnp.minimum(jnp.abs(offset - centre), half + 1)
    inside = (offset >= 0) & (offset < side[:, None])
    profile = jnp.where(inside, sums[distance] - sums[half + 1], 0)
    # Boxes are cut off where the farthest axis leaves them.
    height = jnp.minimum(height, _along(i, num_axes, profile))
    upper = upper | _along(i, num_axes, second)
  halves = jnp.where(upper, 0, height), jnp.where(upper, height, 0)
  # A norm is at least the height of the centre, 1; or there is no such half.
  first, second = (part / jnp.maximum(patches.norm(part, part.ndim), 1)
                   for part in halves)
  both = jnp.where(side > 1, 2 ** (1 / patches.space.order), 1).astype(dtype)
  return (first - second) / geometry.per_example(both, height)


def start_linf(x: jax.Array, eps: jax.Array, signs: jax.Array,
               bounds: tuple[float, float]) -> jax.Array:
  """Returns `x` + eps * signs, clipped to the bounds.

  Args:
    x: `[B, *spatial, C]`.
    eps: `[B]`.
    signs: -1 or 1, to broadcast against x: of stripes along the first axis.
    bounds: lowest and highest pixel value.
  """
  return jnp.clip(x + geometry.per_example(eps, x) * signs, *bounds)


def start_tiled(x: jax.Array, eps: jax.Array, axis: jax.Array,
                signs: jax.Array, bounds: tuple[float, float],
                norm: geometry.Norm) -> jax.Array:
  """Returns `x` with tiles of `pattern`, in the ball and in the bounds.

  In L2 the tiles together have norm eps, before they are clipped; in L1 they
  are projected.

  Args:
    x: `[B, *spatial, C]`.
    eps: `[B]`.
    axis: int `[B, *tiles]`, of `start_tiles`, which each pattern is cut along.
    signs: -1 or 1, `[B, *tiles, C]`.
    bounds: lowest and highest pixel value.
    norm: 'L2' or 'L1'.
  """
  shape = x.shape[1:-1]
  side, tiles = start_tiles(shape)
  each = np.arange(len(shape), dtype=np.int32)
  cut = pattern((side,) * len(shape), jnp.zeros((len(shape),) * 2, jnp.int32),
                jnp.full(len(shape), side), jnp.asarray(each), x.dtype, norm)
  cut = jnp.tile(cut, (1, *tiles, 1))
  def spread(values):
    for i in range(len(shape)):
      values = jnp.repeat(values, side, axis=i + 1)
    return values
  axis = spread(axis[..., None])
  delta = sum(jnp.where(axis == i, cut[i:i + 1], 0) for i in each)
  delta = delta * spread(signs)
  rest = [size - count * side
          for size, count in zip(shape, tiles, strict=True)]
  delta = jnp.pad(
      delta, [(0, 0), *((size // 2, size - size // 2) for size in rest),
              (0, 0)])
  low, high = bounds
  return _PATCHES[norm].put(x, eps, (high - low) * delta, bounds)


def start_tiles(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
  """Returns the side of the tiles of a start and how many along each axis.

  They are a fifth of the shortest axis, and at most 5 along each: upstream's
  rule also gives 6, which leave the image.

  Args:
    shape: spatial shape.
  """
  side = max(min(shape) // _MAX_TILES, 1)
  return side, tuple(min(size // side, _MAX_TILES) for size in shape)


def propose_linf(x: jax.Array, x_best: jax.Array, eps: jax.Array,
                 inside: jax.Array, signs: jax.Array,
                 bounds: tuple[float, float]) -> jax.Array:
  """Returns `x_best`, but `x` + eps * signs in the window, in the bounds.

  Args:
    x: `[B, *spatial, C]`.
    x_best: the same, in the eps-ball around x.
    eps: `[B]`.
    inside: bool `[B, *spatial, 1]`, the window.
    signs: -1 or 1, `[B, C]`.
    bounds: lowest and highest pixel value.
  """
  move = 2 * geometry.per_example(eps, x) * _of_channels(signs, x)
  moved = geometry.of('Linf').project(x_best + move, x, eps, bounds)
  return jnp.where(inside, moved, x_best)


def propose_moved(x: jax.Array, x_best: jax.Array, eps: jax.Array,
                  inside: jax.Array, other: jax.Array, cut: jax.Array,
                  signs: jax.Array, bounds: tuple[float, float],
                  norm: geometry.Norm) -> jax.Array:
  """Returns `x_best` with perturbation moved from one window to another.

  Per channel, the window's own direction plus `cut` gets what the norm has
  left and what both windows had (in L1 so many times as there are channels);
  the other window gets 0. What is too much then is scaled down (L2) or
  projected (L1).

  Args:
    x: `[B, *spatial, C]`.
    x_best: the same, in the eps-ball around x.
    eps: `[B]`.
    inside: bool `[B, *spatial, 1]`, the window.
    other: bool `[B, *spatial, 1]`, the window emptied.
    cut: `[B, *spatial, 1]`, `pattern` in the window.
    signs: -1 or 1, `[B, C]`.
    bounds: lowest and highest pixel value.
    norm: 'L2' or 'L1'.
  """
  patches = _PATCHES[norm]
  delta = x_best - x
  own = jnp.where(inside, delta, 0)
  both = jnp.where(inside | other, delta, 0)
  last = x.ndim - 1
  new = (cut * _of_channels(signs, x)
         + own / (geometry.TINY + patches.norm(own, last)))
  budget = patches.budget(geometry.per_example(eps, x),
                          patches.norm(delta, x.ndim),
                          patches.norm(both, last), x.shape[-1])
  new = new / (geometry.TINY + patches.norm(new, last)) * budget
  return patches.put(x, eps, new + (delta - both), bounds)


def draw(keys: jax.Array, number: jax.Array, side: jax.Array,
         shape: Sequence[int], num_channels: int) -> Draws:
  """Returns what is random in one query.

  A window never starts at the last place where it fits, unless it fills the
  axis: so it is upstream.

  Args:
    keys: typed PRNG keys `[B]`.
    number: int `[B]`, of the evaluation: at least 1, the start is 0.
    side: int `[B]`, of the window.
    shape: spatial shape.
    num_channels: C.
  """
  num_axes = len(shape)
  bits = _bits(keys, number, 2 * num_axes + 1 + num_channels)
  room = np.array([(*shape, *shape)], np.int32)
  places = jnp.maximum(room - side[:, None], 1)
  corners = bits[:, :2 * num_axes] % places.astype(jnp.uint32)
  corners = corners.astype(jnp.int32)
  axis = bits[:, 2 * num_axes] % np.uint32(num_axes)
  return Draws(corner=corners[:, :num_axes], other=corners[:, num_axes:],
               axis=axis.astype(jnp.int32),
               signs=_signs(bits[:, 2 * num_axes + 1:]))


@dataclasses.dataclass(frozen=True)
class Square(attack.Attack):
  """Square attack: patches the best image so far where that lowers the margin.

  Windows, signs and cuts are drawn for every image by itself, from its key and
  its query. Upstream draws one window per query for the whole batch; an
  image's search has the same distribution, and here it does not depend on the
  images it shares a batch with.

  With a call's targets it lowers their cross-entropy until they are reached.

  Attributes:
    eps: radius of the ball, at least 0, in the unit of the images.
    norm: 'Linf', 'L2' or 'L1'.
    num_queries: evaluations of the model after the start's.
    p_init: share of the image that the first queries change, in (0, 1].
    num_restarts: repetitions from other starts on what is not yet fooled.
    rescale_schedule: whether the schedule of that share, made for 10000
      queries, is spread over `num_queries`. AutoAttack's is not.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: Andriushchenko et al. 2020, arXiv:1912.00049, Sec. 3; for L1
    Croce & Hein 2021, arXiv:2103.01208; GitHub fra31/auto-attack
    autoattack/square.py.
  """
  eps: float
  norm: geometry.Norm = 'Linf'
  num_queries: int = 5000
  p_init: float = 0.8
  num_restarts: int = 1
  rescale_schedule: bool = False
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  def __post_init__(self):
    validate.non_negative(eps=self.eps)
    validate.positive(p_init=self.p_init)
    validate.count(num_queries=self.num_queries,
                   num_restarts=self.num_restarts)
    validate.in_range(0, 1, p_init=self.p_init)
    validate.one_of(geometry.NORMS, norm=self.norm)
    attack.freeze(self, 'eps', 'p_init')

  @property
  def num_steps(self) -> int:
    """Evaluations of the model: the start and the queries."""
    return self.num_queries + 1

  @property
  def step_cost(self) -> int:
    """Of a step, in forward passes: it asks for no gradient."""
    return 1

  def init(self, problem: attack.Problem) -> SquareState:
    """Returns the start: stripes (Linf), tiles, or `x_init` projected."""
    x = problem.x
    if problem.x_init is None:
      start = _PATCHES[self.norm].start(
          problem.keys, _grid(x), problem.eps, self.bounds).reshape(x.shape)
    else:
      start = geometry.of(self.norm).project(
          problem.x_init, x, problem.eps, self.bounds)
    false = jnp.zeros_like(x, bool, shape=x.shape[:1])
    return SquareState(
        iteration=jnp.zeros_like(x, jnp.int32, shape=x.shape[:1]),
        candidate=start, x_best=start,
        # No infinity, at which `jax_debug_infs` would stop.
        margin_best=jnp.full_like(x, jnp.finfo(x.dtype).max,
                                  shape=x.shape[:1]),
        fooled=false, finite=~false)

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: SquareState, key: jax.Array | None = None) -> SquareState:
    """Returns the state after the evaluation of `state.candidate`."""
    logits = attack.evaluate(logits_fn, state.candidate, key)
    finite = losses.predicts(logits)
    margin = -attack.margin_beyond(logits, problem)
    lowered = -self.objective(logits, problem)
    accepted = finite & ((lowered < state.margin_best) | (margin <= 0))
    x_best = geometry.where(accepted, state.candidate, state.x_best)
    margin_best = jnp.where(accepted, lowered, state.margin_best)
    after = SquareState(
        iteration=state.iteration + 1,
        candidate=self._propose(problem, x_best, state.iteration),
        x_best=x_best, margin_best=margin_best,
        fooled=state.fooled | (accepted & (margin <= 0)),
        finite=state.finite & finite)
    done = self.done(state)
    return jax.tree.map(
        lambda before, after: geometry.where(done, before, after),
        state, after)

  def iterate(self, problem: attack.Problem, state: SquareState) -> jax.Array:
    """Returns the images that are evaluated next."""
    del problem
    return state.candidate

  def objective(self, logits: jax.Array,
                problem: attack.Problem) -> jax.Array:
    """Returns minus what is lowered, `[B]`."""
    if problem.targets is None:
      return attack.margin_beyond(logits, problem)
    return attack.loss_of(losses.targeted_cross_entropy, logits, problem,
                          losses.targeted_cross_entropy)

  def done(self, state: SquareState) -> jax.Array:
    """Returns which examples further steps do not change, `[B]`."""
    return state.fooled | (state.iteration >= self.num_steps)

  def images(self, problem: attack.Problem, state: SquareState) -> jax.Array:
    """Returns the best images where the search succeeded, else the clean ones.

    It succeeds at a margin of 0 too, a tie that the model may decide for y:
    whether it is fooled takes one more look at its prediction.
    """
    return attack.or_nan(
        state.fooled | state.finite,
        geometry.where(state.fooled, state.x_best, problem.x))

  def _propose(self, problem, x_best, query):
    """Returns the candidates of one query; its numbers are `[B]`, from 0."""
    grid, best, eps = _grid(problem.x), _grid(x_best), problem.eps
    shape = grid.shape[1:-1]
    sides = window_sides(shape, self.num_queries, self.p_init,
                         self.rescale_schedule, self.norm)
    # After the last query there is one more call, of no consequence.
    side = jnp.asarray(sides)[jnp.minimum(query, self.num_queries - 1)]
    draws = draw(problem.keys, query + 1, side, shape, grid.shape[-1])
    proposed = _PATCHES[self.norm].propose(
        grid, best, eps, draws._replace(signs=draws.signs.astype(grid.dtype)),
        side, self.bounds)
    return proposed.reshape(x_best.shape)


def _grid(x):
  """Returns `x` as `[B, *spatial, C]`."""
  return x if x.ndim > 2 else x[..., None]


def _bits(keys, number, count):
  """Returns uint32 `[B, count]` of the keys, each folded with its number."""
  def draw_one(key, number):
    # The same bits, and so the same attack, whether x64 is on or not.
    return jax.random.bits(jax.random.fold_in(key, number), (count,),
                           jnp.uint32)
  return jax.vmap(draw_one)(keys, number)


def _signs(bits):
  """Returns -1 or 1, int32, of the lowest of the bits."""
  return 1 - 2 * (bits & np.uint32(1)).astype(jnp.int32)


def _offsets(shape, corner):
  """Yields the positions along each axis from the corner, `[B, size]`."""
  for axis, size in enumerate(shape):
    yield (jnp.arange(size, dtype=jnp.int32)[None]
           - corner[:, axis:axis + 1])


def _along(axis, num_axes, values):
  """Returns values `[B, size]` along one of the axes of `[B, *spatial, C]`."""
  ones = (1,) * (num_axes - axis)
  return values.reshape(values.shape[0], *(1,) * axis, values.shape[1], *ones)


def _of_channels(values, x):
  """Returns values `[B, C]` to broadcast against `x` `[B, *spatial, C]`."""
  return values.reshape(values.shape[0], *(1,) * (x.ndim - 2),
                        values.shape[1])


class _Patches:
  """What Square puts into windows in a norm, which a subclass says.

  Attributes:
    odd: whether windows have odd sides, of at least 3.
  """
  odd: bool

  def start(self, keys: jax.Array, x: jax.Array, eps: jax.Array,
            bounds: tuple[float, float]) -> jax.Array:
    """Returns the first images, from x `[B, *spatial, C]` and keys `[B]`."""
    raise NotImplementedError

  def propose(self, x: jax.Array, x_best: jax.Array, eps: jax.Array,
              draws: Draws, side: jax.Array,
              bounds: tuple[float, float]) -> jax.Array:
    """Returns the candidates of one query, with windows of side `[B]`."""
    raise NotImplementedError


class _Stripes(_Patches):
  """Of Linf: signs times eps."""
  odd = False

  def start(self, keys, x, eps, bounds):
    batch, *shape, channels = x.shape
    stripes = (1, *shape[1:]) if len(shape) > 1 else tuple(shape)
    stripes += (channels,)
    bits = _bits(keys, jnp.zeros(batch, jnp.int32), math.prod(stripes))
    signs = _signs(bits).reshape(batch, *stripes).astype(x.dtype)
    return start_linf(x, eps, signs, bounds)

  def propose(self, x, x_best, eps, draws, side, bounds):
    inside = window(x.shape[1:-1], draws.corner, side)
    return propose_linf(x, x_best, eps, inside, draws.signs, bounds)


class _Pyramids(_Patches):
  """Of L2 and L1: `pattern`s.

  Attributes:
    space: the norm's geometry.
    power: of the distances from a pyramid's centre.
  """
  odd = True
  space: geometry.Geometry
  power: int

  def __init__(self, norm: geometry.Norm):
    self._name, self.space = norm, geometry.of(norm)

  def norm(self, values: jax.Array, end: int) -> jax.Array:
    """Returns the norm over the axes from 1 to before `end`, kept as 1."""
    return self.space.length(values, tuple(range(1, end)), keepdims=True)

  def budget(self, eps: jax.Array, used: jax.Array, had: jax.Array,
             num_channels: int) -> jax.Array:
    """Returns the norm of the window's perturbation, per channel.

    Args:
      eps: radius, as are the others `[B, 1, ...]` or `[B, 1, ..., C]`.
      used: norm of all of the perturbation.
      had: per channel, norm of what both windows had.
      num_channels: C.
    """
    raise NotImplementedError

  def put(self, x: jax.Array, eps: jax.Array, delta: jax.Array,
          bounds: tuple[float, float]) -> jax.Array:
    """Returns `x` plus what of `delta` the ball and the bounds allow."""
    raise NotImplementedError

  def start(self, keys, x, eps, bounds):
    batch, *shape, channels = x.shape
    _, tiles = start_tiles(shape)
    bits = _bits(keys, jnp.zeros(batch, jnp.int32),
                 math.prod(tiles) * (1 + channels)).reshape(
                     batch, *tiles, 1 + channels)
    axis = (bits[..., 0] % np.uint32(len(shape))).astype(jnp.int32)
    return start_tiled(x, eps, axis, _signs(bits[..., 1:]).astype(x.dtype),
                       bounds, self._name)

  def propose(self, x, x_best, eps, draws, side, bounds):
    shape = x.shape[1:-1]
    return propose_moved(
        x, x_best, eps, window(shape, draws.corner, side),
        window(shape, draws.other, side),
        pattern(shape, draws.corner, side, draws.axis, x.dtype, self._name),
        draws.signs, bounds, self._name)


class _PyramidsL2(_Pyramids):
  power = 2

  def budget(self, eps, used, had, num_channels):
    left = jnp.maximum(jnp.square(eps) - jnp.square(used), 0)
    return jnp.sqrt(left / num_channels + jnp.square(had))

  def put(self, x, eps, delta, bounds):
    scale = geometry.per_example(eps, x) / (
        self.norm(delta, x.ndim) + geometry.TINY)
    return jnp.clip(x + delta * scale, *bounds)


class _PyramidsL1(_Pyramids):
  power = 4

  def budget(self, eps, used, had, num_channels):
    left = jnp.maximum(eps - used, 0)
    return (left / num_channels + had) * num_channels

  def put(self, x, eps, delta, bounds):
    return self.space.project(x + delta, x, eps * (1 - 1e-6), bounds)


_PATCHES: dict[str, Any] = {
    'Linf': _Stripes(), 'L2': _PyramidsL2('L2'), 'L1': _PyramidsL1('L1')}
