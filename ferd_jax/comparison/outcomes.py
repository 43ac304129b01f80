"""What runs left: results, learning curves, and which belong together."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import json
import pathlib
import statistics
from typing import Any

from ferd_jax import train
from ferd_jax.evaluation import robustness
from ferd_jax.run import export
from ferd_jax.run import learning_curve
from ferd_jax.run import progress as progresses
from ferd_jax.run import settings
from ferd_jax.run import work_directory

# Settings in which runs of one method may differ: not only the seed.
_FREE = ('seed', 'data.dir', 'eval.teacher_dir', 'log', 'max_minutes',
         'parallel', 'pool.place', 'teacher.path', 'teachers.*.path', 'format',
         'ferd_jax')
_IMAGES = ('dataset', 'split', 'num_examples', 'norm', 'eps')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A finished run.

  Attributes:
    workdir: of it.
    seed: of it.
    results: as in `results.json`, or in `evaluation.json`.
    identity: as in `config.json`.
    metrics: of its epochs.
  """
  workdir: pathlib.Path
  seed: int
  results: Mapping[str, Any]
  identity: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]

  def speed(self, phase: str) -> float | None:
    """Returns the median of milliseconds a step, None if there is no step.

    The first epoch with such steps compiles, and counts only if it is alone.

    Args:
      phase: 'synthesis' or 'distill'.
    """
    found = [epoch[f'{phase}/ms_per_step'] for epoch in self.metrics
             if f'{phase}/ms_per_step' in epoch]
    return statistics.median(found[1:] or found) if found else None

  def curve(self, attack: str) -> list[tuple[int, float, list[float]]]:
    """Returns epoch, average and classes of each point of the learning curve.

    Classes without images are left out.

    Args:
      attack: of the curve.
    """
    points = []
    for epoch in self.metrics:
      for name, classes in epoch.items():
        if name.endswith(f'_{attack}{learning_curve.PER_CLASS}'):
          average = epoch[name.removesuffix(learning_curve.PER_CLASS)]
          points.append((epoch['epoch'], average,
                         [value for value in classes if value is not None]))
    return points


def load(workdir: pathlib.Path, options: Any = None) -> Outcome | None:
  """Returns what a run left, None if it is not finished.

  Args:
    workdir: of the run.
    options: `eval` of a config whose attacks the results must have; None for
      those of the run's end.

  Raises:
    ValueError: if a file cannot be read.
  """
  if not is_finished(workdir):
    return None
  file = (workdir / work_directory.RESULTS if options is None
          else covering(workdir, options))
  if file is None:
    return None
  results = _read(file)
  return Outcome(workdir, results['seed'], results,
                 work_directory.saved_identity(workdir),
                 epochs(workdir / progresses.METRICS))


def is_finished(workdir: pathlib.Path) -> bool:
  """Returns whether a run has ended."""
  return _has_models(workdir / work_directory.RESULTS)


def covering(workdir: pathlib.Path, options: Any) -> pathlib.Path | None:
  """Returns the results of a finished run that have all attacks of a config.

  Args:
    workdir: of the run.
    options: `eval` of the config.
  """
  if not is_finished(workdir):
    return None
  files = [workdir / name for name in (work_directory.RESULTS,
                                       train.EVALUATION)]
  ended = _read(files[0])
  for file in files:
    if not _has_models(file):
      continue
    results = _read(file)
    # An evaluation may have been on other images.
    same = all(results.get(name) == ended.get(name) for name in _IMAGES)
    if same and _covers(results, options):
      return file
  return None


def _has_models(file):
  try:
    return bool(json.loads(file.read_text())['models']['student'])
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _covers(results, options):
  """Returns whether results are under all attacks, on as many images."""
  found, number = results['models']['student'], results['num_examples']
  for attack in options.attacks:
    if attack not in found:
      return False
    wanted = number
    if attack in robustness.AUTOATTACKS and options.autoattack_examples:
      wanted = min(number, options.autoattack_examples)
    if found[attack].get('num_examples', number) != wanted:
      return False
  return True


def _read(file):
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'Cannot read {file}: {error}') from error


def epochs(file: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a file of metrics that are whole; none without it."""
  found = []
  for line in file.read_text().splitlines() if file.exists() else []:
    try:
      found.append(json.loads(line))
    except ValueError:
      continue  # A run is writing it.
  return found


def work_directories(places: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Returns the work directories of runs at or below some places, in order.

  Raises:
    ValueError: if there is none at a place.
  """
  found = []
  for place in places:
    below = sorted(path.parent for path in place.rglob('config.json')
                   if 'checkpoints' not in path.parts
                   and not _is_export(path.parent))
    if not below:
      raise ValueError(f'Expected {place} to be the work directory of a run, '
                       'or to hold some: there is no config.json.')
    found += below
  return list(dict.fromkeys(found))


def _is_export(directory):
  """Returns whether a directory is what a run exported, not a run."""
  return (directory.name == export.DIRECTORY
          and (directory.parent / work_directory.CONFIG).exists())


def by_method(found: Sequence[Outcome]) -> dict[str, list[Outcome]]:
  """Returns outcomes by method: those whose settings agree but for the seed.

  A method is called by its config; several of one config by the settings in
  which they differ.

  Args:
    found: of runs.

  Raises:
    ValueError: if a method has a seed twice.
  """
  groups = {}
  for outcome in found:
    groups.setdefault(tuple(sorted(_comparable(outcome.identity))),
                      []).append(outcome)
  named = {}
  for key, group in groups.items():
    seeds = [outcome.seed for outcome in group]
    if len(set(seeds)) < len(seeds):
      twice = [str(outcome.workdir) for outcome in group
               if seeds.count(outcome.seed) > 1]
      raise ValueError(f'{", ".join(twice)} are runs of one method with one '
                       'seed.')
    named[key] = group[0].identity['name']
  return {_title(key, named): group for key, group in groups.items()}


def _title(key, named):
  """Returns the name of a method, other than those of its namesakes."""
  name = named[key]
  others = [dict(other) for other, its in named.items()
            if its == name and other != key]
  mine = dict(key)
  differ = [setting for setting in mine if any(
      other.get(setting) != mine[setting] for other in others)]
  # The name of a part says that its settings are others, too.
  groups = {setting.partition('.')[0] for setting in differ
            if setting.endswith('.name')}
  differ = [setting for setting in differ if setting.endswith('.name')
            or setting.partition('.')[0] not in groups]
  shown = ', '.join(f'{setting}={mine[setting]}' for setting in differ)
  return f'{name} ({shown})' if shown else name


def kind(outcome: Outcome) -> tuple:
  """Returns what is alike in runs of one method on the same images."""
  return (tuple(sorted(_comparable(outcome.identity))),
          *(outcome.results.get(name) for name in _IMAGES))


def _comparable(identity) -> Iterator[tuple[str, str]]:
  """Yields the settings that make a method, values as text.

  A setting that is newer than the run had its default.
  """
  values = dict(settings.flat(json.loads(json.dumps(
      settings.defaults_like(identity).to_dict()))))
  for name, value in (values | dict(settings.flat(identity))).items():
    if not any(fnmatch.fnmatchcase(name, free) or name.startswith(f'{free}.')
               for free in _FREE):
      yield name, value if isinstance(value, str) else json.dumps(value)
