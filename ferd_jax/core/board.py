"""How work that is under way looks: rows on a terminal, a sentence elsewhere.

Nothing here knows of clocks or files: it is told what to draw, and how wide.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

from rich import console as consoles
from rich import text as texts

_LEAST_BAR = 20  # columns, at 80 and more
_MOST_ROWS = 3  # of small bars
_LEVELS = '▁▂▃▄▅▆▇█'
_TRENDS = {1: '↗', 0: '→', -1: '↘'}
_PLAIN = str.maketrans('━╸─↗→↘' + _LEVELS + '…·',
                       '=--/-\\' + '12345678' + '.,')


@dataclasses.dataclass
class Row:
  """A task that is under way.

  Attributes:
    name: of it.
    counted: how far it is, as text: '412/600'.
    share: that is done, in [0, 1]; None if unknown.
    beside: what stands to the right of the bar: a speed, the time left.
    values: names, values and trends (-1, 0, 1), the most important first.
  """
  name: str
  counted: str = ''
  share: float | None = None
  beside: str = ''
  values: Sequence[tuple[str, float, int]] = ()

  @property
  def label(self) -> str:
    """What stands to the left of the bar."""
    return f'{self.name} {self.counted}'.strip()


@dataclasses.dataclass(frozen=True)
class Bars:
  """Numbers of classes, drawn as small bars.

  Attributes:
    name: of what they are.
    labels: of the classes.
    values: one each, at least 0.
  """
  name: str
  labels: Sequence[str]
  values: Sequence[float]


def rows(tasks: Sequence[Row], bars: Bars | None, footer: str,
         width: int) -> list[texts.Text]:
  """Returns what is shown below the lines of a terminal.

  Args:
    tasks: the outermost first.
    bars: of classes, None for none.
    footer: last row, '' for none.
    width: columns.
  """
  beside = max((len(task.beside) for task in tasks), default=0)
  # Narrow terminals have no place beside the bar, still narrower ones no bar.
  if width < 60:
    beside = 0
  room = width - beside - 6 - (beside > 0)
  label = min(max((len(task.label) for task in tasks), default=0),
              max(room - _LEAST_BAR, room // 2))
  drawn = [_task(task, label, room - label, beside) for task in tasks]
  for task in tasks:
    line = _values(task.values, width)
    if line:
      drawn.append(texts.Text(line))
  drawn += [texts.Text(line) for line in _bars(bars, width)]
  if footer:
    drawn.append(texts.Text(_cut(footer, width), style='dim'))
  for line in drawn:
    line.rstrip()  # Terminals wrap blanks that nobody sees, or do not.
    line.no_wrap, line.overflow = True, 'crop'
  return drawn


def sentence(tasks: Sequence[Row]) -> str:
  """Returns the same as a line of a log."""
  parts = []
  for task in tasks:
    about = [_percent(task.share).strip(), task.beside,
             *(f'{name} {value:.3g}' for name, value, _ in task.values[:3])]
    parts.append(f'{task.label}: {", ".join(filter(None, about))}'
                 if any(about) else task.label)
  return '; '.join(parts)


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Rows that are made anew, for the width that there is, when drawn."""
  make: Callable[[int], list[texts.Text]]

  def __rich_console__(self, console: consoles.Console,
                       options: consoles.ConsoleOptions
                       ) -> consoles.RenderResult:
    for line in self.make(options.max_width):
      yield line if options.encoding.startswith('utf') else texts.Text(
          line.plain.translate(_PLAIN), no_wrap=True, overflow='crop')


def _task(task, label, bar, beside):
  """Returns the row of a task."""
  line = texts.Text(_cut(task.label, label).ljust(label) + ' ')
  full, empty = _bar(task.share, bar)
  line.append(full, 'green').append(empty, 'dim').append(_percent(task.share))
  if beside:
    line.append(' ' + task.beside.rjust(beside), 'cyan')
  return line


def _bar(share, width):
  """Returns the full and the empty part of a bar."""
  if share is None:
    return '', '─' * width
  halves = round(2 * width * min(max(share, 0), 1))
  full = '━' * (halves // 2) + '╸' * (halves % 2)
  return full, '─' * (width - len(full))


def _percent(share):
  return '' if share is None else f'{min(max(share, 0), 1):5.0%}'


def _values(values, width):
  """Returns as many values as a row holds, whole."""
  line = ''
  for name, value, trend in values:
    longer = f'{line}{"  " if line else ""}{name} {value:.3g} {_TRENDS[trend]}'
    if len(longer) > width:
      break
    line = longer
  return line


def _bars(bars, width):
  """Returns the rows of small bars: labelled, if there is room for that."""
  if bars is None or not len(bars.values):
    return []
  labels, values = list(bars.labels), list(bars.values)
  most = max(values) or 1.
  blocks = [_LEVELS[min(int(value / most * len(_LEVELS)), len(_LEVELS) - 1)]
            for value in values]
  extremes = sorted(zip(values, labels, strict=True))
  ends = (f'most {extremes[-1][1]} {extremes[-1][0]:.1%}, '
          f'least {extremes[0][1]} {extremes[0][0]:.1%}')
  longest = max(map(len, labels))
  size = min(longest, (width - 1) // len(values) - 3)
  title = _cut(f'{bars.name}: {ends}', width)
  if size >= min(longest, 3):
    cells = [f'{label[:size]} {block}'.ljust(size + 2)
             for label, block in zip(labels, blocks, strict=True)]
    return [title, ' '.join(cells)]
  row = ''.join(blocks)
  found = [row[i:i + width] for i in range(0, len(row), width)]
  return [title, *found[:_MOST_ROWS]]


def _cut(text, width):
  return text if len(text) <= width else text[:max(width - 1, 0)] + '…'
