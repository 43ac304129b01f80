"""A download is there as a whole or not at all; from a server of the test."""

import contextlib
import http.server
import threading

import noting
import pytest

from ferd_jax.core import downloads

_CONTENT = bytes(range(256)) * 10_000  # more than a chunk


class _Server(http.server.BaseHTTPRequestHandler):
  """Serves what a path stands for."""

  def do_GET(self):
    if self.path == '/gone':
      self.send_error(404)
      return
    if self.path == '/nonsense':
      self.wfile.write(b'nonsense\r\n')
      return
    # The second of two at once waits for the first, and that for the second.
    if self.path == '/together':
      self.server.together.wait(timeout=10)
    page = self.path == '/page'
    self.send_response(200)
    self.send_header('Content-Type', 'text/html; charset=utf-8' if page
                     else 'application/octet-stream')
    if self.path != '/unknown':
      self.send_header('Content-Length', str(len(_CONTENT)))
    self.end_headers()
    # The reader may be gone: it reads no pages.
    with contextlib.suppress(ConnectionError):
      self.wfile.write(_CONTENT[:-10] if self.path == '/short' else _CONTENT)

  def log_message(self, *args):
    pass


@pytest.fixture
def address():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Server)
  server.together = threading.Barrier(2)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f'http://127.0.0.1:{server.server_port}'
  server.shutdown()
  thread.join()
  server.server_close()


def _accept(path):
  assert path.read_bytes() == _CONTENT


@pytest.mark.parametrize('path, total, size', [
    ('/file', len(_CONTENT), '2,560,000 bytes'),
    ('/unknown', None, 'unknown size')])
def test_complete(address, tmp_path, path, total, size):
  wanted, offered = tmp_path / 'folder' / 'a.bin', []
  reporter = noting.Reporter()
  def accept(path):
    assert not wanted.exists()
    offered.append(path)
    _accept(path)
  downloads.fetch(address + path, wanted, accept=accept, reporter=reporter)
  assert wanted.read_bytes() == _CONTENT
  assert list(wanted.parent.iterdir()) == [wanted] and len(offered) == 1
  assert reporter.lines == [f'Downloading a.bin ({size}) to {wanted.parent}']
  (task,) = reporter.tasks
  assert task.started == ('a.bin', total, 'B', 0) and task.closed
  assert sum(task.counts) == len(_CONTENT) and len(task.counts) > 1


def test_shown_by_default(address, tmp_path, capsys):
  downloads.fetch(f'{address}/file', tmp_path / 'a.bin', accept=_accept)
  assert capsys.readouterr().err.startswith('Downloading a.bin')


@pytest.mark.parametrize('path, message', [
    ('/short', r'2,559,990 of 2,560,000 bytes came|Incomplete'),
    ('/gone', '404'), ('/page', 'a page instead of the file'),
    ('/nonsense', 'nonsense')])
def test_what_did_not_come(address, tmp_path, path, message):
  wanted = tmp_path / 'a.bin'
  wanted.write_bytes(b'before')
  with pytest.raises(OSError, match=message):
    downloads.fetch(address + path, wanted, accept=_accept)
  assert list(tmp_path.iterdir()) == [wanted]
  assert wanted.read_bytes() == b'before'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_refused(address, tmp_path, error):
  def refuse(path):
    assert path.read_bytes() == _CONTENT
    raise error('not that')
  with pytest.raises(error, match='not that'):
    downloads.fetch(f'{address}/file', tmp_path / 'a.bin', accept=refuse)
  assert not any(tmp_path.iterdir())


def test_two_at_once(address, tmp_path):
  wanted, partial, failed = tmp_path / 'a.bin', [], []
  complete = threading.Barrier(2)
  def accept(path):
    complete.wait(timeout=10)  # Both are on the disk.
    partial.append(path)
    _accept(path)
  def fetch():
    try:
      downloads.fetch(f'{address}/together', wanted, accept=accept)
    except BaseException as error:
      failed.append(error)
  threads = [threading.Thread(target=fetch) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed and len(set(partial)) == 2
  assert list(tmp_path.iterdir()) == [wanted]
  assert wanted.read_bytes() == _CONTENT


def test_another_way_to_connect(address, tmp_path):
  """As through a page that leads to the file."""
  def connect(start):
    with downloads.connect(start) as response:
      assert downloads.is_page(response)
    return downloads.connect(start.replace('page', 'file'))
  downloads.fetch(f'{address}/page', tmp_path / 'a.bin', accept=_accept,
                  connect=connect)
  assert (tmp_path / 'a.bin').read_bytes() == _CONTENT
