"""The developers' scripts start as their docstrings say."""

import importlib
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


@pytest.mark.slow
def test_steps(tmp_path):
  # From another directory, and checked against PyTorch before it is timed.
  pytest.importorskip('torch')
  # Its config is main.py's: a bare name, and fractions.
  _run('steps.py', '--config=digits:smoke', '--config.eps=8/255', '--rounds=1',
       '--seconds=0', '--output=steps.json', cwd=tmp_path)
  results = json.loads((tmp_path / 'steps.json').read_text())
  assert results['steps'].keys() == {'generator', 'student', 'evaluation',
                                     'epoch'}
  for name, step in results['steps'].items():
    assert step['jax']['median'] > 0
    assert ('torch' in step) == (name != 'epoch')
  assert results['check']


@pytest.mark.slow
def test_hoisting(tmp_path):
  table = _run('hoisting.py', '--models=cifar_resnet20', '--batches=1',
               '--rounds=1', '--seconds=0', cwd=tmp_path)
  assert table.splitlines()[-1].split()[:2] == ['cifar_resnet20', '1']


def test_train_teacher_starts(tmp_path):
  pytest.importorskip('torch')
  assert 'fashion_mnist' in _run('train_teacher.py', '--help', cwd=tmp_path)


@pytest.fixture
def parity(monkeypatch):
  monkeypatch.syspath_prepend(_SCRIPTS)
  return importlib.import_module('autoattack_parity')


def _write_side(path, side, flags, cpu_seconds, first=0):
  path.joinpath(f'{side}_{first}.json').write_text(json.dumps({
      'model': 'resnet20', 'eps': 8.0, 'images': 4, 'side': side, 'cores': 1,
      'first': first,
      'clean': [True, True, True, False], 'batch_size': 32, 'version': 'v',
      'processor': 'p',
      'flags': flags, 'seconds': 9., 'cpu_seconds': cpu_seconds,
      'seconds_by_attack': dict.fromkeys(flags, 2.)}))


def test_autoattack_parity_report(parity, tmp_path, monkeypatch):
  flags = {attack: [True, False, False, False] for attack in parity.ATTACKS}
  other = flags | {'square': [False] * 4}
  for side, found, seconds in (('jax', flags, 4.), ('official0', flags, 6.),
                               ('official1', other, 10.)):
    _write_side(tmp_path, side, found, seconds)
  document = tmp_path / 'parity.md'
  def write():
    monkeypatch.setattr(sys, 'argv', [
        'autoattack_parity.py', 'write', f'--results={tmp_path}',
        f'--document={document}'])
    parity.main()
    return document.read_text()
  report = write()
  assert ('| CIFAR10-resnet20-adv.pth | 8/255 | 4 | 25.00% | 25.00%, 0.00% | '
          '100.0%, 75.0% | 75.0% | 25.00 points | no | 2.00 |') in report
  assert '| square | 25.00% | 25.00% | 0.00% |' in report
  assert ('\nhere                .cc-\nofficial, seed 0    .cc-\n'
          'official, seed 1    scc-\nfinal flags differ  ^\n') in report
  assert write() == report

  # More images join those; another setting's results stay.
  for side in ('jax', 'official0', 'official1'):
    _write_side(tmp_path, side, flags, 5., first=4)
  joined = write()
  assert ('| 8/255 | 8 | 25.00% | 25.00%, 12.50% |' in joined
          and '\nofficial, seed 1    scc-.cc-\n' in joined)
  assert joined.count('\n## ') == report.count('\n## ')
  document.write_text(joined.replace('8/255', '4/255'))
  both = write()
  assert both.count('\n## ') == joined.count('\n## ') + 1
  assert both.index(' 8/255 |') < both.index(' 4/255 |')
  assert write() == both


def test_parity_refuses_images_that_do_not_fit(parity, tmp_path):
  flags = dict.fromkeys(parity.ATTACKS, [True] * 4)
  for first in (0, 8):
    _write_side(tmp_path, 'jax', flags, 4., first)
  def found():
    return [json.loads(file.read_text()) for file in tmp_path.glob('*.json')]
  with pytest.raises(SystemExit, match=r'resnet20 .* parts start at .0, 8.'):
    parity._by_setting(found())
  _write_side(tmp_path, 'jax', flags, 4., 4)
  _write_side(tmp_path, 'official0', flags, 4.)
  with pytest.raises(SystemExit, match='not the same images'):
    parity._by_setting(found())


def test_parity_is_accepted_of_three_seeds_that_agree(parity):
  def side(robust, of=1000):
    flags = [True] * robust + [False] * (of - robust)
    return {'flags': dict.fromkeys(parity.ATTACKS, flags), 'images': of}
  def accepted(*seeds):
    return parity._accepted(side(500), {
        f'official{i}': side(robust) for i, robust in enumerate(seeds)})
  assert accepted(500, 501, 499)
  assert not accepted(500, 501)
  assert not accepted(500, 500, 504)
  def verdict(*seeds):
    return parity._verdict(side(10, of=20), {
        f'official{i}': side(robust, of=20) for i, robust in enumerate(seeds)})
  assert verdict(10, 10, 10) == 'yes'
  assert verdict(10, 10, 11) == 'as the seeds'  # one of them differs, too
  assert verdict(11, 11, 11) == verdict(10, 11) == 'no'
  def mcnemar(ours, theirs):
    return parity._mcnemar(side(ours), side(theirs), 'square')
  assert [mcnemar(500, robust) for robust in (500, 503, 506)] == [
      1, 0.25, 2 / 64]


@pytest.mark.slow
def test_autoattack_parity_runs_both_sides(tmp_path):
  pytest.importorskip('pyautoattack')
  data = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'tfds'
  if not data.exists():  # Nobody has to have it to run the tests.
    pytest.skip('needs CIFAR-10, which nobody has to have')
  _run('autoattack_parity.py', 'run', '--model=resnet18', '--eps=8',
       '--images=2', f'--data_dir={data}', f'--results={tmp_path}',
       cwd=tmp_path)
  document = tmp_path / 'parity.md'
  _run('autoattack_parity.py', 'write', f'--results={tmp_path}',
       f'--document={document}', cwd=tmp_path)
  assert '100.0%, 100.0%, 100.0%' in document.read_text()


def test_error_of_the_time_left(monkeypatch):
  monkeypatch.syspath_prepend(_SCRIPTS)
  eta = importlib.import_module('eta')
  # Half a second too much is said, always.
  notes = [(100 + i, 10 - i + 0.5) for i in range(10)]
  rows = eta.table(notes, 100., 110.).splitlines()[2:]
  assert len(rows) == 5 and all(row.endswith('| +5% |') for row in rows)
  assert rows[2] == '| 50% | 6 s | 5 s | +5% |'


def test_cost_of_the_log(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(_SCRIPTS)
  cost = importlib.import_module('log_cost')
  record = {'epoch': 1, 'seconds': 9., 'synthesis/loss': 1., 'distill/loss': 2.,
            'synthesis/steps': 3, 'distill/steps': 4,
            'sampler/probs': [0.5, 0.5]}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  found = cost.measure(tmp_path, ('jsonl', 'terminal'))
  assert found.pop('training') == 9.
  assert '4 steps, distill' in found and all(
      seconds >= 0 for seconds in found.values())
