"""An https server of 127.0.0.1 that answers as a test wants.

Its certificate, of no other use and with its key below, is trusted where
$SSL_CERT_FILE names it, as in `serving`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import http.server
import os
import pathlib
import re
import ssl
import tempfile
import threading

_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgPGxsrEm/CBgXVA8L
Nr11g7yDFnZNm7wB6708zcKDudahRANCAARJSU94DAqfh8bvt7ntJkjjFEe5saiw
MpCjd6Lflhs1F7qGO+EG4EOkjMvBexAihtd+wexNnXzIP3RD9OO6Qg9a
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBoTCCAUagAwIBAgIULQIFq8MzOv3p8IVwkyz3ep/vlFcwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEzMDE5NTEwN1oYDzIxMjYxMTA2
MTk1MTA3WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARJSU94DAqfh8bvt7ntJkjjFEe5saiwMpCjd6Lflhs1F7qGO+EG4EOk
jMvBexAihtd+wexNnXzIP3RD9OO6Qg9ao3QwcjAdBgNVHQ4EFgQUIEA0AsDDRZ7T
7MV6RaBN9d/WvZ8wHwYDVR0jBBgwFoAUIEA0AsDDRZ7T7MV6RaBN9d/WvZ8wDwYD
VR0RBAgwBocEfwAAATAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAK
BggqhkjOPQQDAgNJADBGAiEAlsOt58a72N4C6+LYLFST2rrIDeuF/QQQZB+CfuCn
Lj4CIQDIfQ0Lo5280Xg3vhb6V3XJZqgkgsHR1+x05912/sIq4A==
-----END CERTIFICATE-----
"""


@dataclasses.dataclass
class File:
  """What is served at a path.

  Attributes:
    content: of the file.
    kind: its type.
    status: of the answer.
    headers: besides those of HTTP.
    etag: None for a server that does not say what its file is.
    ranges: whether it serves parts.
    length: 'given', 'chunked', 'unknown', or a wrong number.
    cuts: after so many bytes of an answer the connection breaks off, of one
      answer after the other.
    wait: called before the answer.
  """
  content: bytes = b''
  kind: str = 'application/octet-stream'
  status: int = 200
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  etag: str | None = '"1"'
  ranges: bool = True
  length: str | int = 'given'
  cuts: list[int] = dataclasses.field(default_factory=list)
  wait: Callable[[], None] | None = None


class Server:
  """What `serving` yields.

  Attributes:
    address: of the server, without a path.
    files: by path, to be filled; others are not found.
    requests: (path with its query, value of Range or '') so far.
  """

  def __init__(self):
    self.address, self.files, self.requests = '', {}, []


@contextlib.contextmanager
def serving(trusted: bool = True) -> Iterator[Server]:
  """Serves files, and trusts the server's certificate or not."""
  found, before = Server(), os.environ.get('SSL_CERT_FILE')

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
      self.close_connection = True
      found.requests.append((self.path, self.headers.get('Range', '')))
      file = found.files.get(self.path) or found.files.get(
          self.path.partition('?')[0])
      if file is None:
        self.send_error(404)
        return
      # Whoever asked may have gone.
      with contextlib.suppress(ConnectionError, ssl.SSLError):
        self._answer(file)

    def _answer(self, file):
      if file.wait is not None:
        file.wait()
      content, status, start = file.content, file.status, 0
      asked = re.match(r'bytes=(\d+)-$', self.headers.get('Range', ''))
      same = self.headers.get('If-Range') in (None, file.etag)
      if asked and file.ranges and same and status == 200:
        start = int(asked[1])
        status = 206 if start < len(content) else 416
      self.send_response(status)
      self.send_header('Content-Type', file.kind)
      for name, value in file.headers.items():
        self.send_header(name, value)
      if file.etag is not None:
        self.send_header('ETag', file.etag)
      if file.ranges:
        self.send_header('Accept-Ranges', 'bytes')
      if status == 206:
        self.send_header('Content-Range',
                         f'bytes {start}-{len(content) - 1}/{len(content)}')
      body = content[start:]
      if isinstance(file.length, int) or file.length == 'given':
        self.send_header('Content-Length', str(
            len(body) if file.length == 'given' else file.length))
      elif file.length == 'chunked':
        self.send_header('Transfer-Encoding', 'chunked')
      self.send_header('Connection', 'close')
      self.end_headers()
      cut = file.cuts.pop(0) if file.cuts else None
      if file.length == 'chunked':
        self.wfile.write(f'{len(body):x}\r\n'.encode() + body[:cut])
        if cut is None:
          self.wfile.write(b'\r\n0\r\n\r\n')
      else:
        self.wfile.write(body[:cut])

    def log_message(self, *args):
      pass

  with tempfile.TemporaryDirectory() as directory:
    certificate = pathlib.Path(directory) / 'certificate.pem'
    certificate.write_text(_CERTIFICATE)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # Each connection shakes hands in its own thread.
    server.socket = context.wrap_socket(server.socket, server_side=True,
                                        do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever,
                              kwargs={'poll_interval': 0.02})
    thread.start()
    found.address = f'https://127.0.0.1:{server.server_port}'
    if trusted:
      os.environ['SSL_CERT_FILE'] = str(certificate)
    try:
      yield found
    finally:
      os.environ.pop('SSL_CERT_FILE', None)
      if before is not None:
        os.environ['SSL_CERT_FILE'] = before
      server.shutdown()
      thread.join()
      server.server_close()
