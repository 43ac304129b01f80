"""Progress on a terminal as a bar, elsewhere as plain lines; metrics as JSON.
"""

from collections.abc import Mapping
import json
import sys
import time

from etils import epath
import jax
import tqdm

from ferd_jax.core import atomic


class Progress:
  """Shows where a run is, what it loses, and when it will be done.

  Use it in `with`: the bar is gone before an error is shown. Only process 0
  writes.
  """

  def __init__(self, workdir: epath.PathLike, total_steps: int,
               done_epochs: int = 0, done_steps: int = 0):
    """Starts the display.

    Args:
      workdir: where `metrics.jsonl` is appended to.
      total_steps: generator and student steps of the whole run.
      done_epochs: those saved by an earlier session of this run; later ones
        in the metrics were lost with it and are removed at the next epoch.
      done_steps: the steps of those epochs.

    Raises:
      OSError: if there are metrics that cannot be read.
    """
    self._active = jax.process_index() == 0
    self._path = epath.Path(workdir) / 'metrics.jsonl'
    if self._active:
      lines = (self._path.read_text().splitlines() if self._path.exists()
               else [])
      try:
        self._lines = [line for line in lines
                       if json.loads(line)['epoch'] <= done_epochs]
      except ValueError as error:
        raise OSError(f'Cannot read {self._path}: {error}.') from error
    self._bar = tqdm.tqdm(
        total=total_steps, initial=done_steps, unit='step', leave=False,
        disable=not (self._active and sys.stderr.isatty()),
        dynamic_ncols=True, smoothing=0.05)
    self._start, self._first = time.monotonic(), done_steps
    self._done, self._total = done_steps, total_steps

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  @property
  def last_epoch_seconds(self) -> float:
    """What the last epoch took, 0 before the first; known to process 0."""
    if not (self._active and self._lines):
      return 0.
    return json.loads(self._lines[-1]).get('seconds', 0.)

  def step(self, phase: str, values: Mapping[str, float]) -> None:
    """Counts a step and shows its values."""
    self._done += 1
    if not self._bar.disable:
      self._bar.set_description(phase, refresh=False)
      # The loss first: narrow terminals cut the rest.
      shown = sorted(values, key=lambda name: name != 'loss')
      self._bar.set_postfix({name: f'{values[name]:.3g}' for name in shown},
                            refresh=False)
      self._bar.update()

  def epoch(self, epoch: int, num_epochs: int, values: Mapping) -> None:
    """Prints a line for a finished epoch and appends it to the metrics.

    Args:
      epoch: epochs completed.
      num_epochs: of the run.
      values: JSON values; of the scalar ones, those of a phase ('phase/name')
        are printed only if they are losses.
    """
    if not self._active:
      return
    self._lines.append(json.dumps({'epoch': epoch} | dict(values)))
    # As a whole: files in a cloud's bucket cannot be appended to.
    atomic.write_text(self._path, ''.join(f'{line}\n' for line in self._lines))
    shown = ', '.join(
        f'{name} {value:.3g}' for name, value in values.items()
        if isinstance(value, float)
        and ('/' not in name or name.endswith('/loss')))
    self.line(f'epoch {epoch}/{num_epochs}: {shown}, '
              f'{_duration(self._remaining())} left')

  def line(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._active:
      tqdm.tqdm.write(text, file=sys.stderr)

  def _remaining(self) -> float:
    """Returns the seconds to go at the average speed of this session."""
    done = self._done - self._first
    elapsed = time.monotonic() - self._start
    return elapsed / max(done, 1) * (self._total - self._done)


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else (
      f'{minutes}:{seconds:02}')
