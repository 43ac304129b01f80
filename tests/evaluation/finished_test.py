"""A finished part is kept, and made again only if it cannot be read."""

import math

import pytest

from ferd_jax.core import parallel
from ferd_jax.core import reporting
from ferd_jax.evaluation import finished

_RUN = 'f' * 64


def _once(directory, calls, run=_RUN, value=None):
  def compute():
    calls.append(run)
    return value or {'average': 0.1 + 0.2, 'per_class': (1., math.nan)}
  return finished.once(directory, 'fgsm', run, compute, parallel.create('jit'),
                       reporting.TERMINAL)


def test_part_is_computed_once(tmp_path):
  calls = []
  first, second = _once(tmp_path, calls), _once(tmp_path, calls)
  assert calls == [_RUN]
  assert repr(first) == repr(second)
  assert first['average'] == 0.1 + 0.2 and isinstance(first['per_class'], list)
  _once(tmp_path, calls, 'e' * 64)  # Of another run.
  assert len(calls) == 2


def test_what_is_kept_is_said(tmp_path, capsys):
  _once(tmp_path, [])
  assert not capsys.readouterr().err
  _once(tmp_path, [])
  assert capsys.readouterr().err == (
      'fgsm: found before, not done again.\n')


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  calls = []
  assert repr(_once(None, calls)) == repr(_once(None, calls))
  assert len(calls) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('change', [
    lambda text: text.replace('0.3', '0.4'), lambda text: '[]',
    lambda text: text[:-9], lambda text: '', lambda text: '{"run": 3}',
    lambda text: text.replace('f' * 64, 'f' * 63 + 'e')])
def test_damaged_part_is_done_again(tmp_path, capsys, change):
  calls = []
  expected = repr(_once(tmp_path, calls))
  path, = tmp_path.iterdir()
  path.write_text(change(path.read_text()))
  assert repr(_once(tmp_path, calls)) == expected
  assert len(calls) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f'Warning: Cannot read {path}: ')
  assert line.endswith('fgsm is done again.')
