"""Robust teachers by their RobustBench id, on the command line.

  python -m ferd_jax.teachers list
  python -m ferd_jax.teachers fetch cifar10 Chen2021LTD_WRN34_10
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

import argparse
from collections.abc import Sequence
import sys

from ferd_jax.core import program
from ferd_jax.core import reporting
from ferd_jax.weights import robustbench


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog=program.name('teachers'), allow_abbrev=False,
      description='Robust teachers by their RobustBench id.')
  commands = parser.add_subparsers(dest='command', required=True)
  datasets = sorted({entry.dataset for entry in robustbench.entries()})
  listing = commands.add_parser('list', help='print the supported ids')
  listing.add_argument('--dataset', choices=datasets)
  listing.add_argument('--norm', choices=robustbench.NORMS)
  fetching = commands.add_parser('fetch', help='download a file, print where')
  fetching.add_argument('dataset', choices=datasets)
  fetching.add_argument('id', help='as listed; L2/ID for one against L2')
  fetching.add_argument('--norm', choices=robustbench.NORMS)
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Lists the table or fetches a file, as the command line says."""
  args = _parser().parse_args(argv)
  if args.command == 'list':
    reporting.show(robustbench.table(args.dataset, args.norm))
    return
  try:
    teacher = robustbench.find(args.dataset, args.id, args.norm)
    print(robustbench.fetch(teacher))
    if teacher.remark:
      reporting.TERMINAL.line(f'Warning: {teacher.remark}')
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
