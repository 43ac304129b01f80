"""What a network is in PyTorch: a class of `torch_networks`, its arguments.

It is said in JSON values, so that it goes into a file beside the weights.
"""

from typing import Any

from flax import linen as nn

from ferd_jax import models
from ferd_jax.models import cifar_resnet
from ferd_jax.models import mobilenet_v2
from ferd_jax.models import preact_resnet
from ferd_jax.models import resnet
from ferd_jax.models import staged
from ferd_jax.models import wide_resnet
from ferd_jax.models import xcit

_NAMINGS = {'pad_both': 'akamaster', 'pad_after': 'stage', 'conv': 'chenyaofo'}


def torch_module(model: nn.Module, channels: int = 3,
                 nz: int | None = None) -> dict[str, Any]:
  """Returns what `torch_networks.build` makes the same network of.

  Its keys are those that `torch_io` writes.

  Args:
    model: a classifier or a generator.
    channels: of a classifier's images.
    nz: size of the generator's latents.

  Returns:
    JSON values.

  Raises:
    ValueError: if there is no such network in PyTorch.
  """
  if isinstance(model, models.Generator):
    return {'module': 'Generator', 'arguments': {
        'latent_size': nz, 'side': model.side, 'channels': model.channels,
        'width': model.width, 'wide_start': model.wide_start}}
  match model:
    case wide_resnet.GroupedModel() if (
        model.padding == 'same' or model.sparse or model.squeeze):
      module, options = 'DMWideResNet', {
          'groups': [list(group) for group in model.groups],
          'squeeze': model.squeeze, 'sparse': model.sparse}
    case wide_resnet.WideResNet():
      module, options = 'WideResNet', {
          'depth': model.depth, 'widen': model.widen}
    case resnet.ResNet():
      module, options = 'ResNet', {
          'counts': list(model.blocks), 'bottleneck': model.bottleneck,
          'stem': model.stem, 'pooling': model.pooling}
    case cifar_resnet.CifarResNet():
      module, options = 'CifarResNet', {
          'depth': model.depth, 'shortcut': model.shortcut,
          'naming': _NAMINGS[model.shortcut]}
    case preact_resnet.PreActResNet(shortcut_size=3):
      module, options = 'DMPreActResNet', {'counts': list(model.blocks)}
    case preact_resnet.PreActResNet():
      module, options = 'PreActResNet', {
          'counts': list(model.blocks), 'final_bn': model.final_bn,
          'shortcut_input': model.shortcut_input}
    case mobilenet_v2.MobileNetV2():
      module, options = 'MobileNetV2', {}
    case xcit.Xcit():
      module, options = 'Xcit', {
          'depth': model.depth, 'heads': model.heads, 'patch': model.patch}
    case _:
      raise _none(model)
  found: dict[str, Any] = {'module': module, 'arguments': options | {
      'width': model.width, 'classes': model.num_classes,
      'channels': channels}}
  if isinstance(model, staged.StyledModel):
    found |= {'activation': model.activation, 'padding': model.padding}
  if model.mean is not None and model.std is not None:
    found |= {'mean': list(model.mean), 'std': list(model.std)}
  if model.standardise:
    found |= {'standardise': True}
  return found


def _none(model):
  return ValueError(
      f'Expected model={type(model).__name__} to have a twin in PyTorch, as '
      'the built-in networks have; compare its logits with those of the '
      'module that it was made after.')
