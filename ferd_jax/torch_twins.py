"""The PyTorch networks of `torch_networks` for those of ferd_jax.models.

Nothing else in this package needs PyTorch, and nothing imports this module but
checks: what `python -m ferd_jax.convert --check` and the tests compare with.
"""

import os

import torch
from torch import nn

from ferd_jax import torch_io
from ferd_jax import torch_networks


def twin(model, channels: int = 3, nz: int | None = None) -> nn.Module:
  """Returns the PyTorch module with the names that `torch_io` writes.

  Args:
    model: a classifier or a generator.
    channels: of a classifier's images.
    nz: size of the generator's latents.

  Raises:
    ValueError: if there is none.
  """
  return torch_networks.build(torch_io.torch_module(model, channels, nz))


def load_published(net: nn.Module, path: str | os.PathLike[str]) -> None:
  """Loads a published state dict strictly but for counters.

  Files from before torch 0.4.1 have none of these.
  """
  stored = torch.load(path, map_location='cpu', weights_only=True)['state_dict']
  keys = net.load_state_dict({key.removeprefix('module.'): value
                              for key, value in stored.items()}, strict=False)
  assert not keys.unexpected_keys
  assert all(key.endswith('tracked') for key in keys.missing_keys)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
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
    elif hasattr(module, 'threshold'):  # RobustBench's MeanSparse, too.
      nn.init.normal_(module.running_mean, 0, 0.1)
      nn.init.uniform_(module.running_var, 0.5, 1.5)
      nn.init.constant_(module.threshold, 0.3)
    elif isinstance(module, nn.LayerNorm):
      nn.init.uniform_(module.weight, 0.5, 1.5)
      nn.init.normal_(module.bias, 0, 0.1)
    elif isinstance(module, torch_networks.TokenBlock
                    | torch_networks.ClassBlock | torch_networks.Xcit
                    | torch_networks.ChannelAttention):
      for parameter in module.parameters(recurse=False):
        nn.init.uniform_(parameter, 0.5, 1.5)
  return net.eval()
