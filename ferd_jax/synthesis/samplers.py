"""Samplers: how often which class is synthesised.

FERD's make fragile classes more often. A class is fragile if the attacked
teacher's margins on its images are small or negative; fragilities become
sampling probabilities of the next epoch.

References: FERD, arXiv:2509.20793 (softmax rule); GitHub mayaobuduyao/FERD
test.py (min-max rule).
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax.core import validate
from ferd_jax.synthesis import base

ABSENT = ('carry', 'mean', 'zero')


class ClassWeights(flax.struct.PyTreeNode):
  """Sampling probabilities and what they come from.

  Attributes:
    probs: `[K]`, sum 1.
    fragility: `[K]`, the mean of the negative attacked margins.
    measured: bool `[K]`, whether a class ever had an image.
  """
  probs: jax.Array
  fragility: jax.Array
  measured: jax.Array


class Probabilities(flax.struct.PyTreeNode):
  """Sampling probabilities that nothing changes.

  Attributes:
    probs: `[K]`, sum 1.
  """
  probs: jax.Array


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Every class as often as any other; nothing is attacked or measured."""

  measurement = None

  def init(self, num_classes: int) -> Probabilities:
    """Returns uniform probabilities."""
    return Probabilities(_uniform(num_classes))

  def update(self, state: Probabilities,
             measured: base.Sums | None) -> Probabilities:
    """Returns the same probabilities."""
    del measured
    return state


@dataclasses.dataclass(frozen=True)
class _ByMargins:
  """What the rules on margins have in common."""
  eps: float
  step_size: float

  def __post_init__(self):
    validate.one_of(ABSENT, absent=self.absent)
    validate.count(attack_steps=self.attack_steps)

  @functools.cached_property
  def measurement(self) -> base.Measurement:
    """The teacher's margins under PGD."""
    return base.Measurement(attack=attacks.PGD(self.eps, self.step_size,
                                               self.attack_steps))

  def init(self, num_classes: int) -> ClassWeights:
    """Returns uniform probabilities and nothing measured."""
    return ClassWeights(probs=_uniform(num_classes),
                        fragility=jnp.zeros([num_classes], jnp.float32),
                        measured=jnp.zeros([num_classes], bool))

  def update(self, state: ClassWeights, measured: base.Sums) -> ClassWeights:
    """Returns the class weights after an epoch's margins.

    Args:
      state: the class weights before.
      measured: sums over a class's images of the attacked margins.
    """
    present = measured.counts > 0
    now = jnp.where(present,
                    -measured.values / jnp.maximum(measured.counts, 1), 0)
    ever = state.measured | present
    if self.absent == 'carry':
      fragility = jnp.where(present, now, state.fragility)
      fragility = jnp.where(ever, fragility, _mean(fragility, ever))
    elif self.absent == 'mean':
      fragility = jnp.where(present, now, _mean(now, present))
    else:
      fragility = now
    return ClassWeights(probs=self.probabilities(fragility),
                        fragility=fragility, measured=ever)


@dataclasses.dataclass(frozen=True)
class MarginSoftmax(_ByMargins):
  """The paper's rule: softmax of fragility / tau.

  Attributes:
    eps: radius of the attack behind the margins, in [0, 1] pixels.
    step_size: of the attack, in [0, 1] pixels.
    tau: temperature; the larger, the more even.
    absent: fragility of a class without images in an epoch: 'carry' its last
      measured one (the mean of the measured ones if it never had any), the
      'mean' of the classes present, or 'zero', which is normally the largest
      (public code).
    attack_steps: of PGD on the teacher.
  """
  tau: float = 1.
  absent: str = 'carry'
  attack_steps: int = 20

  def __post_init__(self):
    super().__post_init__()
    validate.positive(tau=self.tau)
    # Beyond, one class has all probability, or all have the same.
    validate.in_range(0.01, 1000, tau=self.tau)

  def probabilities(self, fragility: jax.Array) -> jax.Array:
    """Returns class probabilities `[K]` for fragilities `[K]`."""
    return jax.nn.softmax(fragility / self.tau)


@dataclasses.dataclass(frozen=True)
class MarginMinMax(_ByMargins):
  """The public code's rule: fragilities scaled to a range, then normalised.

  Attributes:
    eps: radius of the attack behind the margins, in [0, 1] pixels.
    step_size: of the attack, in [0, 1] pixels.
    range: lowest and highest weight before normalising, which bounds the ratio
      between classes.
    absent: fragility of a class without images in an epoch: 'carry', 'mean' or
      'zero', see `MarginSoftmax`.
    attack_steps: of PGD on the teacher.
  """
  range: tuple[float, float] = (0.05, 0.2)
  absent: str = 'carry'
  attack_steps: int = 20

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.range, tuple) or len(self.range) != 2:
      raise validate.SettingError('range', self.range, 'to be (low, high).')
    for bound in self.range:
      validate.positive(range=bound)
    if self.range[0] > self.range[1]:
      raise validate.SettingError('range', self.range, 'with low <= high.')

  def probabilities(self, fragility: jax.Array) -> jax.Array:
    """Returns class probabilities `[K]` for fragilities `[K]`."""
    low, high = self.range
    lowest = jnp.min(fragility)
    spread = jnp.max(fragility) - lowest
    weights = low + (high - low) * (fragility - lowest) / (spread + 1e-8)
    return weights / jnp.sum(weights)


def _uniform(num_classes):
  return jnp.full([num_classes], 1 / num_classes, jnp.float32)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
  """Returns the mean of the values where `where`, of which one must be."""
  return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)
