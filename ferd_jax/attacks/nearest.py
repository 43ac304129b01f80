"""What minimum-norm attacks share: the closest image that succeeds.

They follow an iterate through both sides of the decision boundary within a
radius that shrinks where it succeeds and grows where it does not. What is
returned is the closest of all iterates that succeeded.
"""

from collections.abc import Callable
import typing
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.core import validate

# What is returned: the closest of all iterates that succeed, or the first.
Keep = Literal['smallest', 'first']


class NearestState(NamedTuple):
  """Of every example.

  Attributes:
    iteration: int32 `[B]`, how many are done.
    x: `[B, ...]`, to be evaluated next.
    radius: `[B]`, of the ball that the next iterate is put into.
    x_best: `[B, ...]`, the closest iterate that succeeded, or the image.
    norm_best: `[B]`, its distance, the largest number where there is none.
    fooled: bool `[B]`, whether that is at most eps.
    finite: bool `[B]`, whether all logits and gradients were.
    zero_gradient: bool `[B]`, whether that of the start is 0 everywhere.
  """
  iteration: jax.Array
  x: jax.Array
  radius: jax.Array
  x_best: jax.Array
  norm_best: jax.Array
  fooled: jax.Array
  finite: jax.Array
  zero_gradient: jax.Array


class Nearest(attack.Attack):
  """Base of DDN and FMN, which are frozen dataclasses with these settings.

  The last iterate is not evaluated: `num_steps` gradients are all that there
  is, that of the image itself among them.

  Attributes:
    eps: radius that the result is accepted within, None for any.
    num_steps: how many gradients.
    step_size: of the first step, per width of the bounds.
    gamma: share by which the radius changes at first.
    keep: 'smallest' or 'first', as of `FAB`.
  """
  eps: float | None
  step_size: float
  gamma: float
  keep: Keep

  def _check(self):
    """Raises ValueError for settings out of range, and freezes them."""
    if self.eps is not None:
      validate.non_negative(eps=self.eps)
    validate.count(num_steps=self.num_steps)
    validate.positive(step_size=self.step_size)
    validate.in_range(0, 1, gamma=self.gamma)
    validate.one_of(typing.get_args(Keep), keep=self.keep)
    attack.freeze(self, 'eps', 'step_size', 'gamma')

  def first_radius(self, delta: jax.Array) -> jax.typing.ArrayLike:
    """Returns the radius `[B]` before the first step.

    Args:
      delta: `[B, ...]`, from the image to the start.
    """
    raise NotImplementedError

  def move(self, problem: attack.Problem, state: NearestState, hit: jax.Array,
           value: jax.Array, gradient: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns the next iterate `[B, ...]`, not clipped, and radius `[B]`.

    Args:
      problem: with the images.
      state: of this iterate, and of the best up to it.
      hit: bool `[B]`, whether this iterate succeeds.
      value: `[B]`, of `objective` at it.
      gradient: `[B, ...]`, of that.
    """
    raise NotImplementedError

  def init(self, problem: attack.Problem) -> NearestState:
    """Returns the start: the image, or `x_init`."""
    x, start = problem.x, problem.x_init
    start = jnp.clip(x if start is None else start, *self.bounds)
    zero = jnp.zeros_like(x, shape=x.shape[:1])
    false = jnp.zeros_like(zero, bool)
    return NearestState(
        iteration=jnp.zeros_like(zero, jnp.int32), x=start,
        radius=zero + self.first_radius(start - x), x_best=x,
        # No infinity, at which `jax_debug_infs` would stop.
        norm_best=jnp.full_like(zero, jnp.finfo(x.dtype).max),
        fooled=false, finite=~false, zero_gradient=false)

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: NearestState, key: jax.Array | None = None) -> NearestState:
    """Returns the state after the evaluation of `state.x`."""
    def summed(images):
      logits = attack.evaluate(logits_fn, images, key)
      value = self.objective(logits, problem)
      return jnp.sum(value), (value, logits)  # The sum keeps examples apart.
    gradient, (value, logits) = jax.grad(summed, has_aux=True)(state.x)
    hit = self.succeeds(logits, problem)
    norm = geometry.of(self.norm).size(state.x - problem.x)
    closer = hit & (norm < state.norm_best)
    norm_best = jnp.where(closer, norm, state.norm_best)
    seen = state._replace(
        x_best=geometry.where(closer, state.x, state.x_best),
        norm_best=norm_best, fooled=norm_best <= problem.eps,
        finite=(state.finite & losses.predicts(logits)
                & attack.all_finite(gradient)),
        zero_gradient=jnp.where(
            state.iteration == 0, geometry.of('Linf').size(gradient) == 0,
            state.zero_gradient))
    x, radius = self.move(problem, seen, hit, value, gradient)
    after = seen._replace(iteration=state.iteration + 1,
                          x=jnp.clip(x, *self.bounds), radius=radius)
    if self.keep != 'first':
      return after
    return jax.tree.map(
        lambda before, after: geometry.where(state.fooled, before, after),
        state, after)

  def done(self, state: NearestState) -> jax.Array:
    """Returns which examples further steps would not change, `[B]`."""
    over = state.iteration >= self.num_steps
    return over | state.fooled if self.keep == 'first' else over

  def iterate(self, problem: attack.Problem, state: NearestState) -> jax.Array:
    """Returns the images that are evaluated next."""
    del problem
    return state.x

  def images(self, problem: attack.Problem, state: NearestState) -> jax.Array:
    """Returns `x_best` where it is within eps, else the clean image."""
    return attack.or_nan(
        state.fooled | state.finite,
        geometry.where(state.fooled, state.x_best, problem.x))

  def reach(self, x: jax.Array) -> jax.Array:
    """Returns the distance `[B]` of the farthest image within the bounds."""
    low, high = self.bounds
    return geometry.of(self.norm).size(jnp.maximum(x - low, high - x))

  def annealed(self, state: NearestState, first: float,
               last: float) -> jax.Array:
    """Returns what falls as a cosine from the first to the last step, `[B]`."""
    share = state.iteration.astype(state.radius.dtype) / self.num_steps
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def descend_or_draw(gradient: jax.Array,
                    draw: Callable[[], jax.Array]) -> jax.Array:
  """Returns the gradient, or where it is 0 everywhere what is drawn instead.

  Args:
    gradient: `[B, ...]`.
    draw: returns `[B, ...]`; where all have a gradient it is not run.
  """
  zero = geometry.of('Linf').size(gradient) == 0
  return jax.lax.cond(
      jnp.any(zero), lambda: geometry.where(zero, draw(), gradient),
      lambda: gradient)
