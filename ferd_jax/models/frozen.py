"""The networks that a step reads and leaves as they are."""

from typing import Any

import flax.struct
import jax

ROBUST = 'robust'  # The teacher that every run has; others have other names.
STUDENT = 'student'


class Frozen(flax.struct.PyTreeNode):
  """Networks that a step does not change, and where the run is.

  Attributes:
    teachers: variables by name; `ROBUST` is always there.
    student: its variables in a generator phase, None in its own.
    epoch: int32 scalar, epochs completed.
  """
  teachers: dict[str, Any]
  student: Any
  epoch: jax.Array
