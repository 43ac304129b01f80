"""The command line: what it prints, and how it fails."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def main(tmp_path_factory):
  """Returns a function that runs main.py as a user would, on one device."""
  folder = tmp_path_factory.mktemp('streams')
  env = {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
      # Nothing here may download.
      'http_proxy': 'http://127.0.0.1:9', 'https_proxy': 'http://127.0.0.1:9'}
  with subprocess.Popen(
      [sys.executable, _ROOT / 'tests' / 'warm.py', _ROOT / 'main.py'],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      env=os.environ | env) as warm:

    def run(*flags, cwd=_ROOT, **more):
      out, err = folder / 'out', folder / 'err'
      print(json.dumps({'argv': list(map(str, flags)), 'cwd': str(cwd),
                        'env': more, 'out': str(out), 'err': str(err)}),
            file=warm.stdin, flush=True)
      status = int(warm.stdout.readline())
      return subprocess.CompletedProcess(flags, status, out.read_text(),
                                         err.read_text())
    yield run
    warm.stdin.close()


def _config(name):
  return f'--config={_ROOT / "configs" / name}'


@pytest.mark.slow
@pytest.mark.parametrize('config', [
    'cifar10.py:smoke', 'cifar10.py:mobilenet_v2,smoke',
    'cifar10_resnet20.py:smoke', 'cifar100.py:released,smoke',
    'fashion_mnist.py:smoke,released', 'tiny_imagenet.py:smoke'])
def test_smoke(main, config, tmp_path):
  _check_smoke(main(_config(config), f'--workdir={tmp_path}'), tmp_path)


def _check_smoke(done, workdir):
  assert done.returncode == 0, done.stderr
  table = [line for line in done.stdout.splitlines() if line.startswith('|')]
  assert [line.split('|')[1].strip() for line in table[2:4]] == ['clean',
                                                                 'fgsm']
  assert 'teacher average' in table[0] and 'student average' in table[0]
  assert max(map(len, table)) <= 100
  assert 'epoch 3/3' in done.stderr  # plain lines, as it is no terminal
  assert not re.findall(r'^[WE]\d{4} .*', done.stderr, re.M)  # no library's
  assert list((workdir / 'samples').glob('*.png'))


def test_default_workdir_is_named_after_the_config(main, tmp_path):
  done = main(_config('digits.py:smoke'), cwd=tmp_path)
  _check_smoke(done, tmp_path / 'runs' / 'digits_smoke')
  assert (tmp_path / 'runs' / 'digits_smoke' / 'results.json').exists()
  log = (tmp_path / 'runs' / 'digits_smoke' / 'log.txt').read_text()
  assert done.stdout.strip() in log  # The tables.
  again = main(_config('digits.py:smoke'), cwd=tmp_path)
  assert again.returncode == 0
  assert 'is finished' in again.stdout
  assert again.stdout.splitlines()[1:] == done.stdout.splitlines()
  evaluated = main(_config('digits.py:smoke'), '--mode=evaluate',
                    "--config.eval.attacks=('clean',)",
                    '--config.eval.autoattack_examples=8', cwd=tmp_path)
  assert evaluated.returncode == 0, evaluated.stderr
  assert 'clean' in evaluated.stdout and 'fgsm' not in evaluated.stdout
  again = main(_config('digits.py:smoke'), cwd=tmp_path)
  assert again.stdout.splitlines()[1:] == done.stdout.splitlines()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  (folder / 'broken.pth').write_bytes(b'not a checkpoint at all')
  from safetensors import numpy as safetensors_numpy
  asset = _ROOT / 'ferd_jax' / 'assets' / 'digits_resnet8_adv.safetensors'
  tensors = safetensors_numpy.load_file(asset)
  tensors['linear.bias'] = tensors['linear.bias'] * np.float32(np.nan)
  safetensors_numpy.save_file(tensors, folder / 'nan.safetensors')
  np.savez(folder / 'seven.npz', x=np.zeros((7, 8, 8, 1), np.uint8),
           y=np.arange(7))
  return folder


@pytest.mark.parametrize('flags, words', [
    (['--config.distil.steps=3'], ['distil']),
    (['--config.distill.stepz=3'], ['stepz']),
    (['--config.teacher.path=absent.pth'], ['absent.pth']),
    (['--config.teacher.path={files}/broken.pth'], ['broken.pth']),
    (['--config.teacher.path={files}/nan.safetensors'],
     ['linear.bias', 'finite']),
    (['--config.teacher.path='], ['teacher.path']),
    (['--config.teacher.arch=cifar_resnet14', '--config.teacher.path={asset}'],
     ['CifarResNet', 'missing']),
    (['--config.teacher.arch=cifar_resnet14'],
     ['teacher.path', 'cifar_resnet14']),
    (['--config.teacher.arch=resnet19'], ["teacher.arch='resnet19'"]),
    (['--config.data.name={files}/seven.npz'],
     ['10 classes', 'num_classes=7']),
    (['--config.teacher.path={files}'], ['teacher.path', '{files}']),
    (['--config.synthesis.tap=layer7'], ['layer7', 'layer3']),
    (['--config.eps=8.0'], ['eps=8.0', '[0, 1]']),
    (['--config.eps=0.0'], ['eps=0.0']),
    (['--config.data.split=tset'], ['data', "'tset'"]),
    (['--config.data.name=absent.npz'], ['data: ', 'absent.npz']),
    (['--config.data.name=cifar10', '--config.data.dir=gs://bucket/tfds',
      '--config.teacher.path=random'], ['data.dir', 'gs://bucket/tfds']),
    (['--config.student.arch=resnet18', '--config.distill.batch_size=1'],
     ['distill.batch_size=1', 'one value per channel']),
    (['--distributed'], ['--distributed', 'SLURM']),
    (['--config.eps=-0.1'], ['eps=-0.1']),
    (['--config.inner.gamma=-1.0'], ['inner.gamma=-1.0']),
    (['--config.sampler.name=soft'], ["sampler.name='soft'", 'minmax']),
    (['--config.step_size=1/0'], ['step_size=1/0']),
    (['--config.warmup_epochs=99'], ['warmup_epochs=99']),
    (['--config.data.name=cifar1'], ['cifar1', 'cifar10']),
    (['--config.data.name=cifar10', '--config.data.dir={files}',
      '--config.teacher.path=random'], ['cifar-10-binary.tar.gz']),
    (['--config.eval.attacks=("apgd",)'], ["'apgd'", 'pgd20']),
    (['--config.parallel=vmap'], ["parallel='vmap'"]),
    (['--config.seed=x'], ['seed']),
    (['stray'], ['stray']),
    (['--workdir={files}/broken.pth/run'], ['workdir', 'broken.pth']),
])
def test_bad_input_is_one_clear_line(main, flags, words, files, tmp_path):
  asset = _ROOT / 'ferd_jax' / 'assets' / 'digits_resnet8_adv.safetensors'
  flags = [flag.replace('{files}', str(files)).replace('{asset}', str(asset))
           for flag in flags]
  if '--config.data.name=cifar10' in flags:
    pytest.importorskip('tensorflow_datasets')
  words = [word.replace('{files}', str(files)) for word in words]
  done = main(_config('digits.py'), f'--workdir={tmp_path}', *flags)
  assert done.returncode != 0
  assert 'Traceback' not in done.stderr
  lines = [line for line in done.stderr.splitlines()
           if not line.startswith(('I', 'W', 'WARNING'))]
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith('error: ')
  for word in words:
    assert word in lines[0]
  assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize('flags, word', [
    ([], '--config'), (['--config=absent.py'], 'absent.py'),
    ([f'--config={_ROOT / "README.md"}'], 'README.md, line'),
    ([_config('digits.py:smok')], "'smok'")])
def test_bad_config_is_one_clear_line(main, flags, word, tmp_path):
  done = main(*flags, f'--workdir={tmp_path}')
  assert done.returncode != 0
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert word in done.stderr


@pytest.mark.parametrize('name, status', [('SIGINT', 130), ('SIGTERM', 143)])
def test_signal_while_the_config_is_read(main, name, status, tmp_path):
  config = tmp_path / 'slow.py'
  config.write_text('import os, signal\ndef get_config():\n'
                    f'  os.kill(os.getpid(), signal.{name})\n')
  done = main(f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert done.returncode == status
  assert done.stderr == f'stopped: {name}; nothing was begun.\n'
  assert not (tmp_path / 'run').exists()


def test_batch_not_divisible_by_devices(main, tmp_path):
  done = main(_config('digits.py'), f'--workdir={tmp_path}',
              XLA_FLAGS='--xla_force_host_platform_device_count=3')
  assert done.returncode != 0
  assert done.stderr.splitlines() == [
      'error: Expected synthesis.batch_size=256 divisible by 3 devices; '
      'use 255 or 258.']


