"""A file is written as a whole or stays as it was."""

from etils import epath
import pytest

from ferd_jax.core import atomic


def test_interrupted_writing_changes_nothing(tmp_path):
  path = epath.Path(tmp_path) / 'folder' / 'file'
  atomic.write_text(path, 'first\n')
  with pytest.raises(KeyboardInterrupt), atomic.writing(path) as file:
    file.write(b'sec')
    raise KeyboardInterrupt
  assert path.read_text() == 'first\n'
  atomic.write_text(path, 'second: ä\n')
  assert path.read_bytes() == 'second: ä\n'.encode()
