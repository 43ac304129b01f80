"""How a command ends when it is told to: by SIGTERM, SIGINT or a preemption.

Work that must not be torn apart is done in `Stop.deferred()`: a signal is noted
there, and the work ends where it next tells how far it is, after a step or a
batch. Elsewhere it ends at once. Further signals change nothing, neither then
nor while files are closed; what is complete is saved either way.

Where `jax.distributed` runs, one process ending would leave the others waiting
for it. JAX agrees on a step of all of them after which everyone ends, as soon
as one has had its SIGTERM; SIGINT is passed on to it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from ferd_jax.core import reporting

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
  """Raised where work ends early.

  Attributes:
    signal: that was sent.
  """

  def __init__(self, number: signal.Signals):
    super().__init__(f'{number.name}; run again to go on.')
    self.signal = number

  @property
  def status(self) -> int:
    """The exit status that shells know for it: 143 for SIGTERM, else 130."""
    return 128 + self.signal


class Stop:
  """Whether to stop, and when."""

  def __init__(self):
    self._signal, self._deferred, self._checks = None, False, 0
    self._raised = False

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Work in it ends where it calls `check` only."""
    self._deferred = True
    try:
      yield
    finally:
      self._deferred = False

  def check(self) -> None:
    """Raises Stopped if there was a signal; all processes call it as often."""
    self._checks += 1
    if _preempted(self._checks):
      self._signal = self._signal or signal.SIGTERM
    if self._signal is not None:
      self._raised = True
      raise Stopped(self._signal)

  def reporter(self, reporter: reporting.Reporter) -> reporting.Reporter:
    """Returns a reporter that calls `check` whenever a task advances."""
    return _Checking(reporter, self.check)

  def handle(self, number: int, frame: object) -> None:
    """Takes a signal, as `signal.signal` gives it."""
    del frame
    if jax.distributed.is_initialized() and number == signal.SIGINT:
      os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others.
      return
    self._signal = self._signal or signal.Signals(number)
    # Not again while files are closed.
    if not (self._deferred or self._raised):
      self._raised = True
      raise Stopped(self._signal)

  @property
  def signalled(self) -> bool:
    """Whether there was a signal."""
    return self._signal is not None


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
  """Yields what SIGINT and SIGTERM tell; for commands, in the main thread."""
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  before = {number: signal.signal(number, stop.handle) for number in _SIGNALS}
  try:
    yield stop
  finally:
    for number, handler in before.items():
      # One more must not disturb the end of a process that is ending.
      signal.signal(number, signal.SIG_IGN if stop.signalled else handler)


def _preempted(check):
  """Returns whether all processes end at this check."""
  if not jax.distributed.is_initialized():
    return False
  try:
    return multihost_utils.reached_preemption_sync_point(check)
  except RuntimeError:  # The service was switched off.
    return False


class _Checking(reporting.Wrapped):
  """A reporter beside which something is called whenever a task advances."""

  def __init__(self, reporter, check):
    super().__init__(reporter)
    self._check = check

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0, images: int = 0) -> reporting.Task:
    return _CheckingTask(super().task(name, total, unit, initial, images),
                         self._check)


class _CheckingTask(reporting.Task):
  """A task of it."""

  def __init__(self, task, check):
    self._task, self._check = task, check

  def advance(self, count: int = 1,
              shown: Mapping[str, float] | None = None) -> None:
    self._task.advance(count, shown)
    self._check()

  def rename(self, name: str) -> None:
    self._task.rename(name)

  def resize(self, total: int) -> None:
    self._task.resize(total)

  def bars(self, name: str, labels: Sequence[str],
           values: Sequence[float]) -> None:
    self._task.bars(name, labels, values)

  def close(self) -> None:
    self._task.close()
