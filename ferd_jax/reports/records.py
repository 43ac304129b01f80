"""What runs left, as far as it can be read: nothing is needed but a config."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ferd_jax import data
from ferd_jax import train
from ferd_jax.comparison import outcomes
from ferd_jax.comparison import overview
from ferd_jax.comparison import table as tables
from ferd_jax.run import learning_curve
from ferd_jax.run import progress as progresses
from ferd_jax.run import sessions
from ferd_jax.run import settings
from ferd_jax.run import work_directory

_SAMPLES = 'samples'
_SIDE_BY_SIDE = 6  # runs; a page of more is long, and its file large


class Missing(Exception):
  """What is not there to be shown; the message says why, for a reader."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run left.

  Attributes:
    workdir: of it.
    title: that tells it from the others of a report.
    identity: as in config.json.
    metrics: of its epochs.
    results: of its end, None before; `models` by name, `targets`.
    evaluation: of a later `--mode=evaluate`, or None.
    sweep: results at several radii, of an `evaluate --json` kept in the
      directory; those of other weights are left out.
    sessions: see `run.sessions`.
  """
  workdir: pathlib.Path
  title: str
  identity: dict[str, Any]
  metrics: Sequence[dict[str, Any]]
  results: dict[str, Any] | None
  evaluation: dict[str, Any] | None
  sweep: Sequence[dict[str, Any]]
  sessions: Sequence[dict[str, Any]]

  @property
  def ended(self) -> dict[str, Any]:
    """The results.

    Raises:
      Missing: if the run has not ended.
    """
    if self.results is None:
      raise Missing(
          f'not yet: the run has not ended; {len(self.metrics)} of '
          f'{self.identity.get("num_epochs", "?")} epochs are done')
    return self.results

  @property
  def class_names(self) -> list[str]:
    """The names of the classes, or their numbers."""
    for results in (self.results, self.evaluation, *self.sweep):
      if results and results.get('class_names'):
        return list(results['class_names'])
    try:
      return list(data.info(self.identity['data']['name']).class_names)
    except (KeyError, OSError, TypeError, ValueError):
      return []

  def names(self, number: int) -> list[str]:
    """Returns as many names of classes as are needed."""
    known = self.class_names
    return known if len(known) == number else [str(i) for i in range(number)]

  def series(self, name: str) -> tuple[list[int], list[Any]]:
    """Returns the epochs that have a metric, and its values."""
    found = [(epoch['epoch'], epoch[name]) for epoch in self.metrics
             if epoch.get(name) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]

  def curves(self) -> dict[str, str]:
    """Returns the attacks of the learning curve, by the names of its points."""
    names = dict.fromkeys(name for epoch in self.metrics for name in epoch
                          if name.endswith(learning_curve.PER_CLASS))
    points = [name.removesuffix(learning_curve.PER_CLASS) for name in names]
    return {point: point.partition('_')[2] for point in points
            if '/' not in point}

  def pool(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images `[N, H, W, C]` of an epoch in [0, 1], and labels.

    Raises:
      Missing: if there are none, or they cannot be read.
    """
    path = self.workdir / 'pool' / f'epoch_{epoch:05d}.npz'
    return _images(path, 'images', 'labels')

  def pool_epochs(self) -> list[int]:
    """Returns the epochs that have left synthetic images."""
    return _epochs(self.workdir / 'pool')

  def sample_epochs(self) -> list[int]:
    """Returns the epochs that have left arrays of samples."""
    return _epochs(self.workdir / _SAMPLES)

  def samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples of an epoch as `pool` does."""
    return _images(self._samples(epoch), 'images', 'labels')

  def pairs(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the last epoch with FAEs and UTAEs; those, and their labels.

    Raises:
      Missing: if there are none.
    """
    for epoch in reversed(self.sample_epochs()):
      try:
        clean, labels = _images(self._samples(epoch), 'pairs/clean',
                                'pairs/labels')
        attacked, _ = _images(self._samples(epoch), 'pairs/attacked',
                              'pairs/labels')
      except Missing:
        continue
      return epoch, clean, attacked, labels
    raise Missing(
        'not recorded: samples/ has no images before and after the attack, as '
        'no student was trained when one was due, or an older version did not '
        'keep them (log.samples_every says how often)')

  def _samples(self, epoch):
    return self.workdir / _SAMPLES / f'epoch_{epoch:05d}.npz'


def _epochs(directory):
  return sorted(int(path.stem.removeprefix('epoch_'))
                for path in directory.glob('epoch_*.npz')
                if path.stem.removeprefix('epoch_').isdecimal())


def _images(path, *names):
  try:
    with np.load(path) as file:
      images, labels = (file[name] for name in names)
  except FileNotFoundError as error:
    raise Missing(f'not there: {path.name}') from error
  except Exception as error:  # What zipfile raises depends on the damage.
    raise Missing(f'not to be read: {path.name} ({error})') from error
  if images.dtype == np.uint8:
    images = images.astype(np.float32) / 255
  return images, labels


@dataclasses.dataclass(frozen=True)
class Collection:
  """The runs of a report.

  Attributes:
    runs: to be shown one by one, side by side; none of more than six.
    table: of all that ended, by method; None if there is nothing to compare.
    notes: on what is not in the table.
    is_comparison: whether all runs are shown by method alone, as those of a
      directory of `ferd_jax.compare` are.
  """
  runs: Sequence[Run]
  table: tables.Table | None
  notes: Sequence[str]
  is_comparison: bool

  @property
  def compares(self) -> bool:
    """Whether the table says more than the runs do by themselves."""
    return self.table is not None and (
        self.is_comparison or len(self.table.outcomes) > 1)


def collect(places: Sequence[pathlib.Path],
            reference: str | None = None) -> Collection:
  """Returns what there is in some places.

  Args:
    places: work directories of runs, or directories that hold some, such as
      those of `python -m ferd_jax.compare`.
    reference: method that others are compared with; default: the first.

  Raises:
    ValueError: if there is no run at a place, or no such method.
  """
  compared = [place for place in places if (place / overview.ROWS).exists()]
  found = outcomes.work_directories(places)
  ended, notes = [], []
  for workdir in found:
    outcome = _outcome(workdir, notes)
    if outcome is not None:
      ended.append(outcome)
  table = None
  if ended:
    try:
      table = tables.Table(overview.named(ended, places), reference)
    except (LookupError, TypeError, ValueError) as error:
      # Runs that cannot be in one table, or of another version.
      if reference is not None:
        raise ValueError(f'Cannot compare them: {error}') from error
      notes.append(f'There is no table of all runs: {error}')
  alone = [workdir for workdir in found if not any(
      place.resolve() in workdir.resolve().parents for place in compared)]
  if len(alone) > _SIDE_BY_SIDE:
    notes.append(f'{len(alone)} runs are too many to stand side by side: they '
                 f'are shown by method. Name up to {_SIDE_BY_SIDE} to see each')
    alone = []
  return Collection([read(workdir, title) for workdir, title in zip(
      alone, _titles(alone), strict=True)], table, notes, not alone)


def _outcome(workdir, notes):
  """Returns what a finished run left, for a table; else says why not."""
  try:
    outcome = outcomes.load(workdir)
  except ValueError as error:
    notes.append(str(error))
    return None
  if outcome is None:
    notes.append(f'{workdir}: the run has not ended')
  return outcome


def _titles(workdirs):
  """Returns the shortest ends of paths that tell them apart."""
  for size in range(1, 5):
    titles = ['/'.join(workdir.resolve().parts[-size:])
              for workdir in workdirs]
    if len(set(titles)) == len(titles):
      return titles
  return list(map(str, workdirs))


def read(workdir: pathlib.Path, title: str = '') -> Run:
  """Returns what a run left; what cannot be read counts as not there.

  Args:
    workdir: of it.
    title: by which it is called; default: the name of the directory.

  Raises:
    ValueError: if its config cannot be read.
  """
  results = _json(workdir / work_directory.RESULTS)
  return Run(
      workdir=workdir, title=title or workdir.resolve().name,
      identity=work_directory.saved_identity(workdir),
      metrics=[epoch for epoch in outcomes.epochs(
          workdir / progresses.METRICS) if isinstance(epoch, dict)
               and isinstance(epoch.get('epoch'), int)],
      results=results if _is_results(results) else None,
      evaluation=next(filter(_is_results, [
          _json(workdir / train.EVALUATION)]), None),
      sweep=list(_sweep(workdir, results)), sessions=sessions.read(workdir))


def _json(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def _is_results(values):
  return (isinstance(values, dict) and isinstance(values.get('models'), dict)
          and 'eps' in values and any(values['models'].values()))


def _sweep(workdir, results) -> Iterator[dict[str, Any]]:
  """Yields results at several radii that are in a work directory."""
  own = (results.get('weights_digest', {}).get('student')
         if _is_results(results) else None)
  for path in sorted(workdir.glob('*.json')):
    values = _json(path)
    if not isinstance(values, list) or not all(map(_is_results, values)):
      continue
    for each in values:
      digest = each.get('weights_digest', {}).get('student')
      if own is None or digest in (None, own):
        yield each


def differing(identity: dict[str, Any]
              ) -> tuple[list[tuple[str, Any, Any]], list[tuple[str, Any]]]:
  """Returns settings that are no defaults, with these, and all others.

  Args:
    identity: as in config.json.
  """
  known = set(settings.defaults().keys())
  values = {name: value for name, value in settings.flat(identity)
            if name.partition('.')[0] in known}
  try:
    defaults = dict(settings.flat(settings.defaults_like(identity)))
  except (AttributeError, TypeError, ValueError):  # Of another version.
    defaults = dict(settings.flat(settings.defaults()))
  def plain(value):
    return json.loads(json.dumps(value))
  differ, same = [], []
  for name, value in values.items():
    default = defaults.get(name)
    if plain(default) == plain(value):
      same.append((name, value))
    else:
      differ.append((name, value, default))
  return differ, same
