"""Tests of ferd_jax.distillation.mtard: its balance, against plain NumPy."""

import batch_of_logits as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import fair
from ferd_jax.distillation import mtard

EPOCHS = {'num_epochs': 11, 'warmup_epochs': 1}
pytestmark = pytest.mark.usefixtures('float64')


def batch(seed, epoch, **changes):
  s_clean, s_adv = (jnp.asarray(g.draw(100 + 2 * seed + i)) for i in range(2))
  return g.outputs(mtard.MTARD(**EPOCHS).needs, s_clean=s_clean, s_adv=s_adv,
                   epoch=jnp.asarray(epoch), **changes)


def terms(outputs, weights=1.):
  adv = (weights * g.kl(g.ROBUST_ADV, outputs.s_adv)).mean()
  clean = (weights * g.kl(g.CLEAN, outputs.s_clean)).mean()
  return adv, clean


class InNumPy:
  """The balance as the original writes it down, with one rate per epoch."""

  def __init__(self):
    self.weight, self.first = {'nat': 0.5, 'adv': 0.5}, None

  def loss(self, adv, nat, rate):
    if self.first is None:
      self.first = {'adv': adv, 'nat': nat}
    adv_hat, nat_hat = adv / self.first['adv'], nat / self.first['nat']
    self.weight['nat'] -= rate * (
        self.weight['nat'] - nat_hat / (adv_hat + nat_hat))
    self.weight['adv'] = 1 - self.weight['nat']
    return 0.1 * (self.weight['adv'] * adv + self.weight['nat'] * nat)


def test_several_epochs_against_numpy():
  loss = mtard.MTARD(**EPOCHS, rate=0.4)
  # Of ten epochs of the student 7, 9 and 10 (rounded); then the warm-up.
  rates = {1: 0.4, 7: 0.4, 8: 0.04, 9: 0.04, 10: 4e-3}
  expected, state = InNumPy(), loss.init(g.CLASSES)
  step = jax.jit(loss)
  seen = []
  for epoch, rate in rates.items():
    for i in range(2):
      outputs = batch(3 * epoch + i, epoch)
      value, state, metrics = step(state, outputs)
      adv, clean = terms(outputs)
      np.testing.assert_allclose(value, expected.loss(adv, clean, rate),
                                 rtol=1e-6)
      np.testing.assert_allclose(metrics['w_clean'], expected.weight['nat'],
                                 rtol=1e-6)
      np.testing.assert_allclose(metrics['adv_loss'], adv)
      np.testing.assert_allclose(metrics['clean_loss'], clean)
      seen.append(float(metrics['w_clean']))
    state = loss.end_epoch(state, jnp.asarray(epoch + 1))
  assert seen[0] == 0.5 and np.abs(np.subtract(seen, 0.5)).max() > 0.01


def test_constants_of_the_original():
  loss = mtard.MTARD(300, 0)
  assert (loss.rate, loss.scale) == (0.025, 0.1)
  assert [round(300 * milestone) for milestone in loss.milestones] == [
      215, 260, 285]
  assert loss.needs.t_clean == ('clean',) and loss.needs.t_adv == ('robust',)
  assert loss.needs.adversarial_first


def test_equal_losses_keep_the_balance():
  loss = mtard.MTARD(**EPOCHS)
  state = loss.init(g.CLASSES)
  for _ in range(3):
    _, state, _ = loss(state, batch(0, 5))
  np.testing.assert_allclose(state.w_clean, 0.5)


def test_weights_of_the_balance_have_no_gradient():
  loss = mtard.MTARD(**EPOCHS, rate=1.)
  _, state, _ = loss(loss.init(g.CLASSES), batch(0, 5))
  outputs = batch(1, 5)
  def value(s_clean, s_adv):
    return loss(state, outputs.replace(s_clean=s_clean, s_adv=s_adv))[0]
  found = jax.grad(value, argnums=(0, 1))(outputs.s_clean, outputs.s_adv)
  _, after, _ = loss(state, outputs)
  w = float(after.w_clean)
  assert abs(w - 0.5) > 0.01
  for got, weight, teacher, student in (
      (found[0], w, g.CLEAN, outputs.s_clean),
      (found[1], 1 - w, g.ROBUST_ADV, outputs.s_adv)):
    np.testing.assert_allclose(
        got, 0.1 * weight * (g.softmax(student) - g.softmax(teacher)) / g.BATCH,
        rtol=1e-6, atol=1e-12)


def test_balance_is_that_of_the_global_batch():
  loss = mtard.MTARD(**EPOCHS, rate=0.5)
  whole = split = loss.init(g.CLASSES)
  for i in range(3):
    value, whole, _ = loss(whole, batch(i, 5))
    shares, states, _ = jax.vmap(
        lambda outputs, state=split: loss(state, outputs, axis_name='i'),
        axis_name='i')(g.sharded(batch(i, 5)))
    np.testing.assert_allclose(shares.mean(), value)
    for leaf, expected in zip(jax.tree.leaves(states), jax.tree.leaves(whole),
                              strict=True):
      np.testing.assert_allclose(leaf, np.broadcast_to(expected, leaf.shape))
    split = jax.tree.map(lambda leaf: leaf[0], states)


def test_losses_of_zero_change_nothing():
  loss = mtard.MTARD(**EPOCHS)
  needs = loss.needs
  outputs = g.outputs(needs, s_clean=jnp.asarray(g.CLEAN),
                      s_adv=jnp.asarray(g.ROBUST_ADV))
  value, state, _ = loss(loss.init(g.CLASSES), outputs)
  np.testing.assert_allclose(value, 0, atol=1e-12)
  assert np.isfinite(state.w_clean) and np.isfinite(state.first).all()


def test_fair_mtard_balances_the_weighed_losses():
  loss = fair.fair(mtard.MTARD)(**EPOCHS, rate=0.4)
  state = loss.init(g.CLASSES)
  by_class = np.array([0.9, 2.5, 1.4, 1.])
  state = state.replace(weights=jnp.asarray(by_class))
  expected = InNumPy()
  for i in range(3):
    outputs = batch(i, 2, noticed={'kappa': jnp.ones(g.BATCH, jnp.int32)})
    value, state, _ = loss(state, outputs)
    np.testing.assert_allclose(
        value, expected.loss(*terms(outputs, by_class[g.LABELS]), 0.4),
        rtol=1e-6)


@pytest.mark.parametrize(('options', 'message'), [
    ({'rate': 2.}, r'rate=2.0 in \[0, 1\]'), ({'scale': 0.}, 'scale=0.0'),
    ({'milestones': (-1.,)}, 'milestones=-1.0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    mtard.MTARD(**EPOCHS, **options)
