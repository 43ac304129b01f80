"""Tests of ferd_jax.torch_io.layouts."""

import lenet
import pytest

from ferd_jax import models
from ferd_jax.torch_io import layouts


@pytest.mark.parametrize(('arch', 'options', 'expected'), [
    ('wrn_28_10', {}, 'architectures/wide_resnet.py'),
    ('wrn_28_10', {'activation': 'silu'},
     'wide_resnet.py, with silu in place of relu'),
    ('dm_wrn_28_10', {},
     'dm_wide_resnet.py, DMWideResNet (activation_fn=nn.SiLU)'),
    ('dm_wrn_28_10', {'activation': 'relu'},
     'dm_wide_resnet.py, DMWideResNet (activation_fn=nn.ReLU)'),
    ('dm_wrn_28_10', {'padding': 'both'},
     'architectures/wide_resnet.py, with silu in place of relu'),
    ('dm_preact_resnet18', {},
     'dm_wide_resnet.py, DMPreActResNet (activation_fn=nn.SiLU)'),
    ('resnet50', {'activation': 'silu', 'padding': 'same'},
     "models/resnet.py, with silu in place of relu and stride 2 padded as by "
     "padding='same'"),
    ('resnet18', {}, 'kuangliu/pytorch-cifar, models/resnet.py'),
    ('mobilenet_v2', {}, 'mobilenetv2.py'),
    ('preact_resnet18', {},
     'resnet.py, PreActResNet (bn_before_fc=True, out_shortcut=True)'),
    ('preact_resnet34', {'shortcut_input': 'input', 'final_bn': False},
     'resnet.py, PreActResNet (bn_before_fc=False, out_shortcut=False)'),
    ('cifar_resnet20', {}, 'akamaster/pytorch_resnet_cifar10, resnet.py'),
    ('cifar_resnet20', {'shortcut': 'pad_after'}, 'model/resnet_v1.py'),
    ('cifar_resnet20', {'shortcut': 'conv'}, 'pytorch_cifar_models/resnet.py'),
])
def test_every_network_has_a_definition(arch, options, expected):
  model = models.build(arch, 10, **options)
  assert layouts.definition(model).endswith(expected)


def test_registered_networks_have_that_of_their_layout(monkeypatch):
  lenet.register(monkeypatch)
  model = models.build('lenet5', 10).clone(axis_name='data')
  assert layouts.of_model(model) == (lenet.LAYOUT,)
  assert layouts.definition(model) == 'tests/lenet.py, torch_lenet5'
  lenet.forget(monkeypatch)
  models.register('lenet5', lenet.LeNet5)
  assert layouts.definition(models.build('lenet5', 10)) == (
      'lenet, LeNet5, by the names of its Flax submodules')


def test_modules_of_others_keep_their_names():
  layout, = layouts.of_model(object())
  assert layout.rename('block_0.conv') == 'block_0.conv'
  assert layouts.definition(models.Generator(8)) == 'zju-vipa/CMI, Generator'
  assert layouts.definition(models.Generator(8, wide_start=True)) == (
      'zju-vipa/CMI, LargeGenerator')
