"""Pre-activation ResNets as in FERD, RobustBench and DeepMind's networks."""

from flax import linen as nn
import jax

from ferd_jax.models import layers
from ferd_jax.models import staged

# What the convolution of a shortcut reads: the activated input, relu(bn1(x)),
# or the raw input x.
SHORTCUT_INPUTS = ('preact', 'input')


class PreActBlock(nn.Module):
  """Pre-activation block of two 3x3 convolutions.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    style: of the network.
    shortcut_input: one of `SHORTCUT_INPUTS`.
    shortcut_size: side of the shortcut's kernel.
  """
  features: int
  strides: int
  style: layers.Style
  shortcut_input: str = 'preact'
  shortcut_size: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]."""
    style = self.style
    hidden = style.activate(style.norm('bn1')(x, train=train))
    shortcut = x
    if self.strides != 1 or x.shape[-1] != self.features:
      source = hidden if self.shortcut_input == 'preact' else x
      shortcut = style.conv(self.features, self.shortcut_size, self.strides,
                            name='shortcut_0')(source)
    hidden = style.conv(self.features, 3, self.strides, name='conv1')(hidden)
    hidden = style.activate(style.norm('bn2')(hidden, train=train))
    return shortcut + style.conv(self.features, name='conv2')(hidden)


class PreActResNet(staged.StyledModel):
  """Pre-activation ResNet with four groups and no max-pooling.

  The output of stage 'bn' is taken before its activation. A file does not
  reveal the source of its shortcuts. DeepMind's networks, which RobustBench
  calls DMPreActResNet, are those with 3x3 shortcuts of the raw input, 'silu'
  (Swish) and padding 'same'.

  Attributes:
    blocks: number of blocks in every group.
    width: channels of the first group; each next one has twice as many.
    shortcut_input: one of `SHORTCUT_INPUTS`.
    final_bn: whether BatchNorm and activation precede the pooling.
    shortcut_size: side of the shortcuts' kernels, 1 or 3.

  References:
    mayaobuduyao/FERD, models/preactresnet.py; RobustBench/robustbench,
    model_zoo/architectures/resnet.py and dm_wide_resnet.py, for the variants.
  """
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  shortcut_input: str = 'preact'
  final_bn: bool = True
  shortcut_size: int = 1

  @property
  def stages(self) -> tuple[str, ...]:
    last = ('bn', 'head') if self.final_bn else ('head',)
    return ('conv1', 'layer1', 'layer2', 'layer3', 'layer4', *last)

  @property
  def default_tap(self) -> str:
    return 'layer3'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      return self.style.conv(self.width, name=stage)(x)
    if stage == 'bn':
      return self.style.norm(stage)(x, train=train)
    if stage == 'head':
      x = layers.global_mean(self.style.activate(x) if self.final_bn else x)
      return layers.Dense(self.num_classes, name='linear')(x)
    group = int(stage[-1]) - 1
    for i in range(self.blocks[group]):
      strides = 2 if group > 0 and i == 0 else 1
      x = PreActBlock(self.width * 2 ** group, strides, self.style,
                      self.shortcut_input, self.shortcut_size,
                      name=f'{stage}_{i}')(x, train=train)
    return x
