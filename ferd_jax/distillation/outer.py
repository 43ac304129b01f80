"""Outer minimisations: what a student step descends, and its class state."""

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
      for the label's class in the epoch before, 'sample' its nearly uniform
      prediction at temperature 100, 'one_hot' the label, for which the wMSE
      vanishes and the soft cross-entropy is left (public code).
    norm: what the wMSE is divided by: 'weights' (GKL, the public code) or
      'batch' (IKL), see `losses.decoupled_kl`.
    power: exponent of the class_mean prior.

  References: FERD, arXiv:2509.20793; arXiv:2305.13948; arXiv:2503.08038.
  """
  w_clean: float = 5 / 6
  w_adv: float = 1 / 6
  prior: str = 'class_mean'
  norm: str = 'weights'
  power: float = 1.

  needs = base.Needs()

  def __post_init__(self):
    validate.non_negative(w_clean=self.w_clean, w_adv=self.w_adv,
                          power=self.power)
    validate.one_of(PRIORS, prior=self.prior)
    validate.one_of(NORMS, norm=self.norm)
    if not (self.w_clean or self.w_adv):
      raise validate.SettingError('w_clean', self.w_clean,
                                  'or w_adv above 0.')

  def init(self, num_classes: int) -> ClassPrior:
    """Returns a uniform prior and empty sums."""
    shape = [num_classes, num_classes]
    return ClassPrior(prior=jnp.full(shape, 1 / num_classes, jnp.float32),
                      sums=jnp.zeros(shape, jnp.float32))

  def terms(self, state: ClassPrior, outputs: base.Outputs, *,
            axis_name: str | None = None) -> dict[str, jax.Array]:
    """Returns the two terms per example, weighted; see `base.Outer`."""
    return {
        name: weight * losses.decoupled_kl_terms(
            *arguments, norm=self.norm, axis_name=axis_name)
        for name, weight, arguments in self._terms(state, outputs)}

  def __call__(self, state: ClassPrior, outputs: base.Outputs, *,
               axis_name: str | None = None
               ) -> tuple[jax.Array, ClassPrior, dict[str, jax.Array]]:
    """Returns the loss, a shard's share, the new state and both terms."""
    means = {
        name: losses.decoupled_kl(*arguments, norm=self.norm,
                                  axis_name=axis_name)
        for name, _, arguments in self._terms(state, outputs)}
    loss = self.w_clean * means['clean_loss'] + self.w_adv * means['adv_loss']
    return loss, self._accumulated(state, outputs, axis_name), means

  def _terms(self, state, outputs):
    """Yields name, weight and (t, s, class weights) of each term."""
    t_clean = outputs.t_clean[frozen.ROBUST]
    weights = self._weights(state, t_clean, outputs.labels)
    yield 'clean_loss', self.w_clean, (t_clean, outputs.s_clean, weights)
    yield 'adv_loss', self.w_adv, (t_clean, outputs.s_adv, weights)

  def _weights(self, state, t_clean, labels):
    if self.prior == 'one_hot':
      weights = jax.nn.one_hot(labels, t_clean.shape[-1], dtype=t_clean.dtype)
    elif self.prior == 'sample':
      weights = jax.nn.softmax(t_clean / _SAMPLE_TEMPERATURE)
    else:
      weights = state.prior[labels] ** self.power
    return lax.stop_gradient(weights)

  def _accumulated(self, state, outputs, axis_name):
    """Returns the state with a clean batch's predictions added."""
    t_clean = outputs.t_clean[frozen.ROBUST]
    onehot = jax.nn.one_hot(outputs.labels, t_clean.shape[-1],
                            dtype=t_clean.dtype)
    # At full precision: these are sums over an epoch.
    sums = jnp.matmul(onehot.T, jax.nn.softmax(t_clean),
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
