"""ResNet-18 and -34 for small images, and the block they are made of."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax.models import layers
from ferd_jax.models import staged

# What joins a block's input to its output where the shape changes: a 1x1
# convolution with BatchNorm, or the subsampled input with zero channels put
# on both sides of it or after it.
SHORTCUTS = ('conv', 'pad_both', 'pad_after')


class BasicBlock(nn.Module):
  """Post-activation block of two 3x3 convolutions.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    shortcut: one of `SHORTCUTS`.
    axis_name: axis over which BatchNorm synchronises.
  """
  features: int
  strides: int = 1
  shortcut: str = 'conv'
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), features]."""
    def norm(name):
      return layers.BatchNorm(self.axis_name, name=name)

    hidden = layers.Conv(self.features, 3, self.strides, name='conv1')(x)
    hidden = nn.relu(norm('bn1')(hidden, train=train))
    hidden = layers.Conv(self.features, name='conv2')(hidden)
    hidden = norm('bn2')(hidden, train=train)

    if self.strides == 1 and x.shape[-1] == self.features:
      residual = x
    elif self.shortcut == 'conv':
      residual = layers.Conv(self.features, 1, self.strides,
                             name='shortcut_0')(x)
      residual = norm('shortcut_1')(residual, train=train)
    else:
      extra = self.features - x.shape[-1]
      before = extra // 2 if self.shortcut == 'pad_both' else 0
      residual = jnp.pad(
          x[:, ::self.strides, ::self.strides],
          ((0, 0), (0, 0), (0, 0), (before, extra - before)))
    return nn.relu(hidden + residual)


class ResNet(staged.StagedModel):
  """ResNet with four groups of basic blocks and no max-pooling.

  Stage 'conv1' includes its BatchNorm and ReLU.

  Attributes:
    blocks: number of blocks in every group.
    width: channels of the first group; each next one has twice as many.

  References:
    kuangliu/pytorch-cifar, models/resnet.py; mayaobuduyao/FERD,
    models/resnet.py.
  """
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64

  @property
  def stages(self) -> tuple[str, ...]:
    return ('conv1', 'layer1', 'layer2', 'layer3', 'layer4', 'head')

  @property
  def default_tap(self) -> str:
    return 'layer4'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      x = layers.Conv(self.width, name='conv1')(x)
      return nn.relu(layers.BatchNorm(self.axis_name, name='bn1')(
          x, train=train))
    if stage == 'head':
      return layers.Dense(self.num_classes, name='linear')(
          layers.global_mean(x))
    group = int(stage[-1]) - 1
    for i in range(self.blocks[group]):
      strides = 2 if group > 0 and i == 0 else 1
      x = BasicBlock(self.width * 2 ** group, strides,
                     axis_name=self.axis_name, name=f'{stage}_{i}')(
                         x, train=train)
    return x
