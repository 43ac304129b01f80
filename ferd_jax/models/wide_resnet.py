"""WideResNet as in TRADES, FERD's CIFAR teachers and DeepMind's networks."""

import dataclasses

from flax import linen as nn
import jax

from ferd_jax.models import layers
from ferd_jax.models import staged

# N(0, sqrt(2 / (k * k * C_out))), not truncated.
_kernel_init = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


class Block(nn.Module):
  """Pre-activation block; its 1x1 shortcut reads the activated input.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    style: of the network.
  """
  features: int
  strides: int
  style: layers.Style

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, H/s, W/s, features]."""
    style = self.style
    hidden = style.activate(style.norm('bn1')(x, train=train))
    shortcut = x
    if x.shape[-1] != self.features:
      shortcut = style.conv(self.features, 1, self.strides,
                            name='convShortcut')(hidden)
    hidden = style.conv(self.features, 3, self.strides, name='conv1')(hidden)
    hidden = style.activate(style.norm('bn2')(hidden, train=train))
    return shortcut + style.conv(self.features, name='conv2')(hidden)


class WideResNet(staged.StyledModel):
  """WRN-depth-widen.

  Dropout between a block's convolutions, which FERD's code has, is left out:
  it is inactive in the frozen teacher. The output of stage 'bn1' is taken
  before its activation. DeepMind's networks, which RobustBench calls
  DMWideResNet, are those with 'silu' (Swish) and padding 'same'.

  Attributes:
    depth: 6n + 4.
    widen: widening factor of the three groups.
    width: channels of the first convolution.

  References:
    yaodongyu/TRADES, models/wideresnet.py; mayaobuduyao/FERD,
    models/wideresnet_ifd.py; RobustBench/robustbench,
    model_zoo/architectures/dm_wide_resnet.py.
  """
  depth: int = 34
  widen: int = 10
  width: int = 16

  @property
  def style(self) -> layers.Style:
    return dataclasses.replace(super().style, kernel_init=_kernel_init)

  @property
  def stages(self) -> tuple[str, ...]:
    return ('conv1', 'block1', 'block2', 'block3', 'bn1', 'head')

  @property
  def default_tap(self) -> str:
    return 'bn1'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      return self.style.conv(self.width, name=stage)(x)
    if stage == 'bn1':
      return self.style.norm(stage)(x, train=train)
    if stage == 'head':
      x = layers.global_mean(self.style.activate(x))
      return layers.Dense(self.num_classes, name='fc',
                          bias_init=nn.initializers.zeros)(x)
    group = int(stage[-1]) - 1
    features = self.width * self.widen * 2 ** group
    for i in range((self.depth - 4) // 6):
      strides = 2 if group > 0 and i == 0 else 1
      x = Block(features, strides, self.style,
                name=f'{stage}_layer_{i}')(x, train=train)
    return x
