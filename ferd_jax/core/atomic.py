"""Files that appear whole or not at all, however a run ends, and that last.

What was written is on the disk when a function returns, as far as the disk
tells the truth: both the file's content and the entry of its directory are
synchronised, so that neither a power failure nor a crash of the machine takes
back what a later file builds on. In a cloud's bucket there is nothing to
synchronise: an object is there once it was closed.
"""

from collections.abc import Iterator
import contextlib
import io
import os
from typing import BinaryIO

from etils import epath


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[BinaryIO]:
  """Yields a file to write into; it becomes `path` when all went well.

  Args:
    path: of the file; its directory is made if absent.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f'.{path.name}.partial'
  try:
    with partial.open('wb') as file:
      yield file
      file.flush()
      _sync_file(file)
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    raise
  _sync(path.parent)


def write_text(path: epath.Path, text: str) -> None:
  """Replaces the content of `path`, in UTF-8."""
  with writing(path) as file:
    file.write(text.encode())


def sync_tree(path: epath.Path) -> None:
  """Makes a directory, and all that others have written into it, last."""
  for root, _, files in os.walk(os.fspath(path), topdown=False):
    for name in files:
      _sync(os.path.join(root, name))
    _sync(root)
  _sync(path.parent)


def _sync_file(file):
  try:
    os.fsync(file.fileno())
  except (AttributeError, io.UnsupportedOperation):  # An object of a bucket.
    pass


def _sync(path):
  """Synchronises a file or directory where that is known: not in a bucket."""
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError:
    return
  try:
    os.fsync(descriptor)
  except OSError:  # Some file systems know no fsync of directories.
    pass
  finally:
    os.close(descriptor)
