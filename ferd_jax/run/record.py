"""What is kept of a run beside the arrays of a checkpoint, and proves them.

Orbax checks nothing of what it reads: of single bits that flip on a disk most
would go on as other weights. Each checkpoint has, in its metadata, a digest of
all its arrays; their names, types and shapes, which tell damage from a state of
another version; digests of the pool's files; and what its run is and has
measured so far, from which the files beside it are made again.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from ferd_jax.core import digests

_RECORD, _DIGEST = 'record', 'digest'


class Damaged(OSError):
  """A file of the work directory that is not what was written."""


@dataclasses.dataclass(frozen=True)
class Record:
  """What belongs to the state of an epoch.

  Attributes:
    epoch: completed epochs.
    state: digest of all arrays.
    structure: type and shape of each array as text, by its path.
    pool: digests of the images and labels that each epoch made.
    metrics: the lines of metrics.jsonl up to this epoch.
    identity: of the run, as in config.json.
  """
  epoch: int
  state: str
  structure: Mapping[str, str]
  pool: Sequence[str]
  metrics: Sequence[str]
  identity: Mapping[str, Any]

  def json_values(self) -> dict[str, Any]:
    """Returns it with a digest of its own, for `read`."""
    values = dataclasses.asdict(self)
    return {_RECORD: values, _DIGEST: digests.of_json(values)}


def read(values: Mapping[str, Any] | None) -> Record | None:
  """Returns what `json_values` wrote; None if there is nothing.

  Args:
    values: what was read.

  Raises:
    Damaged: if it is not what was written.
  """
  if not values:  # Of a version that kept none.
    return None
  try:
    found = Record(**values[_RECORD])
    intact = values[_DIGEST] == digests.of_json(dict(values[_RECORD]))
  except (KeyError, TypeError, ValueError):
    intact = False
  if not intact:
    raise Damaged('its metadata are not what was written')
  return found
