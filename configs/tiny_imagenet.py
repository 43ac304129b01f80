"""Tiny-ImageNet-200: PreActResNet-34 -> PreActResNet-18.

  python main.py --config=teachers/tiny_imagenet
  python main.py --config=tiny_imagenet \
    --config.teacher.path=runs/teacher_tiny_imagenet/export/student.pt

The first trains the teacher; no public robust one is known. Another is taken
from its own file.

Variants: `released`, `smoke`.
"""

from ml_collections import config_dict

from configs import default
from configs import variants


def get_config(variant: str = '') -> config_dict.ConfigDict:
  """Returns the config."""
  config = default.get_config()
  config.name = 'tiny_imagenet'
  config.data.name = 'tiny_imagenet'
  config.teacher.arch = 'preact_resnet34'
  config.teacher.shortcut_input = 'preact'  # as in the public code
  config.student.arch = 'preact_resnet18'
  config.synthesis.batch_size = 512
  config.distill.batch_size = 512
  config.distill.learning_rate = 0.2
  # 112,640 images of 64x64x3: 1.4 GB instead of 5.5.
  config.pool.dtype = 'uint8'
  config.eval.target_examples = 1000  # 199 targets each
  return variants.apply(config, variant)
