"""ZSKT's synthesis; see `common` for data sets, docs/baselines.md for ZSKT.

Variants: `zju`, the constants of GitHub zju-vipa/Fast-Datafree.
"""

from ml_collections import config_dict

from configs.baselines import common


def _zju(config: config_dict.ConfigDict) -> None:
  config.synthesis.nz = 256
  config.synthesis.beta1 = 0.5
  config.synthesis.fresh = True
  config.synthesis.cosine = False
  config.synthesis.student_steps_per_round = min(5, config.distill.steps)


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('zskt', variant, original={'nz': 100},
                           own={'zju': _zju}, warmup=False)
