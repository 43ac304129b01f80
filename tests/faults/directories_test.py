"""Broken work directories: a run goes on to the same end, or says what to do.

  python tests/faults/directories_test.py 100 0    so many from a seed

A file or directory of a work directory is removed, emptied, cut, replaced by
something else or exchanged for its neighbour, once or twice, and the run is
started again.
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

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

from faults import running
import timeless

_EPOCHS = 3


class _Interrupted(BaseException):
  pass


class Runs:
  """A run at several points of its life, which can be gone on with quickly."""

  def __init__(self, folder):
    """Makes them.

    Args:
      folder: for their directories.
    """
    import tiny

    from ferd_jax import train
    from ferd_jax.evaluation import robustness
    self.experiment = tiny.build(tiny.config(**{
        'name': 'tiny', 'num_epochs': _EPOCHS, 'eval.batch_size': 8,
        'eval.attacks': ('clean', 'fgsm')}))
    self.bases = {name: folder / name for name in (
        'unfinished', 'evaluating', 'finished')}
    self.start(self.bases['unfinished'], stop_after=_EPOCHS - 1)
    shutil.copytree(self.bases['unfinished'], self.bases['evaluating'])
    batches, calls = robustness.batches, []

    def interrupted(*args):
      calls.append(args)
      if len(calls) == 2:
        raise _Interrupted
      return batches(*args)
    robustness.batches = interrupted
    with contextlib.suppress(_Interrupted):
      self.start(self.bases['evaluating'])
    robustness.batches = batches
    shutil.copytree(self.bases['evaluating'], self.bases['finished'])
    self.start(self.bases['finished'])
    self.reference = self.left_by(self.bases['finished'])
    assert train.finished_results(self.bases['finished'])

  def start(self, workdir, stop_after=None):
    """Does what main.py does."""
    from ferd_jax import train
    from ferd_jax.run import work_directory
    work_directory.claim(workdir, self.experiment.identity)
    if train.finished_results(workdir) is None:
      train.train(self.experiment, workdir, stop_after=stop_after)

  def left_by(self, workdir):
    """Returns what a run left but pictures, which are not made again."""
    left = running.left_by(workdir)
    left['names'] = [name for name in left['names']
                     if not name.startswith('samples')]
    return left


def targets(base, workdir):
  """Returns the paths of which something may happen to one."""
  if base == 'finished':  # What is exported is not looked at again.
    return [workdir / name for name in (
        'config.json', 'results.json', 'metrics.jsonl', 'checkpoints')]
  return sorted(path for path in workdir.rglob('*')
                if 'samples' not in path.parts)


def _remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def _by_directory(path, rng):
  _remove(path)
  path.mkdir()


def _text(text):
  def replace(path, rng):
    _remove(path)
    path.write_bytes(text)
  return replace


def _cut(path, rng):
  if path.is_dir():
    _remove(path)
  else:
    content = path.read_bytes()
    path.write_bytes(content[:rng.randrange(len(content) + 1)])


def _without_a_word(path, rng):
  if path.is_dir():
    return _remove(path)
  words = path.read_bytes().split(b'"')
  words[rng.randrange(len(words))] = b''
  path.write_bytes(b'"'.join(words))


def _exchange(path, rng):
  other = rng.choice(sorted(path.parent.iterdir()))
  if other != path:
    aside = path.with_name('aside')
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def _junk_beside(path, rng):
  path.with_name(rng.choice(('9', 'x', '.hidden', 'epoch_00009.npz'))
                 ).write_bytes(rng.randbytes(100))


_BREAKS = {
    'removed': lambda path, rng: _remove(path), 'a directory': _by_directory,
    'emptied': _text(b''), 'cut': _cut, 'exchanged': _exchange,
    'without a word': _without_a_word, 'beside junk': _junk_beside,
    **{text.decode('latin-1'): _text(text) for text in (
        b'{}', b'[]', b'null', b'\xff\x00\xfe', b'{"epoch": 1}\n{"loss"')}}


def broken(runs, number, seed, folder):
  """Breaks directories and starts them again; returns the outcomes."""
  counts = collections.Counter()
  for i in range(number):
    rng = random.Random(f'{seed}/{i}')
    workdir = folder / 'broken'
    shutil.rmtree(workdir, ignore_errors=True)
    base = rng.choices(list(runs.bases), (3, 2, 1))[0]
    shutil.copytree(runs.bases[base], workdir)
    told = []
    for _ in range(rng.choice((1, 1, 2))):
      path = rng.choice(targets(base, workdir))
      if not path.exists():
        continue
      how = rng.choice(list(_BREAKS))
      _BREAKS[how](path, rng)
      told.append(f'{path.relative_to(workdir)}: {how}')
    where, shown = f'{i}, {base}, {told}', io.StringIO()
    try:
      with contextlib.redirect_stderr(shown):
        runs.start(workdir)
    except (OSError, ValueError) as error:
      assert '\n' not in str(error), where
      assert str(workdir) in str(error), f'{where}: {error}'
      counts[f'{base}: stopped'] += 1
      continue
    except Exception as error:
      raise AssertionError(f'{where}: {error!r}') from error
    assert 'Traceback' not in shown.getvalue(), f'{where}: {shown.getvalue()}'
    warnings = [line for line in timeless.lines(shown.getvalue())
                if line.startswith('Warning: ') and str(workdir) in line]
    if base != 'finished':
      left = runs.left_by(workdir)
      for name, expected in runs.reference.items():
        if name in ('names', 'unfinished'):  # There may be junk.
          assert set(expected) <= set(left[name]), where
        else:
          assert left[name] == expected, f'{where}: {name}'
    counts[f'{base}: {"warned" if warnings else "quiet"}'] += 1
  return counts


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return Runs(tmp_path_factory.mktemp('runs'))


def test_a_broken_directory_is_gone_on_with_or_refused(runs, tmp_path):
  counts = broken(runs, 10, 0, tmp_path)
  assert sum(counts.values()) == 10


@pytest.mark.slow
def test_100_broken_directories(runs, tmp_path):
  assert sum(broken(runs, 100, 1, tmp_path).values()) == 100


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with tempfile.TemporaryDirectory() as directory:
    found = broken(Runs(pathlib.Path(directory)), int(sys.argv[1]),
                   int(sys.argv[2]), pathlib.Path(directory))
  for outcome, count in sorted(found.items()):
    print(f'{count:5d} {outcome}')
