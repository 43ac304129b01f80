"""The state of an AutoAttack run in a file, so that it can be gone on with."""

import json
import os
import re
from typing import Any
import zipfile

from etils import epath
import numpy as np

from ferd_jax.core import atomic
from ferd_jax.core import errors

_FORMAT = 3


class Damaged(ValueError):
  """A file that is no state of AutoAttack, or not what was written."""


def code_of(jaxpr: Any) -> str:
  """Returns the text of a traced function, the same in every process."""
  # Neither colours, which depend on the terminal, nor addresses.
  return described(jaxpr.jaxpr.pretty_print(use_color=False))


def described(value: Any) -> str:
  """Returns a setting as text, the same in every process."""
  return re.sub(r' at 0x[0-9a-f]+', '', str(value))


def write(path: os.PathLike | str, identity: dict[str, Any],
          arrays: dict[str, np.ndarray]) -> None:
  """Replaces the file as a whole.

  Args:
    path: of the file.
    identity: JSON values that tell this run from another.
    arrays: by name.
  """
  meta = json.dumps({'arrays': list(arrays), 'run': _run(identity)})
  with atomic.writing(epath.Path(path)) as file:
    everything: dict[str, Any] = {'meta': np.array(meta), **arrays}
    np.savez(file, **everything)


def read(path: os.PathLike | str,
         identity: dict[str, Any]) -> dict[str, np.ndarray] | None:
  """Returns the arrays of a run's file, None if there is no file.

  Args:
    path: of the file.
    identity: of this run.

  Raises:
    Damaged: if the file is damaged.
    ValueError: if it is of another run (with what differs).
  """
  file_path = epath.Path(path)
  if not file_path.exists():
    return None
  try:
    with file_path.open('rb') as file:
      loaded = np.load(file, allow_pickle=False)
      meta = json.loads(str(loaded['meta']))
      found = dict(meta['run'])
      arrays = {name: loaded[name] for name in meta['arrays']}
  except (ValueError, LookupError, TypeError, EOFError, OSError, RuntimeError,
          zipfile.BadZipFile) as error:
    raise damaged(path, errors.reason(error)) from error
  expected = json.loads(json.dumps(_run(identity)))
  differing = [name for name in {**expected, **found}
               if found.get(name) != expected.get(name)]
  if differing:
    listed = ', '.join(f'{name} is {expected.get(name)!r}, there '
                       f'{found.get(name)!r}' for name in differing)
    listed = re.sub(r"'([0-9a-f]{8})[0-9a-f]{56}'", r"'\1'", listed)  # Hashes.
    raise ValueError(f'{path} is of another run: {listed}. Delete it or use '
                     'another file.')
  return arrays


def damaged(path: os.PathLike | str, reason: str) -> Damaged:
  """Returns the error for a file that is not what was written, and why."""
  return Damaged(f'{path} is no state of AutoAttack, or damaged: {reason}. '
                 'Without this file the attack starts anew.')


def _run(identity):
  return {'format': _FORMAT} | identity
