"""Where a user's files are kept that can be made or fetched again."""

import os
import pathlib

VARIABLE = 'FERD_JAX_CACHE'


def place() -> pathlib.Path:
  """Returns the directory: $FERD_JAX_CACHE, else ferd_jax in a user's caches.

  These are in $XDG_CACHE_HOME or ~/.cache.
  """
  chosen = os.environ.get(VARIABLE) or pathlib.Path(
      os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'ferd_jax'
  return pathlib.Path(chosen).expanduser()
