"""Fast's synthesis; see `common` for data sets, docs/baselines.md for Fast.

Variants: `two_steps` and `ten_steps`, the other two of its scripts; `wrn`, the
weights of its scripts for wide ResNets; `reptile`.
"""

from ml_collections import config_dict

from configs.baselines import common


def _steps(number: int, generator_lr: float, latent_lr: float) -> common.Change:
  def change(config):
    config.synthesis.generator_steps = number
    config.synthesis.generator_lr = generator_lr
    config.synthesis.latent_lr = latent_lr
  return change


def _wrn(config: config_dict.ConfigDict) -> None:
  config.synthesis.w_oh = 0.4
  config.synthesis.w_adv = 1.1


def _reptile(config: config_dict.ConfigDict) -> None:
  config.synthesis.meta = 'reptile'


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('fast', variant, original={'nz': 256}, own={
      'two_steps': _steps(2, 5e-3, 0.015), 'ten_steps': _steps(10, 2e-3, 0.01),
      'wrn': _wrn, 'reptile': _reptile})
