"""Official archives of the datasets: download and verification."""

from collections.abc import Sequence
import dataclasses
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

  @property
  def digest(self) -> downloads.Digest:
    """What its bytes are known by."""
    return downloads.Digest(self.checksum, self.algorithm, self.size)


def fetch(archives: Sequence[Archive], directory: pathlib.Path,
          download: bool,
          reporter: reporting.Reporter = reporting.TERMINAL
          ) -> list[pathlib.Path]:
  """Makes sure that a directory holds archives, unharmed.

  Files that are there, by whatever way they came, are verified; the others,
  and those that are damaged, are downloaded.

  Args:
    archives: the wanted files.
    directory: where they are or shall be.
    download: whether the network may be used.
    reporter: shows downloads.

  Returns:
    Their paths, in the same order.

  Raises:
    FileNotFoundError: if some are missing or damaged and could not or must not
      be downloaded.
    ValueError: if what a server has is not the official file.
  """
  paths = [directory / archive.filename for archive in archives]
  for i, (archive, path) in enumerate(zip(archives, paths, strict=True)):
    try:
      if download:
        downloads.get(archive.url, path, digest=archive.digest,
                      reporter=reporter)
        continue
      reason = 'downloading is switched off'
      if path.exists():
        archive.digest.check(path)
        continue
    except ValueError as error:
      if download:
        raise ValueError(f'{archive.url} is not the official '
                         f'{archive.filename}: {error}.') from error
      reason = f'{path} is damaged: {error}'
    except OSError as error:
      damaged = f'{path} is damaged; ' if path.exists() else ''
      reason = f'{damaged}download failed: {errors.reason(error)}'
    left = [each for each, there in zip(archives[i:], paths[i:], strict=True)
            if each is archive or not there.exists()]
    # Its causes are as many layers of the network as there are; the reason
    # says enough.
    raise FileNotFoundError(_instructions(left, directory, reason)) from None
  return paths


def _instructions(missing: Sequence[Archive], directory: pathlib.Path,
                  reason: str) -> str:
  """Says which files a person has to put where."""
  files = '\n'.join(
      f'  {a.filename}  ({a.size:,} bytes, {a.algorithm} {a.checksum})\n'
      f'    from {a.url}' for a in missing)
  return f'Missing or damaged data ({reason}). Place in {directory}:\n{files}'
