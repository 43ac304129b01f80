"""Inner maximisations: which images a student step attacks itself with.

All are projected ascents of an objective, and notice `base.KAPPA`: how many of
the iterates that the gradient is taken at the attacked network still classifies
as the label. docs/baselines.md has their formulas, and what differs from the
originals.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.attacks import utae
from ferd_jax.core import parts
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import temperatures
from ferd_jax.models import frozen
from ferd_jax.models import passes

SOURCES = ('student', 'teacher')
STATISTICS = ('running', 'batch')

# Images -> what is ascended, `[B]`, and logits of the attacked network.
Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Given(NamedTuple):
  """What an attack is given of a batch; see `base.Inner`."""
  state: Any
  images: jax.Array
  labels: jax.Array
  t_clean: Mapping[str, jax.Array]
  class_state: Any
  keys: jax.Array


@dataclasses.dataclass(frozen=True)
class Ascent(base.Stateless):
  """Steps of the gradient's sign, projected to the ball and to [0, 1].

  A subclass says what is ascended.

  Attributes:
    eps: L-infinity radius, in [0, 1] pixels.
    step_size: in [0, 1] pixels.
    steps: how many; the originals have 10.
  """
  eps: float
  step_size: float
  steps: int = 10

  needs = ()
  notices = (base.KAPPA,)
  passes = passes.Passes()
  start = 'normal'  # of `geometry.STARTS`
  noise = 0.001  # its standard deviation
  clip_start = False  # to [0, 1], before the first gradient

  def __post_init__(self):
    validate.attack_steps(steps=self.steps)
    validate.non_negative(eps=self.eps, step_size=self.step_size)
    validate.one_of(geometry.STARTS, start=self.start)

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns what is ascended."""
    raise NotImplementedError

  def __call__(self, state: Any, networks: base.Networks, images: jax.Array,
               labels: jax.Array, t_clean: Mapping[str, jax.Array],
               class_state: Any, keys: jax.Array) -> base.Attacked:
    """Returns the last iterate; see `base.Inner`."""
    objective = self.objective(networks, Given(
        state, images, labels, t_clean, class_state, keys))

    def noting(x):
      values, logits = objective(x)
      return values, {base.KAPPA: jnp.argmax(logits, axis=-1) == labels}
    start = geometry.start(self.start, keys, images, self.eps, self.noise)
    if self.clip_start:
      start = jnp.clip(start, 0, 1)
    return base.Attacked(*attacks.ascend(
        noting, images, start, eps=self.eps, step_size=self.step_size,
        num_steps=self.steps))


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Ascent):
  """PGD on CE(S(x'), y), of adversarial training, ARD, IAD and MTARD.

  Attributes:
    start: 'normal' with standard deviation 0.001 (MTARD), 'uniform' in the
      ball (ARD, IAD), or 'zero', the image itself.
    statistics: of the attacked student's BatchNorm: the 'running' ones, or
      those of the 'batch' (ARD, IAD), which leave no trace here.
  """
  start: str = 'normal'
  statistics: str = 'running'

  def __post_init__(self):
    super().__post_init__()
    validate.one_of(STATISTICS, statistics=self.statistics)

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns CE(S(x'), y)."""
    student = (networks.student if self.statistics == 'running'
               else networks.student_train)
    def ascended(x):
      logits = student(x)
      return losses.cross_entropy(logits, given.labels), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class RSLAD(Ascent):
  """Ascends KL(P_T(x) || P_S(x')), and P_T tempered by class for ABSLD.

  The temperatures are those of the outer loss' state, where it has some.

  References: RSLAD, arXiv:2108.07969; ABSLD, GitHub zhaoshiji123/ABSLD
    absld_loss.py.
  """
  needs = (frozen.ROBUST,)

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns KL(P_T(x) || P_S(x'))."""
    target = temperatures.adversarial(
        given.class_state, given.t_clean[frozen.ROBUST], given.labels)
    def ascended(x):
      logits = networks.student(x)
      return losses.kl_divergence(target, logits), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class Trades(Ascent):
  """Ascends KL(P_S(x) || P_S(x')); no teacher has a part in it.

  References: TRADES, arXiv:1901.08573.
  """

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns KL(P_S(x) || P_S(x'))."""
    target = lax.stop_gradient(networks.student(given.images))
    def ascended(x):
      logits = networks.student(x)
      return losses.kl_divergence(target, logits), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class UniformTarget(Ascent):
  """UTAEs, FERD's inner attack: `attacks.UTAE` that notices.

  Attributes:
    gamma: weight of the uniform-target term; the paper has 0.1 to 0.5, the
      public code 0, which is RSLAD's attack.
    source: whose loss is ascended: the 'student', whom the attack must fool,
      or the 'teacher', as the paper's formula literally writes.
  """
  gamma: float = 0.3
  source: str = 'student'

  needs = (frozen.ROBUST,)

  def __post_init__(self):
    super().__post_init__()
    validate.non_negative(gamma=self.gamma)
    validate.one_of(SOURCES, source=self.source)

  @property
  def passes(self) -> passes.Passes:
    """Through the teacher, if it is attacked."""
    return passes.Passes(1, 1) * (self.steps * (self.source == 'teacher'))

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns KL(P_T(x) || P(x')) - gamma KL(U || P(x'))."""
    attacked = (networks.student if self.source == 'student'
                else networks.teachers[frozen.ROBUST])
    loss = utae.UniformTargetLoss(self.gamma)
    target = given.t_clean[frozen.ROBUST]
    def ascended(x):
      logits = attacked(x)
      return loss(logits, target), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class AdaAD(Ascent):
  """Ascends KL(P_T(x') || P_S(x')) with the gradient through both networks.

  It costs a forward and a backward pass of the teacher for each step.

  References: AdaAD, CVPR 2023; GitHub boyellow/AdaAD AT_helper.py.
  """

  @property
  def passes(self) -> passes.Passes:
    """Through the teacher, at every step."""
    return passes.Passes(1, 1) * self.steps

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns KL(P_T(x') || P_S(x'))."""
    del given  # Teacher and student see the same images, whatever they are.
    def ascended(x):
      logits = networks.student(x)
      return losses.kl_divergence(networks.teachers[frozen.ROBUST](x),
                                  logits), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class LinearTeacher(Ascent):
  """SAAD's attack: AdaAD's with a teacher that is linear in the label's logit.

  Ascends KL(softmax(t + strength <grad t_y(x), x' - x> e_y) || P_S(x')), t the
  teacher's clean logits, with the gradient through both: one pass of the
  teacher forward and back in all.

  Attributes:
    strength: of the linear term; 0 is RSLAD's attack.

  References: GitHub HongsinLee/saad attacks.py.
  """
  strength: float = 1.

  needs = (frozen.ROBUST,)
  passes = passes.Passes(1, 1)

  def __post_init__(self):
    super().__post_init__()
    validate.non_negative(strength=self.strength)

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns KL(P_T linearised || P_S(x'))."""
    t_clean = given.t_clean[frozen.ROBUST]
    is_label = jax.nn.one_hot(given.labels, t_clean.shape[-1],
                              dtype=t_clean.dtype)
    slope = jax.grad(lambda x: jnp.sum(
        is_label * networks.teachers[frozen.ROBUST](x)))(given.images)
    def ascended(x):
      gain = jnp.sum(geometry.flat(slope * (x - given.images)), axis=-1)
      target = t_clean + self.strength * gain[:, None] * is_label
      logits = networks.student(x)
      return losses.kl_divergence(target, logits), logits
    return ascended


@dataclasses.dataclass(frozen=True)
class HighEntropy(Ascent):
  """High-entropy examples of DFHL-RS: ascends H(P_S(x')) within [0, 1].

  No ball limits them, whatever the run's eps is.

  Attributes:
    step_size: in [0, 1] pixels.
    steps: how many; the original has 10 for CIFAR-10, 15 for CIFAR-100.

  References: DFHL-RS, arXiv:2312.05924, GitHub LetheSec/DFHL-RS-Attack.
  """
  eps: float = parts.fixed(1.)  # All images are within it.
  step_size: float = 0.03

  def objective(self, networks: base.Networks, given: Given) -> Objective:
    """Returns the entropy of P_S(x')."""
    del given
    def ascended(x):
      logits = networks.student(x)
      return losses.entropy(logits), logits
    return ascended
