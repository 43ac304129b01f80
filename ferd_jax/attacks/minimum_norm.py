"""How far a model's images are from being misclassified, over a data set.

Attacks in a ball say which images withstand one radius. Minimum-norm attacks
look for the smallest perturbation of each, and one run of them gives the robust
accuracy at every radius.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any
from typing import Literal
from typing import overload
import warnings
import zlib

import jax
from jax.typing import ArrayLike
import numpy as np

import ferd_jax
from ferd_jax.attacks import attack as attack_lib
from ferd_jax.attacks import checks
from ferd_jax.attacks import compiled
from ferd_jax.attacks import ddn
from ferd_jax.attacks import fab
from ferd_jax.attacks import fmn
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate

Member = Literal['fmn', 'ddn', 'fab', 'fab-t']
# Radii of a table where none are asked for, of images in [0, 1].
RADII = {'L0': (0., 1., 2., 5., 10., 20., 50., 100.),
         'L1': (0., 1., 2., 4., 8., 12., 16., 24.),
         'L2': (0., .1, .25, .5, .75, 1., 1.5, 2.),
         'Linf': tuple(i / 255 for i in (0, 1, 2, 4, 6, 8, 12, 16))}


def names(norm: geometry.Distance) -> tuple[str, ...]:
  """Returns the names of attacks that there are in a norm."""
  return ('fmn', *(('ddn',) if norm == 'L2' else ()),
          *(('fab', 'fab-t') if norm in geometry.NORMS else ()))


def defaults(norm: geometry.Distance) -> tuple[str, ...]:
  """Returns the attacks that are taken where none are asked for."""
  return ('fmn', 'ddn') if norm == 'L2' else ('fmn',)


@dataclasses.dataclass
class Distances:
  """How far N images are from the closest that was found to fool the model.

  Robust accuracies are upper bounds: a better attack may find closer ones.

  Attributes:
    names: the attacks.
    labels: int32 `[N]`.
    correct: bool `[N]`, whether the clean image is classified right.
    distances: `[N]`, in the norm: 0 where the clean image is wrong, inf where
      no attack fooled the model.
    by_attack: by attack the same of it alone.
    images: `[N, ...]`, the closest that fool the model; clean where there is
      none or the clean image does.
    predictions: int32 `[N]`, on `images`.
    seconds: by attack.
    warnings: what makes the numbers doubtful.
    settings: norm, bounds, number of images, seed, dtype and the versions of
      JAX and this package.
  """
  names: tuple[str, ...]
  labels: np.ndarray
  correct: np.ndarray
  distances: np.ndarray
  by_attack: dict[str, np.ndarray]
  images: np.ndarray
  predictions: np.ndarray
  seconds: dict[str, float]
  warnings: list[str]
  settings: dict[str, Any]

  @property
  def success(self) -> np.ndarray:
    """Whether there is an image that fools the model, bool `[N]`."""
    return np.isfinite(self.distances)

  @property
  def clean_accuracy(self) -> float:
    """Of all images."""
    return float(self.correct.mean())

  @property
  def success_rate(self) -> float:
    """The share of the images that were right for which one was found."""
    if not self.correct.any():
      return float('nan')
    return float(self.success[self.correct].mean())

  @property
  def median(self) -> float:
    """The median distance of the images that are classified right.

    It is inf if half of them or more were not fooled, NaN if there are none.
    """
    if not self.correct.any():
      return float('nan')
    return float(np.median(self.distances[self.correct]))

  @overload
  def robust_accuracy(self, eps: float) -> float: ...

  @overload
  def robust_accuracy(self, eps: Sequence[float] | np.ndarray
                      ) -> np.ndarray: ...

  def robust_accuracy(self, eps: float | Sequence[float] | np.ndarray
                      ) -> float | np.ndarray:
    """Returns the share of all images that withstand a radius, or several.

    Args:
      eps: at least 0, in the unit of the images; at 0 it is the clean accuracy.
    """
    shares = self.robust(eps).mean(-1)
    return shares if np.ndim(eps) else float(shares)

  def robust(self, eps: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns which images withstand a radius, bool `[N]`, or `[M, N]`.

    An image at just this distance is within the radius, and so is one whose
    distance exceeds it by rounding alone, as the images do that an attack
    within a ball finds on its surface.

    Args:
      eps: at least 0, in the unit of the images; or M of them.
    """
    radius = np.asarray(eps, np.float64)[..., None]
    # As much as `checks.results` allows.
    slack = 1e-5 * radius + geometry.same(np.float32) * (radius > 0)
    return self.distances.astype(np.float64) > radius + slack

  def curve(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns radii `[M]`, ascending from 0, and robust accuracies `[M]`.

    They are all steps of the curve: from each radius on the accuracy is what
    stands beside it.
    """
    radii = np.unique(np.append(self.distances[self.success], 0))
    return radii, self.robust_accuracy(radii)

  def per_class(self, eps: float, num_classes: int | None = None
                ) -> np.ndarray:
    """Returns robust accuracies `[K]`, NaN for a class without images.

    Args:
      eps: radius.
      num_classes: K; default: the highest label and one.
    """
    size = num_classes or int(self.labels.max()) + 1
    found, counts = (np.bincount(those, minlength=size) for those in (
        self.labels[self.robust(eps)], self.labels))
    with np.errstate(invalid='ignore'):
      return found / counts

  def table(self, radii: Sequence[float] | None = None) -> str:
    """Returns robust accuracies over radii as a Markdown table.

    Args:
      radii: in the unit of the images; default: `RADII` of the norm, times the
        width of the bounds.
    """
    if radii is None:
      low, high = self.settings['bounds']
      width = 1 if self.settings['norm'] == 'L0' else high - low
      radii = [width * eps for eps in RADII[self.settings['norm']]]
    lines = [
        ', '.join(f'{name} {value}' for name, value in self.settings.items()),
        f'attacks {", ".join(self.names)}; median distance {self.median:.4g}, '
        f'success rate {self.success_rate:.2%}',
        '', '| eps | robust accuracy | worst class |', '|---|---|---|']
    lines += [f'| {eps:.5g} | {self.robust_accuracy(eps):.2%} | '
              f'{np.nanmin(self.per_class(eps)):.2%} |' for eps in radii]
    return '\n'.join(lines + [f'Warning: {text}' for text in self.warnings])

  def __repr__(self) -> str:
    warned = f'; {len(self.warnings)} warnings' if self.warnings else ''
    return (f'<Distances in {self.settings["norm"]} of {len(self.labels)} '
            f'images by {", ".join(self.names)}: accuracy '
            f'{self.clean_accuracy:.2%} clean, median distance '
            f'{self.median:.4g}, success rate {self.success_rate:.2%}{warned}>')


@dataclasses.dataclass(frozen=True)
class MinimumNorm:
  """Finds the smallest perturbations; call it like `AutoAttack`.

  Every attack gets all images that the model classifies right, and the closest
  that any of them found counts, image by image.

  Attributes:
    norm: 'L0' (entries: every channel of a pixel is one), 'L1', 'L2' or 'Linf'.
    attacks: in order: 'fmn', 'ddn' (L2 only), 'fab' and 'fab-t' (with 9
      targets), or pairs of a name and any `Attack`, also one of your own, with
      the same norm and bounds. One in a ball finds what it finds there. None:
      'fmn', in L2 also 'ddn'.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for a setting out of range.
  """
  norm: geometry.Distance = 'L2'
  attacks: tuple[Member | tuple[str, attack_lib.Attack], ...] | None = None
  bounds: tuple[float, float] = (0., 1.)

  def __post_init__(self):
    validate.one_of(geometry.DISTANCES, norm=self.norm)
    attack_lib.freeze(self)
    given = defaults(self.norm) if self.attacks is None else self.attacks
    if not isinstance(given, tuple | list) or not given:
      raise ValueError(f'Expected attacks={given!r} to be a tuple of attacks.')
    for member in given:
      if isinstance(member, str):
        validate.one_of(names(self.norm), attack=member)
      elif isinstance(member, tuple | list) and len(member) == 2:
        attack_lib.check_member(*member, norm=self.norm, bounds=self.bounds)
        if member[1].stochastic:
          raise ValueError(f'Expected attack {member[0]!r} to be for models '
                           'that are not stochastic: of others there is no '
                           'distance.')
      else:
        raise ValueError('Expected attacks to be names, or pairs (name, '
                         f'attack) in brackets of their own, got {member!r}.')
    object.__setattr__(self, 'attacks', tuple(
        member if isinstance(member, str) else tuple(member)
        for member in given))
    if len(set(self.names)) < len(self.names):
      raise ValueError(f'Expected attacks={self.names} to have one name each.')

  @property
  def names(self) -> tuple[str, ...]:
    """Of the attacks, in order."""
    return tuple(member if isinstance(member, str) else member[0]
                 for member in self._attacks)

  @property
  def _attacks(self) -> tuple[Member | tuple[str, attack_lib.Attack], ...]:
    return self.attacks or ()  # Of an instance it is never None.

  def members(self, num_classes: int) -> dict[str, attack_lib.Attack]:
    """Returns the attacks by name, in order, for a model with K classes."""
    common: dict[str, Any] = dict(bounds=self.bounds)
    everywhere = common | dict(eps=None, norm=self.norm)
    boundary = functools.partial(fab.FAB, **everywhere)
    own = dict(member for member in self._attacks
               if not isinstance(member, str))
    makers: dict[str, Callable[[], attack_lib.Attack]] = {
        'fmn': functools.partial(fmn.FMN, norm=self.norm, **common),
        'ddn': functools.partial(ddn.DDN, **common), 'fab': boundary,
        'fab-t': functools.partial(boundary,
                                   num_targets=min(9, num_classes - 1))}
    return {name: own[name] if name in own else makers[name]()
            for name in self.names}

  def __call__(self, logits_fn: attack_lib.LogitsFn, key: jax.Array,
               x: ArrayLike, y: ArrayLike, *, batch_size: int = 256,
               progress: bool | reporting.Reporter = True,
               parallel: parallels.Parallel | None = None) -> Distances:
    """Returns how far images are from being misclassified.

    Args:
      logits_fn: images `[B, ..., channels]` -> logits `[B, K]`, K >= 2: pure,
        in evaluation mode. As `jax.tree_util.Partial(apply_fn, variables)` its
        variables are an argument of the compiled functions, and another call
        with others compiles nothing.
      key: one PRNG key.
      x: images `[N, ..., channels]` within `bounds`.
      y: int labels `[N]`.
      batch_size: images at a time, over all devices.
      progress: whether to show on stderr what was found; or a reporter of
        `core.reporting` that does.
      parallel: mapping over devices; default: all.

    Raises:
      ValueError: for inputs or a model that would make the numbers wrong.
    """
    parallel = parallel or parallels.create()
    reporter = (reporting.TERMINAL if progress is True else
                progress or reporting.SILENT)
    validate.count(batch_size=batch_size)
    validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
    images, labels = inputs.on_host(x, y)
    checks.data_set(images, labels, 0., self.norm, self.bounds)
    key = inputs.one_key(key)
    num_classes = attack_lib.num_classes(logits_fn, images[:1])
    checks.labels(labels, num_classes)
    labels = labels.astype(np.int32)
    members = self.members(num_classes)
    for member in members.values():
      member.check_num_classes(num_classes)
    with inputs.own_transfers():
      run = _Run(logits_fn, key, images, labels, batch_size, parallel,
                 reporter)
      notes = checks.outputs(run.clean_logits) + checks.layout(images.shape)
      notes += checks.clean_accuracy(run.correct.mean(), num_classes)
      found = {name: run.attack(name, member)
               for name, member in members.items()}
    checks.results(run.images, geometry.of(self.norm).diameter(
        images.shape[1:], self.bounds), self.norm,
                   np.where(np.isfinite(run.distances), run.distances, 0),
                   self.bounds)
    for note in notes:
      warnings.warn(note, stacklevel=2)
    return Distances(
        names=self.names, labels=labels, correct=run.correct,
        distances=run.distances, by_attack=found, images=run.images,
        predictions=run.predictions, seconds=run.seconds, warnings=notes,
        settings={'norm': self.norm, 'bounds': self.bounds,
                  'images': len(labels),
                  'seed': jax.random.key_data(key).tolist(),
                  'dtype': str(images.dtype), 'jax': jax.__version__,
                  'ferd_jax': ferd_jax.__version__})


class _Run:
  """The attacks on one data set, and the closest images so far."""

  def __init__(self, logits_fn, key, x, y, batch_size, parallel, reporter):
    shares = isinstance(logits_fn, jax.tree_util.Partial)
    model = logits_fn if shares else jax.tree_util.Partial(logits_fn)
    # What it closes over may be other weights by the next call.
    self._compile = _shared if shares else _shared.__wrapped__
    self._model = parallel.replicate(model)
    self._key, self._x, self._y = key, x, y
    self._size, self._parallel = batch_size, parallel
    self._reporter = reporter
    predict = self._compile(None, parallel)
    self.clean_logits = np.concatenate([
        parallel.gather(predict(self._model, self._shard(x, batch)))[
            :len(batch)] for batch in self._batches(np.arange(len(y)), 'clean')
    ])
    self.predictions = self.clean_logits.argmax(-1).astype(np.int32)
    self.correct = self.predictions == y
    self.distances = np.where(self.correct, np.inf, 0).astype(x.dtype)
    self.images, self.seconds = x.copy(), {}

  def attack(self, name, attack):
    """Returns the distances of one attack, `[N]`, and keeps what is closer."""
    attacked = self._compile(attack, self._parallel)
    key = self._parallel.replicate(
        jax.random.fold_in(self._key, zlib.crc32(name.encode())))
    distances = np.where(self.correct, np.inf, 0).astype(self._x.dtype)
    unclear, started = [], time.monotonic()
    for chosen in self._batches(np.flatnonzero(self.correct), name):
      x, y, indices, logits = (
          self._shard(array, chosen)
          for array in (self._x, self._y, np.arange(len(self._y), dtype='i4'),
                        self.clean_logits))
      labels = logits if attack.takes_logits else y
      with warnings.catch_warnings():  # They are this loop's to give.
        warnings.simplefilter('ignore', UserWarning)
        result = attacked.run(self._model, key, x, labels, indices=indices)
      images, success, predictions, _, norm, *_ = (
          leaf[:len(chosen)] for leaf in self._parallel.gather(result))
      unclear += chosen[predictions < 0].tolist()
      distances[chosen] = np.where(success, norm, np.inf)
      closer = distances[chosen] < self.distances[chosen]
      self.distances[chosen[closer]] = norm[closer]
      self.images[chosen[closer]] = images[closer]
      self.predictions[chosen[closer]] = predictions[closer]
    self.seconds[name] = time.monotonic() - started
    if unclear:
      raise ValueError(
          f'{name}: logits or gradients are not finite for adversarial images '
          f'of examples {unclear[:10]} ({len(unclear)} in all).')
    right = distances[self.correct]
    self._reporter.line(
        f'{name}: median distance '
        f'{np.median(right) if len(right) else np.nan:.4g}, success rate '
        f'{np.isfinite(right).mean() if len(right) else np.nan:.2%}, '
        f'{self.seconds[name]:.0f} s')
    return distances

  def _batches(self, indices, name):
    """Yields the indices of one batch after the other."""
    with self._reporter.task(name, len(indices), 'image') as task:
      for first in range(0, len(indices), self._size):
        chosen = indices[first:first + self._size]
        yield chosen
        task.advance(len(chosen))

  def _shard(self, array, chosen):
    """Returns the chosen rows on the devices, filled up with copies."""
    return self._parallel.shard(array[np.resize(chosen, self._size)])


@functools.lru_cache(maxsize=64)
def _shared(attack, parallel):
  """Returns an attack compiled, None: the model, for `(model, ...)`."""
  if attack is not None:
    return compiled.CompiledAttack(attack, _call, parallel)
  def predict(model, images, *, axis_name=None):
    del axis_name  # Examples do not interact.
    return attack_lib.evaluate(model, images)
  return parallel.compile(
      predict, (parallels.REPLICATED, parallels.SHARDED), parallels.SHARDED)


def _call(model, *args):
  return model(*args)
