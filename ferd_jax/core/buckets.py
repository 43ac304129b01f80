"""Places in a cloud's bucket, such as gs://bucket/folder.

`etils.epath` reads and writes them, with a package for each kind of bucket.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile

from etils import epath

from ferd_jax.core import errors


def is_one(place: str | os.PathLike) -> bool:
  """Returns whether a place is in a bucket."""
  return '://' in os.fspath(place)


def absolute(place: str | os.PathLike) -> epath.Path:
  """Returns a place from its root, as Orbax wants it.

  epath's own `absolute` puts a bucket into the current directory.
  """
  path = epath.Path(place)
  return path if is_one(place) else path.absolute()


def check(place: str | os.PathLike) -> None:
  """Raises ValueError for a bucket that nothing here can read, in one line.

  Args:
    place: in a bucket or on this machine, where there is nothing to check.
  """
  if not is_one(place):
    return
  try:
    epath.Path(place).exists()
  except Exception as error:  # Each kind of bucket has its own.
    reason = errors.reason(error)
    if isinstance(error, KeyError):  # All that epath says of another kind.
      reason = 'expected a place that begins with gs:// or s3://'
    raise ValueError(f'Cannot read {os.fspath(place)}: {reason}.') from error


@contextlib.contextmanager
def local(place: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a file on this machine, a copy for one in a bucket.

  Args:
    place: of a file; `~` is the user's home.

  Raises:
    FileNotFoundError: if a bucket has no such file.
    ValueError: for a bucket that nothing here can read.
  """
  if not is_one(place):
    yield pathlib.Path(place).expanduser()
    return
  check(place)
  source = epath.Path(place)
  if not source.exists():
    raise FileNotFoundError(f'{os.fspath(place)}: there is no such file.')
  with tempfile.TemporaryDirectory() as directory:
    copy = pathlib.Path(directory) / source.name
    try:
      with source.open('rb') as read, open(copy, 'wb') as write:
        while chunk := read.read(1 << 20):
          write.write(chunk)
      yield copy
    except (OSError, ValueError) as error:
      # What is wrong with it is so where it comes from.
      kind = ValueError if isinstance(error, ValueError) else OSError
      raise kind(str(error).replace(str(copy), os.fspath(place))) from error
