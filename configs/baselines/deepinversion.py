"""DeepInversion's synthesis; `common` has the data sets, docs/baselines.md it.

Variants: `adaptive`, with the student's disagreement; `zju`, the constants of
GitHub zju-vipa/CMI, which distils with it.
"""

from ml_collections import config_dict

from configs.baselines import common


def _adaptive(config: config_dict.ConfigDict) -> None:
  config.synthesis.w_js = 1.


def _zju(config: config_dict.ConfigDict) -> None:
  if config.synthesis.steps == 2000:
    config.synthesis.steps = 1000
  config.synthesis.beta1 = 0.5
  config.synthesis.beta2 = 0.99
  config.synthesis.roll = {64: 8, 32: 4, 28: 3, 8: 1}[_side(config)]
  config.synthesis.roll_flip = config.augment.flip
  config.synthesis.w_bn = 10.
  config.synthesis.variation = 'l1'
  config.synthesis.w_tv = 0.001
  config.synthesis.w_js = 1.
  config.synthesis.clip_js = False


def _side(config):
  return {'tiny_imagenet': 64, 'digits': 8, 'fashion_mnist': 28}.get(
      config.data.name, 32)


def _data(config: config_dict.ConfigDict) -> None:
  # The original's two pixels are a sixteenth of CIFAR's side.
  config.synthesis.roll = max(1, _side(config) // 16)


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  return common.get_config(
      'deepinversion', variant, original={'steps': 2000}, data=_data,
      own={'adaptive': _adaptive, 'zju': _zju})
