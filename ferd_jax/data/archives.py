"""Official archives of the datasets: download and verification."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import pathlib

from ferd_jax.core import downloads
from ferd_jax.core import errors
from ferd_jax.core import reporting


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file as its authors published it.

  Attributes:
    url: where it is; the last part is the file's name.
    size: in bytes.
    checksum: hexadecimal digest.
    algorithm: the digest's name in hashlib.
  """
  url: str
  size: int
  checksum: str
  algorithm: str = 'sha256'

  @property
  def filename(self) -> str:
    return self.url.rsplit('/', 1)[-1]


def fetch(archives: Sequence[Archive], directory: pathlib.Path,
          download: bool,
          reporter: reporting.Reporter = reporting.TERMINAL
          ) -> list[pathlib.Path]:
  """Makes sure that a directory holds archives, unharmed.

  Files that are there, by whatever way they came, are verified; the others are
  downloaded, under another name until they are complete and verified.

  Args:
    archives: the wanted files.
    directory: where they are or shall be.
    download: whether the network may be used.
    reporter: shows downloads.

  Returns:
    Their paths, in the same order.

  Raises:
    FileNotFoundError: if some are missing and could not or must not be
      downloaded.
    ValueError: if a file differs from the official one.
  """
  paths = [directory / archive.filename for archive in archives]
  missing = []
  for archive, path in zip(archives, paths, strict=True):
    if path.exists():
      _verify(path, archive, str(path))
    else:
      missing.append(archive)
  while missing:
    if not download:
      raise FileNotFoundError(
          _instructions(missing, directory, 'downloading is switched off'))
    try:
      downloads.fetch(
          missing[0].url, directory / missing[0].filename, reporter=reporter,
          accept=functools.partial(_verify, archive=missing[0],
                                   name=missing[0].url))
    except OSError as error:
      reason = f'download failed: {errors.reason(error)}'
      # Its causes are as many layers of the network as there are; the reason
      # says enough.
      raise FileNotFoundError(
          _instructions(missing, directory, reason)) from None
    del missing[0]
  return paths


def _instructions(missing: Sequence[Archive], directory: pathlib.Path,
                  reason: str) -> str:
  """Says which files a person has to put where."""
  files = '\n'.join(
      f'  {a.filename}  ({a.size:,} bytes, {a.algorithm} {a.checksum})\n'
      f'    from {a.url}' for a in missing)
  return f'Missing data ({reason}). Place in {directory}:\n{files}'


def _verify(path: pathlib.Path, archive: Archive, name: str) -> None:
  """Raises ValueError unless a file is the official one."""
  with open(path, 'rb') as file:
    checksum = hashlib.file_digest(file, archive.algorithm).hexdigest()
  size = path.stat().st_size
  if (size, checksum) != (archive.size, archive.checksum):
    raise ValueError(
        f'{name} is not the official {archive.filename}: expected '
        f'{archive.size:,} bytes with {archive.algorithm} {archive.checksum}, '
        f'found {size:,} bytes with {checksum}. Delete it if it is there and '
        'get it again.')
