"""What may raise FERD's students, on Fashion-MNIST.

  python -m ferd_jax.compare fashion_mnist_changes --jobs=2 --max-minutes=600

On the last 5,000 training images, on which no network here was trained; a
choice is made here, and the test images are for what was chosen.
"""

from configs.comparisons import methods
from ferd_jax.comparison import plan as plans


def get_plan() -> plans.Plan:
  """Returns the plan."""
  config = 'fashion_mnist'
  return plans.Plan(
      name='fashion_mnist_changes', minutes=25.,
      rows=[*methods.ferd(config), *methods.changes(config)],
      settings={'data.split': 'train[55000:]', 'eval.target_examples': 0,
                'log.samples_every': 0})
