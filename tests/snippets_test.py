"""Python that pages show without prompts runs, given what it names."""

import sys
import types

import jax
import numpy as np
import pages
import pytest
import tiny
import toys

from configs import digits
from ferd_jax import data
from ferd_jax import distillation
from ferd_jax import models
from ferd_jax import train
from ferd_jax.run import experiment as experiments

_BLOCKS = {block.page: block.text for block in pages.blocks()
           if block.language == 'python'}


def _run(page, **names):
  """Runs the block of a page; returns its names."""
  exec(compile(_BLOCKS[page], page, 'exec'), names)
  return names


def test_all_are_here():
  assert sorted(block.page for block in pages.blocks()
                if block.language == 'python') == [
      'data.md', 'devices.md', 'methods.md', 'networks.md', 'settings.md']


def test_options_of_a_program():
  assert _run('devices.md', jax=jax, step=abs)


def test_config_of_a_part_of_one_s_own(monkeypatch):
  monkeypatch.setattr(distillation.OUTERS, '_parts',
                      dict(distillation.OUTERS._parts))
  distillation.OUTERS.register('toy', toys.ToyOuter)
  monkeypatch.setitem(sys.modules, 'my_parts', types.ModuleType('my_parts'))
  config = _run('methods.md')['get_config']('smoke')
  assert (config.name, config.outer.name) == ('digits_toy', 'toy')


class _Source(list):
  """As much of TFDS as the block asks."""
  dataset_info = types.SimpleNamespace(features={
      'label': types.SimpleNamespace(names=list('abc'))})


def test_data_of_tfds(monkeypatch, tmp_path):
  tfds = types.ModuleType('tensorflow_datasets')
  images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
  tfds.data_source = lambda name, split, download: _Source(
      {'image': image, 'label': i % 3} for i, image in enumerate(images))
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', tfds)
  monkeypatch.chdir(tmp_path)
  _run('data.md')
  for name in ('mnist', 'svhn_cropped', 'stl10'):
    found = data.load(f'{name}.npz', 'test')
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == 2 * [0, 1, 2]
    assert tuple(found.class_names) == tuple('abc')


@pytest.mark.slow  # Each trains.
@pytest.mark.parametrize('page', ['networks.md', 'settings.md'])
def test_networks_from_python(page, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  config = tiny.config(num_epochs=1, warmup_epochs=0)
  monkeypatch.setattr(digits, 'get_config', lambda: config)
  network = models.build('tiny', 10)
  variables = models.init_variables(network, jax.random.key(0), (8, 8, 1))
  found = _run(
      page, my_teacher=network, teacher_variables=variables,
      my_student=network, module=network, variables=variables, net=network,
      config=config, workdir=tmp_path / 'run', train=train,
      experiments=experiments)
  assert found['results']['models']['student']['clean']
