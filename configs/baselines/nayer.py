"""NAYER's noisy layers; `common` has the data sets, docs/baselines.md NAYER.

Variants: `gaussian` and `one_hot`, other embeddings of the classes.
"""

from ml_collections import config_dict

from configs.baselines import common


def _embedding(name: str) -> common.Change:
  def change(config):
    config.synthesis.embedding = name
  return change


def _data(config: config_dict.ConfigDict) -> None:
  if config.data.name in ('cifar100', 'tiny_imagenet'):
    config.synthesis.generator_steps = 40


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config(
      'nayer', variant, original={'nz': 1000, 'batch_size': 400}, data=_data,
      own={name: _embedding(name) for name in ('gaussian', 'one_hot')})
