"""FERD on digits with other gamma, tau, clean weight and tap.

  python -m ferd_jax.compare digits_constants --jobs=2
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config = 'digits'
  return plans.Plan(
      name='digits_constants', minutes=3.,
      rows=[*methods.ferd(config), *methods.constants(config)],
      settings={'eval.target_examples': 0, 'log.samples_every': 0})
