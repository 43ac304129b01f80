"""What a person sees of work that takes its time: lines, and bars.

Functions that take a while have an argument `reporter`. By default nothing is
shown; commands give a `Terminal`, and pass it on: there is one, which knows all
that is under way, what is to come, and when all will be over. Off a terminal it
says so in a line now and then, so that a log is never silent for long.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import datetime
import functools
import os
import sys
import threading
import time

from etils import epath
import jax
from rich import console as consoles
from rich import control as controls
from rich import live as lives
from rich import segment as segments

from ferd_jax.core import board
from ferd_jax.core import buckets
from ferd_jax.core import schedule

Work = schedule.Work
_REDRAW = 1.  # seconds
_SILENCE = 120.  # seconds without a line, at most
_FAST, _SLOW = 0.1, 0.02  # how soon two running means forget
_CHANGE = 0.005  # between them, relative, that is a trend


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
      shown: values to show beside it, numbers of this host, the most important
        first: narrow terminals cut the rest. They are not read where nothing
        is shown.
    """

  def rename(self, name: str) -> None:
    """Sets the name that is shown from now on."""

  def resize(self, total: int) -> None:
    """Sets the total that is shown from now on."""

  def bars(self, name: str, labels: Sequence[str],
           values: Sequence[float]) -> None:
    """Shows numbers of classes as small bars from now on.

    Args:
      name: of what they are.
      labels: of the classes.
      values: one each, at least 0.
    """

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

  @property
  def left(self) -> float | None:
    """Seconds until all that is expected is done, None if unknown."""
    return None

  def line(self, text: str) -> None:
    """Shows a line, above what is shown of tasks."""

  def note(self, text: str) -> None:
    """Appends to the log what is shown elsewhere, see `kept`.

    Args:
      text: one line or several, a table for instance.
    """

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0, images: int = 0) -> Task:
    """Starts a task.

    Args:
      name: shown in front of it; also that of the work which it advances, see
        `expect`.
      total: of it, in units; None if unknown.
      unit: of what is counted, in the singular; 'B' are bytes, which are shown
        as kB, MB and so on. '' shows shares of the total and no counts.
      initial: done before.
      images: of a unit, by which the speed is shown; 0: units are.
    """
    del name, total, unit, initial, images
    return Task()

  def whole(self, name: str, footer: Callable[[], str] | None = None,
            spent: float = 0.) -> Task:
    """Starts what other tasks are parts of; its share is that of the time.

    Within another one it shows nothing.

    Args:
      name: shown in front of it.
      footer: returns what is shown below all, such as the memory in use; called
        by another thread.
      spent: seconds on the same in earlier sessions.
    """
    del name, footer, spent
    return Task()

  def expect(self, works: Mapping[str, Work]) -> None:
    """Says what is to come, by the name of its task.

    Args:
      works: in place of what was said of these names; of others it stays.
    """

  def remains(self, units: Mapping[str, float]) -> None:
    """Says how much is left of work by its name, which may be less or more."""

  def count(self, name: str) -> None:
    """Counts a unit of work that has no task."""

  def within(self, place: str) -> 'Reporter':
    """Returns this reporter, where names of tasks and lines begin with a place.

    Args:
      place: such as the name of a model that is evaluated.
    """
    return _Within(self, place)

  @contextlib.contextmanager
  def kept(self, log: epath.Path | None = None) -> Iterator[None]:
    """Lines have a time stamp meanwhile, unless this is a terminal.

    Args:
      log: a file that they are appended to, always with a stamp.
    """
    del log
    yield


class Terminal(Reporter):
  """Shows lines on stderr, and tasks as bars if that is a terminal.

  Of several processes only the first shows anything.
  """

  def __init__(self, active: bool | None = None,
               clock: Callable[[], float] = time.monotonic,
               now: Callable[[], datetime.datetime] = datetime.datetime.now):
    """Chooses whether this process shows anything.

    Args:
      active: whether it does; None: if it is process 0 of those that JAX joined
        or was not joined with others. That is asked whenever something is to be
        shown, and does not start JAX's devices: before a download they may
        belong to somebody else.
      clock: seconds from some moment on.
      now: returns the date and time.
    """
    self._active, self._clock, self._now = active, clock, now
    self._schedule = schedule.Schedule(clock)
    self._tasks: list[_Open] = []
    self._trends: dict[str, dict[str, _Trend]] = {}
    self._bars: board.Bars | None = None
    self._kept, self._log, self._said = 0, None, clock()
    self._live = self._pulse = None
    self._lengths: list[int] = []  # of the rows on the terminal, in columns
    self._lock = threading.RLock()

  @property
  def active(self) -> bool:
    if self._active is not None:
      return self._active
    return not jax.distributed.is_initialized() or jax.process_index() == 0

  @property
  def live(self) -> bool:
    return (self.active and sys.stderr.isatty()
            and os.environ.get('TERM') not in ('dumb', 'unknown'))

  @property
  def left(self) -> float | None:
    with self._lock:
      return self._schedule.left()

  def line(self, text: str) -> None:
    if not self.active:
      return
    with self._lock:
      self._said = self._clock()
      stamped = f'{self._now():%Y-%m-%d %H:%M:%S} {text}'
      if self._log is not None:
        self._log.write(stamped)
      if self._live is not None:
        self._erase_wrapped()
        self._live.console.print(text, markup=False, highlight=False)
      elif self._log is None or not self._log.is_stderr:
        print(stamped if self._kept and not self.live else text,
              file=sys.stderr, flush=True)

  def note(self, text: str) -> None:
    with self._lock:
      # Where stderr is the log, so may be where it is shown.
      if self.active and self._log is not None and not self._log.is_stderr:
        self._log.write(text)

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0, images: int = 0) -> Task:
    if not self.active:
      return Task()
    with self._lock:
      self._schedule.start(name)
    return self._opened(_Open(self, name, total, unit, initial, images))

  def whole(self, name: str, footer: Callable[[], str] | None = None,
            spent: float = 0.) -> Task:
    if not self.active or any(task.whole for task in self._tasks):
      return Task()
    return self._opened(_Open(self, name, None, '', 0, 0, whole=True,
                              footer=footer, spent=spent))

  def expect(self, works: Mapping[str, Work]) -> None:
    with self._lock:
      self._schedule.expect(works)

  def remains(self, units: Mapping[str, float]) -> None:
    with self._lock:
      self._schedule.remains(units)

  def count(self, name: str) -> None:
    with self._lock:
      self._schedule.advance(name)

  @contextlib.contextmanager
  def kept(self, log: epath.Path | None = None) -> Iterator[None]:
    if not self.active:
      yield
      return
    before = self._log, self._schedule
    self._log = before[0] if log is None else _Log(log, self._clock)
    self._schedule = schedule.Schedule(self._clock)
    self._kept += 1
    try:
      yield
    except BaseException as error:
      if self._log is not None:  # Who catches it says it on the terminal.
        self._log.write(f'{self._now():%Y-%m-%d %H:%M:%S} stopped: '
                        f'{type(error).__name__}: {error}')
      raise
    finally:
      self._kept -= 1
      if self._log is not before[0]:
        self._log.close()
      self._log, self._schedule = before

  def rows(self, width: int) -> list:
    """Returns what is shown of all tasks, so many columns wide."""
    with self._lock:
      footer = next((task.footer() for task in self._tasks
                     if task.footer is not None), '')
      return board.rows(self._rows(), self._bars, footer, width)

  def beat(self) -> None:
    """Draws anew, or says where the work is if nothing was said for long.

    A thread calls it, once a second while there is a task.
    """
    with self._lock:
      if self._live is not None:
        self._erase_wrapped()
        self._live.refresh()
      elif self._tasks and self._clock() >= self._said + _SILENCE:
        self.line(board.sentence(self._rows()))

  def _drawn_rows(self, width):
    """Returns the rows that are drawn now."""
    found = self.rows(width)
    self._lengths = [min(row.cell_len, width) for row in found]
    return found

  def _erase_wrapped(self, live=None):
    """Erases what a terminal that was made narrower has wrapped.

    It breaks the rows that are on it; rich would go up as many as it has drawn,
    and leave the others. Of one that cuts rows as many lines above them go,
    which the log has.
    """
    console = (live or self._live).console
    lines = sum(max(length - 1, 0) // console.width for length in self._lengths)
    self._lengths = []
    if lines:
      erase = segments.ControlType.ERASE_IN_LINE, 2
      console.control(controls.Control(
          segments.ControlType.CARRIAGE_RETURN, erase,
          *[(segments.ControlType.CURSOR_UP, 1), erase] * lines))

  def _rows(self):
    """Returns the rows of all tasks, the outermost first."""
    alone = not any(task.whole for task in self._tasks)
    return [task.row(self._schedule, self._clock(), alone and not i)
            for i, task in enumerate(self._tasks)]

  def _opened(self, task):
    with self._lock:
      self._tasks.append(task)
      if len(self._tasks) == 1:
        self._said = max(self._said, self._clock())
        if self.live:
          self._live = lives.Live(
              board.Drawn(self._drawn_rows), auto_refresh=False, transient=True,
              console=consoles.Console(file=sys.stderr),
              redirect_stdout=False, redirect_stderr=False)
          self._live.start()
        self._pulse = _Pulse(self.beat)
    return task

  def _closed(self, task):
    with self._lock:
      if task not in self._tasks:
        return
      self._tasks.remove(task)
      if self._tasks:
        return
      live, self._live, self._bars = self._live, None, None
      pulse, self._pulse = self._pulse, None
      if not self._kept:
        self._schedule = schedule.Schedule(self._clock)
        self._trends.clear()
      if live is not None:
        self._erase_wrapped(live)
        live.stop()
    pulse.stop()

  def _advanced(self, task, count, shown):
    with self._lock:
      task.done += count
      if not task.whole:
        self._schedule.advance(task.key, count)
      if shown:
        known = self._trends.setdefault(task.key, {})
        task.shown = list(shown)
        for name, value in shown.items():
          known.setdefault(name, _Trend(value)).add(value)

  def _show_bars(self, bars):
    with self._lock:
      self._bars = bars

  def _trend_values(self, task):
    known = self._trends.get(task.key, {})
    return [(name, known[name].fast, known[name].sign) for name in task.shown]


SILENT = Reporter()
TERMINAL = Terminal()


class _Open(Task):
  """A task of a terminal."""

  def __init__(self, terminal, name, total, unit, initial, images, *,
               whole=False, footer=None, spent=0.):
    self._terminal, self._started = terminal, terminal._clock()
    self.key, self.name, self.total, self.unit = name, name, total, unit
    self.done = self._initial = initial
    self._images, self.whole, self.footer = images, whole, footer
    self._spent, self.shown = spent, []

  def advance(self, count: int = 1,
              shown: Mapping[str, float] | None = None) -> None:
    self._terminal._advanced(self, count, shown)

  def rename(self, name: str) -> None:
    self.name = name

  def resize(self, total: int) -> None:
    self.total = total

  def bars(self, name: str, labels: Sequence[str],
           values: Sequence[float]) -> None:
    self._terminal._show_bars(board.Bars(name, labels, values))

  def close(self) -> None:
    self._terminal._closed(self)

  def row(self, plan, now, alone):
    """Returns what is drawn of it.

    Args:
      plan: the schedule.
      now: by the clock.
      alone: whether nothing else says how long all will take.
    """
    if self.whole:
      left = plan.left()
      return board.Row(
          self.name, share=plan.share(self._spent),
          beside='' if left is None else f'about {interval(left)} left')
    share = (None if self.total is None else
             self.done / self.total if self.total else 1.)
    done, seconds = self.done - self._initial, now - self._started
    beside = []
    if done and seconds > 0:
      beside.append(self._speed(done / seconds))
      if alone and self.total is not None:
        beside.append(
            f'{interval(seconds / done * (self.total - self.done))} left')
    return board.Row(self.name, self._counted(), share,
                     ', '.join(filter(None, beside)),
                     self._terminal._trend_values(self))

  def _counted(self):
    if not self.unit:
      return ''
    size = _bytes if self.unit == 'B' else str
    return size(self.done) + (
        '' if self.total is None else f'/{size(self.total)}')

  def _speed(self, rate):
    """Returns units or images a second as text."""
    if self.unit == 'B':
      return f'{_bytes(rate)}/s'
    if self._images or self.unit == 'image':
      return f'{_number(rate * (self._images or 1))} images/s'
    return f'{_number(rate)} {self.unit}s/s' if self.unit else ''


class Wrapped(Reporter):
  """Passes everything on to another reporter."""

  def __init__(self, reporter: Reporter):
    self._reporter = reporter

  @property
  def active(self) -> bool:
    return self._reporter.active

  @property
  def live(self) -> bool:
    return self._reporter.live

  @property
  def left(self) -> float | None:
    return self._reporter.left

  def line(self, text: str) -> None:
    self._reporter.line(text)

  def note(self, text: str) -> None:
    self._reporter.note(text)

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0, images: int = 0) -> Task:
    return self._reporter.task(name, total, unit, initial, images)

  def whole(self, name: str, footer: Callable[[], str] | None = None,
            spent: float = 0.) -> Task:
    return self._reporter.whole(name, footer, spent)

  def expect(self, works: Mapping[str, Work]) -> None:
    self._reporter.expect(works)

  def remains(self, units: Mapping[str, float]) -> None:
    self._reporter.remains(units)

  def count(self, name: str) -> None:
    self._reporter.count(name)

  def kept(self, log: epath.Path | None = None):
    return self._reporter.kept(log)


class _Within(Wrapped):
  """A reporter for a part of the work, which has a name."""

  def __init__(self, reporter, place):
    super().__init__(reporter)
    self._place = place

  def line(self, text: str) -> None:
    warning = 'Warning: '
    if text.startswith(warning):
      text, before = text.removeprefix(warning), warning
    else:
      before = ''
    self._reporter.line(f'{before}{self._place}, {text}')

  def task(self, name: str, total: int | None = None, unit: str = 'step',
           initial: int = 0, images: int = 0) -> Task:
    return self._reporter.task(f'{self._place}, {name}', total, unit, initial,
                               images)

  def expect(self, works: Mapping[str, Work]) -> None:
    self._reporter.expect({f'{self._place}, {name}': work
                           for name, work in works.items()})

  def remains(self, units: Mapping[str, float]) -> None:
    self._reporter.remains({f'{self._place}, {name}': number
                            for name, number in units.items()})

  def count(self, name: str) -> None:
    self._reporter.count(f'{self._place}, {name}')


class _Trend:
  """A value that is followed: its running mean, and where it goes."""

  def __init__(self, value):
    self.fast = self._slow = value

  def add(self, value):
    self.fast += _FAST * (value - self.fast)
    self._slow += _SLOW * (value - self._slow)

  @property
  def sign(self):
    """1 if it rises, -1 if it falls, 0 if neither."""
    change = self.fast - self._slow
    return 0 if abs(change) <= _CHANGE * abs(self._slow) else (
        1 if change > 0 else -1)


class _Pulse:
  """Calls a function once a second, from another thread."""

  def __init__(self, beat):
    self._over = threading.Event()
    threading.Thread(target=self._run, args=(beat,), daemon=True).start()

  def _run(self, beat):
    while not self._over.wait(_REDRAW):
      beat()

  def stop(self):
    self._over.set()


class _Log:
  """A file that lines are appended to.

  In a bucket nothing can be appended: there it is written as a whole, once a
  minute and at the end.
  """

  def __init__(self, path, clock):
    self._path, self._clock, self._lines = path, clock, None
    self._written = clock()
    with contextlib.suppress(OSError):
      path.parent.mkdir(parents=True, exist_ok=True)
      if buckets.is_one(path):
        self._lines = [path.read_text()] if path.exists() else []

  @functools.cached_property
  def is_stderr(self) -> bool:
    """Whether stderr goes to the same file."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
      return os.path.samestat(os.fstat(sys.stderr.fileno()),
                              os.stat(self._path))
    return False

  def write(self, text: str) -> None:
    # A disk that is full ends the run elsewhere, if anything is lost.
    with contextlib.suppress(OSError):
      if self._lines is None:
        with open(self._path, 'a') as file:
          file.write(f'{text}\n')
        return
      self._lines.append(f'{text}\n')
      if self._clock() > self._written + 60:
        self.close()

  def close(self) -> None:
    if self._lines is not None:
      self._written = self._clock()
      with contextlib.suppress(OSError):
        self._path.write_text(''.join(self._lines))


def interval(seconds: float) -> str:
  """Returns a time as bars show it: '01:05', '1:00:05'."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f'{hours}:{minutes:02}:{seconds:02}' if hours
          else f'{minutes:02}:{seconds:02}')


def show(text: str) -> None:
  """Prints a long text to stdout, of which `| head` may take a part only."""
  try:
    print(text, flush=True)
  except BrokenPipeError:  # Python writes again as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _number(value):
  return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def _bytes(value):
  for unit in ('B', 'kB', 'MB', 'GB'):
    if value < 1000 or unit == 'GB':
      return f'{value:.3g} {unit}' if value < 1000 else f'{value:,.0f} {unit}'
    value /= 1000
