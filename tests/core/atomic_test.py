"""A file is written as a whole or stays as it was."""

import io
import os

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


def test_a_file_that_was_interrupted_leaves_nothing(tmp_path):
  with pytest.raises(ZeroDivisionError):
    with atomic.writing(epath.Path(tmp_path) / 'file') as file:
      file.write(b'half')
      raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_what_was_written_is_synchronised_before_it_appears(tmp_path,
                                                            monkeypatch):
  path, synced = epath.Path(tmp_path) / 'folder' / 'file', []
  fsync = os.fsync
  def noted(descriptor):
    synced.append((os.readlink(f'/proc/self/fd/{descriptor}'), path.exists()))
    fsync(descriptor)
  monkeypatch.setattr(os, 'fsync', noted)
  atomic.write_text(path, 'text')
  assert synced == [(f'{path.parent}/.file.partial', False),
                    (str(path.parent), True)]
  synced.clear()
  atomic.sync_tree(path.parent)
  assert [name for name, _ in synced] == [str(path), str(path.parent),
                                          str(tmp_path)]


class _Object(io.BytesIO):
  """What a bucket opens: it has no descriptor."""

  def fileno(self):
    raise io.UnsupportedOperation


def test_an_object_of_a_bucket_cannot_be_synchronised(tmp_path, monkeypatch):
  path = epath.Path(tmp_path) / 'file'
  (tmp_path / '.file.partial').touch()
  monkeypatch.setattr(type(path), 'open', lambda *args: _Object())
  with atomic.writing(path) as file:
    file.write(b'text')
  assert path.exists()
