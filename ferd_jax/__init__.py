"""Fairness-enhanced data-free adversarial robustness distillation in JAX.

`import ferd_jax` loads nothing else; `ferd_jax.attacks` and the other public
modules and functions are imported when they are first used.
"""

import importlib
import typing

if typing.TYPE_CHECKING:  # What type checkers know of `__getattr__` below.
  from ferd_jax import attacks as attacks
  from ferd_jax import data as data
  from ferd_jax import losses as losses
  from ferd_jax.benchmarking import benchmark as benchmark
  from ferd_jax.trained import load_model as load_model

__version__ = '0.3.0'

# What other code imports; everything else is the run's own. Functions by the
# modules that have them.
_FUNCTIONS = {'load_model': 'trained', 'benchmark': 'benchmarking'}
_PUBLIC = ('attacks', 'compare', 'convert', 'data', 'evaluate', 'losses',
           'models', 'report', 'teachers', 'torch_io', 'torch_networks',
           'torch_twins', 'train')


def __getattr__(name: str):
  if name in _FUNCTIONS:
    module = importlib.import_module(f'{__name__}.{_FUNCTIONS[name]}')
    return getattr(module, name)
  if name in _PUBLIC:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *_PUBLIC, *_FUNCTIONS})
