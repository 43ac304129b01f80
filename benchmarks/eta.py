"""How wrong the time left is that a run shows, while it runs.

  python benchmarks/eta.py --config=digits --workdir=runs/eta

Runs a config from its start to its results, notes every second what a terminal
would show, and in the end compares that with what was true. The error is that
of the time left, as a share of the whole run. docs/work_directory.md has what
it gave.
"""

# ruff: noqa: E402
# It has to find the package first.

import argparse
import pathlib
import sys
import time

from etils import epath

# The package, and its configs.
_ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(_ROOT))

from ferd_jax import train
from ferd_jax.core import reporting
from ferd_jax.run import command_line
from ferd_jax.run import experiment as experiments

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


class Noting(reporting.Terminal):
  """A terminal that notes how much time it says is left."""

  def __init__(self):
    super().__init__(active=True)
    self.notes: list[tuple[float, float]] = []

  def beat(self) -> None:
    super().beat()
    left = self.left
    if left is not None:
      self.notes.append((time.monotonic(), left))


def table(notes: list[tuple[float, float]], started: float,
          ended: float) -> str:
  """Returns a Markdown table of what was said and what was true.

  Args:
    notes: times by the clock, and the seconds that were said to be left.
    started: by the same clock.
    ended: likewise.
  """
  whole = ended - started
  lines = ['| done | said to be left | left | error |', '|---|---|---|---|']
  for share in _SHARES:
    moment = started + share * whole
    at, left = min(notes, key=lambda note: abs(note[0] - moment))
    true = ended - at
    lines.append(f'| {share:.0%} | {left:.0f} s | {true:.0f} s | '
                 f'{(left - true) / whole:+.0%} |')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='digits')
  parser.add_argument('--workdir', required=True)
  args = parser.parse_args()
  config = command_line.load(args.config, _ROOT)
  reporter = Noting()
  experiment = experiments.build(config)
  started = time.monotonic()
  train.train(experiment, epath.Path(args.workdir), reporter=reporter)
  ended = time.monotonic()
  print(f'{config.name}, {ended - started:.0f} s\n')
  print(table(reporter.notes, started, ended))


if __name__ == '__main__':
  main()
