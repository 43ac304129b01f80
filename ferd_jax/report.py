"""What runs left, in one file to look at, to print and to hand on.

  python -m ferd_jax.report runs/digits
  python -m ferd_jax.report runs/a runs/b --out=both.html
  python -m ferd_jax.report runs/compare/digits --format=latex
  python -m ferd_jax.report runs/digits --figures=figures

report.html has tables and plots of a run, of several side by side, or of a
comparison; it needs no network and no other file.
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

import argparse
from collections.abc import Sequence
import pathlib
import sys

from etils import epath
import jax

from ferd_jax.comparison import latex
from ferd_jax.comparison import long_form
from ferd_jax.comparison import markdown
from ferd_jax.core import atomic
from ferd_jax.core import buckets
from ferd_jax.core import program
from ferd_jax.core import reporting
from ferd_jax.core import stopping
from ferd_jax.core import validate
from ferd_jax.reports import class_tables
from ferd_jax.reports import records
from ferd_jax.run import export
from ferd_jax.run import hub

_HTML, _REPORT = 'html', 'report.html'
_FORMATS = (_HTML, 'md', 'latex', 'csv')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog=program.name('report'), allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description=__doc__)
  add = parser.add_argument
  add('runs', nargs='+', metavar='RUN',
      help='work directories of runs, ended or not, or directories that hold '
      'some, such as those of python -m ferd_jax.compare')
  add('--out', type=pathlib.Path, metavar='FILE',
      help=f'default: {_REPORT} in the run, of several in this directory')
  add('--format', choices=_FORMATS, default=_HTML,
      help='html: the report; the others print tables alone, mean and standard '
      'deviation over seeds, and every class; default: %(default)s')
  add('--figures', type=pathlib.Path, metavar='DIR',
      help='write every plot as PDF and PNG there')
  add('--width', type=float, default=3.25, metavar='INCHES',
      help='of --figures: that of a paper\'s column, 5.5 where it has one; '
      'default: %(default)s')
  add('--reference', metavar='METHOD',
      help='that others are compared with; default: the first')
  add('--no-networks', action='store_true',
      help='load no teacher: leave out the embedding, which asks it')
  add('--push-to-hub', metavar='USER/NAME',
      help='upload what the run exported, with its report, to the Hugging Face '
      'hub; needs huggingface_hub')
  add('--private', action='store_true', help='of --push-to-hub: a new '
      'repository that its owner alone sees')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes a report as the command line says."""
  args = _parser().parse_args(argv)
  # What little is computed needs no accelerator, which a run may have.
  jax.config.update('jax_platforms', 'cpu')
  try:
    with stopping.signals():
      _report(args)
  except stopping.Stopped as stopped:
    reporting.TERMINAL.line(f'stopped: {stopped.signal.name}.')
    sys.exit(stopped.status)
  except (FloatingPointError, OSError, ValueError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')


def _report(args):
  """Does what the command line says."""
  _check(args)
  reporter = reporting.TERMINAL
  found = records.collect(args.runs, args.reference)
  if args.format != _HTML:
    if found.table is None:
      raise ValueError('Expected runs that have ended, for a table. '
                       + ' '.join(found.notes))
    reporting.show(_tables(found.table, args.format).rstrip('\n'))
    for note in found.notes:
      reporter.line(note)
    if args.figures is None:
      return
  extras.need_report('__main__')  # One line, whoever called.
  from ferd_jax.reports import page  # It needs matplotlib.
  plots = page.Plots(found, not args.no_networks, reporter)
  if args.figures is not None:
    written = page.write_figures(plots, args.figures, width=args.width,
                                 reporter=reporter)
    reporter.line(f'{len(written)} files in {args.figures}')
    if args.format != _HTML:
      return
  out = args.out or (args.runs[0] / _REPORT if len(args.runs) == 1
                     else pathlib.Path(_REPORT))
  content = page.text(plots)
  atomic.write_text(epath.Path(out), content)
  reporter.line(f'{out}: {len(content) / 1e6:.1f} MB')
  if args.push_to_hub:
    address = hub.push(args.runs[0] / export.DIRECTORY, args.push_to_hub,
                       private=args.private, files={_REPORT: out})
    reporter.line(f'Pushed to {address}')


def _check(args):
  """Makes paths of places; raises ValueError for mistakes, before it starts."""
  for place in args.runs:
    if buckets.is_one(place):
      raise ValueError(f'Expected {place} to be on this machine; reports read '
                       'no buckets.')
  args.runs = [pathlib.Path(place).expanduser() for place in args.runs]
  for place in args.runs:
    if not place.is_dir():
      raise ValueError(f'Expected {place} to be the work directory of a run, '
                       'or to hold some; there is no such directory.')
  if args.format != _HTML and args.out is not None:
    raise ValueError(f'Expected no --out beside --format={args.format}, which '
                     'prints.')
  if not 1 <= args.width <= 20:
    raise validate.SettingError('width', args.width,
                                'to be 1 to 20 inches.')
  if args.private and not args.push_to_hub:
    raise ValueError('Expected --private beside --push-to-hub alone.')
  if args.push_to_hub:
    if len(args.runs) != 1 or args.format != _HTML:
      raise ValueError('Expected one run and its report for --push-to-hub.')
    hub.client()
    if not (args.runs[0] / export.DIRECTORY / 'README.md').exists():
      raise ValueError(f'Expected {args.runs[0]} to have an export with a '
                       'README.md; a run writes it when it ends.')


def _tables(table, kind):
  """Returns the tables of methods and of classes as text."""
  if kind == 'md':
    return '\n\n'.join([markdown.main_table(table),
                        class_tables.markdown_text(table)])
  if kind == 'latex':
    return '\n'.join([latex.text(table), class_tables.latex_text(table)])
  return long_form.text(table) + class_tables.csv_text(table)


if __name__ == '__main__':
  main()
