"""One command for all: `ferd-jax train`, `ferd-jax evaluate`, ...

  ferd-jax COMMAND [OPTIONS]     the same as python -m ferd_jax COMMAND ...
  ferd-jax COMMAND --help

"""

from collections.abc import Sequence
import importlib
import sys

import ferd_jax
from ferd_jax.core import extras
from ferd_jax.core import validate

# Of each the module whose `main` it is, and what it does.
COMMANDS = {
    'train': ('train_command', 'train a run, or go on: main.py'),
    'evaluate': ('evaluate', 'evaluate the robustness of a model or run'),
    'compare': ('compare', 'run methods x seeds and put them into one table'),
    'report': ('report', 'show runs as a page, tables and figures'),
    'convert': ('convert', 'convert weights between Flax and PyTorch'),
    'teachers': ('teachers', 'list the teachers of RobustBench that load'),
}


def _usage() -> str:
  width = max(map(len, COMMANDS))
  return __doc__.strip() + '\n\n' + '\n'.join(
      f'  {name:{width}}  {what}' for name, (_, what) in COMMANDS.items())


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a command; default: the one of this process' command line."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ('-h', '--help'):
    print(_usage())
    sys.exit(0 if argv else 2)
  name, *rest = argv
  if name == '--version':
    print(ferd_jax.__version__)
    return
  if name not in COMMANDS:
    print(f'error: Expected a command, one of {", ".join(COMMANDS)}, got '
          f'{name!r}.{validate.nearest(name, COMMANDS)}', file=sys.stderr)
    sys.exit(2)
  extras.need_training('__main__')  # Before an import fails with a traceback.
  importlib.import_module(f'ferd_jax.{COMMANDS[name][0]}').main(rest)


if __name__ == '__main__':
  main()
