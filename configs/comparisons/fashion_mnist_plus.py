"""Whether FERD's parts pay once its images are good, on Fashion-MNIST.

  python -m ferd_jax.compare fashion_mnist_plus --jobs=2

On the test images: nothing is chosen here.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  return methods.plus('fashion_mnist', minutes=25.0, steps=200)
