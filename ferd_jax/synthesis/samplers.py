"""Samplers: how often which class is synthesised.

All but the uniform one make fragile classes more often. A class is fragile if a
network's margins on its images under attack are small or negative, or its
cross-entropy there is large; fragilities become sampling probabilities of the
next epoch.

References: FERD, arXiv:2509.20793 (softmax rule); GitHub mayaobuduyao/FERD
test.py (min-max rule; the teacher's cross-entropy in an earlier version).
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import class_sums
from ferd_jax.core import validate
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import base

ABSENT = ('carry', 'mean', 'zero')
# Beyond, one class has all probability, or all have the same.
_TAU = 0.01, 1000


class ClassWeights(flax.struct.PyTreeNode):
  """Sampling probabilities and what they come from.

  Attributes:
    probs: `[K]`, sum 1.
    fragility: `[K]`, means of what is measured, the larger the more fragile.
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
             measured: class_sums.Sums | None) -> Probabilities:
    """Returns the same probabilities."""
    del measured
    return state


class _ByFragility:
  """What the rules have in common.

  A subclass says what it measures, with which sign it is fragility, and which
  probabilities fragilities give.
  """
  sign = -1  # Of margins; a robust class has large ones.
  memory = 0.  # Share of what was measured before.

  def __post_init__(self):
    validate.one_of(ABSENT, absent=self.absent)

  def init(self, num_classes: int) -> ClassWeights:
    """Returns uniform probabilities and nothing measured."""
    return ClassWeights(probs=_uniform(num_classes),
                        fragility=jnp.zeros([num_classes], jnp.float32),
                        measured=jnp.zeros([num_classes], bool))

  def update(self, state: ClassWeights,
             measured: class_sums.Sums) -> ClassWeights:
    """Returns the class weights after an epoch's measurement.

    Args:
      state: the class weights before.
      measured: sums of the statistic over a class's images.
    """
    present = measured.counts > 0
    now = jnp.where(present, self.sign * measured.means(0.), 0)
    ever = state.measured | present
    now = jnp.where(state.measured & present,
                    self.memory * state.fragility + (1 - self.memory) * now,
                    now)
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
class _ByMargins(_ByFragility):
  """Margins under PGD."""
  eps: float
  step_size: float

  network = frozens.ROBUST  # whose margins

  def __post_init__(self):
    super().__post_init__()
    validate.attack_steps(attack_steps=self.attack_steps)

  @functools.cached_property
  def measurement(self) -> base.Measurement:
    """The network's margins under PGD."""
    return base.Measurement(
        attack=attacks.PGD(self.eps, self.step_size, self.attack_steps),
        network=self.network)


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
    memory: share of the epochs before in the fragility of a class, in [0, 1):
      it is a running average of the measurements; 0: the last one. Above 0,
      absent has to be 'carry'.
  """
  tau: float = 1.
  absent: str = 'carry'
  attack_steps: int = 20
  memory: float = 0.

  def __post_init__(self):
    super().__post_init__()
    validate.in_range(*_TAU, tau=self.tau)
    validate.in_range(0, 1, memory=self.memory)
    if self.memory == 1:
      raise validate.SettingError(
          'memory', self.memory, 'below 1, where nothing new would count.')
    if self.memory and self.absent != 'carry':
      # Else what stands in for a measurement would be averaged with them.
      raise validate.SettingError(
          'memory', self.memory, f"0 unless absent='carry', got "
          f'absent={self.absent!r}.')

  def probabilities(self, fragility: jax.Array) -> jax.Array:
    """Returns class probabilities `[K]` for fragilities `[K]`."""
    return jax.nn.softmax(fragility / self.tau)


@dataclasses.dataclass(frozen=True)
class StudentMarginSoftmax(MarginSoftmax):
  """`MarginSoftmax` by the margins of the student, whom fairness is about.

  During the warm-up these are those of an untrained network.

  Attributes:
    attack_steps: of PGD on the student.
  """
  network = frozens.STUDENT


@dataclasses.dataclass(frozen=True)
class TeacherCrossEntropy(_ByFragility):
  """Softmax of the teacher's mean cross-entropy of a class / tau; no attack.

  Attributes:
    tau: temperature; the larger, the more even.
    absent: fragility of a class without images in an epoch: 'carry', 'mean' or
      'zero', here the smallest; see `MarginSoftmax`.
  """
  tau: float = 1.
  absent: str = 'carry'

  measurement = base.Measurement(statistic=losses.cross_entropy)
  sign = 1

  def __post_init__(self):
    super().__post_init__()
    validate.in_range(*_TAU, tau=self.tau)

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
    validate.ordered(range=self.range)

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
