"""CMI's synthesis; see `common` for data sets, docs/baselines.md for CMI.

Variants: `scratch`, the temperature of its scripts for runs from scratch.
"""

from ml_collections import config_dict

from configs.baselines import common


def _scratch(config: config_dict.ConfigDict) -> None:
  config.synthesis.temperature = 0.1


def _data(config: config_dict.ConfigDict) -> None:
  if config.teacher.arch == 'wrn_34_10':
    # The inputs of its 31 BatchNorm layers are 11,216 features, of 40,960
    # pairs 3.7 GB; the original, too, has few of its largest teacher.
    config.synthesis.features = 'stage_outputs'
  # No bank holds more images than are made, and all that it holds are drawn
  # then: the rest would be empty places, which take a second a step on digits.
  config.synthesis.bank_draws = min(
      config.synthesis.bank_draws,
      config.num_epochs * config.synthesis.batch_size)


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config('cmi', variant, original={'nz': 256, 'steps': 200},
                           data=_data, own={'scratch': _scratch})
