"""What a synthesis and a sampler are asked, and what they answer.

A synthesis makes the images that the student is trained on; a sampler says
how often it should make which class. Both are frozen dataclasses that are
registered by name in `ferd_jax.synthesis`; the run knows nothing else of them.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import Protocol

from flax import linen as nn
import flax.struct
import jax

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import class_sums
from ferd_jax.core import parallel
from ferd_jax.core import validate
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.weights import native

REPLICATED, SHARDED = parallel.REPLICATED, parallel.SHARDED


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How an epoch goes on.

  Attributes:
    generator_steps: a round has, at least 1; 0 where nothing is learned, which
      is only if real images are read.
    student_steps: that follow them, at least 1 but for warm-up epochs.
    per_epoch: rounds an epoch.
    pooled: whether a round's images join a pool, from which the student's are
      drawn; then each round is a phase of its own. Else each student step gets
      images made for it alone, and a phase is an epoch.
    reads_data: whether images are made of a batch of real ones, which comes
      with every call of `images` and `measured_images`: the run is not
      data-free then, and says so.
  """
  generator_steps: int
  student_steps: int
  per_epoch: int = 1
  pooled: bool = True
  reads_data: bool = False

  def __post_init__(self):
    validate.count(0 if self.reads_data else 1, steps=self.generator_steps)
    validate.count(rounds=self.per_epoch, student_steps=self.student_steps)


class RealBatch(flax.struct.PyTreeNode):
  """Images of the training split, drawn by the sampler's probabilities.

  Attributes:
    images: uint8 `[B, H, W, C]` in 0..255.
    labels: int32 `[B]`, their own.
  """
  images: jax.Array
  labels: jax.Array


class Synthesis(Protocol):
  """Makes images, from the teacher alone unless its rounds read data.

  All arrays of a state are either the same on every device or belong to the
  examples of the batch, one row each; `specs` says which.

  Attributes:
    rounds: how an epoch goes on.
    batch_size: images that it makes at a time, over all devices.
    samples_labels: whether images are made for labels that are drawn by the
      sampler's probabilities, or have labels of their own; else those that
      `images` returns are not looked at, and the labels are what the `ROBUST`
      teacher predicts.
    passes: through teachers that a `step` takes for each image of its batch,
      for the run's budget, which says nothing of passes if a part has no such
      attribute.
  """
  rounds: Rounds
  batch_size: int
  samples_labels: bool
  passes: passes.Passes

  def init(self, key: jax.Array) -> Any:
    """Returns what is kept between phases, a pytree in every checkpoint.

    A meta generator, a memory bank, an optimiser's moments; () for a synthesis
    that starts every phase anew.

    Args:
      key: typed PRNG key.
    """

  def begin(self, kept: Any, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None) -> Any:
    """Returns the state of a generator phase, at its start.

    A phase is an epoch, or a round of a pooled synthesis.

    Args:
      kept: of the phase before.
      probs: `[K]`, class probabilities of the sampler.
      indices: int `[B]`, positions in the global batch of this shard's
        examples; what is drawn for an example depends on its position.
      key: typed PRNG key of this phase.
      axis_name: mapped axis over which the examples are sharded: what is made
        of them for all devices needs a collective.
    """

  def step(self, state: Any, frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the state after one generator step, and scalar metrics.

    Not asked of a synthesis whose rounds have none.

    Args:
      state: of the phase.
      frozen: teachers, student and epoch.
      key: typed PRNG key of this step.
      axis_name: mapped axis over which the examples are sharded; metrics are
        means over it.
    """

  def images(self, state: Any, frozen: frozens.Frozen, key: jax.Array,
             *real: RealBatch, axis_name: str | None = None
             ) -> tuple[jax.Array, jax.Array | None]:
    """Returns images `[B, H, W, C]` in [0, 1] to train on, and labels `[B]`.

    Those that a round leaves, or, without a pool, new ones at every call, for
    the student as it is then.

    Args:
      state: of the phase.
      frozen: teachers, student and epoch.
      key: typed PRNG key of this call.
      *real: one batch, if `rounds.reads_data`; else there is none.
      axis_name: mapped axis over which the examples are sharded.
    """

  def measured_images(self, state: Any, frozen: frozens.Frozen,
                      key: jax.Array, *real: RealBatch,
                      axis_name: str | None = None
                      ) -> tuple[jax.Array, jax.Array | None]:
    """Returns the images and labels that the sampler measures."""

  def end(self, kept: Any, state: Any, *,
          axis_name: str | None = None) -> Any:
    """Returns what is kept of a phase for the next one."""

  def specs(self) -> tuple[Any, Any]:
    """Returns where `kept` and a phase's state live, prefixes of `Spec`s."""

  def generator(self, kept: Any
                ) -> tuple[nn.Module, native.Network | None, Any] | None:
    """Returns the generator to export, None without one.

    Its module, what it is (None for a module without a name), and variables.
    """


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What a sampler wants to know of an epoch's images.

  Attributes:
    statistic: (logits `[B, K]`, labels `[B]`) -> `[B]`, whose sums per class
      it gets.
    attack: on the images beforehand; None: they stay clean.
    network: whose logits: a teacher's name, or 'student'.
  """
  statistic: Callable[[jax.Array, jax.Array], jax.Array] = losses.margin
  attack: attacks.PGD | None = None
  network: str = frozens.ROBUST


class Sampler(Protocol):
  """Says how often which class is made.

  Its state has a field `probs` `[K]`, with which a run begins, too.

  Attributes:
    measurement: what it wants to know, None for nothing: then nothing is
      attacked and nothing measured.
  """
  measurement: Measurement | None

  def init(self, num_classes: int) -> Any:
    """Returns the state of the first epoch."""

  def update(self, state: Any, measured: class_sums.Sums | None) -> Any:
    """Returns the state of the next epoch.

    Args:
      state: of this epoch.
      measured: of the images that this epoch made.
    """


def per_example(tree: Any) -> Any:
  """Returns specs for a pytree of per-example arrays, and of scalars."""
  return jax.tree.map(lambda leaf: SHARDED if leaf.ndim else REPLICATED, tree)
