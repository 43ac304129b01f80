"""APGD and APGD-T, the step-size-free attacks of AutoAttack."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import targets
from ferd_jax.core import validate


class Controller(NamedTuple):
  """The step-size controller: what it remembers of the losses, each `[B]`.

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


def checkpoint_periods(num_steps: int) -> np.ndarray:
  """Returns int32 `[num_steps + 1]`: at i the iterations since the last.

  It is 0 where iteration i (from 1) is no checkpoint.
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


class APGDState(NamedTuple):
  """Of every example.

  Attributes:
    iteration: int32 `[B]`, 0 before the start was evaluated.
    x: `[B, ...]`, to be evaluated next.
    x_last: `[B, ...]`, the iterate before.
    x_best: `[B, ...]`, with the highest loss.
    gradient_best: `[B, ...]`, at `x_best`.
    x_adv: `[B, ...]`, the last iterate that reached a target which the caller
      named; until one does, and without such targets, the last misclassified
      one (the first, where the attack stops then).
    fooled: bool `[B]`, whether any reached it, or was misclassified.
    missed: bool `[B]`, whether any was misclassified.
    finite: bool `[B]`, whether all logits and gradients were.
    zero_gradient: bool `[B]`, whether that of the start is 0 everywhere.
    controller: of the step size.
  """
  iteration: jax.Array
  x: jax.Array
  x_last: jax.Array
  x_best: jax.Array
  gradient_best: jax.Array
  x_adv: jax.Array
  fooled: jax.Array
  missed: jax.Array
  finite: jax.Array
  zero_gradient: jax.Array
  controller: Controller


@dataclasses.dataclass(frozen=True)
class APGD(attack.Attack):
  """Auto-PGD; with `num_targets` APGD-T.

  Attributes:
    eps: radius of the ball, at least 0, in the unit of the images.
    norm: 'Linf' or 'L2'.
    loss: (logits `[B, K]`, y) -> `[B]`, ascended; with targets
      (logits, y, targets) -> `[B]`. None is the cross-entropy, with targets
      `losses.targeted_dlr`.
    num_iterations: how many.
    rho: share of iterations that have to raise the loss.
    num_restarts: repetitions from other starts on what is not yet fooled.
    num_targets: 0, or how many classes are targeted in turn. Any
      misclassification is a success. (With 0 and a call's `targets` it is
      these that are sought.)
    target_order: which classes: those with the highest logits on the clean
      image, after the first ('logits'), or those that are closest where the
      model is linear ('malt', see `targets.malt_scores`).
    eot: 0, or for stochastic models, called as `logits_fn(images, key)`, how
      many passes a gradient is averaged over; loss and prediction are the last
      one's.
    keep: which images are returned: 'fooling', the last iterate that succeeds
      (of a call's targets that reaches them, else the last misclassified one),
      and the clean image where there is none; 'first', the same with the first
      (iterating ends there); or 'best', those with the highest loss.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: Croce & Hein 2020, arXiv:2003.01690, Sec. 3; GitHub
    fra31/auto-attack autoattack/autopgd_base.py. As there the first
    comparison of losses is with 0.
  """
  eps: float
  norm: str = 'Linf'
  loss: Callable[..., jax.Array] | None = None
  num_iterations: int = 100
  rho: float = 0.75
  num_restarts: int = 1
  num_targets: int = 0
  eot: int = 0
  keep: str = 'fooling'
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None
  target_order: str = 'logits'

  def __post_init__(self):
    validate.non_negative(eps=self.eps)
    validate.count(num_iterations=self.num_iterations,
                   num_restarts=self.num_restarts)
    validate.count(0, num_targets=self.num_targets, eot=self.eot)
    validate.in_range(0, 1, rho=self.rho)
    validate.one_of(geometry.NORMS, norm=self.norm)
    validate.one_of(('fooling', 'first', 'best'), keep=self.keep)
    validate.one_of(targets.ORDERS, target_order=self.target_order)
    attack.freeze(self, 'eps', 'rho')
    if self.num_targets and self.loss is None:  # Known here already.
      object.__setattr__(self, 'loss', losses.targeted_dlr)

  @property
  def num_steps(self) -> int:
    """Evaluations of the model: the start and the iterations."""
    return self.num_iterations + 1

  @property
  def stochastic(self) -> bool:
    """Whether `logits_fn` takes a key."""
    return self.eot > 0

  @property
  def step_cost(self) -> int:
    """Of a step, in forward passes."""
    return 2 * max(self.eot, 1)

  @property
  def step_queries(self) -> int:
    """Of a step, with each pass of the expectation."""
    return max(self.eot, 1)

  def objective(self, logits: jax.Array,
                problem: attack.Problem) -> jax.Array:
    """Returns the loss, `[B]`."""
    return attack.loss_of(self.loss, logits, problem, losses.targeted_dlr)

  def init(self, problem: attack.Problem) -> APGDState:
    """Returns the start: on the surface of the ball, or `x_init` inside."""
    x, eps = problem.x, problem.eps
    start = problem.x_init
    if start is None:
      start = x + geometry.surface(problem.keys, x, eps, self.norm)
    else:  # It may be what is returned.
      start = geometry.where(
          geometry.size(start - x, self.norm) > eps, geometry.project(
              start, x, eps, self.bounds, self.norm), start)
    start = jnp.clip(start, *self.bounds)
    # Like the images, for `shard_map` checks what varies over devices.
    zero = jnp.zeros_like(x, shape=x.shape[:1])
    false = jnp.zeros_like(zero, bool)
    none = jnp.zeros_like(zero, jnp.int32)
    return APGDState(
        iteration=none,
        x=start, x_last=start, x_best=start,
        gradient_best=jnp.zeros_like(x), x_adv=start,
        fooled=false, missed=false, finite=~false, zero_gradient=false,
        controller=Controller(
            # No infinity, at which `jax_debug_infs` would stop.
            step_size=2 * eps + zero,
            f_best=jnp.full_like(zero, jnp.finfo(zero.dtype).min), f_last=zero,
            f_check=zero, num_up=none, reduced=~false))

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: APGDState, key: jax.Array | None = None) -> APGDState:
    """Returns the state after the evaluation of `state.x`."""
    loss, logits, gradient = self._evaluate(logits_fn, problem, state.x, key)
    first = state.iteration == 0
    hit = self.succeeds(logits, problem)
    missed = attack.is_fooled(logits, inputs.labels_of(problem.y))
    x_adv = geometry.where(hit | (missed & ~state.fooled), state.x,
                           state.x_adv)

    period = jnp.asarray(checkpoint_periods(self.num_iterations))[
        jnp.minimum(state.iteration, self.num_iterations)]
    controller, better, halved = control(state.controller, loss, period,
                                         self.rho)
    # The start is the first best, and no iteration that could have risen.
    controller = jax.tree.map(
        lambda at_start, later: jnp.where(first, at_start, later),
        state.controller._replace(f_best=loss, f_check=loss), controller)
    better = better | first
    x_best = geometry.where(better, state.x, state.x_best)
    gradient_best = geometry.where(better, gradient, state.gradient_best)
    x = geometry.where(halved, x_best, state.x)
    gradient, raw_gradient = (
        geometry.where(halved, gradient_best, gradient), gradient)

    after = APGDState(
        iteration=state.iteration + 1,
        x=self._move(problem, x, state.x_last, gradient,
                     controller.step_size, first),
        x_last=x, x_best=x_best, gradient_best=gradient_best, x_adv=x_adv,
        fooled=state.fooled | hit, missed=state.missed | hit | missed,
        finite=(state.finite & losses.predicts(logits)
                & attack.all_finite(raw_gradient)),
        zero_gradient=jnp.where(first, geometry.size(gradient, 'Linf') == 0,
                                state.zero_gradient),
        controller=controller)
    if self.keep != 'first':
      return after
    return jax.tree.map(
        lambda before, after: geometry.where(state.fooled, before, after),
        state, after)

  def done(self, state: APGDState) -> jax.Array:
    """Returns which examples further steps would not change, `[B]`."""
    over = state.iteration >= self.num_steps
    return over | state.fooled if self.keep == 'first' else over

  def iterate(self, problem: attack.Problem, state: APGDState) -> jax.Array:
    """Returns the images that are evaluated next."""
    del problem
    return state.x

  def images(self, problem: attack.Problem, state: APGDState) -> jax.Array:
    """Returns what `keep` says."""
    images = (state.x_best if self.keep == 'best' else
              geometry.where(state.missed, state.x_adv, problem.x))
    return attack.or_nan(state.missed | state.finite, images)

  def _evaluate(self, logits_fn, problem, x, key):
    """Returns loss, logits and gradient of the loss."""
    def summed_loss(images, key):
      logits = attack.evaluate(logits_fn, images, key)
      loss = self.objective(logits, problem)
      return jnp.sum(loss), (loss, logits)
    gradient_fn = jax.grad(summed_loss, has_aux=True)
    if not self.stochastic:
      gradient, (loss, logits) = gradient_fn(x, None)
      return loss, logits, gradient
    keys = jax.random.split(key, self.eot)
    def add(total, key):
      gradient, aux = gradient_fn(x, key)
      return total + gradient, aux
    total, (all_losses, all_logits) = jax.lax.scan(
        add, jnp.zeros_like(x), keys)
    return all_losses[-1], all_logits[-1], total / self.eot

  def _move(self, problem, x, x_last, gradient, step_size, first):
    """Returns the next iterate: a step with momentum, projected twice."""
    def project(images):
      return geometry.project(images, problem.x, problem.eps, self.bounds,
                              self.norm)
    share = geometry.per_example(
        jnp.where(first, 1., 0.75).astype(x.dtype), x)
    step = geometry.per_example(step_size, x) * geometry.direction(
        gradient, self.norm)
    stepped = project(x + step)
    return project(x + (stepped - x) * share + (x - x_last) * (1 - share))
