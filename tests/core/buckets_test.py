"""Places in a bucket: read with their package, named without."""

import importlib.util
import pathlib

from bucket import bucket  # noqa: F401
import pytest

from ferd_jax.core import buckets


def test_without_its_package():
  for place, word, package in (
      ('gs://bucket//x.pt', 'gcsfs', 'gcsfs'),
      ('s3://bucket/x.pt', 's3fs', 's3fs'),
      ('nope://x', 'begins with gs:// or s3://', None)):
    if package and importlib.util.find_spec(package):
      continue
    with pytest.raises(ValueError) as error:
      buckets.check(place)
    assert str(error.value).startswith(f'Cannot read {place}: ')
    assert word in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match='Cannot read'), buckets.local(place):
      pass


def test_places_of_this_machine(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for place in (tmp_path / 'a', str(tmp_path / 'a'), '~/a'):
    buckets.check(place)
    with buckets.local(place) as found:
      assert found == tmp_path / 'a' and isinstance(found, pathlib.Path)


def test_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(buckets.absolute('a/b')) == str(tmp_path / 'a' / 'b')
  assert str(buckets.absolute('gs://bucket/a')) == 'gs://bucket/a'


def test_local_copy(bucket):  # noqa: F811
  (bucket / 'a.bin').write_bytes(b'content')
  place = 'gs://bucket//folder/a.bin'
  with buckets.local(place) as found:
    assert found.name == 'a.bin' and found.read_bytes() == b'content'
  assert not found.exists()
  with pytest.raises(FileNotFoundError, match='gs://bucket//folder/b.bin'):
    with buckets.local('gs://bucket//folder/b.bin'):
      pass
  # Errors name the place, not the copy.
  with pytest.raises(ValueError, match=f'^{place} is none$'):
    with buckets.local(place) as found:
      raise ValueError(f'{found} is none')
