"""What is said of a comparison before it runs, and how its rows are called."""

import json

import made_runs
import pytest

from ferd_jax.comparison import outcomes
from ferd_jax.comparison import overview

_CLEAN = {'clean': made_runs.right(9, 8, 7, 6)}


def _spent(images=100, forward=500., backward=500., steps=10):
  return {'images': images, 'student_steps': steps,
          'teacher_forward': forward, 'teacher_backward': backward}


def test_what_rows_spend_beside_the_first():
  names = ['FERD', 'alike', 'more', 'less', 'real', 'unknown']
  lines = list(overview.unequal(names, [
      _spent(), _spent(forward=590.), _spent(forward=700.),
      _spent(forward=100.),
      _spent(images=0, forward=50., backward=0.),
      _spent(images=None, forward=None)]))
  assert lines == [
      "Images are 100 for 'FERD'. 'real': real images, or made without the "
      'teacher.',
      "Not equal: teacher passes are 1,000 for 'FERD', 1,200 for 'more', 600 "
      "for 'less'. 'real': real images, or made without the teacher."]
  assert not list(overview.unequal(['a', 'b'], [_spent(), _spent()]))


def _comparison(folder, seed, **changes):
  """Returns the outcome of a row 'FERD' of a comparison."""
  made_runs.write(folder / 'row' / f'seed_{seed}', _CLEAN, seed, **changes)
  (folder / overview.ROWS).write_text(json.dumps({'row': 'FERD'}))
  return outcomes.load(folder / 'row' / f'seed_{seed}')


def test_rows_of_one_name(tmp_path):
  places = [tmp_path / name for name in 'abc']
  found = [_comparison(places[0], 0), _comparison(places[1], 1, eps=0.2),
           _comparison(places[2], 2)]
  methods = overview.named(found, places)
  # Those with the same settings are one method.
  assert {name: [run.seed for run in runs] for name, runs in methods.items()
          } == {'FERD': [0, 2], 'FERD (b)': [1]}


def test_rows_of_one_name_with_a_seed_twice(tmp_path):
  places = [tmp_path / name for name in 'ab']
  found = [_comparison(place, 0) for place in places]
  with pytest.raises(ValueError, match='FERD has a seed twice'):
    overview.named(found, places)
