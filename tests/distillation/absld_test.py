"""Tests of ferd_jax.distillation.absld: temperatures against plain NumPy."""

import batch_of_logits as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import absld
from ferd_jax.distillation import divergences
from ferd_jax.distillation import temperatures

EPOCHS = {'num_epochs': 11, 'warmup_epochs': 1}
LABELS = [np.array(labels, np.int32) for labels in (
    [0, 2, 2, 1, 0, 2], [3, 1, 1, 0, 2, 3], [0, 0, 1, 2, 2, 2],
    [1, 1, 1, 1, 1, 1])]


pytestmark = pytest.mark.usefixtures('float64')


def batch(seed, labels):
  s_clean, s_adv, teacher = (jnp.asarray(g.draw(200 + 3 * seed + i))
                             for i in range(3))
  return g.outputs(absld.ABSLD(**EPOCHS).needs, labels=jnp.asarray(labels),
                   t_clean={'robust': teacher}, s_clean=s_clean, s_adv=s_adv)


def moved(tau, values, labels, rate):
  """Returns the temperatures after an epoch, by class means."""
  present = np.unique(labels)
  means = np.array([values[labels == label].mean() for label in present])
  gaps = means - means.mean()
  if np.abs(gaps).max() > 0:
    gaps = gaps / np.abs(gaps).max()
  tau = tau.copy()
  tau[present] = np.clip(tau[present] - rate * gaps, 0.5, 5)
  return tau


def formula(outputs, adv, clean):
  labels = np.array(outputs.labels)
  t = np.array(outputs.t_clean['robust'])
  return 0.1 * (
      5 / 6 * g.kl(t / adv[labels][:, None], outputs.s_adv)
      + 1 / 6 * g.kl(t / clean[labels][:, None], outputs.s_clean)).mean()


@pytest.mark.parametrize('aliased', [False, True])
def test_several_epochs_against_numpy(aliased):
  loss = absld.ABSLD(**EPOCHS, rate=0.4, aliased=aliased)
  state = loss.init(g.CLASSES)
  adv = clean = np.ones(g.CLASSES)
  step, end = jax.jit(loss), jax.jit(loss.end_epoch)
  # Of ten epochs of the student 7, 9 and 10 (rounded); the warm-up is one.
  for completed in range(1, 11):
    rate = {8: 0.04, 9: 0.04, 10: 4e-3}.get(completed, 0.4)
    batches = [batch(2 * completed + i, LABELS[(completed + i) % 3])
               for i in range(2)]
    if completed == 5:  # one class only
      batches = [batch(0, LABELS[3])]
    for outputs in batches:
      value, state, _ = step(state, outputs)
      applied = (adv * clean,) * 2 if aliased else (adv, clean)
      np.testing.assert_allclose(value, formula(outputs, *applied), rtol=1e-6)
      targets = temperatures.adversarial(
          state, outputs.t_clean['robust'], outputs.labels)
      np.testing.assert_allclose(
          targets, np.array(outputs.t_clean['robust'])
          / applied[0][np.array(outputs.labels)][:, None], rtol=1e-6)
    labels = np.concatenate([each.labels for each in batches])
    adv, clean = (moved(tau, np.concatenate([
        g.cross_entropy(getattr(each, name), np.array(each.labels))
        for each in batches]), labels, rate)
                  for tau, name in ((adv, 's_adv'), (clean, 's_clean')))
    state = end(state, jnp.asarray(completed))
    np.testing.assert_allclose(state.adv, adv, rtol=1e-6)
    np.testing.assert_allclose(state.clean, clean, rtol=1e-6)
    assert not state.adv_sums.counts.any() and not state.clean_sums.values.any()
  assert state.adv.min() == 0.5 and np.abs(adv - clean).max() > 0.1


def test_more_images_of_the_same_loss_change_nothing():
  # The original takes sums: there class 0 would be the hardest.
  loss = absld.ABSLD(**EPOCHS)
  values = g.draw(0)
  first = loss(loss.init(g.CLASSES), batch(0, np.arange(6) % 4).replace(
      s_clean=values, s_adv=values))[1]
  again = first
  for _ in range(4):  # Examples 0 and 4 are of class 0.
    same = values[[0, 4, 0, 4, 0, 4]]
    again = loss(again, batch(0, np.zeros(6, int)).replace(
        s_clean=same, s_adv=same))[1]
  np.testing.assert_array_equal(again.adv_sums.counts, [26, 2, 1, 1])
  one, other = (loss.end_epoch(state, jnp.asarray(1))
                for state in (first, again))
  np.testing.assert_allclose(one.adv, other.adv, rtol=1e-6)
  means = np.array(first.adv_sums.means(0.))
  furthest = np.argmax(np.abs(means - means.mean()))
  # It moves by the rate, down if it is hard.
  np.testing.assert_allclose(
      one.adv[furthest], 1 - 0.1 * np.sign(means[furthest] - means.mean()),
      rtol=1e-6)


def test_epoch_without_images_changes_nothing():
  loss = absld.ABSLD(**EPOCHS)
  _, state, _ = loss(loss.init(g.CLASSES), batch(1, LABELS[1]))
  state = loss.end_epoch(state, jnp.asarray(1))
  again = loss.end_epoch(state, jnp.asarray(2))
  jax.tree.map(np.testing.assert_array_equal, again, state)


def test_temperatures_of_one_are_rslad():
  loss, rslad = absld.ABSLD(**EPOCHS), divergences.RSLAD()
  outputs = batch(0, LABELS[0])
  value, state, metrics = loss(loss.init(g.CLASSES), outputs)
  expected, _, terms = rslad((), outputs)
  np.testing.assert_allclose(value, expected)
  assert metrics.keys() == terms.keys()
  assert loss.needs == rslad.needs
  np.testing.assert_array_equal(state.applied.adv, np.ones(4))


def test_constants_of_the_original():
  loss = absld.ABSLD(300, 0)
  assert (loss.rate, loss.bounds, loss.scale) == (0.1, (0.5, 5), 0.1)
  assert not loss.aliased  # The fault is there for those who ask for it.
  assert [round(300 * milestone) for milestone in loss.milestones] == [
      215, 260, 285]


def test_shards_add_up():
  loss = absld.ABSLD(**EPOCHS)
  state = loss.init(g.CLASSES)
  value, whole, _ = loss(state, batch(0, LABELS[0]))
  shares, states, _ = jax.vmap(
      lambda outputs: loss(state, outputs, axis_name='i'),
      axis_name='i')(g.sharded(batch(0, LABELS[0])))
  np.testing.assert_allclose(shares.mean(), value)
  for leaf, expected in zip(jax.tree.leaves(states), jax.tree.leaves(whole),
                            strict=True):
    np.testing.assert_allclose(leaf, np.broadcast_to(expected, leaf.shape))


@pytest.mark.parametrize(('options', 'message'), [
    ({'rate': -1.}, 'rate=-1.0'), ({'scale': 0.}, 'scale=0.0'),
    ({'bounds': (5., 0.5)}, r'bounds=\(5.0, 0.5\) with low <= high'),
    ({'bounds': 2.}, r'bounds=2.0 to be \(low, high\)'),
    ({'bounds': (0., 1.)}, 'bounds=0.0'),
    ({'milestones': (-1.,)}, 'milestones=-1.0'),
    ({'w_clean': 0., 'w_adv': 0.}, 'w_clean=0.0 or w_adv above 0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    absld.ABSLD(**EPOCHS, **options)
