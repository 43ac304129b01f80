"""A bucket of this process, in place of Google's."""

from etils import epath
import fsspec
import pytest


@pytest.fixture
def bucket(monkeypatch):
  """A folder of it."""
  memory = fsspec.filesystem('memory')
  monkeypatch.setattr(epath.backend.fsspec_backend, 'fs', lambda path: memory)
  yield epath.Path('gs://bucket/folder')
  memory.store.clear()
