"""Tests of ferd_jax.torch_io and parity of the models with PyTorch.

The networks of ferd_jax.torch_networks carry the published attribute names.
Tests that need torch skip without it.
"""

import functools
import importlib.util
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import resnet

# Published checkpoints, which have no licence to be copied here.
REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'teachers'
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

ROBUSTBENCH_SPEC = importlib.util.find_spec('robustbench')
# Compiling for speed takes longer than these tests run.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def torch():
  torch = pytest.importorskip('torch')
  # Several threads only wait for each other on arrays this small.
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield torch
  torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def twins(torch):
  from ferd_jax import torch_twins
  return torch_twins


def networks():
  from ferd_jax import torch_networks  # needs torch
  return torch_networks


# The model's name and options; what `torch_twins.twin` makes of it is compared.
TWINS = {
    'dm-wrn': ('dm_wrn_16_2', {'width': 4}),
    'dm-wrn-relu': ('dm_wrn_10_1', {'width': 4, 'activation': 'relu'}),
    'dm-preact18': ('dm_preact_resnet18', {'width': 4}),
    'dm-preact34': ('dm_preact_resnet34', {'width': 2, 'activation': 'relu'}),
    'resnet50': ('resnet50', {'width': 2}),
    'resnet101': ('resnet101', {'width': 1}),
    'resnet-blocks': ('resnet_1_2_1_3', {'width': 4}),
    'wrn-silu': ('wrn_10_2', {'width': 4, 'activation': 'silu'}),
    'resnet-silu-same': ('resnet_1_1_1_1', {
        'width': 4, 'activation': 'silu', 'padding': 'same'}),
    'bottleneck-same': ('resnet_bottleneck_1_1_1_1', {
        'width': 2, 'padding': 'same'}),
    'cifar-same': ('cifar_resnet8', {
        'width': 4, 'activation': 'silu', 'padding': 'same'}),
    'preact-same': ('preact_resnet_1_1_1_1', {
        'width': 4, 'activation': 'silu', 'padding': 'same'}),
    'mobilenet-same': ('mobilenet_v2', {
        'width': 8, 'activation': 'silu', 'padding': 'same'}),
    'ra-wrn': ('ra_wrn_1_2_1', {'width': 4}),
    'meansparse': ('meansparse_dm_wrn_10_1', {
        'width': 4, 'straight_through': True}),
    'meansparse-ra': ('meansparse_ra_wrn_1_1_1', {'width': 4}),
    'standardise': ('wrn_10_1', {'width': 4, 'standardise': True}),
    'xcit': ('xcit_2_2', {'width': 2}),
    'xcit-patch': ('xcit_1_4', {'width': 2, 'patch': 8}),
}
# The twin's class and arguments, the model's name and options.
CASES = {
    'wrn': ('WideResNet', (10, 1, 4, 5), 'wrn_10_1', {'width': 4}),
    'wrn-wide': ('WideResNet', (16, 2, 4, 7), 'wrn_16_2', {'width': 4}),
    'wrn-sub-block': (
        'WideResNet', (10, 2, 4, 5, 3, True), 'wrn_10_2', {'width': 4}),
    'resnet18': ('ResNet', ((2, 2, 2, 2), 4, 5), 'resnet18', {'width': 4}),
    'resnet34': ('ResNet', ((3, 4, 6, 3), 2, 5), 'resnet34', {'width': 2}),
    'cifar-akamaster': ('CifarResNet', (8, 4, 5, 'pad_both', 'akamaster'),
                        'cifar_resnet8', {'width': 4}),
    'cifar-stage': ('CifarResNet', (14, 4, 5, 'pad_after', 'stage'),
                    'cifar_resnet14', {'width': 4, 'shortcut': 'pad_after'}),
    'cifar-stage-both': ('CifarResNet', (8, 4, 5, 'pad_both', 'stage'),
                         'cifar_resnet8', {'width': 4}),
    'cifar-chenyaofo': ('CifarResNet', (8, 4, 5, 'conv', 'chenyaofo'),
                        'cifar_resnet8', {'width': 4, 'shortcut': 'conv'}),
    'cifar-option-b': ('CifarResNet', (8, 4, 5, 'conv', 'akamaster'),
                       'cifar_resnet8', {'width': 4, 'shortcut': 'conv'}),
    'preact18': ('PreActResNet', ((2, 2, 2, 2), 4, 5, 'preact', True),
                 'preact_resnet18', {'width': 4}),
    'preact18-input': (
        'PreActResNet', ((2, 2, 2, 2), 4, 5, 'input', False),
        'preact_resnet18',
        {'width': 4, 'shortcut_input': 'input', 'final_bn': False}),
    'preact34': ('PreActResNet', ((3, 4, 6, 3), 2, 5, 'preact', True),
                 'preact_resnet34', {'width': 2}),
    'mobilenet-fc': ('MobileNetV2', (8, 5), 'mobilenet_v2', {'width': 8}),
}
# Of many layers, which take long to compile.
DEEP = ('mobilenet-same', 'mobilenet-fc', 'resnet101', 'resnet34', 'preact34',
        'dm-preact34')
# Whose names `state_dict_from_variables` does not write.
IMPORT_ONLY = ('wrn-sub-block', 'cifar-stage-both', 'cifar-option-b')
# One of each family: float64 finds what differs, this is about rounding.
IN_FLOAT32 = ('wrn', 'resnet18', 'cifar-akamaster', 'preact18', 'mobilenet-fc',
              'ra-wrn', 'xcit')


def pair(twins, case, **options):
  """Returns a random twin, its state dict, and the Flax model."""
  if case in TWINS:
    arch, fixed = TWINS[case]
    model = models.build(arch, 5, **fixed | options)
    net = twins.randomise(twins.twin(models.build(arch, 5, **fixed)))
    return net, arrays(net), model
  kind, arguments, arch, fixed = CASES[case]
  net = twins.randomise(getattr(networks(), kind)(*arguments))
  classes = arguments[1 if kind == 'MobileNetV2' else
                      3 if kind == 'WideResNet' else 2]
  model = models.build(arch, classes, **fixed | options)
  return net, arrays(net), model


def arrays(net):
  return {key: value.detach().numpy().copy()
          for key, value in net.state_dict().items()}


def images(shape, dtype=np.float32):
  return np.random.default_rng(0).uniform(size=shape).astype(dtype)


def nhwc(tensor):
  value = tensor.detach().numpy()
  return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value


def run_stages(model, variables, x):
  """Returns {stage: output} of one pass, stopped and resumed at each stage."""
  outputs, start = {}, None
  for stage in model.stages:
    x = model.apply(variables, x, start=start, stop=stage)
    outputs[stage], start = x, stage
  return outputs


def assert_same_stages(torch, net, model, variables, x, tolerance):
  with torch.no_grad():
    expected = {name: nhwc(value) for name, value in net.stages(
        torch.from_numpy(x).permute(0, 3, 1, 2))}
  got = jit(functools.partial(run_stages, model))(variables, jnp.asarray(x))
  assert tuple(expected) == model.stages == tuple(
      stage for stage in model.stages if stage in got)
  for stage, value in expected.items():
    assert got[stage].dtype == x.dtype
    scale = max(1, np.abs(value).max())
    np.testing.assert_allclose(got[stage], value, rtol=0,
                               atol=tolerance * scale, err_msg=stage)


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=pytest.mark.slow if case in DEEP else ())
    for case in [*CASES, *TWINS]])
def test_stages_equal_pytorch(torch, twins, tmp_path, case):
  net, state_dict, model = pair(twins, case)
  variables = torch_io.variables_from_state_dict(model, state_dict, (32, 32, 3))
  assert set(variables) == {'params', 'batch_stats'} | (
      {'mean_sparse'} if case.startswith('meansparse') else set())
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
      np.dtype(np.float32)}

  # Strict loading: every name, shape and counter.
  exported = torch_io.state_dict_from_variables(model, variables)
  if case not in IMPORT_ONLY:
    torch_io.write_state_dict(tmp_path / 'net.pt', exported)
    x = torch.from_numpy(images((2, 3, 32, 32)))
    with torch.no_grad():
      before = net(x)
      twins.randomise(net, seed=1)
      assert not torch.equal(net(x), before)
      net.load_state_dict(torch.load(tmp_path / 'net.pt', weights_only=True),
                          strict=True)
      assert torch.equal(net(x), before)
  again = torch_io.variables_from_state_dict(model, exported, (32, 32, 3))
  jax.tree.map(np.testing.assert_array_equal, again, variables)

  if case in IN_FLOAT32:
    assert_same_stages(torch, net, model, variables, images((2, 32, 32, 3)),
                       1e-5)
  with jax.enable_x64(True):
    variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)
    assert_same_stages(torch, net.double(), model, variables,
                       images((2, 24, 16, 3), np.float64), 1e-10)


def standardising(net):
  """Returns a net that normalises as model_zoo/cifar10.py, Ding2020MMANet."""
  def normalise(_, args):
    x, = args
    std = x.std(dim=(1, 2, 3), keepdim=True)
    least = std.new_ones(()) / (x.shape[1] * x.shape[2] * x.shape[3]) ** .5
    return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / std.maximum(least)
  net.register_forward_pre_hook(normalise)
  return net


def robust_wide(module):
  import torch.nn
  return module.NormalizedWideResNet(
      module.CIFAR10_MEAN, module.CIFAR10_STD, 16, [1, 2, 1], [36, 72, 144],
      [1, 1, 1], torch.nn.SiLU, 0.25, torch.nn.ReLU, 2)


# Modules of RobustBench itself, by file and what makes them, and the model.
ROBUSTBENCH = {
    'standardise': ('wide_resnet', lambda m: standardising(
        m.WideResNet(10, 10, 1)), 'wrn_10_1', {'standardise': True}),
    'meansparse': ('Meansparse_wrn_70_16', lambda m: m.DMWideResNet(
        10, 10, 1, m.nn.SiLU), 'meansparse_dm_wrn_10_1', {'normalised': True}),
    'ra-wrn': ('robustarch_wide_resnet', robust_wide, 'ra_wrn_1_2_1',
               {'width': 16, 'normalised': True}),
    'meansparse-ra': ('Meansparse_ra_wrn_70_16', robust_wide,
                      'meansparse_ra_wrn_1_2_1',
                      {'width': 16, 'normalised': True}),
    'wrn': ('wide_resnet', lambda m: m.WideResNet(10, 10, 2, sub_block1=True),
            'wrn_10_2', {}),
    'dm-wrn': ('dm_wide_resnet', lambda m: m.DMWideResNet(
        10, 10, 2, m.Swish), 'dm_wrn_10_2', {'normalised': True}),
    'dm-preact18': ('dm_wide_resnet', lambda m: m.DMPreActResNet(
        10, 18, 0, m.Swish), 'dm_preact_resnet18', {'normalised': True}),
    'resnet18': ('resnet', lambda m: m.ResNet18(), 'resnet18', {}),
    'resnet50': ('resnet', lambda m: m.ResNet50(), 'resnet50', {}),
    'preact18': ('resnet', lambda m: m.PreActResNet18(), 'preact_resnet18',
                 {'shortcut_input': 'input', 'final_bn': False}),
    'preact18-out': (
        'resnet', lambda m: m.PreActResNet(
            m.PreActBlock, [2, 2, 2, 2], 10, True, True),
        'preact_resnet18', {'shortcut_input': 'preact', 'final_bn': True}),
}


@pytest.fixture
def torchvision(torch, monkeypatch):
  """What those modules import of it, and of their own package."""
  class SqueezeExcitation(torch.nn.Module):
    def __init__(self, input_channels, squeeze_channels, activation):
      super().__init__()
      self.fc1 = torch.nn.Conv2d(input_channels, squeeze_channels, 1)
      self.activation = activation()
      self.fc2 = torch.nn.Conv2d(squeeze_channels, input_channels, 1)
    def forward(self, x):
      scale = torch.nn.functional.adaptive_avg_pool2d(x, 1)
      return x * self.fc2(self.activation(self.fc1(scale))).sigmoid()
  package = 'robustbench.model_zoo.architectures.dm_wide_resnet'
  for name, values in [
      ('torchvision.ops.misc', {'SqueezeExcitation': SqueezeExcitation,
                                'Conv2dNormActivation': None}),
      (package, {'CIFAR10_MEAN': (0.4914, 0.4822, 0.4465),
                 'CIFAR10_STD': (0.2471, 0.2435, 0.2616)})]:
    parts = name.split('.')
    for size in range(1, len(parts) + 1):
      module = types.ModuleType('.'.join(parts[:size]))
      monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(values)


@pytest.mark.parametrize('case', ROBUSTBENCH)
def test_logits_equal_robustbench(torch, twins, torchvision, case):
  if ROBUSTBENCH_SPEC is None:
    pytest.skip('needs `pip install --no-deps robustbench==1.1.1`')
  file, make, arch, options = ROBUSTBENCH[case]
  # By file: the package's own import needs more than it declares.
  path = pathlib.Path(ROBUSTBENCH_SPEC.submodule_search_locations[0],
                      'model_zoo', 'architectures', f'{file}.py')
  spec = importlib.util.spec_from_file_location(f'robustbench_{file}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  options = dict(options)
  if options.pop('normalised', False):
    options |= {'mean': module.CIFAR10_MEAN, 'std': module.CIFAR10_STD}
  net = twins.randomise(make(module))
  model = models.build(arch, 10, **options)
  variables = torch_io.variables_from_state_dict(model, arrays(net),
                                                 (32, 32, 3))
  x = images((2, 32, 32, 3))
  with torch.no_grad():
    expected = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
  got = jit(model.apply)(variables, x)
  scale = max(1, np.abs(expected).max())
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)
  exported = torch_io.state_dict_from_variables(model, variables)
  missing = net.state_dict().keys() - exported.keys()
  assert all(key.startswith('sub_block1') for key in missing)
  net.load_state_dict({key: torch.tensor(value) for key, value
                       in exported.items()}, strict=not missing)
  with torch.no_grad():
    assert np.array_equal(
        net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy(), expected)


@pytest.mark.parametrize(('case', 'options'), [
    ('cifar-akamaster', {'shortcut': 'pad_after'}),
    ('cifar-stage', {'shortcut': 'pad_both'}),
    ('preact18', {'shortcut_input': 'input'}),
    ('cifar-akamaster', {'mean': (0.5,), 'std': (0.25,)}),
    ('dm-wrn', {'padding': 'both'}),
    ('dm-wrn', {'activation': 'relu'}),
    ('dm-preact18', {'padding': 'both'}),
    ('dm-preact18', {'activation': 'relu'}),
    ('resnet50', {'padding': 'same'}),
    ('wrn', {'activation': 'silu'}),
    ('mobilenet-fc', {'padding': 'same'}),
    ('xcit', {'patch': 2}),
    ('standardise', {'standardise': False}),
])
def test_what_names_do_not_reveal_matters(torch, twins, case, options):
  net, state_dict, model = pair(twins, case, **options)
  variables = torch_io.variables_from_state_dict(model, state_dict, (16, 16, 3))
  x = images((2, 16, 16, 3))
  with torch.no_grad():
    expected = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
  assert not np.allclose(jit(model.apply)(variables, x), expected, atol=0.1)


def test_normalisation_is_that_of_pytorch(torch, twins):
  net, state_dict, model = pair(twins, 'cifar-akamaster', mean=IMAGENET[0],
                                std=IMAGENET[1])
  net.mean_std = IMAGENET
  # Buffers of a normalising layer agree with the model, under any name.
  buffers = {'mu': np.reshape(IMAGENET[0], (1, 3, 1, 1)),
             'normalize.std': np.float32(IMAGENET[1])}
  variables = torch_io.variables_from_state_dict(
      model, state_dict | buffers, (16, 16, 3))
  x = images((2, 16, 16, 3))
  assert_same_stages(torch, net, model, variables, x, 1e-5)
  for wrong in ({'std': np.ones(3)}, {'sigma': np.ones((1, 1))},
                {'normalize.mean': np.zeros(4)}):
    with pytest.raises(ValueError, match='of the model to equal'):
      torch_io.variables_from_state_dict(
          model, state_dict | wrong, (16, 16, 3))
  with pytest.raises(ValueError, match='mean=None of the model to equal mu'):
    torch_io.variables_from_state_dict(
        model.clone(mean=None, std=None), state_dict | buffers, (16, 16, 3))


def assert_same_gradients(model, grads, net, variables):
  """Compares the gradients by PyTorch's names."""
  by_name = torch_io.state_dict_from_variables(
      model, {'params': grads, 'batch_stats': variables['batch_stats']})
  for name, parameter in net.named_parameters():
    expected = parameter.grad.numpy()
    np.testing.assert_allclose(
        by_name[name], expected, rtol=0,
        atol=1e-7 * max(1e-3, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize('case', [
    'resnet18', pytest.param('mobilenet-fc', marks=pytest.mark.slow)])
def test_training_step_equals_pytorch(torch, twins, case):
  net, state_dict, model = pair(twins, case)
  x, labels = images((4, 16, 16, 3), np.float64), np.arange(4)

  net.double().train()
  logits = net(torch.from_numpy(x).permute(0, 3, 1, 2))
  torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

  def loss(params, stats):
    logits, state = model.apply(
        {'params': params, 'batch_stats': stats}, x, train=True,
        mutable=['batch_stats'])
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(log_probs[np.arange(4), labels]), (
        logits, state['batch_stats'])

  with jax.enable_x64(True):
    variables = jax.tree.map(
        lambda v: v.astype(jnp.float64),
        torch_io.variables_from_state_dict(model, state_dict, (16, 16, 3)))
    grads, (got, stats) = jit(jax.grad(loss, has_aux=True))(
        variables['params'], variables['batch_stats'])
  np.testing.assert_allclose(got, logits.detach(), rtol=1e-9, atol=1e-9)
  assert_same_gradients(model, grads, net, variables)
  updated = torch_io.state_dict_from_variables(
      model, {'params': variables['params'], 'batch_stats': stats})
  for name, buffer in net.named_buffers():
    if 'running' in name:
      np.testing.assert_allclose(updated[name], buffer, rtol=1e-9, atol=1e-12,
                                 err_msg=name)


@pytest.mark.parametrize('wide', [False, True])
def test_generator_equals_pytorch(torch, twins, wide):
  net = twins.randomise(networks().Generator(7, 8, 2, 6, wide))
  model = models.Generator(side=8, channels=2, width=6, wide_start=wide)
  state_dict = arrays(net)
  assert (set(torch_io.torch_shapes(model, (7,))) == set(state_dict))
  z = np.random.default_rng(0).normal(size=(3, 7))
  weights = np.random.default_rng(1).normal(size=(3, 8, 8, 2))

  net.double().train()
  latents = torch.from_numpy(z).requires_grad_()
  expected = net(latents)
  (expected.permute(0, 2, 3, 1) * torch.from_numpy(weights)).sum().backward()

  def weighted(params, z, stats):
    out, state = model.apply({'params': params, 'batch_stats': stats}, z,
                             mutable=['batch_stats'])
    return jnp.sum(out * weights), (out, state['batch_stats'])

  with jax.enable_x64(True):
    variables = jax.tree.map(
        lambda v: v.astype(jnp.float64),
        torch_io.variables_from_state_dict(model, state_dict, (7,)))
    (grads, z_grad), (out, stats) = jit(
        jax.grad(weighted, argnums=(0, 1), has_aux=True))(
            variables['params'], jnp.asarray(z), variables['batch_stats'])
  np.testing.assert_allclose(out, nhwc(expected), rtol=1e-10)
  np.testing.assert_allclose(z_grad, latents.grad, rtol=1e-7, atol=1e-10)
  assert_same_gradients(model, grads, net, variables)
  exported = torch_io.state_dict_from_variables(
      model, {'params': variables['params'], 'batch_stats': stats})
  other = twins.twin(model, nz=7).double()
  other.load_state_dict({key: torch.tensor(value)
                         for key, value in exported.items()}, strict=True)
  for name, buffer in net.named_buffers():
    if 'running' in name:
      np.testing.assert_allclose(exported[name], buffer, rtol=1e-9)


MODEL = models.build('cifar_resnet8', 5, width=2)
SHAPE = (8, 8, 3)


def weights(model=MODEL, seed=0):
  """Returns a random state dict of a model, without torch."""
  rng = np.random.default_rng(seed)
  return {
      key: (np.zeros((), np.int64) if key.endswith('tracked') else
            rng.uniform(0.5, 1.5, shape).astype(np.float32))
      for key, shape in torch_io.torch_shapes(model, SHAPE).items()}


def convert(state_dict, model=MODEL):
  return torch_io.variables_from_state_dict(model, state_dict, SHAPE)


def assert_same_weights(got, expected):
  assert set(got) == set(expected)
  for key, value in expected.items():
    np.testing.assert_array_equal(got[key], value)


def test_all_differences_are_in_one_error():
  state_dict = weights()
  del state_dict['layer2.0.conv1.weight'], state_dict['bn1.running_var']
  state_dict['layer9.weight'] = np.zeros(3)
  state_dict['conv1.weight'] = np.zeros((2, 1, 3, 3))
  with pytest.raises(ValueError) as error:
    convert(state_dict)
  message = str(error.value)
  assert 'missing: bn1.running_var, layer2.0.conv1.weight;' in message
  assert 'unexpected: layer9.weight;' in message
  assert ('misshaped: conv1.weight (2, 1, 3, 3) where the model has '
          '(2, 3, 3, 3).') in message
  assert '\n' not in message


def test_of_many_differences_ten_are_shown():
  with pytest.raises(ValueError) as error:
    convert(weights(models.build('cifar_resnet8', 5, width=4)))
  message = str(error.value)
  assert message.count('where the model has') == 10
  assert message.endswith(', ... (36 in all).') and len(message) < 1000


def test_wrong_class_count_is_named():
  with pytest.raises(ValueError, match='have 7 classes, the model has '
                                       'num_classes=5'):
    convert(weights(models.build('cifar_resnet8', 7, width=2)))


def test_both_names_of_the_mobilenet_classifier():
  model = models.build('mobilenet_v2', 5, width=4)
  expected = weights(model)
  assert 'fc.weight' in expected
  renamed = {key.replace('fc.', 'linear.'): value
             for key, value in expected.items()}
  jax.tree.map(np.testing.assert_array_equal, convert(renamed, model),
               convert(expected, model))
  with pytest.raises(ValueError, match='missing: fc.bias; unexpected: linear'):
    convert(expected | {'linear.bias': expected.pop('fc.bias')}, model)


@pytest.mark.parametrize(('arch', 'options', 'hint'), [
    ('wrn_10_1', {}, 'keys are those of wrn_10_1, 5 classes'),
    ('mobilenet_v2', {'width': 4}, 'keys are those of mobilenet_v2, width=4'),
    ('resnet18', {'width': 2}, 'keys are those of resnet18, width=2'),
    ('dm_preact_resnet18', {'width': 2}, 'those of dm_preact_resnet18, width'),
    ('cifar_resnet14', {'width': 2}, 'those of cifar_resnet14, width=2, 5'),
])
def test_wrong_architecture_is_named(arch, options, hint):
  other = weights(models.build(arch, 5, **options))
  with pytest.raises(ValueError, match=hint) as error:
    convert(other)
  # The reason comes first, then the keys.
  reason, _, listed = str(error.value).partition(' Keys ')
  assert len(reason) < 200
  own, other = ({key for key in keys if not key.endswith('tracked')}
                for keys in (weights(), other))
  for kind, keys in (('missing', own - other), ('unexpected', other - own)):
    if keys:
      assert f'{kind}: {", ".join(sorted(keys)[:10])}' in listed


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value):
  state_dict = weights()
  state_dict['bn1.weight'][1] = value
  state_dict['linear.bias'][0] = value
  with pytest.raises(ValueError, match='not finite: bn1.weight, linear.bias'
                     ) as error:
    convert(state_dict)
  assert '\n' not in str(error.value)


@pytest.mark.filterwarnings('error')
def test_values_too_large_for_float32_are_named():
  state_dict = weights()
  state_dict['bn1.weight'] = np.full(2, 1e39)
  with pytest.raises(ValueError, match='not finite: bn1.weight'):
    convert(state_dict)
  state_dict['bn1.weight'] = np.full(2, 1e38)
  convert(state_dict)


def test_negative_variances_are_named():
  state_dict = weights()
  state_dict['bn1.running_var'][1] = -0.25
  state_dict['bn1.running_mean'][1] = -0.25
  with pytest.raises(ValueError, match='at least 0; negative: '
                                       r'bn1.running_var \(-0.25\)\.$'):
    convert(state_dict)
  state_dict['bn1.running_var'][1] = 0
  convert(state_dict)


@pytest.mark.parametrize(('dtype', 'name'), [
    (np.complex64, 'complex64'), (str, '<U'), (bytes, r'\|S'),
    (object, 'object')])
@pytest.mark.filterwarnings('error')
def test_values_that_are_no_real_numbers_are_named(dtype, name):
  state_dict = weights()
  for key in ('bn1.weight', 'linear.bias'):
    state_dict[key] = state_dict[key].astype(dtype)
  with pytest.raises(ValueError, match=fr'real numbers; .*: bn1.weight \({name}'
                     r'.*\), linear.bias \('):
    convert(state_dict)
  # Buffers of a normalising layer, whose names are not the model's.
  with pytest.raises(ValueError, match=rf'real numbers; .*: mu \({name}'):
    convert(weights() | {'mu': np.zeros(3).astype(dtype)})


@pytest.mark.parametrize('dtype', [
    jnp.bfloat16, np.float16, np.float64, np.int8, np.int64, np.uint8])
def test_real_numbers_of_all_types(dtype):
  state_dict = {key: np.ones(value.shape, dtype)
                for key, value in weights().items()}
  for leaf in jax.tree.leaves(convert(state_dict)):
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, 1)


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.', '0.',
                                    'module.0.', '1.', 'module.1.',
                                    '_orig_mod.', 'module.backbone.net.'])
def test_prefixes(prefix):
  expected = weights()
  got = torch_io.strip_prefixes(
      {prefix + key: value for key, value in expected.items()})
  assert_same_weights(got, expected)


def test_bfloat16_safetensors(tmp_path):
  path = tmp_path / 'net.safetensors'
  value = np.asarray([1.5, -2.0]).astype(jnp.bfloat16)
  data = value.tobytes()
  header = (b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}')
  path.write_bytes(len(header).to_bytes(8, 'little') + header + data)
  got = torch_io.read_state_dict(path)['a']
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, value)


def test_prefix_is_kept_unless_common():
  mixed = {'net.a': np.zeros(1), 'b': np.zeros(1)}
  assert set(torch_io.strip_prefixes(mixed)) == set(mixed)
  two = {'0.a': np.zeros(1), '1.b': np.zeros(1)}
  assert set(torch_io.strip_prefixes(two)) == set(two)
  half = {'net.a': np.zeros(1), 'net.b': np.zeros(1), 'head.a': np.zeros(1)}
  assert set(torch_io.strip_prefixes(half)) == set(half)
  assert set(torch_io.strip_prefixes({'a': np.zeros(1)})) == {'a'}


@pytest.mark.parametrize(('mean', 'head', 'expected'), [
    ('module.0.mean', 'module.1', 'normalize.mean'),
    ('normalizer.mu', 'model', 'normalize.mean'),
    ('module.normalize.mean', 'module.net', 'normalize.mean'),
    ('mean', 'model', 'normalize.mean'),
    ('module.sds', 'module.model.module', 'normalize.std'),
    ('norm.new_std', '', 'normalize.std'),
])
def test_normaliser_shares_no_prefix(mean, head, expected):
  names = ('a.weight', 'b.bias')
  got = torch_io.strip_prefixes(
      {mean: np.zeros(3)} | {f'{head}.{name}'.lstrip('.'): np.ones(1)
                             for name in names})
  assert set(got) == {expected, *names}
  assert not got[expected].any() and got['a.weight'].all()


def test_two_normalisers_are_refused():
  keys = {'norm.mean', 'model.normalize.mean', 'model.a', 'model.b'}
  with pytest.raises(ValueError, match='several normalising layers'):
    torch_io.strip_prefixes(dict.fromkeys(keys, np.zeros(1)))


def test_layer_with_more_than_statistics_is_no_normaliser():
  keys = {'stem.mean', 'stem.weight', 'net.a', 'net.b'}
  assert set(torch_io.strip_prefixes(
      dict.fromkeys(keys, np.zeros(1)))) == keys


def test_buffers_alone_are_no_network():
  keys = {'mean', 'std'}
  assert set(torch_io.strip_prefixes(
      dict.fromkeys(keys, np.zeros(1)))) == keys


def test_averaged_model(torch):
  net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
  averaged = torch.optim.swa_utils.AveragedModel(net)
  got = torch_io.strip_prefixes(
      {key: value.numpy() for key, value in averaged.state_dict().items()})
  assert_same_weights(got, {key: value.numpy()
                            for key, value in net.state_dict().items()})


def test_files_without_torch(tmp_path, monkeypatch):
  expected = weights()
  # The name of a file says nothing.
  safetensors.numpy.save_file(expected, tmp_path / 'weights.pth')
  np.savez(tmp_path / 'arrays.npz', **expected)
  (tmp_path / 'arrays.npz').rename(tmp_path / 'arrays.safetensors')
  # Importing it then raises ImportError.
  monkeypatch.setitem(sys.modules, 'torch', None)
  for name in ('weights.pth', 'arrays.safetensors'):
    assert_same_weights(torch_io.read_state_dict(tmp_path / name), expected)
    variables = torch_io.load_variables(tmp_path / name, MODEL, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, variables, convert(expected))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('wrapper', [
    None, 'state_dict', 'model_state_dict', 'model', 'net', 'ema',
    'state_dict_ema', 'last', 'weights'])
def test_torch_files(torch, tmp_path, monkeypatch, wrapper, zipped):
  expected = weights()
  tensors = {'module.' + key: torch.from_numpy(value)
             for key, value in expected.items()}
  content = tensors if wrapper is None else {
      wrapper: tensors, 'epoch': 3, 'optimizer': {'state': {}}}
  if wrapper == 'last':
    content['best'] = {'conv1.weight': torch.zeros(1)}
  torch.save(content, tmp_path / 'net.tar',
             _use_new_zipfile_serialization=zipped)
  # Importing it then raises ImportError.
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert_same_weights(torch_io.read_state_dict(tmp_path / 'net.tar'), expected)


def test_torch_tensors_of_all_kinds(torch, tmp_path):
  tensors = {
      'strided': torch.arange(12.0).view(3, 4).t()[::2],
      'scalar': torch.tensor(3),
      'half': torch.ones(2, dtype=torch.float16),
      'bfloat': torch.full((2,), 1.5, dtype=torch.bfloat16),
      'double': torch.ones(2, dtype=torch.float64),
      'parameter': torch.nn.Parameter(torch.ones(2)),
  }
  torch.save(tensors, tmp_path / 'net.pt')
  got = torch_io.read_state_dict(tmp_path / 'net.pt')
  for key, value in tensors.items():
    np.testing.assert_array_equal(got[key], value.detach().double().numpy())
  assert (got['half'].dtype, got['bfloat'].dtype) == (np.float16,
                                                      jnp.bfloat16)


def test_choice_between_state_dicts(torch, tmp_path):
  path = tmp_path / 'net.pt'
  first, second = {'a': torch.zeros(1)}, {'a': torch.ones(1)}
  torch.save({'state_dict': first, 'ema': second}, path)
  with pytest.raises(ValueError, match='select one of state_dict, ema'):
    torch_io.read_state_dict(path)
  assert torch_io.read_state_dict(path, select='ema')['a'] == 1
  with pytest.raises(ValueError, match="select='net'.*keys are ema, state_d"):
    torch_io.read_state_dict(path, select='net')
  torch.save({'best': {'state_dict': first}, 'last': {'state_dict': second},
              'optimizer': {'state': {0: {'exp_avg': torch.zeros(2)}}}}, path)
  assert torch_io.read_state_dict(path)['a'] == 1
  assert torch_io.read_state_dict(path, select='best.state_dict')['a'] == 0
  torch.save({'saved': {'deep': {'net': second}}, 'epoch': 1}, path)
  assert torch_io.read_state_dict(path)['a'] == 1
  torch.save({'G': second, 'S': second}, path)  # One under two names.
  assert torch_io.read_state_dict(path)['a'] == 1
  assert torch_io.read_state_dict(path, select='S')['a'] == 1
  loop = {'epoch': 1, 'G': second}
  loop['self'] = loop
  torch.save(loop, path)
  assert torch_io.read_state_dict(path)['a'] == 1
  deep = first
  for _ in range(100):
    deep = {'in': deep}
  torch.save(deep, path)
  with pytest.raises(ValueError, match='no dict of tensors'):
    torch_io.read_state_dict(path)
  torch.save({'G': first, 'S': second}, path)
  with pytest.raises(ValueError, match='select one of G, S'):
    torch_io.read_state_dict(path)
  for content in ([first], {'state_dict': [first]}, (first,)):
    torch.save(content, path)
    assert torch_io.read_state_dict(path)['a'] == 0
  torch.save({'state_dict': [first, second]}, path)
  assert torch_io.read_state_dict(path, select='state_dict.1')['a'] == 1
  for content, message in (
      ([first, second], 'select one of 0, 1'), (3, 'holds a int, not'),
      ({'a': torch.zeros(2).to_sparse()}, '_rebuild_sparse_tensor.*to_dense'),
      (torch.nn.Linear(1, 1), 'whole module')):
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
      torch_io.read_state_dict(path)
    assert '\n' not in str(error.value)


class Unsafe:
  """An object that torch.load refuses to build."""


@pytest.mark.filterwarnings('ignore:.*torch.jit.script:DeprecationWarning')
def test_torch_files_that_are_refused(torch, tmp_path):
  path = tmp_path / 'net.pt'
  torch.save({'a': torch.zeros(1), 'args': Unsafe()}, path)
  assert set(torch_io.read_state_dict(path)) == {'a'}
  torch.save({'a': Unsafe()}, path)
  with pytest.raises(ValueError, match=r'net.pt: it holds no dict of tensors; '
                     r'a is .*torch_io_test\.Unsafe') as error:
    torch_io.read_state_dict(path)
  assert '\n' not in str(error.value)
  torch.jit.script(torch.nn.Linear(1, 1)).save(path)
  with pytest.raises(ValueError, match='TorchScript'):
    torch_io.read_state_dict(path)


@pytest.mark.parametrize(('content', 'message'), [
    (b'', 'is empty'),
    (b'<!DOCTYPE html><html>quota exceeded</html>', 'HTML page'),
    (b'\n <html>', 'HTML page'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'LFS pointer'),
    (b'\x93NUMPY\x01\x00', 'damaged .npy'),
    (b'\x80\x04]\x94K\x01a.', 'pickle, but not one of torch.save'),
    (b'\x80\x04\x95', 'ends too early'),
    (b'weights, allegedly', 'none of safetensors, npz'),
    (b'\0' * 257 + b'ustar' + b'\0' * 250, 'tar archive'),
    (b'\x10\0\0\0\0\0\0\0{"a": 1', 'damaged'),
    (b'PK\x03\x04 and then nothing', 'damaged'),
])
def test_files_that_hold_no_weights(tmp_path, content, message):
  path = tmp_path / 'net.pt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    torch_io.read_state_dict(path)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_missing_file_and_file_of_another_model(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing.pt'):
    torch_io.load_variables(tmp_path / 'nothing.pt', MODEL, SHAPE)
  path = tmp_path / 'net.safetensors'
  safetensors.numpy.save_file(weights(), path)
  with pytest.raises(ValueError, match='net.safetensors: .* fit WideResNet'):
    torch_io.load_variables(path, models.build('wrn_10_1', 5), SHAPE)


@pytest.mark.parametrize(('name', 'arguments', 'options'), [
    ('CIFAR10-resnet20-adv.pth', ('pad_after', 'stage'),
     {'shortcut': 'pad_after'}),
    ('resnet20-12fca82f.th', ('pad_both', 'akamaster'),
     {'mean': IMAGENET[0], 'std': IMAGENET[1]}),
])
def test_published_checkpoint(torch, twins, name, arguments, options):
  path = REAL / name
  if not path.exists():
    # It has no licence to be copied here, and nobody has to have it.
    pytest.skip(f'needs the published {name}')
  model = models.build('cifar_resnet20', 10, **options)
  variables = torch_io.load_variables(path, model, (32, 32, 3))
  net = networks().CifarResNet(20, 16, 10, *arguments).eval()
  net.mean_std = IMAGENET if 'mean' in options else None
  twins.load_published(net, path)
  assert_same_stages(torch, net, model, variables, images((4, 32, 32, 3)),
                     1e-5)


def test_stems_are_those_of_the_modules(torch):
  assert networks().STEMS == resnet.STEMS
