"""Tests of ferd_jax.models: stages, moments, BatchNorm, initialisers."""

import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import layers
from ferd_jax.models import staged

# Compiling for speed takes longer than these tests run.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})

TINY = {
    'wrn_10_1': {'width': 4},
    'resnet18': {'width': 4},
    'cifar_resnet8': {'width': 4, 'mean': (0.5,), 'std': (0.25,)},
    'preact_resnet18': {'width': 4},
    'mobilenet_v2': {'width': 4},
    'dm_wrn_10_1': {'width': 4},
    'dm_preact_resnet18': {'width': 4},
    'resnet_bottleneck_1_1_1_1': {'width': 2},
    'ra_wrn_1_1_1': {'width': 4},
    'xcit_2_2': {'width': 1},
}
# Of many layers, which take long to compile.
DEEP = ('mobilenet_v2', 'xcit_2_2', 'resnet_bottleneck_1_1_1_1')
SLOW = pytest.mark.slow


def tiny(arch, **options):
  return models.build(arch, 5, **TINY[arch], **options)


def filled(model, shape, seed=0):
  """Returns random variables of a model; drawing them in JAX is slow."""
  rng = np.random.default_rng(seed)
  flat = {}
  abstract = jax.eval_shape(lambda key: models.init_variables(
      model, key, shape), jax.random.key(0))
  for path, leaf in traverse_util.flatten_dict(abstract).items():
    scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1
    value = rng.normal(0, scale, leaf.shape)
    if path[-1] in ('var', 'scale'):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    flat[path] = jnp.asarray(value, leaf.dtype)
  return traverse_util.unflatten_dict(flat)


def images(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=shape),
                     jnp.float32)


@pytest.mark.parametrize('arch', [
    pytest.param(arch, marks=SLOW if arch in DEEP else ()) for arch in TINY])
def test_resumed_pass_equals_full_pass(arch):
  model = tiny(arch)
  variables = filled(model, (12, 8, 1))
  x = images((2, 12, 8, 1))
  @jit
  def passes(variables, x):
    """Returns the logits at once, and after a stop at each stage."""
    resumed, latent, before = {}, x, None
    for stage in model.stages:
      latent = model.apply(variables, latent, start=before, stop=stage)
      before = stage
      # Few, since every one is the rest of the network once more.
      if stage in (model.stages[0], model.default_tap, model.stages[-1]):
        resumed[stage] = model.apply(variables, latent, start=stage)
    return model.apply(variables, x), resumed

  logits, resumed = passes(variables, x)
  assert logits.shape == (2, 5) and len(resumed) >= 2
  for stage, found in resumed.items():
    np.testing.assert_allclose(found, logits, err_msg=stage, rtol=1e-5,
                               atol=1e-5)


@pytest.mark.parametrize(('arch', 'options', 'tap', 'shape'), [
    ('wrn_34_10', {}, 'bn1', (8, 8, 640)),
    ('preact_resnet34', {}, 'layer3', (8, 8, 256)),
    ('resnet18', {}, 'layer4', (4, 4, 512)),
    ('cifar_resnet20', {}, 'layer3', (8, 8, 64)),
    pytest.param('mobilenet_v2', {}, 'conv2', (4, 4, 1280), marks=SLOW),
    pytest.param('mobilenet_v2', {'width': 16}, 'conv2', (4, 4, 640),
                 marks=SLOW),
])
def test_default_tap(arch, options, tap, shape):
  model = models.build(arch, 10, **options)
  assert model.default_tap == tap

  def latent(key, x):
    return model.apply(models.init_variables(model, key, x.shape[1:]), x,
                       stop=tap)

  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  assert jax.eval_shape(latent, jax.random.key(0), x).shape == (2, *shape)


def test_preact_tap_at_64_pixels_and_stages_without_last_norm():
  model = models.build('preact_resnet34', 200)
  variables = jax.eval_shape(lambda key: models.init_variables(
      model, key, (64, 64, 3)), jax.random.key(0))
  latent = jax.eval_shape(
      functools.partial(model.apply, stop='layer3'), variables,
      jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32))
  assert latent.shape == (2, 16, 16, 256)
  plain = models.build('preact_resnet18', 10, final_bn=False)
  assert plain.stages[-2:] == ('layer4', 'head')
  assert model.stages[-2:] == ('bn', 'head')


@pytest.mark.parametrize(('arch', 'classes', 'options', 'parameters', 'keys',
                          'norms'), [
    ('wrn_28_10', 10, {}, 36_479_194, 155, 25),
    ('wrn_34_10', 10, {}, 46_160_474, 191, 31),
    ('wrn_34_10', 100, {}, 46_218_164, 191, 31),
    ('wrn_34_20', 10, {}, 184_531_674, 191, 31),
    ('wrn_70_16', 10, {}, 266_796_506, 407, 67),
    ('resnet18', 10, {}, 11_173_962, 122, 20),
    ('resnet34', 10, {}, 21_282_122, 218, 36),
    ('preact_resnet18', 10, {'final_bn': False}, 11_171_146, 102, 16),
    ('preact_resnet18', 10, {}, 11_172_170, 107, 17),
    ('preact_resnet18', 200, {}, 11_269_640, 107, 17),
    ('preact_resnet34', 200, {}, 21_377_800, 203, 33),
    ('dm_wrn_28_10', 10, {}, 36_479_194, 155, 25),
    ('dm_wrn_70_16', 10, {}, 266_796_506, 407, 67),
    ('dm_preact_resnet18', 10, {}, 12_548_426, 107, 17),
    ('dm_preact_resnet34', 10, {}, 22_656_586, 203, 33),
    ('resnet50', 10, {}, 23_520_842, 320, 53),
    ('mobilenet_v2', 10, {}, 2_296_922, 344, 57),
    ('mobilenet_v2', 100, {}, 2_412_212, 344, 57),
    ('cifar_resnet20', 10, {}, 269_722, 116, 19),
    ('cifar_resnet32', 10, {}, 464_154, 188, 31),
    ('cifar_resnet44', 10, {}, 658_586, 260, 43),
    ('cifar_resnet56', 10, {}, 853_018, 332, 55),
])
def test_size_of_published_networks(arch, classes, options, parameters, keys,
                                    norms):
  model = models.build(arch, classes, **options)
  shapes = torch_io.torch_shapes(model, (32, 32, 3))
  learnt = [shape for key, shape in shapes.items()
            if key.endswith(('.weight', '.bias'))]
  assert sum(int(np.prod(shape)) for shape in learnt) == parameters
  assert len(shapes) == keys
  assert sum(key.endswith('running_mean') for key in shapes) == norms


@pytest.mark.parametrize(('arch', 'count'), [
    ('wrn_34_10', 31), ('preact_resnet34', 33)])
def test_number_of_moments(arch, count):
  model = models.build(arch, 10)
  variables = jax.eval_shape(lambda key: models.init_variables(
      model, key, (32, 32, 3)), jax.random.key(0))
  _, state = jax.eval_shape(
      functools.partial(model.apply, mutable=['moments']), variables,
      jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
  assert len(jax.tree.leaves(state['moments'])) == 2 * count
  assert (jax.tree.structure(state['moments'])
          == jax.tree.structure(variables['batch_stats']))


@pytest.mark.parametrize(('arch', 'train'), [
    ('wrn_10_1', False), ('wrn_10_1', True), ('preact_resnet18', False),
    pytest.param('mobilenet_v2', False, marks=SLOW)])
def test_moments_are_those_of_the_inputs(arch, train):
  model = tiny(arch)
  variables = filled(model, (8, 8, 3))
  x = images((3, 8, 8, 3))

  def run(x):
    inputs = {}

    def record(call, args, kwargs, context):
      if (isinstance(context.module, layers.BatchNorm)
          and context.method_name == '__call__'):
        inputs['/'.join(context.module.path)] = args[0]
      return call(*args, **kwargs)

    with nn.intercept_methods(record):
      _, state = model.apply(variables, x, train=train, mutable=['moments'])
    return state['moments'], inputs

  moments, inputs = jit(run)(x)
  assert (jax.tree.structure(moments)
          == jax.tree.structure(variables['batch_stats']))
  flat = traverse_util.flatten_dict(moments)
  assert len(flat) == 2 * len(inputs)
  for path, value in inputs.items():
    value = np.asarray(value, np.float64)
    for name, expected in (('mean', value.mean((0, 1, 2))),
                           ('var', value.var((0, 1, 2)))):
      np.testing.assert_allclose(flat[*path.split('/'), name], expected,
                                 rtol=1e-4, atol=1e-5)


def test_moments_are_differentiable_and_only_on_request():
  model = tiny('cifar_resnet8')
  variables = filled(model, (8, 8, 3))
  x = images((2, 8, 8, 3))

  def gap(x):
    _, state = model.apply(variables, x, mutable=['moments'])
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state['moments']))

  with jax.enable_x64(True):
    variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)
    x = x.astype(jnp.float64)
    gradient = jit(jax.grad(gap))(x)
    direction = np.random.default_rng(1).normal(size=x.shape)
    slope = [jit(gap)(x + step * direction) for step in (1e-6, -1e-6)]
    np.testing.assert_allclose((slope[0] - slope[1]) / 2e-6,
                               jnp.vdot(gradient, direction), rtol=1e-5)

  x = images((2, 8, 8, 3))
  _, state = jax.eval_shape(
      functools.partial(model.apply, train=True, mutable=['batch_stats']),
      filled(model, (8, 8, 3)), x)
  assert set(state) == {'batch_stats'}
  abstract = jax.eval_shape(model.init, jax.random.key(0), x)
  assert set(abstract) == {'params', 'batch_stats'}


def norm_variables(channels):
  return {
      'params': {'scale': jnp.linspace(0.5, 1.5, channels),
                 'bias': jnp.linspace(-1, 1, channels)},
      'batch_stats': {'mean': jnp.zeros(channels), 'var': jnp.ones(channels)},
  }


def test_batch_norm_keeps_precision_at_large_means():
  x = 1e3 + images((16, 4, 4, 2))
  norm = layers.BatchNorm()
  _, state = norm.apply(norm_variables(2), x, train=True, mutable=['moments'])
  np.testing.assert_allclose(
      state['moments']['var'], np.var(np.float64(x), (0, 1, 2)), rtol=1e-4)


def test_batch_norm_running_statistics():
  x = images((2, 3, 3, 4))
  norm = layers.BatchNorm()
  _, state = norm.apply(norm_variables(4), x, train=True,
                        mutable=['batch_stats'])
  values = np.asarray(x).reshape(-1, 4)
  np.testing.assert_allclose(state['batch_stats']['mean'],
                             0.1 * values.mean(0), rtol=1e-5)
  np.testing.assert_allclose(state['batch_stats']['var'],
                             0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)
  with pytest.raises(ValueError, match='more than one value per channel'):
    norm.apply(norm_variables(4), x[:1, :1, :1], train=True)


def test_batch_norm_synchronises_over_an_axis():
  x = images((8, 8, 8, 3)) * jnp.arange(1.0, 9).reshape(8, 1, 1, 1)
  labels = jnp.arange(8) % 5
  whole = tiny('cifar_resnet8')
  sharded = whole.clone(axis_name='data')

  def loss(params, stats, x, labels, model):
    logits, state = model.apply(
        {'params': params, 'batch_stats': stats}, x, train=True,
        mutable=['batch_stats'])
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(picked), (logits, state['batch_stats'])

  def step(params, stats, x, labels):
    grads, (logits, stats) = jax.grad(loss, has_aux=True)(
        params, stats, x, labels, sharded)
    return jax.lax.pmean(grads, 'data'), logits, stats

  with jax.enable_x64(True):
    variables = jax.tree.map(lambda v: v.astype(jnp.float64),
                             filled(whole, (8, 8, 3)))
    x = x.astype(jnp.float64)
    params, stats = variables['params'], variables['batch_stats']
    grads, (logits, new_stats) = jit(
        jax.grad(loss, has_aux=True), static_argnums=4)(
            params, stats, x, labels, whole)
    got_grads, got_logits, got_stats = jit(jax.vmap(
        step, in_axes=(None, None, 0, 0), axis_name='data'))(
            params, stats, x.reshape(4, -1, 8, 8, 3), labels.reshape(4, -1))
    np.testing.assert_allclose(got_logits.reshape(8, 5), logits, rtol=1e-9)
    for got, expected in ((got_grads, grads), (got_stats, new_stats)):
      jax.tree.map(lambda a, b: np.testing.assert_allclose(
          a, np.broadcast_to(b, a.shape), rtol=1e-8, atol=1e-10),
                   got, expected)


def test_sharded_moments_are_local():
  x = images((4, 4, 4, 2))
  norm = layers.BatchNorm(axis_name='data')

  def moments(x):
    _, state = norm.apply(norm_variables(2), x, train=True,
                          mutable=['moments'])
    return state['moments']['mean']

  got = jit(jax.vmap(moments, axis_name='data'))(x.reshape(2, 2, 4, 4, 2))
  np.testing.assert_allclose(
      got, np.asarray(x).reshape(2, -1, 2).mean(1), rtol=1e-5)


@pytest.mark.parametrize('padding', layers.PADDINGS)
@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('size', [(6, 5), (7, 8), (8, 8), (1, 1)])
def test_depthwise_forms_agree(size, strides, padding):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=(2, *size, 3)))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)))

    @functools.partial(jit, static_argnums=0)
    def run(form, x, kernel):
      out, pullback = jax.vjp(lambda x, k: form(x, k, strides, padding),
                              x, kernel)
      cotangent = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
      return out, *pullback(cotangent)

    for shifted, grouped in zip(
        run(layers.depthwise_shifted, x, kernel),
        run(layers.depthwise_grouped, x, kernel), strict=True):
      np.testing.assert_allclose(shifted, grouped, rtol=1e-12, atol=1e-12)


def test_convolution_pads_both_sides_at_stride_2():
  x = images((1, 6, 6, 2))
  kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)),
                       jnp.float32)
  conv = layers.Conv(4, 3, 2)
  out = conv.apply({'params': {'kernel': kernel}}, x)
  corner = np.einsum('ijc,ijcd->d', x[0, :2, :2], kernel[1:, 1:])
  np.testing.assert_allclose(out[0, 0, 0], corner, rtol=1e-5)
  same = jax.lax.conv_general_dilated(
      x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert out.shape == same.shape
  assert not np.allclose(out, same, atol=1e-2)
  np.testing.assert_array_equal(
      layers.Conv(4, 3, 2, 'same').apply({'params': {'kernel': kernel}}, x),
      same)


def test_upsample_repeats_pixels():
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(
      layers.upsample(x)[0, :, :, 0],
      [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])


def drawn(model, shape):
  draw = jit(lambda key: models.init_variables(model, key, shape))
  variables = draw(jax.random.key(0))
  stats = traverse_util.flatten_dict(variables['batch_stats'])
  for path, value in stats.items():
    np.testing.assert_array_equal(value, float(path[-1] == 'var'))
  return traverse_util.flatten_dict(variables['params'])


def test_students_start_as_in_pytorch():
  params = drawn(models.build('cifar_resnet8', 10), (8, 8, 3))
  fan_ins = {path[:-1]: np.prod(value.shape[:-1])
             for path, value in params.items() if path[-1] == 'kernel'}
  for path, value in params.items():
    if path[-1] == 'scale' or path[-1] == 'bias' and path[:-1] not in fan_ins:
      np.testing.assert_array_equal(value, float(path[-1] == 'scale'))
      continue
    bound = 1 / np.sqrt(fan_ins[path[:-1]])
    assert np.abs(value).max() <= bound
    assert np.abs(value).max() > bound * (1 - 5 / value.size)
    if value.size > 100:
      np.testing.assert_allclose(np.std(value), bound / np.sqrt(3), rtol=0.15)


def test_wide_resnet_starts_as_in_trades():
  params = drawn(models.build('wrn_10_1', 10), (8, 8, 3))
  for value in params.values():
    if value.ndim == 4:
      size, _, _, features = value.shape
      np.testing.assert_allclose(
          np.std(value), np.sqrt(2 / (size * size * features)), rtol=0.15)
      # Not truncated.
      assert value.size < 4000 or np.abs(value).max() > 3 * np.std(value)
  np.testing.assert_array_equal(params['fc', 'bias'], 0)
  assert np.abs(params['fc', 'kernel']).max() <= 1 / 8


def test_generator_start_and_range():
  model = models.Generator(side=8, channels=1, width=16)
  params = drawn(model, (50,))
  for path, value in params.items():
    if path[-1] == 'bias':
      np.testing.assert_array_equal(value, 0)
      continue
    centre = 1 if path[-1] == 'scale' else 0
    assert abs(np.mean(value) - centre) < 0.08 / np.sqrt(value.size)
    np.testing.assert_allclose(np.std(value), 0.02,
                               rtol=3 / np.sqrt(2 * value.size))
  variables = filled(model, (50,))
  run = jit(functools.partial(model.apply, mutable=['moments']))
  out, state = run(variables, images((3, 50)))
  assert out.shape == (3, 8, 8, 1)
  assert 0 < out.min() < out.max() < 1
  assert len(jax.tree.leaves(state['moments'])) == 6


@pytest.mark.parametrize(('arch', 'options', 'message'), [
    ('vgg16', {}, r"arch='vgg16'.*wrn_\{6n\+4\}.*mobilenet_v2"),
    ('wrn_35_10', {}, "arch='wrn_35_10'"),
    ('wrn_4_10', {}, "arch='wrn_4_10'"),
    ('cifar_resnet18', {}, r"arch='cifar_resnet18'.*cifar_resnet\{6n\+2\}"),
    ('resnet19', {}, "arch='resnet19'"),
    ('wrn_600004_10', {}, "arch='wrn_600004_10' to have at most 2,000 layers"),
    ('cifar_resnet60002', {}, 'to have at most 2,000 layers'),
    ('preact_resnet_1_1_99999_1', {}, 'or 1,000 blocks'),
    ('ra_wrn_9999_1_1', {}, 'or 1,000 blocks'),
    ('xcit_99999_4', {}, 'to have at most 2,000 layers'),
    ('resnet_2_0_1_1', {}, "arch='resnet_2_0_1_1'"),
    ('resnet18', {'activation': 'gelu'}, "'relu', 'silu'"),
    ('resnet18', {'padding': 'valid'}, "'both', 'same'"),
    ('dm_preact_resnet18', {'final_bn': True}, 'got final_bn'),
    ('resnet18', {'shortcut': 'conv'},
     'width, mean, std, standardise, axis_name, dtype, activation, padding, '
     'stem, pooling; got'),
    ('cifar_resnet8', {'shortcut': 'pad'}, "'conv', 'pad_both', 'pad_after'"),
    ('preact_resnet18', {'shortcut_input': 'x'}, "'preact', 'input'"),
    ('preact_resnet18', {'final_bn': 2}, 'final_bn=2'),
    ('mobilenet_v2', {'width': 6}, 'width=6 divisible by 4'),
    ('resnet18', {'width': 0}, 'width=0 > 0'),
    ('resnet18', {'mean': (0.5,)}, 'std=None together'),
    ('resnet18', {'mean': (0.5,), 'std': (0.0,)}, 'std=0.0 > 0'),
    ('resnet18', {'mean': (0.5,), 'std': (1, 1)}, 'same length'),
    ('resnet18', {'mean': (0.5,), 'std': (1,), 'standardise': True},
     'standardise=True not to be set beside'),
    ('resnet18', {'standardise': 1.5}, 'standardise=1.5'),
    ('ra_wrn_70_16', {'width': 6}, 'width=6 divisible by 4'),
    ('ra_wrn_1_0_1', {}, "arch='ra_wrn_1_0_1'"),
    ('ra_wrn_70_16', {'straight_through': True}, 'got straight_through'),
    ('meansparse_dm_wrn_70_16', {'straight_through': 'x'},
     "straight_through='x'"),
    ('meansparse_dm_wrn_70_16', {'sparse': False}, 'got sparse'),
    ('xcit_0_4', {}, "arch='xcit_0_4'"),
    ('xcit_s0', {}, "arch='xcit_s0'"),
    ('xcit_s12', {'patch': 3}, 'patch=3'),
    ('xcit_s12', {'activation': 'silu'}, 'got activation'),
    ('xcit_2_5', {}, 'width=24 to give 8 times .* 5 heads'),
])
def test_unusable_settings(arch, options, message):
  with pytest.raises(ValueError, match=message) as error:
    models.build(arch, 10, **options)
  assert '\n' not in str(error.value)


def test_unusable_calls():
  model = tiny('wrn_10_1')
  variables = filled(model, (8, 8, 3))
  x = images((1, 8, 8, 3))
  with pytest.raises(ValueError, match="'layer4'.*'block3', 'bn1', 'head'"):
    model.apply(variables, x, stop='layer4')
  with pytest.raises(ValueError, match="stop='conv1' not before start='bn1'"):
    model.apply(variables, x, start='bn1', stop='conv1')
  with pytest.raises(ValueError, match='floating-point images.*uint8'):
    model.apply(variables, x.astype(jnp.uint8))
  with pytest.raises(ValueError, match='each of the 3 channels'):
    model.clone(mean=(0.1, 0.2), std=(1.0, 1.0)).apply(variables, x)
  with pytest.raises(ValueError, match='side=30 divisible by 4'):
    models.Generator(30).init(jax.random.key(0), jnp.zeros((1, 3)))


def test_models_are_hashable_and_equal_by_value():
  options = {'width': 8, 'mean': [0.1, 0.2, 0.3], 'std': np.ones(3)}
  first, second = (models.build('resnet18', 10, **options) for _ in range(2))
  assert first == second
  assert hash(first) == hash(second)
  assert first != first.clone(axis_name='data')


def test_standardised_images():
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(3, 5, 4, 2))
  x[1] = 0.3  # Of one colour: divided by 1 / sqrt(n).
  x[2] = 0.3 + 1e-4 * x[2]
  count = x[0].size
  expected = [(image - image.mean()) / max(image.std(ddof=1), count ** -0.5)
              for image in x]
  with jax.enable_x64(True):
    found = staged.standardised(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    gradient = jax.grad(lambda x: jnp.sum(staged.standardised(x)[..., 0]))(
        jnp.asarray(x))
  assert np.isfinite(gradient).all()
  # A network does so before anything else, whatever the contrast.
  model = models.build('wrn_10_1', 5, width=4, standardise=True)
  variables = filled(model, (8, 8, 2))
  bright = images((2, 8, 8, 2))
  np.testing.assert_allclose(model.apply(variables, bright),
                             model.apply(variables, 0.5 * bright + 0.2),
                             rtol=1e-4, atol=1e-4)
