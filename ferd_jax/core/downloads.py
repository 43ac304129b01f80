"""Files from the internet that appear whole and accepted, or not at all."""

from collections.abc import Callable
import http.client
import os
import pathlib
import socket
import threading
from urllib import request

from ferd_jax.core import errors
from ferd_jax.core import reporting

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60

PAGE = 'the server answered with a page instead of the file'


def connect(address: str) -> http.client.HTTPResponse:
  """Opens an address.

  Raises:
    OSError: if that is refused, or nothing comes for a minute.
    http.client.HTTPException: if the server does not keep to the protocol.
    ValueError: if it is no address.
  """
  return request.urlopen(address, timeout=_TIMEOUT_SECONDS)


def is_page(response: http.client.HTTPResponse) -> bool:
  """Returns whether a server answers with a page for people."""
  return response.headers.get_content_type() == 'text/html'


def fetch(address: str, path: pathlib.Path, *,
          accept: Callable[[pathlib.Path], None],
          connect: Callable[[str], http.client.HTTPResponse] = connect,
          reporter: reporting.Reporter = reporting.TERMINAL) -> None:
  """Downloads a file; leaves nothing behind if that fails.

  Until it is complete and accepted it has another name, which no other
  download has, on whatever host: of two at once the later replaces the file.

  Args:
    address: where it is.
    path: where it shall be; the directory is made if absent.
    accept: called with the complete file under its other name; raises
      ValueError for one that is not what was expected.
    connect: opens the address, as the function of this name does.
    reporter: shows how far it is. By default the terminal: it may take long,
      and be the first that happens.

  Raises:
    OSError: if it cannot be downloaded, did not come as a whole, cannot be
      written, or is a page.
    ValueError: if it is not accepted, or `address` is none.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(
      f'{path.name}.{socket.gethostname()}.{os.getpid()}.'
      f'{threading.get_ident()}.part')
  try:
    _download(address, path.name, partial, connect, reporter)
    accept(partial)
    partial.replace(path)
  except http.client.HTTPException as error:
    raise OSError(errors.reason(error)) from error
  finally:
    partial.unlink(missing_ok=True)


def _download(address, name, partial, connect, reporter):
  """Writes what an address holds, and compares its length."""
  with connect(address) as response, open(partial, 'wb') as file:
    if is_page(response):
      raise OSError(PAGE)
    length = response.headers.get('Content-Length')
    total = int(length) if length else None
    size = 'unknown size' if total is None else f'{total:,} bytes'
    reporter.line(f'Downloading {name} ({size}) to {partial.parent}')
    with reporter.task(name, total, 'B') as task:
      while chunk := response.read(_CHUNK_BYTES):
        file.write(chunk)
        task.advance(len(chunk))
    came = file.tell()
  if total is not None and came != total:
    raise OSError(f'{came:,} of {total:,} bytes came')
