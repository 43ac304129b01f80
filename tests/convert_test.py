"""Tests of `python -m ferd_jax.convert`."""

from bucket import bucket  # noqa: F401
from flax import linen as nn
import jax
import lenet
import numpy as np
import pytest

from ferd_jax import convert
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.weights import native

SAID = ['--activation=silu', '--padding=both', '--mean=0.5,0.4,0.3',
        '--std=0.2,0.25,0.25']
GENERATOR = native.Network('generator', 3, None,
                           {'side': 8, 'width': 4, 'nz': 5})


@pytest.fixture
def weights(tmp_path):
  """Returns a PyTorch file of a small network."""
  model = models.build('wrn_10_1', 5, width=4)
  rng = np.random.default_rng(0)
  state_dict = {
      key: np.int64(0) if key.endswith('tracked') else
      rng.uniform(-0.4, 0.6, shape).astype(np.float32) ** (
          2 if 'var' in key else 1)
      for key, shape in torch_io.torch_shapes(model, (8, 8, 3)).items()}
  state_dict = {key: np.asarray(value) for key, value in state_dict.items()}
  path = tmp_path / 'net.pth'
  torch_io.write_state_dict(path, state_dict)
  return path


def run(*argv):
  convert.main([str(arg) for arg in argv])


@pytest.mark.parametrize('between', ['net.npz', 'net'])
@pytest.mark.parametrize('last', ['again.pt', 'again.safetensors'])
def test_there_and_back(tmp_path, weights, capsys, between, last):
  run(weights, tmp_path / between, *SAID)
  run(tmp_path / between, tmp_path / last)
  before, after = (torch_io.read_state_dict(path)
                   for path in (weights, tmp_path / last))
  assert before.keys() == after.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(after[key], value, err_msg=key)
  network, _ = native.read(tmp_path / between)
  assert network == native.Network('wrn_10_1', 3, 5, {
      'width': 4, 'activation': 'silu', 'mean': (0.5, 0.4, 0.3),
      'padding': 'both', 'std': (0.2, 0.25, 0.25)})
  out = capsys.readouterr().out
  assert f'{weights}: wrn_10_1, width 4' in out and '5 classes' in out
  assert 'wide_resnet.py, with silu in place of relu' in out


def test_from_and_to_a_bucket(bucket, weights, tmp_path):  # noqa: F811
  (bucket / 'net.pth').write_bytes(weights.read_bytes())
  run('gs://bucket//folder/net.pth', f'{bucket}/again.pt', *SAID)
  (tmp_path / 'again.pt').write_bytes((bucket / 'again.pt').read_bytes())
  before, after = (torch_io.read_state_dict(path)
                   for path in (weights, tmp_path / 'again.pt'))
  for key, value in before.items():
    np.testing.assert_array_equal(after[key], value, err_msg=key)


@pytest.mark.parametrize('argv', [
    ['gs://bucket/net.pth', 'net.npz'], ['{}', 'gs://bucket/net.npz']])
def test_a_bucket_without_its_package(argv, weights):
  with pytest.raises(SystemExit) as stop:
    run(*(each.format(weights) for each in argv), *SAID)
  assert str(stop.value).startswith('error: Cannot read gs://bucket/net.')
  assert '\n' not in str(stop.value)


def test_check_compares_with_pytorch(tmp_path, weights, capsys, monkeypatch):
  pytest.importorskip('torch')
  run(weights, tmp_path / 'net.npz', *SAID, '--check')
  run(tmp_path / 'net.npz', tmp_path / 'back.pt', '--check')
  out = capsys.readouterr().out
  assert out.count('Largest difference from PyTorch on 16 random inputs') == 2
  # It can fail: against PyTorch with another activation.
  network, variables = native.read(tmp_path / 'net.npz')
  assert convert.difference(network, variables) < 1e-5
  real = native.Network.build
  monkeypatch.setattr(native.Network, 'build', lambda self: real(self).clone(
      activation='relu'))
  assert convert.difference(network, variables) < 1e-5
  from ferd_jax import torch_twins
  twin = torch_twins.twin
  monkeypatch.setattr(torch_twins, 'twin', lambda model, *args: twin(
      model.clone(activation='silu'), *args))
  with pytest.raises(SystemExit, match='Expected a difference of at most'):
    run(weights, tmp_path / 'net2.npz', *SAID, '--check')


def test_generators(tmp_path):
  pytest.importorskip('torch')
  variables = models.init_variables(GENERATOR.build(), jax.random.key(0), (5,))
  native.write(tmp_path / 'g.npz', GENERATOR, variables)
  run(tmp_path / 'g.npz', tmp_path / 'g.pt', '--check')
  run(tmp_path / 'g.npz', tmp_path / 'g', '--check')
  assert native.read(tmp_path / 'g')[0] == GENERATOR
  run(tmp_path / 'g.pt', tmp_path / 'again.npz', '--check')
  network, again = native.read(tmp_path / 'again.npz')
  assert network == GENERATOR
  jax.tree.map(np.testing.assert_array_equal, again, dict(variables))
  with pytest.raises(SystemExit, match='is a generator.*got activation'):
    run(tmp_path / 'g.pt', tmp_path / 'again.npz', '--activation=relu')


@pytest.mark.parametrize('size', ['28', '28x28'])
def test_registered_networks(tmp_path, capsys, monkeypatch, size):
  lenet.register(monkeypatch)
  state_dict = lenet.arrays(lenet.torch_lenet5())
  torch_io.write_state_dict(tmp_path / 'net.pt', state_dict)
  run(tmp_path / 'net.pt', tmp_path / 'net.npz', '--arch=lenet5',
      '--channels=1', '--num-classes=10', f'--image-size={size}')
  run(tmp_path / 'net.npz', tmp_path / 'again.pt')
  again = torch_io.read_state_dict(tmp_path / 'again.pt')
  assert again.keys() == state_dict.keys()
  for key, value in state_dict.items():
    np.testing.assert_array_equal(again[key], value, err_msg=key)
  assert f'for {lenet.LAYOUT.definition}' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='model=LeNet5 to have a twin') as stop:
    run(tmp_path / 'net.npz', tmp_path / 'again.npz', '--check')
  assert '\n' not in stop.value.code
  from ferd_jax import torch_twins
  with pytest.raises(ValueError, match='model=Dense to have a twin'):
    torch_twins.twin(nn.Dense(10))


def test_robustbench_says_what_a_file_is(tmp_path):
  model = models.build('preact_resnet18', 10, final_bn=False)
  shapes = torch_io.torch_shapes(model, (8, 8, 3))
  torch_io.write_state_dict(tmp_path / 'net.pt', {
      key: np.ones(shape, np.float32) for key, shape in shapes.items()})
  run(tmp_path / 'net.pt', tmp_path / 'net.npz',
      '--robustbench=cifar10/Wong2020Fast')
  network, _ = native.read(tmp_path / 'net.npz')
  assert network.options['shortcut_input'] == 'input'
  assert network.options['mean'] == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize(('argv', 'message'), [
    (['net.pth', 'out.npz'], 'error: .*do not reveal activation'),
    (['net.pth', 'out.txt', *SAID], 'error: .*out.txt to end in .pt'),
    (['nothing.pt', 'out.npz'], 'error: .*nothing.pt'),
    (['net.pth', 'out.npz', '--robustbench=Wong2020Fast'],
     'error: .*such as cifar10/Rice2020Overfitting'),
    (['net.pth', '.', *SAID], 'error: .*Expected a new directory'),
    (['net.pth', 'out.npz', *SAID, '--num-classes=4'],
     'error: .*have 5 classes, num_classes=4 was'),
])
def test_mistakes_end_in_one_line(weights, monkeypatch, argv, message):
  monkeypatch.chdir(weights.parent)
  with pytest.raises(SystemExit, match=message) as stop:
    run(*argv)
  assert '\n' not in stop.value.code


@pytest.mark.parametrize('size', ['0', '28x', '28x28x1', 'big'])
def test_sizes_that_are_none(capsys, size):
  with pytest.raises(SystemExit):
    run('net.pth', 'out.npz', f'--image-size={size}')
  assert f"such as 28 or 28x28, got '{size}'" in capsys.readouterr().err


def test_check_without_pytorch(tmp_path, weights, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  with pytest.raises(SystemExit, match='--check needs PyTorch'):
    run(weights, tmp_path / 'net.npz', *SAID, '--check')
