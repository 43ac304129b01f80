"""What is still to be done, how long it takes, and when all will be over.

Work of several kinds costs differently: a step of a generator is none of a
student, and neither is an image under attack. The first unit of each kind
compiles. What was not begun yet is judged by its cost in operations, at the
speed of what was measured; what is under way by its own speed.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
import time

# A program of another kind than those that were seen takes this share of what
# they took to compile: a step of training has many times the operations of an
# attack's, and comes first.
_OTHER_PROGRAM = 0.1
# Seconds in which what was measured loses all but a third of its weight: a
# machine may become slower.
_MEMORY = 1800.


@dataclasses.dataclass(frozen=True)
class Work:
  """Work of one kind that is to come.

  Attributes:
    units: how many, such as steps or images.
    cost: operations of a unit, 0 if nobody knows.
    network: whose operations they are; those of another may run at another
      speed.
    seconds: of a unit, as measured before; None if it was not.
    program: what kind of program the first unit compiles: those of a kind take
      about as long.
  """
  units: float
  cost: float = 0.
  network: str = ''
  seconds: float | None = None
  program: str = ''


@dataclasses.dataclass
class _Measured:
  """What was seen of a kind of work.

  Attributes:
    first: seconds of what was counted first, None before; it compiles.
    first_units: that it had.
    seconds: of all that was counted later, the longer ago the less.
    units: likewise.
  """
  first: float | None = None
  first_units: float = 0.
  seconds: float = 0.
  units: float = 0.

  @property
  def rate(self) -> float | None:
    """Seconds a unit, None if only the first was seen."""
    return self.seconds / self.units if self.units else None


class Schedule:
  """Work by name, and when it will be over."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts with nothing to do.

    Args:
      clock: seconds from some moment on.
    """
    self._clock = clock
    self._work: dict[str, Work] = {}
    self._measured: dict[str, _Measured] = {}
    self._started = self._last = clock()
    self._between, self._now_at = 0., ''

  def expect(self, works: Mapping[str, Work]) -> None:
    """Says what is to be done, in place of what was said of these names."""
    self._work |= works

  def remains(self, units: Mapping[str, float]) -> None:
    """Sets how much is left of work by its name; what it costs stays.

    Of work that nobody expected a unit counts as one operation.
    """
    for name, number in units.items():
      self._work[name] = dataclasses.replace(
          self._work.get(name, Work(0, 1.)), units=number)

  def start(self, name: str) -> None:
    """Says that a kind of work is next.

    The time since something was counted last is that of neither.
    """
    now = self._clock()
    self._between += now - self._last
    self._last, self._now_at = now, name

  def advance(self, name: str, units: float = 1) -> None:
    """Counts work that is done, which took since something was counted last.

    What was between counts towards its first units, or, for a kind that was
    not started, to those.
    """
    now = self._clock()
    took, self._last = now - self._last, now
    seen = self._measured.setdefault(name, _Measured())
    if seen.first is None or name != self._now_at:
      took, self._between = took + self._between, 0.
    if seen.first is None:
      seen.first, seen.first_units = took, units
    else:
      kept = math.exp(-took / _MEMORY)
      seen.seconds = kept * seen.seconds + took
      seen.units = kept * seen.units + units
    self._now_at = name
    if name in self._work:
      work = self._work[name]
      self._work[name] = dataclasses.replace(
          work, units=max(work.units - units, 0))

  def left(self) -> float | None:
    """Returns the seconds until all is done, None if nothing was measured."""
    if not self._measured:
      return None
    total = sum(self._expected(name) for name in self._work)
    # What is under way has not been counted yet.
    current = self._work.get(self._now_at)
    going_on = 0.
    if current is not None and current.units:
      going_on = min(self._clock() - self._last,
                     self._startup(self._now_at)
                     + (self._rate(self._now_at) or 0) * current.units)
    return max(total - going_on, 0.)

  def share(self, spent: float = 0.) -> float | None:
    """Returns which share of the time is over, in [0, 1]; None if unknown.

    Args:
      spent: seconds on the same before this was made.
    """
    left = self.left()
    if left is None:
      return None
    done = spent + self._clock() - self._started
    return done / (done + left) if done + left else 1.

  def _expected(self, name):
    """Returns the seconds that are left of a kind of work."""
    work = self._work[name]
    if not work.units:
      return 0.
    return self._startup(name) + (self._rate(name) or 0.) * work.units

  def _rate(self, name):
    """Returns the seconds of a unit, None if nobody can tell."""
    work = self._work.get(name, Work(0))
    seen = self._measured.get(name)
    if seen is not None and seen.rate is not None:
      return seen.rate
    if work.seconds is not None:
      return work.seconds
    if not work.cost:
      return None
    found = self._speed(work.network)
    return None if found is None else work.cost / found

  def _speed(self, network):
    """Returns operations a second, of this network if it was measured."""
    for those in (lambda work: work.network == network, lambda work: True):
      operations = seconds = 0.
      for name, seen in self._measured.items():
        work = self._work.get(name)
        if work is not None and work.cost and seen.units and those(work):
          operations += work.cost * seen.units
          seconds += seen.seconds
      if seconds:
        return operations / seconds
    # Of one that was counted once its compilation is a part.
    rates = [work.cost * seen.first_units / seen.first
             for name, seen in self._measured.items()
             if (work := self._work.get(name)) and work.cost and seen.first]
    return max(rates, default=None)

  def _startup(self, name):
    """Returns the seconds that the first unit will take beyond the others."""
    if name in self._measured:
      return 0.
    kind = self._work.get(name, Work(0)).program
    alike, others = [], []
    for other in self._measured:
      extra = self._startup_seen(other)
      if extra is not None:
        (alike if self._work[other].program == kind else others).append(extra)
    if alike:
      return sum(alike) / len(alike)
    return _OTHER_PROGRAM * sum(others) / len(others) if others else 0.

  def _startup_seen(self, name):
    seen = self._measured[name]
    if name not in self._work or not self._work[name].cost:
      return None  # It compiles nothing that is like a network's step.
    rate = self._rate(name)
    return None if rate is None else max(
        seen.first - rate * seen.first_units, 0.)
