"""Tests of ferd_jax.loading."""

import importlib.util
import pathlib

import jax
import lenet
import numpy as np
import pytest

from ferd_jax import data
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import forward
from ferd_jax.weights import loading
from ferd_jax.weights import native

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
SHAPE = (8, 8, 3)
SAID = {'activation': 'relu', 'padding': 'both', 'mean': (0,), 'std': (1,)}


def weights(arch, seed=0, **options):
  """Returns a model and a state dict drawn for it."""
  model = models.build(arch, 5, **options)
  rng = np.random.default_rng(seed)
  return model, {
      key: rng.uniform(0.5, 1.5, shape).astype(np.float32)
      for key, shape in torch_io.torch_shapes(model, SHAPE).items()
      if not key.endswith('tracked')}


def written(path, state_dict):
  torch_io.write_state_dict(path, state_dict)
  return path


def assert_same(loaded, model, state_dict):
  assert loaded.model == model
  expected = torch_io.variables_from_state_dict(model, state_dict, SHAPE)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected)


@pytest.mark.parametrize(('arch', 'options', 'said'), [
    ('wrn_10_2', {'width': 4}, {}),
    ('dm_wrn_10_1', {}, {'activation': 'silu', 'padding': 'same'}),
    ('preact_resnet_1_1_1_1',
     {'width': 4, 'shortcut_input': 'input', 'final_bn': False},
     {'shortcut_input': 'input'}),
    ('cifar_resnet8', {'width': 2, 'shortcut': 'pad_after'},
     {'shortcut': 'pad_after'}),
    ('ra_wrn_1_2_1', {'width': 4}, {'activation': 'silu', 'padding': 'same'}),
    ('meansparse_dm_wrn_10_1', {'width': 4, 'straight_through': True},
     {'activation': 'silu', 'padding': 'same', 'straight_through': True}),
    ('meansparse_ra_wrn_1_1_1', {'width': 4},
     {'activation': 'silu', 'padding': 'same'}),
    ('cifar_resnet8', {'width': 2, 'shortcut': 'conv', 'mean': (.1, .2, .3),
                       'std': (.5, .5, .5), 'activation': 'silu'},
     {'mean': (.1, .2, .3), 'std': (.5, .5, .5), 'activation': 'silu'}),
])
def test_recognised_with_what_is_said(tmp_path, arch, options, said):
  model, state_dict = weights(arch, **options)
  path = written(tmp_path / 'net.pt', state_dict)
  loaded = loading.load(path, options=SAID | said)
  assert_same(loaded, model, state_dict)
  assert str(loaded).startswith(arch) and '5 classes, keys of' in str(loaded)
  with pytest.raises(ValueError, match="not reveal activation"):
    loading.load(path)
  with pytest.raises(ValueError, match=r'std \(0 and 1 for no normalisation'):
    loading.load(path, options={name: value for name, value in (
        SAID | said).items() if name != 'std'})


def test_recognised_transformers_and_normalisation(tmp_path):
  model, state_dict = weights('xcit_2_4', width=2, patch=2)
  path = written(tmp_path / 'net.pt', state_dict)
  said = {'mean': (0,), 'std': (1,), 'patch': 2}
  assert_same(loading.load(path, options=said), model, state_dict)
  # A file of a run: everything of it once more.
  loaded = loading.load(path, options=said)
  native.write(tmp_path / 'net.npz', loaded.network, loaded.variables)
  assert loading.load(tmp_path / 'net.npz').model == model
  with pytest.raises(ValueError, match=r'not reveal patch \(1 or 2 .*patch=4'):
    loading.load(path, options={'mean': (0,), 'std': (1,)})
  with pytest.raises(ValueError, match='options of .xcit_2_4.*got activation'):
    loading.load(path, options=said | {'activation': 'relu'})
  # What has other strides has other keys.
  state_dict = {key: value for key, value in state_dict.items()
                if not key.startswith('patch_embed.proj.6')}
  with pytest.raises(ValueError, match='three convolutions'):
    loading.load(written(tmp_path / 'p8.pt', state_dict), options=said)
  # Each image by its own mean and deviation is a normalisation.
  model, state_dict = weights('wrn_10_1', width=4, standardise=True)
  path = written(tmp_path / 'net.pt', state_dict)
  said = {'activation': 'relu', 'padding': 'both', 'standardise': True}
  assert_same(loading.load(path, options=said), model, state_dict)
  with pytest.raises(ValueError, match='or standardise'):
    loading.load(path, options=said | {'standardise': None})


def test_statistics_of_mean_sparse_are_checked(tmp_path):
  _, state_dict = weights('meansparse_dm_wrn_10_1', width=4)
  key = 'layer.0.block.0.meansparse_0.running_var'
  state_dict[key] = -state_dict[key]
  path = written(tmp_path / 'net.pt', state_dict)
  with pytest.raises(ValueError, match=f'at least 0; negative: {key}'):
    loading.load(path, options=SAID)


def test_nothing_is_guessed_though_an_architecture_is_named(tmp_path):
  model, state_dict = weights('cifar_resnet8', width=2, shortcut='pad_after')
  path = written(tmp_path / 'net.pt', state_dict)
  with pytest.raises(ValueError, match="not reveal shortcut .*'pad_after'.; "
                                       "wrong.*has shortcut='pad_after'"):
    loading.load(path, arch='cifar_resnet8', options={'width': 2})
  loaded = loading.load(path, arch='cifar_resnet8',
                        options={'width': 2, 'shortcut': 'pad_after'})
  assert_same(loaded, model, state_dict)
  _, state_dict = weights('preact_resnet_1_1_1_1', width=4)
  path = written(tmp_path / 'preact.pt', state_dict)
  with pytest.raises(ValueError, match='reveal shortcut_input'):
    loading.load(path, arch='preact_resnet_1_1_1_1', options={'width': 4})


def test_registered_networks_are_loaded_by_name(tmp_path, monkeypatch):
  lenet.register(monkeypatch)
  net = lenet.torch_lenet5()
  path = written(tmp_path / 'net.pt', lenet.arrays(net))
  said = dict(arch='lenet5', num_classes=10)
  for more in ({'image_shape': (28, 28, 1)},
               {'image_shape': [28, 28], 'channels': 1}):
    loaded = loading.load(path, **said, **more)
    assert loaded.network == native.Network('lenet5', 1, 10, {}, lenet.SHAPE)
    assert loaded.definition == lenet.LAYOUT.definition
    x = lenet.images(3)
    np.testing.assert_allclose(
        forward.logits(loaded.model, loaded.variables, x),
        lenet.torch_logits(net, x), rtol=0, atol=1e-5)
  # Its own file says all, and a shape that is said has to fit.
  native.write(tmp_path / 'net.npz', loaded.network, loaded.variables)
  for kwargs in ({}, {'image_shape': lenet.SHAPE}):
    again = loading.load(tmp_path / 'net.npz', **kwargs)
    assert again.network == loaded.network
    jax.tree.map(np.testing.assert_array_equal, again.variables,
                 loaded.variables)
  with pytest.raises(ValueError, match='images of 28x28 pixels, 32x32 were'):
    loading.load(tmp_path / 'net.npz', image_shape=(32, 32, 1))
  for kwargs, message in [
      (said | {'channels': 1}, r'another shape than image_shape=\(32, 32, 1\)'),
      (said, 'num_classes=10 and channels=None to be said'),
      ({'num_classes': 10}, 'models.register knows is not recognised'),
      (said | {'arch': 'lenet'}, "arch='lenet' .* lenet5; any other has to be"),
      (said | {'image_shape': (28,)}, r'\(28,\) to be \(H, W, C\)'),
      (said | {'image_shape': (28, 0)}, 'image_shape=0'),
      (said | {'image_shape': lenet.SHAPE, 'channels': 3}, 'channels=3'),
      (said | {'image_shape': lenet.SHAPE, 'options': {'final_bn': True}},
       'among width, mean, std; got final_bn'),
  ]:
    with pytest.raises(ValueError, match=message) as error:
      loading.load(path, **kwargs)
    assert '\n' not in str(error.value)


def test_options_of_registered_networks_need_not_be_fields(tmp_path,
                                                           monkeypatch):
  lenet.forget(monkeypatch)
  models.register('scaled', lambda num_classes, factor: lenet.LeNet5(
      num_classes, width=2 * factor), options=('factor',))
  network = native.Network('scaled', 1, 3, {'factor': 2}, lenet.SHAPE)
  variables = models.init_variables(network.build(), jax.random.key(0),
                                    lenet.SHAPE)
  native.write(tmp_path / 'net.npz', network, variables)
  assert loading.load(tmp_path / 'net.npz', options={'factor': 2}).network == (
      network)
  with pytest.raises(ValueError, match='factor=3 to be what .* has, 2'):
    loading.load(tmp_path / 'net.npz', options={'factor': 3})


def test_sizes_that_change_no_weight(tmp_path):
  model, state_dict = weights('wrn_10_1', width=4)
  path = written(tmp_path / 'net.pt', state_dict)
  loaded = loading.load(path, options=SAID, image_shape=(64, 48, 3))
  assert loaded.network.input_shape == (64, 48, 3)
  native.write(tmp_path / 'net.npz', loaded.network, loaded.variables)
  again = loading.load(tmp_path / 'net.npz', image_shape=(32, 32, 3))
  assert again.network == loaded.network and again.model == loaded.model
  with pytest.raises(ValueError, match='have 3 channels, channels=1 was'):
    loading.load(path, options=SAID, image_shape=(28, 28, 1))


def test_contradictions(tmp_path):
  _, state_dict = weights('wrn_10_2', width=4)
  path = written(tmp_path / 'net.pt', state_dict)
  for kwargs, message in [
      (dict(options=SAID | {'width': 8}), 'width=8 to be what.*have, 4'),
      (dict(options=SAID, num_classes=10), 'have 5 classes, num_classes=10'),
      (dict(options=SAID, channels=1), 'have 3 channels, channels=1 was'),
      (dict(arch='wrn_16_2'), 'keys are those of wrn_10_2, width=4, 5 classes'),
      (dict(options=SAID | {'shortcut': 'conv'}), 'shortcut'),
      (dict(select='ema'), "select='ema'"),
  ]:
    with pytest.raises(ValueError, match=message) as error:
      loading.load(path, **kwargs)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
  with pytest.raises(FileNotFoundError, match='nothing.pt'):
    loading.load(tmp_path / 'nothing.pt')


def test_buffers_of_a_normalising_layer_are_used(tmp_path):
  model, state_dict = weights('wrn_10_1', width=4, mean=(.5, .4, .3),
                              std=(.2, .2, .25))
  buffers = {'mu': np.float32([.5, .4, .3]).reshape(1, 3, 1, 1),
             'sigma': np.float32([.2, .2, .25]).reshape(1, 3, 1, 1)}
  path = written(tmp_path / 'net.pt', state_dict | buffers)
  said = {'activation': 'relu', 'padding': 'both'}
  for kwargs in ({'options': said},
                 {'arch': 'wrn_10_1', 'options': {'width': 4}}):
    loaded = loading.load(path, **kwargs)
    np.testing.assert_allclose(loaded.model.mean, model.mean, atol=1e-7)
    np.testing.assert_allclose(loaded.model.std, model.std, atol=1e-7)
  with pytest.raises(ValueError, match='of the model to equal mu'):
    loading.load(path, options=SAID)
  only = written(tmp_path / 'mean.pt', state_dict | {'mu': buffers['mu']})
  assert loading.load(only, options=said).model.std == (1., 1., 1.)
  # Of other names a person says what they are, whether or not the
  # architecture is named.
  other = {f'1.{key}': value for key, value in state_dict.items()} | {
      '0.shift': buffers['mu'].ravel(), '0.factor': buffers['sigma'].ravel()}
  path = written(tmp_path / 'other.pt', other)
  for kwargs in ({'options': said},
                 {'arch': 'wrn_10_1', 'options': {'width': 4}}):
    with pytest.raises(ValueError, match='0.shift, 0.factor may normalise'):
      loading.load(path, **kwargs)
    loaded = loading.load(path, normaliser='0.shift,0.factor', **kwargs)
    np.testing.assert_allclose(loaded.model.mean, model.mean, atol=1e-7)
  assert loading.load(path, options=SAID).model.mean is None


def test_native_files_say_all(tmp_path):
  options = {'width': 4, 'mean': (.5,), 'std': (.25,), 'activation': 'silu'}
  model, state_dict = weights('wrn_10_1', **options)
  variables = torch_io.variables_from_state_dict(model, state_dict, SHAPE)
  path = tmp_path / 'net.npz'
  native.write(path, native.Network('wrn_10_1', 3, 5, options), variables)
  loaded = loading.load(path)
  assert loaded.model == model
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
  assert loading.load(path, options={'activation': 'silu'}).model == model
  for kwargs, message in [
      (dict(options={'activation': 'relu'}), "activation='relu'.*'silu'"),
      (dict(arch='wrn_16_1'), "arch='wrn_16_1'.*'wrn_10_1'"),
      (dict(select='ema'), "no select='ema'"),
      (dict(num_classes=10), 'have 5 classes, num_classes=10 was')]:
    with pytest.raises(ValueError, match=message):
      loading.load(path, **kwargs)
  generator = models.Generator(side=8, channels=3, width=4)
  native.write(tmp_path / 'g.npz', native.Network(
      'generator', 3, None, {'side': 8, 'width': 4, 'nz': 5}),
               models.init_variables(generator, jax.random.key(0), (5,)))
  with pytest.raises(ValueError, match='it is a generator'):
    loading.load(tmp_path / 'g.npz')


@pytest.mark.parametrize(('accuracy', 'count', 'classes', 'published', 'bad'), [
    (0.8521, 10_000, 10, 0.8521, False),
    (0.8535, 10_000, 10, 0.8521, False),
    (0.8320, 10_000, 10, 0.8521, True),  # Another padding, for example.
    (0.8320, 200, 10, 0.8521, False),  # 30 more or less say little.
    (0.70, 200, 10, 0.8521, True),
    (0.95, 1000, 10, 0.8521, True),  # Better than published: other images.
    (0.10, 1000, 10, None, True),
    (0.50, 1000, 10, None, True),
    (0.60, 1000, 10, None, False),
    (0.50, 10, 10, None, False),
    (0.54, 10_000, 100, None, False),
    (0.20, 10_000, 100, None, True),
    (0.45, 10_000, 200, None, False),
])
def test_implausible_teachers(accuracy, count, classes, published, bad):
  doubt = loading.implausible(accuracy, count, classes, published)
  assert (doubt is not None) == bad
  if bad:
    assert f'{accuracy:.2%} on {count} images' in doubt
    assert (f'{published:.2%}' if published else 'a usable teacher') in doubt


def _published(name):
  """Returns the path of a published file, or skips."""
  path = SHARED / 'teachers' / name
  if name == 'model_test.pt':
    spec = importlib.util.find_spec('pyautoattack')
    if spec is not None:
      path = pathlib.Path(spec.origin).parent / 'examples' / name
  if not path.exists():
    # They have no licence to be copied here, and nobody has to have them.
    pytest.skip(f'needs the published {name}')
  return path


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'said', 'hits'), [
    ('CIFAR10-resnet20-adv.pth', {'shortcut': 'pad_after'}, 8803),
    ('resnet20-12fca82f.th', {
        'shortcut': 'pad_both', 'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225)}, 9173),
    ('model_test.pt', {}, 9422),
])
def test_published_files_predict_as_in_pytorch_to_the_image(name, said, hits):
  torch = pytest.importorskip('torch')
  from ferd_jax import torch_twins
  path = _published(name)
  if not (SHARED / 'tfds').exists():
    pytest.skip('needs CIFAR-10 in the directory of TFDS')
  examples = data.load('cifar10', 'test', data_dir=str(SHARED / 'tfds'))
  loaded = loading.load(path, options=SAID | said)
  net = torch_twins.twin(loaded.model).eval()
  stored = torch.load(path, map_location='cpu', weights_only=True)
  stored = stored.get('state_dict', stored)
  missing, unexpected = net.load_state_dict(
      {key.removeprefix('module.'): value for key, value in stored.items()},
      strict=False)
  assert not unexpected and all(key.endswith('tracked') for key in missing)
  logits_fn = jax.jit(forward.logits, static_argnums=0)
  ours, theirs = [], []
  for first in range(0, len(examples.labels), 100):
    images = examples.images[first:first + 100].astype(np.float32) / 255
    ours.append(np.argmax(
        logits_fn(loaded.model, loaded.variables, images), -1))
    with torch.no_grad():
      theirs.append(net(torch.from_numpy(images).permute(0, 3, 1, 2))
                    .argmax(-1).numpy())
  ours, theirs = np.concatenate(ours), np.concatenate(theirs)
  right = int(np.sum(ours == examples.labels))
  print(f'{name}: {right} right, {int(np.sum(ours != theirs))} differ')
  np.testing.assert_array_equal(ours, theirs)
  assert right == hits
  # What keys do not reveal matters, and shows as an implausible accuracy.
  if name == 'CIFAR10-resnet20-adv.pth':
    for wrong in ({'shortcut': 'pad_both'}, {'activation': 'silu'},
                  {'padding': 'same'}, {'mean': (0.5,), 'std': (0.25,)}):
      other = loading.load(path, options=SAID | said | wrong)
      found = np.argmax(logits_fn(
          other.model, other.variables,
          examples.images[:1000].astype(np.float32) / 255), -1)
      accuracy = float(np.mean(found == examples.labels[:1000]))
      print(f'{wrong}: {accuracy:.1%}',
            loading.implausible(accuracy, 1000, 10, 0.8803) is not None,
            loading.implausible(accuracy, 1000, 10) is not None)
      assert loading.implausible(accuracy, 1000, 10, 0.8803)


def test_widths_that_differ_are_named(tmp_path):
  _, state_dict = weights('cifar_resnet8', width=2, shortcut='pad_after')
  torch_io.write_state_dict(tmp_path / 'net.pt', state_dict)
  with pytest.raises(ValueError, match='of cifar_resnet8, width=2, .*misshap'):
    loading.load(tmp_path / 'net.pt', arch='cifar_resnet8',
                 options={'shortcut': 'pad_after', 'width': 4})


TORCHVISION = {'7x7/2-max': ('resnet_1_1_1_1', '7x7/2', 'max'),
               '3x3-max': ('resnet_1_1_1_1', '3x3', 'max'),
               '3x3/2': ('resnet_1_1_1_1', '3x3/2', 'none'),
               'bottleneck': ('resnet_bottleneck_1_1_1_1', '7x7/2', 'max')}


@pytest.mark.parametrize('case', TORCHVISION)
def test_torchvisions_names_with_stem_and_pooling(tmp_path, case):
  arch, stem, pooling = TORCHVISION[case]
  said = {'stem': stem, 'pooling': pooling}
  model, state_dict = weights(arch, width=4, **said)
  state_dict = {key: value for key, value in state_dict.items()}
  assert 'layer2.0.downsample.1.running_var' in state_dict
  assert 'fc.weight' in state_dict
  path = written(tmp_path / 'net.pt', state_dict)
  assert_same(loading.load(path, options=SAID | said), model, state_dict)
  named = loading.load(path, arch=arch, options={'width': 4} | said)
  assert_same(named, model, state_dict)
  # Nothing of it is guessed, whoever names the architecture.
  for kwargs in ({'options': SAID | {'stem': stem}},
                 {'arch': arch, 'options': {'width': 4, 'stem': stem}}):
    with pytest.raises(ValueError, match="reveal pooling .'none' or 'max'"):
      loading.load(path, **kwargs)
  with pytest.raises(ValueError, match="reveal stem .'[37]x"):
    loading.load(path, options=SAID | {'pooling': pooling})
  native.write(tmp_path / 'net.npz', named.network, named.variables)
  assert loading.load(tmp_path / 'net.npz').model == named.model


@pytest.mark.parametrize('stem', ['3x3/2', '7x7', '7x7/2'])
def test_stems_and_pooling_compute_as_in_pytorch(stem):
  torch = pytest.importorskip('torch')
  from ferd_jax import torch_twins
  x = np.random.default_rng(0).uniform(size=(2, 17, 12, 3)).astype(np.float32)
  for pooling in ('none', 'max'):
    model = models.build('resnet_1_1_1_1', 5, width=4, stem=stem,
                         pooling=pooling)
    net = torch_twins.randomise(torch_twins.twin(model))
    state_dict = {key: value.numpy() for key, value in net.state_dict().items()}
    variables = torch_io.variables_from_state_dict(model, state_dict,
                                                   (17, 12, 3))
    with torch.no_grad():
      expected = net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(forward.logits(model, variables, x), expected,
                               rtol=0, atol=1e-5 * np.abs(expected).max())
    assert ('no max-pooling' in torch_io.definition(model)) == (
        pooling == 'none')


@pytest.mark.parametrize(('change', 'message'), [
    ({'conv1.0.weight': (4, 3, 3, 3)}, 'deep stem'),
    ({'conv1.weight': (4, 3, 5, 5)}, 'first convolution of 5x5'),
    ({'layer2.0.downsample.1.weight': (8, 4, 1, 1)}, 'shortcuts average'),
    ({'layer1.0.se.fc1.weight': (2, 4)}, 'SE-ResNet'),
    ({'features.0.weight': (4, 3, 3, 3)}, 'VGG'),
    ({'cls_token': (1, 1, 4)}, 'Vision Transformer'),
    ({'layer1.0.conv3.weight': (16, 4, 1, 1),
      'layer1.0.conv2.weight': (8, 8, 3, 3)}, 'wide_resnet50_2'),
    ({'layer1.0.conv3.weight': (16, 4, 1, 1),
      'layer1.0.conv2.weight': (8, 2, 3, 3)}, 'ResNeXt of 4 groups'),
])
def test_others_are_refused_as_what_they_are(tmp_path, change, message):
  _, state_dict = weights('resnet_1_1_1_1', width=4, pooling='max')
  path = written(tmp_path / 'net.pt', state_dict | {
      key: np.ones(shape, np.float32) for key, shape in change.items()})
  with pytest.raises(ValueError, match=message) as error:
    loading.load(path, options=SAID)
  assert '\n' not in str(error.value)


def test_what_is_left_out_is_said(tmp_path):
  torch = pytest.importorskip('torch')
  _, state_dict = weights('cifar_resnet8', width=2)
  tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
  options = SAID | {'shortcut': 'pad_both'}
  path = tmp_path / 'net.pt'
  torch.save({'state_dict': tensors | {'epoch': 3}}, path)
  assert str(loading.load(path, options=options)).endswith(
      '(found at state_dict; left out: epoch (int))')
  torch.save(tensors | {'conv1.weight': torch.ones(2).to_sparse()}, path)
  with pytest.raises(ValueError, match='there is layer3.*conv1.weight.*In the '
                                       'file: .*conv1.weight.*to_dense'):
    loading.load(path, options=options)
