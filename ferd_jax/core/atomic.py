"""Files that appear whole or not at all, however a run ends."""

from collections.abc import Iterator
import contextlib
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
  with partial.open('wb') as file:
    yield file
  partial.replace(path)


def write_text(path: epath.Path, text: str) -> None:
  """Replaces the content of `path`, in UTF-8."""
  with writing(path) as file:
    file.write(text.encode())
