"""Results as tables and JSON: teacher beside student, a row per attack."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from ferd_jax.attacks import diagnosis

_MOST_CLASSES = 200  # of a table of targets
_COLUMNS = ('average', 'worst', 'worst10', 'nsd')


def not_data_free(training_data: Mapping) -> str:
  """Returns what is said of a network that real images made.

  Args:
    training_data: `num_examples`, `dataset` and `split` of the images.
  """
  return ('NOT DATA-FREE: the student was trained on '
          f'{training_data["num_examples"]:,} real images, '
          f'{training_data["dataset"]} {training_data["split"]}.')


def text(results: Mapping) -> str:
  """Returns all that is printed of results: all tables, and the diagnosis."""
  tables = [table(results)]
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

  Args:
    results: as written to `results.json`: `config`, `norm`, `eps`, `seed`,
      `dataset`, `split` (None for noise), `num_examples`, `class_counts`,
      `epoch` (None for models from files), `training_data` if the student was
      trained on real images, and `models`, a dict by model
      ('teacher', 'student') of dicts by attack of `metrics.summarise`, with
      `num_examples` of an attack that got the first so many only.
  """
  models = results['models']
  header = ['attack', *(f'{model} {column}' for model in models
                        for column in _COLUMNS)]
  rows = []
  for attack, found in next(iter(models.values())).items():
    cells = [_cell(column, models[model][attack][column])
             for model in models for column in _COLUMNS]
    number = found.get('num_examples', results['num_examples'])
    rows.append([attack if number >= results['num_examples'] else
                 f'{attack} (first {number})', *cells])
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
      *markdown(header, rows), *([''] if notes else []), *notes])


def sweep_table(sweep: Sequence[Mapping]) -> str:
  """Returns averages and worst classes over radii as a Markdown table.

  Args:
    sweep: results as for `table`, one per radius.
  """
  models = sweep[0]['models']
  columns = [(model, attack) for model in models for attack in models[model]]
  rows = [[f'{results["eps"]:.5f}',
           *(f'{results["models"][model][attack]["average"]:.2%} '
             f'({results["models"][model][attack]["worst"]:.2%})'
             for model, attack in columns)] for results in sweep]
  return '\n'.join(
      ['Average (worst class) by radius:', '',
       *markdown(['eps', *(f'{model} {attack}' for model, attack in columns)],
                  rows)])


def target_table(name: str, class_names: Sequence[str],
                 matrix: Mapping) -> str:
  """Returns success rates of targeted attacks as a Markdown table.

  Args:
    name: of the model, and what else the title says first.
    class_names: of the K classes.
    matrix: `target_analysis.TargetMatrix.json_values`.
  """
  title = (f'{name}: how often an attack on the class of a row reaches that '
           f'of a column, {_cell("average", matrix["mean"])} on average, '
           f'std / mean over all {_cell("nsd", matrix["unevenness"])}')
  if len(class_names) > _MOST_CLASSES:  # A million cells are in the JSON.
    return (f'{title}; {len(class_names)} classes are more than a table '
            'shows.')
  rows = []
  for source, rates in enumerate(matrix['reached']):
    rows.append([
        class_names[source], str(matrix['counts'][source]),
        *('' if rate is None else f'{rate:.0%}' for rate in rates),
        _cell('nsd', matrix['source_unevenness'][source])])
  return '\n'.join([title, '', *markdown(
      ['class', 'images', *class_names, 'std / mean'], rows)])


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
  if value is None:  # The NSD of a model that is always wrong.
    return '-'
  return f'{value:.3f}' if column == 'nsd' else f'{value:.2%}'


def _line(cells, widths):
  cells = (cell.rjust(width)
           for cell, width in zip(cells, widths, strict=True))
  return f'| {" | ".join(cells)} |'
