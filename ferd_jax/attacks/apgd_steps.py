"""The steps of APGD: how long, where to, and when it returns to its best.

One object per norm, see `of`. In Linf and L2 steps have momentum, and their
size is halved where losses stall. In L1 they are sparse: a step moves so many
entries as the best perturbation so far lets expect.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax.attacks import geometry


class Controller(NamedTuple):
  """What Linf and L2 remember of the losses, each `[B]`.

  Attributes:
    step_size: in the unit of the images.
    f_best: highest loss so far.
    f_last: loss of the last iterate, 0 before the first, as upstream.
    f_check: `f_best` at the last checkpoint.
    num_up: int32, iterations since the last checkpoint whose loss rose.
    reduced: bool, whether the last checkpoint halved the step size.
  """
  step_size: jax.Array
  f_best: jax.Array
  f_last: jax.Array
  f_check: jax.Array
  num_up: jax.Array
  reduced: jax.Array


class SparseController(NamedTuple):
  """What L1 remembers, each `[B]`.

  Attributes:
    step_size: in the unit of the images.
    f_best: highest loss so far.
    support: int32, entries that the best image had changed at the last
      checkpoint.
    num_moved: int32, entries that a step moves.
  """
  step_size: jax.Array
  f_best: jax.Array
  support: jax.Array
  num_moved: jax.Array


class Move(NamedTuple):
  """What the next iterate is made of.

  Attributes:
    centre: images `[B, ...]`, the centres of the balls.
    eps: radii `[B]`.
    x: `[B, ...]`, where the step starts.
    x_last: `[B, ...]`, the iterate before.
    gradient: `[B, ...]`, at x.
    first: bool `[B]`, whether there is no iterate before.
  """
  centre: jax.Array
  eps: jax.Array
  x: jax.Array
  x_last: jax.Array
  gradient: jax.Array
  first: jax.Array


def checkpoint_periods(num_steps: int) -> np.ndarray:
  """Returns int32 `[num_steps + 1]`: at i the iterations since the last.

  It is 0 where iteration i (from 1) is no checkpoint of Linf and L2.
  """
  periods = np.zeros(num_steps + 1, np.int32)
  period = max(int(0.22 * num_steps), 1)
  shortest = max(int(0.06 * num_steps), 1)
  shrink = max(int(0.03 * num_steps), 1)
  iteration = period
  while iteration <= num_steps:
    periods[iteration] = period
    period = max(period - shrink, shortest)
    iteration += period
  return periods


def control(controller: Controller, loss: jax.Array, period: jax.Array,
            rho: float) -> tuple[Controller, jax.Array, jax.Array]:
  """Takes in the loss of an iterate after the first.

  Args:
    controller: of the iterates before.
    loss: `[B]`, of this iterate.
    period: int `[B]`, of `checkpoint_periods` at this iteration.
    rho: a checkpoint halves the step size where less than this share of its
      iterations raised the loss.

  Returns:
    The controller, where the loss is the highest so far (`[B]`), and where the
    step size was halved, so that the attack goes on from its best (`[B]`).
  """
  num_up = controller.num_up + (loss > controller.f_last).astype(jnp.int32)
  better = loss > controller.f_best
  f_best = jnp.where(better, loss, controller.f_best)
  checkpoint = period > 0
  stalled = num_up.astype(loss.dtype) <= rho * period.astype(loss.dtype)
  stuck = ~controller.reduced & (controller.f_check >= f_best)
  halved = checkpoint & (stalled | stuck)
  return Controller(
      step_size=jnp.where(halved, controller.step_size / 2,
                          controller.step_size),
      f_best=f_best, f_last=loss,
      f_check=jnp.where(checkpoint, f_best, controller.f_check),
      num_up=jnp.where(checkpoint, 0, num_up).astype(jnp.int32),
      reduced=jnp.where(checkpoint, halved, controller.reduced),
  ), better, halved


class Steps:
  """How APGD steps in a norm; a subclass for each kind says so."""

  def checkpoints(self, num_iterations: int) -> np.ndarray:
    """Returns int32 `[num_iterations + 1]`, 0 where there is no checkpoint."""
    raise NotImplementedError

  def start(self, keys: jax.Array, x: jax.Array, eps: jax.Array,
            bounds: tuple[float, float]) -> jax.Array:
    """Returns x `[B, ...]` plus noise; that of Linf and L2 is not clipped."""
    raise NotImplementedError

  def begin(self, moved: jax.Array, eps: jax.Array, chosen: bool) -> Any:
    """Returns the controller before the first evaluation.

    Args:
      moved: `[B, ...]`, the start minus the image.
      eps: radii `[B]`.
      chosen: whether the start is more than noise: given by a caller, or what
        a larger radius led to.
    """
    raise NotImplementedError

  def control(self, controller: Any, loss: jax.Array, first: jax.Array,
              period: jax.Array, moved: jax.Array, eps: jax.Array,
              rho: float) -> tuple[Any, jax.Array]:
    """Takes in an evaluation.

    Args:
      controller: before it.
      loss: `[B]`.
      first: bool `[B]`, whether it is that of the start.
      period: int `[B]`, of `checkpoints`.
      moved: `[B, ...]`, the best image so far minus the image.
      eps: radii `[B]`.
      rho: as for `control`.

    Returns:
      The controller after it, and where the attack goes on from its best
      (`[B]`).
    """
    raise NotImplementedError

  def advance(self, move: Move, controller: Any,
              bounds: tuple[float, float]) -> jax.Array:
    """Returns the next iterate `[B, ...]`, in the ball and the bounds."""
    raise NotImplementedError


class _Momentum(Steps):
  """Of Linf and L2."""

  def __init__(self, norm: geometry.Norm):
    self._space = geometry.of(norm)

  def checkpoints(self, num_iterations):
    return checkpoint_periods(num_iterations)

  def start(self, keys, x, eps, bounds):
    return x + self._space.surface(keys, x, eps)

  def begin(self, moved, eps, chosen):
    # Like the images, for `shard_map` checks what varies over devices.
    zero = jnp.zeros_like(moved, shape=moved.shape[:1])
    return Controller(
        # No infinity, at which `jax_debug_infs` would stop.
        step_size=2 * eps + zero,
        f_best=jnp.full_like(zero, jnp.finfo(zero.dtype).min), f_last=zero,
        f_check=zero, num_up=jnp.zeros_like(zero, jnp.int32),
        reduced=jnp.ones_like(zero, bool))

  def control(self, controller, loss, first, period, moved, eps, rho):
    after, _, halved = control(controller, loss, period, rho)
    # The start is the first best, and no iteration that could have risen.
    return jax.tree.map(
        lambda at_start, later: jnp.where(first, at_start, later),
        controller._replace(f_best=loss, f_check=loss), after), halved

  def advance(self, move, controller, bounds):
    """Returns a step with momentum, projected twice."""
    x = move.x
    def project(images):
      return self._space.project(images, move.centre, move.eps, bounds)
    share = geometry.per_example(
        jnp.where(move.first, 1., 0.75).astype(x.dtype), x)
    step = (geometry.per_example(controller.step_size, x)
            * self._space.direction(move.gradient, x, bounds))
    stepped = project(x + step)
    return project(x + (stepped - x) * share + (x - move.x_last) * (1 - share))


class _Sparse(Steps):
  """Of L1.

  References: Croce & Hein 2021, arXiv:2103.01208; GitHub
    fra31/auto-attack autoattack/autopgd_base.py. Counts of entries are exact
    here: upstream's include entries that differ from the image by rounding.
  """

  def __init__(self):
    self._space = geometry.of('L1')

  def checkpoints(self, num_iterations):
    periods = np.zeros(num_iterations + 1, np.int32)
    period = max(int(0.04 * num_iterations), 1)
    periods[period::period] = period
    return periods

  def start(self, keys, x, eps, bounds):
    low, high = bounds
    noise = jax.vmap(
        lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return self._space.project(x + (high - low) * noise, x, eps, bounds)

  def begin(self, moved, eps, chosen):
    flat = geometry.flat(moved)
    zero = jnp.zeros_like(moved, shape=moved.shape[:1])
    # As if it had changed all, and a fifth of them in a step.
    support = _support(moved) if chosen else jnp.full_like(
        zero, flat.shape[1], jnp.int32)
    num_moved = _next_count(support) if chosen else jnp.full_like(
        support, -(-flat.shape[1] // 5))
    return SparseController(
        step_size=eps + zero,
        f_best=jnp.full_like(zero, jnp.finfo(zero.dtype).min),
        support=support, num_moved=num_moved)

  def control(self, controller, loss, first, period, moved, eps, rho):
    better = first | (loss > controller.f_best)
    checkpoint = period > 0
    support = _support(moved)
    # The perturbation became sparser: by a twentieth at least.
    sparser = checkpoint & (20 * support < 19 * controller.support)
    step_size = jnp.where(
        sparser, eps, jnp.clip(controller.step_size / 1.5, eps / 10, eps))
    return SparseController(
        step_size=jnp.where(checkpoint, step_size, controller.step_size),
        f_best=jnp.where(better, loss, controller.f_best),
        support=jnp.where(checkpoint, support, controller.support),
        num_moved=jnp.where(checkpoint, _next_count(support),
                            controller.num_moved),
    ), sparser

  def advance(self, move, controller, bounds):
    """Returns a step along the steepest entries, projected."""
    step = (geometry.per_example(controller.step_size, move.x)
            * geometry.sparse_signs(move.gradient, controller.num_moved))
    return self._space.project(move.x + step, move.centre, move.eps, bounds)


def _support(moved):
  """Returns how many entries of each example are not 0, int32 `[B]`."""
  return jnp.sum(geometry.flat(moved) != 0, axis=-1, dtype=jnp.int32)


def _next_count(support):
  """Returns two thirds of them, at least 1."""
  return jnp.maximum((2 * support + 2) // 3, 1)


_STEPS: dict[str, Steps] = {'Linf': _Momentum('Linf'), 'L2': _Momentum('L2'),
                            'L1': _Sparse()}


def of(norm: geometry.Norm) -> Steps:
  """Returns the steps of APGD in one of `geometry.NORMS`."""
  return _STEPS[norm]
