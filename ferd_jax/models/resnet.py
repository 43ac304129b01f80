"""ResNet-18 to -152, and the blocks they are made of."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax.models import layers
from ferd_jax.models import staged

# The first convolution: side of its kernel, and stride; '7x7/2' is that of
# networks for ImageNet.
STEMS = {'3x3': (3, 1), '3x3/2': (3, 2), '7x7': (7, 1), '7x7/2': (7, 2)}
# What follows it: nothing, or a maximum over 3x3 pixels of stride 2.
POOLINGS = ('none', 'max')

# What joins a block's input to its output where the shape changes: a 1x1
# convolution with BatchNorm, or the subsampled input with zero channels put
# on both sides of it or after it.
SHORTCUTS = ('conv', 'pad_both', 'pad_after')


class BasicBlock(nn.Module):
  """Post-activation block of two 3x3 convolutions.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    style: of the network.
    shortcut: one of `SHORTCUTS`.
  """
  features: int
  strides: int
  style: layers.Style
  shortcut: str = 'conv'

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]."""
    style = self.style
    hidden = style.conv(self.features, 3, self.strides, name='conv1')(x)
    hidden = style.activate(style.norm('bn1')(hidden, train=train))
    hidden = style.conv(self.features, name='conv2')(hidden)
    hidden = style.norm('bn2')(hidden, train=train)

    if self.shortcut == 'conv' or (
        self.strides == 1 and x.shape[-1] == self.features):
      residual = _projected(x, self.features, self.strides, style, train)
    else:
      extra = self.features - x.shape[-1]
      before = extra // 2 if self.shortcut == 'pad_both' else 0
      residual = jnp.pad(
          x[:, ::self.strides, ::self.strides],
          ((0, 0), (0, 0), (0, 0), (before, extra - before)))
    return style.activate(hidden + residual)


class Bottleneck(nn.Module):
  """Post-activation block of 1x1, 3x3 and 1x1 convolutions.

  Attributes:
    features: channels inside; the output has four times as many.
    strides: step of the 3x3 convolution.
    style: of the network.
  """
  features: int
  strides: int
  style: layers.Style

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), 4 features]."""
    style, outputs = self.style, 4 * self.features
    hidden = style.conv(self.features, 1, name='conv1')(x)
    hidden = style.activate(style.norm('bn1')(hidden, train=train))
    hidden = style.conv(self.features, 3, self.strides, name='conv2')(hidden)
    hidden = style.activate(style.norm('bn2')(hidden, train=train))
    hidden = style.conv(outputs, 1, name='conv3')(hidden)
    hidden = style.norm('bn3')(hidden, train=train)
    return style.activate(
        hidden + _projected(x, outputs, self.strides, style, train))


def _projected(x, features, strides, style, train):
  """Returns `x`, through a 1x1 convolution if a block changes the shape."""
  if strides == 1 and x.shape[-1] == features:
    return x
  x = style.conv(features, 1, strides, name='shortcut_0')(x)
  return style.norm('shortcut_1')(x, train=train)


class ResNet(staged.StyledModel):
  """ResNet with four groups of blocks.

  Stage 'conv1' includes its BatchNorm, activation and pooling.

  Attributes:
    blocks: number of blocks in every group.
    bottleneck: whether they are bottlenecks instead of basic blocks.
    width: channels of the first group's 3x3 convolutions; each next group has
      twice as many.
    stem: one of `STEMS`; '3x3' is that for small images.
    pooling: one of `POOLINGS`, after the stem.

  References:
    kuangliu/pytorch-cifar, models/resnet.py; mayaobuduyao/FERD,
    models/resnet.py; with stem '7x7/2' and pooling 'max' pytorch/vision,
    torchvision/models/resnet.py.
  """
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  bottleneck: bool = False
  width: int = 64
  stem: str = '3x3'
  pooling: str = 'none'

  @property
  def stages(self) -> tuple[str, ...]:
    return ('conv1', 'layer1', 'layer2', 'layer3', 'layer4', 'head')

  @property
  def default_tap(self) -> str:
    return 'layer4'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      x = self.style.conv(self.width, *STEMS[self.stem], name='conv1')(x)
      x = self.style.activate(self.style.norm('bn1')(x, train=train))
      return layers.max_pool(x) if self.pooling == 'max' else x
    if stage == 'head':
      return layers.Dense(self.num_classes, name='linear')(
          layers.global_mean(x))
    group = int(stage[-1]) - 1
    for i in range(self.blocks[group]):
      strides = 2 if group > 0 and i == 0 else 1
      block = Bottleneck if self.bottleneck else BasicBlock
      x = block(self.width * 2 ** group, strides, self.style,
                name=f'{stage}_{i}')(x, train=train)
    return x
