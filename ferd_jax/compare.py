"""Methods in one table: configs x settings x seeds, run, measured, compared.

  python -m ferd_jax.compare digits
  python -m ferd_jax.compare --config=digits --seeds=0,1,2 \
    --row="uniform labels: --config.sampler.name=uniform"
  python -m ferd_jax.compare runs/a runs/b runs/c

The first runs a plan of configs/comparisons/ (or a file of yours), the second a
plan made here; the same command goes on where it stopped. The third makes the
table of runs that are there.
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

import argparse
from collections.abc import Sequence
import contextlib
import json
import pathlib
import re
import sys

from etils import epath
import jax

from ferd_jax.comparison import latex
from ferd_jax.comparison import long_form
from ferd_jax.comparison import markdown
from ferd_jax.comparison import outcomes
from ferd_jax.comparison import overview
from ferd_jax.comparison import plan as plans
from ferd_jax.comparison import running
from ferd_jax.comparison import table as tables
from ferd_jax.core import atomic
from ferd_jax.core import buckets
from ferd_jax.core import program
from ferd_jax.core import reporting
from ferd_jax.core import stopping
from ferd_jax.core import validate

_SETTING = re.compile(r'--?(?:no)?config\.')


class _Parser(argparse.ArgumentParser):
  """Collects settings of all rows, `--config.eps=0.1`, in `settings`."""

  def parse_known_args(self, args=None, namespace=None):
    args = sys.argv[1:] if args is None else list(args)
    settings = [arg for arg in args if _SETTING.match(arg)]
    for setting in settings:
      if '=' not in setting and not setting.lstrip('-').startswith('noconfig'):
        self.error(f'Expected {setting}=VALUE.')
    found, rest = super().parse_known_args(
        [arg for arg in args if not _SETTING.match(arg)], namespace)
    found.settings = settings
    return found, rest


def _numbers(text: str) -> list[int]:
  return [int(each) for each in text.split(',')]


def _names(text: str) -> list[str]:
  return [each.strip() for each in text.split(',') if each.strip()]


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
      prog=program.name('compare'), allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description=__doc__, epilog='--config.NAME=VALUE is a setting for all '
      'rows, as main.py takes it.')
  add = parser.add_argument
  add('what', nargs='*', help='a plan, or work directories of runs (or '
      'directories that hold some) to make a table of')
  add('--config', action='append', default=[], metavar='CONFIG',
      help='a config of main.py, a row as it is; may be given several times')
  add('--row', action='append', default=[], metavar='"NAME: SETTINGS"',
      help='a further row for each config: "uniform: '
      '--config.sampler.name=uniform"')
  add('--seeds', type=_numbers, metavar='0,1,2',
      help="default: the plan's, or 0,1,2")
  add('--only', action='append', default=[], metavar='ROW',
      help='this row only; may be given several times')
  add('--reference', metavar='ROW',
      help='that the others are compared with; default: the first')
  add('--workdir', help='of the runs and tables; default: '
      'runs/compare/<plan>; for a table of runs: nothing is written')
  add('--devices', type=_names, default=[], metavar='0,1',
      help='GPUs, a run on each at a time; default: a run has all devices')
  add('--jobs', type=int, help='runs at a time; default: one, or one a device')
  add('--max-minutes', type=float, default=0., help='start no epoch that may '
      'end later; the same command goes on; 0: no limit')
  add('--dry-run', action='store_true', help='show the plan and stop')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Compares as the command line says."""
  args = _parser().parse_args(argv)
  # This process only checks; devices are for the runs.
  jax.config.update('jax_platforms', 'cpu')
  try:
    with stopping.signals():
      status = _compare(args)
  except (OSError, ValueError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  except stopping.Stopped as stopped:
    reporting.TERMINAL.line(f'stopped: {stopped.signal.name}; the same command '
                            'goes on.')
    status = stopped.status
  sys.exit(status)


def _compare(args):
  """Does what the command line says; returns the exit status."""
  for option, place in (*(('', place) for place in args.what),
                        ('--workdir=', args.workdir)):
    if place and buckets.is_one(place):
      raise ValueError(f'Expected {option}{place} to be on this machine; a '
                       'comparison reads and writes no buckets.')
  if args.workdir is not None:
    args.workdir = pathlib.Path(args.workdir)
  validate.non_negative(max_minutes=args.max_minutes)
  if args.jobs is not None:
    validate.count(jobs=args.jobs)
  directories = [pathlib.Path(each) for each in args.what
                 if pathlib.Path(each).is_dir()]
  if args.what and len(directories) == len(args.what):
    _of_directories(directories, args)
    return 0
  return _of_plan(_plan(args), args)


def _plan(args):
  """Returns the plan that the command line names or makes."""
  if len(args.what) > 1 or bool(args.what) == bool(args.config):
    raise ValueError('Expected one plan, or work directories of runs, or '
                     f'--config=CONFIG; got {args.what or "neither"}.')
  if args.what:
    if args.row:
      raise ValueError('Expected no --row beside a plan; it has its own.')
    plan = plans.load(args.what[0])
    if args.seeds:
      plan = plan.with_seeds(args.seeds)
  else:
    plan = plans.from_flags(args.config, args.row, args.seeds or (0, 1, 2))
  return plan.only(args.only) if args.only else plan


def _of_directories(directories, args):
  """Shows, and perhaps writes, the table of runs that are there."""
  for option in ('config', 'row', 'seeds', 'devices', 'jobs', 'max_minutes',
                 'dry_run', 'settings'):
    if getattr(args, option):
      raise ValueError(f'Expected no --{option.replace("_", "-")} for a table '
                       'of runs that are there.')
  found, notes = [], []
  for workdir in outcomes.work_directories(directories):
    outcome = outcomes.load(workdir)
    if outcome is None:
      notes.append(f'{workdir}: the run has not ended')
    else:
      found.append(outcome)
  methods = overview.named(found, directories)
  if args.only:
    methods = {name: methods[name] for name in methods if name in args.only}
  table = tables.Table(methods, args.reference)
  if args.workdir is not None:
    _write(args.workdir, table, notes)
  reporting.show(markdown.text(table, notes))


def _of_plan(plan, args):
  """Runs what is not finished and writes the table; returns the exit status."""
  workdir = args.workdir or pathlib.Path('runs') / 'compare' / plan.name
  runs = plans.runs(plan, workdir, args.settings)
  if args.reference and args.reference not in {row.name for row in plan.rows}:
    raise ValueError(f'Expected reference={args.reference!r} to be a row.')
  places = running.slots(args.devices, args.jobs)
  estimate = running.Estimate(runs, plan.minutes, len(places.environments))
  overview.show(plan, runs, workdir, estimate, len(places.environments))
  if args.dry_run:
    return 0
  atomic.write_text(epath.Path(workdir) / overview.ROWS, json.dumps(
      {row.directory: row.name for row in plan.rows}, indent=2) + '\n')
  reasons = {}
  # A signal ends the runs, too: leaving the iteration stops them.
  with reporting.TERMINAL.kept(), contextlib.closing(running.execute(
      runs, places, estimate, max_minutes=args.max_minutes,
      reporter=reporting.TERMINAL)) as ended:
    for run, reason in ended:
      if reason:
        reasons[run.row, run.seed] = reason
      _table(runs, workdir, reasons, args.reference, plan.footnotes)
  table, notes = _table(runs, workdir, reasons, args.reference, plan.footnotes)
  if table is None:
    print('\n'.join(notes))
  else:
    print(markdown.main_table(table), *notes, sep='\n')
    print(f'\nAll tables: {workdir}/table.md, .csv, .tex')
  # That the time is over is no failure.
  return int(any(reason != running.TIME for reason in reasons.values()))


def _table(runs, workdir, reasons, reference, footnotes):
  """Writes the table of what is finished; returns it and the notes."""
  methods, notes = {}, []
  for run in runs:
    outcome = outcomes.load(run.workdir, run.config.eval)
    if outcome is not None:
      methods.setdefault(run.row, []).append(outcome)
    else:
      reason = reasons.get((run.row, run.seed), 'not run yet')
      notes.append(f'{run.row}, seed {run.seed}: {reason}')
  if not methods:
    return None, notes
  order = list(dict.fromkeys(run.row for run in runs))
  methods = {row: methods[row] for row in order if row in methods}
  table = tables.Table(methods,
                       reference if reference in methods else None)
  _write(workdir, table, notes, footnotes)
  return table, notes


def _write(workdir, table, notes, footnotes=()):
  workdir = epath.Path(workdir)
  atomic.write_text(workdir / 'table.md',
                    markdown.text(table, notes, footnotes))
  atomic.write_text(workdir / 'table.csv', long_form.text(table))
  atomic.write_text(workdir / 'table.tex', latex.text(table, footnotes))


if __name__ == '__main__':
  main()
