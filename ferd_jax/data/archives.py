"""Official archives of the datasets: download and verification."""

from collections.abc import Sequence
import dataclasses
import hashlib
import http.client
import os
import pathlib
import socket
from urllib import request

import tqdm

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


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
          download: bool) -> list[pathlib.Path]:
  """Makes sure that a directory holds archives, unharmed.

  Files that are there, by whatever way they came, are verified; the others are
  downloaded, under another name until they are complete and verified.

  Args:
    archives: the wanted files.
    directory: where they are or shall be.
    download: whether the network may be used.

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
      _download(missing[0], directory)
    except (OSError, http.client.HTTPException) as error:
      reason = f'download failed: {error}'
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


def _download(archive: Archive, directory: pathlib.Path) -> None:
  """Downloads and verifies a file; leaves nothing behind if that fails."""
  directory.mkdir(parents=True, exist_ok=True)
  # Host and process keep two downloads at once apart.
  partial = directory / (
      f'{archive.filename}.{socket.gethostname()}.{os.getpid()}.part')
  try:
    with (request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as response,
          open(partial, 'wb') as file,
          tqdm.tqdm(desc=archive.filename, total=archive.size, unit='B',
                    unit_scale=True) as progress):
      while chunk := response.read(_CHUNK_BYTES):
        file.write(chunk)
        progress.update(len(chunk))
    _verify(partial, archive, archive.url)
    partial.replace(directory / archive.filename)
  finally:
    partial.unlink(missing_ok=True)


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
