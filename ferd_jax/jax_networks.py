"""The networks of ferd_jax as functions of their weights, with JAX alone.

This file needs JAX and NumPy and nothing else. A copy of it stands beside the
weights of every exported student, as `student_jax.py`:

    from student_jax import load
    logits = load()(images)  # [N, H, W, C] in [0, 1], normalised inside

What `load` returns is a `jax.tree_util.Partial`: a pytree of the weights that
can be called, passed to compiled functions and differentiated. In training mode
there is no network here; `ferd_jax.load_model` has the Flax module.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# The first convolution's stride.
STRIDES = {'3x3': 1, '3x3/2': 2, '7x7': 1, '7x7/2': 2}
# Of MobileNetV2: blocks and the stride of the first one.
_MOBILE_GROUPS = ((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))


def load(directory: str | pathlib.Path | None = None) -> jax.tree_util.Partial:
  """Returns the exported network of a directory, in evaluation mode.

  Args:
    directory: with config.json and student.npz; default: where this file is.

  Returns:
    The function images float `[N, H, W, C]` -> logits `[N, K]`.

  Raises:
    OSError: if a file is absent.
  """
  place = pathlib.Path(__file__).parent if directory is None else (
      pathlib.Path(directory))
  described = json.loads((place / 'config.json').read_text())['module']
  with np.load(place / 'student.npz') as file:
    variables = {name: jnp.asarray(file[name]) for name in file.files
                 if '/' in name}
  return jax.tree_util.Partial(Network(json.dumps(described)), variables)


@dataclasses.dataclass(frozen=True)
class Network:
  """A network without its weights: (variables, images) -> logits.

  Attributes:
    described: JSON: `module`, its `arguments`, `activation` and `padding`, and
      `mean` and `std` of one that normalises.
  """
  described: str

  def __call__(self, variables: Mapping[str, jax.Array],
               images: jax.Array) -> jax.Array:
    """Returns the logits `[N, K]` of images `[N, H, W, C]`.

    Args:
      variables: arrays by path, 'params/conv1/kernel'.
      images: float, in [0, 1].
    """
    described = json.loads(self.described)
    x = jnp.asarray(images)
    if described.get('mean') is not None:
      mean, std = (jnp.asarray(described[name], x.dtype).reshape(1, 1, 1, -1)
                   for name in ('mean', 'std'))
      x = (x - mean) / std
    net = _Layers(variables, described['activation'], described['padding'])
    return _NETWORKS[described['module']](net, x, **described['arguments'])


@dataclasses.dataclass(frozen=True)
class _Layers:
  """The layers of a network, or of a block in it, by their names."""
  variables: Mapping[str, jax.Array]
  activation: str
  padding: str
  path: str = ''

  def block(self, name: str) -> '_Layers':
    return dataclasses.replace(self, path=f'{self.path}{name}/')

  def act(self, x):
    return {'relu': jax.nn.relu, 'silu': jax.nn.silu}[self.activation](x)

  def conv(self, name, x, stride=1, groups=1):
    kernel = self._array('params', name, 'kernel')
    side = kernel.shape[0] // 2
    padding = 'SAME' if self.padding == 'same' else ((side, side),) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def norm(self, name, x):
    mean, var, scale, bias = (
        self._array(collection, name, each).reshape(1, 1, 1, -1)
        for collection, each in (
            ('batch_stats', 'mean'), ('batch_stats', 'var'),
            ('params', 'scale'), ('params', 'bias')))
    return (x - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias

  def logits(self, name, x):
    x = x.mean((1, 2))
    return x @ self._array('params', name, 'kernel') + self._array(
        'params', name, 'bias').reshape(1, -1)

  def projected(self, x, stride, outputs):
    """Returns `x`, through a 1x1 convolution if a block changes the shape."""
    if stride == 1 and x.shape[-1] == outputs:
      return x
    return self.norm('shortcut_1', self.conv('shortcut_0', x, stride))

  def _array(self, collection, name, leaf):
    return self.variables[f'{collection}/{self.path}{name}/{leaf}']


def _groups(net, x, counts, names, block):
  """Runs groups of blocks; all but the first begin with stride 2."""
  for group, count in enumerate(counts):
    for i in range(count):
      stride = 2 if group and not i else 1
      x = block(net.block(names.format(group + 1, i)), x, stride)
  return x


def _basic(net, x, stride, shortcut='conv'):
  hidden = net.act(net.norm('bn1', net.conv('conv1', x, stride)))
  hidden = net.norm('bn2', net.conv('conv2', hidden))
  extra = hidden.shape[-1] - x.shape[-1]
  if shortcut == 'conv' or (stride == 1 and not extra):
    residual = net.projected(x, stride, hidden.shape[-1])
  else:
    before = extra // 2 if shortcut == 'pad_both' else 0
    residual = jnp.pad(x[:, ::stride, ::stride], (
        (0, 0), (0, 0), (0, 0), (before, extra - before)))
  return net.act(hidden + residual)


def _bottleneck(net, x, stride):
  hidden = net.act(net.norm('bn1', net.conv('conv1', x)))
  hidden = net.act(net.norm('bn2', net.conv('conv2', hidden, stride)))
  hidden = net.norm('bn3', net.conv('conv3', hidden))
  return net.act(hidden + net.projected(x, stride, hidden.shape[-1]))


def _resnet(net, x, *, counts, bottleneck, stem, pooling, **_):
  x = net.act(net.norm('bn1', net.conv('conv1', x, STRIDES[stem])))
  if pooling == 'max':
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
                          ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = _groups(net, x, counts, 'layer{}_{}',
              _bottleneck if bottleneck else _basic)
  return net.logits('linear', x)


def _cifar_resnet(net, x, *, depth, shortcut, **_):
  x = net.act(net.norm('bn1', net.conv('conv1', x)))
  x = _groups(net, x, [(depth - 2) // 6] * 3, 'layer{}_{}',
              lambda *args: _basic(*args, shortcut))
  return net.logits('linear', x)


def _wide(net, x, stride):
  hidden = net.act(net.norm('bn1', x))
  first = net.conv('conv1', hidden, stride)
  if x.shape[-1] != first.shape[-1]:
    x = net.conv('convShortcut', hidden, stride)
  return x + net.conv('conv2', net.act(net.norm('bn2', first)))


def _wide_resnet(net, x, *, depth, **_):
  x = _groups(net, net.conv('conv1', x), [(depth - 4) // 6] * 3,
              'block{}_layer_{}', _wide)
  return net.logits('fc', net.act(net.norm('bn1', x)))


def _preact(net, x, stride, shortcut_input='input'):
  hidden = net.act(net.norm('bn1', x))
  first = net.conv('conv1', hidden, stride)
  if stride != 1 or x.shape[-1] != first.shape[-1]:
    x = net.conv('shortcut_0', hidden if shortcut_input == 'preact' else x,
                 stride)
  return x + net.conv('conv2', net.act(net.norm('bn2', first)))


def _preact_resnet(net, x, *, counts, shortcut_input='input', final_bn=True,
                   **_):
  x = _groups(net, net.conv('conv1', x), counts, 'layer{}_{}',
              lambda *args: _preact(*args, shortcut_input))
  return net.logits('linear', net.act(net.norm('bn', x)) if final_bn else x)


def _mobile(net, x, stride):
  hidden = net.act(net.norm('bn1', net.conv('conv1', x)))
  hidden = net.conv('conv2', hidden, stride, groups=hidden.shape[-1])
  hidden = net.act(net.norm('bn2', hidden))
  hidden = net.norm('bn3', net.conv('conv3', hidden))
  if stride != 1:
    return hidden
  return hidden + net.projected(x, stride, hidden.shape[-1])


def _mobilenet(net, x, **_):
  x = net.act(net.norm('bn1', net.conv('conv1', x)))
  strides = [stride if i == 0 else 1 for count, stride in _MOBILE_GROUPS
             for i in range(count)]
  for number, stride in enumerate(strides):
    x = _mobile(net.block(f'layers_{number}'), x, stride)
  x = net.act(net.norm('bn2', net.conv('conv2', x)))
  return net.logits('linear', x)


_NETWORKS: dict[str, Any] = {
    'CifarResNet': _cifar_resnet, 'ResNet': _resnet,
    'WideResNet': _wide_resnet, 'DMWideResNet': _wide_resnet,
    'PreActResNet': _preact_resnet, 'DMPreActResNet': _preact_resnet,
    'MobileNetV2': _mobilenet}
