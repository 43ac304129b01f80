"""Decoupled KL divergences: FERD's outer loss, and those of their inventors.

A weighted mean squared error of logit differences and a soft cross-entropy;
the weights of the former are the teacher's mean prediction of a class, kept in
the state.
"""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.distillation import base
from ferd_jax.models import frozen

PRIORS = ('class_mean', 'sample', 'one_hot')
NORMS = ('weights', 'batch')
_SAMPLE_TEMPERATURE = 100.


class ClassPrior(flax.struct.PyTreeNode):
  """The teacher's mean prediction per class.

  Attributes:
    prior: `[C, C]`, row c for images labelled c, of the epoch before.
    sums: `[C, C]`, sums of predictions over this epoch's images.
  """
  prior: jax.Array
  sums: jax.Array


@dataclasses.dataclass(frozen=True)
class DecoupledKL:
  """FERD's loss: w_clean IKL(t, s) + w_adv IKL(t, s_adv).

  Both targets are the teacher's logits on the clean images.

  Attributes:
    w_clean: weight of the clean term.
    w_adv: weight of the adversarial term.
    prior: the wMSE's class weights: 'class_mean' the teacher's mean prediction
      for the label's class in the epoch before, 'sample' its prediction of the
      image, 'one_hot' the label, for which the wMSE vanishes and the soft
      cross-entropy is left (public code).
    prior_temperature: of the predictions that the prior is made of; unset: 1
      for class_mean and 100, which makes them nearly uniform, for sample.
    norm: what the wMSE is divided by: 'weights' (GKL, the public code) or
      'batch' (IKL), see `losses.decoupled_kl`.
    power: exponent of the prior.
    w_wmse: coefficient of the wMSE in both terms.
    w_ce: coefficient of the soft cross-entropy in both terms.
    temperature: of the soft cross-entropy.

  References: FERD, arXiv:2509.20793; arXiv:2305.13948; arXiv:2503.08038.
  """
  w_clean: float = 5 / 6
  w_adv: float = 1 / 6
  prior: str = 'class_mean'
  prior_temperature: float | None = None
  norm: str = 'weights'
  power: float = 1.
  w_wmse: float = 1.
  w_ce: float = 1.
  temperature: float = 1.

  needs = base.Needs()

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean, w_adv=self.w_adv,
                          power=self.power, w_wmse=self.w_wmse, w_ce=self.w_ce)
    validate.positive(temperature=self.temperature)
    if self.prior_temperature is not None:
      validate.positive(prior_temperature=self.prior_temperature)
    validate.one_of(PRIORS, prior=self.prior)
    validate.one_of(NORMS, norm=self.norm)
    for one, other in (('w_clean', 'w_adv'), ('w_wmse', 'w_ce')):
      if not (getattr(self, one) or getattr(self, other)):
        raise validate.SettingError(one, getattr(self, one),
                                    f'or {other} above 0.')

  def init(self, num_classes: int) -> ClassPrior:
    """Returns a uniform prior and empty sums."""
    shape = [num_classes, num_classes]
    return ClassPrior(prior=jnp.full(shape, 1 / num_classes, jnp.float32),
                      sums=jnp.zeros(shape, jnp.float32))

  def __call__(self, state: ClassPrior, outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, ClassPrior, dict[str, jax.Array]]:
    """Returns the loss, the new state and both terms; see `base.Outer`."""
    t_clean = outputs.t_clean[frozen.ROBUST]
    weights = self._weights(state, t_clean, outputs.labels)
    means = {
        name: outputs.mean(losses.decoupled_kl_terms(
            t_clean, logits, weights, norm=self.norm, w_wmse=self.w_wmse,
            w_ce=self.w_ce, temperature=self.temperature, axis_name=axis_name))
        for name, logits in (('clean_loss', outputs.s_clean),
                             ('adv_loss', outputs.s_adv))}
    loss = self.w_clean * means['clean_loss'] + self.w_adv * means['adv_loss']
    return loss, self._accumulated(state, outputs, axis_name), means

  def _weights(self, state, t_clean, labels):
    if self.prior == 'one_hot':
      weights = jax.nn.one_hot(labels, t_clean.shape[-1], dtype=t_clean.dtype)
    elif self.prior == 'sample':
      weights = self._predictions(t_clean) ** self.power
    else:
      weights = state.prior[labels] ** self.power
    return lax.stop_gradient(weights)

  def _predictions(self, t_clean):
    """Returns what the prior is made of, `[B, C]`."""
    temperature = self.prior_temperature
    if temperature is None:
      temperature = _SAMPLE_TEMPERATURE if self.prior == 'sample' else 1.
    return jax.nn.softmax(t_clean / temperature)

  def _accumulated(self, state, outputs, axis_name):
    """Returns the state with a clean batch's predictions added."""
    t_clean = outputs.t_clean[frozen.ROBUST]
    onehot = jax.nn.one_hot(outputs.labels, t_clean.shape[-1],
                            dtype=t_clean.dtype)
    # At full precision: these are sums over an epoch.
    sums = jnp.matmul(onehot.T, self._predictions(t_clean),
                      precision=lax.Precision.HIGHEST)
    return state.replace(sums=state.sums + collectives.psum(sums, axis_name))

  def end_epoch(self, state: ClassPrior, epoch: jax.Array) -> ClassPrior:
    """Returns the state for the next epoch; unseen classes keep their row."""
    del epoch
    totals = jnp.sum(state.sums, axis=-1, keepdims=True)
    seen = totals > 0
    prior = jnp.where(seen, state.sums / jnp.where(seen, totals, 1),
                      state.prior)
    return ClassPrior(prior=prior, sums=jnp.zeros_like(state.sums))


@dataclasses.dataclass(frozen=True)
class IKL(DecoupledKL):
  """FERD's two terms as DKL's first version has them: IKL.

  The constants are those of its distillation on CIFAR-100, without its label
  term and the 20 epochs over which its weight grows.

  References: arXiv:2305.13948; GitHub jiequancui/DKL DKLv1/KD-dkl.
  """
  prior: str = 'sample'
  norm: str = 'batch'
  w_wmse: float = 8.
  temperature: float = 4.


@dataclasses.dataclass(frozen=True)
class GKL(DecoupledKL):
  """FERD's two terms as DKL's second version has them: GKL.

  The constants are those of its distillation on CIFAR-100, without its label
  term and the 20 epochs over which its weight grows. The exponent there is 0
  to 0.3 by networks; 0.2 is that of its adversarial training.

  References: arXiv:2503.08038; GitHub jiequancui/DKL DKLv2/KD-dkl.
  """
  prior_temperature: float | None = 4.
  power: float = 0.2
  w_wmse: float = 16.
  temperature: float = 4.
