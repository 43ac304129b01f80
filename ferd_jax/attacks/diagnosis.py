"""Is a robust accuracy to be believed? The checks that reviewers ask for.

A model whose gradients are masked withstands attacks that follow them, and is
not robust for it. Each check compares two attacks of which it is known which
should find more, or looks at what no model should do.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import apgd
from ferd_jax.attacks import ascent
from ferd_jax.attacks import attack as attacks
from ferd_jax.attacks import checks
from ferd_jax.attacks import compiled
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import saved
from ferd_jax.attacks import square
from ferd_jax.core import collectives
from ferd_jax.core import digests
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate

_POINT = 0.01  # of accuracy that two attacks may differ by chance
_DARK = 0.05  # of the range: the largest pixel of images divided twice
_ALIKE = 5e-3  # normalised logits of different images, from their mean
_VARIATION = 1e-4  # of normalised logits between calls
_RETRACED = 1e-2  # the same between traces, which accelerators round otherwise
_DEPENDENCE = 1e-3  # of logits on the rest of a batch, of the largest
_TINY_NOISE, _UNSTABLE = 0.01, 0.05  # of eps, and what it may do to logits
_NO_GRADIENTS = 0.05  # of the images
_STEPS, _LONGER = 20, 100  # of PGD
_WIDER = 2, 4  # times eps
_UNBOUNDED = 200  # steps, with any image allowed
_TINY_DRAWS = 10  # of noise far below eps, at most
_R, _S = parallels.REPLICATED, parallels.SHARDED


class NothingToAttack(ValueError):
  """A model that is right about none of the images."""


@dataclasses.dataclass(frozen=True)
class Check:
  """One check of a diagnosis.

  Attributes:
    name: of it.
    value: what was measured; None, from a file, if that was no number.
    bound: what the value has to be, as text.
    passed: whether it is.
    meaning: what it says if it is not.
  """
  name: str
  value: float | None
  bound: str
  passed: bool
  meaning: str

  @property
  def verdict(self) -> str:
    """'ok' or 'FAILED'."""
    return 'ok' if self.passed else 'FAILED'


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What `diagnose` found.

  Attributes:
    checks: in the order in which they were made.
    num_images: that are classified right, which were attacked.
    norm: of the attacks.
    eps: radius.
    accuracies: robust accuracies among these images, by attack.
  """
  checks: tuple[Check, ...]
  num_images: int
  norm: geometry.Norm
  eps: float
  accuracies: dict[str, float]

  def __getitem__(self, name: str) -> Check:
    """Returns the check of that name."""
    return {check.name: check for check in self.checks}[name]

  @property
  def failed(self) -> tuple[str, ...]:
    """The names of the checks that did not pass."""
    return tuple(check.name for check in self.checks if not check.passed)

  @property
  def sound(self) -> bool:
    """Whether all checks passed."""
    return not self.failed

  def table(self) -> str:
    """Returns the checks as a Markdown table, and what failed ones mean."""
    lines = [
        f'{self.num_images} images, {self.norm} eps {self.eps:.5g}. Left by '
        + ', '.join(f'{name} {value:.2%}'
                    for name, value in self.accuracies.items()),
        '', '| check | value | bound | verdict |', '|---|---|---|---|']
    lines += [f'| {check.name} | '
              f'{"-" if check.value is None else format(check.value, ".4g")} | '
              f'{check.bound} | {check.verdict} |' for check in self.checks]
    notes = [f'{check.name}: {check.meaning}' for check in self.checks
             if not check.passed]
    return '\n'.join(lines + [''] * bool(notes) + notes)

  def json_values(self) -> dict[str, Any]:
    """Returns all of it as JSON values, for `from_json`."""
    return dataclasses.asdict(self) | {
        'checks': [dataclasses.asdict(check) for check in self.checks]}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Diagnosis':
    """Returns what `json_values` is of."""
    return cls(**{**values, 'checks': tuple(
        Check(**check) for check in values['checks'])})

  def __repr__(self) -> str:
    what = (f'failed: {", ".join(self.failed)}' if self.failed
            else 'all passed')
    return (f'Diagnosis({len(self.checks)} checks on {self.num_images} images, '
            f'{self.norm} eps {self.eps:.4g}, {what})')


def diagnose(logits_fn: attacks.LogitsFn, key: jax.Array, x: ArrayLike,
             y: ArrayLike, eps: float, *, norm: geometry.Norm = 'Linf',
             bounds: tuple[float, float] = (0., 1.), stochastic: bool = False,
             num_images: int = 64, num_queries: int = 1000,
             num_draws: int = 100, batch_size: int = 64,
             progress: bool | reporting.Reporter = False,
             parallel: parallels.Parallel | None = None) -> Diagnosis:
  """Returns whether attacks on a model mean what they seem to.

  It looks at the first images that the model classifies right, and takes about
  2,000 passes of each: PGD with 1, 20 and 100 steps, with 20 at 2 and 4 eps,
  and with 200 at any distance; APGD with 100, all on the cross-entropy; Square;
  and noise. Robust accuracies may differ by a point or an image, whichever is
  more, before a check fails.

  Args:
    logits_fn: images `[B, ..., channels]` -> logits `[B, K]`, as for
      `AutoAttack`: as `jax.tree_util.Partial(apply_fn, variables)` its
      variables are an argument of what is compiled.
    key: one PRNG key.
    x: float images `[N, ..., channels]` within `bounds`; 64 to 256 will do.
    y: int labels `[N]`.
    eps: radius, in the unit of the images.
    norm: of `geometry.NORMS`.
    bounds: lowest and highest pixel value.
    stochastic: whether logits_fn is called as `logits_fn(images, key)`. It is
      then looked at under one key, and one check says what another changes.
    num_images: how many at most.
    num_queries: of Square.
    num_draws: of noise.
    batch_size: images at a time, over all devices.
    progress: whether to show on stderr how far it is, or a reporter.
    parallel: mapping over devices; default: the first of this process.

  Raises:
    ValueError: for images, labels or a radius that are none, a model that
      returns no logits `[B, K]` or none that are finite, or (NothingToAttack)
      one that classifies no image right.

  References: Athalye et al. 2018, arXiv:1802.00420, Sec. 3.1; Carlini et al.
    2019, arXiv:1902.06705; Pintor et al. 2022, arXiv:2106.09947 (unavailable
    gradients, unstable predictions, unconstrained attacks).
  """
  validate.count(num_images=num_images, num_queries=num_queries,
                 num_draws=num_draws, batch_size=batch_size)
  validate.one_of(geometry.NORMS, norm=norm)
  validate.non_negative(eps=eps)
  parallel = parallel or parallels.create(
      'jit', tuple(jax.local_devices()[:1]))
  validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
  images, labels = jax.device_get((
      inputs.image_array('x', x), losses.wide_enough(inputs.array('y', y))))
  checks.data_set(images, labels, eps, norm, bounds)
  key = inputs.one_key(key)
  model = (logits_fn if isinstance(logits_fn, jax.tree_util.Partial)
           else jax.tree_util.Partial(logits_fn))
  reporter = (reporting.TERMINAL if progress is True else
              progress or reporting.SILENT)
  with inputs.own_transfers():
    return _Examination(model, key, images, labels, float(eps), norm, bounds,
                        stochastic, batch_size, parallel).run(
                            num_images, num_queries, num_draws, reporter)


def forward_passes(norm: geometry.Norm, num_queries: int = 1000,
                   num_draws: int = 100) -> int:
  """Returns how many `diagnose` takes of each image; a gradient is two.

  Those of its attacks and its noise; a few others, on clean images, come on
  top.

  Args:
    norm: of the attacks.
    num_queries: of Square.
    num_draws: of noise.
  """
  steps = 1 + _LONGER + len(_WIDER) * _STEPS + _UNBOUNDED
  searches = _searches(0., norm, (0., 1.), num_queries)
  return (2 * steps + sum(attack.forward_passes for attack in searches)
          + num_draws + min(num_draws, _TINY_DRAWS))


def _searches(eps, norm, bounds, num_queries):
  """Returns the attacks that are compared, with gradients and without."""
  common = dict(eps=eps, norm=norm, bounds=bounds)
  return (apgd.APGD(**common, loss=losses.cross_entropy, num_iterations=100,
                    keep='first', large_radii=norm == 'L1'),  # As AutoAttack.
          square.Square(**common, num_queries=num_queries,
                        rescale_schedule=True))


class _Examination:
  """One call of `diagnose`."""

  def __init__(self, model, key, x, y, eps, norm, bounds, stochastic,
               batch_size, parallel):
    self._key, self._eps, self._norm, self._bounds = key, eps, norm, bounds
    self._parallel, self._batch_size = parallel, batch_size
    self._stochastic, self._original = stochastic, model
    if stochastic:  # One draw of it.
      model = jax.tree_util.Partial(_under_key, model, key)
    self._one = model
    self._model = parallel.replicate(model)
    self._num_classes = attacks.num_classes(model, x[:1])
    checks.labels(y, self._num_classes)
    self._all, self._labels = x, y.astype(np.int32)
    self._found, self._accuracies = [], {}

  def run(self, num_images, num_queries, num_draws, reporter):
    """Returns the diagnosis."""
    with reporter.task('diagnose', unit='') as self._task:
      self._inputs()
      self._outputs()
      self._choose(num_images)
      total = len(self._y) * forward_passes(self._norm, num_queries, num_draws)
      self._task.resize(total)
      reporter.remains({'diagnose': total})
      self._behaviour()
      self._ascents()
      self._black_box(num_queries)
      self._noise(num_draws)
    return Diagnosis(tuple(self._found), len(self._y), self._norm, self._eps,
                     self._accuracies)

  def _note(self, name, value, bound, passed, meaning):
    self._found.append(Check(name, float(value), bound, bool(passed), meaning))

  def _inputs(self):
    low, high = self._bounds
    largest = (float(self._all.max()) - low) / (high - low)
    self._note(
        'largest pixel', largest, f'>= {_DARK:g}', largest >= _DARK,
        'no image is brighter than that share of the range: they may have been '
        'scaled twice, which makes eps wide for them.')

  def _outputs(self):
    self._clean = logits = self._logits(self._all)
    checks.outputs(logits)  # Raises for what is not finite.
    sums = attacks.seem_probabilities(logits)
    self._note('probabilities in place of logits', sums, '= 0', not sums,
               'a softmax hides gradients; return what it is taken of.')
    unit = _unit(logits)
    spread = float(np.linalg.norm(unit - unit.mean(0), axis=-1).mean())
    if len(logits) > 1:
      self._note(
          'differs between images', spread, f'>= {_ALIKE:g}', spread >= _ALIKE,
          'the logits of all images are alike: the model may scale them once '
          'more, and no image within the bounds would change them much.')
    accuracy = float((logits.argmax(-1) == self._labels).mean())
    least = 1 / self._num_classes + 0.05
    self._note('clean accuracy', accuracy, f'>= {least:.3g}',
               accuracy >= least, 'it is that of chance: labels, normalisation '
               'or the range of the images may be wrong.')

  def _choose(self, num_images):
    """Goes on with the images that are classified right."""
    right = np.flatnonzero(self._clean.argmax(-1) == self._labels)[:num_images]
    if not len(right):
      raise NothingToAttack(
          f'Expected some of the {len(self._labels)} images to be classified '
          'right; there is nothing to attack.')
    self._x, self._y = self._all[right], self._labels[right]
    # Once more: what is drawn under a key is drawn for a batch.
    self._clean = self._logits(self._x)
    self._slack = max(_POINT, 1 / len(right)) + 1e-6

  def _behaviour(self):
    batch = np.resize(self._x, (self._batch_size, *self._x.shape[1:]))
    count = min(len(self._x), self._batch_size)
    # As many as a device has, which what is drawn under a key depends on, too.
    each = self._batch_size // self._parallel.num_devices
    def predicted(predict):
      return _unit(np.asarray(predict(jnp.asarray(batch[:each])))[:count])
    reference, *again = (_unit(self._logits(batch)[:count]) for _ in range(4))
    self._note(
        'called again', _largest(reference, again), f'<= {_VARIATION:g}',
        _largest(reference, again) <= _VARIATION,
        'the same images have other logits: the model is randomised, or '
        'changes from call to call; see attacks.Randomised.')
    # Compiled anew, op by op, for a gradient, and one image by itself.
    traces = {
        'anew': jax.jit(lambda x: self._one(x)),
        'op by op': self._one,
        'for a gradient': jax.jit(lambda x: jax.vjp(self._one, x)[0])}
    found = [predicted(trace) for trace in traces.values()]
    if not self._stochastic:
      found.append(_unit(np.concatenate([
          np.asarray(self._one(jnp.asarray(self._x[i:i + 1])))
          for i in range(min(count, 4))])))
    moved = max(_largest(reference[:len(other)], [other]) for other in found)
    same = _code(self._one, batch) == _code(self._one, batch)
    self._note(
        'traced again', max(moved, float(not same)), f'<= {_RETRACED:g}',
        moved <= _RETRACED and same,
        'another trace of the model (compiled anew, op by op, for a gradient, '
        'one image by itself) is another function: it is not what is attacked '
        'that is defended.')
    if self._stochastic:
      keys = jax.random.split(jax.random.fold_in(self._key, 1), 3)
      other = [predicted(functools.partial(_under_key, self._original, key))
               for key in keys]
      value = _largest(reference[:len(other[0])], other)
      self._note(
          'another key', value, f'<= {_VARIATION:g}', value <= _VARIATION,
          'the model is randomised: one key says little; see '
          'attacks.Randomised.')
    others = batch.copy()
    others[1::2] = np.random.default_rng(2003).uniform(
        *self._bounds, others[1::2].shape)
    if self._batch_size > 1:
      first, second = (np.asarray(self._logits(images))[:count:2]
                       for images in (batch, others))
      value = float(np.abs(_finite(first) - _finite(second)).max()
                    / max(np.abs(_finite(first)).max(), 1e-12))
      self._note(
          'depends on its batch', value, f'<= {_DEPENDENCE:g}',
          value <= _DEPENDENCE, 'an image has other logits beside other '
          'images; is the model in training mode?')

  def _ascents(self):
    """Looks at ascents of the cross-entropy, of all kinds."""
    eps, diameter = self._eps, geometry.of(self._norm).diameter(
        self._x.shape[1:], self._bounds)
    zero, one, _ = self._ascend(eps, eps, (1,))
    _, short, long, _ = self._ascend(eps, eps / 4, (_STEPS, _LONGER))
    self._short, self._long = short, long
    further = [self._ascend(min(factor * eps, diameter), min(
        factor * eps, diameter) / 4, (_STEPS,))[1] for factor in _WIDER]
    # By any iterate: steps so long may lead to and fro.
    *_, unbounded = self._ascend(diameter, diameter / 20, (_UNBOUNDED,))
    left = [1 - fooled.mean() for fooled in (one, short, long, *further)]
    self._accuracies |= dict(zip(
        ('one step', f'PGD-{_STEPS}', f'PGD-{_LONGER}', '2 eps', '4 eps'),
        map(float, left), strict=True))

    self._note(
        'zero gradients', zero.mean(), f'<= {_NO_GRADIENTS:g}',
        zero.mean() <= _NO_GRADIENTS,
        'of so many images the gradient of the cross-entropy is 0 or not '
        'finite: an attack has nothing to follow.')
    slack = f'{self._slack:.2g}'
    self._note(
        'one step less iterative', left[0] - left[1], f'>= -{slack}',
        left[0] - left[1] >= -self._slack,
        'one step finds more than twenty: the loss is no guide beyond the '
        'first step.')
    self._note(
        'gain by steps', left[1] - left[2], f'>= -{slack}',
        left[1] - left[2] >= -self._slack,
        'five times as many steps find less.')
    self._note(
        'left to gain by steps', left[1] - left[2], f'<= {2 * self._slack:.2g}',
        left[1] - left[2] <= 2 * self._slack,
        'PGD has not converged after twenty steps: report longer attacks.')
    rise = max(after - before
               for before, after in zip((left[1], left[3]), left[3:],
                                        strict=True))
    self._note(
        'accuracy gained with eps', rise, f'<= {slack}', rise <= self._slack,
        'a wider ball holds fewer adversarial images that are found.')
    remaining = 1 - unbounded.mean()
    self._note(
        'left by an unbounded attack', remaining, '= 0', remaining == 0,
        'with any image allowed every image is fooled, if gradients lead '
        'anywhere.')

  def _black_box(self, num_queries):
    """Looks at what is found without gradients."""
    white, black = map(self._attacked, _searches(
        self._eps, self._norm, self._bounds, num_queries))
    self._white = white | self._short | self._long
    left = 1 - self._white.mean(), 1 - black.mean()
    self._accuracies |= {'APGD-CE': float(1 - white.mean()),
                         f'Square-{num_queries}': float(left[1])}
    self._note(
        'black box less white box', left[1] - left[0],
        f'>= -{self._slack:.2g}', left[1] - left[0] >= -self._slack,
        'a search that knows no gradient finds more than attacks that follow '
        'it: the gradients are masked.')

  def _noise(self, num_draws):
    """Looks at noise, of the radius and far below."""
    found = np.zeros(len(self._x), bool)
    moved = []
    for number in range(num_draws):
      logits = self._noisy(number, self._eps)
      found |= logits.argmax(-1) != self._y
    for number in range(min(num_draws, _TINY_DRAWS)):
      logits = self._noisy(num_draws + number, _TINY_NOISE * self._eps)
      moved.append(np.linalg.norm(_unit(logits) - _unit(self._clean), axis=-1))
    missed = (found & ~self._white).mean()
    self._accuracies['noise'] = float(1 - found.mean())
    self._note(
        'found by noise alone', missed, '= 0', missed == 0,
        'noise fools the model on images that attacks leave.')
    value = np.mean(moved)
    self._note(
        'moved by tiny noise', value, f'<= {_UNSTABLE:g}', value <= _UNSTABLE,
        f'noise of {_TINY_NOISE:g} eps moves the logits by that share of them: '
        'the gradient at a point says nothing about the next.')

  def _ascend(self, eps, step_size, numbers):
    """Returns whose gradient at the image is 0, and who is fooled after steps.

    Each bool `[N]`; after each of the numbers of steps, by the last iterate;
    and at the end by any.
    """
    zero, fooled, by_any = [], [[] for _ in numbers], []
    scalars = self._parallel.replicate(np.asarray(
        [eps, step_size], self._x.dtype))
    for images, labels, count in self._batches():
      centre = self._parallel.shard(images)
      labels, start = self._parallel.shard(labels), centre
      ever = self._parallel.shard(np.zeros(len(images), bool))
      gather = self._parallel.gather
      for number in range(max(numbers)):
        if number in numbers:
          fooled[numbers.index(number)].append(gather(
              self._missed(self._model, start, labels))[:count])
        start, ever, none = self._step(self._model, start, ever, centre,
                                       labels, scalars)
        if not number:
          zero.append(gather(none)[:count])
      last = gather(self._missed(self._model, start, labels))[:count]
      fooled[numbers.index(max(numbers))].append(last)
      by_any.append(gather(ever)[:count] | last)
      self._task.advance(2 * max(numbers) * count)
    return tuple(map(np.concatenate, (zero, *fooled, by_any)))

  def _attacked(self, attack):
    """Returns whom an attack fools, bool `[N]`."""
    run = compiled.jit(attack, _call, self._parallel)
    found = []
    for number, (images, labels, count) in enumerate(self._batches()):
      indices = np.arange(self._batch_size, dtype=np.int32)
      indices += number * self._batch_size
      images, labels, indices = self._parallel.shard((images, labels, indices))
      with warnings.catch_warnings():  # There are checks of their own.
        warnings.simplefilter('ignore', UserWarning)
        result = run(self._model, self._parallel.replicate(self._key), images,
                     labels, indices=indices)
      found.append(self._parallel.gather(
          self._missed(self._model, result, labels))[:count])
      self._task.advance(attack.forward_passes * count)
    return np.concatenate(found)

  def _noisy(self, number, eps):
    """Returns the logits of images with noise of norm eps, `[N, K]`."""
    key, eps = map(self._parallel.replicate, (
        jax.random.fold_in(self._key, 2 + number),
        np.asarray(eps, self._x.dtype)))
    found = []
    for first, (images, _, count) in enumerate(self._batches()):
      indices = np.arange(self._batch_size, dtype=np.int32)
      indices += first * self._batch_size
      images, indices = self._parallel.shard((images, indices))
      found.append(self._parallel.gather(self._predict_noisy(
          self._model, images, indices, key, eps))[:count])
      self._task.advance(count)
    return _wide(np.concatenate(found))

  def _batches(self):
    """Yields images, labels and how many of them count, all of one shape."""
    size = self._batch_size
    for first in range(0, len(self._x), size):
      images, labels = self._x[first:first + size], self._y[first:first + size]
      yield (np.resize(images, (size, *images.shape[1:])),
             np.resize(labels, size), len(images))

  def _logits(self, images):
    """Returns logits `[N, K]`, in the images' precision at least."""
    found = []
    for first in range(0, len(images), self._batch_size):
      batch = images[first:first + self._batch_size]
      padded = np.resize(batch, (self._batch_size, *batch.shape[1:]))
      logits = self._parallel.gather(self._predict(
          self._model, self._parallel.shard(padded)))
      found.append(logits[:len(batch)])
    return _wide(np.concatenate(found))

  @functools.cached_property
  def _predict(self):
    def predict(model, images, *, axis_name=None):
      del axis_name  # Examples do not interact, here and below.
      return attacks.evaluate(model, images)
    return self._parallel.compile(predict, (_R, _S), _S)

  @functools.cached_property
  def _predict_noisy(self):
    """Logits of images with noise in them, compiled for every radius."""
    norm, bounds = self._norm, self._bounds
    def predict(model, images, indices, key, eps, *, axis_name=None):
      del axis_name
      noise = geometry.of(norm).surface(
          collectives.example_keys(key, indices), images,
          jnp.broadcast_to(eps, images.shape[:1]))
      return attacks.evaluate(model, jnp.clip(images + noise, *bounds))
    return self._parallel.compile(predict, (_R, _S, _S, _R, _R), _S)

  @functools.cached_property
  def _missed(self):
    def missed(model, images, labels, *, axis_name=None):
      del axis_name
      return attacks.is_fooled(attacks.evaluate(model, images), labels)
    return self._parallel.compile(missed, (_R, _S, _S), _S)

  @functools.cached_property
  def _step(self):
    """One step of PGD, compiled for every radius and step size."""
    def step(model, images, ever, centre, labels, scalars, *, axis_name=None):
      del axis_name
      def total(images):
        logits = attacks.evaluate(model, images)
        return jnp.sum(losses.cross_entropy(
            losses.unmasked(logits, images.dtype), labels)), logits
      gradient, logits = jax.grad(total, has_aux=True)(images)
      fine = attacks.all_finite(gradient)
      gradient = geometry.where(fine, gradient, jnp.zeros_like(gradient))
      after = ascent.advance(images, gradient, centre, scalars[0], scalars[1],
                             norm=self._norm, bounds=self._bounds)
      return (after, ever | attacks.is_fooled(logits, labels),
              geometry.of('Linf').size(gradient) == 0)
    return self._parallel.compile(step, (_R, _S, _S, _S, _S, _R),
                                  (_S, _S, _S))


def _under_key(model, key, images):
  return model(images, key)


def _call(model, images):
  return model(images)


def _wide(logits):
  """Returns logits in float32 at least."""
  return logits.astype(np.promote_types(logits.dtype, np.float32))


def _finite(logits):
  """Returns logits with 0 for classes that are never predicted."""
  return np.where(np.isneginf(logits), 0, logits)


def _unit(logits):
  """Returns logits `[N, K]` of norm 1."""
  logits = _finite(np.asarray(logits, np.float64))
  return logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-12)


def _largest(reference, others):
  """Returns the largest distance of logits from those of reference."""
  return max(float(np.linalg.norm(other - reference, axis=-1).max())
             for other in others)


def _code(model: Callable, images: np.ndarray) -> str:
  """Returns what a model is traced to, with its constants' digest."""
  with jax.disable_jit():
    traced = jax.make_jaxpr(lambda model, x: model(x))(model, images[:1])
  return saved.code_of(traced) + digests.of_arrays(traced.consts)
