"""CIFAR-100: WRN-34-10 -> ResNet-18, or MobileNet-V2.

  python main.py --config=configs/cifar100.py

The teacher is RobustBench's Chen2021LTD_WRN34_10 for CIFAR-100, fetched at the
first run; --config.teacher.path=FILE takes a file of your own in its place.
Variants: `mobilenet_v2`, `batch512` (the best of the public code's commented
runs), `released`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def _mobilenet_v2(config: config_dict.ConfigDict) -> None:
  config.student.arch = 'mobilenet_v2'


def _batch512(config: config_dict.ConfigDict) -> None:
  config.synthesis.batch_size = 512
  config.distill.batch_size = 512
  config.distill.learning_rate = 0.2


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'cifar100'
  config.teacher.robustbench = 'Chen2021LTD_WRN34_10'
  config.data.name = 'cifar100'
  config.eval.target_examples = 1000  # 99 targets each
  return variants.apply(config, variant, mobilenet_v2=_mobilenet_v2,
                        batch512=_batch512)
