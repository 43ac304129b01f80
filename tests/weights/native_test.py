"""Tests of ferd_jax.native."""

import json

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import lenet
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax.weights import native

NETWORK = native.Network('wrn_10_1', 1, 3, {
    'width': 4, 'mean': (0.5,), 'std': (0.25,), 'activation': 'silu'})
GENERATOR = native.Network('generator', 1, None,
                           {'side': 8, 'width': 4, 'nz': 5})


def drawn(network, seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda key: models.init_variables(
      network.build(), key, network.input_shape), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: (abs if 'var' in str(path[-1]) else np.asarray)(
          rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize('network', [NETWORK, GENERATOR],
                         ids=lambda network: network.arch)
@pytest.mark.parametrize('name', ['net.npz', 'net'])
def test_round_trip(tmp_path, network, name):
  path, variables = tmp_path / name, drawn(network)
  native.write(path, network, drawn(network, seed=1))
  native.write(path, network, variables)  # Replaces what is there.
  assert native.is_native(path)
  found, again = native.read(path)
  assert found == network and found.build() == network.build()
  assert jax.tree.structure(again) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  assert sorted(p.name for p in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize('name', ['net.npz', 'net'])
def test_registered_networks(tmp_path, monkeypatch, name):
  lenet.register(monkeypatch)
  path = tmp_path / name
  network = native.Network('lenet5', 1, 4, {'width': 3}, lenet.SHAPE)
  variables = drawn(network)
  assert set(variables) == {'params', 'batch_stats'}
  native.write(path, network, variables)
  found, again = native.read(path)
  assert found == network and found.build() == lenet.LeNet5(4, width=3)
  assert found.input_shape == lenet.SHAPE
  assert jax.tree.structure(again) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  lenet.forget(monkeypatch)
  with pytest.raises(ValueError, match=f"{name}: Expected arch='lenet5' .* "
                     'has to be registered first'):
    native.read(path)


class Counting(nn.Module):
  """Flax's BatchNorm, a number in a collection of its own, nested options."""
  num_classes: int
  widths: tuple

  @nn.compact
  def __call__(self, x, train):
    count = self.variable('counts', 'seen', lambda: jnp.asarray(0, jnp.int32))
    for width in (width for widths in self.widths for width in widths):
      x = nn.Conv(width, (1, 1))(x)
    x = nn.BatchNorm(use_running_average=not train)(x).mean((1, 2))
    return nn.Dense(self.num_classes)(x) + count.value


@pytest.mark.parametrize('name', ['net.npz', 'net'])
def test_collections_of_any_name(tmp_path, monkeypatch, name):
  lenet.forget(monkeypatch)
  models.register('counting', Counting, options=('widths',))
  network = native.Network('counting', 2, 3, {'widths': ((2, 3), (4,))})
  variables = models.init_variables(network.build(), jax.random.key(0),
                                    network.input_shape)
  variables['counts']['seen'] = jnp.asarray(5, jnp.int32)
  native.write(tmp_path / name, network, variables)
  found, again = native.read(tmp_path / name)
  assert found == network and hash(found.build()) == hash(network.build())
  assert set(again) == {'params', 'batch_stats', 'counts'}
  assert again['counts']['seen'].dtype == np.int32
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_shapes_of_images():
  usual = native.Network('wrn_10_1', 3, 10)
  assert usual.input_shape == (32, 32, 3)
  assert native.Network('wrn_10_1', 3, 10, {}, [32, 32, 3]) == usual
  assert 'image_shape' not in usual.json_values()
  other = native.Network('wrn_10_1', 3, 10, image_shape=[64, 48, 3])
  assert other != usual and other.input_shape == (64, 48, 3)
  assert other.json_values()['image_shape'] == [64, 48, 3]
  assert str(other) == 'wrn_10_1, 10 classes, images of 64x48 pixels'
  for network, message in [
      (('wrn_10_1', 3, 10, {}, (28, 28)), r'to be \(H, W, 3\)'),
      (('wrn_10_1', 3, 10, {}, (28, 28, 1)), 'for channels=3'),
      (('generator', 3, None, {}, (8, 8, 3)), 'None for a generator')]:
    with pytest.raises(ValueError, match=message):
      native.Network(*network)


def test_what_is_in_an_npz(tmp_path):
  native.write(tmp_path / 'net.npz', NETWORK, drawn(NETWORK))
  with np.load(tmp_path / 'net.npz', allow_pickle=False) as arrays:
    assert arrays['params/conv1/kernel'].shape == (3, 3, 1, 4)
    network = json.loads(str(arrays['network.json']))
    assert network['arch'] == 'wrn_10_1' and 'image_shape' not in network


def test_what_is_no_network(tmp_path):
  np.savez(tmp_path / 'other.npz', x=np.zeros(3))
  (tmp_path / 'text.npz').write_text('hello')
  (tmp_path / 'directory').mkdir()
  for name in ('other.npz', 'text.npz', 'directory'):
    assert not native.is_native(tmp_path / name)
    with pytest.raises(ValueError, match=f'{name}: it holds no network.json'):
      native.read(tmp_path / name)
  assert not native.is_native(tmp_path / 'nothing')
  with pytest.raises(FileNotFoundError, match='nothing'):
    native.read(tmp_path / 'nothing')
  with pytest.raises(ValueError, match='Expected a new directory'):
    native.write(tmp_path / 'directory', NETWORK, drawn(NETWORK))


def test_damaged_networks(tmp_path):
  path = tmp_path / 'net.npz'
  native.write(path, NETWORK, drawn(NETWORK))
  with np.load(path) as arrays:
    flat = dict(arrays)
  for change in ({'params/conv1/kernel': np.zeros((3, 3, 1, 5))},
                 {'params/more': np.zeros(2)},
                 {'network.json': np.array('{"arch": "vgg"}')}):
    np.savez(path, **flat | change)
    with pytest.raises(ValueError, match='net.npz, which may be damaged'):
      native.read(path)
  directory = tmp_path / 'net'
  native.write(directory, NETWORK, drawn(NETWORK))
  text = (directory / 'network.json').read_text()
  (directory / 'network.json').write_text(text.replace('_10_1', '_16_1'))
  with pytest.raises(ValueError, match='which may be damaged'):
    native.read(directory)


@pytest.mark.parametrize('name', ['net.npz', 'net'])
@pytest.mark.parametrize(('change', 'message'), [
    ({'params/conv1/kernel': np.nan}, 'not finite: params/conv1/kernel'),
    ({'params/fc/bias': np.inf}, 'not finite: params/fc/bias'),
    ({'batch_stats/bn1/var': -1}, r'negative: batch_stats/bn1/var \(-1\)'),
])
def test_values_are_checked_as_those_of_others(tmp_path, name, change, message):
  variables = traverse_util.flatten_dict(drawn(NETWORK), sep='/')
  for key, value in change.items():
    variables[key].flat[0] = value
  native.write(tmp_path / name, NETWORK,
               traverse_util.unflatten_dict(variables, sep='/'))
  with pytest.raises(ValueError, match=message) as error:
    native.read(tmp_path / name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('dtype', [np.complex64, 'U3', 'S3', np.float64])
def test_types_are_checked_as_those_of_others(tmp_path, dtype):
  variables = drawn(NETWORK)
  variables['params']['fc']['bias'] = np.ones(3).astype(dtype)
  native.write(tmp_path / 'net.npz', NETWORK, variables)
  if dtype == np.float64:
    _, again = native.read(tmp_path / 'net.npz')
    assert again['params']['fc']['bias'].dtype == np.float32
  else:
    with pytest.raises(ValueError, match='real numbers; .*params/fc/bias'):
      native.read(tmp_path / 'net.npz')


@pytest.mark.parametrize('change', [
    {'arch': 'cifar_resnet60002'}, {'arch': 'wrn_60004_1'},
    {'arch': 'resnet_1_1_1_99999', 'options': {}}, {'arch': 5},
    {'options': {'axis_name': 'x'}}, {'channels': '3'}, {'more': 1},
    {'num_classes': 10 ** 12}, {'options': [1]}])
def test_descriptions_of_what_the_arrays_are_not(tmp_path, change):
  path = tmp_path / 'net.npz'
  native.write(path, NETWORK, drawn(NETWORK))
  with np.load(path) as arrays:
    flat = dict(arrays)
  values = NETWORK.json_values() | change
  np.savez(path, **flat | {'network.json': np.array(json.dumps(values))})
  with pytest.raises(ValueError, match='Cannot read .*net.npz') as error:
    native.read(path)
  assert '\n' not in str(error.value)
