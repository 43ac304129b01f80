"""WideResNet as in TRADES, FERD's CIFAR teachers and DeepMind's networks.

And what was made of DeepMind's: RaWideResNet, with squeeze and excitation, and
either with MeanSparse layers.
"""

import dataclasses

from flax import linen as nn
import jax

from ferd_jax.models import layers
from ferd_jax.models import mean_sparse
from ferd_jax.models import staged

_SQUEEZE = 0.25  # channels inside of squeeze and excitation, a share of all
# N(0, sqrt(2 / (k * k * C_out))), not truncated.
_kernel_init = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


class SqueezeExcitation(nn.Module):
  """Scales channels by what a small network makes of their means.

  References: pytorch/vision, torchvision/ops/misc.py, with ReLU and sigmoid.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float [B, H, W, C] to the same shape."""
    channels = x.shape[-1]
    means = layers.global_mean(x)[:, None, None]
    def conv(features, name):
      return layers.Conv(features, 1, use_bias=True, kernel_init=_kernel_init,
                         name=name)
    hidden = nn.relu(conv(round(_SQUEEZE * channels), 'fc1')(means))
    scale = nn.sigmoid(conv(channels, 'fc2')(hidden))
    return x * scale.astype(x.dtype)


class Block(nn.Module):
  """Pre-activation block; its 1x1 shortcut reads the activated input.

  Attributes:
    features: number of output channels.
    strides: step of the first convolution.
    style: of the network.
    squeeze: whether the last convolution is followed by squeeze and excitation.
    sparse: how the inputs of activations and the sum are sparsified.
  """
  features: int
  strides: int
  style: layers.Style
  squeeze: bool = False
  sparse: mean_sparse.Sparse = mean_sparse.Sparse()

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to [B, H/s, W/s, features]."""
    style, sparse = self.style, self.sparse
    hidden = sparse('meansparse_0', style.norm('bn1')(x, train=train))
    hidden = style.activate(hidden)
    shortcut = x
    if x.shape[-1] != self.features:
      shortcut = style.conv(self.features, 1, self.strides,
                            name='convShortcut')(hidden)
    hidden = style.conv(self.features, 3, self.strides, name='conv1')(hidden)
    hidden = sparse('meansparse_1', style.norm('bn2')(hidden, train=train))
    hidden = style.conv(self.features, name='conv2')(style.activate(hidden))
    if self.squeeze:
      hidden = SqueezeExcitation(name='se')(hidden)
    return sparse('meansparse_2', shortcut + hidden)


class GroupedModel(staged.StyledModel):
  """What WideResNets have in common: three groups of blocks.

  The output of stage 'bn1' is taken before its activation.

  Attributes:
    width: channels of the first convolution.
    sparse: whether there are MeanSparse layers.
    straight_through: of these, see `mean_sparse.MeanSparse`.
  """
  width: int = 16
  sparse: bool = False
  straight_through: bool = False
  squeeze = False  # Whether blocks end with squeeze and excitation.

  @property
  def groups(self) -> tuple[tuple[int, int], ...]:
    """Blocks and channels of each group."""
    raise NotImplementedError

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
    sparse = mean_sparse.Sparse(self.sparse, self.straight_through)
    if stage == 'conv1':
      return self.style.conv(self.width, name=stage)(x)
    if stage == 'bn1':
      return sparse('meansparse_end', self.style.norm(stage)(x, train=train))
    if stage == 'head':
      x = layers.global_mean(self.style.activate(x))
      return layers.Dense(self.num_classes, name='fc',
                          bias_init=nn.initializers.zeros)(x)
    group = int(stage[-1]) - 1
    blocks, features = self.groups[group]
    for i in range(blocks):
      strides = 2 if group > 0 and i == 0 else 1
      x = Block(features, strides, self.style, self.squeeze, sparse,
                name=f'{stage}_layer_{i}')(x, train=train)
    return x


class WideResNet(GroupedModel):
  """WRN-depth-widen.

  Dropout between a block's convolutions, which FERD's code has, is left out:
  it is inactive in the frozen teacher. DeepMind's networks, which RobustBench
  calls DMWideResNet, are those with 'silu' (Swish) and padding 'same'; those
  with MeanSparse layers were made of them.

  Attributes:
    depth: 6n + 4.
    widen: widening factor of the three groups.
    width: channels of the first convolution.

  References:
    yaodongyu/TRADES, models/wideresnet.py; mayaobuduyao/FERD,
    models/wideresnet_ifd.py; RobustBench/robustbench,
    model_zoo/architectures/dm_wide_resnet.py and Meansparse_wrn_70_16.py.
  """
  depth: int = 34
  widen: int = 10

  @property
  def groups(self) -> tuple[tuple[int, int], ...]:
    return tuple(((self.depth - 4) // 6, self.width * self.widen * 2 ** group)
                 for group in range(3))


class RaWideResNet(GroupedModel):
  """RaWRN: another number of blocks in each group, squeeze and excitation.

  With 'silu' and padding 'same' it is RaWRN-70-16.

  Attributes:
    blocks: of each group.
    width: channels of the first convolution, a multiple of 4; the groups have
      9/4, 9/2 and 9 times as many.

  References: Peng et al. 2023, arXiv:2308.16258; RobustBench/robustbench,
    model_zoo/architectures/robustarch_wide_resnet.py and, with MeanSparse,
    Meansparse_ra_wrn_70_16.py.
  """
  blocks: tuple[int, int, int] = (30, 31, 10)
  width: int = 96
  squeeze = True

  @property
  def groups(self) -> tuple[tuple[int, int], ...]:
    return tuple((blocks, self.width * 9 // 4 * 2 ** group)
                 for group, blocks in enumerate(self.blocks))
