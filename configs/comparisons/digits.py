"""Every method on scikit-learn's digits, three seeds: 90 minutes on two cores.

  python -m ferd_jax.compare digits --jobs=2

Shorter runs than those of configs/digits.py, so that all fit: half the student
steps. Of the teacher's passes a method takes what its original takes; the
table has them.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config = 'digits'
  return plans.Plan(
      name='digits', minutes=2.,
      rows=[*methods.ferd(config), *methods.ablations(config),
            *methods.baselines(config), *methods.losses(config),
            *methods.with_data(config)],
      settings={'distill.steps': 300, 'eval.target_examples': 0,
                'log.samples_every': 0})
