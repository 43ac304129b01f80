"""The developers' scripts start as their docstrings say."""

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny

from ferd_jax import train
from ferd_jax.core import reporting

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
def test_steps_in_bfloat16(tmp_path):
  pytest.importorskip('torch')
  _run('steps.py', '--config=digits:smoke', '--rounds=1', '--seconds=0',
       '--config.precision=bfloat16', '--output=steps.json', cwd=tmp_path)
  results = json.loads((tmp_path / 'steps.json').read_text())
  assert results['steps']['student']['torch/jax'] > 0


@pytest.mark.slow
def test_costs_follow_the_cost_model(tmp_path):
  _run('costs.py', 'digits', '--count-only', '--output=count.json',
       cwd=tmp_path)
  _run('costs.py', 'digits:smoke', '--devices=2', '--output=all.json',
       cwd=tmp_path)
  counted, = json.loads((tmp_path / 'count.json').read_text())
  compiled, = json.loads((tmp_path / 'all.json').read_text())
  for step in ('generator step', 'student step'):
    ratio = counted[step]['flops'] / counted[step]['model_flops']
    assert 0.95 < ratio < 1.05
    found = compiled[step]
    assert found['communicated_bytes'] > 0 < found['temp_bytes']
    assert 0.9 * found['alias_bytes'] < found['argument_bytes']
    assert 0 < found['efficiency']['64'] < found['efficiency']['8'] < 1


@pytest.mark.slow
def test_growth(tmp_path):
  table = _run('growth.py', '--small', '--steps=1', '--rounds=1', cwd=tmp_path)
  assert {line.split()[1] for line in table.splitlines()[4:]} >= {
      'batch', 'classes', 'side', 'pool'}


@pytest.mark.slow
def test_synthetic_images(monkeypatch, tmp_path, capsys):
  monkeypatch.syspath_prepend(_SCRIPTS)
  synthetic_images = importlib.import_module('synthetic_images')
  experiment = tiny.claim(tiny.config(), tmp_path / 'run')
  train.train(experiment, tmp_path / 'run', reporter=reporting.SILENT)
  synthetic_images.main([str(tmp_path / 'run'), '--images=12',
                         f'--output={tmp_path / "found.json"}'])
  found, = json.loads((tmp_path / 'found.json').read_text())
  # 2 steps of 8 images in each of two epochs, of 3 times 8 that were made.
  assert found['seen'] == pytest.approx(2 * 2 * 8 / 24)
  assert found['synthetic']['images'] == found['real']['images'] == 12
  for kind in ('synthetic', 'real'):
    values = found[kind]
    assert 0 <= values['robust'] <= values['agreement'] <= 1
    assert 0 < values['entropy'] <= np.log(10)
  assert len(capsys.readouterr().out.splitlines()) == 4
  with pytest.raises(SystemExit, match='error: .*absent'):
    synthetic_images.main([str(tmp_path / 'absent')])


@pytest.fixture
def accelerator(monkeypatch):
  monkeypatch.syspath_prepend(_SCRIPTS)
  return importlib.import_module('accelerator')


def test_an_accelerator_s_slices_go_on(accelerator, tmp_path, monkeypatch,
                                       capsys):
  def part(name, code, **options):
    return accelerator.Part(name, ('-c', code), **options)
  marks = tmp_path / 'marks'
  note = f'open({str(marks)!r}, "a").write("x")'
  chosen = [
      part('hardware', 'import json; print(json.dumps(dict(jax=1)))'),
      part('first', note),
      part('tests/a', 'print("1 failed in 2 s"); exit(1)', may_fail=True),
      part('never', '', result=tmp_path / 'absent'),
      part('wrong', 'exit(1)'),
      part('slow', 'import time; time.sleep(60)')]
  monkeypatch.setattr(accelerator, 'parts', lambda args: iter(chosen))
  monkeypatch.setattr(accelerator, '_GRACE', 1)
  flags = [f'--workdir={tmp_path}', '--small', '--minutes=0.13']
  assert accelerator.main(flags) == 75
  said = capsys.readouterr().out
  for line in ('first: done', 'tests/a: failed', 'never: stopped',
               'wrong: failed', '--skip=wrong', 'slow: stopped',
               '3 parts are left'):
    assert line in said, said
  # What is done is not done again.
  assert accelerator.main([*flags, '--skip=slow', '--skip=never']) == 75
  assert marks.read_text() == 'x'
  assert 'first' not in capsys.readouterr().out
  text = (tmp_path / 'results.md').read_text()
  assert 'jax 1' in text and '- tests/a: 1 failed in 2 s' in text
  assert accelerator.main([*flags, '--skip=slow', '--skip=never',
                           '--skip=wrong']) == 0


def test_an_accelerator_s_parts(accelerator, tmp_path):
  teacher = tmp_path / 'teacher.pth'
  teacher.touch()
  args = accelerator._parser().parse_args(
      [f'--workdir={tmp_path}', f'--teacher={teacher}'])
  found = {part.name: part for part in accelerator.parts(args)}
  files = len(list((_SCRIPTS.parent / 'tests').rglob('*_test.py')))
  assert sum(name.startswith('tests/') for name in found) == files
  assert list(found)[-1] == 'training'
  assert f'--config.teacher.path={teacher}' in found['training'].command
  with pytest.raises(SystemExit, match='absent'):
    accelerator.main([f'--workdir={tmp_path}', '--teacher=absent.pth'])


@pytest.mark.slow
def test_hoisting(tmp_path):
  table = _run('hoisting.py', '--models=cifar_resnet20', '--batches=1',
               '--rounds=1', '--seconds=0', cwd=tmp_path)
  assert table.splitlines()[-1].split()[:2] == ['cifar_resnet20', '1']


@pytest.mark.slow
def test_minimum_norm(tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('foolbox')
  table = _run('minimum_norm.py', '--images=3', '--steps=4', '--rounds=1',
               '--attacks', 'DDN', 'FMN L0', cwd=tmp_path)
  rows = [line.split(' | ') for line in table.splitlines()
          if line.startswith(('| DDN |', '| FMN L0 |'))]
  assert len(rows) == 4
  assert all(row[6] == '100%' for row in rows[2:])  # norms that agree


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['L1', 'Linf'])
def test_ball_attacks(norm, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('foolbox')
  pytest.importorskip('pyautoattack')
  # What nothing fools, and what everything does: the same on both sides.
  for eps, left in (('1e-4', '3'), ('0.9' if norm == 'Linf' else '60', '0')):
    table = _run('ball_attacks.py', f'--norm={norm}', f'--eps={eps}',
                 '--images=3', '--iterations=10', '--queries=20', '--rounds=1',
                 '--attacks', 'pgd', 'apgd-ce', 'apgd-t', 'fab-t', 'square',
                 cwd=tmp_path)
    rows = [line.strip('| ').split(' | ') for line in table.splitlines()
            if line.startswith(('| pgd', '| apgd', '| fab', '| square'))]
    assert len(rows) == 5
    assert all(float(row[3]) > 0 for row in rows)
    for name, *_, here, there in rows:
      if left == '3':
        assert here == there == '3', name
      elif name.startswith(('pgd', 'apgd')):
        assert here == there == '0', name


def test_train_teacher_starts(tmp_path):
  pytest.importorskip('torch')
  assert 'fashion_mnist' in _run('train_teacher.py', '--help', cwd=tmp_path)


@pytest.fixture
def parity(monkeypatch):
  monkeypatch.syspath_prepend(_SCRIPTS)
  return importlib.import_module('autoattack_parity')


def _write_side(path, side, flags, cpu_seconds, first=0, **more):
  name = '_'.join(map(str, (side, first, *more.values())))
  path.joinpath(f'{name}.json').write_text(json.dumps({
      'model': 'resnet20', 'eps': 8.0, 'images': 4, 'side': side, 'cores': 1,
      'first': first,
      'clean': [True, True, True, False], 'batch_size': 32, 'version': 'v',
      'processor': 'p',
      'flags': flags, 'seconds': 9., 'cpu_seconds': cpu_seconds,
      'seconds_by_attack': dict.fromkeys(flags, 2.), **more}))


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

  # L1 stands last, whatever its radius.
  for side in ('jax', 'official0'):
    _write_side(tmp_path, side, flags, 5., norm='L1', eps=9.5)
  third = write()
  assert '| CIFAR10-resnet20-adv.pth | 9.5 (L1) | 4 | 25.00% |' in third
  assert third.index(' 4/255 |') < third.index(' 9.5 (L1) |')
  assert '\n## CIFAR10-resnet20-adv.pth, eps 9.5 (L1), 4 images\n' in third
  assert write() == third


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
