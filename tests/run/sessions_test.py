"""What a run was started by and on."""

import json
import shlex
import sys

import jax

from ferd_jax.run import sessions


def test_each_start_adds_one(tmp_path):
  assert sessions.read(tmp_path) == []
  sessions.begin(tmp_path)
  sessions.begin(tmp_path)
  with sessions.timed(tmp_path, sessions.EVALUATION):
    pass
  first, last = sessions.read(tmp_path)
  assert sessions.EVALUATION not in first and last[sessions.EVALUATION] >= 0
  assert shlex.split(last['command'])[1:] == sys.orig_argv[1:]
  assert last['versions']['jax'] == jax.__version__
  assert last['hardware']['devices'] == f'{jax.device_count()} x cpu'
  assert last['started'].endswith('+00:00')


def test_a_record_that_cannot_be_read_is_begun_anew(tmp_path):
  for text in ('{', '{}', '[3]'):
    (tmp_path / sessions.SESSIONS).write_text(text)
    assert sessions.read(tmp_path) == []
    with sessions.timed(tmp_path, sessions.EVALUATION):
      pass  # There is no session to add it to.
    sessions.begin(tmp_path)
    found, = json.loads((tmp_path / sessions.SESSIONS).read_text())
    assert 'command' in found


def test_a_directory_in_its_place_is_put_aside(tmp_path):
  (tmp_path / sessions.SESSIONS).mkdir()
  sessions.begin(tmp_path)
  assert len(sessions.read(tmp_path)) == 1
  assert (tmp_path / 'damaged' / sessions.SESSIONS).is_dir()
