"""CIFAR-10 with the published ResNet-20 teacher, at the paper's full length.

  python -m ferd_jax.compare cifar10 --devices=0 --max-minutes=600 \
    --config.teacher.path=CIFAR10-resnet20-adv.pth

It needs a GPU. Unattended: what fails does not stop the rest, no epoch starts
that would end after the time, and the same command goes on. Steps and rates are
those of the plan `fashion_mnist`.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config, steps = 'cifar10_resnet20:paper_length', 200
  fast = methods.with_steps('Fast', steps)
  return plans.Plan(
      name='cifar10', footnotes=methods.FOOTNOTES,
      rows=[*methods.ferd(config), *methods.ablations(config),
            *methods.losses(config, 'RSLAD'),
            *methods.baselines(
                config, 'CMI', **methods.with_steps('CMI', steps // 2)),
            *methods.baselines(
                config, 'DeepInversion',
                **methods.with_steps('DeepInversion', steps)),
            *methods.baselines(
                config, 'DFHL-RS', **methods.with_steps('DFHL-RS', steps)),
            *methods.baselines(config, 'Fast', **fast),
            methods.mixture(config, 'Fast', 'ABSLD', **fast),
            methods.mixture(config, 'Fast', 'Fair-RSLAD', **fast),
            *methods.with_data(config)],
      settings={'eval.target_examples': 0})
