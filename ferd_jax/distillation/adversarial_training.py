"""Adversarial training with labels and without a teacher: how one is made.

The losses of PGD-AT and TRADES, and the attacks that belong to them. Neither
asks for a teacher, so a run whose images bring their labels needs none.

References: Madry et al. 2018, arXiv:1706.06083 (PGD-AT); Zhang et al. 2019,
arXiv:1901.08573, GitHub yaodongyu/TRADES trades.py.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import validate
from ferd_jax.distillation import base


@dataclasses.dataclass(frozen=True)
class CrossEntropyAttack:
  """PGD on the cross-entropy with the labels, the attack of PGD-AT.

  Attributes:
    eps: radius, in [0, 1] pixels.
    step_size: in [0, 1] pixels.
    steps: how many.
    start: 'uniform' in the ball, 'normal' of standard deviation 0.001 or
      'zero', the image itself.
  """
  eps: float
  step_size: float
  steps: int = 10
  start: str = 'uniform'

  needs = ()

  def __post_init__(self):
    validate.count(steps=self.steps)
    _ = self.attack  # It checks the rest.

  @functools.cached_property
  def attack(self) -> attacks.PGD:
    """The attack, a function of one network."""
    return attacks.PGD(self.eps, self.step_size, self.steps, start=self.start)

  def __call__(self, networks: base.Networks, images: jax.Array,
               labels: jax.Array, t_clean: Mapping[str, jax.Array],
               class_state: Any, keys: jax.Array) -> base.Attacked:
    """Returns the attacked images; see `base.Inner`."""
    del t_clean, class_state
    return base.Attacked(self.attack(networks.student, keys, images, labels),
                         {})


@dataclasses.dataclass(frozen=True)
class TradesAttack:
  """PGD on KL(S(x) || S(x')), the attack of TRADES.

  Attributes:
    eps: radius, in [0, 1] pixels.
    step_size: in [0, 1] pixels.
    steps: how many.
  """
  eps: float
  step_size: float
  steps: int = 10

  needs = ()

  def __post_init__(self):
    validate.count(steps=self.steps)
    _ = self.attack  # It checks the rest.

  @functools.cached_property
  def attack(self) -> attacks.PGD:
    """The attack, a function of one network and its clean logits."""
    return attacks.PGD(self.eps, self.step_size, self.steps,
                       loss=losses.divergence_from, start='normal',
                       clip_start=False)

  def __call__(self, networks: base.Networks, images: jax.Array,
               labels: jax.Array, t_clean: Mapping[str, jax.Array],
               class_state: Any, keys: jax.Array) -> base.Attacked:
    """Returns the attacked images; see `base.Inner`."""
    del labels, t_clean, class_state
    targets = lax.stop_gradient(networks.student(images))
    return base.Attacked(self.attack(networks.student, keys, images, targets),
                         {})


class _WithLabels:
  """What losses without a teacher and without a state have in common."""

  def init(self, num_classes: int) -> tuple[()]:
    """Returns no state."""
    del num_classes
    return ()

  def __call__(self, state: tuple[()], outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, tuple[()], dict[str, jax.Array]]:
    """Returns the loss of a shard, no state, its terms and accuracies."""
    means = {name: jnp.mean(term) for name, term in
             self.terms(state, outputs, axis_name=axis_name).items()}
    accuracies = {}
    for name, logits in (('clean', outputs.s_clean), ('adv', outputs.s_adv)):
      if logits is not None:
        right = jnp.argmax(logits, axis=-1) == outputs.labels
        accuracies[f'{name}_accuracy'] = jnp.mean(right.astype(logits.dtype))
    return sum(means.values()), state, means | accuracies

  def end_epoch(self, state: tuple[()], epoch: jax.Array) -> tuple[()]:
    """Returns no state."""
    del epoch
    return state


@dataclasses.dataclass(frozen=True)
class CrossEntropy(_WithLabels):
  """w_clean CE(S(x), y) + w_adv CE(S(x'), y): PGD-AT at weights 0 and 1.

  Attributes:
    w_clean: weight of the clean images; at 0 the student does not see them,
      and its BatchNorm statistics are those of attacked images alone.
    w_adv: weight of the attacked images.
  """
  w_clean: float = 0.
  w_adv: float = 1.

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean)
    validate.positive(w_adv=self.w_adv)

  @property
  def needs(self) -> base.Needs:
    """The student alone, on clean images if they have a weight."""
    return base.Needs(t_clean=(), s_clean=self.w_clean > 0)

  def terms(self, state: tuple[()], outputs: base.Outputs, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the weighted terms per example; see `base.Outer`."""
    del state, axis_name
    terms = {'adv_loss': self.w_adv * losses.cross_entropy(
        outputs.s_adv, outputs.labels)}
    if self.w_clean:
      terms['clean_loss'] = self.w_clean * losses.cross_entropy(
          outputs.s_clean, outputs.labels)
    return terms


@dataclasses.dataclass(frozen=True)
class Trades(_WithLabels):
  """CE(S(x), y) + beta KL(S(x) || S(x')), with a gradient through both.

  Attributes:
    beta: weight of the divergence; the paper has 1 to 6, robustness asks for 6.
  """
  beta: float = 6.

  needs = base.Needs(t_clean=())

  def __post_init__(self):
    validate.positive(beta=self.beta)

  def terms(self, state: tuple[()], outputs: base.Outputs, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the weighted terms per example; see `base.Outer`."""
    del state, axis_name
    return {
        'clean_loss': losses.cross_entropy(outputs.s_clean, outputs.labels),
        'adv_loss': self.beta * losses.kl_divergence(outputs.s_clean,
                                                     outputs.s_adv)}
