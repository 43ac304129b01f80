"""What is read of runs."""

import json
import types

import made_runs
import pytest

from ferd_jax.comparison import outcomes

_CLEAN = {'clean': made_runs.right(9, 8, 7, 6)}


def _options(*attacks, autoattack_examples=0):
  return types.SimpleNamespace(attacks=attacks,
                               autoattack_examples=autoattack_examples)


def test_results_must_have_the_attacks(tmp_path):
  run = tmp_path / 'run'
  made_runs.write(run, _CLEAN | {'autoattack': made_runs.right(9, 8)})
  def covered(*attacks, **options):
    return outcomes.covering(run, _options(*attacks, **options)) is not None
  assert covered('clean') and not covered('clean', 'fgsm')
  # AutoAttack was on the first 20 of 40 images.
  assert covered('autoattack', autoattack_examples=20)
  assert not covered('autoattack')
  assert not covered('autoattack', autoattack_examples=10)
  assert outcomes.covering(tmp_path / 'absent', _options('clean')) is None


def test_evaluation_again_counts_on_the_same_images_only(tmp_path):
  made_runs.write(tmp_path / 'run', _CLEAN)
  made_runs.write(tmp_path / 'other', _CLEAN | {'fgsm': _CLEAN['clean']})
  found = json.loads((tmp_path / 'other' / 'results.json').read_text())
  evaluation = tmp_path / 'run' / 'evaluation.json'
  evaluation.write_text(json.dumps(found | {'eps': 0.2}))
  options = _options('clean', 'fgsm')
  assert outcomes.covering(tmp_path / 'run', options) is None
  evaluation.write_text(json.dumps(found))
  assert outcomes.covering(tmp_path / 'run', options) == evaluation
  assert outcomes.load(tmp_path / 'run', options).results == found


@pytest.mark.parametrize('text', ['{}', '[]', '', '{"models": {}}'])
def test_run_with_broken_results_is_not_finished(tmp_path, text):
  made_runs.write(tmp_path / 'run', _CLEAN)
  (tmp_path / 'run' / 'results.json').write_text(text)
  assert not outcomes.is_finished(tmp_path / 'run')
  assert outcomes.load(tmp_path / 'run', _options('clean')) is None


def test_line_that_is_being_written(tmp_path):
  made_runs.write(tmp_path / 'run', _CLEAN, curve=[(0.5,) * 4] * 2)
  file = tmp_path / 'run' / 'metrics.jsonl'
  with file.open('a') as opened:
    opened.write('{"epoch": 3, "seco')
  assert [line['epoch'] for line in outcomes.epochs(file)] == [1, 2]
  assert outcomes.epochs(tmp_path / 'absent') == []


def test_speed_is_that_of_epochs_after_the_first(tmp_path):
  made_runs.write(tmp_path / 'run', _CLEAN, curve=[(0.5,) * 4] * 3)
  found = outcomes.load(tmp_path / 'run')
  found.metrics[0]['distill/ms_per_step'] = 1e4  # compiling
  assert found.speed('distill') == 9
  assert found.speed('nothing') is None


def test_classes_without_images_are_left_out_of_the_curve(tmp_path):
  made_runs.write(tmp_path / 'run', _CLEAN, curve=[(0.5, 0.1, 0.2, 0.4)])
  found = outcomes.load(tmp_path / 'run')
  found.metrics[0]['test_pgd20_per_class'][1] = None
  assert found.curve('pgd20') == [(1, pytest.approx(0.3), [0.5, 0.2, 0.4])]
  assert found.curve('clean') == []


def test_seed_twice(tmp_path):
  for name in 'ab':
    made_runs.write(tmp_path / name, _CLEAN, seed=3)
  with pytest.raises(ValueError, match='/a, .*/b are runs of one method'):
    outcomes.by_method([outcomes.load(tmp_path / name) for name in 'ab'])


def test_what_does_not_make_another_method(tmp_path):
  for seed, changes in enumerate((
      {}, {'max_minutes': 3.}, {'data__dir': 'there'}, {'parallel': 'jit'})):
    made_runs.write(tmp_path / str(seed), _CLEAN, seed, **changes)
  found = outcomes.by_method(
      [outcomes.load(tmp_path / str(seed)) for seed in range(4)])
  assert list(found) == ['made'] and len(found['made']) == 4


def test_what_a_run_exports_is_no_run(tmp_path):
  """Though a config.json is there, too."""
  for name in ('a', 'export'):
    made_runs.write(tmp_path / name, _CLEAN)
    (tmp_path / name / 'export').mkdir()
    (tmp_path / name / 'export' / 'config.json').write_text('{}')
  assert outcomes.work_directories([tmp_path]) == [
      tmp_path / 'a', tmp_path / 'export']
