"""A robust teacher for Tiny-ImageNet: PreActResNet-34 trained by TRADES.

  python main.py --config=teachers/tiny_imagenet
  python main.py --config=tiny_imagenet \
    --config.teacher.path=runs/teacher_tiny_imagenet/export/student.pt

The second distils from it; no public robust network is known for these images.
The epoch is chosen by PGD-20 on 2,000 training images that are put aside.
Variants: `pgd_at`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'teacher_tiny_imagenet'
  variants.train_adversarially(config)
  variants.use_loss(config, 'trades')
  variants.train_long(config)
  config.data.name = 'tiny_imagenet'
  config.data.train_split = 'train[:98000]'
  config.data.validation_split = 'train[98000:]'
  config.student.arch = 'preact_resnet34'
  config.student.shortcut_input = 'preact'  # as configs/tiny_imagenet.py reads
  config.distill.steps = 765  # a pass
  config.eval.curve_examples = 2000
  return variants.apply(config, variant, pgd_at=variants.pgd_at)
