"""Results as tables and JSON: teacher beside student, a row per attack."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from ferd_jax.attacks import diagnosis

_COLUMNS = ('average', 'worst', 'worst10', 'nsd')
_SUCCESS = 'success_rate'  # in results where clean images are, too
WIDTH = 100  # columns of what is printed
MOST_CLASSES = 20  # that have a row each


def not_data_free(training_data: Mapping) -> str:
  """Returns what is said of a network that real images made.

  Args:
    training_data: `num_examples`, `dataset` and `split` of the images.
  """
  return ('NOT DATA-FREE: the student was trained on '
          f'{training_data["num_examples"]:,} real images, '
          f'{training_data["dataset"]} {training_data["split"]}.')


def text(results: Mapping) -> str:
  """Returns all that is printed of results, at most 100 columns wide.

  `table`, `class_table` where accuracies of classes are known, `target_table`s,
  curves and diagnoses.
  """
  tables = [table(results)]
  if 'class_names' in results and all(
      'per_class' in summary for found in results['models'].values()
      for summary in found.values()):
    tables.append(class_table(results))
  for name, matrix in results.get('targets', {}).items():
    number = matrix.get('num_examples')
    if number is not None and number < results['num_examples']:
      name = f'{name} (first {number} images)'
    tables.append(target_table(name, results['class_names'], matrix))
  tables += [curve_table(name, found)
             for name, found in results.get('curves', {}).items()]
  for name, values in results.get('diagnosis', {}).items():
    found = diagnosis.Diagnosis.from_json(values)
    tables.append(f'{name}: can these numbers be believed? {found.table()}')
  return '\n\n'.join(tables)


def table(results: Mapping) -> str:
  """Returns the results of a run as a Markdown table.

  Models stand beside each other if 100 columns hold them, else below. The worst
  tenth of the classes is left out where it is the worst class everywhere, and
  success rates (`success`) where models that are beside each other without them
  would not be with them.

  Args:
    results: as written to `results.json`: `config`, `norm`, `eps`, `seed`,
      `dataset`, `split` (None for noise), `num_examples`, `class_counts`,
      `epoch` (None for models from files), `training_data` if the student was
      trained on real images, and `models`, a dict by model
      ('teacher', 'student') of dicts by attack of `metrics.summarise`, with
      `success_rate` where it is known and `num_examples` of an attack that got
      the first so many only.
  """
  models = results['models']
  columns = [column for column in _COLUMNS if column != 'worst10' or any(
      summary['worst10'] != summary['worst'] for found in models.values()
      for summary in found.values())]
  title = [f'{results["num_examples"]} images{_per_class(results)}',
           f'{results.get("norm", "Linf")} eps {results["eps"]:.5f}',
           f'epoch {results["epoch"]}' if results['epoch'] else '',
           f'seed {results["seed"]}']
  source = ' '.join(filter(None, (results['dataset'], results['split'])))
  warned = {}  # The attacks by model and warning, which several may share.
  for model, found in models.items():
    for attack, values in found.items():
      for warning in values.get('warnings', ()):
        warned.setdefault((model, warning), []).append(attack)
  notes = []
  if results.get('training_data'):
    notes.append(not_data_free(results['training_data']))
  notes += [f'Warning: {model}, {", ".join(attacks)}: {warning}'
           for (model, warning), attacks in warned.items()]
  return '\n'.join([
      f'{results["config"]}: {source}, {", ".join(filter(None, title))}', '',
      *_beside(results, columns), *([''] if notes else []), *notes])


def _beside(results, columns):
  """Returns the lines of the results' table, or of one for each model."""
  models = results['models']
  choices = [columns]
  if any(_SUCCESS in summary for found in models.values()
         for summary in found.values()):
    choices.insert(0, [columns[0], _SUCCESS, *columns[1:]])
  def fitting(models):
    """Returns the first table that fits, else the last, and whether it does."""
    for chosen in choices:
      heads = ['success' if column == _SUCCESS else column
               for column in chosen[1:]]
      for average in ('{} average', '{} avg', '{}'):
        header = ['attack']
        for model in models:
          header += [average.format(model), *heads]
        found = markdown(header, _rows(results, models, chosen))
        if len(found[0]) <= WIDTH:
          return found, True
    return found, False
  lines, fits = fitting(models)
  if fits:
    return lines
  lines = []
  for model in models:
    lines += [*([''] if lines else []), *fitting([model])[0]]
  return lines


def _rows(results, models, columns):
  """Returns a row for each attack: its name, and cells of some models."""
  found, rows = results['models'], []
  for attack, summary in next(iter(found.values())).items():
    number = summary.get('num_examples', results['num_examples'])
    rows.append([
        attack if number >= results['num_examples'] else
        f'{attack} (first {number})',
        *(_cell(column, found[model][attack].get(column))
          for model in models for column in columns)])
  return rows


def class_table(results: Mapping) -> str:
  """Returns the accuracy of each class under each attack, Markdown tables.

  As many attacks stand beside each other as 100 columns hold. Of more than 20
  classes those in which the last model is weakest are shown, under the last
  attack.

  Args:
    results: as for `table`, with `class_names` and `per_class` accuracies.
  """
  models, names = results['models'], results['class_names']
  attacks = list(next(iter(models.values())))
  *_, last = models.values()
  weakest = last[attacks[-1]]['per_class']
  shown, title = range(len(names)), 'Accuracy by class'
  if len(names) > MOST_CLASSES:
    known = [label for label in shown if weakest[label] is not None]
    shown = sorted(known, key=lambda label: weakest[label])[:MOST_CLASSES]
    title += (f', the {len(shown)} of {len(names)} that are weakest under '
              f'{attacks[-1]}')
  if len(models) > 1:
    title += f': {", ".join(models)}'
  counts = results.get('class_counts')
  rows = [[names[label], *([] if counts is None else [str(counts[label])])]
          for label in shown]
  head = ['class', *([] if counts is None else ['images'])]
  cells = {attack: [
      ' '.join(_short(found[attack]['per_class'][label])
               for found in models.values()) for label in shown]
           for attack in attacks}
  return '\n'.join([title, '', *beside([head, *rows], [
      [[attack], *([cell] for cell in cells[attack])] for attack in attacks])])


def beside(left: Sequence[Sequence[str]],
           groups: Sequence[Sequence[Sequence[str]]]) -> list[str]:
  """Returns Markdown tables of as many groups of columns as 100 columns hold.

  Args:
    left: rows of cells, the header first, that each of the tables begins with.
    groups: the rows of columns that stay together, the header first.
  """
  lines, start = [], 0
  while start < len(groups):
    for end in range(len(groups), start, -1):
      head, *rows = [
          [*row, *(cell for group in groups[start:end] for cell in group[i])]
          for i, row in enumerate(left)]
      found = markdown(head, rows)
      if len(found[0]) <= WIDTH:
        break
    lines += [*([''] if lines else []), *found]
    start = end
  return lines


def sweep_table(sweep: Sequence[Mapping]) -> str:
  """Returns averages and worst classes over radii as Markdown tables.

  Args:
    sweep: results as for `table`, one per radius.
  """
  models = sweep[0]['models']
  columns = [(model, attack) for model in models for attack in models[model]]
  radii = [['eps'], *([f'{results["eps"]:.5f}'] for results in sweep)]
  groups = []
  for model, attack in columns:
    found = [results['models'][model][attack] for results in sweep]
    groups.append([[f'{model} {attack}'], *(
        [f'{each["average"]:.2%} ({each["worst"]:.2%})'] for each in found)])
  return '\n'.join(['Average (worst class) by radius:', '',
                    *beside(radii, groups)])


def target_table(name: str, class_names: Sequence[str],
                 matrix: Mapping) -> str:
  """Returns success rates of targeted attacks as a Markdown table.

  Where 100 columns do not hold the names of the classes, their numbers stand
  for them; of more than 20 classes only the extreme pairs are said.

  Args:
    name: of the model, and what else the title says first.
    class_names: of the K classes.
    matrix: `target_analysis.TargetMatrix.json_values`.
  """
  title = (f'{name}: how often an attack on the class of a row reaches that '
           f'of a column, {_cell("average", matrix["mean"])} on average, '
           f'std / mean over all {_cell("nsd", matrix["unevenness"])}')
  if len(class_names) > MOST_CLASSES:
    lines = [title.replace('the class of a row reaches that of a column',
                           'one class reaches another')]
    for kind in ('easiest', 'hardest'):
      if matrix.get(kind):
        source, target, rate = matrix[kind]
        lines.append(f'{kind}: {class_names[source]} to {class_names[target]}, '
                     f'{rate:.2%}')
    return '\n'.join(lines)
  rows = []
  for source, rates in enumerate(matrix['reached']):
    rows.append([
        class_names[source], str(matrix['counts'][source]),
        *('' if rate is None else f'{rate:.0%}' for rate in rates),
        _cell('nsd', matrix['source_unevenness'][source])])
  found = markdown(['class', 'images', *class_names, 'std / mean'], rows)
  if len(found[0]) > WIDTH:
    rows = [[f'{source} {row[0]}', row[1],
             *(cell.removesuffix('%') for cell in row[2:-1]), row[-1]]
            for source, row in enumerate(rows)]
    found = markdown(['class', 'images', *map(str, range(len(class_names))),
                      'std/mean'], rows)
    title += ', in percent'
  return '\n'.join([title, '', *found])


def curve_table(name: str, found: Mapping) -> str:
  """Returns accuracies over radii as a Markdown table.

  Args:
    name: of the model.
    found: of `curves.curve`.
  """
  rows = [[f'{eps:g}' if found['norm'] == 'L0' else f'{eps:.5f}',
           *(_cell(column, at[column]) for column in _COLUMNS)]
          for eps, at in zip(found['eps'], found['at'], strict=True)]
  median = found['median']
  title = (f'{name}: accuracy over {found["norm"]} radii, attacks '
           f'{", ".join(found["attacks"])}; median distance of what is right '
           f'{"-" if median is None else format(median, ".4g")}, success rate '
           f'{_cell("average", found["success_rate"])}')
  warnings = [f'Warning: {text}' for text in found['warnings']]
  return '\n'.join([title, '', *markdown(['eps', *_COLUMNS], rows),
                    *([''] if warnings else []), *warnings])


def json_values(tree: Any) -> Any:
  """Returns a tree of JSON values with None for numbers that are not finite."""
  if isinstance(tree, dict):  # Unlike jax.tree.map this keeps the order.
    return {name: json_values(value) for name, value in tree.items()}
  if isinstance(tree, list):
    return [json_values(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def _per_class(results):
  """Returns how many images a class has, on which a worst class depends."""
  counts = results.get('class_counts')
  if not counts:
    return ''
  fewest, most = min(counts), max(counts)
  return f' ({fewest}{f" to {most}" if most > fewest else ""} a class)'


def markdown(header: Sequence[str],
             rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table, columns of one width each."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  return [_line(header, widths), _line(['-' * w for w in widths], widths),
          *(_line(row, widths) for row in rows)]


def _cell(column, value):
  if value is None:  # As the NSD of a model that is always wrong.
    return '-'
  return f'{value:.3f}' if column == 'nsd' else f'{value:.2%}'


def _short(value):
  return ('-' if value is None else f'{value:.1%}').rjust(6)


def _line(cells, widths):
  cells = (cell.rjust(width)
           for cell, width in zip(cells, widths, strict=True))
  return f'| {" | ".join(cells)} |'
