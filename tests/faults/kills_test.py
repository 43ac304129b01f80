"""A run that was killed, at any moment, ends like the undisturbed one.

  python tests/faults/kills_test.py 22 1    so many chains of each signal

A chain kills one run in its training, in a save, in its evaluation and in its
export, each time at a random moment, starts it again each time, and compares
what it has left at the end with what the undisturbed run left, bit for bit.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import collections
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

from faults import killing
from faults import running

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def chain(run, workdir, number, rng, reference, parts=killing.PARTS):
  """Kills a run in every part; returns how often, by part."""
  counts = collections.Counter()
  for part in parts:
    times = rng.choice((1, 1, 2, 5))
    done = run(workdir, before=['faults.killing', {
        'part': part, 'moment': rng.random(), 'number': int(number),
        'times': times}])
    if done.returncode == 0:  # It was done before the signal came.
      counts[f'{part}: too late'] += 1
      assert not [line for line in done.stderr.splitlines()
                  if line.startswith(('stopped', 'error'))], done.stderr
      continue
    counts[part] += 1
    assert done.returncode == _STATUS[number], done.stderr
    if number != signal.SIGKILL:
      line = running.one_line(done)
      assert line.startswith(f'stopped: {number.name}; '), line
      assert line.endswith('run again to go on.'), line
  done = run(workdir)
  assert done.returncode == 0, done.stderr
  left = running.left_by(workdir)
  assert left == reference
  return counts


def chains(run, folder, number, size, seed):
  """Runs chains of a signal; returns how often a run was killed, by part."""
  whole = folder / 'whole'
  if not whole.exists():
    assert run(whole).returncode == 0
  reference = running.left_by(whole)
  counts = collections.Counter()
  for i in range(size):
    workdir = folder / f'{number.name}_{seed}_{i}'
    counts += chain(run, workdir, number,
                    random.Random(f'{int(number)}/{seed}/{i}'), reference)
    shutil.rmtree(workdir)
  return counts


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('kills')


@pytest.fixture(scope='module')
def run(folder):
  with running.runner(folder) as run:
    yield run


def test_a_killed_run_ends_like_the_undisturbed_one(run, folder):
  assert run(folder / 'whole').returncode == 0
  counts = chain(run, folder / 'killed', signal.SIGTERM, random.Random(0),
                 running.left_by(folder / 'whole'), ('train',))
  assert counts == {'train': 1}


@pytest.mark.slow
@pytest.mark.parametrize('number', _SIGNALS)
def test_60_kills_of_each_signal(run, folder, number):
  # Those that come too late come in the run all the same, when there is
  # nothing left that could be stopped.
  assert sum(chains(run, folder, number, 22, 1).values()) >= 60


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as directory:
    with running.runner(pathlib.Path(directory)) as runs:
      for sent in _SIGNALS:
        started = time.monotonic()
        found = chains(runs, pathlib.Path(directory), sent, int(sys.argv[1]),
                       int(sys.argv[2]))
        print(f'{sent.name}, {time.monotonic() - started:.0f} s: '
              f'{json.dumps(found)}', flush=True)
