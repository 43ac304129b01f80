"""The networks in JAX alone compute what the Flax modules do."""

import json

from flax import traverse_util
import jax
import numpy as np
import pytest

from ferd_jax import jax_networks
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import forward
from ferd_jax.models import resnet

_CASES = [
    ('wrn_10_2', {}), ('dm_wrn_10_1', {}),
    ('resnet_1_2_1_1', {'stem': '7x7/2', 'pooling': 'max'}),
    ('resnet_bottleneck_1_1_1_1', {'padding': 'same'}),
    ('cifar_resnet8', {'shortcut': 'pad_both'}),
    ('cifar_resnet8', {'shortcut': 'pad_after', 'mean': (0.4, 0.5, 0.6),
                       'std': (0.2, 0.3, 0.4)}),
    ('cifar_resnet8', {'shortcut': 'conv', 'activation': 'silu'}),
    ('preact_resnet_1_1_1_1', {'shortcut_input': 'preact'}),
    ('preact_resnet_1_1_1_1', {'shortcut_input': 'input', 'final_bn': False}),
    ('dm_preact_resnet_1_1_1_1', {}),
    pytest.param('mobilenet_v2', {}, marks=pytest.mark.slow)]


@pytest.mark.parametrize('arch, options', _CASES)
def test_logits_equal_those_of_the_module(arch, options):
  model = models.build(arch, 5, width=4, **options)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32),
      models.abstract_variables(model, (10, 10, 3)))
  variables['params'] = jax.tree.map(lambda leaf: leaf - 0.4,
                                     variables['params'])
  images = rng.uniform(size=(2, 10, 10, 3)).astype(np.float32)
  network = jax_networks.Network(json.dumps(torch_io.torch_module(model, 3)))
  def both(variables, images):
    flat = traverse_util.flatten_dict(variables, sep='/')
    return network(flat, images), forward.logits(model, variables, images)
  found, expected = jax.jit(both)(variables, images)
  assert np.ptp(np.asarray(expected)) > 0
  np.testing.assert_allclose(found, expected, rtol=1e-4,
                             atol=1e-4 * np.abs(expected).max())


def test_stems_are_those_of_the_modules():
  assert jax_networks.STRIDES == {
      name: stride for name, (_, stride) in resnet.STEMS.items()}
