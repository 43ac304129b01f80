"""A comparison's tables on runs whose numbers are known."""

import csv
import io
import re

import made_runs
import numpy as np
import pytest

from ferd_jax.comparison import latex
from ferd_jax.comparison import long_form
from ferd_jax.comparison import markdown
from ferd_jax.comparison import outcomes
from ferd_jax.comparison import table as tables

_RIGHT = made_runs.right
# Average and worst class: 75% and 60%; 72.5% and 50%; 40% and 0%.
_GOOD, _NEAR, _BAD = _RIGHT(9, 8, 7, 6), _RIGHT(9, 8, 7, 5), _RIGHT(8, 4, 4, 0)


def _outcomes(folder, name, *seeds, **options):
  found = []
  for seed, correct in enumerate(seeds):
    workdir = folder / f'{name}_{seed}'
    made_runs.write(workdir, {'clean': correct, 'pgd20': correct[:20]}, seed,
                    {'clean': _RIGHT(10, 10, 10, 9), 'pgd20': _RIGHT(10, 9)},
                    **options)
    found.append(outcomes.load(workdir))
  return found


@pytest.fixture
def methods(tmp_path):
  return {'FERD': _outcomes(tmp_path, 'ferd', _GOOD, _RIGHT(9, 9, 7, 6)),
          'near_&_dear': _outcomes(tmp_path, 'near', _NEAR, _GOOD),
          'bad': _outcomes(tmp_path, 'bad', _BAD, _BAD)}


def _lines(text, section):
  """Returns the cells of each line of a section's tables, by first cell.

  Of several tables, of which each begins with method and seeds, as if one.
  """
  part = text.partition(f'## {section}\n')[2].partition('\n## ')[0]
  header, found = [], {}
  for table in re.split(r'\n\n+', part):
    head, *rows = [[cell.strip() for cell in line.strip('| ').split('|')]
                   for line in table.splitlines() if line.startswith('|')
                   ] or [None]
    if head is None:
      continue
    start = 2 if header else 0
    header += head[start:]
    for row in rows[1:]:
      found.setdefault(row[0], []).extend(row[start:])
  return header, found


def test_means_deviations_best_and_close(methods):
  text = markdown.text(tables.Table(methods), ['FERD, seed 2: killed'])
  header, rows = _lines(text, 'Robustness and fairness')
  assert header[:5] == ['method', 'seeds', 'clean average', 'clean worst',
                        'clean NSD']
  assert header[5] == 'PGD-20 average'
  ferd, near, bad = (rows[name] for name in methods)
  # 75% and 77.5%; 72.5% and 75%; twice 40%.
  assert ferd[1:4] == ['2', '**76.2 ± 1.8**', '**60.0 ± 0.0**']
  assert near[2:4] == ['73.8 ± 1.8 †', '55.0 ± 7.1 †']
  assert bad[2:4] == ['40.0 ± 0.0', '0.0 ± 0.0']
  assert bad[4] == f'{np.std([8, 4, 4, 0]) / 4:.3f} ± 0.000'
  teacher = rows['teacher wrn_34_10']
  assert teacher[2:4] == ['97.5 ± 0.0', '90.0 ± 0.0']  # never bold
  assert text.count('FERD, seed 2: killed') == 1


def test_attack_on_the_first_images_only(methods):
  table = tables.Table(methods)
  assert table.num_images('FERD', 'pgd20') == 20
  assert 'PGD-20 on the first 20' in markdown.text(table)
  # Of two classes there are images: 90% and 80%, 90% and 90%.
  cell = table.cells['FERD', 'pgd20', 'average']
  np.testing.assert_allclose(cell.values, [0.85, 0.9])
  np.testing.assert_allclose(
      table.cells['FERD', 'pgd20', 'worst'].values, [0.8, 0.9])


def test_differences_are_from_the_reference(methods):
  table = tables.Table(methods, 'bad')
  assert table.cells['bad', 'clean', 'average'].difference is None
  difference = table.cells['FERD', 'clean', 'average'].difference
  np.testing.assert_allclose(difference.mean, 0.7625 - 0.4)
  assert 0 < difference.low < difference.mean < difference.high
  _, rows = _lines(markdown.text(table), 'Difference from bad')
  assert rows['FERD'][2].startswith('+36.2 [+') and 'bad' not in rows
  with pytest.raises(ValueError, match="reference='other'.*'near_&_dear'"):
    tables.Table(methods, 'other')
  with pytest.raises(ValueError, match='none yet'):
    tables.Table({'FERD': []})


def test_one_method_alone_is_not_best(methods):
  table = tables.Table({'FERD': methods['FERD']})
  assert not any(cell.best or cell.close for cell in table.cells.values())
  caption = latex.text(table)
  assert 'Bold' not in caption and 'over 2 seeds' in caption
  one = latex.text(tables.Table({'FERD': methods['FERD'][:1]}))
  assert 'of one seed' in one and 'standard deviation over 1' not in one


def test_runs_of_other_classes_are_not_compared(methods):
  other, = methods['bad'][:1]
  other.results['class_counts'] = [20, 20]
  with pytest.raises(ValueError, match='same classes.* 2 and some with 4'):
    tables.Table(methods)


def test_fairness(methods):
  table = tables.Table(methods)
  np.testing.assert_allclose(table.worst_k('bad', 'clean'),
                             [0, 0.2, 0.8 / 3, 0.4])
  assert table.cells['bad', 'clean', 'gap'].interval.mean == -0.4
  # Mean absolute difference of two classes, over twice the mean.
  accuracy = np.array([0.8, 0.4, 0.4, 0])
  gini = np.abs(accuracy[:, None] - accuracy).mean() / (2 * accuracy.mean())
  np.testing.assert_allclose(
      table.cells['bad', 'clean', 'gini'].interval.mean, gini)
  header, rows = _lines(markdown.text(table), 'Fairness')
  assert header == ['method', 'attack', 'worst - average', 'Gini', 'worst 1',
                    'worst 2', 'worst 3', 'worst 4']


def test_fairness_at_equal_average(tmp_path):
  low, mid, high = ((0.5, 0.3, 0.1, 0.1), (0.7, 0.5, 0.4, 0.4),
                    (0.9, 0.8, 0.7, 0.6))
  methods = {
      'FERD': _outcomes(tmp_path, 'ferd', _GOOD, curve=[low, mid, high]),
      'other': _outcomes(tmp_path, 'other', _BAD, curve=[
          low, (0.6, 0.6, 0.4, 0.4)])}
  found = tables.Table(methods).at_equal_average('pgd20')['other']
  assert found.level == pytest.approx(0.5)
  assert (found.epochs, found.reference_epochs) == ([2], [2])
  np.testing.assert_allclose(found.measures['worst'], (0.4, 0.4))
  np.testing.assert_allclose(
      found.measures['nsd'], (0.2, np.std(mid) / np.mean(mid)))
  assert '40.0 / 40.0' in markdown.text(tables.Table(methods))
  # Without a curve there is no such table.
  methods = {'a': _outcomes(tmp_path, 'a', _GOOD),
             'b': _outcomes(tmp_path, 'b', _GOOD)}
  assert 'equal average' not in markdown.text(tables.Table(methods))


def test_pairs_that_are_apart_are_no_equal_average(tmp_path):
  methods = {
      'FERD': _outcomes(tmp_path, 'ferd', _GOOD, curve=[(0.9, 0.8, 0.7, 0.6)]),
      'other': _outcomes(tmp_path, 'other', _BAD, curve=[(0.5,) * 4])}
  assert not tables.Table(methods).at_equal_average('pgd20')


def test_nsd_is_that_of_the_settings(tmp_path):
  curve = [(0.9, 0.8, 0.7, 0.6)]
  methods = {name: _outcomes(tmp_path, name, _GOOD, curve=curve,
                             eval__nsd_ddof=1) for name in 'ab'}
  found = tables.Table(methods).at_equal_average('pgd20')['b']
  np.testing.assert_allclose(
      found.measures['nsd'], np.std(curve[0], ddof=1) / np.mean(curve[0]))
  methods['c'] = _outcomes(tmp_path, 'c', _GOOD)
  with pytest.raises(ValueError, match='nsd_ddof.*0, 1'):
    tables.Table(methods)


def test_runs_that_kept_no_images(tmp_path):
  methods = {'a': _outcomes(tmp_path, 'a', _GOOD, _NEAR, flags=False),
             'b': _outcomes(tmp_path, 'b', _BAD, flags=False)}
  table = tables.Table(methods)
  cell = table.cells['a', 'clean', 'average']
  assert cell.best and cell.interval.low < 0.7375 < cell.interval.high
  other = table.cells['b', 'clean', 'average']
  assert not other.close and np.isnan(other.interval.low)
  assert '**73.8 ± 1.8**' in markdown.text(table)


def test_seeds_whose_images_have_other_classes(tmp_path):
  # As noise in place of images, of which each seed has its own.
  found = _outcomes(tmp_path, 'a', _RIGHT(9, 8, 7, 1), _RIGHT(9, 8, 7, 6))
  student = found[1].results['models']['student']
  student['clean']['per_class'][3] = None
  found[1].results['labels'] = found[1].results['labels'][::-1]
  worst = tables.Table({'a': found}).cells['a', 'clean', 'worst']
  assert worst.values == [0.7, 0.7]


def test_footnotes_are_below_the_table(methods):
  table, note = tables.Table(methods), 'A & B have no code.'
  text = markdown.text(table, footnotes=[note])
  assert text.index(' bad ') < text.index(note) < text.index('% intervals')
  text = latex.text(table, [note])
  assert text.index(r'\end{tabular}') < text.index(
      r'A \& B have no code.') < text.index(r'\end{table}')


def test_budget_and_speed(methods):
  _, rows = _lines(markdown.text(tables.Table(methods)), 'Budget')
  assert rows['FERD'][1:7] == ['1,000', '20', '4,000', '4,000', '300', '01:30']


def test_two_teachers_have_a_row_each(methods):
  methods['bad'][0].results['weights_digest']['teacher'] = 'two'
  assert tables.Table(methods).teachers == ['teacher 1 wrn_34_10',
                                            'teacher 2 wrn_34_10']


def test_csv_has_every_number(methods):
  table = tables.Table(methods)
  lines = list(csv.DictReader(io.StringIO(long_form.text(table))))
  assert {line['method'] for line in lines} == {*methods, *table.teachers}
  by_name = {(line['method'], line['attack'], line['measure']): line
             for line in lines}
  assert len(by_name) == len(lines)
  line = by_name['near_&_dear', 'clean', 'average']
  assert line['values'] == '0.725 0.75' and line['seeds'] == '0 1'
  assert (line['best'], line['close'], line['images']) == ('0', '1', '40')
  assert float(line['low']) < float(line['mean']) < float(line['high'])
  assert by_name['bad', 'clean', 'worst_2']['mean'] == '0.2'
  assert by_name['bad', '', 'student_steps']['mean'] == '300'


def test_latex_is_well_formed(methods):
  text = latex.text(tables.Table(methods))
  assert text.count('{') == text.count('}')
  begun = re.findall(r'\\begin\{(\w+)\}', text)
  assert re.findall(r'\\end\{(\w+)\}', text) == begun[::-1] == [
      'tabular', 'table']
  columns = re.search(r'\\begin\{tabular\}\{(\w+)\}', text)[1]
  rows = [line for line in text.splitlines() if line.endswith(r'\\')]
  for row in rows:
    spanned = sum(int(n) - 1 for n in re.findall(r'\\multicolumn\{(\d)\}', row))
    assert len(re.split(r'(?<!\\)&', row)) + spanned == len(columns), row
    assert len(re.findall(r'(?<!\\)\$', row)) % 2 == 0
    assert not re.search(r'(?<!\\)[%#]', row)
  assert len(rows) == 2 + 1 + 3
  assert r'near\_\&\_dear & 73.8$^\dagger_{\pm 1.8}$' in text
  assert r'FERD & \textbf{76.2}$_{\pm 1.8}$' in text
