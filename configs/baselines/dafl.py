"""DAFL's synthesis; see `common` for data sets, docs/baselines.md for DAFL.

Variants: `zju`, the constants of GitHub zju-vipa/Fast-Datafree.
"""

import math

from ml_collections import config_dict

from configs.baselines import common


def _data(config: config_dict.ConfigDict) -> None:
  if config.data.name in ('cifar100', 'tiny_imagenet'):
    config.synthesis.w_oh = 0.5
    config.synthesis.w_balance = 20.
    config.synthesis.w_act = 0.1


def _zju(config: config_dict.ConfigDict) -> None:
  config.synthesis.w_oh = 1.
  config.synthesis.w_balance = 20 * math.log(10)  # of natural logarithms
  config.synthesis.w_act = 0.001
  config.synthesis.generator_lr = 1e-3
  config.synthesis.beta1 = 0.5
  config.synthesis.student_steps_per_round = min(5, config.distill.steps)


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('dafl', variant, original={'nz': 1000}, data=_data,
                           own={'zju': _zju}, warmup=False)
