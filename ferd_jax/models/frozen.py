"""The networks that a step reads and leaves as they are."""

from typing import Any

import flax.struct
import jax

# The teacher that distillation is from; further ones have other names.
ROBUST = 'robust'
STUDENT = 'student'


class Frozen(flax.struct.PyTreeNode):
  """Networks that a step does not change, and where the run is.

  Attributes:
    teachers: variables by name; without `ROBUST` in a run that trains on real
      images with their labels alone.
    student: its variables in a generator phase, None in its own.
    epoch: int32 scalar, epochs completed.
  """
  teachers: dict[str, Any]
  student: Any
  epoch: jax.Array
