"""Tests of ferd_jax.export."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from configs import digits
from ferd_jax import models
from ferd_jax.models import forward
from ferd_jax.run import export


def card(**student):
  return {
      'student': {'arch': 'resnet18', 'num_classes': 2, 'definition': 'a/b, c',
                  'image_shape': [8, 6, 3]} | student,
      'teacher': {'arch': 'wrn_34_10', 'path': '/home/x/net.pt',
                  'robustbench': None,
                  'digest': 'abcdef' * 10},
      'training_data': None, 'method': 'FERD', 'seed': 3, 'norm': 'Linf',
      'eps': 8 / 255, 'epoch': 5,
      'results': {
          'config': 'mine', 'num_epochs': 6, 'num_examples': 4, 'seed': 3,
          'class_counts': [2, 2], 'eps': 8 / 255, 'epoch': 5, 'norm': 'Linf',
          'dataset': 'cifar10', 'split': 'test', 'class_names': ['a', 'b'],
          'models': {'student': {'clean': dict.fromkeys(
              ('average', 'worst', 'worst10', 'nsd'), 0.5)}}}}


def test_card_says_what_keys_do_not():
  text = export.readme(card())
  assert '\n# mine: resnet18\n' in text
  assert '* Network: resnet18, 2 classes.' in text and 'a/b, c.' in text
  assert '[N, 3, 8, 6] images in [0, 1], not normalised.' in text
  assert 'wrn_34_10, net.pt, sha256 of its weights abcdefabcdefabcd.' in text
  assert 'radius 0.031373; seed 3, epoch 5 of 6.' in text
  assert '|  clean |          50.00% |' in text
  text = export.readme(card(mean=[0.5], std=[0.25], width=8), loaders=False)
  assert 'resnet18 (width 8), 2 classes' in text
  assert 'the mean [0.5] is to be subtracted' in text
  assert 'student_torch' not in text


def test_card_says_whether_data_were_used():
  assert 'A student of FERD. Trained without data.' in export.readme(card())
  training_data = {'dataset': 'cifar10', 'split': 'train', 'num_examples': 50}
  text = export.readme(
      card() | {'training_data': training_data, 'teacher': None})
  assert ('**NOT DATA-FREE: the student was trained on 50 real images, cifar10 '
          'train.**') in text
  assert 'Trained without data' not in text
  assert '* Teacher: none.' in text


# Architecture and options of students; all but the last of half the width or
# less, as no published module has it.
_STUDENTS = {
    'half': ('cifar_resnet8', {'width': 8, 'shortcut': 'pad_both'}),
    'normalised': ('preact_resnet_1_1_1_1', {
        'width': 4, 'mean': (0.4,), 'std': (0.3,), 'activation': 'silu'}),
}


def _moved(variables):
  """Returns variables with running statistics as of a trained network."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: leaf + rng.uniform(
      0.1, 0.3, leaf.shape).astype(leaf.dtype), variables)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """Directories of exports, images, and the logits that the runs have."""
  found = {}
  for name, (arch, options) in _STUDENTS.items():
    config = digits.get_config('smoke')
    config.teacher.arch, config.teacher.width = 'tiny', None
    config.teacher.shortcut = config.student.shortcut = None
    config.student.arch = arch
    config.student.update(options)
    experiment = tiny.build(config)
    state = experiment.initial_state(0)
    variables = _moved(jax.device_get(state.student.variables))
    state = state.replace(student=state.student.replace(variables=variables))
    workdir = tmp_path_factory.mktemp(name)
    _, missing = export.write(
        experiment, state, card()['results'] | {'split': None}, workdir)
    assert not missing
    images = np.random.default_rng(1).uniform(size=(3, 8, 8, 1)).astype('f')
    found[name] = workdir / 'export', images, np.asarray(
        forward.logits(experiment.student, variables, images))
  return found


# With nothing of this package to be found, nor of the other framework.
_TORCH = """
import sys
sys.modules.update(dict.fromkeys(
    ('jax', 'ferd_jax', 'flax', 'safetensors', 'huggingface_hub')))
import numpy, torch
{where}
from student_torch import load
with torch.no_grad():
  images = numpy.load('images.npy').transpose(0, 3, 1, 2).copy()
  logits = load()(torch.from_numpy(images))
numpy.save('logits.npy', logits.numpy())
"""
_JAX = """
import sys
sys.modules.update(dict.fromkeys(('torch', 'ferd_jax', 'flax', 'etils')))
import jax, numpy
{where}
from student_jax import load
images = numpy.load('images.npy')
logits = load()(images)
numpy.save('logits.npy', logits)
assert jax.jit(lambda net, x: net(x))(load(), images).shape == logits.shape
assert jax.grad(lambda x: load()(x).sum())(images).any()
"""


@pytest.mark.parametrize('framework', ['torch', 'jax'])
@pytest.mark.parametrize('name', [
    'half', pytest.param('normalised', marks=pytest.mark.slow)])
def test_student_is_loaded_by_its_framework_alone(name, framework, exported,
                                                  tmp_path):
  """In a process of its own, from a directory of its own."""
  if framework == 'torch':
    pytest.importorskip('torch')
  directory, images, expected = exported[name]
  place = tmp_path / 'elsewhere'
  shutil.copytree(directory, place)
  np.save(place / 'images.npy', images)
  program = {'torch': _TORCH, 'jax': _JAX}[framework]
  subprocess.run([sys.executable, '-P', '-c', program.format(
      where='sys.path.insert(0, ".")')], check=True, cwd=place)
  np.testing.assert_allclose(np.load(place / 'logits.npy'), expected,
                             rtol=1e-4, atol=1e-5)


def test_what_a_hub_expects_is_there(exported):
  yaml = pytest.importorskip('yaml')
  directory, *_ = exported['half']
  names = {path.name for path in directory.iterdir()}
  assert names >= {'README.md', 'config.json', 'model_card.json', 'student.pt',
                   'student.safetensors', 'student.npz', 'student_torch.py',
                   'student_jax.py'}
  _, header, body = (directory / 'README.md').read_text().split('---\n', 2)
  values = yaml.safe_load(header)
  assert values['license'] == 'apache-2.0' and 'data-free' in values['tags']
  assert values['library_name'] == 'ferd_jax'
  assert 'datasets' not in values  # The hub's field is of training.
  model, = values['model-index']
  result, = model['results']
  assert result['task']['type'] == 'image-classification'
  assert result['dataset']['type'] == 'uoft-cs/cifar10'
  assert result['metrics'][0] == {
      'type': 'accuracy', 'name': 'clean accuracy', 'value': 50.0}
  assert 'from student_torch import load' in body
  config = json.loads((directory / 'config.json').read_text())
  assert config['network']['arch'] == 'cifar_resnet8'
  assert config['class_names'] == ['a', 'b']


def test_student_without_a_twin_has_no_loaders(tmp_path):
  experiment = tiny.build(tiny.config())
  _, missing = export.write(experiment, experiment.initial_state(0),
                            card()['results'], tmp_path)
  assert any('student_torch.py and student_jax.py were not written' in line
             for line in missing)
  assert not (tmp_path / 'export' / 'student_torch.py').exists()
  text = (tmp_path / 'export' / 'README.md').read_text()
  assert 'student_torch' not in text and 'load_state_dict' in text
  assert models.build('tiny', 10)  # Its name alone builds it.
