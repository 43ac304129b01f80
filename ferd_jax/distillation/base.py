"""What an inner attack and an outer loss are asked, and what they answer.

A student step attacks a batch (inner) and descends a loss on both versions of
it (outer). Both are frozen dataclasses that are registered by name in
`ferd_jax.distillation`; the step knows nothing else of them. Both may keep a
state, such as a weight per class; `Stateless` has what a part without one
answers.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

from ferd_jax.models import frozen
from ferd_jax.models import passes

LogitsFn = Callable[[jax.Array], jax.Array]

# How many iterates of an attack, the start among them and the last not, are
# still classified as the label: Fair-ARD's kappa.
KAPPA = 'kappa'


class Networks(NamedTuple):
  """What an inner attack may ask, as functions images -> logits `[B, K]`.

  Attributes:
    student: in evaluation mode.
    student_train: on the statistics of the batch that it is given, which it
      leaves no trace of (ARD and IAD attack the student so).
    teachers: by name, in evaluation mode.
  """
  student: LogitsFn
  student_train: LogitsFn
  teachers: Mapping[str, LogitsFn]


class Attacked(NamedTuple):
  """What an inner attack returns.

  Attributes:
    images: `[B, H, W, C]`, gradient stopped.
    noticed: arrays `[B]` by name that the outer loss may read, such as how
      many steps an image withstood; their means are metrics.
  """
  images: jax.Array
  noticed: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Needs:
  """What an outer loss reads of a batch; nothing else is computed for it.

  Attributes:
    t_clean: names of the teachers that see the clean images.
    t_adv: names of the teachers that see the attacked images.
    s_clean: whether the student sees the clean images.
    s_adv: whether the student sees the attacked images.
    adversarial_first: whether the training pass on the attacked images comes
      before that on the clean ones. It shows in the BatchNorm statistics: the
      attack is on the student before its first training pass then, else on
      that after its clean pass.
    noticed: names of what the inner attack has to notice, such as `KAPPA`.
  """
  t_clean: tuple[str, ...] = (frozen.ROBUST,)
  t_adv: tuple[str, ...] = ()
  s_clean: bool = True
  s_adv: bool = True
  adversarial_first: bool = False
  noticed: tuple[str, ...] = ()


class Outputs(flax.struct.PyTreeNode):
  """All that a student step knows of a batch.

  Attributes:
    labels: int32 `[B]`, sampled, or the classes that the `ROBUST` teacher
      predicts where the synthesis samples none.
    t_clean: the teachers' logits `[B, K]` on the clean images, by name,
      gradient stopped: those that somebody needs.
    t_adv: the same on the attacked images.
    s_clean: the student's logits `[B, K]` on the clean images in training
      mode, None if nobody needs them.
    s_adv: the same on the attacked images.
    noticed: what the inner attack noticed, `[B]` by name, gradient stopped.
    epoch: int32 scalar, epochs completed.
    weights: `[B]`, what a wrapper weighs the examples by, gradient stopped;
      None: all count alike. Means over the batch are taken by `mean`.
  """
  labels: jax.Array
  t_clean: dict[str, jax.Array]
  t_adv: dict[str, jax.Array]
  s_clean: jax.Array | None
  s_adv: jax.Array | None
  noticed: dict[str, jax.Array]
  epoch: jax.Array
  weights: jax.Array | None = None

  def mean(self, values: jax.Array) -> jax.Array:
    """Returns the mean over the batch of `values` `[B]`, as they are weighed.

    The weights do not sum to 1: a wrapper that doubles them all doubles it.
    """
    if self.weights is None:
      return jnp.mean(values)
    return jnp.mean(self.weights * values)


class Stateless:
  """What a part answers that keeps nothing."""

  def init(self, num_classes: int) -> tuple[()]:
    """Returns no state."""
    del num_classes
    return ()

  def update(self, state: tuple[()], outputs: Outputs, *,
             axis_name: str | None = None) -> tuple[()]:
    """Returns no state; see `Inner.update`."""
    del outputs, axis_name
    return state

  def end_epoch(self, state: tuple[()], epoch: jax.Array) -> tuple[()]:
    """Returns no state."""
    del epoch
    return state


class Inner(Protocol):
  """Finds the images that a student step attacks itself with.

  Attributes:
    needs: names of the teachers whose logits on the clean images it reads.
    notices: names of what it notices.
    passes: through teachers that it takes for each image itself, for the run's
      budget, which says nothing of passes if a part has no such attribute.
  """
  needs: tuple[str, ...]
  notices: tuple[str, ...]
  passes: passes.Passes

  def init(self, num_classes: int) -> Any:
    """Returns the state before the first epoch, a pytree of arrays."""

  def __call__(self, state: Any, networks: Networks, images: jax.Array,
               labels: jax.Array, t_clean: Mapping[str, jax.Array],
               class_state: Any, keys: jax.Array) -> Attacked:
    """Returns the attacked images and what the attack noticed.

    Args:
      state: of this attack.
      networks: of this step.
      images: `[B, H, W, C]` in [0, 1].
      labels: int32 `[B]`.
      t_clean: the teachers' logits on `images`, by name.
      class_state: of the outer loss.
      keys: typed PRNG keys `[B]`, one per image.
    """

  def update(self, state: Any, outputs: Outputs, *,
             axis_name: str | None = None) -> Any:
    """Returns the state after a batch, the same on every shard.

    Args:
      state: before.
      outputs: of the batch, gradient stopped; a shard of it with an axis.
      axis_name: mapped axis over which the batch is sharded.
    """

  def end_epoch(self, state: Any, epoch: jax.Array) -> Any:
    """Returns the state for the next epoch; see `Outer.end_epoch`."""


class Outer(Protocol):
  """What a student step descends, with a state per class or none.

  Attributes:
    needs: what it reads of a batch.
  """
  needs: Needs

  def init(self, num_classes: int) -> Any:
    """Returns the state before the first epoch, a pytree of arrays."""

  def __call__(self, state: Any, outputs: Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """Returns the loss, the state after the batch, and scalar metrics.

    What the loss has of an example enters by `outputs.mean`, so that a wrapper
    can weigh examples. Metrics named `..._loss` are such means without the
    loss's own coefficients.

    Args:
      state: of this loss, the same on every shard, before and after.
      outputs: of the batch, a shard of it with an axis.
      axis_name: mapped axis over which the batch is sharded; the loss and the
        metrics are those of the shard, their means over the axis count.
    """

  def end_epoch(self, state: Any, epoch: jax.Array) -> Any:
    """Returns the state for the next epoch.

    Args:
      state: after the last batch.
      epoch: int32 scalar, epochs completed with this one.
    """
