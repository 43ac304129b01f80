"""Tests of ferd_jax.reports.run_tables."""

from ferd_jax.reports import run_tables

_CLEAN = {'average': 0.9, 'worst': 0.8, 'nsd': 0.1}
_PGD = {'average': 0.45, 'worst': 0.2, 'nsd': None}


def _results(**models):
  return {'num_examples': 100, 'models': models}


def test_summary_has_teacher_beside_student():
  header, rows = run_tables.summary(_results(
      teacher={'clean': _CLEAN, 'pgd20': _PGD | {'num_examples': 50}},
      student={'clean': _CLEAN}))
  assert header == ['attack', 'teacher average', 'teacher worst class',
                    'teacher NSD', 'student average', 'student worst class',
                    'student NSD']
  assert rows[0][1:] == 2 * ['90.00%', '80.00%', '0.100']
  assert rows[1][0].endswith('(first 50)')
  assert rows[1][1:] == ['45.00%', '20.00%', '-', '-', '-', '-']


def test_summary_with_success_rates():
  header, rows = run_tables.summary(_results(
      model={'clean': _CLEAN, 'pgd20': _PGD | {'success_rate': 0.5},
             'fgsm': _PGD | {'success_rate': None}}))
  assert header[1:3] == ['model average', 'model success rate']
  assert [row[2] for row in rows] == ['-', '50.00%', '-']
