"""Distils a robust student from a robust teacher without data.

  python main.py --config=configs/digits.py
  python main.py --config=configs/cifar10.py:released \
    --config.teacher.path=FILE --config.seed=1 --workdir=runs/seed1
"""

import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from ferd_jax import train
from ferd_jax.core import parallel
from ferd_jax.evaluation import tables
from ferd_jax.run import experiment
from ferd_jax.run import work_directory

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with variants after a colon.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; default: runs/<config name>.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate'],
    'Train (or go on) and evaluate, or evaluate the saved student again.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Join the other processes of a TPU pod or cluster.')


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; a mistake in them or the config ends in one line."""
  try:
    positional = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise ValueError('Expected --config=FILE, e.g. configs/digits.py.')
    _ = _CONFIG.value.name  # A config that failed to load fails when read.
    return positional
  except Exception as error:  # A config file is code: anything can happen.
    # Its own error comes as the last line of its traceback.
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    sys.exit(f'error: {reason.strip().removeprefix("ValueError: ")}')


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
  if len(argv) > 1:
    sys.exit(f'error: Expected flags only, got {argv[1:]}.')
  config = _CONFIG.value
  workdir = _WORKDIR.value or f'runs/{config.name}'
  training = _MODE.value == 'train'
  try:
    if _DISTRIBUTED.value:
      parallel.join_processes()
    run = experiment.build(config)
    work_directory.claim(workdir, run.identity, start=training)
    results = train.finished_results(workdir) if training else None
  except (ValueError, OSError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  try:
    if not training:
      results = train.evaluate_run(run, workdir)
    elif run.parallel.agreed(results is not None):
      print(f'{workdir} is finished. --mode=evaluate evaluates it again; '
            'without the directory the run starts anew.')
    else:
      results = train.train(run, workdir)
  except (FloatingPointError, KeyboardInterrupt, OSError, ValueError) as error:
    reason = ' '.join(str(error).split())
    sys.exit(f'stopped: {reason or "interrupted; run again to go on."}')
  if results and jax.process_index() == 0:
    print(tables.text(results))


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
