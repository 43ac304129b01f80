"""APGD and APGD-T, the step-size-free attacks of AutoAttack."""

from collections.abc import Callable
import dataclasses
import math
import typing
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import apgd_steps
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import targets
from ferd_jax.core import validate

# What is returned, see `APGD`.
Keep = Literal['fooling', 'first', 'best']


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
    controller: of the steps, see `apgd_steps`.
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
  controller: Any


class _Schedule(NamedTuple):
  """By evaluation, NumPy arrays `[num_steps]`.

  Attributes:
    radius: of the ball, over eps.
    period: int32, of `apgd_steps`.
    first: whether it is the first within a ball of this radius.
    last: whether a smaller ball comes next.
    counts: whether it is within eps.
  """
  radius: np.ndarray
  period: np.ndarray
  first: np.ndarray
  last: np.ndarray
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class APGD(attack.Attack):
  """Auto-PGD; with `num_targets` APGD-T.

  Attributes:
    eps: radius of the ball, at least 0, in the unit of the images.
    norm: 'Linf', 'L2' or 'L1', whose steps are sparse.
    loss: (logits `[B, K]`, y) -> `[B]`, ascended; with targets
      (logits, y, targets) -> `[B]`. None is the cross-entropy, with targets
      `losses.targeted_dlr`.
    num_iterations: how many.
    rho: share of iterations that have to raise the loss; of no effect in L1.
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
    large_radii: whether 30% of the iterations search a ball of 3 eps, 30% one
      of 2 eps, and the rest that of eps, each from the best image of the one
      before. As AutoAttack does in L1.
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
    comparison of losses is with 0. For L1 Croce & Hein 2021,
    arXiv:2103.01208.
  """
  eps: float
  norm: geometry.Norm = 'Linf'
  loss: Callable[..., jax.Array] | None = None
  num_iterations: int = 100
  rho: float = 0.75
  num_restarts: int = 1
  num_targets: int = 0
  eot: int = 0
  large_radii: bool = False
  keep: Keep = 'fooling'
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None
  target_order: targets.Order = 'logits'

  def __post_init__(self):
    validate.non_negative(eps=self.eps)
    validate.count(num_iterations=self.num_iterations,
                   num_restarts=self.num_restarts)
    validate.count(0, num_targets=self.num_targets, eot=self.eot)
    validate.in_range(0, 1, rho=self.rho)
    validate.one_of(geometry.NORMS, norm=self.norm)
    if self.large_radii:
      validate.count(2, num_iterations=self.num_iterations)
    validate.one_of(typing.get_args(Keep), keep=self.keep)
    targets.check_order(self.target_order, self.num_targets)
    attack.freeze(self, 'eps', 'rho')
    if self.num_targets and self.loss is None:  # Known here already.
      object.__setattr__(self, 'loss', losses.targeted_dlr)

  @property
  def num_steps(self) -> int:
    """Evaluations of the model: the starts and the iterations."""
    return self.num_iterations + len(self._stages)

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
    """Returns the start: noise in the (largest) ball, or `x_init` inside."""
    x, start = problem.x, problem.x_init
    eps = problem.eps * self._stages[0][0]
    if start is None:
      start = self._steps.start(problem.keys, x, eps, self.bounds)
    else:  # It may be what is returned.
      start = geometry.where(
          self._space.size(start - x) > eps,
          self._space.project(start, x, eps, self.bounds), start)
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
        controller=self._steps.begin(
            start - x, eps,
            chosen=problem.x_init is not None or self.large_radii))

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: APGDState, key: jax.Array | None = None) -> APGDState:
    """Returns the state after the evaluation of `state.x`."""
    loss, logits, gradient = self._evaluate(logits_fn, problem, state.x, key)
    now = self._now(problem, state.iteration)
    eps = problem.eps * now.radius
    hit = self.succeeds(logits, problem) & now.counts
    missed = attack.is_fooled(logits, inputs.labels_of(problem.y)) & now.counts
    x_adv = geometry.where(hit | (missed & ~state.fooled), state.x,
                           state.x_adv)

    better = now.first | (loss > state.controller.f_best)
    x_best = geometry.where(better, state.x, state.x_best)
    gradient_best = geometry.where(better, gradient, state.gradient_best)
    controller, returns = self._steps.control(
        state.controller, loss, now.first, now.period, x_best - problem.x, eps,
        self.rho)
    x = geometry.where(returns, x_best, state.x)
    gradient, raw_gradient = (
        geometry.where(returns, gradient_best, gradient), gradient)
    zero_gradient = jnp.all(geometry.flat(gradient) == 0, axis=-1)

    after = APGDState(
        iteration=state.iteration + 1,
        x=self._steps.advance(
            apgd_steps.Move(problem.x, eps, x, state.x_last, gradient,
                            now.first), controller, self.bounds),
        x_last=x, x_best=x_best, gradient_best=gradient_best, x_adv=x_adv,
        fooled=state.fooled | hit, missed=state.missed | hit | missed,
        finite=(state.finite & losses.predicts(logits)
                & attack.all_finite(raw_gradient)),
        zero_gradient=jnp.where(state.iteration == 0, zero_gradient,
                                state.zero_gradient),
        controller=controller)
    if self.large_radii:
      after = jax.tree.map(
          lambda smaller, same: geometry.where(now.last, smaller, same),
          self._in_smaller_ball(problem, after), after)
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

  @property
  def _space(self):
    return geometry.of(self.norm)

  @property
  def _steps(self):
    return apgd_steps.of(self.norm)

  @property
  def _stages(self):
    """Returns pairs (radius over eps, iterations), in order."""
    if not self.large_radii:
      return ((1., self.num_iterations),)
    large = math.ceil(.3 * self.num_iterations)
    return (3., large), (2., large), (1., self.num_iterations - 2 * large)

  def _now(self, problem, iteration):
    """Returns the `_Schedule` at iterations `[B]`."""
    stages = self._stages
    lengths = [num_iterations + 1 for _, num_iterations in stages]
    ends = np.cumsum(lengths)
    steps = np.arange(ends[-1])
    schedule = _Schedule(
        radius=np.repeat([radius for radius, _ in stages], lengths).astype(
            problem.eps.dtype),
        period=np.concatenate([self._steps.checkpoints(num_iterations)
                               for _, num_iterations in stages]),
        first=np.isin(steps, ends - lengths),
        last=np.isin(steps, ends[:-1] - 1),
        counts=steps >= ends[-1] - lengths[-1])
    at = jnp.minimum(iteration, self.num_steps - 1)
    return jax.tree.map(lambda by_step: jnp.asarray(by_step)[at], schedule)

  def _in_smaller_ball(self, problem, state):
    """Returns the state that begins anew at the best, within the next radius.

    Args:
      problem: that is solved.
      state: after the last evaluation within a larger ball.
    """
    eps = problem.eps * self._now(problem, state.iteration).radius
    x = self._space.project(state.x_best, problem.x, eps, self.bounds)
    return state._replace(
        x=x, x_last=x, controller=self._steps.begin(x - problem.x, eps,
                                                    chosen=True))
