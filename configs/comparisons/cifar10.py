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
  return plans.Plan(
      name='cifar10', footnotes=methods.FOOTNOTES,
      rows=methods.at_one_budget(config, steps),
      settings={'eval.target_examples': 0})
