"""The networks of ferd_jax.models in PyTorch, under their published names.

Each has `stages(x)`, which yields (name, output) for every stage of the Flax
model, the logits last. Importing this module needs torch.
"""

import torch
from torch import nn
import torch.nn.functional as F


def conv3(inputs, outputs, stride=1, **options):
  return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, **options)


def conv1(inputs, outputs, stride=1):
  return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def pooled(x):
  return x.mean((2, 3))


def load_published(net, path):
  """Loads a published state dict strictly but for counters.

  Files from before torch 0.4.1 have none of these.
  """
  stored = torch.load(path, map_location='cpu', weights_only=True)['state_dict']
  keys = net.load_state_dict({key.removeprefix('module.'): value
                              for key, value in stored.items()}, strict=False)
  assert not keys.unexpected_keys
  assert all(key.endswith('tracked') for key in keys.missing_keys)


class Twin(nn.Module):
  """Logits, and images normalised first if `mean` and `std` are set."""
  mean_std = None

  def forward(self, x):
    *_, (_, logits) = self.stages(x)
    return logits

  def normalised(self, x):
    if self.mean_std is None:
      return x
    mean, std = (torch.tensor(values, dtype=x.dtype).view(1, -1, 1, 1)
                 for values in self.mean_std)
    return (x - mean) / std


class WideBlock(nn.Module):

  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(
        inputs, outputs, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
    self.equal = inputs == outputs
    if not self.equal:
      self.convShortcut = conv1(inputs, outputs, stride)

  def forward(self, x):
    hidden = F.relu(self.bn1(x))
    out = self.conv2(F.relu(self.bn2(self.conv1(hidden))))
    return out + (x if self.equal else self.convShortcut(hidden))


class WideGroup(nn.Module):

  def __init__(self, count, inputs, outputs, stride):
    super().__init__()
    self.layer = nn.Sequential(*(
        WideBlock(inputs if i == 0 else outputs, outputs,
                  stride if i == 0 else 1) for i in range(count)))

  def forward(self, x):
    return self.layer(x)


class WideResNet(Twin):

  def __init__(self, depth, widen, width, classes, channels=3, sub=False):
    super().__init__()
    n, w = (depth - 4) // 6, width * widen
    self.conv1 = conv3(channels, width)
    self.block1 = WideGroup(n, width, w, 1)
    if sub:
      self.sub_block1 = WideGroup(n, width, w, 1)
    self.block2 = WideGroup(n, w, 2 * w, 2)
    self.block3 = WideGroup(n, 2 * w, 4 * w, 2)
    self.bn1 = nn.BatchNorm2d(4 * w)
    self.fc = nn.Linear(4 * w, classes)

  def stages(self, x):
    x = self.normalised(x)
    for name in ('conv1', 'block1', 'block2', 'block3', 'bn1'):
      x = getattr(self, name)(x)
      yield name, x
    yield 'head', self.fc(pooled(F.relu(x)))


class BasicBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, shortcut='conv',
               names=('conv1', 'bn1', 'conv2', 'bn2', 'shortcut')):
    super().__init__()
    self.names, self.shortcut_kind, self.stride = names, shortcut, stride
    self.extra = outputs - inputs
    self.changes = stride != 1 or inputs != outputs
    for name, module in zip(names, (
        conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs),
        conv3(outputs, outputs), nn.BatchNorm2d(outputs)), strict=False):
      self.add_module(name, module)
    if self.changes and shortcut == 'conv':
      self.add_module(names[-1], nn.Sequential(
          conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs)))

  def forward(self, x):
    conv_a, bn_a, conv_b, bn_b = (
        getattr(self, name) for name in self.names[:4])
    out = bn_b(conv_b(F.relu(bn_a(conv_a(x)))))
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
    return F.relu(out + residual)


def groups(block, inputs, counts):
  """Yields the groups of a ResNet, doubling the channels after the first."""
  width = inputs
  for i, count in enumerate(counts):
    outputs = width * 2 ** i
    modules = []
    for j in range(count):
      modules.append(block(inputs, outputs, 2 if i > 0 and j == 0 else 1))
      inputs = outputs
    yield nn.Sequential(*modules)


class ResNet(Twin):

  def __init__(self, counts, width, classes, channels=3):
    super().__init__()
    self.conv1 = conv3(channels, width)
    self.bn1 = nn.BatchNorm2d(width)
    for i, group in enumerate(groups(BasicBlock, width, counts)):
      self.add_module(f'layer{i + 1}', group)
    self.linear = nn.Linear(width * 8, classes)

  def stages(self, x):
    x = F.relu(self.bn1(self.conv1(self.normalised(x))))
    yield 'conv1', x
    for name in ('layer1', 'layer2', 'layer3', 'layer4'):
      x = getattr(self, name)(x)
      yield name, x
    yield 'head', self.linear(pooled(x))


class CifarResNet(Twin):
  """`naming` is 'akamaster', 'chenyaofo' or 'stage'."""

  def __init__(self, depth, width, classes, shortcut, naming, channels=3):
    super().__init__()
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
        lambda *shape: BasicBlock(*shape, shortcut, block_names), width,
        [(depth - 2) // 6] * 3)
    for name, module in zip(self.names, (
        conv3(channels, width), nn.BatchNorm2d(width), *parts,
        nn.Linear(width * 4, classes)), strict=True):
      self.add_module(name, module)

  def stages(self, x):
    conv, norm, *parts, classifier = (
        getattr(self, name) for name in self.names)
    x = F.relu(norm(conv(self.normalised(x))))
    yield 'conv1', x
    for i, part in enumerate(parts):
      x = part(x)
      yield f'layer{i + 1}', x
    yield 'head', classifier(pooled(x))


class PreActBlock(nn.Module):

  def __init__(self, inputs, outputs, stride, shortcut_input):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(
        inputs, outputs, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
    self.shortcut_input = shortcut_input
    if stride != 1 or inputs != outputs:
      self.shortcut = nn.Sequential(conv1(inputs, outputs, stride))

  def forward(self, x):
    hidden = F.relu(self.bn1(x))
    residual = x
    if hasattr(self, 'shortcut'):
      residual = self.shortcut(hidden if self.shortcut_input == 'preact' else x)
    return self.conv2(F.relu(self.bn2(self.conv1(hidden)))) + residual


class PreActResNet(Twin):

  def __init__(self, counts, width, classes, shortcut_input, final_bn,
               channels=3):
    super().__init__()
    self.conv1 = conv3(channels, width)
    parts = groups(lambda *shape: PreActBlock(*shape, shortcut_input), width,
                   counts)
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
    x = F.relu(x) if hasattr(self, 'bn') else x
    yield 'head', self.linear(pooled(x))


class MobileBlock(nn.Module):

  def __init__(self, inputs, outputs, expansion, stride):
    super().__init__()
    hidden = inputs * expansion
    self.stride = stride
    self.conv1, self.bn1 = conv1(inputs, hidden), nn.BatchNorm2d(hidden)
    self.conv2 = conv3(hidden, hidden, stride, groups=hidden)
    self.bn2 = nn.BatchNorm2d(hidden)
    self.conv3, self.bn3 = conv1(hidden, outputs), nn.BatchNorm2d(outputs)
    self.shortcut = nn.Sequential()
    if stride == 1 and inputs != outputs:
      self.shortcut = nn.Sequential(
          conv1(inputs, outputs), nn.BatchNorm2d(outputs))

  def forward(self, x):
    out = F.relu(self.bn1(self.conv1(x)))
    out = F.relu(self.bn2(self.conv2(out)))
    out = self.bn3(self.conv3(out))
    return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(Twin):

  def __init__(self, width, classes, classifier='fc', channels=3):
    super().__init__()
    self.conv1 = conv3(channels, width)
    self.bn1 = nn.BatchNorm2d(width)
    self.classifier = classifier
    self.ends, blocks, inputs = [], [], width
    for expansion, outputs, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
      outputs = outputs * width // 32
      for i in range(count):
        blocks.append(MobileBlock(inputs, outputs, expansion,
                                  stride if i == 0 else 1))
        inputs = outputs
      self.ends.append(len(blocks))
    self.layers = nn.Sequential(*blocks)
    last = 1280 * width // 32
    self.conv2, self.bn2 = conv1(inputs, last), nn.BatchNorm2d(last)
    self.add_module(classifier, nn.Linear(last, classes))

  def stages(self, x):
    x = F.relu(self.bn1(self.conv1(self.normalised(x))))
    yield 'conv1', x
    for i, block in enumerate(self.layers):
      x = block(x)
      if i + 1 in self.ends:
        yield f'group{self.ends.index(i + 1) + 1}', x
    x = F.relu(self.bn2(self.conv2(x)))
    yield 'conv2', x
    yield 'head', getattr(self, self.classifier)(pooled(x))


class Generator(nn.Module):

  def __init__(self, latent_size, side, channels, width):
    super().__init__()
    self.start = (width, side // 4, side // 4)
    self.l1 = nn.Sequential(nn.Linear(latent_size, width * (side // 4) ** 2))
    self.conv_blocks = nn.Sequential(
        nn.BatchNorm2d(width),
        nn.Upsample(scale_factor=2),
        conv3(width, width),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        conv3(width, width // 2),
        nn.BatchNorm2d(width // 2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width // 2, channels, 3, padding=1),
        nn.Sigmoid(),
    )

  def forward(self, z):
    return self.conv_blocks(self.l1(z).view(len(z), *self.start))


def randomise(net, seed=0):
  """Gives a network weights and statistics as of a trained one; evaluates."""
  torch.manual_seed(seed)
  for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
      nn.init.normal_(module.running_mean, 0, 0.1)
      nn.init.uniform_(module.running_var, 0.5, 1.5)
      nn.init.uniform_(module.weight, 0.5, 1.5)
      nn.init.normal_(module.bias, 0, 0.1)
    elif isinstance(module, nn.Conv2d | nn.Linear):
      nn.init.kaiming_normal_(module.weight)
  return net.eval()
