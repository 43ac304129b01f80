"""Tests of ferd_jax.models.registry and what is built by it."""

import doctest
import pathlib

from flax import linen as nn
import jax
import lenet
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import forward
from ferd_jax.models import registry
from ferd_jax.models import wide_resnet

_PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'networks.md'


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
  lenet.forget(monkeypatch)


def test_registered_networks_are_built_by_name(monkeypatch):
  lenet.register(monkeypatch)
  model = models.build('lenet5', 7, width=3, mean=[0.5], std=[0.25])
  assert model == lenet.LeNet5(7, width=3, mean=(0.5,), std=(0.25,))
  assert models.names() == (*models.ARCHITECTURES, 'lenet5')
  variables = models.init_variables(model, jax.random.key(0), lenet.SHAPE)
  assert set(variables) == {'params', 'batch_stats'}
  assert variables['batch_stats'] == {}
  assert set(variables['params']) == {'conv1', 'conv2', 'fc1', 'fc2', 'fc3'}
  assert forward.logits(model, variables, lenet.images()).shape == (2, 7)
  models.check_name('lenet5')
  with pytest.raises(ValueError, match="'vgg' to be one of .*, lenet5; any "
                     'other has to be registered'):
    models.build('vgg', 10)


@pytest.mark.parametrize(('options', 'message'), [
    ({'depth': 3, 'widht': 4}, "'lenet5' to be among width, mean, std; got "
                               'depth, widht'),
    ({'mean': (0.5,)}, 'and std=None together'),
    ({'mean': (0.5,), 'std': (0,)}, 'std=0 > 0'),
])
def test_options_are_checked(monkeypatch, options, message):
  lenet.register(monkeypatch)
  with pytest.raises(ValueError, match=message):
    models.build('lenet5', 10, **options)


def test_options_of_a_network_without_any():
  models.register('plain', lenet.LeNet5)
  with pytest.raises(ValueError, match='to be among none; got width'):
    models.build('plain', 10, width=3)
  with pytest.raises(ValueError, match='num_classes=0 > 0'):
    models.build('plain', 0)


def test_names_that_are_taken(monkeypatch):
  lenet.register(monkeypatch)
  options = ('width', 'mean', 'std')
  models.register('lenet5', lenet.LeNet5, options=list(options),
                  layout=lenet.LAYOUT)  # The same again.
  for factory, more in [(lenet.LeNet5, {}),
                        (lenet.LeNet5, {'options': options}),
                        (nn.Dense, {'options': options,
                                    'layout': lenet.LAYOUT})]:
    with pytest.raises(ValueError, match="name='lenet5' to be free"):
      models.register('lenet5', factory, **more)
  for name in ('resnet18', 'wrn_11_3', 'resnet_1_2_3_4', 'generator', 'auto',
               ''):
    with pytest.raises(ValueError, match='none of a built-in network'):
      models.register(name, lenet.LeNet5)
  assert registry.names() == ('lenet5',)


def test_factories_that_are_functions():
  models.register('three', lambda num_classes, width=2: lenet.LeNet5(
      num_classes, width=width), options=('width',), layout=lenet.LAYOUT)
  assert models.build('three', 10, width=5) == lenet.LeNet5(10, width=5)
  assert torch_io.definition(lenet.LeNet5(10)) == lenet.LAYOUT.definition
  models.register('none', lambda num_classes: num_classes)
  with pytest.raises(ValueError, match="factory of 'none' to return a module "
                     'of flax.linen, got int'):
    models.build('none', 10)


def test_a_type_has_one_layout(monkeypatch):
  lenet.register(monkeypatch)
  other = torch_io.Layout('elsewhere')
  with pytest.raises(ValueError, match='that LeNet5 is registered with'):
    models.register('lenet5b', lenet.LeNet5, layout=other)
  assert 'lenet5b' not in models.names()
  with pytest.raises(ValueError, match='layout=None for WideResNet'):
    models.register('wide', wide_resnet.WideResNet, layout=other)
  # Built-in modules under another name keep their layout.
  models.register('wide', wide_resnet.WideResNet, options=('depth',))
  model = models.build('wide', 10, depth=10)
  assert torch_io.definition(model).endswith('wide_resnet.py')


def test_examples_of_the_page():
  found = doctest.testfile(str(_PAGE), module_relative=False)
  assert found.attempted > 10 and not found.failed
