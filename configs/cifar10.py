"""CIFAR-10, the paper's main experiment: WRN-34-10 -> ResNet-18.

  python main.py --config=configs/cifar10.py

The teacher is RobustBench's Chen2021LTD_WRN34_10 (85.21% clean, 56.94%
AutoAttack), fetched at the first run; --config.teacher.path=FILE takes a file
of your own in its place, --config.teacher.robustbench=ID another network. The
test set comes through TFDS. Variants: `mobilenet_v2`, `released`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def _mobilenet_v2(config: config_dict.ConfigDict) -> None:
  config.student.arch = 'mobilenet_v2'


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config; `default.py` holds the paper's values for CIFAR-10."""
  config = default.get_config()
  config.name = 'cifar10'
  config.teacher.robustbench = 'Chen2021LTD_WRN34_10'
  return variants.apply(config, variant, mobilenet_v2=_mobilenet_v2)
