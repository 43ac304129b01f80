"""Class reweighting: fragile classes are synthesised more often.

A class is fragile if the attacked teacher's margins on its images are small
or negative. Fragilities become sampling probabilities of the next epoch.

References: FERD, arXiv:2509.20793 (softmax rule); GitHub mayaobuduyao/FERD
test.py (min-max rule).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from ferd_jax.core import validate

RULES = ('softmax', 'minmax', 'uniform')
ABSENT = ('carry', 'mean', 'zero')


@dataclasses.dataclass(frozen=True)
class Rule:
  """How fragilities become probabilities.

  Attributes:
    rule: 'softmax' of fragility / tau, 'minmax' scaling to `range` (a bounded
      ratio between classes), or 'uniform' (no reweighting).
    tau: temperature of the softmax rule.
    range: lowest and highest weight of the minmax rule, before normalising.
    absent: fragility of a class without images in the batch: 'carry' its last
      measured one (the mean of the measured ones if it never had any), the
      'mean' of the classes present, or 'zero', which is normally the largest.
  """
  rule: str = 'softmax'
  tau: float = 1.0
  range: tuple[float, float] = (0.05, 0.2)
  absent: str = 'carry'

  def __post_init__(self):
    validate.one_of(RULES, rule=self.rule)
    validate.one_of(ABSENT, absent=self.absent)
    validate.positive(tau=self.tau)
    if len(self.range) != 2:
      raise ValueError(f'Expected range={self.range!r} to be (low, high).')
    for bound in self.range:
      validate.positive(range=bound)
    if self.range[0] > self.range[1]:
      raise ValueError(f'Expected range={self.range!r} with low <= high.')


class ClassWeights(flax.struct.PyTreeNode):
  """Sampling probabilities and what they come from.

  Attributes:
    probs: `[C]`, sum 1.
    fragility: `[C]`, the mean of the negative attacked margins.
    measured: bool `[C]`, whether a class ever had an image.
  """
  probs: jax.Array
  fragility: jax.Array
  measured: jax.Array


def init(num_classes: int) -> ClassWeights:
  """Returns uniform probabilities and nothing measured."""
  return ClassWeights(
      probs=jnp.full([num_classes], 1 / num_classes, jnp.float32),
      fragility=jnp.zeros([num_classes], jnp.float32),
      measured=jnp.zeros([num_classes], bool))


def probabilities(fragility: jax.Array, rule: Rule) -> jax.Array:
  """Returns class probabilities `[C]` for fragilities `[C]`."""
  if rule.rule == 'softmax':
    return jax.nn.softmax(fragility / rule.tau)
  if rule.rule == 'uniform':
    return jnp.full_like(fragility, 1 / fragility.shape[0])
  low, high = rule.range
  lowest = jnp.min(fragility)
  spread = jnp.max(fragility) - lowest
  weights = low + (high - low) * (fragility - lowest) / (spread + 1e-8)
  return weights / jnp.sum(weights)


def update(weights: ClassWeights, margin_sums: jax.Array, counts: jax.Array,
           rule: Rule) -> ClassWeights:
  """Returns the class weights after an epoch's margins.

  Args:
    weights: those before.
    margin_sums: `[C]`, sums over a class's images of the attacked margins.
    counts: `[C]`, images per class; sums and counts of the global batch.
    rule: how fragilities become probabilities.
  """
  present = counts > 0
  now = jnp.where(present, -margin_sums / jnp.maximum(counts, 1), 0)
  measured = weights.measured | present
  if rule.absent == 'carry':
    fragility = jnp.where(present, now, weights.fragility)
    fragility = jnp.where(measured, fragility, _mean(fragility, measured))
  elif rule.absent == 'mean':
    fragility = jnp.where(present, now, _mean(now, present))
  else:
    fragility = now
  return ClassWeights(probs=probabilities(fragility, rule),
                      fragility=fragility, measured=measured)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
  """Returns the mean of the values where `where`, of which one must be."""
  return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)
