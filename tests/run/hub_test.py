"""The hub's header, upload and download, with a client that is none."""

import sys
import types

import pytest

from ferd_jax.run import hub


class Api:
  """Notes what it is asked for."""
  calls = []

  def create_repo(self, repository, **options):
    if repository == 'not/mine':
      raise RuntimeError('403: forbidden')
    self.calls.append(('create', repository, options))

  def upload_folder(self, *, repo_id, folder_path, commit_message):
    self.calls.append(('folder', repo_id, folder_path))
    return f'https://hub/{repo_id}'

  def upload_file(self, *, repo_id, path_or_fileobj, path_in_repo,
                  commit_message):
    self.calls.append(('file', path_or_fileobj, path_in_repo))


@pytest.fixture
def client(monkeypatch, tmp_path):
  """A module in the place of the hub's client."""
  monkeypatch.setattr(Api, 'calls', [])
  def snapshot_download(repository):
    if repository != 'me/student':
      raise RuntimeError('404: not found')
    return str(tmp_path)
  fake = types.ModuleType('huggingface_hub')
  fake.HfApi, fake.snapshot_download = Api, snapshot_download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  return fake


@pytest.mark.usefixtures('client')
def test_upload(tmp_path):
  with pytest.raises(FileNotFoundError, match='no README.md'):
    hub.push(tmp_path, 'me/student')
  (tmp_path / 'README.md').write_text('')
  assert hub.push(tmp_path, 'me/student', private=True, files={
      'report.html': 'there/r.html'}) == 'https://hub/me/student'
  assert Api.calls == [
      ('create', 'me/student', {'private': True, 'exist_ok': True}),
      ('folder', 'me/student', str(tmp_path)),
      ('file', 'there/r.html', 'report.html')]
  with pytest.raises(ValueError, match='Cannot push to not/mine: 403'):
    hub.push(tmp_path, 'not/mine')


@pytest.mark.usefixtures('client')
def test_download(tmp_path):
  assert hub.fetch('me/student') == tmp_path
  with pytest.raises(ValueError, match='Cannot get me/other from the hub: 404'):
    hub.fetch('me/other')


def test_without_the_client_one_line_says_so(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  (tmp_path / 'README.md').write_text('')
  for call in (lambda: hub.push(tmp_path, 'me/student'),
               lambda: hub.fetch('me/student')):
    with pytest.raises(ValueError, match='pip install huggingface_hub'):
      call()
