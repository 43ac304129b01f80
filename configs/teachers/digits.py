"""A robust teacher for digits: a ResNet-8 trained adversarially, with data.

  python main.py --config=teachers/digits
  python main.py --config=digits \
    --config.teacher.path=runs/teacher_digits/export/student.pt

The second distils from it. PGD-AT at eps 0.1 on all training images, clean and
attacked half and half. Variants: `trades`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'teacher_digits'
  variants.train_adversarially(config)
  config.num_epochs = 60
  config.eps = 0.1
  config.step_size = 2.5 * 0.1 / 7
  config.inner.steps = 7
  config.data.name = 'digits'
  config.student.arch = 'cifar_resnet8'
  config.student.shortcut = 'pad_both'
  config.augment.pad = 1
  config.augment.flip = False  # a mirrored digit is none
  # 18 steps are a pass over 1,198 images.
  config.distill.steps = 18
  config.distill.batch_size = 64
  config.distill.learning_rate = 0.05
  config.distill.schedule = 'one_cycle'
  # Too few images to put some aside; the rate has fallen to 0 in the last.
  config.eval.select = 'last'
  config.eval.every = 0
  config.eval.batch_size = 100
  config.eval.attacks = ('clean', 'fgsm', 'pgd20', 'cw20')
  config.eval.target_examples = 0
  return variants.apply(config, variant)
