"""Downloads that go wrong: the file is there whole, or not at all.

  python tests/faults/downloads_test.py 50

prints the figures of docs/reliability.md.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import collections
import hashlib
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

import https
import noting

from ferd_jax.core import downloads

_SEED = 18


def _scenario(draw):
  """Returns the right content, what a server makes of it, and the digest."""
  content = draw.randbytes(draw.randrange(1, 200_000))
  size = len(content)
  file = https.File(
      content, ranges=draw.random() < 0.7,
      etag=draw.choice(['"1"', '"1"', 'W/"1"', None]),
      length=draw.choice(['given', 'given', 'given', 'chunked', 'unknown']),
      cuts=[draw.randrange(size + 1)
            for _ in range(draw.choice([0, 0, 0, 1, 2, 6]))])
  accident = draw.choice([*['none'] * 6, 'other bytes', 'page', 'missing',
                          'http', 'longer', 'encoded'])
  if accident == 'other bytes':
    file.content = draw.randbytes(size)
  if accident == 'page':
    file.kind = 'text/html'
  if accident == 'missing':
    file.status = draw.choice([403, 404, 500, 503])
  if accident == 'http':
    file.status, file.headers = 302, {'Location': 'http://127.0.0.1:9/a'}
  if accident == 'longer':
    file.length = size + draw.randrange(1, 99)
  if accident == 'encoded':
    file.headers = {'Content-Encoding': 'gzip'}
  digest = downloads.Digest(hashlib.sha256(content).hexdigest(), size=size)
  known = draw.random() < 0.5
  return content, file, digest if known else None, accident


def _try(server, directory, draw):
  """Returns how a download of a few goes ended.

  Raises:
    AssertionError: if the file is there otherwise than as the server has it,
      or as its digest says.
  """
  content, file, digest, accident = _scenario(draw)
  server.files['/file'] = file
  fine = accident == 'none' and not file.cuts and (
      file.length != 'unknown' or digest is not None)
  path = pathlib.Path(directory) / 'file'
  if draw.random() < 0.3:  # Damaged before, or of another version.
    path.write_bytes(draw.randbytes(100))
    path.with_name('file.sha256').write_text(
        f'{hashlib.sha256(content).hexdigest()}  file\n')
  failed = []
  def get():
    try:
      downloads.get(f'{server.address}/file', path, digest=digest,
                    reporter=noting.Reporter())
    except (OSError, ValueError) as error:
      assert '\n' not in str(error), error
      failed.append(error)
    except BaseException as error:
      failed.append(AssertionError(repr(error)))
  threads = [threading.Thread(target=get)
             for _ in range(draw.choice([1, 1, 3]))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for error in failed:
    if isinstance(error, AssertionError):
      raise error
  whole = content if digest is not None or accident != 'other bytes' else (
      file.content)
  if len(failed) < len(threads):
    assert path.read_bytes() == whole, (accident, file)
    assert accident in ('none', 'other bytes'), accident
    return 'whole'
  left = {each.name.rpartition('.')[2] for each in path.parent.iterdir()}
  assert left <= {'file', 'sha256', 'part', 'json'}, left
  assert not fine, failed
  return 'refused'


def _all(number, seed=_SEED):
  draw, counts = random.Random(seed), collections.Counter()
  with https.serving() as server:
    for _ in range(number):
      with tempfile.TemporaryDirectory() as directory:
        counts[_try(server, directory, draw)] += 1
  return counts


def test_a_few():
  counts = _all(12)
  assert counts['whole'] and counts['refused']


_PROCESS = """
import pathlib, sys
from ferd_jax.core import downloads
downloads.get(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_processes_share_a_download(tmp_path):
  content, path = random.Random(0).randbytes(3_000_000), tmp_path / 'file'
  with https.serving() as server:
    server.files['/file'] = https.File(content, wait=lambda: time.sleep(2))
    processes = [subprocess.Popen(
        [sys.executable, '-c', _PROCESS, f'{server.address}/file', str(path)],
        cwd=_ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1
  assert path.read_bytes() == content


@pytest.mark.slow
def test_many():
  assert _all(50).total() == 50


if __name__ == '__main__':
  started = time.monotonic()
  print(dict(_all(int(sys.argv[1]))), 'seed', _SEED,
        f'{time.monotonic() - started:.0f} s')
