"""Every setting with the paper's value for CIFAR-10; other configs override.

  python main.py --config=configs/cifar10.py --help

prints all of them with their meanings, which stand in
ferd_jax/run/settings.py and, for the parts of the method, in their docstrings.
"""

from ml_collections import config_dict

from ferd_jax.run import settings


def get_config() -> config_dict.ConfigDict:
  """Returns the default config."""
  return settings.defaults()
