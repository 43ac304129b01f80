"""FMN: the fast minimum-norm attack, for L0, L1, L2 and L-infinity."""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.attacks import nearest
from ferd_jax.core import validate

_LAST_GAMMA = 0.001


def project(delta: jax.Array, radius: jax.Array,
            norm: geometry.Distance) -> jax.Array:
  """Returns the perturbation in the ball that is closest to `delta` in L2.

  Args:
    delta: `[B, ...]`.
    radius: `[B]`, at least 0; in L0 a whole number of entries, of which one is
      kept at least, and all that are as large as the last of them.
    norm: one of `geometry.DISTANCES`.
  """
  if norm == 'Linf':
    radius = geometry.per_example(radius, delta)
    return jnp.clip(delta, -radius, radius)
  if norm == 'L2':
    length = jnp.maximum(geometry.of(norm).size(delta), geometry.TINY)
    return delta * geometry.per_example(jnp.minimum(radius / length, 1), delta)
  size = jnp.abs(geometry.flat(delta))
  if norm == 'L0':
    place = size.shape[-1] - jnp.maximum(radius, 1).astype(jnp.int32)
    least = jnp.take_along_axis(jnp.sort(size, axis=-1), place[:, None], -1)
    kept = size >= least
    return jnp.where(kept.reshape(delta.shape), delta, 0)
  level = _soft_threshold(size, radius)
  left = jnp.maximum(size - level, 0).reshape(delta.shape)
  return jnp.sign(delta) * left


def _soft_threshold(size, radius):
  """Returns the level `[B, 1]` above which the sizes sum up to the radius.

  It is 0 where all of them are no more than that.

  Args:
    size: `[B, D]`, at least 0.
    radius: `[B]`.
  """
  # The sum is convex and falls in the level: Newton's steps from 0 never go
  # beyond the one sought, and the first that leaves as many entries is exact.
  def step(levels):
    level, _ = levels
    above = size > level
    count = jnp.sum(above.astype(size.dtype), axis=-1, keepdims=True)
    total = jnp.sum(jnp.where(above, size, 0), axis=-1, keepdims=True)
    higher = (total - radius[:, None]) / jnp.maximum(count, 1)
    return jnp.maximum(level, higher), level
  start = jnp.zeros_like(radius)[:, None]
  return lax.while_loop(lambda levels: jnp.any(levels[0] > levels[1]), step,
                        (start, start - 1))[0]


@dataclasses.dataclass(frozen=True)
class FMN(nearest.Nearest):
  """Looks for the closest image that the model gets wrong.

  Every step follows the gradient of the margin and projects the perturbation
  onto a ball. Until an iterate succeeds, its radius is where the boundary would
  be if the model were linear, times `overshoot` beyond the iterate; then it
  shrinks where the last iterate succeeded and grows where it did not. A call's
  targets are where it goes instead. It draws nothing.

  Attributes:
    eps: radius that the result is accepted within, at least 0, in the unit of
      the images, in L0 a number of entries; None for any.
    norm: 'L0' (entries: every channel of a pixel is one), 'L1', 'L2' or 'Linf',
      to be minimised.
    num_steps: gradients, at least 1.
    step_size: of the first step, in L2 whatever the norm, per width of the
      bounds; it falls to 1% of that as a cosine.
    gamma: share by which the radius shrinks or grows at first, in [0, 1]; it
      falls to 0.001 as a cosine.
    overshoot: at least 1: how many times as far as the linearised boundary is
      the ball reaches until the first success. At 1, as published, the iterate
      creeps up to the boundary without crossing it. L0 grows by whole entries
      and does not use it.
    keep: as of `DDN`.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: Pintor et al. 2021, arXiv:2102.12827, Algorithm 1; GitHub
    pralab/Fast-Minimum-Norm-FMN-Attack; defaults of foolbox 3.3.4. Where the
    projections of foolbox are wrong (in L2 it does none, in L0 it keeps an
    entry too many), the rules of GitHub jeromerony/adversarial-library and of
    the paper hold.
  """
  eps: float | None = None
  norm: geometry.Distance = 'L2'
  num_steps: int = 100
  step_size: float = 1.
  gamma: float = 0.05
  overshoot: float = 1.05
  keep: nearest.Keep = 'smallest'
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  def __post_init__(self):
    validate.one_of(geometry.DISTANCES, norm=self.norm)
    self._check()
    attack.freeze(self, 'overshoot')
    if not 1 <= self.overshoot < float('inf'):
      raise ValueError(f'Expected overshoot={self.overshoot!r} to be at least '
                       '1 and finite.')

  def objective(self, logits: jax.Array,
                problem: attack.Problem) -> jax.Array:
    """Returns how far an image is beyond the boundary, in logits, `[B]`."""
    return attack.margin_beyond(logits, problem)

  def first_radius(self, delta: jax.Array) -> jax.typing.ArrayLike:
    """Returns how many entries the start changes, at least 1; or no end."""
    if self.norm == 'L0':
      return jnp.maximum(geometry.of(self.norm).size(delta), 1)
    return jnp.finfo(delta.dtype).max

  def move(self, problem: attack.Problem, state: nearest.NearestState,
           hit: jax.Array, value: jax.Array, gradient: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns a step along the gradient, projected onto the new ball."""
    x, (low, high) = problem.x, self.bounds
    gamma = self.annealed(state, self.gamma, _LAST_GAMMA)
    delta = state.x - x
    radius = jnp.minimum(
        jnp.where(hit, self._shrunk(state, gamma),
                  self._grown(state, gamma, delta, value, gradient)),
        self.reach(x))
    step = (high - low) * self.annealed(state, self.step_size,
                                        self.step_size / 100)
    uphill = geometry.of('L2').direction(gradient, x, self.bounds)
    delta = delta + geometry.per_example(step, x) * uphill
    return x + project(delta, radius, self.norm), radius

  def _shrunk(self, state, gamma):
    """Returns the radius after a success, at most that of the best."""
    radius = state.radius * (1 - gamma)
    if self.norm == 'L0':
      radius = jnp.maximum(
          jnp.minimum(state.radius - 1, jnp.floor(radius)), 0)
    return jnp.minimum(radius, state.norm_best)

  def _grown(self, state, gamma, delta, value, gradient):
    """Returns the radius after an iterate that did not succeed."""
    found = state.norm_best < jnp.finfo(delta.dtype).max
    if self.norm == 'L0':
      return jnp.maximum(state.radius + 1,
                         jnp.floor(state.radius * (1 + gamma)))
    space = geometry.of(self.norm)
    # The radius is the largest number until then.
    grown = jnp.where(found, state.radius, 0) * (1 + gamma)
    ahead = jnp.abs(value) / jnp.maximum(
        space.dual_size(gradient), geometry.TINY)
    # Without a gradient there is no boundary in sight.
    ahead = jnp.minimum(ahead, space.diameter(
        delta.shape[1:], self.bounds))
    boundary = self.overshoot * (space.size(delta) + ahead)
    return jnp.where(found, grown, boundary)
