"""scikit-learn's digits: the whole job in minutes on a laptop, no download.

  python main.py --config=configs/digits.py

The teacher, a ResNet-8 adversarially trained at eps 0.1, is shipped with the
package; the student has half its width. Variants: `released`, `smoke`, and
`short`, a third of the work, for comparisons of many runs.
"""

from ml_collections import config_dict

from configs import default
from configs import variants
from ferd_jax import assets


def _short(config: config_dict.ConfigDict) -> None:
  config.num_epochs = 5
  config.synthesis.steps = 100
  config.synthesis.batch_size = 128
  config.distill.steps = 300


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'digits'
  config.num_epochs = 6
  config.warmup_epochs = 1
  config.eps = 0.1
  config.data.name = 'digits'
  config.teacher.arch = config.student.arch = 'cifar_resnet8'
  config.teacher.path = assets.path('digits_resnet8_adv.safetensors')
  config.teacher.shortcut = 'pad_both'
  config.student.width = 8
  config.augment.pad = 1
  config.augment.flip = False  # a mirrored digit is none
  variants.balance_small_teacher(config)
  variants.fit_to_cpu(config)
  config.synthesis.steps = 150
  config.synthesis.batch_size = 256
  config.synthesis.generator_lr = 5e-3
  config.distill.steps = 600
  # On training images 79% withstand PGD-20 with five, 82% with ten (600 steps).
  config.inner.steps = 10
  # RSLAD's weights, not the paper's: more robustness in few steps.
  config.outer.w_clean, config.outer.w_adv = 1 / 6, 5 / 6
  config.eval.every = 2
  config.eval.curve_examples = 0
  config.log.samples_every = 2
  return variants.apply(config, variant, short=_short)
