"""Attacks compiled for a model whose variables are an argument.

On accelerators an attack is one compiled function with a rolled loop. On CPU
XLA is slow at convolutions in rolled loops and slow to compile unrolled ones,
so there one step is compiled and Python takes it again and again.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from ferd_jax.attacks import attack as attacks
from ferd_jax.attacks import inputs
from ferd_jax.attacks import results
from ferd_jax.core import collectives
from ferd_jax.core import loops
from ferd_jax.core import parallel as parallels

_R, _S = parallels.REPLICATED, parallels.SHARDED


class _Given(NamedTuple):
  """What a problem is made of, in the layout of the mapping."""
  key: Any  # These are arrays, or their layout.
  x: Any
  y: Any
  targets: Any
  eps: Any
  x_init: Any
  indices: Any
  attempt: Any = None  # of several, with
  scores: Any = None  # of classes on the clean images


_GIVEN = _Given(key=_R, x=_S, y=_S, targets=_S, eps=_R, x_init=_S, indices=_S,
                attempt=_R, scores=_S)


def jit(attack: attacks.Attack, apply_fn: Callable[..., Any],
        parallel: parallels.Parallel | None = None) -> 'CompiledAttack':
  """Returns the attack compiled for a model with variables.

    attacked = attacks.jit(attack, model.apply)
    x_adv = attacked(variables, key, x, y)

  Other variables, keys, images and radii of the same shapes do not compile
  again.

  Args:
    attack: to compile.
    apply_fn: (variables, images `[B, ...]`) -> logits `[B, K]`; with a key in
      third place for stochastic models (`APGD` with eot > 0).
    parallel: mapping over devices, whose layout arguments and results then
      have; default: the first device of this process.
  """
  return CompiledAttack(
      attack, apply_fn,
      parallel or parallels.create('jit', tuple(jax.local_devices()[:1])))


class CompiledAttack:
  """An attack on `apply_fn`, called with variables; see `jit`."""

  def __init__(self, attack: attacks.Attack,
               apply_fn: Callable[..., Any],
               parallel: parallels.Parallel):
    self._attack = attack
    self._apply_fn = apply_fn
    self._parallel = parallel
    # Uncommitted on one device: the caller's arrays may be on another.
    self._place = (jax.device_put if parallel.mode == 'jit' else
                   parallel.replicate)
    self._num_classes: dict[Any, int] = {}
    self._was_run = False

  def __call__(self, variables: Any, key: jax.Array, x: ArrayLike, y: Any,
               targets: Any = None, *, eps: ArrayLike | None = None,
               x_init: ArrayLike | None = None,
               indices: ArrayLike | None = None) -> jax.Array:
    """Returns adversarial images.

    Args:
      variables: of the model, any pytree of arrays.
      key: one PRNG key.
      x: as for `Attack.__call__`, as are y, targets and x_init.
      y: labels.
      targets: of a targeted loss.
      eps: radius in place of the setting's, a scalar.
      x_init: to start from.
      indices: int `[B]`, of the images in their data set, that choose their
        noise; default, on one device: 0..B-1.

    Raises:
      ValueError: as for `Attack.__call__`. On several devices values are not
        looked at, as under `jit`, but there must be indices.
    """
    if inputs.is_tracing(variables, key, x, y, targets, eps, x_init, indices):
      return self._attack(
          functools.partial(self._apply_fn, variables),
          self._keys(key, indices), x, y, targets, eps=eps, x_init=x_init)
    given = self._given(variables, key, x, y, targets, eps, x_init, indices)
    return self._images_of(variables, given)

  def run(self, variables: Any, key: jax.Array, x: ArrayLike, y: Any,
          targets: Any = None, *, eps: ArrayLike | None = None,
          x_init: ArrayLike | None = None, indices: ArrayLike | None = None
          ) -> results.AttackResult:
    """Returns the images and what they achieve; arguments as for the call.

    On one device the first call gives the UserWarnings of `Attack.run`.
    """
    if inputs.is_tracing(variables, key, x, y, targets, eps, x_init, indices):
      return self._attack.run(
          functools.partial(self._apply_fn, variables),
          self._keys(key, indices), x, y, targets, eps=eps, x_init=x_init)
    given = self._given(variables, key, x, y, targets, eps, x_init, indices)
    return self._told(
        self._result(variables, given, self._images_of(variables, given)))

  def record(self, variables: Any, key: jax.Array, x: ArrayLike, y: Any,
             targets: Any = None, *, eps: ArrayLike | None = None,
             x_init: ArrayLike | None = None, indices: ArrayLike | None = None
             ) -> tuple[results.AttackResult, results.History]:
    """Returns what `run` does, and losses and queries on the way."""
    if inputs.is_tracing(variables, key, x, y, targets, eps, x_init, indices):
      return self._attack.record(
          functools.partial(self._apply_fn, variables),
          self._keys(key, indices), x, y, targets, eps=eps, x_init=x_init)
    given = self._given(variables, key, x, y, targets, eps, x_init, indices)
    if loops.unrolled_here():
      images, history = self._step_by_step(variables, given, recorded=True)
    else:
      images, history = self._whole_recorded(variables, given)
    return self._told(self._result(variables, given, images)), history

  def _told(self, result):
    """Returns the result, the first with warnings."""
    if not self._was_run and self._parallel.mode == 'jit':
      attacks.warn(result)
    self._was_run = True  # Looking waits for the device: once is enough.
    return result

  def _keys(self, key, indices):
    return key if indices is None else collectives.example_keys(
        inputs.one_key(key), indices)

  def _given(self, variables, key, x, y, targets, eps, x_init, indices):
    """Returns the arguments after the checks of `Attack.check`."""
    if eps is not None:
      eps = _one_radius(eps)
    self._attack.check_targets(targets)
    key = inputs.one_key(key)
    if self._parallel.mode == 'jit':  # Else the caller has laid out arrays.
      y, targets = inputs.arrays('y', y), inputs.arrays('targets', targets)
      x_init = None if x_init is None else inputs.array('x_init', x_init)
      x = inputs.checked_images(x, y=y, targets=targets, x_init=x_init)
      self._check_values(variables, key, x, y, targets, x_init)
      y = inputs.on_device(y)
      x_init = None if x_init is None else x_init.astype(x.dtype)
      indices = self._checked_indices(indices, len(x))
    elif indices is None:
      raise ValueError('Expected indices, laid out as x is over devices.')
    eps = _one_radius(self._attack.radius(eps, x.shape[1:]))
    inputs.checked_radii(eps, x.shape[1:], self._attack.norm,
                         self._attack.bounds)
    if isinstance(eps, np.ndarray):
      eps = self._place(eps.astype(x.dtype))
    return inputs.on_device(_Given(key, x, y, targets, eps.astype(x.dtype),
                                   x_init, indices))

  def _checked_indices(self, indices, batch_size):
    """Returns indices `[B]`, by default 0..B-1, as an array."""
    if indices is None:
      return np.arange(batch_size, dtype=np.int32)
    indices = inputs.array('indices', indices)
    if (indices.shape != (batch_size,)
        or not jnp.issubdtype(indices.dtype, jnp.integer)):
      raise ValueError(f'Expected indices to be {batch_size} whole numbers, '
                       f'one per image, got {indices.dtype} {indices.shape}.')
    return indices

  def _check_values(self, variables, key, x, y, targets, x_init):
    """Raises ValueError for what is no valid input."""
    shapes = (x.shape, jax.tree.structure(variables),
              *map(np.shape, jax.tree.leaves(variables)))
    if shapes not in self._num_classes:  # Tracing a model takes a while.
      self._num_classes[shapes] = attacks.num_classes(
          functools.partial(self._apply_fn, variables), x,
          key if self._attack.stochastic else None)
    classes = self._num_classes[shapes]
    self._attack.check_num_classes(classes)
    inputs.valid_examples(x, y, targets, classes, self._attack.bounds, x_init)

  def _images_of(self, variables, given):
    """Returns adversarial images, NaN for examples that are no valid input."""
    if not loops.unrolled_here():
      return self._whole(variables, given)
    return self._step_by_step(variables, given)[0]

  def _step_by_step(self, variables, given, recorded=False):
    """Returns the images and, if it is recorded, the history."""
    history = None
    if self._attack.num_attempts == 1 and not self._attack.num_targets:
      if recorded:
        history = self._history(given)
      images, history = self._solve(variables, given, history)
    else:
      images, history = self._solve_attempts(variables, given, recorded)
    if self._parallel.mode != 'jit':  # Else all were looked at.
      images = self._masked(variables, given, images)
    return images, history

  def _solve(self, variables, given, history, fooled=None):
    """Returns what one attempt finds, one compiled step after the other."""
    state = self._init(given)
    for i in range(self._attack.num_steps):
      number = self._place(np.int32(i))
      if history is not None:
        history = self._observe(variables, state, number, given, history,
                                fooled)
      state = self._step(variables, state, number, given)
    return self._images(state, given), history

  def _solve_attempts(self, variables, given, recorded):
    """Returns the images of all attempts, merged, and the history."""
    clean = self._logits(variables, given, given.x)
    scores = clean
    if self._attack.target_order != 'logits':
      scores = self._scores(variables, given, clean)
    images, fooled = given.x, self._is_fooled(clean, given)
    whole = self._whole_history(given) if recorded else None
    for number in range(self._attack.num_attempts):
      attempt = self._place(np.int32(number))
      nth = given._replace(attempt=attempt, scores=scores)
      found, history = self._solve(
          variables, nth, self._history(given) if recorded else None, fooled)
      logits = self._logits(variables, given, found)
      images, fooled = self._merge(images, found, fooled, logits, given)
      if recorded:
        whole = self._join(whole, history, attempt)
    return images, whole

  def _problem(self, given):
    problem = attacks.Problem(
        given.x, attacks.finite_logits(given.y, given.x.dtype), given.targets,
        jnp.broadcast_to(given.eps, given.x.shape[:1]),
        collectives.example_keys(given.key, given.indices), given.x_init)
    if given.attempt is None:
      return problem
    return self._attack.nth_attempt(problem, given.scores, given.attempt)

  def _evaluation_key(self, key, indices):
    """Returns the key that `Attack` evaluates images with, or None."""
    if not self._attack.stochastic:
      return None
    return self._attack.step_key(collectives.example_keys(key, indices))

  def _compile(self, function, in_specs):
    def on_shard(*args, axis_name=None):
      del axis_name  # Examples do not interact.
      return function(*args)
    return self._parallel.compile(on_shard, in_specs, _S)

  @functools.cached_property
  def _whole(self):
    def whole(variables, given):
      return self._attack(
          functools.partial(self._apply_fn, variables),
          collectives.example_keys(given.key, given.indices), given.x, given.y,
          given.targets, eps=given.eps, x_init=given.x_init)
    return self._compile(whole, (_R, _GIVEN))

  @functools.cached_property
  def _init(self):
    return self._compile(
        lambda given: self._attack.init(self._problem(given)), (_GIVEN,))

  @functools.cached_property
  def _step(self):
    def step(variables, state, i, given):
      problem = self._problem(given)
      return self._attack.step(
          functools.partial(self._apply_fn, variables), problem, state,
          self._attack.step_key(problem.keys, i))
    return self._compile(step, (_R, _S, _R, _GIVEN))

  @functools.cached_property
  def _images(self):
    return self._compile(
        lambda state, given: self._attack.images(self._problem(given), state),
        (_S, _GIVEN))

  @functools.cached_property
  def _logits(self):
    def logits(variables, given, x):
      return attacks.evaluate(
          functools.partial(self._apply_fn, variables), x,
          self._evaluation_key(given.key, given.indices))
    return self._compile(logits, (_R, _GIVEN, _S))

  @functools.cached_property
  def _is_fooled(self):
    return self._compile(
        lambda logits, given: self._attack.succeeds(
            logits, self._problem(given)), (_S, _GIVEN))

  @functools.cached_property
  def _merge(self):
    def merge(images, found, fooled, logits, given):
      problem = self._problem(given)
      return self._attack.merge(problem, images, fooled, found,
                                self._attack.succeeds(logits, problem))
    return self._compile(merge, (_S, _S, _S, _S, _GIVEN))

  @functools.cached_property
  def _scores(self):
    def scores(variables, given, clean_logits):
      return self._attack.class_scores(
          functools.partial(self._apply_fn, variables), self._problem(given),
          clean_logits, self._evaluation_key(given.key, given.indices))
    return self._compile(scores, (_R, _GIVEN, _S))

  @functools.cached_property
  def _history(self):
    return self._compile(
        lambda given: self._attack.no_history(self._problem(given)), (_GIVEN,))

  @functools.cached_property
  def _whole_history(self):
    return self._compile(
        lambda given: self._attack.no_history(
            self._problem(given), self._attack.num_attempts), (_GIVEN,))

  @functools.cached_property
  def _observe(self):
    def observe(variables, state, i, given, history, fooled):
      problem = self._problem(given)
      if fooled is None:
        fooled = jnp.zeros_like(given.indices, bool)
      return self._attack.observe(
          functools.partial(self._apply_fn, variables), problem, state,
          history, i, fooled, self._attack.step_key(problem.keys, i))
    return self._compile(observe, (_R, _S, _R, _GIVEN, _S, _S))

  @functools.cached_property
  def _join(self):
    return self._compile(
        lambda history, attempt, number: self._attack.join(
            history, attempt, number), (_S, _S, _R))

  @functools.cached_property
  def _whole_recorded(self):
    def whole(variables, given):
      _, images, _, history = self._attack._attack(
          functools.partial(self._apply_fn, variables),
          collectives.example_keys(given.key, given.indices), given.x, given.y,
          given.targets, given.eps, given.x_init, recorded=True)
      return images, history
    return self._compile(whole, (_R, _GIVEN))

  @functools.cached_property
  def _masked(self):
    def masked(variables, given, images):
      return attacks.or_nan(self._valid(variables, given), images)
    return self._compile(masked, (_R, _GIVEN, _S))

  @functools.cached_property
  def _result(self):
    def result(variables, given, images):
      return self._attack.result(
          functools.partial(self._apply_fn, variables), self._problem(given),
          images, self._valid(variables, given),
          self._evaluation_key(given.key, given.indices))
    return self._compile(result, (_R, _GIVEN, _S))

  def _valid(self, variables, given):
    """Returns which examples are valid input, `[B]`, under `jit`."""
    return self._attack.check(
        functools.partial(self._apply_fn, variables),
        collectives.example_keys(given.key, given.indices), given.x, given.y,
        given.targets, given.eps, given.x_init)[1]


def _one_radius(eps):
  """Returns eps as an array; raises ValueError for several."""
  eps = inputs.array('eps', eps)
  if eps.shape:
    raise ValueError(f'Expected eps to be one radius, got shape {eps.shape}.')
  return eps
