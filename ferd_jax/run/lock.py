"""Who works in a work directory: one at a time, and what is known of it.

`lock.json` names host and process of the owner. On a disk the kernel holds
besides a lock on that file, which ends with its owner, however that ends: a
start after a crash is not held up, and of two at the same instant one gets it.
Where the kernel cannot tell, which is so for owners on other hosts if a shared
disk has no locks, and in a bucket, the owner writes a sign of life every
`_BEAT` seconds, and a start waits `_SILENT` seconds for one before it takes
over. Two starts at the same instant can both get a lock in a bucket, where
nothing is created by one only; the one that wrote last keeps it, the other
stops at its next checkpoint at the latest.
"""

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
import platform
import threading
import time
from typing import Any
import uuid

from etils import epath
import jax

from ferd_jax.core import file_locks
from ferd_jax.core import reporting

LOCK = 'lock.json'
_BEAT = 15.
_SILENT = 40.
_SETTLED = 3.  # After so long a write of another one shows in a bucket.
_SIZE = 512  # bytes, as one of which a disk writes them


class Lock:
  """A work directory's lock while it is held."""

  def __init__(self, path: epath.Path, descriptor: int | None,
               record: dict[str, Any]):
    """Starts the signs of life of a lock that was just taken.

    Args:
      path: of the lock's file.
      descriptor: of the file that the kernel has locked, or None.
      record: what it says.
    """
    self._path, self._descriptor, self._record = path, descriptor, record
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._live, daemon=True)
    self._thread.start()

  def confirm(self) -> None:
    """Raises OSError if the lock was removed or somebody else has it now."""
    found = _read(self._path)
    if found is None:
      raise OSError(f'{self._path} was removed; this process writes nothing '
                    'more.')
    if found.get('token') != self._record['token']:
      raise OSError(f'{self._path} was taken over by {_owner(found)}; this '
                    'process writes nothing more.')

  def release(self) -> None:
    """Ends it; may be called once."""
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      self.confirm()
      self._path.unlink()
    if self._descriptor is not None:
      os.close(self._descriptor)

  def _live(self):
    beat = 0
    while not self._ended.wait(_BEAT):
      beat += 1
      with contextlib.suppress(OSError):  # A disk that is away for a while.
        self.confirm()
        _write(self._path, self._descriptor, self._record | {'beat': beat})


@contextlib.contextmanager
def held(workdir: epath.PathLike,
         reporter: reporting.Reporter = reporting.TERMINAL
         ) -> Iterator[Lock | None]:
  """Holds the lock of a work directory; of several processes the first does.

  Args:
    workdir: made if absent.
    reporter: told if a lock is taken over from a host that may have died.

  Yields:
    The lock; None in the other processes.

  Raises:
    ValueError: if somebody else holds it, whom the message names, or nothing
      can be written there.
  """
  if jax.process_index():
    yield None
    return
  path = epath.Path(workdir) / LOCK
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _take(path, reporter)
  except OSError as error:
    raise ValueError(
        f'Cannot write into workdir={str(workdir)!r}: {error}') from error
  try:
    yield lock
  finally:
    lock.release()


def _take(path, reporter):
  """Returns the lock, or raises ValueError with its owner."""
  descriptor = _kernel_lock(path)
  try:
    _wait_for_a_sign(path, descriptor, reporter)
    record = {
        'host': platform.node(), 'process': os.getpid(),
        'since': datetime.datetime.now().astimezone().isoformat(
            timespec='seconds'),
        'token': uuid.uuid4().hex, 'beat': 0}
    _write(path, descriptor, record)
    if descriptor is None:
      time.sleep(_SETTLED)
      found = _read(path)
      if found is None or found.get('token') != record['token']:
        raise _refusal(path, found)
    return Lock(path, descriptor, record)
  except BaseException:
    if descriptor is not None:
      os.close(descriptor)
    raise


def _kernel_lock(path):
  """Returns the descriptor of the locked file, None where there are no locks.
  """
  if '://' in os.fspath(path):
    return None
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    taken = file_locks.take(descriptor)
    if not taken:
      os.close(descriptor)
      if taken is None:
        return None
      raise _refusal(path, _read(path))
    try:  # The one before may have removed the file that was opened.
      current = os.stat(path)
    except FileNotFoundError:
      current = None
    opened = os.fstat(descriptor)
    if current is not None and os.path.samestat(current, opened):
      return descriptor
    os.close(descriptor)


def _wait_for_a_sign(path, descriptor, reporter):
  """Returns once the last owner is known to be gone, or raises ValueError."""
  found = _read(path)
  if not found:
    return
  if descriptor is not None and found.get('host') == platform.node():
    return  # The kernel would know.
  reporter.line(f'{path} is of {_owner(found)}: waiting {_SILENT:g} seconds '
                'for a sign of life.')
  deadline = time.monotonic() + _SILENT
  while time.monotonic() < deadline:
    time.sleep(min(1., _SILENT / 10))
    later = _read(path)
    if later is None:  # It has just ended.
      return
    if later != found:
      # Another program may be writing it just now: of the one that is known.
      raise _refusal(path, later or found)
  reporter.line(f'There was none: {path} is taken over.')


def _read(path):
  """Returns what a lock's file says, {} if nothing, None if there is none."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _write(path, descriptor, record):
  text = json.dumps(record) + '\n'
  if descriptor is None:
    if '://' in os.fspath(path):  # An object appears as a whole.
      path.write_text(text)
      return
    # Renamed, as a file that is written anew is empty for a moment, in which
    # a start would not know whose it is.
    new = path.parent / f'.{path.name}.{record["token"]}'
    try:
      new.write_text(text)
      new.replace(path)
    except OSError:
      new.unlink(missing_ok=True)
      raise
    return
  # In place, as another file would not be locked, and of one length, so that
  # nobody reads the end of an older one.
  content = text.encode().ljust(_SIZE)
  os.pwrite(descriptor, content, 0)
  os.ftruncate(descriptor, len(content))


def _refusal(path, found):
  workdir = os.fspath(path.parent)
  return ValueError(
      f'Expected workdir={workdir!r} to be free: {_owner(found)} works in it '
      f'({path.name}). Wait for it, stop it, or use another --workdir.')


def _owner(found):
  """Returns who a lock's file says that it is of."""
  if not found:
    return 'another process'
  return (f'process {found.get("process")} on host {found.get("host")!r} '
          f'(since {found.get("since")})')
