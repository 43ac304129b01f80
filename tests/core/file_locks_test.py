"""Tests of ferd_jax.core.file_locks."""

import subprocess
import sys

import pytest

from ferd_jax.core import file_locks

if file_locks.fcntl is None:
  pytest.skip('needs locks of files', allow_module_level=True)


def test_one_has_it_until_it_ends(tmp_path):
  path = tmp_path / 'lock'
  with open(path, 'w') as first, open(path, 'w') as second:
    assert file_locks.take(first) is True
    assert file_locks.take(second.fileno()) is False
    first.close()
    assert file_locks.take(second) is True


def test_children_inherit_it(tmp_path):
  path = tmp_path / 'lock'
  with open(path, 'w') as file:
    assert file_locks.take(file)
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdout=file,
                             stdin=subprocess.PIPE)
  with open(path, 'w') as other:
    assert file_locks.take(other) is False
    child.communicate(b'\n')
    assert file_locks.take(other) is True


def test_disks_and_systems_without_locks(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError('no locks here')
  with open(tmp_path / 'lock', 'w') as file:
    with monkeypatch.context() as patch:
      patch.setattr(file_locks.fcntl, 'flock', refuse)
      assert file_locks.take(file) is None
    monkeypatch.setattr(file_locks, 'fcntl', None)
    assert file_locks.take(file) is None
