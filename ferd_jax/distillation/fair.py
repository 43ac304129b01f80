"""Fair-X: another outer loss, whose examples are weighed by class.

Fair-ARD found that classes differ in how many steps of an attack they
withstand, and weighs those that withstand few.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ferd_jax.core import class_sums
from ferd_jax.core import validate
from ferd_jax.distillation import base

_SMALLEST = 1e-5  # Added to kappa, of which the inverse is taken.


class ClassWeights(flax.struct.PyTreeNode):
  """A weight per class, and what the next ones come from.

  Attributes:
    weights: `[K]`.
    kappa: sums of kappa by class, of this epoch.
    outer: state of the loss that is weighed.
  """
  weights: jax.Array
  kappa: class_sums.Sums
  outer: Any


@dataclasses.dataclass(frozen=True)
class Weighing:
  """What makes a loss fair; `fair` puts it in front of one.

  With `kappa_c` the mean over an epoch's images of class c of how many iterates
  of the inner attack are classified right, the weights of the next epoch are
  `(kappa_c + 1e-5)^-power`, scaled to a mean of 1 over the classes that had
  images, then clipped. Classes without images keep theirs. Every term of the
  loss is weighed, image by image.

  Attributes:
    fair_power: of the inverse of kappa; 0 weighs all alike.
    fair_bounds: lowest and highest weight of a class.

  References: Fair-ARD, NeurIPS 2023; GitHub NISP-official/Fair-ARD.
  """
  fair_power: float = 2.
  fair_bounds: tuple[float, float] = (5 / 6, 5 / 2)

  def __post_init__(self):
    if hasattr(super(), '__post_init__'):  # The loss may have no settings.
      super().__post_init__()
    validate.non_negative(fair_power=self.fair_power)
    validate.ordered(fair_bounds=self.fair_bounds)

  @property
  def needs(self) -> base.Needs:
    """What the loss needs, and kappa."""
    needs = super().needs
    return dataclasses.replace(needs, noticed=(*needs.noticed, base.KAPPA))

  def init(self, num_classes: int) -> ClassWeights:
    """Returns weights of 1, empty sums, and the loss' own state."""
    return ClassWeights(weights=jnp.ones([num_classes], jnp.float32),
                        kappa=class_sums.zeros(num_classes),
                        outer=super().init(num_classes))

  def __call__(self, state: ClassWeights, outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, ClassWeights, dict[str, jax.Array]]:
    """Returns the weighed loss, the new state, and the loss' metrics."""
    weights = state.weights[outputs.labels]
    if outputs.weights is not None:
      weights = weights * outputs.weights
    loss, outer, metrics = super().__call__(
        state.outer, outputs.replace(weights=weights), axis_name=axis_name)
    kappa = class_sums.over_batch(
        outputs.noticed[base.KAPPA].astype(state.weights.dtype),
        outputs.labels, len(state.weights), axis_name=axis_name)
    return loss, state.replace(
        outer=outer, kappa=class_sums.add(state.kappa, kappa)), metrics

  def end_epoch(self, state: ClassWeights, epoch: jax.Array) -> ClassWeights:
    """Returns the weights of the next epoch."""
    present = state.kappa.counts > 0
    # In logarithms: 1e-5 to a large power is 0. Only ratios count.
    logs = -self.fair_power * jnp.log(state.kappa.means(0.) + _SMALLEST)
    highest = jnp.max(logs, where=present, initial=-jnp.inf)
    raw = jnp.where(present, jnp.exp(jnp.where(present, logs - highest, 0)), 0)
    total = jnp.where(jnp.any(present), jnp.sum(raw), 1)
    scaled = jnp.clip(raw * jnp.sum(present) / total, *self.fair_bounds)
    return ClassWeights(
        weights=jnp.where(present, scaled, state.weights).astype(
            state.weights.dtype),
        kappa=class_sums.zeros(len(present)),
        outer=super().end_epoch(state.outer, epoch))


def fair(outer: type) -> type:
  """Returns an outer loss with its examples weighed by class.

  It has the settings of the loss and those of `Weighing`. The inner attack has
  to notice kappa, and the loss takes its means by `Outputs.mean`:

    distillation.OUTERS.register('fair_mine', fair.fair(Mine))

  Args:
    outer: the class of a loss, see `base.Outer`.

  Raises:
    ValueError: for one that is fair already.
  """
  if issubclass(outer, Weighing):
    raise ValueError(f'Expected {outer.__name__} not to be weighed already.')

  @dataclasses.dataclass(frozen=True)
  class Fair(Weighing, outer):
    __doc__ = f"""{outer.__name__} with examples weighed by class."""
  Fair.__name__ = Fair.__qualname__ = f'Fair{outer.__name__}'
  return Fair
