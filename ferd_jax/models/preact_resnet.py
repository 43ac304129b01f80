"""Pre-activation ResNet-18 and -34, FERD's Tiny-ImageNet networks."""

from flax import linen as nn
import jax

from ferd_jax.models import layers
from ferd_jax.models import staged

# What the 1x1 convolution of a shortcut reads: the activated input
# relu(bn1(x)), or the raw input x.
SHORTCUT_INPUTS = ('preact', 'input')


class PreActBlock(nn.Module):
  """Pre-activation block of two 3x3 convolutions.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    shortcut_input: one of `SHORTCUT_INPUTS`.
    axis_name: axis over which BatchNorm synchronises.
  """
  features: int
  strides: int = 1
  shortcut_input: str = 'preact'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]."""
    def norm(name):
      return layers.BatchNorm(self.axis_name, name=name)

    hidden = nn.relu(norm('bn1')(x, train=train))
    shortcut = x
    if self.strides != 1 or x.shape[-1] != self.features:
      source = hidden if self.shortcut_input == 'preact' else x
      shortcut = layers.Conv(self.features, 1, self.strides,
                             name='shortcut_0')(source)
    hidden = layers.Conv(self.features, 3, self.strides, name='conv1')(hidden)
    hidden = nn.relu(norm('bn2')(hidden, train=train))
    return shortcut + layers.Conv(self.features, name='conv2')(hidden)


class PreActResNet(staged.StagedModel):
  """Pre-activation ResNet with four groups and no max-pooling.

  The output of stage 'bn' is taken before its ReLU. A file does not reveal
  the source of its shortcuts.

  Attributes:
    blocks: number of blocks in every group.
    width: channels of the first group; each next one has twice as many.
    shortcut_input: one of `SHORTCUT_INPUTS`.
    final_bn: whether BatchNorm and ReLU precede the pooling.

  References:
    mayaobuduyao/FERD, models/preactresnet.py; RobustBench/robustbench,
    model_zoo/architectures/resnet.py, for the variants.
  """
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  shortcut_input: str = 'preact'
  final_bn: bool = True

  @property
  def stages(self) -> tuple[str, ...]:
    last = ('bn', 'head') if self.final_bn else ('head',)
    return ('conv1', 'layer1', 'layer2', 'layer3', 'layer4', *last)

  @property
  def default_tap(self) -> str:
    return 'layer3'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      return layers.Conv(self.width, name=stage)(x)
    if stage == 'bn':
      return layers.BatchNorm(self.axis_name, name=stage)(x, train=train)
    if stage == 'head':
      x = layers.global_mean(nn.relu(x) if self.final_bn else x)
      return layers.Dense(self.num_classes, name='linear')(x)
    group = int(stage[-1]) - 1
    for i in range(self.blocks[group]):
      strides = 2 if group > 0 and i == 0 else 1
      x = PreActBlock(self.width * 2 ** group, strides, self.shortcut_input,
                      self.axis_name, name=f'{stage}_{i}')(x, train=train)
    return x
