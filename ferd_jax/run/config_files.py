"""Where configs are: beside the package in a checkout, in it once installed."""

import importlib
import pathlib
import sys
import types

import ferd_jax

_PACKAGE = pathlib.Path(ferd_jax.__file__).parent
# Of `configs/`.
ROOT = _PACKAGE if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent


def make_importable() -> None:
  """Lets `from configs import default` find them, wherever they are.

  A package `configs` of somebody else stays importable besides.
  """
  folder = str(ROOT / 'configs')
  try:
    package = importlib.import_module('configs')
  except ImportError:
    package = sys.modules['configs'] = types.ModuleType('configs')
  places = list(getattr(package, '__path__', []))
  if places[:1] != [folder]:
    package.__path__ = [folder, *(each for each in places if each != folder)]
