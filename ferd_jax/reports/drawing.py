"""How every plot of a report is drawn: one style, and what several plots share.

Figures are of matplotlib, without a display. Their text is part of the drawing,
so that they look alike everywhere.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import io
import pathlib
from typing import Any

from matplotlib import figure as figures
from matplotlib import patches
from matplotlib import style
import numpy as np

from ferd_jax import assets

_STYLE = 'report.mplstyle'
COLUMN = 3.25  # inches, of a paper with two columns
PAGE = 6.5  # of a report, and of a paper with one column
# Of Okabe & Ito's colours: dark and light in grey, too.
COLOURS = {'teacher': '#0072B2', 'student': '#E69F00', 'model': '#E69F00'}
WORST = '#D55E00'
_MOST_NUMBERS = 20  # rows and columns of a heat map with numbers in its cells
# Colours and dashes of lines, more than one plot can keep apart.
_LINES = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
          '#000000')
_DASHES = ('-', '--', '-.', ':')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')


def styled(draw: Callable[..., figures.Figure]
           ) -> Callable[..., figures.Figure]:
  """Makes a function that returns a figure draw in the one style."""
  @functools.wraps(draw)
  def drawn(*args: Any, **kwargs: Any) -> figures.Figure:
    with style.context(assets.path(_STYLE), after_reset=True):
      return draw(*args, **kwargs)
  return drawn


def figure(width: float, height: float) -> figures.Figure:
  """Returns an empty figure, sizes in inches."""
  return figures.Figure(figsize=(width, height), layout='constrained')


def svg(drawn: figures.Figure) -> bytes:
  """Returns a figure as SVG, the same bytes whenever it is drawn."""
  file = io.BytesIO()
  with style.context(assets.path(_STYLE), after_reset=True):
    drawn.savefig(file, format='svg', metadata={'Date': None})
  return file.getvalue()


def save(drawn: figures.Figure, path: pathlib.Path) -> None:
  """Writes a figure as its file's ending says, such as .pdf or .png."""
  metadata = {'CreationDate': None} if path.suffix == '.pdf' else {}
  with style.context(assets.path(_STYLE), after_reset=True):
    drawn.savefig(path, metadata=metadata)


def line(number: int) -> dict[str, Any]:
  """Returns colour, dash and marker of the n-th of several lines."""
  return {'color': _LINES[number % len(_LINES)],
          'linestyle': _DASHES[number // len(_LINES) % len(_DASHES)],
          'marker': _MARKERS[(number + number // len(_LINES)) % len(
              _MARKERS)]}


def heat_map(axes: Any, values: np.ndarray, rows: Sequence[str],
             columns: Sequence[str], *, low: float | None = None,
             high: float | None = None, form: str = '{:.0f}',
             label: str = '', marked: Sequence[tuple[int, int]] = ()) -> None:
  """Draws a matrix, with its numbers in the cells where they can be read.

  Args:
    axes: to draw into.
    values: `[R, C]`; NaN is left white.
    rows: names.
    columns: names.
    low: end of the colours; default: the least value.
    high: the other end.
    form: of the numbers.
    label: of the colours: what the values are, with their unit.
    marked: cells with a frame.
  """
  values = np.asarray(values, float)
  known = values[np.isfinite(values)]
  low = (known.min() if known.size else 0.) if low is None else low
  high = (known.max() if known.size else 1.) if high is None else high
  shown = axes.imshow(values, aspect='auto', vmin=low,
                      vmax=high if high > low else low + 1)
  axes.figure.colorbar(shown, ax=axes, label=label, fraction=0.04, pad=0.02)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
    step = -(-len(names) // 40)
    axis.set_ticks(range(0, len(names), step), names[::step])
  if max(map(len, map(str, columns)), default=0) > 3:
    axes.tick_params(axis='x', rotation=90 if len(columns) > 6 else 30)
  if max(values.shape) <= _MOST_NUMBERS:
    middle = low + 0.55 * (high - low)
    for (row, column), value in np.ndenumerate(values):
      if np.isfinite(value):
        axes.text(column, row, form.format(value), ha='center', va='center',
                  fontsize=_cell_size(axes, values.shape[1]),
                  color='white' if value < middle else 'black')
  for row, column in marked:
    axes.add_patch(patches.Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=WORST,
        linewidth=1.2))


def _cell_size(axes, columns):
  """Returns the size of numbers in cells, in points."""
  spaces = axes.get_subplotspec().get_gridspec().ncols
  width = 72 * axes.figure.get_figwidth() * 0.75 / spaces / columns
  return float(np.clip(width / 2.4, 3.5, 6.5))


def thinned(number: int, most: int = 11) -> list[int]:
  """Returns indices of a few of many, first and last among them."""
  if number <= most:
    return list(range(number))
  return sorted({round(i) for i in np.linspace(0, number - 1, most)})


def picture(axes: Any, image: np.ndarray, **options: Any) -> None:
  """Draws an image `[H, W, C]` in [0, 1] without axes around it."""
  image = np.clip(image, 0, 1)
  options |= {'cmap': 'gray', 'vmin': 0, 'vmax': 1} if (
      image.shape[-1] == 1) else {}
  axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, **options)
  bare(axes)


def bare(axes: Any) -> None:
  """Removes ticks and frame, so that labels alone are left."""
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
