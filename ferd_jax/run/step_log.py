"""What the steps of an epoch say: read late, checked, averaged."""

from collections.abc import Callable
from collections.abc import Iterable
import math
import time

import numpy as np

from ferd_jax.core import compilation
from ferd_jax.core import scalars

OnStep = Callable[[str, dict[str, float]], None]


class StepLog:
  """Collects the metrics of one phase over an epoch.

  The metrics of a step are read once the next one is dispatched, so that the
  device never waits for the host.
  """

  def __init__(self, phase: str, epoch: int, on_step: OnStep | None = None):
    """Starts with nothing.

    Args:
      phase: name of the config's group of these steps.
      epoch: that is under way, from 1.
      on_step: called with the phase and the metrics of every step.
    """
    self._phase, self._epoch, self._on_step = phase, epoch, on_step
    self._values, self._count, self._seconds = {}, 0, 0.
    self._unread = None

  def follow(self, steps: Iterable[scalars.Scalars]) -> None:
    """Runs the steps of a round, which yield their metrics.

    Raises:
      FloatingPointError: if one is not finite; it names phase, epoch and step.
    """
    started = time.monotonic()
    with compilation.counted() as programs:
      for metrics in steps:
        self._read()
        self._unread = metrics
    self._seconds += time.monotonic() - started - programs.seconds

  def means(self) -> dict[str, float]:
    """Returns the means over the epoch's steps, and how long they took.

    Compilation does not count.
    """
    started = time.monotonic()
    self._read()
    self._seconds += time.monotonic() - started
    if not self._count:
      return {}
    means = {f'{self._phase}/{name}': float(np.mean(values))
             for name, values in self._values.items()}
    return means | {
        f'{self._phase}/ms_per_step': self._seconds / self._count * 1e3,
        f'{self._phase}/seconds': self._seconds}

  def _read(self):
    if self._unread is None:
      return
    values, self._unread = self._unread.read(), None
    self._count += 1
    for name, value in values.items():
      if not math.isfinite(value):
        raise FloatingPointError(
            f'Not finite: {self._phase}/{name}={value} at epoch {self._epoch}, '
            f'step {self._count}.')
      self._values.setdefault(name, []).append(value)
    if self._on_step is not None:
      self._on_step(self._phase, values)
