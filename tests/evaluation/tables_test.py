"""What is printed and written of results."""

import numpy as np
import pytest

from ferd_jax.evaluation import tables
from ferd_jax.evaluation import target_analysis

_SUMMARY = {'average': 0.5, 'worst': 0.25, 'worst10': 0.25, 'nsd': 0.125}
_RESULTS = {'config': 'c', 'dataset': 'd', 'split': 'test', 'epoch': 3,
            'num_examples': 7, 'norm': 'Linf', 'eps': 0.1, 'seed': 0,
            'models': {'teacher': {'pgd20': _SUMMARY},
                       'student': {'pgd20': _SUMMARY | {'average': 0.4}}}}


def _cells(line):
  return [cell.strip() for cell in line.split('|')[1:-1]]


@pytest.fixture
def matrix():
  reached = np.array([[np.nan, 0.2, 0.4], [0.6, np.nan, 0.6],
                      [0., 0., np.nan]])
  return tables.json_values(target_analysis.TargetMatrix(
      reached, reached, np.array([10, 20, 5])).json_values())


def test_table_has_teacher_beside_student():
  title, _, header, _, row = tables.table(_RESULTS).splitlines()
  assert title.startswith('c: d test, 7 images')
  assert 'Linf eps 0.10000' in title
  assert _cells(header) == [
      'attack', 'teacher average', 'worst', 'nsd', 'student average', 'worst',
      'nsd']
  assert _cells(row) == ['pgd20', '50.00%', '25.00%', '0.125', '40.00%',
                         '25.00%', '0.125']


def test_worst_tenth_is_left_out_where_it_is_the_worst_class():
  other = _RESULTS['models'] | {'student': {'pgd20': _SUMMARY | {
      'worst10': 0.3}}}
  header, _, row = tables.table(_RESULTS | {'models': other}).splitlines()[2:]
  assert _cells(header).count('worst10') == 2
  assert _cells(row)[3] == '25.00%' and _cells(row)[-2] == '30.00%'


def _with_rates(results):
  """Returns results with success rates, of clean images none."""
  return results | {'models': {
      model: {attack: summary | ({} if attack == 'clean' else
                                 {'success_rate': 0.125})
              for attack, summary in found.items()}
      for model, found in results['models'].items()}}


def test_success_rates_beside_the_averages():
  models = {name: {'clean': _SUMMARY, 'pgd20': _SUMMARY} for name in 'ab'}
  header, _, clean, pgd = tables.table(_with_rates(
      _RESULTS | {'models': models})).splitlines()[2:]
  assert _cells(header) == ['attack', 'a average', 'success', 'worst', 'nsd',
                            'b average', 'success', 'worst', 'nsd']
  assert _cells(clean)[1:3] == ['50.00%', '-']
  assert _cells(pgd)[5:7] == ['50.00%', '12.50%']
  # Where nothing was right there is no rate.
  models['a']['pgd20'] = _SUMMARY | {'success_rate': None}
  lines = tables.table(_RESULTS | {'models': models}).splitlines()
  assert _cells(lines[5])[2] == '-'


def test_models_stay_beside_each_other_without_success_rates():
  """Where these do not fit; below each other there is room for them."""
  wide = {'clean': _SUMMARY, 'autoattack_fast': _SUMMARY | {'worst10': 0.3}}
  results = _with_rates(_RESULTS | {'models': {
      'teacher': wide, 'student': wide}})
  header = tables.table(results).splitlines()[2]
  assert 'student' in header and 'success' not in header
  results = _with_rates(_RESULTS | {'models': {
      'robust_teacher': wide, 'other': wide, 'student': wide}})
  table = tables.table(results)
  assert table.count('success') == 3 and table.count('12.50%') == 3


def _classes(models, attacks, number, **changes):
  """Returns results on classes with long names, of which the last is empty."""
  rng, found = np.random.default_rng(0), {}
  for model in models:
    found[model] = {}
    for attack in attacks:
      accuracy = rng.uniform(0.2, 1, number - 1).tolist()
      found[model][attack] = _SUMMARY | {
          'per_class': [*accuracy, None], 'num_examples': 200, **changes}
  return _RESULTS | {
      'num_examples': 10_000, 'models': found,
      'class_counts': [1000] * number,
      'class_names': [f'automobile{i}' for i in range(number)]}


@pytest.mark.parametrize('rates', [False, True])
@pytest.mark.parametrize('changes', [{}, {'worst10': 0.3}])
@pytest.mark.parametrize('attacks', [
    ('clean', 'fgsm', 'pgd20', 'cw20', 'autoattack_fast'),
    ('clean', 'pgd20_fairard', 'cw100_dfhl', 'autoattack_torchattacks')])
@pytest.mark.parametrize('models', [
    ('model',), ('teacher', 'student'), ('robust_teacher', 'other', 'student')])
def test_what_is_printed_fits_100_columns(models, attacks, changes, rates,
                                          matrix):
  results = _classes(models, attacks, 10, **changes)
  size = 10
  reached = np.where(np.eye(size), np.nan, 1.)
  wide = tables.json_values(target_analysis.TargetMatrix(
      reached, reached, np.full(size, 1000), 10_000).json_values())
  if rates:
    results = _with_rates(results)
  text = tables.text(results | {'targets': {'student': wide}})
  for line in text.splitlines():
    assert len(line) <= 100 or '|' not in line, line
  cells = [_cells(line) for line in text.splitlines() if '|' in line]
  # Each model has its own columns, each attack its row, wherever they are.
  for model in models:
    assert sum(f'{model} a' in ' '.join(row) or model in row
               for row in cells) == 1
  for attack in attacks:
    assert any(row[0] == f'{attack} (first 200)' for row in cells)
  assert ['9 automobile9', '1000'] == cells[-1][:2]


def test_table_of_the_classes():
  results = _classes(('teacher', 'student'), ('clean', 'pgd20'), 3)
  title, _, header, _, *rows = tables.class_table(results).splitlines()
  assert title == 'Accuracy by class: teacher, student'
  assert _cells(header) == ['class', 'images', 'clean', 'pgd20']
  teacher, student = (results['models'][name]['pgd20']['per_class'][0]
                      for name in ('teacher', 'student'))
  assert _cells(rows[0])[0] == 'automobile0' and len(rows) == 3
  assert _cells(rows[0])[3] == f'{teacher:.1%}  {student:.1%}'
  assert _cells(rows[2])[2].split() == ['-', '-']


def test_table_of_many_classes_has_the_weakest():
  results = _classes(('teacher', 'student'), ('clean', 'pgd20'), 100)
  title, _, _, _, *rows = tables.class_table(results).splitlines()
  assert title == ('Accuracy by class, the 20 of 100 that are weakest under '
                   'pgd20: teacher, student')
  weak = results['models']['student']['pgd20']['per_class']
  order = np.argsort(np.array(weak, float), kind='stable')[:20]
  assert [_cells(row)[0] for row in rows] == [
      f'automobile{label}' for label in order]
  targets = {'mean': 0.5, 'unevenness': 0.1, 'easiest': [1, 2, 0.75],
             'hardest': None}
  assert tables.target_table('student', results['class_names'], targets) == (
      'student: how often an attack on one class reaches another, 50.00% on '
      'average, std / mean over all 0.100\n'
      'easiest: automobile1 to automobile2, 75.00%')


def test_attacks_on_the_first_images_say_so():
  models = {name: {'pgd20': _SUMMARY, 'autoattack': _SUMMARY
                   | {'num_examples': number}}
            for name, number in (('teacher', 4), ('student', 4))}
  lines = tables.table(_RESULTS | {'models': models}).splitlines()
  assert [_cells(line)[0] for line in lines[4:]] == [
      'pgd20', 'autoattack (first 4)']
  models['teacher']['autoattack']['num_examples'] = 7
  lines = tables.table(_RESULTS | {'models': models}).splitlines()
  assert _cells(lines[5])[0] == 'autoattack'


def test_warnings_follow_the_table():
  student = {'pgd20': _SUMMARY | {'warnings': ['few classes', 'zeros']}}
  results = _RESULTS | {'models': _RESULTS['models'] | {'student': student}}
  assert tables.table(results).splitlines()[-2:] == [
      'Warning: student, pgd20: few classes',
      'Warning: student, pgd20: zeros']


def test_real_training_images_are_named_below_the_table():
  training_data = {'dataset': 'digits', 'split': 'train', 'num_examples': 1198}
  table = tables.table(_RESULTS | {'training_data': training_data})
  assert table.endswith('NOT DATA-FREE: the student was trained on 1,198 real '
                        'images, digits train.')
  assert 'DATA' not in tables.table(_RESULTS)


def test_a_warning_of_several_attacks_is_shown_once():
  def found(*warnings):
    return _SUMMARY | {'warnings': list(warnings)}
  models = {
      'teacher': {'clean': found('low'), 'autoattack': found('zeros', 'low'),
                  'pgd20': found()},
      'student': {'clean': found('low'), 'autoattack': found(),
                  'pgd20': found()}}
  assert tables.table(_RESULTS | {'models': models}).splitlines()[-3:] == [
      'Warning: teacher, clean, autoattack: low',
      'Warning: teacher, autoattack: zeros',
      'Warning: student, clean: low']


def test_sweep_table_has_a_row_per_radius():
  sweep = [_RESULTS, _RESULTS | {'eps': 0.2}]
  _, _, header, _, *rows = tables.sweep_table(sweep).splitlines()
  assert _cells(header) == ['eps', 'teacher pgd20', 'student pgd20']
  assert [_cells(row) for row in rows] == [
      ['0.10000', '50.00% (25.00%)', '40.00% (25.00%)'],
      ['0.20000', '50.00% (25.00%)', '40.00% (25.00%)']]


def test_tables_beside_each_other_are_of_100_columns():
  left = [['method'], ['a'], ['a longer name']]
  groups = [[[f'{name} average', f'{name} worst'], ['12.3', ''], ['4', '5']]
            for name in ('clean', 'FGSM', 'PGD-20', 'CW', 'AA', 'AA fast')]
  lines = tables.beside(left, groups)
  assert max(map(len, lines)) <= tables.WIDTH
  found = '\n'.join(lines).split('\n\n')
  assert len(found) == 3
  heads = [_cells(table.splitlines()[0]) for table in found]
  assert [head[0] for head in heads] == ['method'] * 3
  assert sum((head[1:] for head in heads), []) == [
      cell for group in groups for cell in group[0]]
  assert _cells(found[1].splitlines()[2])[0] == 'a'
  # A group alone may be wider.
  wide, = '\n'.join(tables.beside(left, [[['x' * 120]] + [['']] * 2])).split(
      '\n\n')
  assert len(wide.splitlines()) == 4


def test_sweep_table_of_many_attacks_is_of_100_columns():
  models = {model: {attack: _RESULTS['models']['teacher']['pgd20']
                    for attack in ('clean', 'fgsm', 'pgd20', 'cw20',
                                   'autoattack')}
            for model in ('teacher', 'student')}
  text = tables.sweep_table([_RESULTS | {'models': models}] * 2)
  assert max(map(len, text.splitlines())) <= tables.WIDTH
  for model in models:
    assert f'{model} autoattack' in text


def test_target_table(matrix):
  lines = tables.target_table('student', ['a', 'b', 'c'], matrix).splitlines()
  assert lines[0].startswith('student: ') and '30.00% on average' in lines[0]
  assert _cells(lines[2]) == ['class', 'images', 'a', 'b', 'c', 'std / mean']
  assert [_cells(line) for line in lines[4:]] == [
      ['a', '10', '', '20%', '40%', '0.333'],
      ['b', '20', '60%', '', '60%', '0.000'],
      ['c', '5', '0%', '0%', '', '-']]


def test_target_table_of_a_thousand_classes_is_no_table(matrix):
  names = list(map(str, range(1000)))
  line, *pairs = tables.target_table('student', names, matrix).splitlines()
  assert '30.00% on average' in line and len(pairs) <= 2
  assert not any('|' in each for each in (line, *pairs))


@pytest.mark.parametrize('number, title', [
    (6, 'student (first 6 images): how'), (7, 'student: how'),
    (None, 'student: how')])
def test_target_table_of_some_images_says_so(matrix, number, title):
  results = _RESULTS | {
      'class_names': ['a', 'b', 'c'],
      'targets': {'student': matrix | {'num_examples': number}}}
  assert tables.text(results).split('\n\n')[2].startswith(title)


def test_text_has_all_tables(matrix):
  results = _classes(('student',), ('clean',), 3) | {
      'targets': {'student': matrix}, 'num_examples': 35,
      'class_names': ['a', 'b', 'c']}
  assert tables.text(_RESULTS) == tables.table(_RESULTS)
  assert tables.text(results) == '\n\n'.join([
      tables.table(results), tables.class_table(results),
      tables.target_table('student', ['a', 'b', 'c'], matrix)])


def test_json_values_have_no_nan():
  tree = {'b': [float('nan'), 1.5, float('inf')], 'a': {'x': None, 'n': 3}}
  found = tables.json_values(tree)
  assert found == {'b': [None, 1.5, None], 'a': {'x': None, 'n': 3}}
  assert list(found) == ['b', 'a']
