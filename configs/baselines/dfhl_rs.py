"""DFHL-RS's synthesis; `common` has the data sets, docs/baselines.md DFHL-RS.

The student is attacked and trained as by every other synthesis.
"""

from ml_collections import config_dict

from configs.baselines import common


def _data(config: config_dict.ConfigDict) -> None:
  if config.data.name in ('cifar100', 'tiny_imagenet'):
    config.synthesis.smoothing = 0.02
    config.synthesis.generator_steps = 15
    config.synthesis.generator_lr = 5e-3
    config.synthesis.latent_lr = 0.015


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  # Its images come from the student, who has to be trained for them.
  return common.get_config('dfhl_rs', variant, original={'nz': 256}, data=_data,
                           warmup=False)
