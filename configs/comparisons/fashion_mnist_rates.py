"""At which rates other syntheses make better students, on Fashion-MNIST.

  python -m ferd_jax.compare fashion_mnist_rates --jobs=2

Those of the plan `fashion_mnist`, each at its original's rate and at five times
it, once, on the last 5,000 training images, on which no network here was
trained. FERD's own rate was chosen so before.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  return methods.rates('fashion_mnist:short', 'train[55000:]', minutes=8.0,
                       steps=methods.as_many_passes(100))
