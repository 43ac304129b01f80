"""The accuracy of every class, mean ± deviation over seeds, for a paper.

What `comparison` has of averages and worst classes, class by class: a table for
each attack, a column for each method, the teacher's first.
"""

from collections.abc import Iterator
import csv
import io
import math

import numpy as np

from ferd_jax.comparison import latex
from ferd_jax.comparison import long_form
from ferd_jax.comparison import markdown
from ferd_jax.comparison import statistics
from ferd_jax.comparison import table as tables
from ferd_jax.evaluation import tables as evaluation_tables


def names(table: tables.Table) -> list[str]:
  """Returns the names of the classes, or their numbers."""
  results = table.outcomes[0].results
  number = len(results['class_counts'])
  known = results.get('class_names') or []
  return list(known) if len(known) == number else list(map(str, range(number)))


def by_attack(table: tables.Table
              ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """Yields each attack with the accuracies `[S, K]` of its rows."""
  for attack in table.attacks:
    found = {row: table.class_accuracies(row, attack)
             for row in (*table.teachers, *table.methods)}
    yield attack, {row: values for row, values in found.items()
                   if values is not None}


def cells(values: np.ndarray) -> list[statistics.Interval]:
  """Returns mean and deviation over seeds of each class."""
  return [statistics.of_seeds(column) for column in values.T]


def markdown_text(table: tables.Table) -> str:
  """Returns the tables as Markdown, in percent; the worst class is bold."""
  parts = []
  for attack, found in by_attack(table):
    columns = []
    for values in found.values():
      worst = _worst(values)
      columns.append([f'**{shown}**' if i == worst else shown for i, shown in
                      enumerate(markdown.spread('worst', cell)
                                for cell in cells(values))])
    rows = [[name, *row] for name, row in zip(
        names(table), zip(*columns, strict=True), strict=True)]
    parts.append('\n'.join([
        f'## {markdown.attack_title(attack)}, by class', '',
        *evaluation_tables.markdown(['class', *found], rows)]))
  return '\n\n'.join(parts)


def latex_text(table: tables.Table) -> str:
  """Returns the tables for a paper with booktabs; the worst class is bold."""
  parts = []
  for attack, found in by_attack(table):
    title = latex.escaped(markdown.attack_title(attack))
    lines = [
        r'\begin{table}', r'\centering',
        rf'\caption{{{title}: accuracy of each class in percent, mean and '
        r'standard deviation over seeds. Bold: worst class.}',
        rf'\begin{{tabular}}{{l{"r" * len(found)}}}', r'\toprule',
        ' & '.join(['class', *map(latex.escaped, found)]) + r' \\',
        r'\midrule']
    columns = [[_latex_cell(cell, i == _worst(values))
                for i, cell in enumerate(cells(values))]
               for values in found.values()]
    for name, row in zip(names(table), zip(*columns, strict=True), strict=True):
      lines.append(' & '.join([latex.escaped(name), *row]) + r' \\')
    parts.append('\n'.join([*lines, r'\bottomrule', r'\end{tabular}',
                            r'\end{table}', '']))
  return '\n'.join(parts)


def _latex_cell(cell, worst):
  mean = markdown.number('worst', cell.mean)
  if mean == '-':
    return '--'
  mean = rf'\textbf{{{mean}}}' if worst else mean
  if not math.isfinite(cell.std):
    return mean
  return f'{mean}$_{{\\pm {markdown.number("worst", cell.std)}}}$'


def csv_text(table: tables.Table) -> str:
  """Returns lines to follow those of `long_form.text`, fractions.

  The measure is `class` and the name of one.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  for attack, found in by_attack(table):
    for row, values in found.items():
      for name, column, cell in zip(names(table), values.T, cells(values),
                                    strict=True):
        line = dict.fromkeys(long_form.HEADER, '') | {
            'method': row, 'attack': attack, 'measure': f'class {name}',
            'mean': _number(cell.mean), 'std': _number(cell.std),
            'images': table.num_images(row, attack),
            'seeds': ' '.join(map(str, table.seeds(row))),
            'values': ' '.join(map(_number, column))}
        writer.writerow(line.values())
  return file.getvalue()


def _worst(values):
  means = values.mean(axis=0)
  return int(np.nanargmin(means)) if np.isfinite(means).any() else None


def _number(value):
  return f'{value:.6g}' if math.isfinite(value) else ''
