"""Inner maximisations: which images a student step attacks itself with."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax

from ferd_jax import attacks
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.models import frozen
from ferd_jax.models import passes

SOURCES = ('student', 'teacher')


@dataclasses.dataclass(frozen=True)
class UniformTarget:
  """UTAEs, FERD's inner attack.

  Attributes:
    eps: radius, in [0, 1] pixels.
    step_size: in [0, 1] pixels.
    steps: how many; the paper has 10.
    gamma: weight of the uniform-target term; the paper has 0.1 to 0.5, the
      public code 0, which is RSLAD's attack.
    source: whose loss is ascended: the 'student', whom the attack must fool,
      or the 'teacher', as the paper's formula literally writes.
  """
  eps: float
  step_size: float
  steps: int = 10
  gamma: float = 0.3
  source: str = 'student'

  needs = (frozen.ROBUST,)

  def __post_init__(self):
    validate.count(steps=self.steps)
    validate.one_of(SOURCES, source=self.source)
    _ = self.attack  # It checks the rest.

  @property
  def passes(self) -> passes.Passes:
    """Through the teacher, if it is attacked."""
    return passes.Passes(1, 1) * (self.steps * (self.source == 'teacher'))

  @functools.cached_property
  def attack(self) -> attacks.UTAE:
    """The attack, a function of one network."""
    return attacks.UTAE(self.eps, self.step_size, self.steps, gamma=self.gamma)

  def __call__(self, networks: base.Networks, images: jax.Array,
               labels: jax.Array, t_clean: Mapping[str, jax.Array],
               class_state: Any, keys: jax.Array) -> base.Attacked:
    """Returns the UTAEs of `images`; see `base.Inner`."""
    del labels, class_state  # The targets are the teacher's predictions.
    attacked = (networks.student if self.source == 'student'
                else networks.teachers[frozen.ROBUST])
    return base.Attacked(
        self.attack(attacked, keys, images, t_clean[frozen.ROBUST]), {})
