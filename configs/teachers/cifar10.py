"""A robust teacher for CIFAR-10: WRN-34-10 trained by TRADES, with data.

  python main.py --config=teachers/cifar10
  python main.py --config=cifar10 \
    --config.teacher.path=runs/teacher_cifar10/export/student.pt

The second distils from it. The epoch is chosen by PGD-20 on 1,000 training
images that are put aside (Rice et al., arXiv:2002.11569). Variants: `pgd_at`,
`smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'teacher_cifar10'
  variants.train_adversarially(config)
  variants.use_loss(config, 'trades')
  variants.train_long(config)
  config.data.train_split = 'train[:49000]'
  config.data.validation_split = 'train[49000:]'
  config.student.arch = 'wrn_34_10'
  config.distill.steps = 382  # a pass
  return variants.apply(config, variant, pgd_at=variants.pgd_at)
