"""At which rates other syntheses make better students, on digits.

  python -m ferd_jax.compare digits_rates --jobs=2

Each at its original's rate and at five times it, once, on training images,
which no data-free run sees. FERD's own rate was chosen so before: five times
the paper's.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  return methods.rates('digits:short', 'train', minutes=2.0,
                       steps=methods.as_many_steps(100))
