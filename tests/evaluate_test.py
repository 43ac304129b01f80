"""`python -m ferd_jax.evaluate`, on files and on a run."""

import functools
import json
import re

import numpy as np
import pytest
from safetensors import numpy
import timeless
import tiny

import ferd_jax
from ferd_jax import assets
from ferd_jax import evaluate
from ferd_jax import models
from ferd_jax import train
from ferd_jax.attacks import ensemble
from ferd_jax.attacks import slots
from ferd_jax.evaluation import results as evaluations
from ferd_jax.evaluation import robustness
from ferd_jax.models import preact_resnet
from ferd_jax.models import resnet

_FILE = [assets.path('digits_resnet8_adv.safetensors'), '--arch=cifar_resnet8',
         '--shortcut=pad_both', '--data=digits', '--n-examples=12',
         '--batch-size=12']


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  """Makes evaluations of the same model and settings compile once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(robustness, 'evaluator',
                  functools.cache(robustness.evaluator))
    patch.setattr(evaluations.Protocol, 'target_analysis',
                  functools.cache(evaluations.Protocol.target_analysis))
    yield


def _run(capsys, *argv):
  evaluate.main([str(arg) for arg in argv])
  return capsys.readouterr().out


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  config = tiny.config(num_epochs=1, warmup_epochs=0)
  train.train(tiny.claim(config, workdir), workdir)
  return workdir


def test_file_over_radii(capsys, tmp_path):
  path = tmp_path / 'results.json'
  out = _run(capsys, *_FILE, '--attacks=clean,fgsm,autoattack_fast',
             '--n-examples=6', '--eps', '0.3,0.35', '0.4', f'--json={path}',
             f'--state-dir={tmp_path / "state"}')
  sweep = json.loads(path.read_text())
  assert [results['eps'] for results in sweep] == [0.3, 0.35, 0.4]
  found = [results['models']['model'] for results in sweep]
  for attack in ('fgsm', 'autoattack_fast'):
    averages = [results[attack]['average'] for results in found]
    assert averages == sorted(averages, reverse=True)
  for results in found:
    aa = results['autoattack_fast']
    assert aa['average'] <= results['fgsm']['average']
    assert list(aa['after']) == ['apgd-ce', 'apgd-t']
    assert aa['after']['apgd-t']['average'] == aa['average']
    assert aa['after']['apgd-t']['per_class'] == aa['per_class']
    assert len(aa['per_class']) == 10
  assert sweep[0]['num_examples'] == 6 and sweep[0]['seed'] == 0
  assert 'Linf eps 0.30000' in out and 'model autoattack_fast' in out
  assert len(re.findall(r'^\| autoattack_fast \|', out, re.MULTILINE)) == 3
  assert len(list((tmp_path / 'state').glob('autoattack_fast-*.npz'))) == 3


def test_a_sweep_that_is_interrupted_is_gone_on_with(capsys, tmp_path,
                                                     monkeypatch):
  flags = [*_FILE, '--n-examples=4', '--attacks=autoattack_fast',
           '--eps=0.3,0.4', f'--state-dir={tmp_path / "state"}']
  expected = _run(capsys, *flags[:-1])
  attack, calls = ensemble.Session._attack, []
  def interrupted(run, position, name, *args):
    calls.append((run._eps, name))
    if len(calls) == 3:
      raise KeyboardInterrupt
    attack(run, position, name, *args)
  monkeypatch.setattr(ensemble.Session, '_attack', interrupted)
  with pytest.raises(SystemExit) as exit_:
    _run(capsys, *flags)
  assert exit_.value.code == 130
  out, err = capsys.readouterr()
  assert 'eps 0.30000' in out  # what is done is shown
  assert err.splitlines()[-1] == (
      f'stopped: SIGINT; run again to go on: {tmp_path / "state"} keeps what '
      'is finished.')
  done = []
  monkeypatch.setattr(slots.Slots, 'run', lambda self, variables, key, eps,
                      *args, _run=slots.Slots.run: done.append(eps) or
                      _run(self, variables, key, eps, *args))
  assert _run(capsys, *flags) == expected
  assert done and set(done) == {0.4}  # not again at 0.3


def test_what_is_finished_is_not_repeated(capsys, tmp_path, monkeypatch):
  flags = [*_FILE, '--n-examples=4', '--attacks=clean,fgsm,pgd20', '--targets',
           '--eps=0.3', f'--state-dir={tmp_path / "state"}']
  expected = _run(capsys, *flags[:-1])
  batches, calls = robustness.batches, []
  def interrupted(*args):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return batches(*args)
  monkeypatch.setattr(robustness, 'batches', interrupted)
  with pytest.raises(SystemExit):
    _run(capsys, *flags)
  names = {path.name.partition('-')[0] for path in
           (tmp_path / 'state').iterdir()}
  assert names == {'clean', 'fgsm'}
  assert _run(capsys, *flags) == expected
  assert len(calls) == 5  # PGD and targets
  assert _run(capsys, *flags) == expected
  assert len(calls) == 5
  fgsm, = (tmp_path / 'state').glob('fgsm-*')
  fgsm.write_text(fgsm.read_text().replace('"average": ', '"average": 1'))
  calls.clear()
  assert _run(capsys, *flags) == expected
  assert len(calls) == 1


def test_interrupted_without_a_state_directory(capsys, monkeypatch):
  def interrupted(*args, **options):
    raise KeyboardInterrupt
  monkeypatch.setattr(robustness, 'batches', interrupted)
  with pytest.raises(SystemExit) as exit_:
    _run(capsys, *_FILE, '--attacks=clean,autoattack_fast')
  assert exit_.value.code == 130
  assert capsys.readouterr().err.splitlines()[-1] == (
      'stopped: SIGINT; --state-dir would keep what is finished.')


def test_lines_of_finished_attacks(capsys, tmp_path):
  path = tmp_path / 'results.json'
  evaluate.main([*map(str, _FILE), '--attacks=clean,fgsm', f'--json={path}'])
  found = json.loads(path.read_text())[0]['models']['model']
  *lines, last = timeless.lines(capsys.readouterr().err)[2:]
  assert lines == [
      f'model, {name}: {found[name]["average"]:.2%}, worst class '
      f'{found[name]["worst"]:.2%}' for name in ('clean', 'fgsm')]
  assert last.startswith(tuple('0123456789')) and 'compiled' in last


def test_results_say_what_they_are_of(capsys, tmp_path):
  path = tmp_path / 'results.json'
  weights = dict(numpy.load_file(_FILE[0]))
  weights['linear.bias'] = weights['linear.bias'] + 1
  other = tmp_path / 'other.safetensors'
  numpy.save_file(weights, other)
  found = []
  for file, *options in ((_FILE[0],), (_FILE[0], '--mean=0.5', '--std=0.25'),
                         (other,)):
    _run(capsys, file, *_FILE[1:], *options, '--attacks=clean',
         f'--json={path}')
    found.append(json.loads(path.read_text())[0])
  for results in found:
    assert results['arch'] == 'cifar_resnet8' and results['select'] is None
    assert results['batch_size'] == 12 and results['norm'] == 'Linf'
    assert results['ferd_jax'] == ferd_jax.__version__
  assert [results['network_options'] for results in found] == [
      {'shortcut': 'pad_both', **options}
      for options in ({}, {'mean': [0.5], 'std': [0.25]}, {})]
  first, second, third = (results['weights_digest']['model']
                          for results in found)
  assert first == second != third and len(first) == len(third) == 64


def test_first_examples_and_seed(capsys, tmp_path):
  accuracies = []
  for number, seed in ((24, 0), (24, 0), (24, 1)):
    path = tmp_path / 'results.json'
    _run(capsys, *_FILE, f'--n-examples={number}', f'--seed={seed}',
         '--attacks=pgd20', '--eps=0.2', f'--json={path}')
    accuracies.append(json.loads(path.read_text())[0]['models']['model'])
  assert accuracies[0] == accuracies[1]
  assert accuracies[0]['pgd20']['average'] > 0


def test_run_directory(capsys, run_dir, tmp_path):
  path = tmp_path / 'results.json'
  out = _run(capsys, run_dir, '--attacks=clean,fgsm', '--targets',
             '--n-examples=8', '--batch-size=8', f'--json={path}')
  results, = json.loads(path.read_text())
  own = json.loads((run_dir / 'results.json').read_text())
  assert results['eps'] == own['eps'] and results['epoch'] == 1
  assert list(results['models']) == ['teacher', 'student']
  assert results['batch_size'] == 8 and 'arch' not in results
  assert results['ferd_jax'] == ferd_jax.__version__
  assert len(set(results['weights_digest'].values())) == 2
  assert len(results['targets']['student']['reached']) == 10
  assert 'student average' in out and 'student: how often' in out


def test_run_directory_on_all_images_as_the_run_itself(capsys, run_dir,
                                                       tmp_path):
  path = tmp_path / 'results.json'
  _run(capsys, run_dir, '--attacks=clean', '--batch-size=8',
       f'--json={path}')
  results, = json.loads(path.read_text())
  own = json.loads((run_dir / 'results.json').read_text())
  for model in ('teacher', 'student'):
    assert results['models'][model]['clean'] == own['models'][model]['clean']


@pytest.mark.parametrize(('norm', 'eps'), [('L2', 0.5), ('L1', 2)])
def test_other_norms(capsys, norm, eps):
  out = _run(capsys, *_FILE, '--attacks=clean,pgd20', f'--norm={norm}',
             f'--eps={eps}')
  assert f'{norm} eps {eps:.5f}' in out


@pytest.mark.slow  # As results_test does, with a network of some size.
def test_diagnose(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate, '_DIAGNOSED', 4)
  path = tmp_path / 'results.json'
  out = _run(capsys, *_FILE, '--attacks=clean', '--eps=0.3', '--diagnose',
             f'--json={path}', f'--state-dir={tmp_path / "state"}')
  found, = json.loads(path.read_text())
  values = found['diagnosis']['model']
  assert (values['num_images'], values['eps'], values['norm']) == (
      4, 0.3, 'Linf')
  assert {check['name']: check['passed'] for check in values['checks']
          }['traced again']
  assert 'model: can these numbers be believed? 4 images' in out
  assert '| zero gradients | 0 | <= 0.05 | ok |' in out
  # It is kept as attacks are.
  assert len(list((tmp_path / 'state').glob('diagnosis-*.json'))) == 1
  evaluate.main([*_FILE, '--attacks=clean', '--eps=0.3', '--diagnose',
                 f'--state-dir={tmp_path / "state"}'])
  assert capsys.readouterr().out == out


@pytest.mark.parametrize(('argv', 'message'), [
    (['absent.pth', '--arch=resnet18', '--data=digits'], 'absent.pth'),
    ([_FILE[0], '--data=digits'], 'do not reveal activation'),
    ([*_FILE[:2], '--data=digits'], "reveal shortcut ('pad_both' or"),
    (['--data=digits'], 'Expected a model'),
    (['--robustbench=Standard', '--data=digits'], 'data set cifar10 or'),
    (['--robustbench=Rice2020', '--data=cifar10'], 'Rice2020Overfitting'),
    (['--robustbench=Rice2020Overfitting', '--data=cifar10', '--norm=L2'],
     'which of two, beside --norm=L2: L2/Rice2020Overfitting'),
    (['--robustbench=Standard', '--arch=wrn_28_10', '--data=cifar10'],
     'no --arch for --robustbench'),
    ([_FILE[0], '--arch=cifar_resnet8'], '--data'),
    ([*_FILE, '--arch=resnet19'], 'resnet19'),
    ([_FILE[0], '--arch=resnet18', '--data=digits'], 'do not fit'),
    ([*_FILE, '--attacks=pgd21'], "attacks='pgd21'"),
    ([*_FILE, '--n-examples=0'], '--n-examples=0'),
    ([*_FILE, '--batch-size=0'], '--batch-size=0'),
    ([*_FILE, '--n-examples=100000'], 'of at most 599'),
    ([*_FILE, '--eps=-0.1'], 'eps=-0.1'),
    ([*_FILE, '--attacks=autoattack', '--eps=8'], 'covers all images'),
    ([*_FILE, '--data=absent.npz'], 'absent.npz'),
    ([*_FILE, '--attacks=clean,clean'], 'each once'),
    ([*_FILE, '--seed=4294967296'], 'seed=4294967296'),
    ([*_FILE, '--attacks=fgsm', '--eps=0.1,2'], 'covers all images'),
    ([*_FILE, '--norm=L2'], '--eps for --norm=L2'),
    ([*_FILE, '--norm=L1'], '--eps for --norm=L1'),
    ([*_FILE, '--norm=L1', '--eps=64', '--attacks=fgsm'], 'covers all images'),
    ([*_FILE, '--teacher-path=a'], '--teacher-path'),
    ([*_FILE, '--json=/proc/a/b.json'], 'b.json'),
    (['{tmp}', '--arch=resnet18'], '--arch for a run'),
    (['{tmp}'], 'config.json')])
def test_mistakes_are_one_line(argv, message, tmp_path):
  argv = [str(arg).replace('{tmp}', str(tmp_path)) for arg in argv]
  with pytest.raises(SystemExit) as exit_:
    evaluate.main(argv)
  text = str(exit_.value)
  assert text.startswith('error: ') and message in text
  assert '\n' not in text


@pytest.mark.parametrize(('option', 'message'), [
    ('--json={tmp}', '--json={tmp}: it is a directory'),
    ('--json={tmp}/file/a.json', '--json={tmp}/file/a.json: '),
    ('--state-dir={tmp}/file', '--state-dir={tmp}/file: it is a file'),
    ('--state-dir={tmp}/file/a', '--state-dir={tmp}/file/a: '),
    ('--state-dir=/proc/a', '--state-dir=/proc/a: ')])
def test_what_cannot_be_written_is_known_before(option, message, tmp_path,
                                                monkeypatch):
  (tmp_path / 'file').write_text('')
  evaluated = []
  monkeypatch.setattr(evaluations, 'evaluate', lambda *args, **options:
                      evaluated.append(args) or {})
  with pytest.raises(SystemExit) as exit_:
    evaluate.main([*map(str, _FILE), option.format(tmp=tmp_path)])
  assert ('error: Cannot write ' + message.format(tmp=tmp_path)
          in str(exit_.value))
  assert not evaluated
  assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('name', ['results.json', 'metrics.jsonl'])
def test_files_that_are_no_weights(name, tmp_path):
  (tmp_path / name).write_text('{}')
  with pytest.raises(SystemExit, match='pth, .safetensors.*work directory of'):
    evaluate.main([str(tmp_path / name)])


def test_run_on_data_for_another_teacher(run_dir, tmp_path):
  path = tmp_path / 'own.npz'
  np.savez(path, x=np.zeros((6, 8, 8, 3), np.uint8), y=np.arange(6) + 4)
  with pytest.raises(SystemExit, match='teacher_digests.robust is') as exit_:
    evaluate.main([str(run_dir), f'--data={path}'])
  assert 'only data of the same shape and classes' in str(exit_.value)
  assert '--workdir' not in str(exit_.value)


def test_run_of_another_version(run_dir, tmp_path):
  saved = json.loads((run_dir / 'config.json').read_text())
  saved['inner']['later'] = 1
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(SystemExit, match='does not have: inner.later'):
    evaluate.main([str(tmp_path)])
  del saved['format']
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(SystemExit, match='of format 1, this version has'):
    evaluate.main([str(tmp_path)])


@pytest.mark.parametrize(('eps', 'message'), [
    (['eight'], "got 'eight'"), (['8/0'], "got '8/0'"), ([''], "got ''"),
    (['0.1,'], "got ''"), (['1e400'], "got '1e400'"), (['nan'], "got 'nan'"),
    (['8/inf'], "got '8/inf'"), (['8/255/2'], "got '8/255/2'"),
    (['0.25,0.5,1/255'], 'write 0.25/255'), (['0.3', '2/5'], 'write 0.3/5'),
    (['2', '-4', '8/255'], 'write -4/255'), (['8/255,16'], 'one form'),
    (['2,8/255,0.1'], 'one form'), (['2,1/10,8/255'], 'one form'),
    (['8/255,8/255'], 'twice'), (['0.1', '0.1'], 'twice'),
    (['2,4/510', '4/255', '2/255'], 'one form'), (['2/255,4/510'], 'twice'),
    (['2,2/255'], 'twice')])
def test_radii_that_are_refused(eps, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    evaluate.main([*map(str, _FILE), '--eps', *eps])
  assert exit_.value.code == 2
  shown = capsys.readouterr().err
  assert '--eps' in shown and message in shown


@pytest.mark.parametrize(('text', 'radii'), [
    ('8/255', [8 / 255]), ('0.1,0.2', [0.1, 0.2]), ('0.5,1.5', [0.5, 1.5]),
    ('1/10,8/255', [0.1, 8 / 255]), ('0.5/255', [0.5 / 255]),
    ('8/25.5', [8 / 25.5]), ('2,4,8/255', [2 / 255, 4 / 255, 8 / 255]),
    ('2 4 6 8 10/255', [2 / 255, 4 / 255, 6 / 255, 8 / 255, 10 / 255]),
    ('2, 4 ,8/255', [2 / 255, 4 / 255, 8 / 255]),
    ('0,1.5,4/255,8/255', [0, 1.5 / 255, 4 / 255, 8 / 255])])
def test_radii(text, radii):
  for words in ([text], text.split()):
    args = evaluate._parser().parse_args(['model.pt', '--eps', *words])
    assert args.eps == radii


def test_a_model_after_the_radii(capsys):
  with pytest.raises(SystemExit) as exit_:
    evaluate.main(['--eps', '8/255', str(_FILE[0])])
  assert exit_.value.code == 2
  assert 'put the model first, or write --eps=8/255' in capsys.readouterr().err


def test_logits_that_are_not_finite(tmp_path):
  # Class 0 would be predicted everywhere, and withstand every attack.
  weights = dict(numpy.load_file(_FILE[0]))
  weights['linear.bias'] = np.full_like(weights['linear.bias'], np.nan)
  path = tmp_path / 'broken.safetensors'
  numpy.save_file(weights, path)
  for option in ('--attacks=clean', '--attacks=fgsm', '--attacks=autoattack'):
    with pytest.raises(SystemExit, match='finite'):
      evaluate.main([str(path), *_FILE[1:], option])


def test_a_model_no_better_than_chance_is_doubted(capsys):
  out = _run(capsys, *_FILE, '--attacks=clean', '--mean=40', '--std=0.01')
  assert 'Warning: model, clean: The clean accuracy is' in out


def test_help_names_all_attacks(capsys):
  with pytest.raises(SystemExit) as exit_:
    evaluate.main(['--help'])
  assert exit_.value.code == 0
  out = ' '.join(capsys.readouterr().out.split())
  assert 'autoattack_torchattacks' in out and 'work directory' in out
  for text in (', '.join(resnet.SHORTCUTS), ' or '.join(
      preact_resnet.SHORTCUT_INPUTS), 'no key tells'):
    assert text in out


def test_import_of_what_registers_a_network(capsys, tmp_path, monkeypatch):
  (tmp_path / 'my_nets.py').write_text(
      'import lenet\nfrom ferd_jax import models\n'
      "models.register('imported_net', lenet.LeNet5, options=('width',),\n"
      '                layout=lenet.LAYOUT)\n')
  monkeypatch.chdir(tmp_path)
  for name in (str(tmp_path / 'my_nets.py'), 'my_nets'):
    args = ['absent.pt', '--arch=imported_net', '--data=digits',
            '--attacks=clean', f'--import={name}']
    with pytest.raises(SystemExit, match='absent.pt: there is no such'):
      evaluate.main(args)
    assert 'imported_net' in models.names()


@pytest.mark.parametrize('name, words', [
    ('absent_module_x', 'Cannot import absent_module_x: ModuleNotFoundError'),
    ('absent.py', 'Cannot import absent.py: there is no such file'),
    ('broken.py', 'Cannot import broken.py: ZeroDivisionError')])
def test_import_that_fails(name, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'broken.py').write_text('1 / 0\n')
  with pytest.raises(SystemExit, match=words):
    evaluate.main(['x.pt', '--data=digits', f'--import={name}'])


def test_data_are_blamed_before_the_weights(tmp_path):
  """A file of data with what is wrong with it, whatever the weights are."""
  path = tmp_path / 'own.npz'
  x, y = np.zeros((9, 8, 8, 1), np.uint8), np.arange(9)
  def refuse(match, weights='absent.pt', **arrays):
    np.savez(path, **arrays)
    (tmp_path / 'absent.pt').write_bytes(b'no weights')
    with pytest.raises(SystemExit, match=match):
      evaluate.main([str(tmp_path / weights), f'--data={path}', *_FILE[1:3],
                     '--attacks=clean'])
  refuse(r'own.npz is not .*save x.transpose\(0, 2, 3, 1\)',
         x=np.zeros((9, 1, 8, 8), np.uint8), y=y)
  refuse('own.npz is not .*must begin at 0', x=x, y=y + 1)
  refuse('own.npz has 9 classes, .*class_names', weights=_FILE[0], x=x, y=y)


def test_a_bucket_without_its_package():
  with pytest.raises(SystemExit, match='Cannot read gs://bucket/run: '):
    evaluate.main(['gs://bucket//run', '--data=digits'])


def test_curve(capsys, tmp_path):
  path, state = tmp_path / 'results.json', tmp_path / 'state'
  flags = [*_FILE, '--curve=fmn', '--eps=0,0.05,0.1,0.2', f'--json={path}',
           f'--state-dir={state}']
  out = _run(capsys, *flags)
  results, = json.loads(path.read_text())  # One run for all radii.
  assert list(results['models']['model']) == ['clean']
  found = results['curves']['model']
  assert found['norm'] == 'Linf' and found['attacks'] == ['fmn']
  assert found['eps'] == [0, 0.05, 0.1, 0.2]
  averages = [at['average'] for at in found['at']]
  assert averages == sorted(averages, reverse=True)
  assert averages[0] == found['clean'] > averages[-1]
  distances = np.array(found['distances'].split(), float)
  for eps, average in zip(found['eps'], averages, strict=True):
    assert (distances > eps).mean() == average
  assert found['median'] == pytest.approx(np.median(distances[distances > 0]))
  assert found['success_rate'] == 1
  assert 'model: accuracy over Linf radii, attacks fmn; median' in out
  kept, = state.glob('curve-*.json')
  assert kept.exists() and _run(capsys, *flags) == out


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['L0', 'L1', 'L2'])
def test_curve_of_other_norms(capsys, norm):
  out = _run(capsys, *_FILE, '--curve', f'--norm={norm}')
  assert f'accuracy over {norm} radii, attacks fmn' in out
  assert 'success rate 100.00%' in out


@pytest.mark.parametrize(('argv', 'message'), [
    (['--curve=fab', '--norm=L0'], "--curve='fab' to be one of 'fmn'"),
    (['--curve=fgsm'], "--curve='fgsm' to be one of 'fmn', 'fab', 'fab-t'"),
    (['--curve=fmn,fmn'], 'one name each'),
    (['--curve', '--norm=L0', '--attacks=fgsm', '--eps=1'], "norm='L0'"),
    (['--norm=L1', '--attacks=clean'], 'Expected --eps for --norm=L1'),
    (['--curve', '--eps=2'], 'covers all images')])
def test_curves_that_are_none(argv, message):
  with pytest.raises(SystemExit) as exit_:
    evaluate.main([*map(str, _FILE), *argv])
  assert message in str(exit_.value)
