"""A comparison as a LaTeX table, to go into a paper with booktabs."""

from collections.abc import Sequence
import math

from ferd_jax.comparison import markdown
from ferd_jax.comparison import statistics
from ferd_jax.comparison import table as tables

_ESCAPES = {'\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '$': r'\$',
            '#': r'\#', '_': r'\_', '{': r'\{', '}': r'\}',
            '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
_SHORT = {'average': 'avg.', 'worst': 'worst', 'nsd': 'NSD'}


def escaped(text: str) -> str:
  """Returns a text that LaTeX prints as it is."""
  return ''.join(_ESCAPES.get(character, character) for character in text)


def text(table: tables.Table, footnotes: Sequence[str] = ()) -> str:
  """Returns the paper's table: method x attack x measure.

  Args:
    table: of the comparison.
    footnotes: below the table, plain text.
  """
  width = len(tables.MAIN)
  attacks = [escaped(markdown.attack_title(attack)) for attack in table.attacks]
  lines = [
      r'% needs \usepackage{booktabs}',
      r'\begin{table}', r'\centering', rf'\caption{{{_caption(table)}}}',
      rf'\begin{{tabular}}{{l{"r" * width * len(attacks)}}}', r'\toprule',
      ' & '.join(['', *(rf'\multicolumn{{{width}}}{{c}}{{{attack}}}'
                        for attack in attacks)]) + r' \\',
      ''.join(rf'\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}'
              for i in range(len(attacks))),
      ' & '.join(['method', *(_SHORT[measure] for _ in attacks
                              for measure in tables.MAIN)]) + r' \\',
      r'\midrule']
  for row in table.teachers:
    lines.append(_row(table, row))
  if table.teachers:
    lines.append(r'\midrule')
  lines += [_row(table, row) for row in table.methods]
  below = [rf'\par\footnotesize {escaped(note)}' for note in footnotes]
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', *below,
                    r'\end{table}', ''])


def _caption(table):
  results = table.outcomes[0].results
  counts = sorted({len(table.seeds(row)) for row in table.methods})
  seeds = ' or '.join(map(str, counts))
  spread = ('of one seed' if counts == [1] else
            f'mean and standard deviation over {seeds} seeds')
  marks = '' if len(table.methods) < 2 else (
      r' Bold: best; $^\dagger$: its difference from the best has 0 in its '
      rf'{statistics.LEVEL * 100:.0f}\% interval.')
  return (
      f'{escaped(results["dataset"])}, {results["num_examples"]} images, '
      rf'$\epsilon = {results["eps"]:.4g}$. Percent, {spread}; NSD: standard '
      f'deviation over classes divided by their mean.{marks}')


def _row(table, row):
  cells = [escaped(row)]
  for attack in table.attacks:
    for measure in tables.MAIN:
      cells.append(_cell(measure, table.cells.get((row, attack, measure))))
  return ' & '.join(cells) + r' \\'


def _cell(measure, cell):
  if cell is None:
    return ''
  mean = markdown.number(measure, cell.interval.mean)
  if mean == '-':
    return '--'
  if cell.best:
    mean = rf'\textbf{{{mean}}}'
  std, mark = '', r'^\dagger' if cell.close else ''
  if math.isfinite(cell.interval.std):
    std = rf'_{{\pm {markdown.number(measure, cell.interval.std)}}}'
  return f'{mean}${mark}{std}$' if mark or std else mean
