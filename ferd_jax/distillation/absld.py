"""ABSLD: RSLAD with sharper targets for the classes that are hard."""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import class_sums
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.distillation import student_epochs
from ferd_jax.distillation import temperatures
from ferd_jax.models import frozen


class Temperatures(flax.struct.PyTreeNode):
  """A temperature per class, and what the next ones come from.

  Attributes:
    adv: `[K]`, learnt from the attacked images.
    clean: `[K]`, learnt from the clean ones.
    applied: those that the targets have.
    adv_sums: of CE(S(x'), y) by class, of this epoch.
    clean_sums: of CE(S(x), y).
  """
  adv: jax.Array
  clean: jax.Array
  applied: temperatures.ClassTemperatures
  adv_sums: class_sums.Sums
  clean_sums: class_sums.Sums


@dataclasses.dataclass(frozen=True)
class ABSLD(student_epochs.StudentEpochs):
  """scale (w_adv KL(P_T(x)^1/a || P_S(x')) + w_clean KL(P_T(x)^1/c || P_S(x))).

  `a` and `c` are temperatures of the label's class, 1 at first; the student
  has none. After an epoch, with `L_k` the mean cross-entropy of class k,
  `a_k <- clip(a_k - rate (L_k - mean L) / max_j |L_j - mean L|, low, high)`
  from attacked images, `c` from clean ones. Classes without images keep theirs
  and are left out of mean and maximum.

  Attributes:
    w_clean: weight of the clean term.
    w_adv: weight of the adversarial term.
    scale: of the loss; that of the original, a tenth, is its mean over ten
      classes.
    rate: of the temperatures.
    milestones: after which the rate is a tenth, shares of the student's epochs
      or, above 1, numbers of them; the original has 215, 260 and 285 of 300.
    bounds: lowest and highest temperature.
    aliased: whether all targets have the product a c, as in the public code,
      where both tempered copies of the logits share their memory.

  References: ABSLD, NeurIPS 2024; GitHub zhaoshiji123/ABSLD
    resnet18_absld_cifar10.py.
  """
  w_clean: float = 1 / 6
  w_adv: float = 5 / 6
  scale: float = 0.1
  rate: float = 0.1
  milestones: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
  bounds: tuple[float, float] = (0.5, 5.)
  aliased: bool = False

  needs = base.Needs(adversarial_first=True)

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean, w_adv=self.w_adv,
                          rate=self.rate)
    validate.positive(scale=self.scale)
    if not (self.w_clean or self.w_adv):
      raise validate.SettingError('w_clean', self.w_clean, 'or w_adv above 0.')
    student_epochs.check_milestones(milestones=self.milestones)
    validate.ordered(bounds=self.bounds)

  def init(self, num_classes: int) -> Temperatures:
    """Returns temperatures of 1 and empty sums."""
    ones = jnp.ones([num_classes], jnp.float32)
    return Temperatures(
        adv=ones, clean=ones,
        applied=temperatures.ClassTemperatures(adv=ones, clean=ones),
        adv_sums=class_sums.zeros(num_classes),
        clean_sums=class_sums.zeros(num_classes))

  def __call__(self, state: Temperatures, outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, Temperatures, dict[str, jax.Array]]:
    """Returns the loss, the new state, and the terms; see `base.Outer`."""
    t_clean, labels = outputs.t_clean[frozen.ROBUST], outputs.labels
    applied = state.applied
    means = {
        'adv_loss': outputs.mean(losses.kl_divergence(
            t_clean / applied.adv[labels][:, None], outputs.s_adv)),
        'clean_loss': outputs.mean(losses.kl_divergence(
            t_clean / applied.clean[labels][:, None], outputs.s_clean))}
    loss = self.scale * (self.w_adv * means['adv_loss']
                         + self.w_clean * means['clean_loss'])

    def added(sums, logits):
      values = lax.stop_gradient(losses.cross_entropy(logits, labels))
      return class_sums.add(sums, class_sums.over_batch(
          values, labels, len(state.adv), axis_name=axis_name))
    state = state.replace(
        adv_sums=added(state.adv_sums, outputs.s_adv),
        clean_sums=added(state.clean_sums, outputs.s_clean))
    return loss, state, means

  def end_epoch(self, state: Temperatures, epoch: jax.Array) -> Temperatures:
    """Returns the temperatures of the next epoch."""
    rate = self.decayed(self.rate, self.milestones, epoch)
    adv = self._moved(state.adv, state.adv_sums, rate)
    clean = self._moved(state.clean, state.clean_sums, rate)
    product = adv * clean
    applied = temperatures.ClassTemperatures(
        adv=product if self.aliased else adv,
        clean=product if self.aliased else clean)
    num_classes = len(adv)
    return Temperatures(adv=adv, clean=clean, applied=applied,
                        adv_sums=class_sums.zeros(num_classes),
                        clean_sums=class_sums.zeros(num_classes))

  def _moved(self, values, sums, rate):
    """Returns temperatures after an epoch with these sums."""
    present = sums.counts > 0
    means = sums.means(0.)
    average = jnp.sum(means) / jnp.maximum(jnp.sum(present), 1)
    gaps = jnp.where(present, means - average, 0)
    largest = jnp.max(jnp.abs(gaps))
    moved = jnp.clip(values - rate * gaps / jnp.where(largest > 0, largest, 1),
                     *self.bounds)
    return jnp.where(present, moved, values).astype(values.dtype)
