"""A comparison as Markdown: the paper's table, and what stands behind it."""

from collections.abc import Sequence
import math

from ferd_jax.comparison import statistics
from ferd_jax.comparison import table as tables
from ferd_jax.core import reporting
from ferd_jax.evaluation import tables as evaluation_tables

CLOSE = '†'
_TITLES = {'clean': 'clean', 'fgsm': 'FGSM', 'pgd20': 'PGD-20', 'cw20': 'CW',
           'autoattack': 'AA', 'autoattack_fast': 'AA fast',
           'autoattack_plus': 'AA plus',
           'autoattack_torchattacks': 'AA (torchattacks)'}
_MEASURES = {'average': 'average', 'worst': 'worst', 'nsd': 'NSD',
             'gap': 'worst - average', 'gini': 'Gini'}
_RATIOS = ('nsd', 'gini')  # the others are percentages


def attack_title(attack: str) -> str:
  """Returns what a table calls an attack."""
  return _TITLES.get(attack, attack)


def number(measure: str, value: float, signed: bool = False) -> str:
  """Returns a value as tables show it: percent without its sign, or a ratio."""
  if value is None or not math.isfinite(value):
    return '-'
  sign = '+' if signed else ''
  if measure in _RATIOS:
    return f'{value:{sign}.3f}'
  return f'{100 * value:{sign}.1f}'


def spread(measure: str, interval: statistics.Interval) -> str:
  """Returns 'mean ± std', or the mean alone of one seed."""
  mean = number(measure, interval.mean)
  if not math.isfinite(interval.std):
    return mean
  return f'{mean} ± {number(measure, interval.std)}'


def text(table: tables.Table, notes: Sequence[str] = (),
         footnotes: Sequence[str] = ()) -> str:
  """Returns all tables of a comparison.

  Args:
    table: of it.
    notes: lines at the end, on what is not finished for instance.
    footnotes: below the first table.
  """
  parts = [_heading(table), _main(table), *footnotes, _intervals(table),
           _differences(table), _fairness(table), _equal_average(table),
           _budget(table)]
  if notes:
    parts.append('## Not finished\n\n' + '\n'.join(
        f'- {note}' for note in notes))
  return '\n\n'.join(part for part in parts if part) + '\n'


def main_table(table: tables.Table) -> str:
  """Returns the paper's table alone: method x attack x measure."""
  return '\n'.join(_grid(table, tables.MAIN, _shown))


def _shown(measure, cell):
  shown = spread(measure, cell.interval)
  if cell.best:
    return f'**{shown}**'
  return f'{shown} {CLOSE}' if cell.close else shown


def _grid(table, measures, show, rows=None):
  """Returns the lines of tables of rows x (attack x measure)."""
  rows = [*table.teachers, *table.methods] if rows is None else rows
  left = [['method', 'seeds'], *([row, str(len(table.seeds(row)))]
                                 for row in rows)]
  groups = []
  for attack in table.attacks:
    group = [[f'{attack_title(attack)} {_MEASURES[measure]}'
              for measure in measures]]
    for row in rows:
      cells = [table.cells.get((row, attack, measure)) for measure in measures]
      group.append(['' if cell is None else show(measure, cell)
                    for measure, cell in zip(measures, cells, strict=True)])
    groups.append(group)
  return evaluation_tables.beside(left, groups)


def _heading(table):
  results = table.outcomes[0].results
  names = list(table.methods)
  data = sorted({' '.join(filter(None, (
      outcome.results['dataset'], outcome.results['split'])))
                 for outcome in table.outcomes})
  eps = sorted({outcome.results['eps'] for outcome in table.outcomes})
  numbers = {attack: table.num_images(names[0], attack)
             for attack in table.attacks
             if (names[0], attack, 'average') in table.cells}
  fewer = [f'{attack_title(attack)} on the first {count}'
           for attack, count in numbers.items()
           if count < results['num_examples']]
  about = [', '.join(data), f'{results["num_examples"]} images',
           f'{results.get("norm", "Linf")} eps '
           + ', '.join(f'{each:.5f}' for each in eps), *fewer]
  lines = ['# Comparison', '', '; '.join(about) + '.', '']
  lines.append(
      'Percent; mean ± standard deviation over seeds. NSD is the standard '
      'deviation over classes divided by their mean: lower is fairer. The best '
      f'mean is bold; {CLOSE} marks those whose difference from it has 0 in '
      f'its {statistics.LEVEL:.0%} interval.')
  if any(len(table.seeds(name)) < 2 for name in names):
    lines.append('Intervals of methods with one seed say nothing of other '
                 'seeds.')
  return '\n'.join(lines)


def _main(table):
  return '\n'.join(['## Robustness and fairness', '',
                    *_grid(table, tables.MAIN, _shown)])


def _between(measure, interval, signed=False):
  ends = [number(measure, end, signed) for end in (interval.low, interval.high)]
  if '-' in ends:
    return '-'
  return f'[{ends[0]}, {ends[1]}]'


def _intervals(table):
  def show(measure, cell):
    return _between(measure, cell.interval)
  return '\n'.join([
      f'## {statistics.LEVEL:.0%} intervals', '',
      'Over seeds and test images.', '', *_grid(table, tables.MAIN, show)])


def _differences(table):
  def show(measure, cell):
    if cell.difference is None:
      return ''
    return (f'{number(measure, cell.difference.mean, True)} '
            f'{_between(measure, cell.difference, True)}')
  rows = [row for row in table.methods if row != table.reference]
  if not rows:
    return ''
  return '\n'.join([
      f'## Difference from {table.reference}', '',
      'With intervals, image by image; below 0 is fairer for NSD.', '',
      *_grid(table, tables.MAIN, show, rows)])


def _fairness(table):
  rows, size = [], 0
  for attack in table.attacks:
    for row in (*table.teachers, *table.methods):
      curve = table.worst_k(row, attack)
      if curve is not None:
        size = max(size, len(curve))
        rows.append((row, attack, curve))
  ks = _ks(size)
  lines = []
  for row, attack, curve in rows:
    cells = [row, attack_title(attack)]
    cells += [_shown(measure, table.cells[row, attack, measure])
              for measure in ('gap', 'gini')]
    cells += [number('worst', curve[k - 1]) if k <= len(curve) else ''
              for k in ks]
    lines.append(cells)
  header = ['method', 'attack', *(_MEASURES[m] for m in ('gap', 'gini')),
            *(f'worst {k}' for k in ks)]
  return '\n'.join([
      '## Fairness', '', 'Points between worst class and average; Gini\'s '
      'coefficient over classes; mean accuracy of the k worst classes.', '',
      *evaluation_tables.markdown(header, lines)])


def _ks(size):
  """Returns for which k the mean of the k worst classes is shown."""
  shares = {math.ceil(share * size) for share in (0.1, 0.2, 0.5, 1)}
  return sorted(k for k in {1, 2, 3, 5} | shares if 0 < k <= size)


def _equal_average(table):
  parts = []
  for attack in table.curve_attacks():
    lines = []
    for method, found in table.at_equal_average(attack).items():
      lines.append([
          method, attack_title(attack), number('average', found.level),
          ', '.join(map(str, found.epochs)),
          ', '.join(map(str, found.reference_epochs)),
          *(f'{number(measure, own)} / {number(measure, other)}'
            for measure, (own, other) in found.measures.items())])
    parts += lines
  if not parts:
    return ''
  header = ['method', 'attack', 'level', 'epochs',
            f'epochs of {table.reference}', *_MEASURES.values()]
  return '\n'.join([
      '## At equal average', '',
      f'Each method / {table.reference}, at the epoch of the learning curve '
      'whose average is nearest to the lower one of both at the end; left out '
      'if they are more than a point apart. The epoch is chosen on the images '
      'that the numbers are of.', '',
      *evaluation_tables.markdown(header, parts)])


def _budget(table):
  rows = []
  for method in table.methods:
    found = table.budget(method)
    devices = table.devices(method)
    rows.append([
        method, _count(found['images']), _count(found['generator_steps']),
        _count(found['teacher_forward']), _count(found['teacher_backward']),
        _count(found['student_steps']),
        '-' if found['seconds'] is None else
        reporting.interval(found['seconds']),
        *(_milliseconds(table.speed(method, phase))
          for phase in ('synthesis', 'distill')),
        '; '.join(devices)])
  header = ['method', 'images', 'generator steps', 'teacher forward',
            'teacher backward', 'student steps', 'time', 'ms a generator step',
            'ms a student step', 'on']
  return '\n'.join([
      '## Budget', '', 'Of a run. Teacher passes are of single images; '
      'evaluations come on top, in passes and in time.', '',
      *evaluation_tables.markdown(header, rows)])


def _count(value):
  return '-' if value is None else f'{value:,.0f}'


def _milliseconds(value):
  return '-' if value is None else f'{value:.1f}'
