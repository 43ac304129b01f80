"""Runs of a plan, in processes of their own, some side by side.

Each is `ferd-jax train` in its work directory, where what it says is appended
to `log.txt`. A run that fails does not stop the others; one that is finished is
not started again, and one that was interrupted goes on.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import enum
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import ferd_jax
from ferd_jax.comparison import outcomes
from ferd_jax.comparison import plan as plans
from ferd_jax.core import file_locks
from ferd_jax.core import reporting
from ferd_jax.run import progress as progresses

LOG = 'log.txt'
COMMAND = ('-m', 'ferd_jax', 'train')
# A checkout that is not installed is found from anywhere.
_PATH = {'PYTHONPATH': os.pathsep.join(filter(None, [
    str(pathlib.Path(ferd_jax.__file__).parents[1]),
    os.environ.get('PYTHONPATH')]))}
_SECONDS = 'comparison.json'  # in the work directory of a run
_POLL = 0.3  # seconds between looks at the processes
_PATIENCE = 60  # seconds that a process has to stop
# Attempts without a new epoch after which a run that crashes is given up.
_ATTEMPTS = 3
TIME = 'the time is over'


class Status(enum.Enum):
  """Where a run is."""
  FINISHED = 'finished'
  TO_EVALUATE = 'to be evaluated again'  # under other attacks than it was
  BEGUN = 'begun'
  NEW = 'to start'


def status(run: plans.Run) -> Status:
  """Returns where a run is, by what is in its work directory."""
  if outcomes.covering(run.workdir, run.config.eval) is not None:
    return Status.FINISHED
  if outcomes.is_finished(run.workdir):
    return Status.TO_EVALUATE
  return Status.BEGUN if _epochs(run.workdir) else Status.NEW


@dataclasses.dataclass(frozen=True)
class Slots:
  """Places for runs side by side.

  Attributes:
    environments: of the processes, one for each place, beside this one's.
    cores: that each place may use; None for all.
  """
  environments: Sequence[Mapping[str, str]]
  cores: Sequence[frozenset[int] | None]


def slots(devices: Sequence[str] = (), jobs: int | None = None) -> Slots:
  """Returns places on the given GPUs, or for so many jobs.

  Args:
    devices: numbers of GPUs, as CUDA and ROCm count them, one for each place in
      turn; () if every run sees all devices.
    jobs: runs at a time; default: one, or one for each device. Without
      devices each gets an equal share of the processor's cores.

  Raises:
    ValueError: for what is no GPU.
  """
  for device in devices:
    if not re.fullmatch(r'\d+|(GPU|MIG)-[\w-]+', device):
      raise ValueError(f'Expected device={device!r} to be the number of a GPU.')
  jobs = jobs or len(devices) or 1
  environments = []
  for i in range(jobs):
    environments.append({name: devices[i % len(devices)] for name in (
        'CUDA_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')} if devices else {})
    if devices and jobs > len(devices):  # JAX takes most of the memory at once.
      share = math.ceil(jobs / len(devices))
      environments[-1]['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / share:.3f}'
  cores = [None] * jobs
  if not devices and jobs > 1 and hasattr(os, 'sched_getaffinity'):
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) >= jobs:
      cores = [frozenset(mine[i::jobs]) for i in range(jobs)]
  return Slots(environments, cores)


class Estimate:
  """How long runs take, from those that are done and a guess."""

  def __init__(self, runs: Sequence[plans.Run], minutes: float, places: int):
    """Reads what is known.

    Args:
      runs: all of the plan.
      minutes: a guess for one, 0 if there is none.
      places: runs side by side.
    """
    self._guess, self._places, self._known = 60 * minutes, places, {}
    for run in runs:
      seconds = _seconds(run.workdir)
      if seconds and status(run) is Status.FINISHED:
        self.add(run, seconds)

  def add(self, run: plans.Run, seconds: float) -> None:
    """Notes how long a run took, with its evaluation."""
    training = min(_training(_epochs(run.workdir)), seconds)
    self._known.setdefault(run.row, []).append((training, seconds - training))

  def left(self, runs: Sequence[plans.Run],
           evaluating: Mapping[pathlib.Path, float] | None = None
           ) -> float | None:
    """Returns the seconds until all of these are done, None if unknown.

    Args:
      runs: not finished.
      evaluating: seconds that work directories of them have been evaluated
        for, where training is over.
    """
    expected = [self._expected(run, (evaluating or {}).get(run.workdir, 0.))
                for run in runs]
    if None in expected:
      return None
    return max(sum(expected) / self._places, max(expected, default=0.))

  def _expected(self, run, evaluated):
    """Returns the seconds until a run is done, None if unknown."""
    epochs = _epochs(run.workdir)
    done = min(len(epochs) / run.config.num_epochs, 1.)
    known = self._known.get(run.row) or [
        each for those in self._known.values() for each in those]
    if known:
      training, rest = (sum(part) / len(known)
                        for part in zip(*known, strict=True))
    elif not self._guess:
      return None  # Its epochs say nothing of the evaluation at the end.
    elif not done:
      return self._guess
    else:
      training = _training(epochs) / done
      rest = self._guess - training
      if rest <= 0:
        return None  # The guess was too low.
    return training * (1 - done) + max(rest - evaluated, 0.)


@dataclasses.dataclass
class _Job:
  """A process that is at a run."""
  run: plans.Run
  place: int
  process: subprocess.Popen
  kind: Status  # of the run when it started
  started: float
  before: int  # epochs then

  @property
  def evaluating(self) -> float:
    """Seconds since its training was over, 0 before."""
    epochs = _epochs(self.run.workdir)
    if len(epochs) < self.run.config.num_epochs:
      return 0.
    return max(min(time.monotonic() - self.started,
                   time.time() - epochs[-1].get('time', 0.)), 0.)


def execute(runs: Sequence[plans.Run], places: Slots, estimate: Estimate, *,
            max_minutes: float = 0.,
            reporter: reporting.Reporter = reporting.SILENT
            ) -> Iterator[tuple[plans.Run, str]]:
  """Runs what is not finished; yields each run that ends, and what is wrong.

  Leaving the iteration, by an exception for instance, stops the processes.

  Args:
    runs: in the order in which they are started.
    places: where.
    estimate: of the time, told of every run that is done.
    max_minutes: start no epoch that may end later; 0: no limit. Evaluations
      come on top.
    reporter: told of every start and end.

  Yields:
    The run, and '' if it is finished, or why it is not.
  """
  deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
  waiting = [run for run in runs if status(run) is not Status.FINISHED]
  done, crashes, elsewhere = len(runs) - len(waiting), {}, set()
  jobs: list[_Job] = []
  with contextlib.ExitStack() as stack:
    progress = stack.enter_context(_Progress(waiting, reporter))
    stack.callback(_stop, jobs)
    while waiting or jobs:
      free = [place for place in range(len(places.environments))
              if place not in {job.place for job in jobs}]
      for run in list(waiting):
        # Another comparison in this directory may have done it meanwhile.
        if status(run) is Status.FINISHED:
          reason = ''
        elif _over(deadline):
          reason = TIME
        else:
          if free and (job := _start(run, places, free[0], deadline)):
            waiting.remove(run)
            jobs.append(job)
            reporter.line(f'{_name(run)}: {job.kind.value}, {run.workdir}')
            free.pop(0)
          elif free and run.workdir not in elsewhere:
            elsewhere.add(run.workdir)
            reporter.line(f'{_name(run)}: another process is at it')
          continue
        waiting.remove(run)
        done += not reason
        yield run, reason
      time.sleep(_POLL)
      progress.show()
      for job in [job for job in jobs if job.process.poll() is not None]:
        jobs.remove(job)
        run, spent = job.run, time.monotonic() - job.started
        _note_seconds(run.workdir, spent)
        reason = _reason(run, job, deadline)
        if job.process.returncode:
          advanced = len(_epochs(run.workdir)) > job.before
          crashes[run.workdir] = (
              1 if advanced else crashes.get(run.workdir, 0) + 1)
          # One that never got anywhere would not the next time.
          if _epochs(run.workdir) and crashes[run.workdir] < _ATTEMPTS:
            reporter.line(f'{_name(run)}: {reason}; once more')
            waiting.insert(0, run)
            continue
        if not reason:
          done += 1
          estimate.add(run, _seconds(run.workdir))
        left = estimate.left([*waiting, *(job.run for job in jobs)],
                             {job.run.workdir: job.evaluating for job in jobs})
        reporter.line(
            f'{_name(run)}: {reason or "finished"}, '
            f'{reporting.interval(spent)}; {done} of {len(runs)} finished'
            + (f', about {reporting.interval(left)} left' if left else ''))
        yield run, reason


class _Progress:
  """Shows how many epochs of some runs are done."""

  def __init__(self, runs, reporter):
    self._runs, self._reporter = list(runs), reporter
    self._looked, self._count = 0., self._epochs()
    self._task = reporter.task(
        'epochs', sum(run.config.num_epochs for run in runs), 'epoch',
        initial=self._count)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._task.close()

  def show(self):
    """Looks, now and then, how far the runs are."""
    if time.monotonic() > self._looked + 5:
      before, self._count = self._count, self._epochs()
      self._task.advance(self._count - before)
      self._looked = time.monotonic()

  def _epochs(self):
    return sum(len(_epochs(run.workdir)) for run in self._runs)


def _name(run):
  return f'{run.row}, seed {run.seed}'


def _over(deadline):
  return deadline is not None and time.monotonic() >= deadline


def _start(run, places, place, deadline):
  """Returns the job of a run, None if another process is at it already."""
  kind = status(run)
  run.workdir.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, *COMMAND, f'--workdir={run.workdir}', *run.flags]
  if kind is Status.TO_EVALUATE:
    command.append('--mode=evaluate')
  elif deadline is not None:
    left = max((deadline - time.monotonic()) / 60, 1e-3)
    command.append(f'--config.max_minutes={left:.3f}')
  with (run.workdir / LOG).open('a') as log:
    if not _locked(log):
      return None
    log.write(f'$ {" ".join(command)}\n')
    log.flush()
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | _PATH | dict(places.environments[place]))
  if places.cores[place]:
    with contextlib.suppress(OSError):  # It may have ended.
      os.sched_setaffinity(process.pid, places.cores[place])
  return _Job(run, place, process, kind, time.monotonic(),
              len(_epochs(run.workdir)))


def _locked(log):
  """Returns whether a run is this process's: False if another one is at it.

  The process of the run inherits the lock with the file, and gives it back as
  it ends, in whatever way: also if this one was killed before. Where there are
  no such locks the work directory's own decides, once the run starts.
  """
  return file_locks.take(log) is not False


def _stop(jobs):
  """Stops processes, which save what is complete, and waits for them."""
  for job in jobs:
    with contextlib.suppress(ProcessLookupError):
      job.process.terminate()
  for job in jobs:
    try:
      job.process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
      job.process.kill()
      job.process.wait()


def _reason(run, job, deadline):
  """Returns why a run is not finished, '' if it is."""
  code, now = job.process.returncode, status(run)
  if code == 0 and now is Status.FINISHED:
    return ''
  if code == 0 and job.kind is Status.TO_EVALUATE:
    return 'it ended without results under all attacks'
  if code == 0 and now is Status.TO_EVALUATE:
    return 'its results are not under the attacks of the plan'
  if code == 0 and deadline is None:
    return (f'it ended after {len(_epochs(run.workdir))} of '
            f'{run.config.num_epochs} epochs, without results')
  if code == 0:
    return TIME
  if code < 0:
    return f'killed by signal {-code}'
  return f'failed with status {code}: {_last_line(run.workdir / LOG)}'


def _last_line(path):
  lines = path.read_text(errors='replace').splitlines() if path.exists() else []
  return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _epochs(workdir: pathlib.Path) -> list[dict]:
  """Returns the metrics of the epochs so far, of whole lines only."""
  return outcomes.epochs(workdir / progresses.METRICS)


def _training(epochs):
  """Returns the seconds of epochs, without what came before and after them."""
  return sum(epoch.get('seconds', 0.) for epoch in epochs)


def _seconds(workdir):
  """Returns how long processes were at a run, over all sessions."""
  try:
    return float(json.loads((workdir / _SECONDS).read_text())['seconds'])
  except (OSError, ValueError, KeyError, TypeError):
    return 0.


def _note_seconds(workdir, seconds):
  (workdir / _SECONDS).write_text(
      json.dumps({'seconds': _seconds(workdir) + seconds}) + '\n')
