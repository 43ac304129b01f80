"""The plots of a comparison: methods over seeds, from its table."""

import math

from matplotlib import figure as figures
import numpy as np

from ferd_jax.comparison import markdown
from ferd_jax.comparison import table as tables
from ferd_jax.reports import drawing
from ferd_jax.reports import records


@drawing.styled
def curves(table: tables.Table, width: float) -> figures.Figure:
  """Draws average and worst class over the epochs, means over seeds.

  A band is from the lowest to the highest seed.
  """
  attacks = list(dict.fromkeys(
      attack for attack in table.attacks for outcome in table.outcomes
      if outcome.curve(attack)))
  if not attacks:
    raise records.Missing('not recorded: these runs have no learning curve '
                          '(eval.every)')
  legend = -(-len(table.methods) // (3 if width > 5 else 2))
  figure = drawing.figure(width, 1.9 * len(attacks) + 0.14 * legend + 0.2)
  grid = figure.subplots(len(attacks), 2, squeeze=False, sharex=True)
  for row, attack in enumerate(attacks):
    for number, (method, found) in enumerate(table.methods.items()):
      points = [outcome.curve(attack) for outcome in found]
      epochs = sorted(set.intersection(*(
          {epoch for epoch, *_ in curve} for curve in points)))
      if not epochs:
        continue
      for axes, measure in zip(grid[row], (
          lambda point: point[1], lambda point: min(point[2])), strict=True):
        values = 100 * np.array(
            [[measure(point) for point in curve if point[0] in epochs]
             for curve in points])
        style = drawing.line(number)
        axes.plot(epochs, values.mean(axis=0), label=method, **style)
        if len(values) > 1:
          axes.fill_between(epochs, values.min(axis=0), values.max(axis=0),
                            color=style['color'], alpha=0.15, linewidth=0)
    for axes, title in zip(grid[row], ('average', 'worst class'), strict=True):
      axes.set_title(f'{markdown.attack_title(attack)}, {title}')
      axes.grid(True)
      axes.set_ylim(bottom=0)
    grid[row, 0].set_ylabel('accuracy (%)')
  for axes in grid[-1]:
    axes.set_xlabel('epoch')
    axes.xaxis.get_major_locator().set_params(integer=True)
  figure.legend(*grid[0, 0].get_legend_handles_labels(),
                loc='outside lower center', ncols=3 if width > 5 else 2)
  return figure


@drawing.styled
def fairness(table: tables.Table, width: float) -> figures.Figure:
  """Draws the worst class against the average, with intervals, by attack."""
  attacks = table.attacks
  side = 3 if width > 5 else 2
  rows = -(-len(attacks) // side)
  # Methods first: each looks as it does in `curves`.
  names = [*table.methods, *table.teachers]
  figure = drawing.figure(width, 2.1 * rows + 0.14 * -(-len(names) // side))
  grid = figure.subplots(rows, side, squeeze=False).ravel()
  for axes, attack in zip(grid, attacks, strict=False):
    for number, row in enumerate(names):
      average, worst = (table.cells.get((row, attack, measure))
                        for measure in ('average', 'worst'))
      if average is None or worst is None:
        continue
      errors = [[[100 * max(0., cell.interval.mean - cell.interval.low)],
                 [100 * max(0., cell.interval.high - cell.interval.mean)]]
                for cell in (average, worst)]
      style = drawing.line(number)
      axes.errorbar(
          100 * average.interval.mean, 100 * worst.interval.mean,
          xerr=errors[0], yerr=errors[1], linewidth=0.6, linestyle='',
          label=row, color=style['color'], marker=style['marker'])
    axes.set(title=markdown.attack_title(attack), xlabel='average (%)',
             ylabel='worst class (%)')
    axes.grid(True, axis='both')
  for axes in grid[len(attacks):]:
    axes.set_axis_off()
  figure.legend(*grid[0].get_legend_handles_labels(),
                loc='outside lower center', ncols=side)
  return figure


@drawing.styled
def classes(table: tables.Table, width: float) -> figures.Figure:
  """Draws the accuracy of each class under the strongest attack, by method."""
  attack = strongest(table)
  rows, values = [], []
  for row in (*table.teachers, *table.methods):
    found = table.class_accuracies(row, attack)
    if found is not None:
      rows.append(row)
      values.append(100 * found.mean(axis=0))
  values = np.array(values)
  names = table.outcomes[0].results.get('class_names') or [
      str(i) for i in range(values.shape[1])]
  figure = drawing.figure(width, 0.9 + 0.16 * len(rows))
  axes = figure.subplots()
  drawing.heat_map(
      axes, values, rows, names, low=0, high=100, label='accuracy (%)',
      marked=[(i, int(np.nanargmin(row))) for i, row in enumerate(values)
              if np.isfinite(row).any()] if len(names) <= 20 else ())
  axes.set(title=f'{markdown.attack_title(attack)}, mean over seeds',
           xlabel='class')
  return figure


def strongest(table: tables.Table) -> str:
  """Returns the attack under which the methods are least robust on average."""
  def average(attack):
    found = [table.cells[method, attack, 'average'].interval.mean
             for method in table.methods
             if (method, attack, 'average') in table.cells]
    known = [value for value in found if math.isfinite(value)]
    # One that is not on all of them is no comparison.
    return (len(table.methods) - len(known),
            sum(known) / max(len(known), 1))
  return min(table.attacks, key=average)
