"""Tests of ferd_jax.load_model."""

import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import ferd_jax
from ferd_jax import assets
from ferd_jax import trained
from ferd_jax.models import forward
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import robustbench

_IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope='module')
def shipped():
  return trained.load_model('digits_resnet8_adv')


@pytest.fixture
def run(shipped, tmp_path):
  """A work directory with an export."""
  loaded = loading.load(
      assets.path('digits_resnet8_adv.safetensors'), arch='cifar_resnet8',
      options={'shortcut': 'pad_both'}, image_shape=(8, 8, 1))
  (tmp_path / 'run' / 'export').mkdir(parents=True)
  native.write(tmp_path / 'run' / 'export' / 'student.npz', loaded.network,
               loaded.variables)
  return tmp_path / 'run'


def test_it_unpacks_into_module_variables_and_function(shipped):
  module, variables, apply = shipped
  expected = forward.logits(module, variables, _IMAGES)
  np.testing.assert_array_equal(apply(variables, _IMAGES), expected)
  np.testing.assert_array_equal(shipped(_IMAGES), expected)
  assert ferd_jax.load_model is trained.load_model


def test_run_export_and_file_are_one_network(run, shipped):
  places = (run, str(run), run / 'export', run / 'export' / 'student.npz')
  for place in places:
    found = trained.load_model(place)
    assert found.module == shipped.module
    np.testing.assert_array_equal(
        found.variables['params']['conv1']['kernel'],
        shipped.variables['params']['conv1']['kernel'])


def test_options_are_those_of_a_file():
  path = assets.path('digits_resnet8_adv.safetensors')
  with pytest.raises(ValueError, match='shortcut'):
    trained.load_model(path, arch='cifar_resnet8')
  found = trained.load_model(path, arch='cifar_resnet8',
                             options={'shortcut': 'pad_both'})
  assert found.module.shortcut == 'pad_both'


def test_mistakes_are_one_line(tmp_path):
  with pytest.raises(ValueError, match='neither export/student.npz'):
    trained.load_model(tmp_path)
  with pytest.raises(FileNotFoundError, match='Did you mean Rice2020Overfitt'):
    trained.load_model('Rice2020Overfiting')
  with pytest.raises(FileNotFoundError, match='arch belong to one'):
    trained.load_model('absent.pt', arch='resnet18')
  of = {}
  for entry in robustbench.entries():
    of.setdefault(entry.id, set()).add((entry.dataset, entry.norm))
  twice = next(name for name, found in of.items() if {
      ('cifar10', 'Linf'), ('cifar100', 'Linf')} <= found)
  with pytest.raises(ValueError, match=f'cifar10/{twice} or cifar100/'):
    trained.load_model(twice)


def test_published_id_is_fetched(monkeypatch):
  """What is asked of the file, which is none here."""
  asked = {}
  monkeypatch.setattr(robustbench, 'fetch', lambda entry: entry.id)
  def load(path, **options):
    asked.update(options, path=path)
    raise ValueError('no file')
  monkeypatch.setattr(loading, 'load', load)
  for name, arch in (('cifar10/Rice2020Overfitting', 'wrn_34_20'),
                     ('Engstrom2019Robustness', 'resnet50'),
                     ('cifar10/L2/Rice2020Overfitting', 'preact_resnet18'),
                     ('L2/Rice2020Overfitting', 'preact_resnet18')):
    with pytest.raises(ValueError, match='no file'):
      trained.load_model(name)
    assert asked['path'] == name.rpartition('/')[2]
    assert asked['num_classes'] == 10 and asked['arch'] == arch


def test_export_on_the_hub(run, monkeypatch, shipped):
  fake = types.ModuleType('huggingface_hub')
  fake.snapshot_download = lambda repository: {'me/it': str(run / 'export')}[
      repository]
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  assert trained.load_model('me/it').module == shipped.module
  with pytest.raises(ValueError, match='Cannot get me/other from the hub'):
    trained.load_model('me/other')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match='pip install huggingface_hub'):
    trained.load_model('me/it')


def test_nothing_is_imported_before_it_is_used(run):
  shutil.rmtree(run)
  program = (
      'import sys, ferd_jax; '
      'assert {"load_model", "benchmark"} <= set(dir(ferd_jax)); '
      'assert not {"jax", "flax", "ml_collections"} & sys.modules.keys()')
  subprocess.run([sys.executable, '-c', program], check=True,
                 cwd=pathlib.Path(__file__).parents[1])
