"""Processes of a comparison, with a stand-in for main.py that takes no time."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import made_runs
import noting
import pytest

from ferd_jax.comparison import plan as plans
from ferd_jax.comparison import running
from ferd_jax.core import file_locks

# It leaves what main.py does, an epoch for each line of `epochs`.
_MAIN = '''
import json, os, pathlib, sys, time
sys.path[:0] = {paths!r}
flags = dict(arg.lstrip('-').split('=', 1) for arg in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
seed = int(flags['config.seed'])
with (pathlib.Path(__file__).parent / 'starts').open('a') as file:
  print(json.dumps([workdir.parent.name, seed, flags.get('mode', 'train'),
                    os.environ.get('CUDA_VISIBLE_DEVICES'),
                    sorted(os.sched_getaffinity(0)),
                    'config.max_minutes' in flags]), file=file)
print('hello from', seed)
exec((pathlib.Path(__file__).parent / 'behaviour.py').read_text())
'''
_FINISH = '''
def epoch(number):
  with (workdir / 'metrics.jsonl').open('a') as file:
    print(json.dumps({'epoch': number, 'seconds': 1.}), file=file, flush=True)
def finish(name='results.json', attacks=('clean',)):
  found = {'num_examples': 4, 'seed': seed, 'models': {'student': {
      attack: {'average': 1.} for attack in attacks}}}
  (workdir / name).write_text(json.dumps(found))
'''


@pytest.fixture
def main(tmp_path, monkeypatch):
  """Returns a function that sets what the stand-in does."""
  (tmp_path / 'main.py').write_text(_MAIN.format(paths=sys.path))
  (tmp_path / 'starts').touch()
  runs_of = plans.runs
  def behave(code):
    (tmp_path / 'behaviour.py').write_text(_FINISH + code)
  behave('epoch(1); finish()')

  def runs(rows=('a', 'b'), seeds=(0, 1), **settings):
    plan = plans.Plan('p', [plans.Row(name, 'digits', settings | {
        'eval.attacks': ('clean',)}) for name in rows], seeds)
    return runs_of(plan, tmp_path / 'runs')
  made = runs()  # Configs are where they are.
  monkeypatch.setattr(running, 'COMMAND', (str(tmp_path / 'main.py'),))
  behave.runs, behave.folder = made, tmp_path
  monkeypatch.setattr(running, '_POLL', 0.02)
  return behave


def _starts(main):
  return [json.loads(line) for line in
          (main.folder / 'starts').read_text().splitlines()]


def _execute(main, places=None, runs=None, **options):
  """Returns the reasons by row and seed, and what was reported."""
  runs = main.runs if runs is None else runs
  places = places or running.slots()
  reporter = noting.Reporter()
  found = {(run.row, run.seed): reason for run, reason in running.execute(
      runs, places, running.Estimate(runs, 0, 1), reporter=reporter,
      **options)}
  return found, reporter.lines


def test_all_are_run_once(main):
  found, lines = _execute(main)
  assert found == {(row, seed): '' for row in 'ab' for seed in (0, 1)}
  assert [start[:3] for start in _starts(main)] == [
      ['a', 0, 'train'], ['b', 0, 'train'], ['a', 1, 'train'],
      ['b', 1, 'train']]
  assert any('4 of 4 finished' in line for line in lines)
  assert any('2 of 4 finished, about' in line for line in lines)
  log = (main.runs[0].workdir / running.LOG).read_text()
  assert 'hello from 0' in log and log.startswith('$ ')
  assert _execute(main) == ({}, []) and len(_starts(main)) == 4


def test_failure_does_not_stop_the_others(main):
  main('''
if seed == 1 and workdir.parent.name == 'a':
  sys.exit('error: no such thing')
epoch(1); finish()''')
  found, _ = _execute(main)
  assert found.pop(('a', 1)) == 'failed with status 1: error: no such thing'
  assert set(found.values()) == {''}
  # What had no epoch is not tried again by itself, but by the same command.
  assert len(_starts(main)) == 4
  main('epoch(1); finish()')
  assert _execute(main)[0] == {('a', 1): ''}


def test_crash_in_the_middle_goes_on(main):
  main('''
import signal
done = len((workdir / 'metrics.jsonl').read_text().splitlines()) if (
    workdir / 'metrics.jsonl').exists() else 0
epoch(done + 1)
if done < 4:
  os.kill(os.getpid(), signal.SIGKILL)
finish()''')
  found, lines = _execute(main, runs=main.runs[:1])
  assert found == {('a', 0): ''} and len(_starts(main)) == 5
  assert 'a, seed 0: killed by signal 9; once more' in lines
  # One that gets nowhere is given up.
  main('''
if not (workdir / 'metrics.jsonl').exists():
  epoch(1)
sys.exit(3)''')
  found, _ = _execute(main, runs=main.runs[1:2])
  assert found == {('b', 0): 'failed with status 3: hello from 0'}
  assert len(_starts(main)) == 5 + 3


def test_side_by_side_on_devices_and_cores(main):
  main('time.sleep(0.5); epoch(1); finish()')
  _execute(main, running.slots(['3', '5']))
  assert {start[3] for start in _starts(main)} == {'3', '5'}
  assert all(start[4] == sorted(os.sched_getaffinity(0))
             for start in _starts(main))
  assert running.slots(jobs=3).environments == [{}] * 3
  two = running.slots(jobs=2).cores
  if len(os.sched_getaffinity(0)) > 1:
    assert not two[0] & two[1]
    assert two[0] | two[1] == os.sched_getaffinity(0)
  shared = running.slots(['0', '1'], 4).environments
  assert [each['CUDA_VISIBLE_DEVICES'] for each in shared] == list('0101')
  assert {each['XLA_PYTHON_CLIENT_MEM_FRACTION'] for each in shared} == {
      '0.450'}
  with pytest.raises(ValueError, match="device='gpu:0'"):
    running.slots(['gpu:0'])


def test_time_that_is_over(main):
  main('epoch(1)')  # It stops by itself, and is not finished.
  found, _ = _execute(main, max_minutes=1.)
  assert set(found.values()) == {running.TIME}
  assert all(start[5] for start in _starts(main))
  main('epoch(2); finish()')
  assert set(_execute(main)[0].values()) == {''}
  (main.runs[0].workdir / 'results.json').unlink()
  found, _ = _execute(main, max_minutes=1e-9)
  assert found == {('a', 0): running.TIME} and len(_starts(main)) == 8


def test_run_that_ends_early_without_a_limit_of_time(main):
  main('epoch(1)')
  found, _ = _execute(main, runs=main.runs[:1])
  assert found == {
      ('a', 0): 'it ended after 1 of 6 epochs, without results'}


def test_finished_run_is_evaluated_under_further_attacks(main):
  _execute(main)
  with main.runs[0].config.unlocked():
    main.runs[0].config.eval.attacks = ('clean', 'fgsm')
  assert running.status(main.runs[0]) is running.Status.TO_EVALUATE
  main("finish('evaluation.json', ('clean', 'fgsm'))")
  assert _execute(main)[0] == {('a', 0): ''}
  assert _starts(main)[-1][:3] == ['a', 0, 'evaluate']


def test_run_that_another_process_is_at(main):
  run = main.runs[0]
  run.workdir.mkdir(parents=True)
  with (run.workdir / running.LOG).open('a') as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    found, lines = _execute(main, runs=[run], max_minutes=0.01)
  assert found == {('a', 0): running.TIME} and not _starts(main)
  assert lines == ['a, seed 0: another process is at it']
  assert _execute(main, runs=[run])[0] == {('a', 0): ''}  # It is free again.


@pytest.mark.parametrize('kind', ['no module', 'no locks'])
def test_without_locks_runs_are_started(main, monkeypatch, kind):
  def refuse(*_):
    raise OSError('no locks available')
  if kind == 'no module':
    monkeypatch.setattr(file_locks, 'fcntl', None)
  else:
    monkeypatch.setattr(file_locks.fcntl, 'flock', refuse)
  assert _execute(main, runs=main.runs[:1])[0] == {('a', 0): ''}


def test_leaving_stops_the_processes(main):
  main('epoch(1); time.sleep(60)')
  steps = running.execute(main.runs, running.slots(jobs=2),
                          running.Estimate(main.runs, 0, 2), max_minutes=0.02)
  started = time.monotonic()
  assert next(steps)[1] == running.TIME  # of those that wait
  steps.close()
  assert time.monotonic() - started < 30
  for run in main.runs[:2]:
    with (run.workdir / running.LOG).open('a') as log:
      fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Nobody has it.


def test_estimates(main):
  estimate = running.Estimate(main.runs, 0, 2)
  assert estimate.left(main.runs) is None
  assert running.Estimate(main.runs, 3, 2).left(main.runs) == 4 * 180 / 2
  estimate.add(main.runs[0], 100.)  # of 'a': others may take as long
  assert estimate.left(main.runs[1:]) == 300 / 2
  estimate.add(main.runs[1], 300.)
  assert estimate.left(main.runs[2:]) == max(400 / 2, 300)


def _trained(run, epochs, finished=False):
  """Writes a run of 30 seconds an epoch."""
  made_runs.write(run.workdir, {'clean': made_runs.right(9, 8, 7, 6)},
                  run.seed, curve=[(0.5,) * 4] * epochs, finished=finished)


def test_estimates_of_runs_that_are_trained(main):
  """The evaluation at the end is still to come, and takes its time."""
  first, *_, half, whole = main.runs
  _trained(first, 6, finished=True)
  _trained(half, 3)
  _trained(whole, 6)
  # Nothing is known of evaluations.
  assert running.Estimate(main.runs, 0, 1).left([half]) is None
  guess = running.Estimate(main.runs, 5, 1)
  assert guess.left([half]) == 90 + 120 and guess.left([whole]) == 120
  assert running.Estimate(main.runs, 3, 1).left([whole]) is None  # too low
  estimate = running.Estimate(main.runs, 5, 1)
  estimate.add(first, 500.)
  assert estimate.left([half]) == 90 + 320
  assert estimate.left([whole]) == 320
  assert estimate.left([whole], {whole.workdir: 100.}) == 220
  assert estimate.left([half, whole], {whole.workdir: 400.}) == 410


@pytest.mark.parametrize('epochs, ended, seconds', [
    (3, 20., 0.), (6, 20., 20.), (6, 4000., 50.)])  # in an earlier session
def test_seconds_of_an_evaluation(main, epochs, ended, seconds):
  run = main.runs[0]
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text(''.join(
      json.dumps({'epoch': epoch + 1, 'time': time.time() - ended}) + '\n'
      for epoch in range(epochs)))
  job = running._Job(run, 0, None, running.Status.BEGUN,
                     time.monotonic() - 50, 0)
  assert job.evaluating == pytest.approx(seconds, abs=2)


_ROOT = pathlib.Path(__file__).parents[2]
_TINY = ['--config=digits:smoke',
         '--row=uniform: --config.sampler.name=uniform',
         '--seeds=0,1', "--config.eval.attacks=('clean',)",
         '--config.eval.every=1', '--config.log.samples_every=0',
         '--config.num_epochs=6']


def _compare(workdir):
  return subprocess.Popen(
      [sys.executable, '-m', 'ferd_jax.compare', *_TINY,
       f'--workdir={workdir}'], cwd=_ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, start_new_session=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'})


@pytest.mark.slow
def test_killed_comparison_goes_on(tmp_path):
  """Two rows, two seeds, killed with all its processes in the second run."""
  second = tmp_path / 'uniform' / 'seed_0'
  process = _compare(tmp_path)
  while not (second / 'checkpoints' / '1').exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.1)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  kept = (tmp_path / 'digits_smoke' / 'seed_0' / 'results.json')
  before = kept.stat().st_mtime
  process = _compare(tmp_path)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert '1 finished, 1 begun, 2 to start' in output
  assert kept.stat().st_mtime == before  # It was not run again.
  assert 'going on after epoch' in (second / running.LOG).read_text()
  results = json.loads((second / 'results.json').read_text())
  assert results['budget']['student_steps'] == 5 * 2
  text = (tmp_path / 'table.md').read_text()
  assert ' digits_smoke |     2 |' in text and 'Not finished' not in text
  assert '## At equal average' in text  # of clean images, which both have
