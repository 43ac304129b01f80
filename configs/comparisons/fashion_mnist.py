"""FERD's claim on Fashion-MNIST, at one budget for all.

  python -m ferd_jax.compare fashion_mnist --jobs=2 --max-minutes=600

Runs of the variant `short`. All get as many student steps and synthetic
images, and as many passes through the teacher within a tenth, FERD's sampler's
among them: 100 steps an epoch with one view of each image, 50 with CMI's two.
DFHL-RS asks the student in place of the teacher; real images are made by
nobody. Rates are those of `methods`. AutoAttack 'fast' is on the first
1,000 test images.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config, steps = 'fashion_mnist:short', 100
  return plans.Plan(
      name='fashion_mnist', minutes=15., footnotes=methods.FOOTNOTES,
      rows=methods.at_one_budget(config, steps),
      settings={'eval.autoattack_examples': 1000, 'eval.target_examples': 0,
                'eval.every': 1, 'log.samples_every': 0})
