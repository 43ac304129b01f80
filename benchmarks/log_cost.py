"""Which share of a run its display, log and pictures take.

  python benchmarks/log_cost.py runs/digits
  python benchmarks/log_cost.py runs/digits --writers=jsonl,terminal,tensorboard

Tells a terminal of 80 columns and the writers all that the run told them, with
its own numbers, as fast as they take it, and compares that with how long the
run took. docs/work_directory.md has what it gave.
"""

# It has to find the package first.

import argparse
import io
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax.core import reporting
from ferd_jax.run import progress as progresses
from ferd_jax.run import samples as sampling
from ferd_jax.run import workload


class _Screen(io.StringIO):
  """A terminal that nobody looks at."""

  def isatty(self):
    return True


def measure(run: pathlib.Path, writers: tuple[str, ...]) -> dict[str, float]:
  """Returns the seconds that each part of the telling takes, and of the run.

  Args:
    run: its work directory.
    writers: that are told.
  """
  records = [json.loads(line) for line in
             (run / progresses.METRICS).read_text().splitlines()]
  last = records[-1]
  names = [f'class {i}' for i in range(len(last['sampler/probs']))]
  spent = sum(record['seconds'] for record in records)
  steps = {phase: last[f'{phase}/steps'] for phase in ('synthesis', 'distill')}
  values = {phase: {name.partition('/')[2]: value
                    for name, value in last.items()
                    if name.startswith(f'{phase}/')
                    and isinstance(value, float)}
            for phase in steps}
  found, error = {}, sys.stderr
  with tempfile.TemporaryDirectory() as workdir:
    sys.stderr = _Screen()
    os.environ.update(COLUMNS='80', TERM='xterm')
    terminal = reporting.Terminal(active=True)
    try:
      with terminal.kept(), progresses.Progress(
          workdir, workload.Workload(
              len(records), steps=steps, batch_sizes=dict.fromkeys(steps, 32),
              class_names=names),
          reporter=terminal, writers=writers,
          identity={'name': run.name}) as shown:
        shown.begin(1)
        for phase, count in steps.items():
          started = time.perf_counter()
          for _ in range(count):
            shown.step(phase, values[phase])
          found[f'{count:,} steps, {phase}'] = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(50):
          terminal.beat()
        found['a drawing each second'] = (
            (time.perf_counter() - started) / 50 * spent)
        started = time.perf_counter()
        for record in records:
          shown.epoch(record['epoch'], record)
        found[f'{len(records)} epochs'] = time.perf_counter() - started
        started = time.perf_counter()
        pictures = sorted((run / 'samples').glob('*.npz'))
        for path in pictures:
          with np.load(path) as arrays:
            samples = sampling.Samples(
                arrays['images'], arrays['labels'],
                arrays.get('teacher_labels'), arrays.get('teacher_confidence'),
                arrays.get('pairs/clean'), arrays.get('pairs/attacked'),
                arrays.get('pairs/labels'))
          shown.pictures(1, samples, 0.1, np.array(last['sampler/probs']))
        found[f'pictures of {len(pictures)} epochs'] = (
            time.perf_counter() - started)
    finally:
      sys.stderr = error
  return found | {'training': spent}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', type=pathlib.Path)
  parser.add_argument('--writers', default='jsonl,terminal')
  args = parser.parse_args()
  found = measure(args.run, tuple(args.writers.split(',')))
  whole = found.pop('training')
  print(f'| of {whole:.0f} s of training | seconds | share |\n|---|---|---|')
  for name, seconds in found.items():
    print(f'| {name} | {seconds:.2f} | {seconds / whole:.2%} |')
  print(f'| all | {sum(found.values()):.2f} | '
        f'{sum(found.values()) / whole:.2%} |')


if __name__ == '__main__':
  main()
