"""Without the packages for training their extra is named."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_WITHOUT = '''
import importlib.util, runpy, sys
real = importlib.util.find_spec
def find_spec(name, *args):
  return None if name in ('flax', 'optax') else real(name, *args)
importlib.util.find_spec = find_spec
sys.argv = ['x', 'list']
'''


@pytest.mark.parametrize('command', ['evaluate', 'convert', 'teachers'])
def test_command_ends_with_one_line(command):
  done = subprocess.run(
      [sys.executable, '-c', f'{_WITHOUT}\n'
       f'runpy.run_module("ferd_jax.{command}", run_name="__main__")'],
      capture_output=True, text=True, check=False, cwd=_ROOT)
  assert done.returncode == 1
  line, = done.stderr.splitlines()
  assert line.startswith('error: flax, optax missing') and '[train]' in line


def test_import_names_the_extra():
  done = subprocess.run(
      [sys.executable, '-c', f'{_WITHOUT}\nimport ferd_jax.attacks\n'
       'import ferd_jax.train'],
      capture_output=True, text=True, check=False, cwd=_ROOT)
  assert 'ImportError: flax, optax missing' in done.stderr.splitlines()[-1]
