"""What a command is called, as it was started."""

import pathlib
import sys

CONSOLE = 'ferd-jax'


def name(command: str) -> str:
  """Returns how to call a command: 'ferd-jax NAME' or 'python -m ...'."""
  if pathlib.Path(sys.argv[0]).stem == CONSOLE:
    return f'{CONSOLE} {command}'
  return f'python -m ferd_jax.{command}'
