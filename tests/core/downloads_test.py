"""A download is there whole and unharmed, or not at all; from a local server.
"""

import contextlib
import hashlib
import os
import threading

import https
import noting
import pytest

from ferd_jax.core import atomic
from ferd_jax.core import downloads

_CONTENT = bytes(range(256)) * 10_000  # more than a chunk
_DIGEST = downloads.Digest(hashlib.sha256(_CONTENT).hexdigest(),
                           size=len(_CONTENT))


@pytest.fixture(scope='module')
def running():
  with https.serving() as server:
    yield server


@pytest.fixture
def server(running):
  running.files.clear()
  running.requests.clear()
  running.files['/a.bin'] = https.File(_CONTENT)
  return running


def _get(server, path, where='/a.bin', **options):
  downloads.get(server.address + where, path,
                **{'reporter': noting.Reporter()} | options)


def _names(directory):
  return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize('length, digest, total, size', [
    ('given', None, len(_CONTENT), '2,560,000 bytes'),
    ('chunked', None, None, 'unknown size'),
    ('unknown', _DIGEST, None, 'unknown size')])
def test_complete(server, tmp_path, length, digest, total, size):
  server.files['/a.bin'].length = length
  wanted, offered = tmp_path / 'folder' / 'a.bin', []
  reporter = noting.Reporter()
  def accept(path):
    assert not wanted.exists() and path.read_bytes() == _CONTENT
    offered.append(path)
  _get(server, wanted, digest=digest, accept=accept, reporter=reporter)
  assert wanted.read_bytes() == _CONTENT
  assert len(offered) == (digest is None)
  assert _names(wanted.parent) == ['a.bin'] + ['a.bin.sha256'] * (
      digest is None)
  assert reporter.lines == [f'Downloading a.bin ({size}) to {wanted.parent}']
  (task,) = reporter.tasks
  assert task.started == ('a.bin', total, 'B', 0) and task.closed
  assert sum(task.counts) == len(_CONTENT) and len(task.counts) > 1
  _get(server, wanted, digest=digest)
  assert len(server.requests) == 1


def test_shown_by_default(server, tmp_path, capsys):
  downloads.get(f'{server.address}/a.bin', tmp_path / 'a.bin')
  assert capsys.readouterr().err.startswith('Downloading a.bin')


@pytest.mark.parametrize('file, message', [
    ({'ranges': False, 'cuts': [9]}, '9 of 2,560,000 bytes came'),
    ({'etag': None, 'cuts': [9]}, '9 of 2,560,000 bytes came'),
    ({'etag': 'W/"1"', 'cuts': [9]}, '9 of 2,560,000 bytes came'),
    ({'ranges': False, 'length': len(_CONTENT) + 1}, '2,560,000 of 2,560,001'),
    ({'ranges': False, 'length': 'chunked', 'cuts': [9]}, 'Incomplete'),
    ({'length': 'unknown'}, 'does not say how long'),
    ({'status': 404}, '404'), ({'status': 503}, '503'),
    ({'kind': 'text/html; charset=utf-8'}, 'a page instead of the file'),
    ({'headers': {'Content-Encoding': 'gzip'}}, 'another encoding'),
    ({'status': 302, 'headers': {'Location': 'http://127.0.0.1:9/a.bin'}},
     'Expected an address by https, got http://127.0.0.1:9/a.bin'),
    ({'status': 302, 'headers': {'Location': 'file:///etc/hostname'}},
     'not allowed'),
    ({'status': 302, 'headers': {'Location': '/a.bin'}}, 'redirect')])
def test_what_did_not_come(server, tmp_path, file, message):
  server.files['/a.bin'] = https.File(_CONTENT, **file)
  with pytest.raises(OSError, match=message):
    _get(server, tmp_path / 'a.bin')
  assert _names(tmp_path) == []


def test_only_https_and_whom_one_trusts(server, tmp_path):
  with pytest.raises(OSError, match='by https, got http://'):
    downloads.get(server.address.replace('https', 'http'), tmp_path / 'a.bin')
  with https.serving(trusted=False) as stranger:
    stranger.files['/a.bin'] = https.File(_CONTENT)
    os.environ.pop('SSL_CERT_FILE')
    with pytest.raises(OSError, match='certificate verify failed'):
      _get(stranger, tmp_path / 'a.bin')
  assert _names(tmp_path) == []


@pytest.fixture(autouse=True)
def _trust(running):
  trusted = os.environ.get('SSL_CERT_FILE')
  yield
  os.environ['SSL_CERT_FILE'] = trusted


def test_redirect(server, tmp_path):
  server.files['/b'] = https.File(status=302, headers={'Location': '/a.bin'})
  _get(server, tmp_path / 'a.bin', '/b')
  assert (tmp_path / 'a.bin').read_bytes() == _CONTENT


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_refused(server, tmp_path, error):
  def refuse(path):
    assert path.read_bytes() == _CONTENT
    raise error('not that')
  with pytest.raises(error, match='not that'):
    _get(server, tmp_path / 'a.bin', accept=refuse)
  assert _names(tmp_path) == []


def test_goes_on_where_it_broke_off(server, tmp_path):
  server.files['/a.bin'].cuts = [1_000_000, 500_000]
  _get(server, tmp_path / 'a.bin')
  assert (tmp_path / 'a.bin').read_bytes() == _CONTENT
  assert [part for _, part in server.requests] == [
      '', 'bytes=1000000-', 'bytes=1500000-']


@pytest.mark.parametrize('change', [
    {}, {'etag': '"2"'}, {'etag': '"2"', 'content': _CONTENT[::-1]},
    {'ranges': False}])
def test_goes_on_later(server, tmp_path, change):
  """With the same file; with another, or without ranges, from its start."""
  wanted = tmp_path / 'a.bin'
  server.files['/a.bin'].cuts = [10_000, 0]  # The second brings nothing.
  with pytest.raises(OSError, match='bytes came|closed'):
    _get(server, wanted)
  assert not wanted.exists() and len(_names(tmp_path)) == 2
  file = server.files['/a.bin'] = https.File(
      **{'content': _CONTENT} | change)
  _get(server, wanted)
  assert wanted.read_bytes() == file.content
  assert server.requests[-1] == ('/a.bin', 'bytes=10000-')
  assert _names(tmp_path) == ['a.bin', 'a.bin.sha256']


def test_a_damaged_part_is_fetched_from_the_start(server, tmp_path):
  server.files['/a.bin'].cuts = [10_000, 0]
  with pytest.raises(OSError):
    _get(server, tmp_path / 'a.bin', digest=_DIGEST)
  (part,) = tmp_path.glob('*.part')
  part.write_bytes(b'x' * 10_000)
  _get(server, tmp_path / 'a.bin', digest=_DIGEST)
  assert (tmp_path / 'a.bin').read_bytes() == _CONTENT


@pytest.mark.parametrize('digest', [None, _DIGEST])
def test_what_lies_there_damaged_is_fetched_again(server, tmp_path, digest):
  wanted, reporter = tmp_path / 'a.bin', noting.Reporter()
  _get(server, wanted, digest=digest)
  damaged = bytearray(_CONTENT)
  damaged[12_345] ^= 1
  wanted.write_bytes(damaged)
  _get(server, wanted, digest=digest, reporter=reporter)
  assert wanted.read_bytes() == _CONTENT
  assert f'{wanted} is damaged (expected' in reporter.lines[0]


def test_another_file_than_the_first_is_refused(server, tmp_path):
  wanted = tmp_path / 'a.bin'
  _get(server, wanted)
  wanted.unlink()
  server.files['/a.bin'].content = _CONTENT[::-1]
  with pytest.raises(ValueError, match='a.bin.sha256, without which another'):
    _get(server, wanted)
  assert not wanted.exists()
  (tmp_path / 'a.bin.sha256').unlink()
  _get(server, wanted)
  assert wanted.read_bytes() == _CONTENT[::-1]


def test_half_a_digest_is_never_there(server, tmp_path, monkeypatch):
  """What ends in the middle of writing leaves the file as it was."""
  wanted = tmp_path / 'a.bin'
  wanted.write_bytes(_CONTENT)
  def broken(file):
    raise KeyboardInterrupt
  monkeypatch.setattr(atomic, '_sync_file', broken)
  with pytest.raises(KeyboardInterrupt):
    _get(server, wanted)
  assert _names(tmp_path) == ['a.bin']


def test_what_was_put_there_by_hand_is_looked_at(server, tmp_path):
  wanted = tmp_path / 'a.bin'
  def accept(path):
    if path.read_bytes() == b'text':
      raise ValueError('that is text')
  wanted.write_bytes(b'mine')
  _get(server, wanted, accept=accept)
  assert wanted.read_bytes() == b'mine' and not server.requests
  (tmp_path / 'a.bin.sha256').unlink()
  wanted.write_bytes(b'text')
  _get(server, wanted, accept=accept)
  assert wanted.read_bytes() == _CONTENT


def test_many_at_once(server, tmp_path):
  """One downloads, the others wait for it."""
  wanted, failed, waiting = tmp_path / 'a.bin', [], threading.Event()
  server.files['/a.bin'].wait = lambda: waiting.wait(10)
  class Reporter(noting.Reporter):
    def line(self, text):
      if text.startswith('Waiting'):
        waiting.set()
  def get():
    try:
      _get(server, wanted, reporter=Reporter())
    except BaseException as error:
      failed.append(error)
  threads = [threading.Thread(target=get) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed and len(server.requests) == 1
  assert _names(tmp_path) == ['a.bin', 'a.bin.sha256']
  assert wanted.read_bytes() == _CONTENT


def test_read_only_cache(server, tmp_path):
  wanted = tmp_path / 'a.bin'
  _get(server, wanted)
  tmp_path.chmod(0o500)
  with contextlib.ExitStack() as stack:
    stack.callback(tmp_path.chmod, 0o700)
    _get(server, wanted)
  assert len(server.requests) == 1


def test_another_way_to_open(server, tmp_path):
  """As through a page that leads to the file."""
  server.files['/page'] = https.File(b'<html>', 'text/html')
  def opener(address, headers):
    with downloads.connect(address, headers) as response:
      assert downloads.is_page(response)
    return downloads.connect(address.replace('page', 'a.bin'), headers)
  _get(server, tmp_path / 'a.bin', '/page', opener=opener)
  assert (tmp_path / 'a.bin').read_bytes() == _CONTENT
