"""The command line of comparisons."""

import os
import signal

import made_runs
import pytest

from ferd_jax import compare
from ferd_jax.comparison import running

_GOOD, _BAD = made_runs.right(9, 8, 7, 6), made_runs.right(8, 4, 4, 0)


def _main(*argv):
  """Returns the exit status."""
  try:
    compare.main(list(map(str, argv)))
  except SystemExit as stop:
    return stop.code
  return 0


def test_runs_that_are_there(tmp_path, capsys):
  """Grouped by their settings but for the seed, and called by them."""
  for seed, correct in enumerate((_GOOD, _BAD)):
    made_runs.write(tmp_path / f'a{seed}', {'clean': correct}, seed)
    made_runs.write(tmp_path / 'more' / f'b{seed}', {'clean': _BAD}, seed,
                    inner__gamma=0.)
  made_runs.write(tmp_path / 'c', {'clean': _BAD}, finished=False, eps=0.2)
  assert not _main(tmp_path / 'a0', tmp_path / 'a1', tmp_path / 'more',
                   tmp_path / 'c', f'--workdir={tmp_path / "out"}')
  shown = capsys.readouterr().out
  assert 'made (inner.gamma=0.3) |     2 |' in shown
  assert 'made (inner.gamma=0.0) |     2 |' in shown
  assert f'{tmp_path / "c"}: the run has not ended' in shown
  assert (tmp_path / 'out' / 'table.md').read_text() in shown + '\n'
  assert (tmp_path / 'out' / 'table.csv').exists()
  assert (tmp_path / 'out' / 'table.tex').exists()


def test_other_parts_are_named_without_their_settings(tmp_path, capsys):
  made_runs.write(tmp_path / 'a', {'clean': _GOOD})
  made_runs.write(tmp_path / 'b', {'clean': _GOOD}, sampler__name='uniform',
                  sampler__tau=3.)
  assert not _main(tmp_path / 'a', tmp_path / 'b')
  shown = capsys.readouterr().out
  assert 'made (sampler.name=uniform) |' in shown and 'tau' not in shown


def test_names_of_a_comparison_are_kept(tmp_path, capsys):
  made_runs.write(tmp_path / 'no_UTAE' / 'seed_0', {'clean': _GOOD})
  (tmp_path / 'rows.json').write_text('{"no_UTAE": "without UTAE"}')
  assert not _main(tmp_path)
  assert '| without UTAE |' in capsys.readouterr().out


@pytest.mark.parametrize('argv, words', [
    ([], 'Expected one plan'), (['digit'], 'Did you mean digits'),
    (['digits', '--row=a: --config.eps=1'], 'no --row'),
    (['digits', '--config=digits'], 'Expected one plan'),
    (['digits', '--only=nobody'], "row='nobody'"),
    (['--config=digits', '--row=x: --config.synthesis.name=magic'],
     "synthesis.name='magic'"),
    (['--config=digits', '--config.epz=3'], 'epz'),
    (['--config=digits', '--jobs=0'], 'jobs=0'),
    (['--config=digits', '--max-minutes=-1'], 'max_minutes=-1'),
    (['--config=digits', '--reference=x', '--dry-run'], "reference='x'")])
def test_mistakes_are_one_line(argv, words, capsys, tmp_path):
  status = _main(*argv, f'--workdir={tmp_path}')
  assert status.startswith('error: ') and words in status
  assert '\n' not in status and not list(tmp_path.iterdir())


@pytest.mark.parametrize('argv', [
    ['--config=digits', '--workdir=gs://bucket/x'], ['gs://bucket/run']])
def test_buckets_are_refused(argv, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  status = _main(*argv)
  assert 'gs://bucket/' in status and 'on this machine' in status
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number, status', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_stops_the_runs(number, status, tmp_path, monkeypatch, capfd):
  """While they are executed, whose end is awaited."""
  ended = []
  def execute(*_, **__):
    try:
      os.kill(os.getpid(), number)
      yield
    finally:
      os.kill(os.getpid(), number)  # One more disturbs nothing.
      ended.append(True)
  monkeypatch.setattr(running, 'execute', execute)
  handlers = {each: signal.getsignal(each)
              for each in (signal.SIGTERM, signal.SIGINT)}
  try:
    found = _main('--config=digits:smoke', '--seeds=0',
                  f'--workdir={tmp_path}')
  finally:
    for each, handler in handlers.items():
      signal.signal(each, handler)
  assert found == status and ended
  assert (f'stopped: {number.name}; the same command goes on.'
          in capfd.readouterr().err)


def test_two_runs_of_one_seed(tmp_path):
  for name in 'ab':
    made_runs.write(tmp_path / name, {'clean': _GOOD})
  assert 'one seed' in _main(tmp_path)
  assert 'no --seeds' in _main(tmp_path / 'a', '--seeds=1')


def test_plan_is_shown_first(tmp_path, capsys):
  """With what each row spends, and nothing is started."""
  assert not _main('--config=digits:smoke', '--dry-run',
                   '--row=uniform: --config.sampler.name=uniform',
                   f'--workdir={tmp_path}', '--config.distill.steps=5')
  shown = capsys.readouterr().out
  assert '6 to start' in shown and 'Time: unknown' in shown
  row = next(line for line in shown.splitlines() if ' uniform |' in line)
  cells = [cell.strip() for cell in row.strip('| ').split('|')]
  assert cells[:3] == ['uniform', 'digits:smoke', '0 1 2']
  assert cells[4:6] == ['24', '6'] and cells[-1] == '10'
  assert 'Not equal: teacher passes' in shown
  assert not list(tmp_path.iterdir())
