"""The thin three-group ResNets of the original CIFAR-10 experiments.

Built of the blocks of `ferd_jax.models.resnet`.
"""

import jax

from ferd_jax.models import layers
from ferd_jax.models import resnet
from ferd_jax.models import staged


class CifarResNet(staged.StyledModel):
  """ResNet-20, -32, -44, -56 and so on.

  Stage 'conv1' includes its BatchNorm and activation.

  Attributes:
    depth: 6n + 2.
    width: channels of the first group; each next one has twice as many.
    shortcut: 'pad_both' as in akamaster/pytorch_resnet_cifar10, 'pad_after' as
      in the networks whose keys start with `conv_1_3x3`, or 'conv' as in
      chenyaofo/pytorch-cifar-models. Padding has no parameters, so a file does
      not tell the first two apart.

  References:
    He et al. 2016, arXiv:1512.03385, Sec. 4.2.
  """
  depth: int = 20
  width: int = 16
  shortcut: str = 'pad_both'

  @property
  def stages(self) -> tuple[str, ...]:
    return ('conv1', 'layer1', 'layer2', 'layer3', 'head')

  @property
  def default_tap(self) -> str:
    return 'layer3'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    if stage == 'conv1':
      x = self.style.conv(self.width, name='conv1')(x)
      return self.style.activate(self.style.norm('bn1')(x, train=train))
    if stage == 'head':
      return layers.Dense(self.num_classes, name='linear')(
          layers.global_mean(x))
    group = int(stage[-1]) - 1
    for i in range((self.depth - 2) // 6):
      strides = 2 if group > 0 and i == 0 else 1
      x = resnet.BasicBlock(self.width * 2 ** group, strides, self.style,
                            self.shortcut, name=f'{stage}_{i}')(x, train=train)
    return x
