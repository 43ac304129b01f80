"""What `pip install .` leaves out, said by whoever needs it."""

import importlib.util
import sys

# Of requirements.txt, what the attacks do without.
_TRAINING = ('flax', 'optax', 'orbax', 'ml_collections', 'safetensors')
_REPORT = ('matplotlib',)


def need_training(name: str) -> None:
  """Makes sure that the packages for training are there.

  Args:
    name: `__name__` of the module that needs them.

  Raises:
    ImportError: if one is missing; a command ends with one line instead.
  """
  _need(name, _TRAINING, 'train', 'training')


def need_report(name: str) -> None:
  """Makes sure that the packages for reports are there, as `need_training`."""
  _need(name, _REPORT, 'report', 'reports')


def _need(name, packages, extra, purpose):
  missing = [package for package in packages
             if importlib.util.find_spec(package) is None]
  if not missing:
    return
  text = (f'{", ".join(missing)} missing: this needs the extra of ferd_jax for '
          f'{purpose}; pip install "ferd_jax[{extra}]", or ".[{extra}]" in its '
          'directory.')
  if name == '__main__':
    sys.exit(f'error: {text}')
  raise ImportError(text)


def need(package: str, extra: str, what: str) -> None:
  """Makes sure that the package of an extra is there.

  Args:
    package: to import.
    extra: of ferd_jax that installs it.
    what: needs it, for the message.

  Raises:
    ValueError: if it is not.
  """
  if importlib.util.find_spec(package) is None:
    raise ValueError(f'{what} needs {package}, which is not installed: pip '
                     f'install ".[{extra}]" in the directory of ferd_jax.')
