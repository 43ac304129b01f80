"""Where a training is, for people as bars and lines, for programs as JSON."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax.core import errors
from ferd_jax.core import memory
from ferd_jax.core import reporting
from ferd_jax.run import checkpoints
from ferd_jax.run import samples as sampling
from ferd_jax.run import workload as workloads
from ferd_jax.run import writers as writing

METRICS = writing.METRICS
_SAMPLES = 'samples'


class Progress:
  """Shows where a run is, what it loses, and when it will be done.

  Use it in `with`: the bars are gone before an error is shown. Only process 0
  writes.
  """

  def __init__(self, workdir: epath.PathLike, workload: workloads.Workload,
               done_epochs: int = 0,
               reporter: reporting.Reporter = reporting.SILENT,
               kept: Sequence[str] | None = None, *,
               writers: Sequence[str] = ('jsonl', 'terminal'),
               identity: Mapping[str, Any] | None = None):
    """Starts the display.

    Args:
      workdir: where `metrics.jsonl` is written.
      workload: what the run has to do.
      done_epochs: those saved by an earlier session of this run; later ones
        in the metrics were lost with it and are removed at the next epoch.
      reporter: draws it.
      kept: the lines of those epochs as their checkpoint has them, from which
        a file that has others is made again; None if it has none.
      writers: what else is told, of `writers.WRITERS`.
      identity: of the run, for writers.

    Raises:
      OSError: if there are metrics that cannot be read, and none were kept.
    """
    self._workdir, self._workload = epath.Path(workdir), workload
    self._path, self._reporter = self._workdir / METRICS, reporter
    if kept is not None:
      self._lines = list(kept)
      if 'jsonl' in writers:
        self._restore(done_epochs)
    else:
      try:
        self._lines = lines(workdir, done_epochs)
      except OSError as error:
        raise OSError(f'{error} Without this file the run goes on, and what '
                      'was measured so far is lost.') from error
    self._writers = writing.Writers(writing.Run(
        self._workdir, identity or {}, workload.num_epochs, done_epochs,
        workload.class_names, self._lines, reporter), writers)
    reporter.expect(workload.works(done_epochs, self._lines))
    self._whole = reporter.whole('training', memory.text,
                                 train_seconds(self._lines))
    self._show_classes(json.loads(self._lines[-1]) if self._lines else {})
    self._phase, self._task, self._counts = '', reporting.Task(), {}

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self.end()
    self._writers.close()

  @property
  def lines(self) -> list[str]:
    """The lines of `metrics.jsonl`."""
    return self._lines

  @property
  def last_epoch_seconds(self) -> float:
    """What the last epoch took, 0 before the first."""
    return json.loads(self._lines[-1]).get('seconds', 0.) if self._lines else 0.

  def begin(self, epoch: int) -> None:
    """Shows that an epoch begins, by its number, from 1."""
    self._whole.rename(f'epoch {epoch}/{self._workload.num_epochs}')
    self._counts = {}

  def end(self) -> None:
    """Shows nothing any more; writers are still told."""
    self._task.close()
    self._whole.close()

  def step(self, phase: str, values: Mapping[str, float]) -> None:
    """Counts a step and shows its values.

    Args:
      phase: of it, 'synthesis' or 'distill'.
      values: of the step, numbers of this host.
    """
    if phase != self._phase:
      self._task.close()
      self._phase = phase
      self._task = self._reporter.task(
          phase, self._workload.steps[phase],
          initial=self._counts.get(phase, 0),
          images=self._workload.batch_sizes.get(phase, 0))
    self._counts[phase] = self._counts.get(phase, 0) + 1
    # Narrow terminals cut the rest.
    self._task.advance(shown={
        name: values[name] for name in sorted(values, key=_importance)})

  def epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
    """Tells all writers of a finished epoch.

    Args:
      epoch: epochs completed.
      values: JSON values, of which some scalars are shown.
    """
    self._task.close()
    self._phase = ''
    self._reporter.count(workloads.EPOCH)
    record = {'epoch': epoch, 'time': time.time()} | dict(values)
    self._lines.append(json.dumps(record))
    self._writers.epoch(record)
    self._show_classes(record)

  def pictures(self, epoch: int, samples: sampling.Samples, eps: float,
               probs: np.ndarray) -> None:
    """Writes what an epoch's images look like.

    Args:
      epoch: completed with them.
      samples: of it.
      eps: radius of the student's attack, in [0, 1] pixels.
      probs: `[K]`, weights of the classes.
    """
    if jax.process_index():
      return
    of, names = f'epoch {epoch}', self._workload.class_names
    shown = {'': sampling.picture(
        samples, f'Synthetic images of {of}, by class and its weight; in red '
        'what the teacher takes an image for', names, probs)}
    if samples.clean is not None:
      shown['_attacked'] = sampling.attacked_picture(
          samples, f'Attacked by the student of {of}: image, attacked image, '
          f'perturbation from -{eps:.3g} to {eps:.3g}', eps, names)
    sampling.save(self._workdir / _SAMPLES, epoch, samples, shown)
    self._writers.pictures(epoch, {
        f'{_SAMPLES}{suffix}': pixels for suffix, pixels in shown.items()})

  def results(self, results: Mapping[str, Any]) -> None:
    """Tells all writers of the results of the run."""
    self._writers.results(results)

  def _show_classes(self, record):
    probs, names = record.get('sampler/probs'), self._workload.class_names
    if probs is not None and len(probs) == len(names):
      self._whole.bars('class probabilities', names, probs)

  def _restore(self, done_epochs):
    """Writes the lines again if the file has others of the same epochs."""
    damage = f'{self._path} has other lines than the last checkpoint.'
    try:
      found = lines(self._workdir)
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
      aside = self._workdir / checkpoints.DAMAGED / METRICS
      checkpoints.put_aside(self._path, aside)
      damage += f' It is kept as {aside}.'
    self._reporter.line(
        f'Warning: {damage} It is made again from the checkpoint.')
    writing.write_lines(self._workdir, self._lines)


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


def _importance(name):
  """Returns what sorts values: the loss, the teacher's agreement, the rest."""
  return (name != 'loss', 'agreement' not in name, name)
