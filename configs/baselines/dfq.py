"""DFQ's synthesis; see `common` for data sets, docs/baselines.md for DFQ."""

from ml_collections import config_dict

from configs.baselines import common


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('dfq', variant, original={'nz': 256}, warmup=False)
