"""One owner of a work directory at a time, on any kind of disk."""

import json
import os
import platform
import subprocess
import sys
import threading
import time

import pytest

from ferd_jax.core import file_locks
from ferd_jax.core import reporting
from ferd_jax.run import lock


class _Lines(reporting.Reporter):

  def __init__(self):
    self.lines = []

  def line(self, text):
    self.lines.append(text)


@pytest.fixture(params=['kernel', 'bucket'])
def disk(request, monkeypatch):
  """A disk with the kernel's locks, or what has none, such as a bucket."""
  monkeypatch.setattr(lock, '_SETTLED', 0.05)
  monkeypatch.setattr(lock, '_BEAT', 0.05)
  monkeypatch.setattr(lock, '_SILENT', 0.5)
  if request.param == 'bucket':
    monkeypatch.setattr(file_locks, 'fcntl', None)
  return request.param


def _write(path, **record):
  new = path / 'new.json'
  new.write_text(json.dumps(
      {'process': 12, 'since': 'noon', 'token': 'other', 'beat': 0} | record))
  new.replace(path / 'lock.json')


def test_second_start_says_who_holds_it(tmp_path, disk):
  with lock.held(tmp_path):
    with pytest.raises(ValueError) as error:
      with lock.held(tmp_path):
        pass
    for word in (str(tmp_path), f'process {os.getpid()} on host '
                 f'{platform.node()!r}', 'since 20', '--workdir'):
      assert word in str(error.value)
    time.sleep(0.2)  # It is still held after some signs of life.
    with pytest.raises(ValueError, match='to be free'):
      with lock.held(tmp_path):
        pass
  assert not list(tmp_path.iterdir())
  with lock.held(tmp_path):
    pass


def test_a_sign_of_life_is_never_half_written(tmp_path, monkeypatch, disk):
  monkeypatch.setattr(lock, '_BEAT', 0.001)
  path = tmp_path / 'lock.json'
  with lock.held(tmp_path):
    before, beats = time.monotonic(), set()
    while time.monotonic() - before < 0.5:
      found = json.loads(path.read_text())
      assert found['process'] == os.getpid()
      beats.add(found['beat'])
  assert len(beats) > 3
  assert not list(tmp_path.iterdir())


def test_of_many_starts_at_once_one_gets_it(tmp_path):
  ready, results = threading.Barrier(8), []

  def start():
    ready.wait()
    try:
      with lock.held(tmp_path, reporting.SILENT):
        results.append('held')
        time.sleep(0.5)
    except ValueError:
      results.append('refused')
  threads = [threading.Thread(target=start) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(results) == ['held'] + ['refused'] * 7


_CRASH = """
import os, sys
from ferd_jax.run import lock
with lock.held(sys.argv[1]):
  os._exit(3)
"""


def test_it_ends_with_its_owner_however_that_ends(tmp_path):
  done = subprocess.run([sys.executable, '-c', _CRASH, tmp_path], check=False)
  assert done.returncode == 3
  assert json.loads((tmp_path / 'lock.json').read_text())['process']
  reporter = _Lines()
  with lock.held(tmp_path, reporter) as held:
    held.confirm()
  assert not reporter.lines


def test_owner_on_another_host_that_is_gone(tmp_path, disk):
  _write(tmp_path, host='elsewhere')
  reporter = _Lines()
  with lock.held(tmp_path, reporter) as held:
    held.confirm()
  waited, taken = reporter.lines
  assert "process 12 on host 'elsewhere' (since noon)" in waited
  assert 'waiting 0.5 seconds' in waited and 'taken over' in taken


def test_owner_on_another_host_that_lives(tmp_path, disk):
  _write(tmp_path, host='elsewhere')
  timer = threading.Timer(0.2, _write, (tmp_path,), dict(
      host='elsewhere', beat=1))
  timer.start()
  with pytest.raises(ValueError, match="process 12 on host 'elsewhere'"):
    with lock.held(tmp_path, reporting.SILENT):
      pass
  timer.join()


def test_owner_that_is_writing_just_now_is_named(tmp_path, disk):
  _write(tmp_path, host='elsewhere')
  timer = threading.Timer(0.2, (tmp_path / 'lock.json').write_text, ('',))
  timer.start()
  with pytest.raises(ValueError, match="process 12 on host 'elsewhere'"):
    with lock.held(tmp_path, reporting.SILENT):
      pass
  timer.join()


def test_owner_on_another_host_that_just_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_SILENT', 30.)
  _write(tmp_path, host='elsewhere')
  timer = threading.Timer(0.2, (tmp_path / 'lock.json').unlink)
  timer.start()
  started = time.monotonic()
  with lock.held(tmp_path, reporting.SILENT):
    pass
  assert time.monotonic() - started < 10


def test_of_two_in_a_bucket_the_first_notices(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_SETTLED', 0.)
  monkeypatch.setattr(file_locks, 'fcntl', None)
  with lock.held(tmp_path) as held:
    _write(tmp_path, host='elsewhere')
    with pytest.raises(OSError, match="taken over by process 12 on host 'els"):
      held.confirm()
  assert 'elsewhere' in (tmp_path / 'lock.json').read_text()  # Not its own.


def test_lock_that_somebody_removes(tmp_path):
  with lock.held(tmp_path) as held:
    (tmp_path / 'lock.json').unlink()
    with pytest.raises(OSError, match='was removed'):
      held.confirm()


@pytest.mark.parametrize('text', ['', '[]', '{', 'x' * 600, '{}'])
def test_file_that_says_nothing(tmp_path, text):
  (tmp_path / 'lock.json').write_text(text)
  with lock.held(tmp_path) as held:
    held.confirm()


def test_disk_that_knows_no_locks(tmp_path, disk, monkeypatch):
  def refused(*args):
    raise OSError(95, 'Operation not supported')
  if file_locks.fcntl is not None:
    monkeypatch.setattr(file_locks.fcntl, 'flock', refused)
  with lock.held(tmp_path) as held:
    held.confirm()
    with pytest.raises(ValueError, match='to be free'):
      with lock.held(tmp_path, reporting.SILENT):
        pass


def test_directory_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'lock.json').mkdir()
  for workdir in (tmp_path / 'file' / 'run', tmp_path):
    with pytest.raises(ValueError, match='Cannot write into workdir='):
      with lock.held(workdir):
        pass
