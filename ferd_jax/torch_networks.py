"""The networks of ferd_jax in PyTorch, under their published names.

This file needs PyTorch and nothing else. A copy of it stands beside the weights
of every exported student, as `student_torch.py`:

    from student_torch import load
    logits = load()(images)  # [N, C, H, W] in [0, 1], normalised inside

`load(directory)` reads config.json and student.pt there; `build` makes the
network that config.json describes. Each classifier has `stages(x)`, which
yields (name, output) for every stage of the Flax model, the logits last.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import torch
from torch import nn
import torch.nn.functional as F

# The first convolution of a ResNet: side of its kernel, and stride.
STEMS = {'3x3': (3, 1), '3x3/2': (3, 2), '7x7': (7, 1), '7x7/2': (7, 2)}


def load(directory: str | pathlib.Path | None = None) -> nn.Module:
  """Returns the exported network of a directory, in evaluation mode, on CPU.

  Args:
    directory: with config.json and student.pt; default: where this file is.

  Raises:
    OSError: if a file is absent.
  """
  place = pathlib.Path(__file__).parent if directory is None else (
      pathlib.Path(directory))
  config = json.loads((place / 'config.json').read_text())
  net = build(config['module'])
  net.load_state_dict(torch.load(place / 'student.pt', map_location='cpu',
                                 weights_only=True), strict=True)
  return net.eval()


def build(described: Mapping[str, Any]) -> nn.Module:
  """Returns the network that a description names, its weights drawn anew.

  Args:
    described: `module`, the name of a class of this file, its `arguments`,
      `activation` and `padding` of a classifier that has them, `mean` and
      `std` of one that normalises, `standardise` of one that does so by each
      image's own.
  """
  arguments = dict(described['arguments'])
  if 'activation' in described:
    arguments['style'] = Style(described['activation'], described['padding'])
  net = globals()[described['module']](**arguments)
  if described.get('mean') is not None:
    net.mean_std = (described['mean'], described['std'])
  if described.get('standardise'):
    net.standardise = True
  return net


class Conv3(nn.Conv2d):
  """3x3 convolution; 'same' pads at the bottom and right only at stride 2."""

  def __init__(self, inputs, outputs, stride, same, **options):
    super().__init__(inputs, outputs, 3, stride, 0 if same else 1, bias=False,
                     **options)
    self.zeros = (0, 1, 0, 1) if same and stride == 2 else (1, 1, 1, 1)
    self.same = same

  def forward(self, x):
    return super().forward(F.pad(x, self.zeros) if self.same else x)


class Conv7(nn.Conv2d):
  """7x7 convolution; 'same' pads one row and column less at stride 2."""

  def __init__(self, inputs, outputs, stride, same):
    super().__init__(inputs, outputs, 7, stride, 0, bias=False)
    self.zeros = (2, 3, 2, 3) if same and stride == 2 else (3, 3, 3, 3)

  def forward(self, x):
    return super().forward(F.pad(x, self.zeros))


@dataclasses.dataclass(frozen=True)
class Style:
  """Activation, and how convolutions of stride 2 are padded."""
  activation: str = 'relu'
  padding: str = 'both'

  def act(self, x):
    return {'relu': F.relu, 'silu': F.silu}[self.activation](x)

  def conv3(self, inputs, outputs, stride=1, **options):
    return Conv3(inputs, outputs, stride, self.padding == 'same', **options)


STYLE = Style()


def conv1(inputs, outputs, stride=1):
  return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def pooled(x):
  return x.mean((2, 3))


class Classifier(nn.Module):
  """Logits of images `[N, C, H, W]`, normalised first as is set."""
  mean_std, standardise = None, False

  def forward(self, x):
    *_, (_, logits) = self.stages(x)
    return logits

  def normalised(self, x):
    if self.standardise:
      mean = x.mean((1, 2, 3), keepdim=True)
      std = x.std((1, 2, 3), keepdim=True)
      return (x - mean) / std.clamp(min=x[0].numel() ** -0.5)
    if self.mean_std is None:
      return x
    mean, std = (torch.tensor(values, dtype=x.dtype).view(1, -1, 1, 1)
                 for values in self.mean_std)
    return (x - mean) / std


class WideBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, style):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = style.conv3(inputs, outputs, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(outputs), style.conv3(outputs,
                                                                outputs)
    self.equal, self.style = inputs == outputs, style
    if not self.equal:
      self.convShortcut = conv1(inputs, outputs, stride)

  def forward(self, x):
    act = self.style.act
    hidden = act(self.bn1(x))
    out = self.conv2(act(self.bn2(self.conv1(hidden))))
    return out + (x if self.equal else self.convShortcut(hidden))


class WideGroup(nn.Module):

  def __init__(self, count, inputs, outputs, stride, style):
    super().__init__()
    self.layer = nn.Sequential(*(
        WideBlock(inputs if i == 0 else outputs, outputs,
                  stride if i == 0 else 1, style) for i in range(count)))

  def forward(self, x):
    return self.layer(x)


class WideResNet(Classifier):

  def __init__(self, depth, widen, width, classes, channels=3, sub=False,
               style=STYLE):
    super().__init__()
    n, w = (depth - 4) // 6, width * widen
    self.style = style
    self.conv1 = style.conv3(channels, width)
    self.block1 = WideGroup(n, width, w, 1, style)
    if sub:
      self.sub_block1 = WideGroup(n, width, w, 1, style)
    self.block2 = WideGroup(n, w, 2 * w, 2, style)
    self.block3 = WideGroup(n, 2 * w, 4 * w, 2, style)
    self.bn1 = nn.BatchNorm2d(4 * w)
    self.fc = nn.Linear(4 * w, classes)

  def stages(self, x):
    x = self.normalised(x)
    for name in ('conv1', 'block1', 'block2', 'block3', 'bn1'):
      x = getattr(self, name)(x)
      yield name, x
    yield 'head', self.fc(pooled(self.style.act(x)))


class MeanSparse(nn.Module):
  """With a gradient of 0 where a value is moved, as published."""

  def __init__(self, channels):
    super().__init__()
    for name in ('running_mean', 'running_var'):
      self.register_buffer(name, torch.zeros(channels))
    for name, start in (('threshold', 0.), ('flag_update_statistics', 0),
                        ('batch_num', 0.)):
      self.register_buffer(name, torch.tensor(start))

  def forward(self, x):
    mean = self.running_mean.view(1, -1, 1, 1).expand_as(x)
    nearest = self.threshold * self.running_var.sqrt().view(1, -1, 1, 1)
    return torch.where((x - mean).abs() < nearest, mean, x)


class SqueezeExcitation(nn.Module):

  def __init__(self, channels):
    super().__init__()
    inside = round(0.25 * channels)
    self.fc1 = nn.Conv2d(channels, inside, 1)
    self.fc2 = nn.Conv2d(inside, channels, 1)

  def forward(self, x):
    hidden = F.relu(self.fc1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.fc2(hidden))


class DMWideBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, style, squeeze, sparse):
    super().__init__()
    sizes = (inputs, outputs, outputs) if sparse else ()
    for i, size in enumerate(sizes):
      self.add_module(f'meansparse_{i}', MeanSparse(size))
    self.se = SqueezeExcitation(outputs) if squeeze else nn.Identity()
    self.batchnorm_0 = nn.BatchNorm2d(inputs)
    self.conv_0 = style.conv3(inputs, outputs, stride)
    self.batchnorm_1 = nn.BatchNorm2d(outputs)
    self.conv_1 = style.conv3(outputs, outputs)
    self.changes, self.act = inputs != outputs, style.act
    if self.changes:
      self.shortcut = conv1(inputs, outputs, stride)

  def forward(self, x):
    hidden = self.act(self._sparse(0, self.batchnorm_0(x)))
    out = self._sparse(1, self.batchnorm_1(self.conv_0(hidden)))
    out = self.se(self.conv_1(self.act(out)))
    return self._sparse(
        2, out + (self.shortcut(hidden) if self.changes else x))

  def _sparse(self, number, x):
    return getattr(self, f'meansparse_{number}', nn.Identity())(x)


class DMWideGroup(nn.Module):

  def __init__(self, count, inputs, outputs, stride, *options):
    super().__init__()
    self.block = nn.Sequential(*(
        DMWideBlock(inputs if i == 0 else outputs, outputs,
                    stride if i == 0 else 1, *options) for i in range(count)))

  def forward(self, x):
    return self.block(x)


class DMWideResNet(Classifier):
  """`groups` are blocks and channels of each group."""

  def __init__(self, groups, width, classes, channels=3, style=STYLE,
               squeeze=False, sparse=False):
    super().__init__()
    self.style = style
    self.init_conv = style.conv3(channels, width)
    parts, inputs = [], width
    for i, (count, outputs) in enumerate(groups):
      parts.append(DMWideGroup(count, inputs, outputs, 2 if i else 1, style,
                               squeeze, sparse))
      inputs = outputs
    self.layer = nn.Sequential(*parts)
    self.batchnorm = nn.BatchNorm2d(inputs)
    if sparse:
      self.meansparse_end = MeanSparse(inputs)
    self.logits = nn.Linear(inputs, classes)

  def stages(self, x):
    x = self.init_conv(self.normalised(x))
    yield 'conv1', x
    for i, group in enumerate(self.layer):
      x = group(x)
      yield f'block{i + 1}', x
    x = self.batchnorm(x)
    if hasattr(self, 'meansparse_end'):
      x = self.meansparse_end(x)
    yield 'bn1', x
    yield 'head', self.logits(pooled(self.style.act(x)))


class BasicBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, style, shortcut='conv',
               names=('conv1', 'bn1', 'conv2', 'bn2', 'shortcut')):
    super().__init__()
    self.act = style.act
    self.names, self.shortcut_kind, self.stride = names, shortcut, stride
    self.extra = outputs - inputs
    self.changes = stride != 1 or inputs != outputs
    for name, module in zip(names, (
        style.conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs),
        style.conv3(outputs, outputs), nn.BatchNorm2d(outputs)),
                            strict=False):
      self.add_module(name, module)
    if self.changes and shortcut == 'conv':
      self.add_module(names[-1], nn.Sequential(
          conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs)))

  def forward(self, x):
    conv_a, bn_a, conv_b, bn_b = (
        getattr(self, name) for name in self.names[:4])
    out = bn_b(conv_b(self.act(bn_a(conv_a(x)))))
    if not self.changes:
      residual = x
    elif self.shortcut_kind == 'conv':
      residual = getattr(self, self.names[-1])(x)
    else:
      residual = x[:, :, ::self.stride, ::self.stride]
      zeros = torch.zeros_like(residual)
      if self.shortcut_kind == 'pad_both':
        zeros = zeros[:, :self.extra // 2]
        residual = torch.cat((zeros, residual, zeros), 1)
      else:
        residual = torch.cat((residual, zeros), 1)
    return self.act(out + residual)


class Bottleneck(nn.Module):

  def __init__(self, inputs, outputs, stride, style, shortcut='shortcut'):
    super().__init__()
    inside = outputs // 4
    self.conv1, self.bn1 = conv1(inputs, inside), nn.BatchNorm2d(inside)
    self.conv2 = style.conv3(inside, inside, stride)
    self.bn2 = nn.BatchNorm2d(inside)
    self.conv3, self.bn3 = conv1(inside, outputs), nn.BatchNorm2d(outputs)
    self.act, self.name = style.act, shortcut
    self.add_module(shortcut, nn.Sequential())
    if stride != 1 or inputs != outputs:
      self.add_module(shortcut, nn.Sequential(
          conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs)))

  def forward(self, x):
    out = self.act(self.bn1(self.conv1(x)))
    out = self.act(self.bn2(self.conv2(out)))
    return self.act(self.bn3(self.conv3(out)) + getattr(self, self.name)(x))


def groups(block, inputs, counts, expansion=1):
  """Yields the groups of a ResNet, doubling the channels after the first."""
  width = inputs * expansion
  for i, count in enumerate(counts):
    outputs = width * 2 ** i
    modules = []
    for j in range(count):
      modules.append(block(inputs, outputs, 2 if i > 0 and j == 0 else 1))
      inputs = outputs
    yield nn.Sequential(*modules)


class ResNet(Classifier):
  """kuangliu's for small images, with another stem or pooling torchvision's."""

  def __init__(self, counts, width, classes, channels=3, bottleneck=False,
               style=STYLE, stem='3x3', pooling='none'):
    super().__init__()
    small = (stem, pooling) == ('3x3', 'none')
    shortcut, self.classifier = (('shortcut', 'linear') if small
                                 else ('downsample', 'fc'))
    self.act, self.pool = style.act, pooling == 'max'
    size, stride = STEMS[stem]
    self.conv1 = style.conv3(channels, width, stride) if size == 3 else (
        Conv7(channels, width, stride, style.padding == 'same'))
    self.bn1 = nn.BatchNorm2d(width)
    if bottleneck:
      block, expansion = lambda *shape: Bottleneck(*shape, style, shortcut), 4
    else:
      names = ('conv1', 'bn1', 'conv2', 'bn2', shortcut)
      block, expansion = (
          lambda *shape: BasicBlock(*shape, style, names=names)), 1
    for i, group in enumerate(groups(block, width, counts, expansion)):
      self.add_module(f'layer{i + 1}', group)
    self.add_module(self.classifier, nn.Linear(width * 8 * expansion, classes))

  def stages(self, x):
    x = self.act(self.bn1(self.conv1(self.normalised(x))))
    if self.pool:
      x = F.max_pool2d(x, 3, 2, 1)
    yield 'conv1', x
    for name in ('layer1', 'layer2', 'layer3', 'layer4'):
      x = getattr(self, name)(x)
      yield name, x
    yield 'head', getattr(self, self.classifier)(pooled(x))


class CifarResNet(Classifier):
  """`naming` is 'akamaster', 'chenyaofo' or 'stage'."""

  def __init__(self, depth, width, classes, shortcut, naming, channels=3,
               style=STYLE):
    super().__init__()
    self.act = style.act
    block_names = ('conv1', 'bn1', 'conv2', 'bn2', 'shortcut')
    conv, norm, group, classifier = 'conv1', 'bn1', 'layer', 'linear'
    if naming == 'chenyaofo':
      block_names, classifier = (*block_names[:4], 'downsample'), 'fc'
    elif naming == 'stage':
      block_names = ('conv_a', 'bn_a', 'conv_b', 'bn_b', 'downsample')
      conv, norm, group, classifier = (
          'conv_1_3x3', 'bn_1', 'stage_', 'classifier')
    self.names = (conv, norm, *(f'{group}{i}' for i in (1, 2, 3)), classifier)
    parts = groups(
        lambda *shape: BasicBlock(*shape, style, shortcut, block_names),
        width, [(depth - 2) // 6] * 3)
    for name, module in zip(self.names, (
        style.conv3(channels, width), nn.BatchNorm2d(width), *parts,
        nn.Linear(width * 4, classes)), strict=True):
      self.add_module(name, module)

  def stages(self, x):
    conv, norm, *parts, classifier = (
        getattr(self, name) for name in self.names)
    x = self.act(norm(conv(self.normalised(x))))
    yield 'conv1', x
    for i, part in enumerate(parts):
      x = part(x)
      yield f'layer{i + 1}', x
    yield 'head', classifier(pooled(x))


class PreActBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, style, shortcut_input):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = style.conv3(inputs, outputs, stride)
    self.bn2 = nn.BatchNorm2d(outputs)
    self.conv2 = style.conv3(outputs, outputs)
    self.act, self.shortcut_input = style.act, shortcut_input
    if stride != 1 or inputs != outputs:
      self.shortcut = nn.Sequential(conv1(inputs, outputs, stride))

  def forward(self, x):
    hidden = self.act(self.bn1(x))
    residual = x
    if hasattr(self, 'shortcut'):
      residual = self.shortcut(hidden if self.shortcut_input == 'preact' else x)
    return self.conv2(self.act(self.bn2(self.conv1(hidden)))) + residual


class PreActResNet(Classifier):

  def __init__(self, counts, width, classes, shortcut_input, final_bn,
               channels=3, style=STYLE):
    super().__init__()
    self.style = style
    self.conv1 = style.conv3(channels, width)
    parts = groups(lambda *shape: PreActBlock(*shape, style, shortcut_input),
                   width, counts)
    for i, group in enumerate(parts):
      self.add_module(f'layer{i + 1}', group)
    if final_bn:
      self.bn = nn.BatchNorm2d(width * 8)
    self.linear = nn.Linear(width * 8, classes)

  def stages(self, x):
    x = self.normalised(x)
    for name in ('conv1', 'layer1', 'layer2', 'layer3', 'layer4', 'bn'):
      if hasattr(self, name):
        x = getattr(self, name)(x)
        yield name, x
    x = self.style.act(x) if hasattr(self, 'bn') else x
    yield 'head', self.linear(pooled(x))


class DMPreActBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, style):
    super().__init__()
    self.batchnorm_0 = nn.BatchNorm2d(inputs)
    self.conv_2d_1 = style.conv3(inputs, outputs, stride)
    self.batchnorm_1 = nn.BatchNorm2d(outputs)
    self.conv_2d_2 = style.conv3(outputs, outputs)
    self.act, self.changes = style.act, stride != 1 or inputs != outputs
    if self.changes:
      self.shortcut = style.conv3(inputs, outputs, stride)

  def forward(self, x):
    hidden = self.conv_2d_1(self.act(self.batchnorm_0(x)))
    hidden = self.conv_2d_2(self.act(self.batchnorm_1(hidden)))
    return hidden + (self.shortcut(x) if self.changes else x)


class DMPreActResNet(Classifier):

  def __init__(self, counts, width, classes, channels=3, style=STYLE):
    super().__init__()
    self.style = style
    self.conv_2d = style.conv3(channels, width)
    parts = groups(lambda *shape: DMPreActBlock(*shape, style), width, counts)
    for i, group in enumerate(parts):
      self.add_module(f'layer_{i}', group)
    self.batchnorm = nn.BatchNorm2d(width * 8)
    self.logits = nn.Linear(width * 8, classes)

  def stages(self, x):
    x = self.conv_2d(self.normalised(x))
    yield 'conv1', x
    for i in range(4):
      x = getattr(self, f'layer_{i}')(x)
      yield f'layer{i + 1}', x
    x = self.batchnorm(x)
    yield 'bn', x
    yield 'head', self.logits(pooled(self.style.act(x)))


class MobileBlock(nn.Module):

  def __init__(self, inputs, outputs, expansion, stride, style):
    super().__init__()
    hidden = inputs * expansion
    self.stride, self.act = stride, style.act
    self.conv1, self.bn1 = conv1(inputs, hidden), nn.BatchNorm2d(hidden)
    self.conv2 = style.conv3(hidden, hidden, stride, groups=hidden)
    self.bn2 = nn.BatchNorm2d(hidden)
    self.conv3, self.bn3 = conv1(hidden, outputs), nn.BatchNorm2d(outputs)
    self.shortcut = nn.Sequential()
    if stride == 1 and inputs != outputs:
      self.shortcut = nn.Sequential(
          conv1(inputs, outputs), nn.BatchNorm2d(outputs))

  def forward(self, x):
    out = self.act(self.bn1(self.conv1(x)))
    out = self.act(self.bn2(self.conv2(out)))
    out = self.bn3(self.conv3(out))
    return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(Classifier):

  def __init__(self, width, classes, classifier='fc', channels=3, style=STYLE):
    super().__init__()
    self.act = style.act
    self.conv1 = style.conv3(channels, width)
    self.bn1 = nn.BatchNorm2d(width)
    self.classifier = classifier
    self.ends, blocks, inputs = [], [], width
    for expansion, outputs, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
      outputs = outputs * width // 32
      for i in range(count):
        blocks.append(MobileBlock(inputs, outputs, expansion,
                                  stride if i == 0 else 1, style))
        inputs = outputs
      self.ends.append(len(blocks))
    self.layers = nn.Sequential(*blocks)
    last = 1280 * width // 32
    self.conv2, self.bn2 = conv1(inputs, last), nn.BatchNorm2d(last)
    self.add_module(classifier, nn.Linear(last, classes))

  def stages(self, x):
    x = self.act(self.bn1(self.conv1(self.normalised(x))))
    yield 'conv1', x
    for i, block in enumerate(self.layers):
      x = block(x)
      if i + 1 in self.ends:
        yield f'group{self.ends.index(i + 1) + 1}', x
    x = self.act(self.bn2(self.conv2(x)))
    yield 'conv2', x
    yield 'head', getattr(self, self.classifier)(pooled(x))


class PatchEmbed(nn.Module):

  def __init__(self, channels, features, patch):
    super().__init__()
    parts = []
    for left in (3, 2, 1, 0):
      outputs = features // 2 ** left
      stride = 2 if 2 ** (left + 1) <= patch else 1
      parts += [nn.Sequential(
          nn.Conv2d(channels, outputs, 3, stride, 1, bias=False),
          nn.BatchNorm2d(outputs)), nn.GELU()]
      channels = outputs
    self.proj = nn.Sequential(*parts[:-1])

  def forward(self, x):
    return self.proj(x)


class Positions(nn.Module):

  def __init__(self, features):
    super().__init__()
    self.token_projection = nn.Conv2d(64, features, 1)

  def forward(self, x):
    height, width = x.shape[2:]
    number = torch.arange(32, dtype=torch.float64)
    scale = 10000 ** (2 * torch.div(number, 2, rounding_mode='floor') / 32)
    def along(count):
      places = torch.arange(1, count + 1, dtype=torch.float64)
      angles = (places / (count + 1e-6) * 2 * torch.pi)[:, None] / scale
      return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()],
                         dim=2).flatten(1)
    waves = torch.cat([along(height)[:, None].expand(-1, width, -1),
                       along(width)[None].expand(height, -1, -1)], dim=2)
    return self.token_projection(waves.permute(2, 0, 1)[None].to(x.dtype))


class ChannelAttention(nn.Module):

  def __init__(self, features, heads):
    super().__init__()
    self.heads = heads
    self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
    self.qkv = nn.Linear(features, 3 * features)
    self.proj = nn.Linear(features, features)

  def forward(self, x):
    batch, number, features = x.shape
    qkv = self.qkv(x).reshape(batch, number, 3, self.heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 4, 1)
    scores = (F.normalize(query, dim=-1)
              @ F.normalize(key, dim=-1).transpose(-2, -1))
    x = (scores * self.temperature).softmax(-1) @ value
    return self.proj(x.permute(0, 3, 1, 2).reshape(batch, number, features))


class ClassAttention(nn.Module):

  def __init__(self, features, heads):
    super().__init__()
    self.heads = heads
    for name in ('q', 'k', 'v', 'proj'):
      self.add_module(name, nn.Linear(features, features))

  def forward(self, x):
    def split(values):
      return values.unflatten(2, (self.heads, -1)).transpose(1, 2)
    x = F.scaled_dot_product_attention(
        split(self.q(x[:, :1])), split(self.k(x)), split(self.v(x)))
    return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):

  def __init__(self, features):
    super().__init__()
    self.fc1 = nn.Linear(features, 4 * features)
    self.fc2 = nn.Linear(4 * features, features)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class LocalPatches(nn.Module):

  def __init__(self, features):
    super().__init__()
    self.conv1 = nn.Conv2d(features, features, 3, 1, 1, groups=features)
    self.bn = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, groups=features)

  def forward(self, x):
    return self.conv2(self.bn(F.gelu(self.conv1(x))))


class TokenBlock(nn.Module):
  """Of images [B, C, H, W]."""

  def __init__(self, features, heads):
    super().__init__()
    for i in (1, 2, 3):
      self.add_module(f'norm{i}', nn.LayerNorm(features, eps=1e-6))
      self.register_parameter(f'gamma{i}', nn.Parameter(torch.ones(features)))
    self.attn = ChannelAttention(features, heads)
    self.local_mp, self.mlp = LocalPatches(features), Mlp(features)

  def forward(self, x):
    height, width = x.shape[2:]
    def image(tokens):
      return tokens.transpose(1, 2).unflatten(2, (height, width))
    x = x.flatten(2).transpose(1, 2)
    x = x + self.gamma1 * self.attn(self.norm1(x))
    local = self.local_mp(image(self.norm3(x))).flatten(2).transpose(1, 2)
    x = x + self.gamma3 * local
    return image(x + self.gamma2 * self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):

  def __init__(self, features, heads):
    super().__init__()
    for i in (1, 2):
      self.add_module(f'norm{i}', nn.LayerNorm(features, eps=1e-6))
      self.register_parameter(f'gamma{i}', nn.Parameter(torch.ones(features)))
    self.attn, self.mlp = ClassAttention(features, heads), Mlp(features)

  def forward(self, x):
    hidden = self.norm1(x)
    x = x + self.gamma1 * torch.cat([self.attn(hidden), hidden[:, 1:]], 1)
    x = self.norm2(x)
    changed = self.gamma2 * self.mlp(x[:, :1])
    return x + torch.cat([changed, x[:, 1:]], 1)


class Xcit(Classifier):

  def __init__(self, depth, heads, width, classes, patch, channels=3):
    super().__init__()
    features = 8 * width
    self.cls_token = nn.Parameter(torch.zeros(1, 1, features))
    self.patch_embed = PatchEmbed(channels, features, patch)
    self.pos_embed = Positions(features)
    self.blocks = nn.ModuleList(
        TokenBlock(features, heads) for _ in range(depth))
    self.cls_attn_blocks = nn.ModuleList(
        ClassBlock(features, heads) for _ in range(2))
    self.norm = nn.LayerNorm(features, eps=1e-6)
    self.head = nn.Linear(features, classes)

  def stages(self, x):
    x = self.patch_embed(self.normalised(x))
    x = x + self.pos_embed(x)
    yield 'patch_embed', x
    for i, block in enumerate(self.blocks):
      x = block(x)
      yield f'blocks_{i}', x
    x = torch.cat([self.cls_token.expand(len(x), -1, -1),
                   x.flatten(2).transpose(1, 2)], 1)
    for block in self.cls_attn_blocks:
      x = block(x)
    yield 'head', self.head(self.norm(x)[:, 0])


class Generator(nn.Module):

  def __init__(self, latent_size, side, channels, width, wide_start=False):
    super().__init__()
    start = width * (1 + wide_start)
    self.start = (start, side // 4, side // 4)
    self.l1 = nn.Sequential(nn.Linear(latent_size, start * (side // 4) ** 2))
    self.conv_blocks = nn.Sequential(
        nn.BatchNorm2d(start),
        nn.Upsample(scale_factor=2),
        STYLE.conv3(start, width),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        STYLE.conv3(width, width // 2),
        nn.BatchNorm2d(width // 2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width // 2, channels, 3, padding=1),
        nn.Sigmoid(),
    )

  def forward(self, z):
    return self.conv_blocks(self.l1(z).view(len(z), *self.start))
