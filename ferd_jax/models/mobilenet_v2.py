"""MobileNetV2 for small images, with plain ReLU."""

from flax import linen as nn
import jax

from ferd_jax.models import layers
from ferd_jax.models import staged

# Expansion, output channels at width 32, blocks, stride of the first block.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
  """1x1 expansion, 3x3 depthwise and 1x1 projection.

  Unlike in the paper, a block of stride 1 whose channel count changes has a
  shortcut too, a 1x1 convolution with BatchNorm.

  Attributes:
    features: number of output channels.
    expansion: channels of the depthwise convolution over those of the input.
    strides: step of the depthwise convolution.
    style: of the network.
  """
  features: int
  expansion: int
  strides: int
  style: layers.Style

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]."""
    style = self.style
    hidden = style.conv(self.expansion * x.shape[-1], 1, name='conv1')(x)
    hidden = style.activate(style.norm('bn1')(hidden, train=train))
    hidden = layers.DepthwiseConv(self.strides, style.padding,
                                  dtype=style.dtype, name='conv2')(hidden)
    hidden = style.activate(style.norm('bn2')(hidden, train=train))
    hidden = style.conv(self.features, 1, name='conv3')(hidden)
    hidden = style.norm('bn3')(hidden, train=train)
    if self.strides != 1:
      return hidden
    if x.shape[-1] != self.features:
      x = style.conv(self.features, 1, name='shortcut_0')(x)
      x = style.norm('shortcut_1')(x, train=train)
    return hidden + x


class MobileNetV2(staged.StyledModel):
  """MobileNetV2 without the subsampling of its first layers.

  Stages: 'conv1' and 'conv2' include BatchNorm and activation; 'group1' to
  'group7' are the runs of blocks of one channel count.

  Attributes:
    width: channels of the first convolution; all others scale with it, from
      16 ... 320, 1280 at width 32. A multiple of 4, so that they stay whole.

  References:
    kuangliu/pytorch-cifar, models/mobilenetv2.py; mayaobuduyao/FERD,
    models/mobilenetv2.py.
  """
  width: int = 32

  @property
  def stages(self) -> tuple[str, ...]:
    groups = (f'group{i + 1}' for i in range(len(_GROUPS)))
    return ('conv1', *groups, 'conv2', 'head')

  @property
  def default_tap(self) -> str:
    return 'conv2'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      x = self.style.conv(self.width, name='conv1')(x)
      return self.style.activate(self.style.norm('bn1')(x, train=train))
    if stage == 'conv2':
      x = self.style.conv(self._scaled(1280), 1, name='conv2')(x)
      return self.style.activate(self.style.norm('bn2')(x, train=train))
    if stage == 'head':
      return layers.Dense(self.num_classes, name='linear')(
          layers.global_mean(x))
    group = int(stage[-1]) - 1
    expansion, features, blocks, strides = _GROUPS[group]
    # Blocks are numbered through all groups.
    first = sum(count for _, _, count, _ in _GROUPS[:group])
    for i in range(blocks):
      x = InvertedResidual(
          self._scaled(features), expansion, strides if i == 0 else 1,
          self.style, name=f'layers_{first + i}')(x, train=train)
    return x

  def _scaled(self, channels):
    return channels * self.width // 32
