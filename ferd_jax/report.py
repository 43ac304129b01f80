"""Results as a table: teacher beside student, one row per attack."""

from collections.abc import Mapping

_COLUMNS = ('average', 'worst', 'worst10', 'nsd')


def table(results: Mapping) -> str:
  """Returns the results of a run as a Markdown table.

  Args:
    results: as written to `results.json`: `config`, `eps`, `seed`, `dataset`,
      `split` (None for noise), `num_examples`, `epoch` and `models`, a dict by
      model ('teacher', 'student') of dicts by attack of `metrics.summarise`.
  """
  models = results['models']
  header = ['attack', *(f'{model} {column}' for model in models
                        for column in _COLUMNS)]
  rows = []
  for attack in next(iter(models.values())):
    cells = [_cell(column, models[model][attack][column])
             for model in models for column in _COLUMNS]
    rows.append([attack, *cells])
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  lines = [_line(header, widths), _line(['-' * w for w in widths], widths),
           *(_line(row, widths) for row in rows)]
  split = f' {results["split"]}' if results['split'] else ''
  title = (f'{results["config"]}: {results["dataset"]}{split}, '
           f'{results["num_examples"]} images, Linf eps {results["eps"]:.5f}, '
           f'epoch {results["epoch"]}, seed {results["seed"]}')
  return '\n'.join([title, '', *lines])


def _cell(column, value):
  if value is None:  # The NSD of a model that is always wrong.
    return '-'
  return f'{value:.3f}' if column == 'nsd' else f'{value:.2%}'


def _line(cells, widths):
  cells = (cell.rjust(width)
           for cell, width in zip(cells, widths, strict=True))
  return f'| {" | ".join(cells)} |'
