"""FAB and FAB-T, the minimum-norm attacks of AutoAttack."""

import dataclasses
import typing
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import box_projection
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import nearest
from ferd_jax.attacks import targets
from ferd_jax.core import loops
from ferd_jax.core import validate

_NOT_FOUND = 1e10  # the norm where nothing misclassified was seen
_SHORTEST = 1e-8  # move that counts, per width of the bounds, as upstream


class FABState(NamedTuple):
  """Of every example.

  Attributes:
    iteration: int32 `[B]`, how many are done.
    x: `[B, ...]`, to linearise the model at next.
    x_best: `[B, ...]`, the iterate that succeeds closest to the image, or the
      image where there is none.
    norm_best: `[B]`, its distance, 1e10 where there is none.
    fooled: bool `[B]`, whether that is at most eps.
    finite: bool `[B]`, whether all logits and gradients were.
  """
  iteration: jax.Array
  x: jax.Array
  x_best: jax.Array
  norm_best: jax.Array
  fooled: jax.Array
  finite: jax.Array


@dataclasses.dataclass(frozen=True)
class FAB(attack.Attack):
  """Fast adaptive boundary attack; with `num_targets` or targets FAB-T.

  It looks for the misclassified image that is closest to the clean one. Every
  iteration goes to the decision boundary of the linearised model and a little
  beyond, and back towards the image where it has crossed the boundary. Only
  what is accepted in the end depends on eps, and the starts of restarts.

  The first attempt starts at the image itself and draws no noise, so that its
  result does not depend on the key. An image that is misclassified as it is
  stays as it is.

  Attributes:
    eps: radius that the result is accepted within, at least 0, in the unit of
      the images; None for any. With it an image is done with the first target
      that is found within; without, the closest of all targets is kept.
    norm: 'Linf', 'L2' or 'L1', to be minimised.
    num_iterations: how many; each takes a gradient (without targets K - 1 of
      them, K classes) and one more forward pass.
    num_restarts: repetitions on what is not yet fooled, from noise of norm
      eps / 2 around the image.
    num_targets: 0, or how many classes give the boundary to go to in turn. Any
      misclassification is a success. With 0 it is the boundary to the call's
      `targets`, which are what is sought then, and without these, in every
      iteration, to the closest class.
    target_order: which classes, as of `APGD`.
    alpha_max: largest share of the clean image's own projection in a step.
    eta: length of a move, 1 ends on the linearised boundary.
    beta: what is left of the distance to the image after each step that
      crossed the boundary.
    keep: which images are returned where one was found within eps, and the
      clean image elsewhere: 'smallest', the closest of all iterations; or
      'first', the first found (iterating ends there).
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: Croce & Hein 2020, arXiv:1907.02044, Algorithm 1; GitHub
    fra31/auto-attack autoattack/fab_base.py.
  """
  eps: float | None
  norm: geometry.Norm = 'Linf'
  num_iterations: int = 100
  num_restarts: int = 1
  num_targets: int = 0
  alpha_max: float = 0.1
  eta: float = 1.05
  beta: float = 0.9
  keep: nearest.Keep = 'smallest'
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None
  target_order: targets.Order = 'logits'

  # A gradient, and the prediction where it leads; without targets there is one
  # gradient for each class, of which a setting knows nothing.
  step_cost = 3
  step_queries = 2

  def __post_init__(self):
    if self.eps is not None:
      validate.non_negative(eps=self.eps)
    elif self.num_restarts != 1:
      raise ValueError(f'Expected eps for num_restarts={self.num_restarts}, '
                       'which start at noise of norm eps / 2.')
    validate.positive(eta=self.eta)
    validate.count(num_iterations=self.num_iterations,
                   num_restarts=self.num_restarts)
    validate.count(0, num_targets=self.num_targets)
    validate.in_range(0, 1, alpha_max=self.alpha_max, beta=self.beta)
    validate.one_of(geometry.NORMS, norm=self.norm)
    validate.one_of(typing.get_args(nearest.Keep), keep=self.keep)
    targets.check_order(self.target_order, self.num_targets)
    attack.freeze(self, 'eps', 'alpha_max', 'eta', 'beta')

  @property
  def num_steps(self) -> int:
    """The iterations."""
    return self.num_iterations

  @property
  def _space(self) -> geometry.Geometry:
    return geometry.of(self.norm)

  def init(self, problem: attack.Problem) -> FABState:
    """Returns the start: the image, from restart 1 on noise, or `x_init`."""
    x, start = problem.x, problem.x_init
    if start is None:
      start = x
      if problem.restart is not None:
        noise = self._space.surface(problem.keys, x, problem.eps / 2)
        start = geometry.where(problem.restart > 0, x + noise, x)
    false = jnp.zeros_like(x, bool, shape=x.shape[:1])
    return FABState(
        iteration=jnp.zeros_like(x, jnp.int32, shape=x.shape[:1]),
        x=jnp.clip(start, *self.bounds), x_best=x,
        norm_best=jnp.full_like(x, _NOT_FOUND, shape=x.shape[:1]),
        fooled=false, finite=~false)

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: FABState, key: jax.Array | None = None) -> FABState:
    """Returns the state after one iteration."""
    difference, gradient, logits = self._linearise(logits_fn, problem, state.x,
                                                   key)
    finite = (state.finite & losses.predicts(logits)
              & attack.all_finite(gradient)
              # The largest number stands for no boundary at all.
              & (jnp.abs(difference) < jnp.finfo(difference.dtype).max))
    # Clean images that succeed already: nothing is closer.
    stays = (self.succeeds(logits, problem)
             & (self._space.size(state.x - problem.x) == 0))
    x = geometry.where(
        stays, state.x, self._move(problem, state.x, difference, gradient))

    logits = attack.evaluate(logits_fn, x, key)
    missed = self.succeeds(logits, problem)
    norm = self._space.size(x - problem.x)
    closer = missed & (norm < state.norm_best)
    norm_best = jnp.where(closer, norm, state.norm_best)
    back = problem.x + (x - problem.x) * self.beta
    after = FABState(
        iteration=state.iteration + 1,
        x=geometry.where(missed, back, x),
        x_best=geometry.where(closer, x, state.x_best), norm_best=norm_best,
        fooled=state.fooled | (closer & (norm_best <= problem.eps)),
        finite=finite & losses.predicts(logits))
    if self.keep != 'first':
      return after
    return jax.tree.map(
        lambda before, after: geometry.where(state.fooled, before, after),
        state, after)

  def done(self, state: FABState) -> jax.Array:
    """Returns which examples further steps would not change, `[B]`."""
    over = state.iteration >= self.num_steps
    return over | state.fooled if self.keep == 'first' else over

  def iterate(self, problem: attack.Problem, state: FABState) -> jax.Array:
    """Returns the images that the model is linearised at next."""
    del problem
    return state.x

  def objective(self, logits: jax.Array,
                problem: attack.Problem) -> jax.Array:
    """Returns how far an image is beyond the boundary, in logits, `[B]`."""
    return attack.margin_beyond(logits, problem)

  def images(self, problem: attack.Problem, state: FABState) -> jax.Array:
    """Returns `x_best` where it is within eps, else the clean image."""
    return attack.or_nan(
        state.fooled | state.finite,
        geometry.where(state.fooled, state.x_best, problem.x))

  def _linearise(self, logits_fn, problem, x, key):
    """Returns z_c - z_y `[B]`, its gradient `[B, ...]`, and the logits.

    The class c is the target, or that with the closest boundary. In place of y
    stands the highest other logit if the call named the target.
    """
    def evaluate(images):
      logits = attack.evaluate(logits_fn, images, key)
      return losses.unmasked(logits, x.dtype), logits
    finite, pull_back, logits = jax.vjp(evaluate, x, has_aux=True)
    num_classes = logits.shape[-1]
    labels = inputs.labels_of(problem.y)
    def one_hot(classes):
      return jax.nn.one_hot(classes, num_classes, dtype=finite.dtype)
    def against(classes, rivals=labels):
      difference = losses.targeted_margin(finite, rivals, classes)
      gradient, = pull_back(one_hot(classes) - one_hot(rivals))
      return difference.astype(x.dtype), gradient
    if problem.targets is not None and self.num_targets:
      return *against(problem.targets), logits
    if problem.targets is not None:
      # To be reached it has to be above all others, not the label alone.
      rivals = jnp.argmax(jnp.where(one_hot(problem.targets) > 0,
                                    jnp.finfo(finite.dtype).min, finite), -1)
      return *against(problem.targets, rivals), logits

    def compare(number, closest):
      number = jnp.asarray(number, labels.dtype)
      after = (number >= labels).astype(labels.dtype)
      classes = number + after  # all but the label, in order
      difference, gradient = against(classes)
      distance = jnp.abs(difference) / (
          self._space.dual_size(gradient) + geometry.TINY)
      nearer = distance < closest[0]
      return jax.tree.map(
          lambda new, old: geometry.where(nearer, new, old),
          (distance, difference, gradient), closest)
    # One class after the other: all gradients at once fill the memory.
    nowhere = jnp.full_like(labels, jnp.finfo(x.dtype).max, dtype=x.dtype)
    _, difference, gradient = loops.repeat(
        num_classes - 1, compare,
        (nowhere, nowhere, jnp.zeros_like(x)),
        unroll=self.unroll)
    return difference, gradient, logits

  def _move(self, problem, x, difference, gradient):
    """Returns the next iterate, between the projections of `x` and image."""
    b = jnp.sum(geometry.flat(gradient * x), axis=-1) - difference
    shortest = _SHORTEST * (self.bounds[1] - self.bounds[0])
    def project(images):
      move = box_projection.project_onto_hyperplane(
          images, gradient, b, self.bounds, self.norm)
      return move, jnp.maximum(self._space.size(move), shortest)
    (move, move_clean), (length, length_clean) = jax.vmap(project)(
        jnp.stack([x, problem.x]))
    share = geometry.per_example(
        jnp.minimum(length / (length + length_clean), self.alpha_max), x)
    return jnp.clip((x + self.eta * move) * (1 - share)
                    + (problem.x + self.eta * move_clean) * share,
                    *self.bounds)
