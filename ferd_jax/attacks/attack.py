"""What all attacks share: how they are called, checked and iterated.

An attack is a frozen dataclass with `init`, `step` and `images`: a state per
example, one evaluation of the model, and the adversarial images that a state
stands for. Everything else is built on these three, here the call that runs
under `jit`, in `compiled` the loop that Python drives, in `AutoAttack` the one
that exchanges images while it runs. So an attack of your own that has them can
be called, compiled, and put into an ensemble.
"""

from collections.abc import Callable
import dataclasses
import inspect
import typing
from typing import Any
from typing import NamedTuple
import warnings

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import targets as target_orders
from ferd_jax.attacks.results import AttackResult
from ferd_jax.attacks.results import History
from ferd_jax.core import loops

LogitsFn = Callable[..., jax.Array]


class Problem(NamedTuple):
  """What an attack has to solve; every array has a batch axis.

  Attributes:
    x: images `[B, ...]`.
    y: int labels `[B]`, or what the attack's loss takes in their place.
    targets: what a targeted loss takes besides, such as classes `[B]`, or
      None.
    eps: radii `[B]`, in the dtype of `x`.
    keys: typed PRNG keys `[B]`.
    x_init: `[B, ...]` to start from, or None for the attack's own start.
    restart: int32 `[B]`, from 0, which of the restarts, or None for 0.
  """
  x: jax.Array
  y: Any
  targets: Any
  eps: jax.Array
  keys: jax.Array
  x_init: jax.Array | None = None
  restart: jax.Array | None = None


class Status(NamedTuple):
  """What has become of every example, bool `[B]` each.

  Attributes:
    done: whether further steps would not change it.
    fooled: whether `images` are worth another look: in an ensemble the
      prediction on them decides.
    finite: whether all that the model gave was finite.
    zero_gradient: whether the gradient at the start was 0 everywhere.
  """
  done: jax.Array
  fooled: jax.Array
  finite: jax.Array
  zero_gradient: jax.Array


class Attack:
  """Base of all attacks: frozen dataclasses with these settings.

  One of your own has the settings without a default below, `init`, `step` and
  `images`, and is then called, compiled by `attacks.jit`, and a member of
  `AutoAttack(version='custom')` or `MinimumNorm` as those here are. It takes
  images, labels, radii and noise from the `Problem`, not from its settings, and
  treats each example by itself. A state is any pytree of arrays `[B, ...]`; of
  one with leaves of these names an ensemble also knows

  * `fooled`: bool `[B]`, whether there is an image worth looking at. Without,
    every image is looked at in the end;
  * `finite`: bool `[B]`, whether the model's logits and gradients were.
    Without, the images are asked;
  * `zero_gradient`: bool `[B]`, for a warning of masked gradients.

  Attributes:
    eps: radius, in the unit of the images. None, where an attack allows it, is
      any: the closest image of all attempts is kept then.
    norm: one of `geometry.DISTANCES`.
    bounds: lowest and highest pixel value.
    num_steps: calls of `step`, one evaluation of the model each.
    num_restarts: repetitions from other starts on what is not yet fooled.
    num_targets: 0, or how many classes are targeted in turn on what is not yet
      fooled. Any misclassification is a success then.
    target_order: which classes these are, of `targets.ORDERS`: those with the
      highest logits on the clean image, or those that the model is steepest
      towards ('malt').
    unroll: None unrolls short loops on CPU.
    takes_targets: whether a call may name target classes, which are what is
      sought then.
    takes_logits: whether `y` are logits `[B, K]` of a teacher on the clean
      images. In an ensemble, which knows labels, they are the model's own.
    stochastic: whether logits_fn is called as logits_fn(images, key).
    step_cost: of a step, in forward passes; a gradient is two.
    step_queries: evaluations of the model on an image in a step.
  """
  eps: float | None
  norm: geometry.Distance
  bounds: tuple[float, float]
  num_restarts: int = 1
  num_targets: int = 0
  target_order: target_orders.Order = 'logits'
  unroll: bool | None = None
  takes_targets = True
  if typing.TYPE_CHECKING:  # Settings of some attacks, properties of others.
    @property
    def num_steps(self) -> int: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def step_cost(self) -> int: ...
    @property
    def step_queries(self) -> int: ...
  else:
    stochastic = False
    step_cost = 2
    step_queries = 1

  @property
  def takes_logits(self) -> bool:
    """As its loss says."""
    return getattr(getattr(self, 'loss', None), 'takes_logits', False)

  def init(self, problem: Problem) -> Any:
    """Returns the state before the first step; all leaves `[B, ...]`."""
    raise NotImplementedError

  def step(self, logits_fn: LogitsFn, problem: Problem, state: Any,
           key: jax.Array | None = None) -> Any:
    """Returns the state after one more evaluation of the model.

    Args:
      logits_fn: `[B, ...]` -> `[B, K]`; a stochastic one also takes a key.
      problem: the images and what belongs to them.
      state: of `init` or the last step.
      key: of this step for stochastic models, else None.
    """
    raise NotImplementedError

  def images(self, problem: Problem, state: Any) -> jax.Array:
    """Returns the adversarial images `[B, ...]` that a state stands for."""
    raise NotImplementedError

  def done(self, state: Any) -> jax.Array:
    """Returns which examples further steps would not change, bool `[B]`.

    None, here: all take `num_steps`.
    """
    return jnp.zeros_like(jax.tree.leaves(state)[0], bool,
                          shape=_batch_size(state))

  def iterate(self, problem: Problem, state: Any) -> jax.Array:
    """Returns the images `[B, ...]` that the next step evaluates."""
    return self.images(problem, state)

  def objective(self, logits: jax.Array, problem: Problem) -> jax.Array:
    """Returns what is ascended, `[B]`; here `loss` or the cross-entropy."""
    return loss_of(getattr(self, 'loss', None), logits, problem,
                   losses.targeted_cross_entropy)

  def succeeds(self, logits: jax.Array, problem: Problem) -> jax.Array:
    """Returns whether logits predict what is sought, bool `[B]`.

    That is the target if the call named target classes, else any class but the
    label, also if it is the attack that chooses targets.
    """
    targets = None if self.num_targets else target_classes(problem.targets)
    if targets is None:
      return is_fooled(logits, inputs.labels_of(problem.y))
    return losses.predicts(logits) & (
        jnp.argmax(logits, axis=-1) == targets)

  def status(self, problem: Problem, state: Any) -> Status:
    """Returns what has become of the examples, from what the state says."""
    done = self.done(state)
    finite = getattr(state, 'finite', None)
    return Status(
        done=done,
        fooled=getattr(state, 'fooled', jnp.ones_like(done)),
        finite=(all_finite(self.images(problem, state)) if finite is None
                else finite),
        zero_gradient=getattr(state, 'zero_gradient', jnp.zeros_like(done)))

  @property
  def num_attempts(self) -> int:
    """How often the steps are gone through: restarts times targets."""
    return self.num_restarts * max(self.num_targets, 1)

  @property
  def forward_passes(self) -> int:
    """Through the model, for an image that withstands; a gradient is two."""
    return self.num_attempts * self.num_steps * self.step_cost

  def __call__(self, logits_fn: LogitsFn, key: jax.Array, x: ArrayLike,
               y: Any, targets: Any = None, *,
               eps: ArrayLike | None = None,
               x_init: ArrayLike | None = None) -> jax.Array:
    """Returns adversarial images.

    A call outside of `jit` raises for values that are no valid input. Inside,
    where values cannot be looked at, such an example gets images of NaN, and
    the others what they would get without it.

    Args:
      logits_fn: images `[B, ...]` -> logits `[B, K]`, K >= 2: pure, in
        evaluation mode, on each image by itself.
      key: one PRNG key, or `[B]` keys, one per example; typed or legacy.
      x: float32 or float64 images `[B, ..., channels]` within `bounds`; as all
        other arrays, JAX's, NumPy's or what NumPy reads, such as a list or a
        tensor of PyTorch.
      y: int labels `[B]` in 0..K-1, or what `loss` takes in their place; every
        array in it has a batch axis.
      targets: of a targeted loss, int classes `[B]`.
      eps: radius in place of the setting's, a scalar or one per example; it
        may be traced. That of the whole range is allowed, as a test that
        everything can be fooled.
      x_init: `[B, ..., channels]`, to start from.

    Returns:
      `[B, ..., channels]` within eps of `x` and inside `bounds`, gradient
      stopped.

    Raises:
      ValueError: if x is not float32 or float64, y, targets, x_init, eps or
        key do not fit its batch size, or logits_fn does not return `[B, K]`;
        outside of `jit` also for labels or targets that are no class, images
        that are not finite or out of bounds, and an eps that is negative or
        wider than the bounds.
    """
    with self._own(key, x, y, targets, eps, x_init) as guarded:
      return self._attack(guarded(logits_fn), key, x, y, targets, eps,
                          x_init)[1]

  def run(self, logits_fn: LogitsFn, key: jax.Array, x: ArrayLike, y: Any,
          targets: Any = None, *, eps: ArrayLike | None = None,
          x_init: ArrayLike | None = None) -> AttackResult:
    """Returns the images and what they achieve; arguments as for the call.

    The labels that success is measured by are `y`, or the highest entries if
    `y` are logits `[B, K]`; of a pytree, its first leaf. Outside of `jit` a
    model that seems to return probabilities gets a UserWarning, and one whose
    logits or gradients are not finite.
    """
    with self._own(key, x, y, targets, eps, x_init) as guarded:
      logits_fn = guarded(logits_fn)
      problem, images, valid, _ = self._attack(
          logits_fn, key, x, y, targets, eps, x_init)
      result = self.result(logits_fn, problem, images, valid,
                           self.step_key(problem.keys))
    warn(result)
    return result

  def record(self, logits_fn: LogitsFn, key: jax.Array, x: ArrayLike, y: Any,
             targets: Any = None, *, eps: ArrayLike | None = None,
             x_init: ArrayLike | None = None
             ) -> tuple[AttackResult, History]:
    """Returns what `run` does, and losses and queries on the way.

    It takes one more forward pass a step where the compiler does not see that
    it is that of the gradient.
    """
    with self._own(key, x, y, targets, eps, x_init) as guarded:
      logits_fn = guarded(logits_fn)
      problem, images, valid, history = self._attack(
          logits_fn, key, x, y, targets, eps, x_init, recorded=True)
      result = self.result(logits_fn, problem, images, valid,
                           self.step_key(problem.keys))
    warn(result)
    return result, jax.tree.map(lax.stop_gradient, history)

  def _own(self, *arrays):
    """Returns the context of a call: a trace transfers nothing."""
    return inputs.own_transfers(tracing=inputs.is_tracing(arrays))

  def result(self, logits_fn: LogitsFn, problem: Problem, images: jax.Array,
             valid: jax.Array, key: jax.Array | None = None) -> AttackResult:
    """Returns what `images` achieve against the model.

    Args:
      logits_fn: as for the call.
      problem: that was solved.
      images: `[B, ...]`.
      valid: bool `[B]`, of the examples that are valid input.
      key: for a stochastic model, else None.
    """
    valid = valid & all_finite(images)  # Whatever the model makes of NaN.
    logits = or_nan(valid, evaluate(logits_fn, images, key))
    predictions = jnp.where(losses.predicts(logits),
                            jnp.argmax(logits, axis=-1), -1)
    labels = inputs.labels_of(problem.y)
    clean = evaluate(logits_fn, problem.x, _again(key))
    return jax.tree.map(lax.stop_gradient, AttackResult(
        images=images, success=is_fooled(logits, labels) & valid,
        predictions=predictions.astype(jnp.int32), logits=logits,
        norm=geometry.of(self.norm).size(images - problem.x),
        reached=self.succeeds(logits, problem) & valid,
        correct=(losses.predicts(clean) & valid
                 & (jnp.argmax(clean, axis=-1) == labels))))

  def check(self, logits_fn: LogitsFn, key: jax.Array, x: ArrayLike, y: Any,
            targets: Any = None, eps: ArrayLike | None = None,
            x_init: ArrayLike | None = None) -> tuple[Problem, jax.Array]:
    """Returns the problem and which examples of it are valid input, `[B]`.

    Arguments and errors are those of the call.
    """
    self.check_targets(targets)
    y, targets = inputs.arrays('y', y), inputs.arrays('targets', targets)
    start = None if x_init is None else inputs.array('x_init', x_init)
    images = inputs.checked_images(x, y=y, targets=targets, x_init=start)
    radius = self.radius(eps, images.shape[1:])
    batch = images.shape[:1]
    if np.shape(radius) not in ((), batch):
      raise ValueError(f'Expected eps of shape {np.shape(radius)} to be one '
                       f'radius or {batch[0]}, one per image.')
    inputs.checked_radii(radius, images.shape[1:], self.norm, self.bounds)
    keys = inputs.noise_keys(key, batch[0])
    classes = num_classes(logits_fn, images, self.step_key(keys))
    self.check_num_classes(classes)
    radii = jnp.broadcast_to(jnp.asarray(radius, images.dtype), batch)
    valid = inputs.valid_examples(images, y, targets, classes, self.bounds,
                                  start)
    valid = jnp.asarray(valid) & jnp.isfinite(radii) & (radii >= 0)
    y, targets = inputs.on_device((y, targets))
    y = finite_logits(y, images.dtype)
    if start is not None:
      start = jnp.asarray(start, images.dtype)
    images, y, targets, radii, start = jax.tree.map(
        lax.stop_gradient, (images, y, targets, radii, start))
    return Problem(images, y, targets, radii, keys, start), valid

  def radius(self, eps: Any, shape: tuple[int, ...]) -> Any:
    """Returns the radius of a call: its own, the setting's, or any.

    Args:
      eps: of the call, None for the setting's.
      shape: of an image.
    """
    if eps is not None:
      return inputs.array('eps', eps)
    if self.eps is None:
      return geometry.of(self.norm).diameter(shape, self.bounds)
    return self.eps

  def check_targets(self, targets: Any) -> None:
    """Raises ValueError for targets that the attack would not use."""
    if targets is not None and (self.num_targets or not self.takes_targets):
      raise ValueError(f'Expected no targets, as {type(self).__name__} '
                       + ('chooses num_targets of them.' if self.num_targets
                          else 'has no use for them.'))

  def check_num_classes(self, num_classes: int) -> None:
    """Raises ValueError if there are not so many wrong classes to target."""
    if self.num_targets >= num_classes:
      raise ValueError(f'Expected num_targets={self.num_targets} below the '
                       f'{num_classes} classes.')

  def _attack(self, logits_fn, key, x, y, targets, eps, x_init,
              recorded=False):
    """Returns problem, adversarial images, which are valid, and the history."""
    problem, valid = self.check(logits_fn, key, x, y, targets, eps, x_init)
    if self.num_attempts == 1 and not self.num_targets:
      images, history = self._solve(
          logits_fn, problem, jnp.zeros_like(valid) if recorded else None)
    else:
      images, history = self._solve_attempts(logits_fn, problem, recorded)
    images = lax.stop_gradient(or_nan(valid, images))
    return problem, images, valid, history

  def _solve(self, logits_fn, problem, fooled=None):
    """Returns the images, and if told who is fooled already, the history."""
    def step(i, carry):
      state, history = carry
      key = self.step_key(problem.keys, i)
      if history is not None:
        history = self.observe(logits_fn, problem, state, history, i, fooled,
                               _again(key))
      return self.step(logits_fn, problem, state, key), history
    history = None if fooled is None else self.no_history(problem)
    state, history = loops.repeat(
        self.num_steps, step, (self.init(problem), history),
        unroll=self.unroll)
    return self.images(problem, state), history

  def _solve_attempts(self, logits_fn, problem, recorded):
    """Returns the images of all attempts, merged, and the history."""
    key = self.step_key(problem.keys)
    clean = evaluate(logits_fn, problem.x, key)
    scores = self.class_scores(logits_fn, problem, clean, _again(key))
    def attempt(number, carry):
      images, fooled, history = carry
      found, new = self._solve(
          logits_fn, self.nth_attempt(problem, scores, number),
          fooled if recorded else None)
      now = self.succeeds(evaluate(logits_fn, found, key), problem)
      if recorded:
        history = self.join(history, new, number)
      return *self.merge(problem, images, fooled, found, now), history
    history = self.no_history(problem, self.num_attempts) if recorded else None
    images, _, history = loops.repeat(
        self.num_attempts, attempt,
        (problem.x, self.succeeds(clean, problem), history), unroll=False)
    return images, history

  def merge(self, problem: Problem, images: jax.Array, fooled: jax.Array,
            found: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the images of all attempts, and which succeed, after one more.

    It is the first that succeeds, else the last; without a radius the closest
    that succeeds.

    Args:
      problem: of all attempts.
      images: `[B, ...]` of those before.
      fooled: bool `[B]`, whether they succeed.
      found: `[B, ...]`, of this attempt.
      now: bool `[B]`, whether they succeed.
    """
    taken = ~fooled
    if self.eps is None:
      size = geometry.of(self.norm).size
      closer = size(found - problem.x) < size(images - problem.x)
      taken = taken | (now & closer)
    return geometry.where(taken, found, images), fooled | now

  def no_history(self, problem: Problem, num_attempts: int = 1) -> History:
    """Returns the history before the first step."""
    zero = jnp.zeros_like(problem.x, shape=problem.x.shape[:1])
    steps = num_attempts * self.num_steps
    return History(zero[:, None] + jnp.zeros((1, steps), zero.dtype),
                   jnp.zeros_like(zero, jnp.int32))

  def observe(self, logits_fn: LogitsFn, problem: Problem, state: Any,
              history: History, i: jax.Array | int, fooled: jax.Array,
              key: jax.Array | None) -> History:
    """Returns the history with the step that follows a state.

    Args:
      logits_fn: as for the call.
      problem: of this attempt.
      state: before the step.
      history: of this attempt, up to the state.
      i: number of the step.
      fooled: bool `[B]`, by attempts before, so that nothing is asked for.
      key: of this step for stochastic models, else None.
    """
    logits = evaluate(logits_fn, self.iterate(problem, state), key)
    loss = self.objective(logits, problem).astype(history.losses.dtype)
    asked = jnp.where(fooled | self.done(state), 0, self.step_queries)
    return History(history.losses.at[:, i].set(loss),
                   history.queries + asked.astype(jnp.int32))

  def join(self, history: History, attempt: History,
           number: jax.Array | int) -> History:
    """Returns the history of all attempts with that of one of them."""
    return History(
        lax.dynamic_update_slice_in_dim(
            history.losses, attempt.losses, number * self.num_steps, axis=1),
        history.queries + attempt.queries)

  def class_scores(self, logits_fn: LogitsFn, problem: Problem,
                   clean_logits: jax.Array,
                   key: jax.Array | None = None) -> jax.Array:
    """Returns what classes are ranked by to be targets, `[B, K]`.

    They have the precision of the images at least, unless they are the logits:
    what half precision rounds would be ties.

    Args:
      logits_fn: as for the call.
      problem: of all attempts.
      clean_logits: `[B, K]` on the clean images.
      key: for a stochastic model, else None.
    """
    if not self.num_targets or self.target_order == 'logits':
      return clean_logits
    return target_orders.malt_scores(
        lambda images: evaluate(logits_fn, images, key), problem.x,
        inputs.labels_of(problem.y), self.norm, self.unroll)

  def step_key(self, keys: jax.Array,
               step: jax.Array | int = 0) -> jax.Array | None:
    """Returns the key that a stochastic model takes, None for others."""
    if not self.stochastic:
      return None
    # To JAX's check for keys used twice, one of several is all of them.
    return jax.random.fold_in(jax.random.clone(keys)[0], step)

  def nth_attempt(self, problem: Problem, scores: jax.Array,
                  number: jax.Array | int) -> Problem:
    """Returns the problem of one attempt: its noise, restart and targets.

    Args:
      problem: of all attempts.
      scores: `[B, K]`, of `class_scores`.
      number: 0..num_attempts-1, a scalar or one per example.
    """
    number = jnp.broadcast_to(number, problem.x.shape[:1])
    problem = problem._replace(
        keys=jax.vmap(jax.random.fold_in)(problem.keys, number),
        restart=(number // max(self.num_targets, 1)).astype(jnp.int32))
    if not self.num_targets:
      return problem
    return problem._replace(targets=target_orders.ranked_classes(
        scores, number % self.num_targets + 2))

  def of_labels(self, problem: Problem, clean_logits: jax.Array) -> Problem:
    """Returns an ensemble's problem, with labels, as this attack takes it.

    Args:
      problem: with labels.
      clean_logits: `[B, K]` of the model on the clean images.
    """
    if not self.takes_logits:
      return problem
    return problem._replace(y=losses.unmasked(clean_logits, problem.x.dtype))


def target_classes(targets: Any) -> jax.Array | None:
  """Returns a call's targets if they are classes `[B]`, else None."""
  shape, dtype = getattr(targets, 'shape', ()), getattr(targets, 'dtype', None)
  if dtype is None or len(shape) != 1 or not jnp.issubdtype(
      dtype, jnp.integer):
    return None
  return jnp.asarray(targets)


def evaluate(logits_fn: LogitsFn, images: jax.Array,
             key: jax.Array | None = None) -> jax.Array:
  """Returns the logits `[B, K]` after checking their shape.

  Args:
    logits_fn: the model.
    images: `[B, ...]`.
    key: passed on to a stochastic model; None for all others.

  Raises:
    ValueError: unless the model takes these arguments and returns `[B, K]`,
      K >= 2, floating-point.
  """
  if key is None:
    check_call('logits_fn of a deterministic attack', logits_fn, images=images)
    logits = logits_fn(images)
  else:
    check_call('logits_fn of a stochastic attack', logits_fn, images=images,
               key=key)
    logits = logits_fn(images, key)
  expected = ('Expected logits_fn to return floating-point logits '
              f'[{images.shape[0]}, K], K >= 2, got ')
  if not isinstance(logits, jax.Array):
    raise ValueError(f'{expected}{type(logits).__name__}, no JAX array.')
  shape, dtype = logits.shape, logits.dtype
  if (len(shape) != 2 or shape[0] != images.shape[0] or shape[1] < 2
      or not jnp.issubdtype(dtype, jnp.floating)):
    raise ValueError(f'{expected}{dtype} {shape}.')
  return logits


def loss_of(loss: Callable[..., jax.Array] | None, logits: jax.Array,
            problem: Problem,
            targeted: Callable[..., jax.Array]) -> jax.Array:
  """Returns the loss `[B]` of logits, in the dtype of the images.

  Args:
    loss: (logits, y) -> `[B]`, or (logits, y, targets) -> `[B]` if the problem
      has targets; None for the cross-entropy, or `targeted`.
    logits: `[B, K]`.
    problem: with y and targets.
    targeted: what None stands for if the problem has targets.

  Raises:
    ValueError: if the loss does not take these arguments, or does not return
      `[B]`: a mean over the batch would do something else.
  """
  # In half precision a softmax is 1 long before its gradient vanishes.
  logits = losses.unmasked(logits, problem.x.dtype)
  if problem.targets is None:
    loss = loss or losses.cross_entropy
    check_call('the loss, without targets,', loss, logits=logits, y=problem.y)
    found = loss(logits, problem.y)
  else:
    loss = loss or targeted
    check_call('the loss, with targets,', loss, logits=logits, y=problem.y,
               targets=problem.targets)
    found = loss(logits, problem.y, problem.targets)
  found = jnp.asarray(found)
  if found.shape != logits.shape[:1]:
    raise ValueError('Expected the loss to return one value per image, '
                     f'{logits.shape[:1]}, got {found.shape}.')
  return found.astype(problem.x.dtype)


def finite_logits(y: Any, precision: jax.typing.DTypeLike) -> Any:
  """Returns logits `[B, K]` without infinities, anything else as it is.

  Args:
    y: of a problem.
    precision: that of the images, which the logits then have at least.
  """
  if (isinstance(y, jax.Array) and y.ndim == 2
      and jnp.issubdtype(y.dtype, jnp.floating)):
    return losses.unmasked(y, precision)
  return y


def margin_beyond(logits: jax.Array, problem: Problem) -> jax.Array:
  """Returns how far logits are beyond the boundary that is sought, `[B]`.

  It is the largest other logit minus the label's; of target classes the
  target's minus the largest other. In the dtype of the images.

  Args:
    logits: `[B, K]`.
    problem: with y and targets.
  """
  logits = losses.unmasked(logits, problem.x.dtype)
  targets = problem.targets
  margin = (-losses.margin(logits, inputs.labels_of(problem.y))
            if targets is None else losses.margin(logits, targets))
  return margin.astype(problem.x.dtype)


def seem_probabilities(logits: np.ndarray) -> bool:
  """Returns whether logits `[B, K]` look like what a softmax returns."""
  return bool(logits.min() > -1e-5 and logits.max() < 1 + 1e-5
              and np.abs(logits.sum(-1) - 1).max() < 1e-5)


NO_LOGITS = ('The model seems to return probabilities. Attacks need logits: a '
             'softmax hides gradients.')


def warn(result: AttackResult) -> None:
  """Warns of what makes a result doubtful, if its values are known."""
  if not inputs.is_concrete(result.logits):
    return
  logits = jax.device_get(result.logits)
  if seem_probabilities(logits):
    warnings.warn(NO_LOGITS, stacklevel=3)
  broken = int((jax.device_get(result.predictions) < 0).sum())
  if broken:
    warnings.warn(
        f'The logits or gradients are not finite for {broken} of {len(logits)} '
        'images: they count as not fooled, which is no robustness.',
        stacklevel=3)


def check_member(name: str, member: Any, **common: Any) -> None:
  """Raises ValueError for what is no attack that an ensemble can have.

  Args:
    name: of the attack.
    member: frozen dataclass that is an `Attack`.
    **common: settings that all of the ensemble have. An eps of None is that of
      all.
  """
  if not isinstance(name, str) or not isinstance(member, Attack) or not (
      dataclasses.is_dataclass(member) and member.__dataclass_params__.frozen):
    raise ValueError(f'Expected attack {name!r} to be an Attack, which is a '
                     f'frozen dataclass, got {member!r}.')
  for setting in (*common, 'num_steps'):
    if not hasattr(member, setting):
      raise ValueError(f'Expected attack {name!r} to have a setting {setting}.')
  for setting, expected in common.items():
    value = getattr(member, setting)
    if value != expected and (setting, value) != ('eps', None):
      raise ValueError(f'Expected {setting}={value!r} of attack {name!r} to '
                       f'be {expected!r}, as for all.')


def check_call(name: str, function: Callable, **arguments: Any) -> None:
  """Raises ValueError unless a function takes these arguments, by position."""
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return  # Some callables have none.
  try:
    signature.bind(*arguments.values())
  except TypeError as error:
    raise ValueError(f'Expected {name} to take ({", ".join(arguments)}): '
                     f'{error}.') from error


def num_classes(logits_fn: LogitsFn, x: ArrayLike,
                key: jax.Array | None = None) -> int:
  """Returns the K of a model's logits, without evaluating it."""
  return jax.eval_shape(
      lambda images: evaluate(logits_fn, images, key), x).shape[-1]


def is_fooled(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns whether the prediction is another than the label, `[B]`.

  Logits that predict nothing (see `losses.predicts`) fool nobody.
  """
  return losses.predicts(logits) & (jnp.argmax(logits, axis=-1) != labels)


def all_finite(values: jax.Array) -> jax.Array:
  """Returns whether all entries of each example are finite, `[B]`."""
  return jnp.all(jnp.isfinite(geometry.flat(values)), axis=-1)


def or_nan(mask: jax.Array, values: jax.Array) -> jax.Array:
  """Returns values `[B, ...]` where the example's mask is true, else NaN."""
  if inputs.is_concrete(mask) and bool(jnp.all(mask)):
    return values  # `jax_debug_nans` stops at any NaN that is computed.
  return geometry.where(mask, values, jnp.full_like(values, jnp.nan))


def freeze(settings: Any, *names: str) -> None:
  """Turns the named settings into floats, and `bounds` into two of them.

  Then the frozen dataclass is hashable whatever the caller passed, and its
  settings never change the dtype of the images: a NumPy float64 scalar would
  promote float32 images where x64 is on.

  Args:
    settings: frozen dataclass with `bounds`, in its `__post_init__`.
    *names: of the settings that are floats, or None.

  Raises:
    ValueError: unless `bounds` are a finite lower and higher value.
  """
  for name in names:
    value = getattr(settings, name)
    if value is not None:
      object.__setattr__(settings, name, float(value))
  bounds = tuple(float(bound) for bound in settings.bounds)
  if (len(bounds) != 2 or not bounds[0] < bounds[1]
      or not np.isfinite(bounds).all()):
    raise ValueError(f'Expected bounds={settings.bounds!r} to be two finite '
                     'values, low < high.')
  object.__setattr__(settings, 'bounds', bounds)


def _again(key):
  """Returns a model's key for one more pass with the same noise."""
  return None if key is None else jax.random.clone(key)


def _batch_size(state):
  return jax.tree.leaves(state)[0].shape[:1]
