"""Files from the internet that are there whole and unharmed, or not at all.

One downloader for weights and archives: https alone, whatever redirects and
forms say; complete by its length, and by its digest where one is known; else
the digest of the first download is kept beside the file, and compared whenever
the file is used again. A file that was damaged since is fetched again. Threads
and processes wait for each other, and what was interrupted goes on where the
server allows it.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import socket
import ssl
import time
from typing import Any
from urllib import parse
from urllib import request
import urllib.error

from etils import epath

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import file_locks
from ferd_jax.core import reporting

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 5  # of going on after a connection broke off
_POLL_SECONDS = 0.1

PAGE = 'the server answered with a page instead of the file'

Opener = Callable[[str, Mapping[str, str]], http.client.HTTPResponse]


@dataclasses.dataclass(frozen=True)
class Digest:
  """What a file's bytes are known by.

  Attributes:
    checksum: hexadecimal digest.
    algorithm: its name in hashlib.
    size: in bytes, None if unknown.
  """
  checksum: str
  algorithm: str = 'sha256'
  size: int | None = None

  @classmethod
  def of(cls, path: pathlib.Path, algorithm: str = 'sha256') -> 'Digest':
    """Returns that of a file."""
    with open(path, 'rb') as file:
      checksum = hashlib.file_digest(file, algorithm).hexdigest()
    return cls(checksum, algorithm, path.stat().st_size)

  def check(self, path: pathlib.Path) -> None:
    """Raises ValueError unless a file has it."""
    found = Digest.of(path, self.algorithm)
    if (found.checksum, found.size) != (self.checksum, self.size or found.size):
      size = '' if self.size is None else f'{self.size:,} bytes with '
      raise ValueError(
          f'expected {size}{self.algorithm} {self.checksum}, found '
          f'{found.size:,} bytes with {found.checksum}')


def connect(address: str, headers: Mapping[str, str]
            ) -> http.client.HTTPResponse:
  """Opens an address, and those that it is redirected to, by https alone.

  Certificates are checked against those that OpenSSL trusts, $SSL_CERT_FILE
  among them.

  Args:
    address: of a file.
    headers: of the request.

  Raises:
    OSError: if an address is not https, the connection is refused, or nothing
      comes for a minute.
    http.client.HTTPException: if the server does not keep to the protocol.
  """
  _check_https(address)
  opener = request.build_opener(
      _OnlyHttps, request.HTTPSHandler(context=ssl.create_default_context()))
  return opener.open(request.Request(address, headers=dict(headers)),
                     timeout=_TIMEOUT_SECONDS)


class _OnlyHttps(request.HTTPRedirectHandler):
  """Follows redirects from https to https."""

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    _check_https(newurl)
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_https(address):
  if parse.urlsplit(address).scheme != 'https':
    raise OSError(f'Expected an address by https, got {address}')


def is_page(response: http.client.HTTPResponse) -> bool:
  """Returns whether a server answers with a page for people."""
  return response.headers.get_content_type() == 'text/html'


def get(address: str, path: pathlib.Path, *,
        digest: Digest | None = None,
        accept: Callable[[pathlib.Path], None] | None = None,
        opener: Opener | None = None,
        reporter: reporting.Reporter = reporting.TERMINAL) -> None:
  """Makes sure that a file is there, whole and unharmed.

  One that is there is compared with its digest, or with that of its first use,
  which is kept in `<name>.sha256` beside it. Else, and if it differs, it is
  downloaded. Another process of this host that does so is waited for; of other
  hosts the later one replaces the file. What was interrupted leaves
  `<name>.<host>.part`, to go on with.

  Args:
    address: where it is.
    path: where it shall be; the directory is made if absent.
    digest: of the right file, if it is known.
    accept: called with a file whose digest is not known; raises ValueError for
      one that is not what was expected.
    opener: opens the address, as `connect` does, which it is by default.
    reporter: shows how far it is. By default the terminal: it may take long,
      and be the first that happens.

  Raises:
    OSError: if it cannot be downloaded, did not come as a whole, cannot be
      written, or is a page.
    ValueError: if what comes is not accepted, or differs from `digest` or from
      the first download.
  """
  if path.exists() and _damage(path, digest, accept) is None:
    return  # Without a lock: the directory may be read-only.
  path.parent.mkdir(parents=True, exist_ok=True)
  with _lock(path, reporter):
    if path.exists():  # Somebody else may have been quicker.
      damage = _damage(path, digest, accept)
      if damage is None:
        return
      reporter.line(f'{path} is damaged ({damage}); fetching it again.')
    try:
      _download(address, path, digest, accept, opener or connect, reporter)
    except http.client.HTTPException as error:
      raise OSError(errors.reason(error)) from error


def _damage(path, digest, accept):
  """Returns what is wrong with a file that is there, None if nothing is."""
  try:
    _check(path, path, digest, accept)
  except ValueError as error:
    return errors.reason(error)
  return None


def _check(file, path, digest, accept):
  """Raises ValueError unless a file is the one that belongs to a path.

  What was not known by a digest is from now on.
  """
  if digest is not None:
    digest.check(file)
    return
  record = path.with_name(f'{path.name}.sha256')
  try:
    recorded = record.read_text().split()[0]
  except (OSError, UnicodeDecodeError, IndexError):
    recorded = ''
  if re.fullmatch('[0-9a-f]{64}', recorded):
    try:
      Digest(recorded).check(file)
    except ValueError as error:
      raise ValueError(f'{error}; the first is in {record}, without which '
                       'another file is accepted') from error
    return
  if accept is not None:
    accept(file)
  with contextlib.suppress(OSError):  # Of a read-only directory.
    atomic.write_text(epath.Path(record),
                      f'{Digest.of(file).checksum}  {path.name}\n')


@contextlib.contextmanager
def _lock(path: pathlib.Path, reporter: reporting.Reporter) -> Iterator[None]:
  """Waits until no other thread or process of this host downloads a path."""
  name, said = path.with_name(f'{path.name}.lock'), False
  while True:
    file = open(name, 'w')
    taken = file_locks.take(file)
    if taken is None:  # Nobody is waited for.
      file.close()
      name.unlink(missing_ok=True)
      yield
      return
    if not taken:
      file.close()
      if not said:
        reporter.line(f'Waiting for another download of {path.name}.')
      said = True
      time.sleep(_POLL_SECONDS)
      continue
    # Who held it before may have removed the name after it was opened here.
    with contextlib.suppress(OSError):
      if os.path.samestat(os.fstat(file.fileno()), name.stat()):
        break
    file.close()
  try:
    yield
  finally:
    name.unlink(missing_ok=True)
    file.close()


@dataclasses.dataclass
class _Part:
  """What came of a file so far, and by what it is known to be the same.

  Attributes:
    path: where it is.
    about: address, validator (an ETag or date) and total length, as the server
      gave them; empty if nothing came.
  """
  path: pathlib.Path
  about: dict[str, Any]

  @classmethod
  def found(cls, path: pathlib.Path, address: str) -> '_Part':
    """Returns what is there of an address' file."""
    part = cls(path, {})
    with contextlib.suppress(OSError, ValueError, AttributeError):
      about = json.loads(part.note.read_text())
      if about.get('address') == address and path.exists():
        part.about = about
    return part

  @property
  def note(self) -> pathlib.Path:
    return self.path.with_name(f'{self.path.name}.json')

  @property
  def size(self) -> int:
    return self.path.stat().st_size if self.path.exists() else 0

  @property
  def goes_on(self) -> bool:
    """Whether the server said by what to go on."""
    return bool(self.about.get('validator')) and self.size > 0

  def remove(self) -> None:
    self.about = {}
    for path in (self.path, self.note):
      path.unlink(missing_ok=True)


def _download(address, path, digest, accept, opener, reporter):
  """Downloads a file, in as many goes as it takes, and puts it in place."""
  part = _Part.found(
      path.with_name(f'{path.name}.{socket.gethostname()}.part'), address)
  if not part.goes_on:
    part.remove()
  fresh = not part.size
  try:
    for attempt in range(_ATTEMPTS):
      before = part.size
      try:
        _receive(address, path, part, digest, opener, reporter)
        break
      except urllib.error.HTTPError:
        raise  # The server's answer, not an accident.
      except (OSError, http.client.HTTPException):
        if not part.goes_on or part.size <= before or (
            attempt == _ATTEMPTS - 1):
          raise
    try:
      _check(part.path, path, digest, accept)
    except ValueError:
      size, _ = part.size, part.remove()
      if fresh or not size:
        raise
      # The beginning may have been of another file.
      _receive(address, path, part, digest, opener, reporter)
      _check(part.path, path, digest, accept)
    with open(part.path, 'rb+') as file:
      os.fsync(file.fileno())
    part.path.replace(path)
    part.remove()
  except BaseException:
    if not part.goes_on or part.size == part.about.get('total'):
      part.remove()  # Nothing to go on with.
    raise


def _receive(address, path, part, digest, opener, reporter):
  """Writes what an address holds, from where it broke off, to its end.

  Raises:
    OSError: if less came than the server said, or it did not say and there is
      no digest to tell.
  """
  headers = {'Accept-Encoding': 'identity'}
  if part.goes_on:
    headers |= {'Range': f'bytes={part.size}-',
                'If-Range': part.about['validator']}
  else:
    part.remove()
  try:
    response = opener(address, headers)
  except urllib.error.HTTPError as error:
    if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or (
        'Range' not in headers):
      raise
    error.close()
    part.remove()
    response = opener(address, {'Accept-Encoding': 'identity'})
  with response:
    if is_page(response):
      raise OSError(PAGE)
    if response.headers.get('Content-Encoding', 'identity') != 'identity':
      raise OSError('the server sent the file in another encoding')
    start = _start(response, part)
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    if total is None and digest is None and not getattr(response, 'chunked',
                                                        False):
      raise OSError('the server does not say how long the file is, so nobody '
                    'knows whether all of it came')
    if digest is not None and digest.size is not None and (
        total not in (None, digest.size)):
      raise OSError(f'the server has {total:,} bytes in place of '
                    f'{digest.size:,}')
    part.about = {'address': address, 'total': total,
                  'validator': _validator(response)}
    part.note.write_text(json.dumps(part.about))
    size = 'unknown size' if total is None else f'{total:,} bytes'
    reporter.line(f'Downloading {path.name} ({size}) to {path.parent}' + (
        f', from byte {start:,}' if start else ''))
    with (open(part.path, 'ab' if start else 'wb') as file,
          reporter.task(path.name, total, 'B', start) as task):
      while chunk := response.read(_CHUNK_BYTES):
        file.write(chunk)
        task.advance(len(chunk))
  if total is not None and part.size != total:
    raise OSError(f'{part.size:,} of {total:,} bytes came')


def _start(response, part):
  """Returns at which byte an answer starts."""
  if response.status != http.client.PARTIAL_CONTENT:
    return 0
  given = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
  if given is None or int(given[1]) != part.size:
    raise OSError('the server sent another part of the file than was asked for')
  return part.size


def _validator(response):
  """Returns what tells the server's file from another, None if nothing does.

  That is where ranges are served; a weak ETag tells nothing of bytes.
  """
  if response.headers.get('Accept-Ranges', '') != 'bytes' and (
      response.status != http.client.PARTIAL_CONTENT):
    return None
  tag = response.headers.get('ETag', '')
  if tag.startswith('"'):
    return tag
  return response.headers.get('Last-Modified')
