"""Files that mean harm: nothing in them runs, and they cost little."""

from faults import hostile_files
import numpy as np
import pytest

_SLOW = ('compressed', 'many_objects', 'many_entries', 'keys_of_many_names',
         'networks_of_many_blocks', 'copies_of_one_text', 'many_tensors',
         'many_dicts')


def _check(directory, count, seed, kinds=None):
  found = []
  for name, path, trace in hostile_files.make(directory, count, seed):
    if kinds is None or name in kinds:
      said, seconds, taken = hostile_files.read(path)
      found += [f'{name} {path.name}: {problem}'
                for problem in hostile_files.problems(
                    path, trace, said, seconds, taken)]
    path.unlink()
  assert not found, '\n'.join(found)


@pytest.mark.parametrize('name', [
    name for name in hostile_files.KINDS if name not in _SLOW])
def test_one_of_each_kind(tmp_path, name):
  path, trace = tmp_path / 'file.bin', tmp_path / 'ran'
  path.write_bytes(hostile_files.KINDS[name](np.random.default_rng(1), trace))
  said, seconds, taken = hostile_files.read(path)
  assert not hostile_files.problems(path, trace, said, seconds, taken)


@pytest.mark.slow
def test_two_hundred_files(tmp_path):
  _check(tmp_path, 200, seed=0)


def test_the_harm_would_show(tmp_path):
  """The measures can fail: of code that ran, memory, time and many lines."""
  path, trace = tmp_path / 'file.bin', tmp_path / 'ran'
  path.write_bytes(b'x')
  assert not hostile_files.problems(path, trace, 'refused', 1, 1 << 20)
  trace.touch()
  problems = hostile_files.problems(path, trace, 'a\nb', 100, 1 << 40)
  assert len(problems) == 4
