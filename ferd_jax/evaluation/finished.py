"""Finished parts of an evaluation in files, so that none is done twice.

Each attack on a model, and each table of targets, is a JSON file of its own,
written as soon as it is there. Its name has a digest of all that the numbers
depend on: weights, images, labels, key, settings and versions. One that was
found otherwise has another name, and is not taken for it.
"""

from collections.abc import Callable
import json
from typing import Any

from etils import epath

from ferd_jax.core import atomic
from ferd_jax.core import digests
from ferd_jax.core import errors
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting


def once(directory: epath.PathLike | None, name: str, run: str,
         compute: Callable[[], Any], parallel: parallels.Parallel,
         reporter: reporting.Reporter = reporting.SILENT) -> Any:
  """Returns a part, computed and kept, or as it was kept.

  Args:
    directory: where; None to keep nothing.
    name: of the part.
    run: digest of all that it depends on.
    compute: returns JSON values; not called if the part is there.
    parallel: the device mapping, of whose processes all do the same.
    reporter: told of a part that is there, and of a file that is damaged,
      which is made again.

  Returns:
    JSON values, as they are after reading.
  """
  if directory is None:
    return _read_back(compute())
  path = epath.Path(directory) / f'{name}-{run[:16]}.json'
  found = None
  try:
    found = json.loads(path.read_text())
    if found['run'] != run or found['digest'] != digests.of_json(
        found['values']):
      raise ValueError('it is not what was written')
  except FileNotFoundError:
    pass
  except (LookupError, OSError, TypeError, ValueError) as error:
    found = None
    reporter.line(f'Warning: Cannot read {path}: {errors.reason(error)}. '
                  f'{name} is done again.')
  if parallel.all_agree(found is not None):
    reporter.line(f'{name}: found before, not done again.')
    return found['values']
  values = _read_back(compute())
  if parallel.is_first:
    atomic.write_text(path, json.dumps({
        'run': run, 'digest': digests.of_json(values), 'values': values})
        + '\n')
  return values


def _read_back(values):
  return json.loads(json.dumps(values))
