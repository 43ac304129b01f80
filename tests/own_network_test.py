"""Networks that a user brings: trained, evaluated and exported."""

import json

from flax import linen as nn
import jax
import jax.numpy as jnp
import lenet
import numpy as np
import pytest
import tiny

from ferd_jax import convert
from ferd_jax import evaluate
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax.core import parallel
from ferd_jax.data import examples
from ferd_jax.evaluation import results
from ferd_jax.models import forward
from ferd_jax.run import experiment as experiments
from ferd_jax.run import work_directory


@pytest.fixture
def data(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'own.npz'
  np.savez(path, x=rng.integers(0, 256, (16, *lenet.SHAPE), np.uint8),
           y=np.arange(16) % 10)
  return path


def _lenet_config(data, **changes):
  """Returns the config of a LeNet-5 that learns from another."""
  config = tiny.config(num_epochs=2, **{
      'data.name': str(data), 'data.noise_examples': 0,
      'teacher.arch': 'lenet5', 'student.arch': 'lenet5',
      'student.width': None, 'teacher.width': None,
      'teacher.shortcut': None, 'synthesis.w_bn': 0.} | changes)
  return config


def _train(experiment, workdir):
  work_directory.claim(workdir, experiment.identity)
  return train.train(experiment, workdir)


def test_without_batch_norm_w_bn_must_be_0(data, monkeypatch):
  lenet.register(monkeypatch)
  with pytest.raises(ValueError) as error:
    experiments.build(_lenet_config(data, **{'synthesis.w_bn': 5.}))
  message = str(error.value)
  assert message.startswith('Expected synthesis.w_bn=5.0 to be 0')
  assert '\n' not in message


def test_registered_network(data, tmp_path, monkeypatch, capsys):
  lenet.register(monkeypatch)
  net = lenet.torch_lenet5()
  import torch
  torch.save(net.state_dict(), tmp_path / 'teacher.pt')
  config = _lenet_config(data, **{
      'teacher.path': str(tmp_path / 'teacher.pt')})
  experiment = experiments.build(config, tuple(jax.devices()[:1]))
  images = experiment.examples.images.astype(np.float32) / 255
  np.testing.assert_allclose(
      forward.logits(experiment.teacher.model, experiment.teacher.variables,
                     images),
      lenet.torch_logits(net, images), atol=1e-5)
  workdir = tmp_path / 'run'
  trained = _train(experiment, workdir)
  assert trained['num_examples'] == 16
  card = json.loads((workdir / 'export' / 'model_card.json').read_text())
  # Options of the package's own networks, which it does not have.
  assert not {'activation', 'padding', 'shortcut'} & set(card['student'])

  # The student goes back to PyTorch, and to this package, by its layout.
  student = lenet.torch_lenet5()
  student.load_state_dict(
      torch.load(workdir / 'export' / 'student.pt', weights_only=True))
  capsys.readouterr()
  for file, options in (
      ('student.pt', ['--arch=lenet5']), ('student.npz', [])):
    path = tmp_path / 'results.json'
    evaluate.main([str(workdir / 'export' / file), *options,
                   f'--data={data}', '--attacks=clean', '--batch-size=16',
                   f'--json={path}'])
    found, = json.loads(path.read_text())
    np.testing.assert_allclose(
        found['models']['model']['clean']['per_class'],
        trained['models']['student']['clean']['per_class'])
  convert.main([str(workdir / 'export' / 'student.npz'),
                str(tmp_path / 'again.pt')])
  again, exported = (torch_io.read_state_dict(path) for path in (
      tmp_path / 'again.pt', workdir / 'export' / 'student.pt'))
  for name, value in exported.items():
    np.testing.assert_array_equal(again[name], value)

  # A run is evaluated by its names alone.
  evaluate.main([str(workdir), '--attacks=clean', '--batch-size=16'])
  assert 'student average' in capsys.readouterr().out


class Plain(nn.Module):
  """Knows nothing of stages; its BatchNorm is Flax's own."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def test_module_from_python_is_trained_and_gone_on_with(tmp_path):
  config = tiny.config(num_epochs=2, **{
      'synthesis.w_bn': 0., 'synthesis.w_uni': 0.})
  variables = models.init_variables(Plain(), jax.random.key(3), (8, 8, 1))

  def build():
    return tiny.build(config, teacher=(Plain(), variables), student=Plain())
  assert train.train(_claimed(build(), tmp_path), tmp_path, stop_after=1
                     ) is None
  found = _train(build(), tmp_path)
  assert set(found['models']) == {'teacher', 'student'}
  # Without a layout the names are Flax's; without a name there is no .npz.
  exported = tmp_path / 'export'
  assert (exported / 'student.pt').exists()
  assert not (exported / 'student.npz').exists()
  card = json.loads((exported / 'model_card.json').read_text())
  assert card['student']['arch'] == 'Plain'
  saved = train.saved_state(build(), tmp_path)
  state = saved.state
  assert saved.epoch == 2
  assert state.student.variables['batch_stats']
  before = build().initial_state(0).student.variables['batch_stats']
  assert any(not np.array_equal(one, other) for one, other in zip(
      jax.tree.leaves(before),
      jax.tree.leaves(state.student.variables['batch_stats']), strict=True))


def _claimed(experiment, workdir):
  work_directory.claim(workdir, experiment.identity)
  return experiment


def test_module_from_python_is_evaluated():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (12, 8, 8, 1), np.uint8)
  labels = np.arange(12, dtype=np.int32) % 10
  variables = models.init_variables(Plain(), jax.random.key(3), (8, 8, 1))
  subject = results.Subject(
      name='plain', models={'model': (Plain(), variables)}, dataset='own',
      examples=examples.Examples(images, labels, tuple(map(str, range(10)))))
  protocol = results.Protocol(attacks=('clean', 'fgsm'), eps=0.1, batch_size=6)
  found = results.evaluate(subject, protocol, parallel.create('jit'))
  logits = Plain().apply(variables, images.astype(np.float32) / 255)
  expected = np.mean(np.argmax(logits, -1) == labels)
  np.testing.assert_allclose(found['models']['model']['clean']['average'],
                             expected)
  assert found['models']['model']['fgsm']['average'] <= expected


