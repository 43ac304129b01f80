"""Tests of ferd_jax.distillation.outer: decoupled KL and its class prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import base
from ferd_jax.distillation import outer
from ferd_jax.models import frozen

BATCH, CLASSES = 6, 4
LABELS = np.array([0, 2, 2, 1, 0, 2])  # No image of class 3.
pytestmark = pytest.mark.usefixtures('float64')


def draw(seed, batch=BATCH):
  return 2 * np.random.default_rng(seed).normal(size=(batch, CLASSES))


TEACHER, CLEAN, ADV = (draw(seed) for seed in range(3))


def softmax(logits):
  return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def divergence(logits):
  """The batch mean of KL(P_T || P)."""
  p, q = softmax(TEACHER), softmax(logits)
  return (p * np.log(p / q)).sum(-1).mean()


def entropy():
  p = softmax(TEACHER)
  return -(p * np.log(p)).sum(-1).mean()


def wmse(logits, weights, norm):
  """The O(C^2) definition, GKL's or IKL's normalisation."""
  gaps = TEACHER - logits
  gaps = (gaps[:, :, None] - gaps[:, None]) ** 2
  total = 0.25 * (weights[:, :, None] * weights[:, None] * gaps).sum()
  return total / ((weights.sum(-1) ** 2).sum() if norm == 'weights' else BATCH)


def outputs(teacher=TEACHER, clean=CLEAN, adv=ADV, labels=LABELS):
  return base.Outputs(
      labels=jnp.asarray(labels), t_clean={frozen.ROBUST: jnp.asarray(teacher)},
      t_adv={}, s_clean=jnp.asarray(clean), s_adv=jnp.asarray(adv), noticed={},
      epoch=jnp.asarray(3))


@functools.partial(jax.jit, static_argnums=0)
def evaluate(loss, state, outputs):
  return loss(state, outputs)


def run(loss, state=None):
  value, _, terms = evaluate(loss, state or loss.init(CLASSES), outputs())
  return float(value), jax.tree.map(float, terms)


def accumulate(loss, state, teacher=TEACHER, labels=LABELS):
  return evaluate(loss, state, outputs(teacher, teacher, teacher, labels))[1]


def some_state(seed=7):
  prior = softmax(draw(seed, CLASSES))
  return outer.ClassPrior(prior=jnp.asarray(prior),
                          sums=jnp.zeros((CLASSES, CLASSES)))


def test_released_loss_is_rslads_with_swapped_weights():
  value, terms = run(outer.DecoupledKL(prior='one_hot'))
  np.testing.assert_allclose(
      value, 5 / 6 * divergence(CLEAN) + 1 / 6 * divergence(ADV) + entropy())
  np.testing.assert_allclose(terms['clean_loss'], divergence(CLEAN) + entropy())
  np.testing.assert_allclose(terms['adv_loss'], divergence(ADV) + entropy())


@pytest.mark.parametrize('norm', outer.NORMS)
@pytest.mark.parametrize('power', [1., 2.])
def test_class_mean_loss_by_hand(norm, power):
  state = some_state()
  loss = outer.DecoupledKL(w_clean=0.7, w_adv=0.2, norm=norm, power=power)
  value, terms = run(loss, state)
  weights = np.array(state.prior)[LABELS] ** power
  clean, adv = (divergence(logits) + entropy() + wmse(logits, weights, norm)
                for logits in (CLEAN, ADV))
  np.testing.assert_allclose(terms['clean_loss'], clean)
  np.testing.assert_allclose(terms['adv_loss'], adv)
  np.testing.assert_allclose(value, 0.7 * clean + 0.2 * adv)


def test_norms_differ_if_weights_do_not_sum_to_one():
  weights, batch = (run(outer.DecoupledKL(norm=norm, power=2.))[0]
                    for norm in outer.NORMS)
  assert weights > batch + 1e-3


@pytest.mark.parametrize('norm', outer.NORMS)
def test_sample_weights_are_the_teachers_at_temperature_100(norm):
  _, terms = run(outer.DecoupledKL(prior='sample', norm=norm))
  expected = (divergence(CLEAN) + entropy()
              + wmse(CLEAN, softmax(TEACHER / 100), norm))
  np.testing.assert_allclose(terms['clean_loss'], expected)


def test_prior_starts_uniform():
  state = outer.DecoupledKL().init(CLASSES)
  np.testing.assert_array_equal(state.prior, np.full((4, 4), 0.25))
  np.testing.assert_array_equal(state.sums, np.zeros((4, 4)))


def test_only_student_logits_get_a_gradient_from_the_weights():
  # With class_mean and sample weights the teacher's logits count in the
  # differences alone: the same gradient as with the weights as constants.
  def of_teacher(teacher):
    loss = outer.DecoupledKL(w_clean=1., w_adv=0., prior='sample')
    return loss(loss.init(CLASSES), outputs(teacher))[0]
  weights = softmax(TEACHER / 100)
  d = TEACHER - CLEAN
  mu = (weights * d).sum(-1, keepdims=True)
  np.testing.assert_allclose(jax.jit(jax.grad(of_teacher))(TEACHER),
                             weights * (d - mu) / BATCH, atol=1e-14)


def test_prior_is_the_mean_prediction_of_the_epoch_before():
  loss = outer.DecoupledKL()
  state = some_state()
  more, more_labels = draw(5), np.array([1, 1, 2, 0, 0, 1])
  added = accumulate(loss, state)
  added = accumulate(loss, added, more, more_labels)
  np.testing.assert_array_equal(added.prior, state.prior)  # Until the end.
  ended = loss.end_epoch(added, jnp.asarray(1))
  predictions = softmax(np.concatenate([TEACHER, more]))
  labels = np.concatenate([LABELS, more_labels])
  for label in range(3):
    np.testing.assert_allclose(ended.prior[label],
                               predictions[labels == label].mean(0))
  # Class 3 had no image.
  np.testing.assert_array_equal(ended.prior[3], state.prior[3])
  np.testing.assert_allclose(ended.prior.sum(-1), 1)
  np.testing.assert_array_equal(ended.sums, np.zeros((4, 4)))
  # An epoch without steps changes nothing.
  again = loss.end_epoch(ended, jnp.asarray(2))
  np.testing.assert_array_equal(again.prior, ended.prior)


def test_settings_of_ferd_are_the_defaults():
  loss = outer.DecoupledKL()
  assert (loss.prior_temperature, loss.power) == (None, 1)
  assert (loss.w_wmse, loss.w_ce, loss.temperature) == (1, 1, 1)


@pytest.mark.parametrize('kind', [outer.IKL, outer.GKL])
def test_losses_of_dkl_by_hand(kind):
  # Its code's formulas, with all constants of the settings in the open.
  loss = kind(w_clean=0.7, w_adv=0.2)
  state = some_state()
  value, terms = run(loss, state)

  def term(logits):
    p, log_q = softmax(TEACHER / 4), np.log(softmax(logits / 4))
    soft = -(p * log_q).sum(-1).mean()
    if kind is outer.IKL:
      return soft + 8 * wmse(logits, softmax(TEACHER / 100), 'batch')
    weights = np.array(state.prior)[LABELS] ** 0.2
    return soft + 16 * wmse(logits, weights, 'weights')
  np.testing.assert_allclose(terms['clean_loss'], term(CLEAN))
  np.testing.assert_allclose(terms['adv_loss'], term(ADV))
  np.testing.assert_allclose(value, 0.7 * term(CLEAN) + 0.2 * term(ADV))


def test_prior_of_tempered_predictions_over_epochs():
  loss = outer.DecoupledKL(prior_temperature=4.)
  state, expected = loss.init(CLASSES), np.full((4, 4), 0.25)
  for epoch, labels in enumerate((LABELS, np.array([3, 3, 1, 0, 3, 1]))):
    teacher = draw(10 + epoch)
    state = loss.end_epoch(accumulate(loss, state, teacher, labels),
                           jnp.asarray(epoch + 1))
    for label in set(labels):  # The others keep theirs.
      expected[label] = softmax(teacher / 4)[labels == label].mean(0)
    np.testing.assert_allclose(state.prior, expected)


def test_sample_weights_have_temperature_and_power():
  loss = outer.DecoupledKL(prior='sample', prior_temperature=4., power=0.2,
                           w_ce=0., w_wmse=3.)
  _, terms = run(loss)
  np.testing.assert_allclose(terms['adv_loss'], 3 * wmse(
      ADV, softmax(TEACHER / 4) ** 0.2, 'weights'))


@pytest.mark.parametrize('norm', outer.NORMS)
def test_examples_are_weighed(norm):
  loss = outer.DecoupledKL(norm=norm, prior='sample', w_clean=0.7, w_adv=0.2)
  weights = np.array([0., 2., 1., 0., 3., 0.5])
  value, _, _ = loss(loss.init(CLASSES), outputs().replace(weights=weights))
  one_by_one = []
  for i in range(BATCH):
    only = np.eye(BATCH)[i] * BATCH
    one_by_one.append(loss(loss.init(CLASSES),
                           outputs().replace(weights=only))[0])
  np.testing.assert_allclose(value, (weights * one_by_one).mean())
  np.testing.assert_allclose(np.mean(one_by_one), run(loss)[0])


def test_shards_add_up():
  loss = outer.DecoupledKL(power=2.)
  state = some_state()

  def shard(outputs):
    value, after, metrics = loss(state, outputs, axis_name='i')
    return value, after.sums, metrics
  given = outputs()
  split = given.replace(epoch=jnp.broadcast_to(given.epoch, [2]), **{
      name: jax.tree.map(lambda a: jnp.reshape(a, (2, 3, *a.shape[1:])),
                         getattr(given, name))
      for name in ('labels', 't_clean', 's_clean', 's_adv')})
  shares, sums, metrics = jax.jit(jax.vmap(shard, axis_name='i'))(split)
  value, whole_metrics = run(loss, state)
  np.testing.assert_allclose(shares.mean(), value)
  whole = accumulate(loss, state).sums
  for got in sums:
    np.testing.assert_allclose(got, whole)
  for name, expected in whole_metrics.items():
    np.testing.assert_allclose(metrics[name].mean(), expected)


@pytest.mark.parametrize(('options', 'message'), [
    ({'prior': 'mean'}, "prior='mean'"), ({'norm': 'none'}, "norm='none'"),
    ({'w_clean': -1.}, 'w_clean=-1.0'), ({'w_adv': -1.}, 'w_adv=-1.0'),
    ({'power': -1.}, 'power=-1.0'), ({'temperature': 0.}, 'temperature=0.0'),
    ({'prior_temperature': 0.}, 'prior_temperature=0.0'),
    ({'w_wmse': 0., 'w_ce': 0.}, 'w_wmse=0.0 or w_ce above 0'),
    ({'w_clean': 0., 'w_adv': 0.}, 'w_clean=0.0 or w_adv above 0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    outer.DecoupledKL(**options)
