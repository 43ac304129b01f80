"""A plan: which methods are compared, each with which seeds.

A plan is a Python file with a function `get_plan() -> Plan`, such as those of
`configs/comparisons/`.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import re
import shlex
from typing import Any

from absl import flags as absl_flags

from ferd_jax.core import validate
from ferd_jax.run import command_line
from ferd_jax.run import config_files
from ferd_jax.run import experiment as experiments
from ferd_jax.run import work_directory

# Of a comparison, for what is found of teachers. No row's begins like this.
_TEACHERS = '_teachers'
_FOLDER = config_files.ROOT / 'configs' / 'comparisons'


@dataclasses.dataclass(frozen=True)
class Row:
  """A method in the table.

  Attributes:
    name: in the table.
    config: as `--config` of main.py takes it.
    settings: in place of the config's own, by dotted name, or as flags
      (`--config.eps=0.1`).
  """
  name: str
  config: str
  settings: Mapping[str, Any] | Sequence[str] = ()

  @property
  def flags(self) -> list[str]:
    """The settings as main.py takes them."""
    return setting_flags(self.settings)

  @property
  def directory(self) -> str:
    """Name of its directory."""
    return re.sub(r'[^\w.+=-]+', '_', self.name).strip('_')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is compared.

  Attributes:
    name: of its work directory.
    rows: the methods in the order of the table; the first is the one that the
      others are compared with.
    seeds: of every row.
    settings: of all rows, those of a row win.
    minutes: that a run takes, roughly, for a first guess of the time; 0 if
      unknown.
    footnotes: below the table, on methods that are not in it for instance.
  """
  name: str
  rows: Sequence[Row]
  seeds: Sequence[int] = (0, 1, 2)
  settings: Mapping[str, Any] | Sequence[str] = ()
  minutes: float = 0.
  footnotes: Sequence[str] = ()

  def __post_init__(self):
    if not self.rows:
      raise ValueError(f'Expected the plan {self.name!r} to have rows.')
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f'Expected seeds={tuple(self.seeds)}, each once, at '
                       'least one.')
    for seed in self.seeds:
      validate.in_range(0, 2 ** 32 - 1, seed=seed)
    directories = {}
    for row in self.rows:
      if not row.directory or row.directory in directories:
        raise ValueError(
            f'Expected rows to have names that differ, got {row.name!r} and '
            f'{directories.get(row.directory, "")!r}.')
      directories[row.directory] = row.name

  def with_seeds(self, seeds: Sequence[int]) -> 'Plan':
    """Returns the plan with other seeds."""
    return dataclasses.replace(self, seeds=tuple(seeds))

  def only(self, names: Sequence[str]) -> 'Plan':
    """Returns the plan with some of its rows.

    Raises:
      ValueError: if there is no such row.
    """
    known = {row.name: row for row in self.rows}
    for name in names:
      if name not in known:
        raise ValueError(f'Expected row={name!r} to be one of '
                         f'{", ".join(map(repr, known))}.'
                         f'{validate.nearest(name, known)}')
    return dataclasses.replace(
        self, rows=tuple(row for row in self.rows if row.name in names))


@dataclasses.dataclass(frozen=True)
class Run:
  """One row with one seed.

  Attributes:
    row: name.
    seed: of it.
    workdir: where it is kept.
    flags: of main.py, but for the work directory.
    config: a ConfigDict with all settings in force, locked.
  """
  row: str
  seed: int
  workdir: pathlib.Path
  flags: Sequence[str]
  config: Any


def setting_flags(settings: Mapping[str, Any] | Sequence[str]) -> list[str]:
  """Returns settings by dotted name as flags; flags stay what they are."""
  if not isinstance(settings, Mapping):
    return list(settings)
  return [f'--config.{name}={"" if value is None else value}'
          for name, value in settings.items()]


def load(place: str) -> Plan:
  """Returns the plan of a file.

  Args:
    place: a file, or a name of `configs/comparisons/`.

  Raises:
    ValueError: if there is none, or it fails; the message has its file and
      line.
  """
  names = sorted(path.stem for path in _FOLDER.glob('*.py')
                 if _has_plan(path))
  candidates = [pathlib.Path(place), pathlib.Path(f'{place}.py'),
                _FOLDER / f'{place}.py']
  file = next((each for each in candidates if each.is_file()), None)
  if file is None:
    raise ValueError(
        f'Expected {place} to be a plan ({", ".join(names)}, or a file) or the '
        f'work directory of a run.{validate.nearest(place, names)}')
  return command_line.call(file, 'get_plan', Plan)


def _has_plan(path: pathlib.Path) -> bool:
  """Returns whether a file has a plan, without running it."""
  return 'def get_plan(' in path.read_text()


def from_flags(configs: Sequence[str], rows: Sequence[str],
               seeds: Sequence[int]) -> Plan:
  """Returns the plan of a command line: each config as it is, and each row.

  Args:
    configs: as `--config` of main.py takes them.
    rows: 'name: --config.a=1 --config.b=2', settings for every config.
    seeds: of every row.

  Raises:
    ValueError: for a row without a name or settings.
  """
  made = []
  for config in configs:
    name = _config(config, []).name
    made.append(Row(name, config))
    for text in rows:
      title, _, settings = (part.strip() for part in text.partition(':'))
      settings = shlex.split(settings)
      if not title or not settings or not all(
          flag.startswith('--config.') for flag in settings):
        raise ValueError(f'Expected --row={text!r} to be a name, a colon and '
                         'settings: "uniform: --config.sampler.name=uniform".')
      title = title if len(configs) == 1 else f'{name}, {title}'
      made.append(Row(title, config, settings))
  name = '_'.join(dict.fromkeys(row.config.partition(':')[0].rpartition('/')[2]
                                .removesuffix('.py') for row in made))
  return Plan(name, made, seeds)


def runs(plan: Plan, workdir: pathlib.Path,
         more: Sequence[str] = ()) -> list[Run]:
  """Returns the runs of a plan, all rows with the first seed first.

  Args:
    plan: of them.
    workdir: of the comparison.
    more: settings for all rows, which win over those of the plan.

  Raises:
    ValueError: for a mistake in a row, whose name the message has.
  """
  return [run for seed in plan.seeds for run in _of_seed(
      plan, workdir, more, seed)]


def _of_seed(plan, workdir, more, seed) -> Iterator[Run]:
  for row in plan.rows:
    flags = [*setting_flags({'eval.teacher_dir': workdir / _TEACHERS}),
             *setting_flags(plan.settings), *row.flags, *more]
    # Two flags for one setting: the last one counts.
    last = {flag.partition('=')[0]: flag for flag in flags}
    flags = [*last.values(), f'--config.seed={seed}']
    with _of_row(row.name):
      yield Run(row.name, seed, workdir / row.directory / f'seed_{seed}',
                [f'--config={row.config}', *flags],
                _config(row.config, flags))


def _config(config, flags):
  values = absl_flags.FlagValues()
  parsed = command_line.parse(
      ['main.py', f'--config={config}', *flags], config_files.ROOT,
      values)
  if parsed.positional[1:]:
    raise ValueError(f'Expected settings only, got {parsed.positional[1:]}.')
  return parsed.config


@contextlib.contextmanager
def _of_row(name):
  """Puts the name of a row before what is wrong with it."""
  try:
    yield
  except (OSError, ValueError) as error:
    raise ValueError(f'row {name!r}: {error}') from error


def check(run: Run) -> experiments.Experiment:
  """Returns the experiment of a run, before anything is started.

  Raises:
    ValueError: for what is wrong with it, or if its work directory holds
      another run, or a file cannot be read; the message has the row's name.
  """
  with _of_row(run.row):
    if 'jsonl' not in run.config.log.writers:
      raise ValueError("Expected log.writers with 'jsonl', which has the "
                       'epochs that a comparison counts.')
    experiment = experiments.build(run.config)
    if (run.workdir / 'config.json').exists():
      work_directory.claim(run.workdir, experiment.identity)
  return experiment
