"""Tests of ferd_jax.torch_io.mapping on networks from outside."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import lenet
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import forward


class Mixed(nn.Module):
  """Kernels of all ranks, and variables that are no kernels."""

  @nn.compact
  def __call__(self, x, deterministic=True):
    token = self.param('token', nn.initializers.normal(), (2, 3))
    count = self.variable('counts', 'seen', lambda: jnp.asarray(7, jnp.int32))
    line = nn.Conv(4, (3,), name='line')(x.mean(1))
    x = nn.Conv(3, (1, 1), use_bias=False, name='point')(x)
    x = nn.BatchNorm(use_running_average=deterministic, name='norm')(x)
    table = nn.Embed(5, 3, name='table')(jnp.arange(2))
    x = x.mean((1, 2)) + (token + table).sum(0)[None] + count.value
    return nn.Dense(2, name='fc')(x) + line.mean()


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
  lenet.register(monkeypatch)


def test_a_registered_layout_reads_and_writes_pytorch(tmp_path):
  net = lenet.torch_lenet5()
  model, state_dict = models.build('lenet5', 10), lenet.arrays(net)
  assert torch_io.torch_shapes(model, lenet.SHAPE) == {
      key: value.shape for key, value in state_dict.items()}
  variables = torch_io.variables_from_state_dict(model, state_dict, lenet.SHAPE)
  assert set(variables) == {'params', 'batch_stats'}
  assert variables['batch_stats'] == {}
  x = lenet.images(8)
  expected = lenet.torch_logits(net, x)
  np.testing.assert_allclose(forward.logits(model, variables, x), expected,
                             rtol=0, atol=1e-5)
  torch_io.write_state_dict(
      tmp_path / 'net.pt', torch_io.state_dict_from_variables(model, variables))
  import torch
  with torch.no_grad():
    for parameter in net.parameters():
      parameter.zero_()
  net.load_state_dict(torch.load(tmp_path / 'net.pt', weights_only=True),
                      strict=True)
  np.testing.assert_array_equal(lenet.torch_logits(net, x), expected)
  again = torch_io.load_variables(tmp_path / 'net.pt', model, lenet.SHAPE)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_images_of_another_shape_are_named():
  model = models.build('lenet5', 10)
  shapes = torch_io.torch_shapes(model, lenet.SHAPE)
  with pytest.raises(ValueError, match=r'another shape than image_shape='
                     r'\(32, 32, 1\). Keys misshaped: classifier.0.weight'):
    torch_io.variables_from_state_dict(
        model, {key: np.zeros(shape) for key, shape in shapes.items()},
        (32, 32, 1))


def test_modules_without_a_layout_keep_their_names():
  model = Mixed()
  variables = models.init_variables(model, jax.random.key(0), (4, 4, 1))
  state_dict = torch_io.state_dict_from_variables(model, variables)
  assert {key: value.shape for key, value in state_dict.items()} == {
      'token': (2, 3), 'seen': (), 'line.weight': (4, 1, 3), 'line.bias': (4,),
      'point.weight': (3, 1, 1, 1), 'table.weight': (5, 3),
      'fc.weight': (2, 3), 'fc.bias': (2,), 'norm.weight': (3,),
      'norm.bias': (3,), 'norm.running_mean': (3,), 'norm.running_var': (3,),
      'norm.num_batches_tracked': ()}
  kernel = variables['params']['line']['kernel']
  np.testing.assert_array_equal(state_dict['line.weight'],
                                np.transpose(kernel, (2, 1, 0)))
  again = torch_io.variables_from_state_dict(model, state_dict, (4, 4, 1))
  assert again['counts']['seen'].dtype == np.int32
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_layout_that_merges_names(monkeypatch):
  lenet.forget(monkeypatch)
  models.register('merged', lenet.LeNet5, layout=torch_io.Layout(
      'nowhere', ((r'^fc\d$', 'fc'),)))
  with pytest.raises(ValueError, match='params/fc1/.* and params/fc2/.* both '
                     'fc.* by the layout of nowhere'):
    torch_io.torch_shapes(models.build('merged', 10), lenet.SHAPE)
