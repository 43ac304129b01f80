"""What changes while training, as explicit pytrees.

`FerdState` lives as long as the run and is what a checkpoint holds, with the
pool beside it.
"""

import enum
from typing import Any

import flax.struct
import jax

from ferd_jax.synthesis import class_weights


class Once(enum.IntEnum):
  """What is random, but not part of an epoch."""
  STUDENT = 0
  EVALUATION = 1
  TEACHER = 2


def key_once(root: jax.Array, purpose: Once) -> jax.Array:
  """Returns the key of a purpose; those of epochs, from 1, are apart."""
  return jax.random.fold_in(jax.random.fold_in(root, 0), purpose)


class FerdState(flax.struct.PyTreeNode):
  """State of a run between epochs.

  Attributes:
    student: variables of the student, `params` and `batch_stats`.
    opt_state: of the student's optimiser.
    class_weights: sampling probabilities and margins of the classes.
    class_state: what the outer loss keeps per class, such as GKL's prior.
    epoch: int32 scalar, epochs completed.
    key: root PRNG key; it never changes. Whatever is random in an epoch comes
      from it by `fold_in` of epoch and step, so a resumed run is exact.
  """
  student: Any
  opt_state: Any
  class_weights: class_weights.ClassWeights
  class_state: Any
  epoch: jax.Array
  key: jax.Array
