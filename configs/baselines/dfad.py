"""DFAD's synthesis; see `common` for data sets, docs/baselines.md for DFAD.

Variants: `zju`, the constants of GitHub zju-vipa/Fast-Datafree.
"""

from ml_collections import config_dict

from configs.baselines import common


def _zju(config: config_dict.ConfigDict) -> None:
  config.synthesis.beta1 = 0.5
  config.synthesis.milestones = ()


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('dfad', variant, original={'nz': 256},
                           own={'zju': _zju}, warmup=False)
