"""What may raise FERD's students, on Fashion-MNIST.

  python -m ferd_jax.compare fashion_mnist_changes --jobs=2 --max-minutes=600

On the last 5,000 training images, on which no network here was trained; a
choice is made here, and the test images are for what was chosen.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  return methods.changes('fashion_mnist', 'train[55000:]', minutes=25.0)
