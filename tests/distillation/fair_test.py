"""Tests of ferd_jax.distillation.fair: weights of classes against NumPy."""

import dataclasses

import batch_of_logits as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import distillation
from ferd_jax import losses
from ferd_jax.core import class_sums
from ferd_jax.distillation import absld
from ferd_jax.distillation import base
from ferd_jax.distillation import divergences
from ferd_jax.distillation import fair
from ferd_jax.distillation import inner
from ferd_jax.distillation import temperatures

FairRSLAD = fair.fair(divergences.RSLAD)


pytestmark = pytest.mark.usefixtures('float64')


def batch(seed, labels, kappa):
  s_clean, s_adv = (jnp.asarray(g.draw(300 + 2 * seed + i)) for i in range(2))
  return g.outputs(FairRSLAD().needs, labels=jnp.asarray(labels),
                   s_clean=s_clean, s_adv=s_adv,
                   noticed={'kappa': jnp.asarray(kappa)})


def test_several_epochs_against_numpy():
  loss, rslad = FairRSLAD(), divergences.RSLAD()
  state, expected = loss.init(g.CLASSES), np.ones(g.CLASSES)
  rng = np.random.default_rng(0)
  step = jax.jit(loss)
  for epoch in range(1, 6):
    labels, kappa = [], []
    for i in range(2):
      # Class 3 is absent in the third epoch; class 1 withstands least.
      label = rng.integers(0, 3 if epoch == 3 else 4, g.BATCH)
      found = rng.integers(2, 11, g.BATCH) // np.where(label == 1, 4, 1)
      outputs = batch(2 * epoch + i, label.astype(np.int32), found)
      value, state, metrics = step(state, outputs)
      np.testing.assert_allclose(
          value, rslad((), outputs.replace(weights=expected[label]))[0],
          rtol=1e-6)
      plain = 0.1 * (5 / 6 * g.kl(g.ROBUST, outputs.s_adv)
                     + 1 / 6 * g.kl(g.ROBUST, outputs.s_clean))
      np.testing.assert_allclose(value, (expected[label] * plain).mean(),
                                 rtol=1e-6)
      assert set(metrics) == {'adv_loss', 'clean_loss'}
      labels.append(label)
      kappa.append(found)
    labels, kappa = np.concatenate(labels), np.concatenate(kappa)
    present = np.unique(labels)
    mean = np.array([kappa[labels == label].mean() for label in present])
    raw = (mean + 1e-5) ** -2.
    expected[present] = np.clip(raw * len(present) / raw.sum(), 5 / 6, 5 / 2)
    state = loss.end_epoch(state, jnp.asarray(epoch))
    np.testing.assert_allclose(state.weights, expected, rtol=1e-5)
    assert not state.kappa.counts.any()
  assert expected[1] == max(expected) > 1.5


def test_equal_kappa_gives_the_loss_itself():
  loss, rslad = FairRSLAD(), divergences.RSLAD()
  outputs = batch(0, np.arange(6) % 4, np.full(6, 7))
  value, state, _ = loss(loss.init(g.CLASSES), outputs)
  np.testing.assert_allclose(value, rslad((), outputs)[0])
  state = loss.end_epoch(state, jnp.asarray(1))
  np.testing.assert_allclose(state.weights, np.ones(4), rtol=1e-6)


def test_weights_before_clipping_have_the_mean_one():
  loss = FairRSLAD(fair_bounds=(1e-9, 1e9))
  outputs = batch(0, np.arange(6) % 4, np.array([0, 3, 5, 9, 1, 2]))
  state = loss.end_epoch(loss(loss.init(g.CLASSES), outputs)[1],
                         jnp.asarray(1))
  np.testing.assert_allclose(np.mean(state.weights), 1, rtol=1e-6)
  assert np.argmax(state.weights) == 0


def test_class_that_withstands_nothing_has_a_finite_weight():
  # Fair-RSLAD's code divides by 0 here.
  loss = FairRSLAD()
  outputs = batch(0, np.arange(6) % 4, np.array([0, 3, 5, 9, 0, 2]))
  state = loss.end_epoch(loss(loss.init(g.CLASSES), outputs)[1],
                         jnp.asarray(1))
  np.testing.assert_allclose(state.weights, [2.5, 5 / 6, 5 / 6, 5 / 6])


def test_weights_are_means_not_sums():
  # Twice the images of a class with the same kappa, the same weights.
  loss = FairRSLAD()
  few = batch(0, np.array([0, 1, 2, 3, 0, 1]), np.array([2, 4, 5, 6, 2, 4]))
  many = batch(0, np.array([0, 0, 0, 0, 0, 0]), np.full(6, 2))
  one = loss(loss.init(g.CLASSES), few)[1]
  other = loss(one, many)[1]
  np.testing.assert_allclose(loss.end_epoch(one, jnp.asarray(1)).weights,
                             loss.end_epoch(other, jnp.asarray(1)).weights,
                             rtol=1e-6)


def test_epoch_without_images_changes_nothing():
  loss = FairRSLAD()
  state = loss.init(g.CLASSES).replace(weights=jnp.array([1., 2., 1.5, 0.9]))
  again = loss.end_epoch(state, jnp.asarray(1))
  np.testing.assert_array_equal(again.weights, state.weights)


@pytest.mark.parametrize('name', ['decoupled_kl', 'ard', 'iad', 'rslad',
                                  'mtard'])
def test_settings_and_needs_are_those_of_the_loss(name):
  plain, weighed = (distillation.OUTERS.defaults(each)
                    for each in (name, f'fair_{name}'))
  assert weighed.pop('fair_power') == 2
  assert weighed.pop('fair_bounds') == (5 / 6, 5 / 2)
  assert plain.pop('name') != weighed.pop('name')
  assert plain == weighed
  given = {'num_epochs': 10, 'warmup_epochs': 1}
  one, other = (distillation.OUTERS.build({'name': each}, given)
                for each in (name, f'fair_{name}'))
  assert other.needs == dataclasses.replace(one.needs, noticed=('kappa',))
  meanings = distillation.OUTERS.meanings(f'fair_{name}')
  assert all(meanings.values()) and 'fair_power' in meanings


def test_state_of_the_loss_is_within():
  loss = fair.fair(absld.ABSLD)(num_epochs=11, warmup_epochs=1, rate=0.4)
  outputs = batch(0, np.arange(6) % 4, np.array([2, 4, 5, 6, 2, 4]))
  plain = absld.ABSLD(num_epochs=11, warmup_epochs=1, rate=0.4)
  state = loss.end_epoch(loss(loss.init(g.CLASSES), outputs)[1],
                         jnp.asarray(1))
  expected = plain.end_epoch(plain(plain.init(g.CLASSES), outputs)[1],
                             jnp.asarray(1))
  jax.tree.map(np.testing.assert_array_equal, state.outer, expected)
  # The attack finds the temperatures there.
  targets = temperatures.adversarial(state, outputs.t_clean['robust'],
                                     outputs.labels)
  np.testing.assert_array_equal(
      targets, outputs.t_clean['robust'] / expected.adv[np.arange(6) % 4][
          :, None])
  assert np.abs(targets - outputs.t_clean['robust']).max() > 0.1


def test_weights_of_another_wrapper_stay():
  loss = FairRSLAD()
  outputs = batch(0, np.arange(6) % 4, np.array([2, 4, 5, 6, 2, 4]))
  own, others = jnp.array([0.5, 2., 1., 3.]), np.array([1., 0., 3., 1., 2., 1.])
  state = loss.init(g.CLASSES).replace(weights=own)
  expected = divergences.RSLAD()((), outputs.replace(
      weights=own[np.arange(6) % 4] * others))[0]
  np.testing.assert_allclose(
      loss(state, outputs.replace(weights=others))[0], expected)


@dataclasses.dataclass(frozen=True)
class Plain(base.Stateless):
  """A loss of one's own, without settings."""
  needs = base.Needs(t_clean=())

  def __call__(self, state, outputs, *, axis_name=None):
    loss = outputs.mean(losses.cross_entropy(outputs.s_adv, outputs.labels))
    return loss, state, {'adv_loss': loss}


def test_loss_of_one_s_own():
  loss = fair.fair(Plain)(fair_power=0.5)
  outputs = batch(0, np.arange(6) % 4, np.array([2, 4, 5, 6, 2, 4]))
  by_class = np.array([0.5, 2., 1., 3.])
  value, _, _ = loss(loss.init(g.CLASSES).replace(
      weights=jnp.asarray(by_class)), outputs)
  labels = np.arange(6) % 4
  np.testing.assert_allclose(value, (by_class[labels] * g.cross_entropy(
      outputs.s_adv, labels)).mean())


@pytest.mark.parametrize('power', [20., 1e4])
def test_large_power_favours_the_weakest_class(power):
  loss = FairRSLAD(fair_power=power)
  state = loss.init(g.CLASSES)
  kappa = class_sums.Sums(jnp.array([0., 2., 4., 0.], jnp.float32),
                          jnp.array([2., 2., 2., 0.], jnp.float32))
  found = loss.end_epoch(state.replace(kappa=kappa), jnp.asarray(1))
  # The last class had no images and keeps its weight.
  np.testing.assert_allclose(found.weights, [2.5, 5 / 6, 5 / 6, 1.], rtol=1e-5)


def test_fair_once_only():
  with pytest.raises(ValueError, match='FairRSLAD not to be weighed already'):
    fair.fair(FairRSLAD)


def test_shards_add_up():
  loss = FairRSLAD()
  state = loss.init(g.CLASSES).replace(weights=jnp.array([1., 2., 1.5, 0.9]))
  outputs = batch(0, np.arange(6) % 4, np.array([2, 4, 5, 6, 2, 4]))
  value, whole, _ = loss(state, outputs)
  shares, states, _ = jax.vmap(
      lambda outputs: loss(state, outputs, axis_name='i'),
      axis_name='i')(g.sharded(outputs))
  np.testing.assert_allclose(shares.mean(), value)
  for leaf, expected in zip(jax.tree.leaves(states), jax.tree.leaves(whole),
                            strict=True):
    np.testing.assert_allclose(leaf, np.broadcast_to(expected, leaf.shape))


def test_every_attack_notices_kappa():
  for name in distillation.INNERS:
    found = distillation.INNERS.find(name)
    assert not issubclass(found, inner.Ascent) or 'kappa' in found.notices


@pytest.mark.parametrize(('options', 'message'), [
    ({'fair_power': -1.}, 'fair_power=-1.0'),
    ({'fair_bounds': (2., 1.)}, r'fair_bounds=\(2.0, 1.0\) with low <= high'),
    ({'scale': 0.}, 'scale=0.0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    FairRSLAD(**options)
