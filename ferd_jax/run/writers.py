"""Where the numbers and pictures of a run go: files, the terminal, services.

A writer is told of every epoch, of pictures and of the results; `log.writers`
names those of a run. Only process 0 of several has any. What the packages of
TensorBoard and of services raise is said once and stops no run.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib
import secrets
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import extras
from ferd_jax.core import reporting

METRICS = 'metrics.jsonl'
_PROJECT = 'ferd_jax'
# Of the metrics of a group of the config; all others are shown.
_SHOWN = ('/loss', '/kept_agreement', '/max_prob')
_MOST_CLASSES = 20  # that have a curve each, beside the histogram of all


@dataclasses.dataclass(frozen=True)
class Run:
  """What writers are told of a run before it begins.

  Attributes:
    workdir: of it.
    identity: its settings and what else it is, JSON values.
    num_epochs: of it.
    done_epochs: that were completed before; what a service was told of later
      ones was lost.
    class_names: of the K classes.
    lines: of metrics.jsonl, one for each completed epoch, which grow.
    reporter: shows lines.
  """
  workdir: epath.Path
  identity: Mapping[str, Any]
  num_epochs: int
  done_epochs: int
  class_names: Sequence[str]
  lines: Sequence[str]
  reporter: reporting.Reporter


class Writer:
  """Is told what a run finds; this one keeps nothing."""

  def __init__(self, run: Run):
    self._run = run

  def epoch(self, record: Mapping[str, Any]) -> None:
    """Takes what an epoch found, JSON values as in metrics.jsonl."""

  def pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Takes pictures of an epoch, uint8 `[rows, columns, 3]`, by name."""

  def results(self, results: Mapping[str, Any]) -> None:
    """Takes the results of the run, as in results.json."""

  def close(self) -> None:
    """Ends it."""


class JsonLines(Writer):
  """Writes `metrics.jsonl`."""

  def epoch(self, record: Mapping[str, Any]) -> None:
    write_lines(self._run.workdir, self._run.lines)


_COMPILED = 0.5  # seconds of compilation that are worth a word


class Lines(Writer):
  """Shows a line for each epoch."""

  def epoch(self, record: Mapping[str, Any]) -> None:
    shown = ', '.join(
        f'{name} {value:.3g}' for name, value in record.items()
        if isinstance(value, float) and name != 'time'
        and (name != 'compile_seconds' or value >= _COMPILED)
        and ('/' not in name or name.endswith(_SHOWN)))
    left = self._run.reporter.left
    left = '' if left is None else f', about {reporting.interval(left)} left'
    self._run.reporter.line(
        f'epoch {record["epoch"]}/{self._run.num_epochs}: {shown}{left}')


class TensorBoard(Writer):
  """Writes events into `tensorboard/`, by tensorboardX."""

  def __init__(self, run: Run):
    super().__init__(run)
    module = importlib.import_module('tensorboardX')
    self._writer = module.SummaryWriter(
        str(run.workdir / 'tensorboard'), purge_step=run.done_epochs + 1)

  def epoch(self, record: Mapping[str, Any]) -> None:
    number, time = record['epoch'], record['time']
    for name, value in scalars(record, self._run.class_names).items():
      self._writer.add_scalar(name, value, number, time)
    for name, values in of_classes(record).items():
      self._writer.add_histogram(name, values, number, walltime=time)
    self._writer.flush()

  def pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
    for name, pixels in pictures.items():
      self._writer.add_image(name, pixels, epoch, dataformats='HWC')

  def results(self, results: Mapping[str, Any]) -> None:
    for name, value in of_results(results).items():
      self._writer.add_scalar(name, value, results['epoch'])

  def close(self) -> None:
    self._writer.close()


class _Service(Writer):
  """Tells Weights & Biases, or what has the same functions."""
  package = ''

  def __init__(self, run: Run):
    super().__init__(run)
    self._module = importlib.import_module(self.package)
    self._module.init(
        project=_PROJECT, name=f'{run.identity["name"]}-{_run_id(run.workdir)}',
        config=dict(run.identity), resume='allow', **self._options())

  def _options(self):
    """Returns what else `init` is given."""
    return {}

  def epoch(self, record: Mapping[str, Any]) -> None:
    values = scalars(record, self._run.class_names)
    self._module.log(values | {
        f'{name}_histogram': self._module.Histogram(values)
        for name, values in of_classes(record).items()}, step=record['epoch'])

  def pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
    self._module.log({name: self._module.Image(pixels)
                      for name, pixels in pictures.items()}, step=epoch)

  def results(self, results: Mapping[str, Any]) -> None:
    self._module.log(of_results(results), step=self._run.num_epochs)

  def close(self) -> None:
    self._module.finish()


class WeightsAndBiases(_Service):
  """Tells Weights & Biases, as its own settings say: WANDB_MODE, its login."""
  package = 'wandb'

  def _options(self):
    return {'id': _run_id(self._run.workdir), 'dir': str(self._run.workdir)}


class Trackio(_Service):
  """Tells trackio, a dashboard of one's own."""
  package = 'trackio'


WRITERS: Mapping[str, type[Writer]] = {
    'jsonl': JsonLines, 'terminal': Lines, 'tensorboard': TensorBoard,
    'wandb': WeightsAndBiases, 'trackio': Trackio}
_PACKAGES = {'tensorboard': 'tensorboardX', 'wandb': 'wandb',
             'trackio': 'trackio'}


def check(names: Sequence[str]) -> None:
  """Raises ValueError if a writer's package is not there; it says what to do.

  Args:
    names: of `WRITERS`.
  """
  for name in names:
    if name in _PACKAGES:
      extras.need(_PACKAGES[name], name, f'log.writers={name!r}')


class Writers(Writer):
  """All writers of a run; of several processes only the first has any."""

  def __init__(self, run: Run, names: Sequence[str]):
    """Opens them.

    Args:
      run: what they are told of.
      names: of `WRITERS`.
    """
    super().__init__(run)
    self._writers: dict[str, Writer] = {}
    for name in names if jax.process_index() == 0 else ():
      self._try(name, lambda name=name: self._writers.update(
          {name: WRITERS[name](run)}))

  def epoch(self, record: Mapping[str, Any]) -> None:
    self._each(lambda writer: writer.epoch(record))

  def pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
    self._each(lambda writer: writer.pictures(epoch, pictures))

  def results(self, results: Mapping[str, Any]) -> None:
    self._each(lambda writer: writer.results(results))

  def close(self) -> None:
    self._each(lambda writer: writer.close())

  def _each(self, tell):
    for name, writer in list(self._writers.items()):
      self._try(name, lambda writer=writer: tell(writer))

  def _try(self, name, act):
    """Acts; what a package of others raises ends its writer only."""
    if name not in _PACKAGES:
      act()
      return
    try:
      act()
    except Exception as error:  # Anything, from a network for example.
      self._writers.pop(name, None)
      self._run.reporter.line(
          f'Warning: log.writers: {name} is told nothing more: '
          f'{errors.reason(error)}.')


def scalars(record: Mapping[str, Any], class_names: Sequence[str]
            ) -> dict[str, float]:
  """Returns the numbers of a record; of up to 20 classes one for each.

  Args:
    record: JSON values of an epoch.
    class_names: of the K classes.
  """
  found = {name: value for name, value in record.items()
           if isinstance(value, int | float) and not isinstance(value, bool)
           and name not in ('time', 'epoch')}
  if len(class_names) <= _MOST_CLASSES:
    for name, values in record.items():
      if isinstance(values, list) and len(values) == len(class_names):
        found |= {f'{name}/{class_name}': float(value) for class_name, value
                  in zip(class_names, values, strict=True) if value is not None}
  return found


def of_classes(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns what a record has of all classes, those that are known."""
  return {name: np.array([value for value in values if value is not None],
                         np.float64)
          for name, values in record.items()
          if isinstance(values, list) and any(
              value is not None for value in values)}


def of_results(results: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of results: averages, worst classes and NSD."""
  return {f'results/{model}/{attack}/{name}': summary[name]
          for model, attacks in results['models'].items()
          for attack, summary in attacks.items()
          for name in ('average', 'worst', 'nsd')
          if summary.get(name) is not None}


def write_lines(workdir: epath.PathLike, lines: Sequence[str]) -> None:
  """Writes metrics.jsonl; only process 0 does."""
  if jax.process_index() == 0:
    # As a whole: files in a cloud's bucket cannot be appended to.
    atomic.write_text(epath.Path(workdir) / METRICS,
                      ''.join(f'{line}\n' for line in lines))


def _run_id(workdir):
  """Returns what a service knows a run by, in all of its sessions."""
  path = workdir / 'run_id.txt'
  if not path.exists():
    atomic.write_text(path, f'{secrets.token_hex(4)}\n')
  return path.read_text().strip()
