"""Trains a run, or evaluates its student again: what main.py does.

  python main.py --config=configs/digits.py
  python main.py --config=cifar10:released --config.seed=1 --workdir=runs/seed1
  python main.py --config=teachers/digits    a teacher, trained with data
  python main.py --config=cifar10 --help     every setting and its meaning

Installed, it is `ferd-jax train`, from any directory.
"""


# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

from collections.abc import Sequence
import sys

from absl import app
from absl import flags
from absl import logging
import jax

from ferd_jax import train
from ferd_jax.core import buckets
from ferd_jax.core import compilation
from ferd_jax.core import parallel
from ferd_jax.core import reporting
from ferd_jax.core import stopping
from ferd_jax.evaluation import tables
from ferd_jax.run import command_line
from ferd_jax.run import config_files
from ferd_jax.run import experiment as experiments
from ferd_jax.run import work_directory

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; default: runs/<config name>.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate'],
    'Train (or go on) and evaluate, or evaluate the saved student again.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Join the other processes of a TPU pod, or of a '
    'SLURM or MPI job.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of the first process, to join others that '
    'JAX does not find by itself; with the next two.')
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'Which of them this one is, from 0.')


def _parse(argv: list[str]) -> command_line.Parsed:
  """Parses the command line; a mistake in it ends in one line."""
  try:
    with stopping.signals():
      parsed = command_line.parse(argv, config_files.ROOT)
  except ValueError as error:
    sys.exit(f'error: {error}')
  except stopping.Stopped as stopped:
    reporting.TERMINAL.line(
        f'stopped: {stopped.signal.name}; nothing was begun.')
    sys.exit(stopped.status)
  if parsed.wants_help:
    about = ('Configs:\n' + command_line.names_text(config_files.ROOT)
             if parsed.config is None else
             f'Settings:{command_line.help_text(parsed.config)}')
    reporting.show(f'{__doc__}{flags.FLAGS.module_help(__name__)}\n\n{about}')
    sys.exit(0)
  return parsed


def main(argv: Sequence[str] | None = None) -> None:
  """Does what a command line says, without the program; default: this one."""
  app.run(_main, argv=None if argv is None else ['ferd-jax train', *argv],
          flags_parser=_parse)


def _main(parsed: command_line.Parsed) -> None:
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
  if len(parsed.positional) > 1:
    sys.exit(f'error: Expected flags only, got {parsed.positional[1:]}.')
  config = parsed.config
  assert config is not None  # `_parse` ends where help was asked for.
  workdir = _WORKDIR.value or f'runs/{config.name}'
  with stopping.signals() as stop:
    try:
      _run(parsed, workdir, stop)
    except stopping.Stopped as stopped:
      saved = work_directory.saved_epochs(workdir)
      kept = (f'epoch {saved[-1]} of {config.num_epochs} is saved'
              if saved else 'no epoch was finished')
      reporting.TERMINAL.line(
          f'stopped: {stopped.signal.name}; {kept}; run again to go on.')
      sys.exit(stopped.status)


def _run(parsed: command_line.Parsed, workdir: str,
         stop: stopping.Stop) -> None:
  """Trains or evaluates what a command line's config describes."""
  training = _MODE.value == 'train'
  try:
    buckets.check(workdir)
    others = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if _DISTRIBUTED.value or others != (None,) * 3:
      parallel.join_processes(*others)
    compilation.keep_programs()
    experiment = experiments.build(parsed.config, to_train=training)
    work_directory.claim(workdir, experiment.identity, start=training)
    results = train.finished_results(workdir) if training else None
  except (ValueError, OSError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  reporter = stop.reporter(reporting.TERMINAL)
  try:
    with stop.deferred(), compilation.counted() as programs:
      if not training:
        results = train.evaluate_run(experiment, workdir, reporter=reporter)
      elif experiment.parallel.agreed(results is not None):
        if jax.process_index() == 0:
          print(f'{workdir} is finished. --mode=evaluate evaluates it again; '
                'without the directory the run starts anew.')
      else:
        results = train.train(experiment, workdir, reporter=reporter)
    reporter.line(f'{programs}.')
  except (FloatingPointError, OSError, ValueError) as error:
    sys.exit(f'stopped: {" ".join(str(error).split())}')
  if results and jax.process_index() == 0:
    print(tables.text(results))

