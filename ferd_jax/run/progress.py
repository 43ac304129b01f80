"""Where a training is, for people as lines and a bar, for programs as JSON."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import time

from etils import epath
import jax

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import reporting
from ferd_jax.run import checkpoints

METRICS = 'metrics.jsonl'
# Of the metrics of a group of the config; all others are shown.
_SHOWN = ('/loss', '/kept_agreement', '/max_prob')


class Progress:
  """Shows where a run is, what it loses, and when it will be done.

  Use it in `with`: the bar is gone before an error is shown. Only process 0
  writes.
  """

  def __init__(self, workdir: epath.PathLike, total_steps: int,
               done_epochs: int = 0, done_steps: int = 0,
               reporter: reporting.Reporter = reporting.SILENT,
               kept: Sequence[str] | None = None):
    """Starts the display.

    Args:
      workdir: where `metrics.jsonl` is written.
      total_steps: generator and student steps of the whole run.
      done_epochs: those saved by an earlier session of this run; later ones
        in the metrics were lost with it and are removed at the next epoch.
      done_steps: the steps of those epochs.
      reporter: draws it.
      kept: the lines of those epochs as their checkpoint has them, from which
        a file that has others is made again; None if it has none.

    Raises:
      OSError: if there are metrics that cannot be read, and none were kept.
    """
    self._path = epath.Path(workdir) / METRICS
    self._reporter = reporter
    if kept is not None:
      self._lines = list(kept)
      self._restore(done_epochs)
    else:
      try:
        self._lines = lines(workdir, done_epochs)
      except OSError as error:
        raise OSError(f'{error} Without this file the run goes on, and what '
                      'was measured so far is lost.') from error
    self._task = reporter.task('', total_steps, initial=done_steps)
    self._start, self._first = time.monotonic(), done_steps
    self._done, self._total = done_steps, total_steps

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self._task.close()

  @property
  def lines(self) -> list[str]:
    """The lines of `metrics.jsonl`."""
    return self._lines

  @property
  def last_epoch_seconds(self) -> float:
    """What the last epoch took, 0 before the first."""
    return json.loads(self._lines[-1]).get('seconds', 0.) if self._lines else 0.

  def step(self, phase: str, values: Mapping[str, float]) -> None:
    """Counts a step and shows its values."""
    self._done += 1
    self._task.rename(phase)
    # The loss first: narrow terminals cut the rest.
    shown = sorted(values, key=lambda name: name != 'loss')
    self._task.advance(shown={name: values[name] for name in shown})

  def epoch(self, epoch: int, num_epochs: int, values: Mapping) -> None:
    """Shows a line for a finished epoch and appends it to the metrics.

    Args:
      epoch: epochs completed.
      num_epochs: of the run.
      values: JSON values, of which some scalars are shown.
    """
    self._lines.append(json.dumps({'epoch': epoch} | dict(values)))
    self._write()
    shown = ', '.join(
        f'{name} {value:.3g}' for name, value in values.items()
        if isinstance(value, float)
        and ('/' not in name or name.endswith(_SHOWN)))
    self._reporter.line(f'epoch {epoch}/{num_epochs}: {shown}, '
                        f'{_duration(self._remaining())} left')

  def _restore(self, done_epochs):
    """Writes the lines again if the file has others of the same epochs."""
    damage = f'{self._path} has other lines than the last checkpoint.'
    try:
      found = lines(self._path.parent)
      if len(found) > done_epochs + 1:  # Of one more a save did not finish.
        self._reporter.line(
            f'Warning: {self._path} has epochs that no checkpoint has; they '
            'are done again.')
      if self._lines == [line for line in found
                         if json.loads(line)['epoch'] <= done_epochs]:
        return
    except OSError as error:
      damage = str(error)
    if not self._path.exists():
      damage = f'{self._path} is not there.'
    elif jax.process_index() == 0:
      aside = self._path.parent / checkpoints.DAMAGED / METRICS
      checkpoints.put_aside(self._path, aside)
      damage += f' It is kept as {aside}.'
    self._reporter.line(
        f'Warning: {damage} It is made again from the checkpoint.')
    self._write()

  def _write(self):
    if jax.process_index() == 0:
      # As a whole: files in a cloud's bucket cannot be appended to.
      atomic.write_text(self._path,
                        ''.join(f'{line}\n' for line in self._lines))

  def _remaining(self) -> float:
    """Returns the seconds to go at the average speed of this session."""
    done = self._done - self._first
    elapsed = time.monotonic() - self._start
    return elapsed / max(done, 1) * (self._total - self._done)


def train_seconds(metrics: Sequence[str]) -> float:
  """Returns the seconds of training of the epochs of lines of metrics."""
  return sum(json.loads(line).get('seconds', 0.) for line in metrics)


def lines(workdir: epath.PathLike, last_epoch: float = math.inf) -> list[str]:
  """Returns the lines of metrics.jsonl of the epochs up to the last.

  Raises:
    OSError: if the file is damaged.
  """
  path, found = epath.Path(workdir) / METRICS, []
  if not path.exists():
    return found
  try:
    for number, line in enumerate(path.read_text().splitlines(), 1):
      try:
        if json.loads(line)['epoch'] <= last_epoch:
          found.append(line)
      except (LookupError, TypeError) as error:
        raise ValueError(f'line {number} has no epoch') from error
      except ValueError as error:
        raise ValueError(f'line {number} is no JSON') from error
  except (OSError, ValueError) as error:
    raise OSError(f'Cannot read {path}: {errors.reason(error)}.') from error
  return found


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else (
      f'{minutes}:{seconds:02}')
