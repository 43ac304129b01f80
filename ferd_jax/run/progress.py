"""Where a training is, for people as lines and a bar, for programs as JSON."""

from collections.abc import Mapping
import json
import time

from etils import epath
import jax

from ferd_jax.core import atomic
from ferd_jax.core import reporting

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
               reporter: reporting.Reporter = reporting.SILENT):
    """Starts the display.

    Args:
      workdir: where `metrics.jsonl` is appended to.
      total_steps: generator and student steps of the whole run.
      done_epochs: those saved by an earlier session of this run; later ones
        in the metrics were lost with it and are removed at the next epoch.
      done_steps: the steps of those epochs.
      reporter: draws it.

    Raises:
      OSError: if there are metrics that cannot be read.
    """
    self._writes = jax.process_index() == 0
    self._path = epath.Path(workdir) / METRICS
    self._reporter, self._lines = reporter, []
    if self._writes:
      self._lines = [line for line in _lines(self._path)
                     if json.loads(line)['epoch'] <= done_epochs]
    self._task = reporter.task('', total_steps, initial=done_steps)
    self._start, self._first = time.monotonic(), done_steps
    self._done, self._total = done_steps, total_steps

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self._task.close()

  @property
  def last_epoch_seconds(self) -> float:
    """What the last epoch took, 0 before the first; known to process 0."""
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
    if self._writes:
      self._lines.append(json.dumps({'epoch': epoch} | dict(values)))
      # As a whole: files in a cloud's bucket cannot be appended to.
      atomic.write_text(self._path,
                        ''.join(f'{line}\n' for line in self._lines))
    shown = ', '.join(
        f'{name} {value:.3g}' for name, value in values.items()
        if isinstance(value, float)
        and ('/' not in name or name.endswith(_SHOWN)))
    self._reporter.line(f'epoch {epoch}/{num_epochs}: {shown}, '
                        f'{_duration(self._remaining())} left')

  def _remaining(self) -> float:
    """Returns the seconds to go at the average speed of this session."""
    done = self._done - self._first
    elapsed = time.monotonic() - self._start
    return elapsed / max(done, 1) * (self._total - self._done)


def train_seconds(workdir: epath.PathLike, epoch: int) -> float:
  """Returns the seconds of training up to an epoch, over all sessions."""
  epochs = map(json.loads, _lines(epath.Path(workdir) / METRICS))
  return sum(e['seconds'] for e in epochs if e['epoch'] <= epoch)


def _lines(path):
  """Returns the lines of the metrics, checked to be JSON."""
  lines = path.read_text().splitlines() if path.exists() else []
  try:
    for line in lines:
      json.loads(line)
  except ValueError as error:
    raise OSError(f'Cannot read {path}: {error}.') from error
  return lines


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else (
      f'{minutes}:{seconds:02}')
