"""What changes while training, as explicit pytrees.

`FerdState` lives as long as the run and is what a checkpoint holds, with the
pool beside it. `SynthesisState` lives for one generator phase; what every
device holds and what belongs to single examples are separate fields, because
the first is replicated and the second sharded.
"""

import enum
from typing import Any

import flax.struct
import jax

from ferd_jax import class_weights


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


class GeneratorState(flax.struct.PyTreeNode):
  """The replicated part of a generator phase.

  Attributes:
    params: of the generator.
    batch_stats: running statistics of its BatchNorm layers, without effect:
      images are always made on batch statistics.
    opt_state: of the generator's optimiser.
    best_loss: scalar, the smallest loss so far.
  """
  params: Any
  batch_stats: Any
  opt_state: Any
  best_loss: jax.Array


class ExampleState(flax.struct.PyTreeNode):
  """The per-example part of a generator phase.

  Attributes:
    latents: `[B, nz]`, trained along with the generator.
    opt_state: of the latents' own optimiser.
    labels: int32 `[B]`, the sampled classes.
    best_images: `[B, H, W, C]`, not augmented, of the step with the least loss.
    view: `[B, H, W, C]`, the augmented images of the last step.
  """
  latents: jax.Array
  opt_state: Any
  labels: jax.Array
  best_images: jax.Array
  view: jax.Array


class SynthesisState(flax.struct.PyTreeNode):
  """State of a generator phase: replicated and per-example parts."""
  generator: GeneratorState
  examples: ExampleState
