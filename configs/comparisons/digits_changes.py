"""What may raise FERD's students, on digits.

  python -m ferd_jax.compare digits_changes --jobs=2

On training images, which no data-free run sees; a choice is made here, and the
test images are for what was chosen. The teacher was trained on them: what a
student keeps of its robustness is the number to look at.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  return methods.changes('digits', 'train', minutes=5.0)
