"""CIFAR-10 with a published PyTorch teacher small enough for a CPU.

  python main.py --config=configs/cifar10_resnet20.py \
    --config.teacher.path=CIFAR10-resnet20-adv.pth

The teacher is the adversarially trained ResNet-20 of GitHub
fanghenshaometeor/vanilla-adversarial-training, save/CIFAR10-resnet20-adv.pth,
meant for eps 4/255. The student is a ResNet-20 of half its width. As it is, a
run takes 20 minutes on two cores and evaluates on 1,000 test images.
Variants: `paper_length` (the paper's epochs, steps, batches, generator and
L_adv, a student as wide as the teacher and all test images; the balance of the
other losses stays the small teacher's), `released`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def _paper_length(config: config_dict.ConfigDict) -> None:
  full = default.get_config()
  config.num_epochs = full.num_epochs
  config.warmup_epochs = full.warmup_epochs
  config.student.width = 16
  for group in ('synthesis', 'distill'):
    config[group].steps = full[group].steps
    config[group].batch_size = full[group].batch_size
  for name in ('width', 'generator_lr', 'latent_lr', 'w_adv'):
    config.synthesis[name] = full.synthesis[name]
  config.inner.steps = full.inner.steps
  config.eval = full.eval
  config.data.split = 'test'


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'cifar10_resnet20'
  config.num_epochs = 8
  config.warmup_epochs = 1
  config.eps = 4 / 255
  config.data.split = 'test[:1000]'
  config.teacher.arch = config.student.arch = 'cifar_resnet20'
  config.teacher.shortcut = 'pad_after'
  config.student.width = 8
  variants.balance_small_teacher(config)
  variants.fit_to_cpu(config)
  variants.synthesise_natural_images(config)
  # Nothing else was chosen for CIFAR-10, of which there are test images only.
  config.synthesis.steps = 90
  config.distill.steps = 320
  config.eval.every = 4
  config.eval.curve_examples = 500
  config.log.samples_every = 4
  return variants.apply(config, variant, paper_length=_paper_length)
