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
import math
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
    described: JSON: `module`, its `arguments`, `activation` and `padding` if
      it has them, `mean` and `std` of one that normalises, `standardise` of
      one that does so by each image's own.
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
    if described.get('standardise'):
      axes, count = (1, 2, 3), math.prod(x.shape[1:])
      x = x - jnp.mean(x, axis=axes, keepdims=True)
      var = jnp.sum(jnp.square(x), axis=axes, keepdims=True) / (count - 1)
      x = x * lax.rsqrt(jnp.maximum(var, 1 / count))
    net = _Layers(variables, described.get('activation', 'relu'),
                  described.get('padding', 'both'))
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

  def biased(self, name, x, groups=1):
    """A convolution with a bias."""
    return self.conv(name, x, groups=groups) + self._wide(
        name, 'bias', x.ndim)

  def dense(self, name, x):
    return x @ self._array('params', name, 'kernel') + self._wide(
        name, 'bias', x.ndim)

  def layer_norm(self, name, x):
    centred = x - x.mean(-1, keepdims=True)
    var = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * lax.rsqrt(var + 1e-6) * self._wide(name, 'scale', x.ndim)
            + self._wide(name, 'bias', x.ndim))

  def scaled(self, name, x):
    """Each channel times a number of the block's own."""
    return x * self.own(name).reshape((1,) * (x.ndim - 1) + (-1,))

  def own(self, name):
    """An array of the block itself."""
    return self.variables[f'params/{self.path}{name}']

  def sparse(self, name, x):
    """The mean where a value is near it, if the network has such a layer."""
    if f'mean_sparse/{self.path}{name}/mean' not in self.variables:
      return x
    mean, var, threshold = (self._array('mean_sparse', name, each) for each in (
        'mean', 'var', 'threshold'))
    mean = mean.reshape(1, 1, 1, -1)
    nearest = threshold * jnp.sqrt(var).reshape(1, 1, 1, -1)
    return jnp.where(jnp.abs(x - mean) < nearest, mean, x)

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

  def _wide(self, name, leaf, ndim):
    return self._array('params', name, leaf).reshape((1,) * (ndim - 1) + (-1,))

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


def _wide(net, x, stride, squeeze):
  hidden = net.act(net.sparse('meansparse_0', net.norm('bn1', x)))
  first = net.conv('conv1', hidden, stride)
  if x.shape[-1] != first.shape[-1]:
    x = net.conv('convShortcut', hidden, stride)
  first = net.sparse('meansparse_1', net.norm('bn2', first))
  last = net.conv('conv2', net.act(first))
  if squeeze:
    inside = net.block('se')
    means = last.mean((1, 2), keepdims=True)
    hidden = jax.nn.relu(inside.biased('fc1', means))
    last = last * jax.nn.sigmoid(inside.biased('fc2', hidden))
  return net.sparse('meansparse_2', x + last)


def _wide_resnet(net, x, *, depth=None, groups=(), squeeze=False, **_):
  counts = ([count for count, _ in groups] if depth is None
            else [(depth - 4) // 6] * 3)
  x = _groups(net, net.conv('conv1', x), counts, 'block{}_layer_{}',
              lambda *args: _wide(*args, squeeze))
  x = net.sparse('meansparse_end', net.norm('bn1', x))
  return net.logits('fc', net.act(x))


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


def _gelu(x):
  return jax.nn.gelu(x, approximate=False)


def _places(net, x):
  """Returns what is added to tokens for where they are."""
  height, width = x.shape[1:3]
  waves = np.zeros((1, height, width, 2, 32))
  scale = 10000 ** (2 * (np.arange(32) // 2) / 32)
  for axis, count in enumerate((height, width)):
    places = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
    angles = places.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)) / scale
    waves[0, :, :, axis, 0::2] = np.sin(angles[..., 0::2])
    waves[0, :, :, axis, 1::2] = np.cos(angles[..., 1::2])
  return net.biased('token_projection', jnp.asarray(
      waves.reshape(1, height, width, -1), x.dtype))


def _channel_attention(net, x, heads):
  batch, number, channels = x.shape
  qkv = net.dense('qkv', x).reshape(batch, number, 3, heads, -1)
  def unit(x):
    total = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(total, 1e-24))
  scores = jnp.einsum('bnhc,bnhd->bhcd', unit(qkv[:, :, 0]), unit(qkv[:, :, 1]))
  weights = jax.nn.softmax(scores * net.own('temperature')[None], axis=-1)
  x = jnp.einsum('bhcd,bnhd->bnhc', weights, qkv[:, :, 2])
  return net.dense('proj', x.reshape(batch, number, channels))


def _class_attention(net, x, heads):
  batch, _, channels = x.shape
  query, key, value = (
      net.dense(name, tokens).reshape(batch, -1, heads, channels // heads)
      for name, tokens in (('q', x[:, :1]), ('k', x), ('v', x)))
  scores = jnp.einsum('bqhc,bnhc->bhqn', query, key)
  weights = jax.nn.softmax(scores * (channels // heads) ** -0.5, axis=-1)
  x = jnp.einsum('bhqn,bnhc->bqhc', weights, value)
  return net.dense('proj', x.reshape(batch, 1, channels))


def _mlp(net, x):
  return net.dense('fc2', _gelu(net.dense('fc1', x)))


def _token_block(net, x, heads):
  shape = x.shape
  flat = net.layer_norm('norm1', x).reshape(shape[0], -1, shape[-1])
  x = x + net.scaled('gamma1', _channel_attention(
      net.block('attn'), flat, heads).reshape(shape))
  local, hidden = net.block('local_mp'), net.layer_norm('norm3', x)
  hidden = local.norm('bn', _gelu(local.biased('conv1', hidden, shape[-1])))
  x = x + net.scaled('gamma3', local.biased('conv2', hidden, shape[-1]))
  return x + net.scaled('gamma2', _mlp(
      net.block('mlp'), net.layer_norm('norm2', x)))


def _class_block(net, x, heads):
  hidden = net.layer_norm('norm1', x)
  attended = _class_attention(net.block('attn'), hidden, heads)
  x = x + net.scaled('gamma1', jnp.concatenate(
      [attended, hidden[:, 1:]], axis=1))
  x = net.layer_norm('norm2', x)
  changed = net.scaled('gamma2', _mlp(net.block('mlp'), x[:, :1]))
  return x + jnp.concatenate([changed, x[:, 1:]], axis=1)


def _xcit(net, x, *, depth, heads, patch, **_):
  embed, halved = net.block('patch_embed'), int(math.log2(patch))
  for i in range(4):
    x = embed.norm(f'proj_{2 * i}_1', embed.conv(
        f'proj_{2 * i}_0', x, 2 if 3 - i < halved else 1))
    x = _gelu(x) if i < 3 else x
  places = _places(net.block('pos_embed'), x)
  x = x + jnp.broadcast_to(places, x.shape)
  for i in range(depth):
    x = _token_block(net.block(f'blocks_{i}'), x, heads)
  batch, channels = len(x), x.shape[-1]
  token = jnp.broadcast_to(net.own('cls_token'), (batch, 1, channels))
  x = jnp.concatenate([token, x.reshape(batch, -1, channels)], axis=1)
  for i in range(2):
    x = _class_block(net.block(f'cls_attn_blocks_{i}'), x, heads)
  return net.dense('head', net.layer_norm('norm', x)[:, 0])


_NETWORKS: dict[str, Any] = {
    'CifarResNet': _cifar_resnet, 'ResNet': _resnet,
    'WideResNet': _wide_resnet, 'DMWideResNet': _wide_resnet,
    'PreActResNet': _preact_resnet, 'DMPreActResNet': _preact_resnet,
    'MobileNetV2': _mobilenet, 'Xcit': _xcit}
