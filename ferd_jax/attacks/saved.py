"""The state of an AutoAttack run in a file, so that it can be gone on with."""

import hashlib
import json
import os
import pathlib
from typing import Any
import zipfile

import jax
import numpy as np

_FORMAT = 1


def digest(tree: Any) -> str:
  """Returns a hash of all arrays of a pytree, in their order."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    array = np.asarray(leaf)
    found.update(f'{array.dtype}{array.shape}'.encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def write(path: os.PathLike, identity: dict[str, Any],
          arrays: dict[str, np.ndarray]) -> None:
  """Replaces the file as a whole.

  Args:
    path: of the file.
    identity: JSON values that tell this run from another.
    arrays: by name.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  meta = json.dumps({'format': _FORMAT} | identity)
  with partial.open('wb') as file:
    np.savez(file, meta=np.array(meta), **arrays)
  partial.replace(path)


def read(path: os.PathLike,
         identity: dict[str, Any]) -> dict[str, np.ndarray] | None:
  """Returns the arrays of a run's file, None if there is no file.

  Args:
    path: of the file.
    identity: of this run.

  Raises:
    ValueError: if the file is of another run (with what differs), or damaged.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    found = json.loads(str(arrays.pop('meta')))
  except (ValueError, KeyError, EOFError, OSError,
          zipfile.BadZipFile) as error:
    raise ValueError(f'{path} is no state of AutoAttack, or damaged: '
                     f'{error}') from error
  expected = json.loads(json.dumps({'format': _FORMAT} | identity))
  differing = [name for name in expected if found.get(name) != expected[name]]
  if differing:
    listed = ', '.join(f'{name} is {expected[name]!r}, there '
                       f'{found.get(name)!r}' for name in differing)
    raise ValueError(f'{path} is of another run: {listed}.')
  return arrays
