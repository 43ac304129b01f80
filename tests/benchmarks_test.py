"""The developers' scripts start as their docstrings say."""

import json
import pathlib
import subprocess
import sys

import pytest

_SCRIPTS = pathlib.Path(__file__).parents[1] / 'benchmarks'


def _run(script, *flags, cwd):
  done = subprocess.run([sys.executable, _SCRIPTS / script, *flags], cwd=cwd,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_steps(tmp_path):
  # From another directory, and checked against PyTorch before it is timed.
  pytest.importorskip('torch')
  config = _SCRIPTS.parent / 'configs' / 'digits.py'
  _run('steps.py', f'--config={config}:smoke', '--rounds=1', '--seconds=0',
       '--output=steps.json', cwd=tmp_path)
  results = json.loads((tmp_path / 'steps.json').read_text())
  assert results['steps'].keys() == {'generator', 'student', 'evaluation'}
  for step in results['steps'].values():
    assert step['jax']['median'] > 0 and step['torch']['median'] > 0
  assert results['check']


def test_train_teacher_starts(tmp_path):
  pytest.importorskip('torch')
  assert 'fashion_mnist' in _run('train_teacher.py', '--help', cwd=tmp_path)


def test_paper_length_stops_in_time_and_goes_on(tmp_path):
  flags = ['--teacher=random', '--variants=paper_length,smoke',
           f'--workdir={tmp_path}']
  first = _run('paper_length.py', *flags, '--minutes=0.05',
               '--config.seed=1', cwd=tmp_path)
  assert 'Stopped after epoch 1' in first and '1 epochs' in first
  second = _run('paper_length.py', *flags, '--minutes=20', '--config.seed=1',
                cwd=tmp_path)
  assert 'student nsd' in second and 'ms per student step' in second
  assert first.splitlines()[0] in (tmp_path / 'log.txt').read_text()
