"""Robust accuracy of a randomised model, measured as what it is: a mean.

A model that draws anew in every call is right about an image with some
probability. AutoAttack's version 'rand' decides by single passes: an iterate
that is wrong in the last of 20, and once more when its image is looked at, is
fooled for good, which may be luck; and as best iterate and step size follow
single losses, and an image that is fooled is not attacked further, the attack
is weaker than it could be. Here

- gradient, best iterate and step size follow the mean loss of several passes;
- every image is attacked to the end;
- Square compares candidate and incumbent under the same draws in every query,
  so that no lucky one is kept for ever;
- of the attacks' images, the one that is right least often under some keys is
  chosen, and what is reported is measured under others: the least of several
  noisy numbers is too low.
"""

from collections.abc import Sequence
import dataclasses
import functools
import typing
from typing import Any
from typing import Literal
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import apgd
from ferd_jax.attacks import attack
from ferd_jax.attacks import checks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import square
from ferd_jax.core import collectives
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate

Member = Literal['apgd-ce', 'apgd-dlr', 'square']
MEMBERS: tuple[Member, ...] = typing.get_args(Member)
CLEAN = 'clean'
_R, _S = parallels.REPLICATED, parallels.SHARDED
# What keys are drawn for, apart from the attacks.
_CHOICE_KEYS, _REPORT_KEYS = 2, 3


@dataclasses.dataclass(frozen=True)
class MeanAPGD(apgd.APGD):
  """Auto-PGD on the mean loss of `eot` passes, which also decides what is best.

  `apgd.APGD` with `eot` averages the gradient alone, as upstream: loss and
  prediction are those of the last pass. Logits are means here.
  """
  eot: int = 20
  keep: apgd.Keep = 'best'

  def _evaluate(self, logits_fn, problem, x, key):
    def summed_loss(images, key):
      logits = attack.evaluate(logits_fn, images, key)
      loss = attack.loss_of(self.loss, logits, problem, losses.targeted_dlr)
      return jnp.sum(loss), (loss, logits.astype(x.dtype))
    gradient_fn = jax.grad(summed_loss, has_aux=True)
    keys = jax.random.split(key, self.eot)
    def add(total, key):
      return jax.tree.map(jnp.add, total, gradient_fn(x, key)), None
    shapes = jax.eval_shape(gradient_fn, x, jax.random.clone(keys)[0])
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, start, keys)
    gradient, (loss, logits) = jax.tree.map(lambda leaf: leaf / self.eot, total)
    return loss, logits, gradient


@dataclasses.dataclass(frozen=True)
class MeanSquare(square.Square):
  """Square on the mean margin of `eot` passes, to the last query.

  In every query incumbent and candidate are evaluated under the same keys, new
  ones each time (common random numbers): their difference has less noise than
  either, and an incumbent that was lucky once is not kept for it.
  """
  eot: int = 20

  @property
  def stochastic(self) -> bool:
    """Whether `logits_fn` takes a key."""
    return True

  @property
  def step_cost(self) -> int:
    """Of a step, in forward passes."""
    return 2 * self.eot

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: square.SquareState, key: jax.Array | None = None
           ) -> square.SquareState:
    """Returns the state after the comparison of `state.candidate`."""
    assert key is not None  # It is stochastic.
    keys = jax.random.split(key, self.eot)
    new, fine = self._mean_margin(logits_fn, problem, state.candidate, keys)
    old, _ = self._mean_margin(logits_fn, problem, state.x_best,
                               jax.random.clone(keys))
    accepted = fine & ((new < old) | (state.iteration == 0))
    x_best = geometry.where(accepted, state.candidate, state.x_best)
    margin = jnp.where(accepted, new, old)
    return square.SquareState(
        iteration=state.iteration + 1,
        candidate=self._propose(problem, x_best, state.iteration),
        x_best=x_best, margin_best=margin, fooled=margin <= 0,
        finite=state.finite & fine)

  def done(self, state: square.SquareState) -> jax.Array:
    """Returns which examples further steps do not change, `[B]`."""
    return state.iteration >= self.num_steps

  def images(self, problem: attack.Problem,
             state: square.SquareState) -> jax.Array:
    """Returns the incumbents `[B, ...]`."""
    return attack.or_nan(state.finite, state.x_best)

  def _mean_margin(self, logits_fn, problem, images, keys):
    """Returns the mean of z_y - max_{j != y} z_j `[B]`, and if it is finite."""
    labels = inputs.labels_of(problem.y)
    def add(carry, key):
      total, fine = carry
      logits = attack.evaluate(logits_fn, images, key)
      margin = losses.margin(losses.unmasked(logits, total.dtype), labels)
      return (total + margin.astype(total.dtype),
              fine & losses.predicts(logits)), None
    start = (jnp.zeros_like(images, shape=images.shape[:1]),
             jnp.ones_like(images, bool, shape=images.shape[:1]))
    (total, fine), _ = jax.lax.scan(add, start, keys)
    return total / self.eot, fine


@dataclasses.dataclass(frozen=True)
class RandomisedResult:
  """What `Randomised` found about N images, m draws of each.

  Probabilities are estimates, shares of the m draws.

  Attributes:
    names: the attacks, in order.
    labels: int32 `[N]`.
    images: `[N, ...]`, of each the one of an attack, or the clean one, that was
      right least often under the keys of the choice.
    chosen: int32 `[N]`, the position of that attack in `names`, -1 for clean.
    correct: bool `[m, N]`, whether the prediction on `images` was right under
      each of the keys of the report, which nothing was chosen by.
    clean_correct: bool `[m, N]`, the same of clean images.
    correct_by_attack: by attack bool `[m, N]`, the same of its own images.
    warnings: what makes the numbers doubtful.
    settings: of the attacks.
  """
  names: tuple[str, ...]
  labels: np.ndarray
  images: np.ndarray
  chosen: np.ndarray
  correct: np.ndarray
  clean_correct: np.ndarray
  correct_by_attack: dict[str, np.ndarray]
  warnings: list[str]
  settings: dict[str, Any]

  @property
  def probabilities(self) -> np.ndarray:
    """Of being right about each image, `[N]`."""
    return self.correct.mean(0)

  @property
  def robust_accuracy(self) -> float:
    """The mean of the probabilities."""
    return float(self.correct.mean())

  @property
  def standard_error(self) -> float:
    """Of the robust accuracy on these images, by the m draws of the model.

    It is that of the mean of m accuracies, so that it holds for draws that
    images share, too.
    """
    return _standard_error(self.correct)

  @property
  def clean_accuracy(self) -> float:
    """The mean probability of being right about a clean image."""
    return float(self.clean_correct.mean())

  @property
  def clean_standard_error(self) -> float:
    """Of the clean accuracy, by the draws."""
    return _standard_error(self.clean_correct)

  @property
  def ever_wrong(self) -> float:
    """The share of images that are predicted wrong in one of m draws."""
    return float(1 - self.correct.all(0).mean())

  @property
  def clean_ever_wrong(self) -> float:
    """The same of clean images, which asking again and again breaks, too."""
    return float(1 - self.clean_correct.all(0).mean())

  @property
  def accuracy_by_attack(self) -> dict[str, float]:
    """The mean probability of being right about each attack's own images."""
    return {name: float(correct.mean())
            for name, correct in self.correct_by_attack.items()}

  def table(self) -> str:
    """Returns accuracies, errors and what is wrong once, in Markdown."""
    rows = {CLEAN: self.clean_correct, **self.correct_by_attack,
            'the worst of each image': self.correct}
    lines = [', '.join(f'{name} {value}'
                       for name, value in self.settings.items()), '',
             '| images of | accuracy | standard error | wrong at least once in '
             f'{len(self.correct)} |', '|---|---|---|---|']
    lines += [f'| {name} | {correct.mean():.2%} | '
              f'{_standard_error(correct):.2%}'
              f' | {1 - correct.all(0).mean():.2%} |'
              for name, correct in rows.items()]
    return '\n'.join(lines + [f'Warning: {text}' for text in self.warnings])

  def __repr__(self) -> str:
    return (f'RandomisedResult({len(self.labels)} images, robust accuracy '
            f'{self.robust_accuracy:.2%} +- {self.standard_error:.2%}, clean '
            f'{self.clean_accuracy:.2%})')


def _standard_error(correct):
  """Returns the standard error of the mean of m accuracies, bool `[m, N]`."""
  return float(correct.mean(1).std(ddof=1) / len(correct) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Randomised:
  """Attacks a randomised model; call it as `randomised(logits_fn, key, x, y)`.

  Attributes:
    eps: radius, in the unit of the images.
    norm: one of `geometry.NORMS`.
    attacks: of `MEMBERS`. 'square' takes most of the time and rarely finds
      more than APGD where there are gradients.
    eot: passes that a loss is the mean of.
    num_iterations: of each APGD.
    num_queries: of Square, whose schedule is spread over them.
    num_draws: m, keys by which an image is chosen, and as many others by which
      what is reported is measured.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for a setting out of range.

  References: Athalye et al. 2018, arXiv:1707.07397 and 1802.00420 (means over
    draws); Croce & Hein 2020, arXiv:2003.01690, Sec. 5.1; GitHub
    fra31/auto-attack, issues 15 and 56, pull requests 104 and 105.
  """
  eps: float
  norm: geometry.Norm = 'Linf'
  attacks: Sequence[Member] = MEMBERS
  eot: int = 20
  num_iterations: int = 100
  num_queries: int = 1000
  num_draws: int = 100
  bounds: tuple[float, float] = (0., 1.)

  def __post_init__(self):
    validate.non_negative(eps=self.eps)
    validate.one_of(geometry.NORMS, norm=self.norm)
    validate.count(eot=self.eot, num_iterations=self.num_iterations,
                   num_queries=self.num_queries)
    validate.count(2, num_draws=self.num_draws)
    attack.freeze(self, 'eps')
    if not isinstance(self.attacks, tuple | list):
      raise ValueError(f'Expected attacks={self.attacks!r} to be a tuple.')
    object.__setattr__(self, 'attacks', tuple(self.attacks))
    for name in self.attacks:
      validate.one_of(MEMBERS, attack=name)
    if not self.attacks or len(set(self.attacks)) < len(self.attacks):
      raise ValueError(f'Expected attacks={self.attacks} to name some, each '
                       'once.')

  def members(self) -> dict[str, attack.Attack]:
    """Returns the attacks by name, in order."""
    common: dict[str, Any] = dict(
        eps=self.eps, norm=self.norm, bounds=self.bounds, eot=self.eot)
    ascent = functools.partial(MeanAPGD, **common,
                               num_iterations=self.num_iterations,
                               large_radii=self.norm == 'L1')
    every: dict[str, attack.Attack] = {
        'apgd-ce': ascent(loss=losses.cross_entropy),
        'apgd-dlr': ascent(loss=losses.dlr),
        'square': MeanSquare(**common, num_queries=self.num_queries,
                             rescale_schedule=True)}
    return {name: every[name] for name in self.attacks}

  def __call__(self, logits_fn: attack.LogitsFn, key: jax.Array,
               x: ArrayLike, y: ArrayLike, *, batch_size: int = 256,
               shared_noise: bool = False,
               progress: bool | reporting.Reporter = True,
               parallel: parallels.Parallel | None = None
               ) -> RandomisedResult:
    """Attacks all images and says how often the model is right.

    Args:
      logits_fn: (images `[B, ..., channels]`, key) -> logits `[B, K]`, K >= 2;
        as `jax.tree_util.Partial(apply_fn, variables)` its variables are an
        argument of what is compiled.
      key: one PRNG key.
      x: float images `[N, ..., channels]` within `bounds`.
      y: int labels `[N]`.
      batch_size: images at a time, over all devices.
      shared_noise: whether a batch is called with one key, for models that
        draw weights, of which else each image has its own. Results then depend
        on the batches; without it on nothing but the key and the images.
      progress: whether to show on stderr how far it is, or a reporter.
      parallel: mapping over devices; default: all.

    Raises:
      ValueError: for inputs or a model that would make the numbers wrong, such
        as logits that are not finite.
    """
    parallel = parallel or parallels.create()
    validate.count(batch_size=batch_size)
    validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
    if shared_noise and parallel.num_devices > 1:
      raise ValueError('Expected one device for shared_noise=True, as devices '
                       f'share no draw, got {parallel.num_devices}.')
    images, labels = jax.device_get((
        inputs.image_array('x', x), losses.wide_enough(inputs.array('y', y))))
    checks.data_set(images, labels, self.eps, self.norm, self.bounds)
    key = inputs.one_key(key)
    num_classes = attack.num_classes(logits_fn, images[:1], key)
    checks.labels(labels, num_classes)
    reporter = (reporting.TERMINAL if progress is True else
                progress or reporting.SILENT)
    with inputs.own_transfers():
      return _Session(self, logits_fn, key, images, labels.astype(np.int32),
                      batch_size, shared_noise, parallel, reporter).run()


class _Session:
  """One call of `Randomised`."""

  def __init__(self, settings, logits_fn, key, x, y, batch_size, shared,
               parallel, reporter):
    self._settings, self._key, self._x, self._y = settings, key, x, y
    self._batch_size, self._shared = batch_size, shared
    self._parallel, self._reporter = parallel, reporter
    model = (logits_fn if isinstance(logits_fn, jax.tree_util.Partial)
             else jax.tree_util.Partial(logits_fn))
    self._original, self._model = model, parallel.replicate(model)

  def run(self):
    """Returns the result."""
    settings = self._settings
    # Under the keys of the report, which choose nothing: with a radius of 0 it
    # is what is reported.
    clean = self._correct(self._x, _REPORT_KEYS)
    first, second = self._under_two_keys()
    notes = checks.layout(self._x.shape) + checks.outputs(first)
    notes += checks.clean_accuracy(clean.mean(), first.shape[-1])
    found = {name: self._attack(name, member)
             for name, member in settings.members().items()}
    # Under the same keys for all: what differs is the images alone.
    shares = np.stack([self._correct(images, _CHOICE_KEYS).mean(0)
                       for images in (self._x, *found.values())])
    chosen = shares.argmin(0)
    every = np.stack([self._x, *found.values()])
    images = every[chosen, np.arange(len(self._x))]
    if (clean == clean[:1]).all() and np.array_equal(first, second):
      notes.append('The model gives the same logits under every key; '
                   'AutoAttack is for models that are not randomised.')
    for note in notes:
      warnings.warn(note, stacklevel=3)
    return RandomisedResult(
        names=tuple(found), labels=self._y, images=images,
        chosen=(chosen - 1).astype(np.int32),
        correct=self._correct(images, _REPORT_KEYS), clean_correct=clean,
        correct_by_attack={name: self._correct(own, _REPORT_KEYS)
                           for name, own in found.items()},
        warnings=notes, settings={
            'norm': settings.norm, 'eps': settings.eps,
            'attacks': ', '.join(found), 'eot': settings.eot,
            'iterations': settings.num_iterations,
            'queries': settings.num_queries, 'draws': settings.num_draws,
            'bounds': settings.bounds, 'images': len(self._y)})

  def _attack(self, name, member):
    """Returns an attack's images `[N, ...]`."""
    init, step, last = self._compiled(member)
    key = jax.random.fold_in(self._key, 100 + MEMBERS.index(name))
    found = []
    with self._reporter.task(name, len(self._x), 'image') as task:
      for images, labels, indices, count in self._batches(self._x):
        given = self._parallel.shard((images, labels, indices))
        state = init(given, self._parallel.replicate(key))
        for number in range(member.num_steps):
          state = step(self._model, given, state, *map(
              self._parallel.replicate,
              (key, jax.random.fold_in(key, number))))
        images = self._parallel.gather(last(
            given, state, self._parallel.replicate(key)))[:count]
        broken = indices[:count][
            ~np.isfinite(images).reshape(count, -1).all(-1)]
        if len(broken):
          raise ValueError(
              f'{name}: logits or gradients are not finite for adversarial '
              f'images of examples {broken[:10].tolist()} ({len(broken)} of '
              f'{count}).')
        found.append(images)
        task.advance(count)
    return np.concatenate(found)

  def _compiled(self, member):
    """Returns an attack's start, step and images, compiled."""
    def problem_of(given, key):
      images, labels, indices = given
      return attack.Problem(
          images, labels, None,
          jnp.full_like(images, member.eps, shape=labels.shape),
          collectives.example_keys(key, indices))
    def init(given, key, *, axis_name=None):
      del axis_name  # Examples do not interact, here and below.
      return member.init(problem_of(given, key))
    def step(model, given, state, key, step_key, *, axis_name=None):
      del axis_name
      problem = problem_of(given, key)
      return member.step(self._noisy(model, problem.keys), problem, state,
                         step_key)
    def last(given, state, key, *, axis_name=None):
      del axis_name
      return member.images(problem_of(given, key), state)
    compiled = self._parallel.compile
    return (compiled(init, (_S, _R), _S),
            compiled(step, (_R, _S, _S, _R, _R), _S),
            compiled(last, (_S, _S, _R), _S))

  def _noisy(self, model, keys):
    """Returns (images, key) -> logits, with draws of its own for each image.

    Args:
      model: (images, key) -> logits.
      keys: of the images, `[B]`.
    """
    if self._shared:
      return lambda images, key: model(images, key)
    def logits_fn(images, key):
      bits = jax.random.bits(key, (), jnp.uint32)
      # Each pass folds them anew, with bits of its own.
      own = jax.vmap(jax.random.fold_in, (0, None))(jax.random.clone(keys),
                                                    bits)
      return jax.vmap(lambda image, key: model(image[None], key)[0])(
          images, own)
    return logits_fn

  def _correct(self, images, purpose):
    """Returns which images are predicted right under each key, `[m, N]`."""
    key = jax.random.fold_in(self._key, purpose)
    numbers = range(self._settings.num_draws)
    found = []
    for batch, labels, indices, count in self._batches(images):
      given = self._parallel.shard((batch, labels, indices))
      rows = [self._look(self._model, given, *map(
          self._parallel.replicate, (key, jax.random.fold_in(key, number))))
              for number in numbers]
      right, fine = (np.stack([self._parallel.gather(row[i])[:count]
                               for row in rows]) for i in range(2))
      if not fine.all():
        raise ValueError(f'Expected finite logits; {int((~fine).any(0).sum())} '
                         f'of {count} images have others.')
      found.append(right)
    return np.concatenate(found, axis=1)

  def _under_two_keys(self):
    """Returns the first images' logits under two keys, each `[B, K]`."""
    batch = jnp.asarray(self._x[:self._batch_size])
    return [np.asarray(self._original(batch, jax.random.key(seed)))
            for seed in range(2)]

  @functools.cached_property
  def _look(self):
    def look(model, given, key, draw_key, *, axis_name=None):
      del axis_name
      images, labels, indices = given
      logits = attack.evaluate(
          self._noisy(model, collectives.example_keys(key, indices)), images,
          draw_key)
      return (jnp.argmax(logits, axis=-1) == labels, losses.predicts(logits))
    return self._parallel.compile(look, (_R, _S, _R, _R), (_S, _S))

  def _batches(self, images):
    """Yields images, labels, indices and how many count, all of one shape."""
    size = self._batch_size
    for first in range(0, len(images), size):
      batch, labels = images[first:first + size], self._y[first:first + size]
      indices = np.arange(first, first + size, dtype=np.int32)
      yield (np.resize(batch, (size, *batch.shape[1:])),
             np.resize(labels, size), indices, len(batch))
