"""A bit that flips on the disk is seen, or changes nothing.

  python tests/faults/flips_test.py 200 0    so many flips from a seed

Each flip is in a file that a run goes on from: Orbax' of the last checkpoint,
the pool's, or metrics.jsonl. What is resumed must be, to the last bit, what was
saved of the epoch that it is of.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import collections
import contextlib
import io
import os
import pathlib
import random
import shutil
import sys
import tempfile

import jax
import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

from ferd_jax.core import reporting

_EPOCHS = 3


class Lines(reporting.Reporter):
  """Keeps the lines that it is told."""

  def __init__(self):
    self.lines = []

  def line(self, text):
    self.lines.append(text)


class Run:
  """A run of three epochs and what it saved."""

  def __init__(self, folder):
    import tiny

    from ferd_jax import train
    self.workdir = folder / 'whole'
    self.experiment = tiny.claim(
        tiny.config(num_epochs=_EPOCHS + 1), self.workdir)
    self._like = self.experiment.initial_state(0)
    train.train(self.experiment, self.workdir, stop_after=_EPOCHS,
                reporter=reporting.SILENT)
    self._last = self.resumed(self.workdir)
    before = folder / 'before'
    shutil.copytree(self.workdir, before)
    shutil.rmtree(before / 'checkpoints' / str(_EPOCHS))
    self._before = self.resumed(before)

  def resumed(self, workdir, reporter=reporting.SILENT):
    """Returns epoch, state, pool and metrics from which a run would go on."""
    from ferd_jax import train
    from ferd_jax.run import checkpoints as checkpointing
    from ferd_jax.run import progress
    from ferd_jax.run import state as states
    from ferd_jax.run import workload
    from ferd_jax.synthesis import pool as pools
    method = self.experiment.method
    made = train._images_per_epoch(method)
    pool = pools.Pool.empty((_EPOCHS + 1) * made, method.image_shape)
    with checkpointing.Checkpoints(
        workdir, method, identity=self.experiment.identity) as checkpoints:
      state, epoch, lines = checkpoints.resume(
          self._like, pool, made, reporter)
    with progress.Progress(
        workdir, workload.Workload(1), epoch, reporter, lines) as shown:
      lines = shown.lines
    return (epoch, jax.tree.map(np.asarray, states.without_keys(state)),
            pool.images[:pool.count], pool.labels[:pool.count], lines,
            (workdir / progress.METRICS).read_text().splitlines()[:epoch])

  def outcome(self, workdir):
    """Returns how resuming from a damaged copy went, and what was said."""
    reporter = Lines()
    try:
      found = self.resumed(workdir, reporter)
    except (OSError, ValueError) as error:
      assert '\n' not in str(error)
      return 'stopped', [str(error)]
    expected = self._last if found[0] == _EPOCHS else self._before
    for one, other in zip(*map(jax.tree.leaves, (found, expected)),
                          strict=True):
      np.testing.assert_array_equal(one, other)
    if found[0] < _EPOCHS:
      assert reporter.lines, 'went back without a word'
      return 'went back', reporter.lines
    return 'warned' if reporter.lines else 'harmless', reporter.lines


def flip(path, rng):
  """Flips a bit of a file."""
  content = bytearray(path.read_bytes())
  place = rng.randrange(8 * len(content))
  content[place // 8] ^= 1 << place % 8
  path.write_bytes(content)
  return place


def targets(workdir):
  """Returns the files that a run goes on from, by what they are of."""
  return {
      'checkpoint': sorted(path for path in (
          workdir / 'checkpoints' / str(_EPOCHS)).rglob('*')
          if path.is_file() and path.stat().st_size),
      'pool': sorted((workdir / 'pool').iterdir()),
      'metrics': [workdir / 'metrics.jsonl']}


def flips(run, number, seed, folder):
  """Flips bits, each in a new copy; returns the outcomes counted."""
  counts = collections.Counter()
  for i in range(number):
    rng = random.Random(f'{seed}/{i}')
    workdir = folder / 'copy'
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(run.workdir, workdir)
    kinds = targets(workdir)
    kind = rng.choices(list(kinds), (8, 3, 1))[0]
    # Most of what there is are arrays: files by their size.
    path = rng.choices(kinds[kind], [
        path.stat().st_size for path in kinds[kind]])[0]
    place = flip(path, rng)
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
      what, lines = run.outcome(workdir)
    where = f'{path.relative_to(workdir)}, bit {place}'
    assert not shown.getvalue(), f'{where}: {shown.getvalue()}'
    assert len(lines) <= 2, f'{where}: {lines}'
    counts[f'{kind}: {what}'] += 1
  return counts


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return Run(tmp_path_factory.mktemp('flips'))


def test_a_flipped_bit_is_seen_or_harmless(run, tmp_path, capfd):
  counts = flips(run, 10, 0, tmp_path)
  assert not capfd.readouterr().err
  # Which files there are to choose from is Orbax' own chance.
  assert sum(count for outcome, count in counts.items()
             if 'harmless' not in outcome) >= 2, counts


@pytest.mark.slow
def test_of_200_flipped_bits_none_is_unseen(run, tmp_path, capfd):
  assert sum(flips(run, 200, 1, tmp_path).values()) == 200
  assert not capfd.readouterr().err


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with tempfile.TemporaryDirectory() as directory:
    found = flips(Run(pathlib.Path(directory)), int(sys.argv[1]),
                  int(sys.argv[2]), pathlib.Path(directory))
  for outcome, count in sorted(found.items()):
    print(f'{count:5d} {outcome}')
