"""A robust teacher for Fashion-MNIST: a ResNet-8 trained adversarially.

  python main.py --config=teachers/fashion_mnist
  python main.py --config=fashion_mnist \
    --config.teacher.path=runs/teacher_fashion_mnist/export/student.pt

The second distils from it. PGD-AT at eps 0.1, clean and attacked images half
and half, on 55,000 training images; the other 5,000 are those on which
distillation is tuned. Variants: `trades`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'teacher_fashion_mnist'
  variants.train_adversarially(config)
  config.num_epochs = 7
  config.eps = 0.1
  config.step_size = 2.5 * 0.1 / 4
  config.inner.steps = 4
  config.data.name = 'fashion_mnist'
  config.data.train_split = 'train[:55000]'
  config.data.validation_split = 'train[55000:]'
  config.student.arch = 'cifar_resnet8'
  config.student.shortcut = 'pad_both'
  config.augment.pad = 1
  config.distill.steps = 429  # a pass
  config.distill.batch_size = 128
  config.distill.learning_rate = 0.1
  config.distill.schedule = 'one_cycle'
  # So short that robustness only grows; a point costs as much as an epoch.
  config.eval.select = 'last'
  config.eval.every = 0
  config.eval.batch_size = 100
  config.eval.attacks = ('clean', 'fgsm', 'pgd20', 'cw20')
  config.eval.target_examples = 0
  return variants.apply(config, variant)
