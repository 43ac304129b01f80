"""What a person sees of work that takes its time: lines, and bars.

Functions that take a while have an argument `reporter`. By default nothing is
shown; commands give a `Terminal`. Only this module knows how it is drawn.
"""

from collections.abc import Mapping
import os
import sys

import jax
import tqdm


class Task:
  """Work that advances towards a total; this one shows nothing.

  Use it in `with`, or call `close`: what it shows is gone before anything else
  is written, an error for example.
  """

  def __enter__(self) -> 'Task':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def advance(self, count: int = 1,
              shown: Mapping[str, float] | None = None) -> None:
    """Counts what was done.

    Args:
      count: how much.
      shown: values to show beside it, the most important first: narrow
        terminals cut the rest. They are not read where no bar is shown, which
        would wait for a device.
    """

  def rename(self, name: str) -> None:
    """Sets the name that is shown from the next `advance` on."""

  def resize(self, total: int) -> None:
    """Sets the total that is shown from the next `advance` on."""

  def close(self) -> None:
    """Ends it; may be called twice."""


class Reporter:
  """Where work tells how it gets on; this one shows nothing."""

  @property
  def active(self) -> bool:
    """Whether lines are shown."""
    return False

  @property
  def live(self) -> bool:
    """Whether tasks are shown as they advance; else lines are all there is."""
    return False

  def line(self, text: str) -> None:
    """Shows a line, above what is shown of tasks."""

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0) -> Task:
    """Starts a task.

    Args:
      name: shown in front of it.
      total: of it, in units; None if unknown.
      unit: of what is counted, in the singular; 'B' are bytes, which are shown
        as kB, MB and so on. '' shows shares of the total and no counts.
      initial: done before.
    """
    del name, total, unit, initial
    return Task()


class Terminal(Reporter):
  """Shows lines on stderr, and tasks as bars if that is a terminal.

  Of several processes only the first shows anything.
  """

  def __init__(self, active: bool | None = None):
    """Chooses whether this process shows anything.

    Args:
      active: whether it does; None: if it is process 0 of those that JAX joined
        or was not joined with others. That is asked whenever something is to be
        shown, and does not start JAX's devices: before a download they may
        belong to somebody else.
    """
    self._active = active

  @property
  def active(self) -> bool:
    if self._active is not None:
      return self._active
    return not jax.distributed.is_initialized() or jax.process_index() == 0

  @property
  def live(self) -> bool:
    return self.active and sys.stderr.isatty()

  def line(self, text: str) -> None:
    if self.active:
      tqdm.tqdm.write(text, file=sys.stderr)
      sys.stderr.flush()

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0) -> Task:
    return _Bar(name, total, unit, initial) if self.live else Task()


SILENT = Reporter()
TERMINAL = Terminal()


class _Bar(Task):
  """A bar that is gone when the task ends."""

  def __init__(self, name, total, unit, initial):
    # Of work of uneven speed the time to go must not jump about: hence the
    # smoothing.
    self._bar = tqdm.tqdm(
        desc=f'{name}: ', total=total, initial=initial, unit=unit,
        unit_scale=unit == 'B', leave=False, dynamic_ncols=True, smoothing=0.05,
        bar_format=None if unit else
        '{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}')

  def advance(self, count: int = 1,
              shown: Mapping[str, float] | None = None) -> None:
    if shown is not None:
      self._bar.set_postfix(
          {name: f'{value:.3g}' for name, value in shown.items()},
          refresh=False)
    self._bar.update(count)

  def rename(self, name: str) -> None:
    self._bar.set_description(name, refresh=False)

  def resize(self, total: int) -> None:
    self._bar.total = total

  def close(self) -> None:
    self._bar.close()


def interval(seconds: float) -> str:
  """Returns a time as bars show it: '01:05', '1:00:05'."""
  return tqdm.tqdm.format_interval(seconds)


def show(text: str) -> None:
  """Prints a long text to stdout, of which `| head` may take a part only."""
  try:
    print(text, flush=True)
  except BrokenPipeError:  # Python writes again as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
