"""Tests of ferd_jax.torch_io.recognise."""

import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.torch_io import recognise

ARCHITECTURES = [
    ('wrn_10_1', {'width': 4}), ('wrn_16_3', {}), ('wrn_34_10', {}),
    ('dm_wrn_10_2', {}), ('dm_wrn_28_10', {'width': 8}),
    ('resnet18', {}), ('resnet34', {'width': 4}), ('resnet50', {}),
    ('resnet101', {'width': 8}), ('resnet_1_2_1_3', {}),
    ('resnet_bottleneck_1_1_2_1', {}),
    ('preact_resnet18', {'final_bn': True}),
    ('preact_resnet34', {'width': 4, 'final_bn': False}),
    ('preact_resnet_1_1_1_1', {'final_bn': True}),
    ('dm_preact_resnet18', {}), ('dm_preact_resnet34', {'width': 2}),
    ('dm_preact_resnet_1_2_3_1', {}),
    ('mobilenet_v2', {'width': 16}), ('mobilenet_v2', {}),
    ('cifar_resnet20', {}), ('cifar_resnet56', {'width': 4}),
    ('cifar_resnet8', {'shortcut': 'pad_after'}),
    ('cifar_resnet14', {'shortcut': 'conv'}),
]
_HIDDEN = {'shortcut': ('pad_both', 'pad_after')}


def state_dict(arch, channels=3, classes=7, **options):
  """Returns zeros of the shapes of a network, under the published names."""
  model = models.build(arch, classes, **options)
  # One element each, repeated: the largest of them are gigabytes.
  return {key: np.broadcast_to(np.float32(0), shape) for key, shape in
          torch_io.torch_shapes(model, (16, 16, channels)).items()}


@pytest.mark.parametrize(('arch', 'options'), ARCHITECTURES)
def test_architectures(arch, options):
  found = recognise.recognise(state_dict(arch, 1, **options))
  assert found.arch == arch
  assert (found.num_classes, found.channels) == (7, 1)
  hidden = 'pad' in options.get('shortcut', '')
  assert dict(found.options) == ({} if hidden else options)
  usual = models.build(arch, 7, **options)
  for name, value in found.usual.items():
    assert getattr(usual, name) == value


@pytest.mark.parametrize(('arch', 'options', 'missing'), [
    ('wrn_10_1', {}, ['activation', 'padding', 'mean', 'std']),
    ('preact_resnet18', {},
     ['activation', 'padding', 'shortcut_input', 'mean', 'std']),
    ('dm_preact_resnet18', {}, ['activation', 'padding', 'mean', 'std']),
    ('cifar_resnet8', {}, ['activation', 'padding', 'shortcut', 'mean', 'std']),
    ('cifar_resnet8', {'shortcut': 'conv'},
     ['activation', 'padding', 'mean', 'std']),
    ('mobilenet_v2', {}, ['activation', 'padding', 'mean', 'std']),
])
def test_what_is_not_revealed(arch, options, missing):
  found = recognise.recognise(state_dict(arch, **options))
  assert found.missing({}) == missing
  given = {name: 'x' for name in missing[1:]}
  assert found.missing(given) == missing[:1]


def test_usual_values_are_those_of_the_code_with_the_names():
  stages = recognise.recognise(state_dict('cifar_resnet8',
                                          shortcut='pad_after'))
  akamaster = recognise.recognise(state_dict('cifar_resnet8'))
  assert stages.usual['shortcut'] == 'pad_after'
  assert akamaster.usual['shortcut'] == 'pad_both'
  assert 'vanilla-adversarial' in stages.definition
  deepmind = recognise.recognise(state_dict('dm_wrn_10_1'))
  assert deepmind.usual == {'padding': 'same'}  # It exists with both others.


def changed(arch, remove=(), **new):
  arrays = state_dict(arch)
  for name in list(arrays):
    if name.startswith(tuple(remove)):
      del arrays[name]
  return arrays | {name.replace('__', '.'): np.zeros(shape)
                   for name, shape in new.items()}


@pytest.mark.parametrize(('arrays', 'message'), [
    ({'features.0.weight': np.zeros((8, 3, 3, 3))},
     'none of wrn_.*mobilenet_v2.*begin with features.0.weight'),
    (changed('wrn_10_2', ('fc.',)), 'not what comes with it.*fc.weight'),
    (changed('resnet18', ('layer2.',)), r'not what comes with it.*layer2\.'),
    (changed('resnet50', ('bn1.',)), 'PreActResNet of bottleneck'),
    (changed('cifar_resnet8', (), conv_1_3x3__weight=(4, 3, 3, 3),
             stage_2__0__downsample__conv__weight=(4, 4)),
     r'whose shortcuts have weights \(stage_'),
    ({'block1.layer.0.bn1.weight': np.zeros(4),
      'conv1.weight': np.zeros((4, 3, 3, 3)),
      'block1.layer.0.conv1.weight': np.zeros((6, 4, 3, 3))},
     'has 6 channels, which is no multiple of the 4 of conv1'),
    ({'conv_blocks.0.weight': np.zeros(4)},
     "conv_blocks.0.weight, but not what comes with it.*l1.0.weight"),
    ({'conv_blocks.0.weight': np.zeros(4), 'l1.0.weight': np.zeros((16, 5))},
     "conv_blocks.0.weight, but not what comes with it"),
])
def test_others_are_refused(arrays, message):
  with pytest.raises(ValueError, match=message) as error:
    recognise.recognise(arrays)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('wide', [{}, {'wide_start': True}])
@pytest.mark.parametrize(('side', 'channels', 'width', 'nz'), [
    (32, 3, 128, 100), (8, 1, 2, 3), (64, 3, 6, 256), (4, 3, 2, 1)])
def test_generators(side, channels, width, nz, wide):
  model = models.Generator(side=side, channels=channels, width=width, **wide)
  found = recognise.recognise({
      key: np.zeros(shape)
      for key, shape in torch_io.torch_shapes(model, (nz,)).items()})
  assert (found.arch, found.channels) == ('generator', channels)
  assert found.options == {'side': side, 'width': width, 'nz': nz} | wide
  assert not found.missing({}) and 'classes' not in str(found)
