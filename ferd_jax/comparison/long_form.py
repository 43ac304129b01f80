"""A comparison as CSV: one line for each number, for other programs."""

import csv
import io
import math

from ferd_jax.comparison import table as tables

HEADER = ('method', 'attack', 'measure', 'mean', 'std', 'low', 'high', 'best',
          'close', 'difference', 'difference_low', 'difference_high', 'images',
          'seeds', 'values')


def text(table: tables.Table) -> str:
  """Returns all numbers of a comparison.

  Accuracies are fractions. `values` are those of the `seeds`, both with spaces
  between them; `difference` is from the reference. Beside the measures of
  `table.MEASURES` there are `worst_1`, `worst_2` and so on, the mean accuracy
  of the k worst classes, and the budget, whose attack is empty. What is unknown
  is empty.

  Args:
    table: of the comparison.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(HEADER)
  for row in (*table.teachers, *table.methods):
    seeds = ' '.join(map(str, table.seeds(row)))
    for attack in table.attacks:
      for measure in tables.MEASURES:
        cell = table.cells.get((row, attack, measure))
        if cell is not None:
          writer.writerow([
              row, attack, measure, *_cell(cell),
              table.num_images(row, attack), seeds,
              ' '.join(map(_number, cell.values))])
      curve = table.worst_k(row, attack)
      for k, value in enumerate([] if curve is None else curve, 1):
        writer.writerow(_line(row, attack, f'worst_{k}', value, seeds))
    if row in table.methods:
      for name, value in table.budget(row).items():
        writer.writerow(_line(row, '', name, value, seeds))
  return file.getvalue()


def _line(row, attack, measure, mean, seeds):
  """Returns a line of which the mean alone is known."""
  line = dict.fromkeys(HEADER, '') | {
      'method': row, 'attack': attack, 'measure': measure,
      'mean': _number(mean), 'seeds': seeds}
  return list(line.values())


def _cell(cell):
  interval, difference = cell.interval, cell.difference
  ends = ('', '', '') if difference is None else map(
      _number, (difference.mean, difference.low, difference.high))
  return [*map(_number, (interval.mean, interval.std, interval.low,
                         interval.high)), int(cell.best), int(cell.close),
          *ends]


def _number(value):
  if value is None or not math.isfinite(value):
    return ''
  return f'{value:.6g}'
