"""Outer losses that keep nothing: divergences from teachers, cross-entropies.

docs/baselines.md has their formulas, constants and sources, and what differs
from the originals. In all of them no gradient reaches a teacher.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import student_epochs
from ferd_jax.models import frozen

CLEAN = 'clean'  # The second teacher, trained on clean images.
TARGETS = ('clean', 'attacked')


class _Weighted(base.Stateless):
  """A weighted sum of means over the batch, each of them a metric.

  A subclass says which terms.
  """

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns coefficient and values `[B]` of each term, by name."""
    raise NotImplementedError

  def __call__(self, state: tuple[()], outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, tuple[()], dict[str, jax.Array]]:
    """Returns the loss, no state, and the terms; see `base.Outer`."""
    parts = self.parts(outputs, axis_name)
    means = {name: outputs.mean(values) for name, (_, values) in parts.items()}
    loss = sum(weight * means[name] for name, (weight, _) in parts.items())
    return loss, state, means


@dataclasses.dataclass(frozen=True)
class SoftCrossEntropy(_Weighted):
  """Cross-entropy to the teacher's predictions, or to its classes.

  The soft one to the clean predictions is what FERD's public code descends;
  `hard` with the target of the attacked images, and no clean term, is what
  DFHL-RS does.

  Attributes:
    w_clean: weight of the clean term.
    w_adv: weight of the adversarial term.
    target: of the attacked images: the teacher's prediction on the 'clean'
      ones or on the 'attacked' ones.
    hard: whether the target is the teacher's class alone.
  """
  w_clean: float = 5 / 6
  w_adv: float = 1 / 6
  target: str = 'clean'
  hard: bool = False

  def __post_init__(self):
    _check_weights(self.w_clean, self.w_adv)
    validate.one_of(TARGETS, target=self.target)

  @property
  def needs(self) -> base.Needs:
    """The teacher where its predictions are targets; both students."""
    attacked = self.target == 'attacked'
    clean = bool(self.w_clean) or not attacked
    return base.Needs(t_clean=(frozen.ROBUST,) * clean,
                      t_adv=(frozen.ROBUST,) * attacked,
                      s_clean=bool(self.w_clean))

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    target = outputs.t_clean if self.target == 'clean' else outputs.t_adv
    found = {'adv_loss': (self.w_adv, self._loss(target, outputs.s_adv))}
    if self.w_clean:
      found['clean_loss'] = self.w_clean, self._loss(outputs.t_clean,
                                                     outputs.s_clean)
    return found

  def _loss(self, teachers, logits):
    target = teachers[frozen.ROBUST]
    if self.hard:
      return losses.cross_entropy(logits, jnp.argmax(target, axis=-1))
    return losses.soft_cross_entropy(target, logits)


@dataclasses.dataclass(frozen=True)
class ARD(_Weighted):
  """alpha T^2 KL(P_T(x)^1/T || P_S(x')^1/T) / C + (1 - alpha) CE(S(x), y).

  Attributes:
    temperature: T.
    alpha: weight of the divergence, in [0, 1].

  References: arXiv:1905.09747; GitHub goldblum/
    AdversariallyRobustDistillation.
  """
  temperature: float = 30.
  alpha: float = 1.

  # The clean pass has a part in BatchNorm's statistics even where alpha is 1.
  needs = base.Needs(adversarial_first=True)

  def __post_init__(self):
    validate.positive(temperature=self.temperature)
    validate.in_range(0, 1, alpha=self.alpha)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    target = outputs.t_clean[frozen.ROBUST]
    # The mean over batch and classes, as in the original.
    return {
        'adv_loss': (self.alpha / target.shape[-1], losses.tempered_kl(
            target, outputs.s_adv, self.temperature)),
        'clean_loss': (1 - self.alpha, losses.cross_entropy(
            outputs.s_clean, outputs.labels))}


@dataclasses.dataclass(frozen=True)
class RSLAD(_Weighted):
  """scale (w_adv KL(P_T(x) || P_S(x')) + w_clean KL(P_T(x) || P_S(x))).

  Attributes:
    w_clean: weight of the clean term.
    w_adv: weight of the adversarial term.
    scale: of the loss; that of the original, a tenth, is its mean over ten
      classes, or ten times its mean over a hundred.

  References: arXiv:2108.07969; GitHub zibojia/RSLAD.
  """
  w_clean: float = 1 / 6
  w_adv: float = 5 / 6
  scale: float = 0.1

  needs = base.Needs(adversarial_first=True)

  def __post_init__(self):
    _check_weights(self.w_clean, self.w_adv)
    validate.positive(scale=self.scale)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    target = outputs.t_clean[frozen.ROBUST]
    return {
        'adv_loss': (self.scale * self.w_adv,
                     losses.kl_divergence(target, outputs.s_adv)),
        'clean_loss': (self.scale * self.w_clean,
                       losses.kl_divergence(target, outputs.s_clean))}


@dataclasses.dataclass(frozen=True)
class _Introspective(student_epochs.StudentEpochs, _Weighted):
  """What losses that trust the teacher only in part have in common.

  The trust in an image is `P_T(y | x')^power`, without a gradient, and 1 until
  the student has had `begin`.
  """

  def __post_init__(self):
    validate.non_negative(power=self.power)
    student_epochs.check_milestones(begin=self.begin)

  def trust(self, outputs: base.Outputs) -> jax.Array:
    """Returns the trust in the teacher, `[B]`."""
    log_prob = -losses.cross_entropy(outputs.t_adv[frozen.ROBUST],
                                     outputs.labels)
    trust = lax.stop_gradient(jnp.exp(self.power * log_prob))
    return jnp.where(self.reached(self.begin, outputs.epoch), trust, 1)


@dataclasses.dataclass(frozen=True)
class IAD(_Introspective):
  """IAD-I: KL(P_T(x) || P_S(x')) + (1 - a) KL(P_S(x) || P_S(x')).

  The gradient reaches S(x), too, as in the original.

  Attributes:
    power: of the trust a = P_T(y | x')^power.
    begin: until when a is 1, a share of the student's epochs or, above 1, a
      number of them; the original has 60 of 200.
    weight_first: whether the first term is weighted by a, which is our reading
      of the paper; the public code does not.

  References: arXiv:2106.04928; GitHub ZFancy/IAD IAD-I.py.
  """
  power: float = 0.1
  begin: float = 60 / 200
  weight_first: bool = False

  needs = base.Needs(t_adv=(frozen.ROBUST,), adversarial_first=True)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms; `adv_loss` is weighted by a if that is asked for."""
    del axis_name
    trust = self.trust(outputs)
    teacher = losses.kl_divergence(outputs.t_clean[frozen.ROBUST],
                                   outputs.s_adv)
    if self.weight_first:
      teacher = trust * teacher
    return {'adv_loss': (1., teacher),
            'self_loss': (1., (1 - trust) * losses.kl_divergence(
                outputs.s_clean, outputs.s_adv))}


@dataclasses.dataclass(frozen=True)
class IAD2(_Introspective):
  """IAD-II, with a second teacher 'clean'; AKD2 while a is 1.

  `w_label CE(S(x'), y) + w_robust [a KL(P_T(x') || P_S(x')) + (1 - a)
  KL(P_S(x) || P_S(x'))] + w_standard KL(P_clean(x') || P_S(x'))`. The gradient
  reaches S(x), too.

  Attributes:
    power: of the trust a = P_T(y | x')^power.
    begin: until when a is 1, a share of the student's epochs or, above 1, a
      number of them; the original has 40 of 200.
    w_label: weight of the cross-entropy.
    w_robust: weight of robust teacher and student.
    w_standard: weight of the clean teacher.

  References: arXiv:2106.04928; GitHub ZFancy/IAD IAD-II.py.
  """
  power: float = 0.1
  begin: float = 40 / 200
  w_label: float = 0.25
  w_robust: float = 0.5
  w_standard: float = 0.25

  needs = base.Needs(t_clean=(), t_adv=(frozen.ROBUST, CLEAN),
                     adversarial_first=True)

  def __post_init__(self):
    super().__post_init__()
    validate.non_negative(w_label=self.w_label, w_robust=self.w_robust,
                          w_standard=self.w_standard)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms, the robust ones weighted by a and 1 - a."""
    del axis_name
    trust, s_adv = self.trust(outputs), outputs.s_adv
    return {
        'label_loss': (self.w_label,
                       losses.cross_entropy(s_adv, outputs.labels)),
        'adv_loss': (self.w_robust, trust * losses.kl_divergence(
            outputs.t_adv[frozen.ROBUST], s_adv)),
        'self_loss': (self.w_robust, (1 - trust) * losses.kl_divergence(
            outputs.s_clean, s_adv)),
        'standard_loss': (self.w_standard, losses.kl_divergence(
            outputs.t_adv[CLEAN], s_adv))}


@dataclasses.dataclass(frozen=True)
class AdaAD(_Weighted):
  """scale (alpha KL(P_T(x') || P_S(x')) + (1 - alpha) KL(P_T(x) || P_S(x))).

  Attributes:
    alpha: weight of the attacked images, in [0, 1].
    scale: of the loss; the original has a tenth, the mean over classes, for
      CIFAR-10, and 1 for CIFAR-100.

  References: AdaAD, CVPR 2023; GitHub boyellow/AdaAD main.py.
  """
  alpha: float = 1.
  scale: float = 0.1

  needs = base.Needs(t_adv=(frozen.ROBUST,))

  def __post_init__(self):
    validate.in_range(0, 1, alpha=self.alpha)
    validate.positive(scale=self.scale)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    return {
        'adv_loss': (self.scale * self.alpha, losses.kl_divergence(
            outputs.t_adv[frozen.ROBUST], outputs.s_adv)),
        'clean_loss': (self.scale * (1 - self.alpha), losses.kl_divergence(
            outputs.t_clean[frozen.ROBUST], outputs.s_clean))}


@dataclasses.dataclass(frozen=True)
class AdaIAD(_Introspective):
  """T^2 KL(P_T(x')^1/T || P_S(x')^1/T) + (1 - a) KL(P_S(x) || P_S(x')).

  The gradient reaches S(x), too.

  Attributes:
    temperature: T.
    power: of the trust a = P_T(y | x')^power.
    begin: until when a is 1, a share of the student's epochs or, above 1, a
      number of them; the original has 60 of 200.

  References: AdaAD, CVPR 2023; GitHub boyellow/AdaAD main.py.
  """
  temperature: float = 30.
  power: float = 0.1
  begin: float = 60 / 200

  needs = base.Needs(t_clean=(), t_adv=(frozen.ROBUST,))

  def __post_init__(self):
    super().__post_init__()
    validate.positive(temperature=self.temperature)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    trust = self.trust(outputs)
    return {
        'adv_loss': (1., losses.tempered_kl(
            outputs.t_adv[frozen.ROBUST], outputs.s_adv, self.temperature)),
        'self_loss': (1., (1 - trust) * losses.kl_divergence(
            outputs.s_clean, outputs.s_adv))}


@dataclasses.dataclass(frozen=True)
class CrossEntropy(_Weighted):
  """w_clean CE(S(x), y) + w_adv CE(S(x'), y), without a teacher.

  Weights of 0 and 1 are adversarial training (PGD-AT).

  Attributes:
    w_clean: weight of the clean term; at 0 the student does not see clean
      images, and its BatchNorm statistics are those of attacked ones alone.
    w_adv: weight of the adversarial term, above 0.

  References: arXiv:1706.06083.
  """
  w_clean: float = 0.
  w_adv: float = 1.

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean)
    validate.positive(w_adv=self.w_adv)

  @property
  def needs(self) -> base.Needs:
    """The student alone, on clean images if they have a weight."""
    return base.Needs(t_clean=(), s_clean=bool(self.w_clean))

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    found = {'adv_loss': (self.w_adv, losses.cross_entropy(
        outputs.s_adv, outputs.labels))}
    if self.w_clean:
      found['clean_loss'] = self.w_clean, losses.cross_entropy(
          outputs.s_clean, outputs.labels)
    return found


@dataclasses.dataclass(frozen=True)
class Trades(_Weighted):
  """CE(S(x), y) + beta KL(P_S(x) || P_S(x')), without a teacher.

  The gradient reaches both predictions, as in the original.

  Attributes:
    beta: weight of the divergence.

  References: arXiv:1901.08573; GitHub yaodongyu/TRADES trades.py.
  """
  beta: float = 6.

  needs = base.Needs(t_clean=())

  def __post_init__(self):
    validate.non_negative(beta=self.beta)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms."""
    del axis_name
    return {
        'clean_loss': (1., losses.cross_entropy(outputs.s_clean,
                                                outputs.labels)),
        'adv_loss': (self.beta, losses.kl_divergence(outputs.s_clean,
                                                     outputs.s_adv))}


@dataclasses.dataclass(frozen=True)
class SAAD(_Weighted):
  """w KL(P_T(x') || P_S(x')) + beta (1 - w / max w) KL(P_T(x) || P_S(x)).

  `w = scale (H(P_T(x')) - min H)`, minimum and maximum over the batch: what
  the teacher is least sure of under attack counts most, and what it is surest
  of not at all.

  Attributes:
    scale: of the weights.
    beta: weight of the clean term; the original's runs have 0.
    mean_one: whether w is divided by its mean over the batch, so that the
      loss' size does not depend on the teacher's; the original does not.

  References: GitHub HongsinLee/saad saad.py, utils.py.
  """
  scale: float = 5.
  beta: float = 0.
  mean_one: bool = False

  needs = base.Needs(t_adv=(frozen.ROBUST,), adversarial_first=True)

  def __post_init__(self):
    validate.positive(scale=self.scale)
    validate.non_negative(beta=self.beta)

  def parts(self, outputs: base.Outputs, axis_name: str | None
            ) -> dict[str, tuple[jax.Array | float, jax.Array]]:
    """Returns the terms, weighted."""
    t_adv = outputs.t_adv[frozen.ROBUST]
    entropy = losses.entropy(t_adv)
    lowest = -collectives.pmax(jnp.max(-entropy), axis_name)
    weights = self.scale * (entropy - lowest)
    highest = collectives.pmax(jnp.max(weights), axis_name)
    sure = 1 - weights / jnp.where(highest > 0, highest, 1)
    if self.mean_one:
      mean = collectives.pmean(jnp.mean(weights), axis_name)
      weights = weights / jnp.where(mean > 0, mean, 1)
    weights, sure = lax.stop_gradient((weights, sure))
    return {
        'adv_loss': (1., weights * losses.kl_divergence(t_adv, outputs.s_adv)),
        'clean_loss': (self.beta, sure * losses.kl_divergence(
            outputs.t_clean[frozen.ROBUST], outputs.s_clean))}


def _check_weights(w_clean, w_adv):
  """Raises SettingError unless both are at least 0 and one is above."""
  validate.non_negative(w_clean=w_clean, w_adv=w_adv)
  if not (w_clean or w_adv):
    raise validate.SettingError('w_clean', w_clean, 'or w_adv above 0.')
