"""Tests of ferd_jax.distillation.similar_target: targets and their rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import collectives
from ferd_jax.distillation import base
from ferd_jax.distillation import similar_target

EPS, STEP, CLASSES = 0.05, 0.02, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 3, 2, 1))
FIRST, SECOND = RNG.normal(size=(6, 8)), RNG.normal(size=(8, CLASSES))
LABELS = np.array([0, 2, 2, 1, 0, 2], np.int32)
CONFUSION = np.array([[5, 3, 1, 0], [0, 2, 2, 0], [4, 0, 9, 2], [0, 0, 0, 6]])
pytestmark = pytest.mark.usefixtures('float64')


def student(x):
  return jnp.tanh(x.reshape(len(x), -1) @ FIRST) @ SECOND


def keys(number=6):
  return jax.random.split(jax.random.key(0), number)


def with_counts(attack, counts=CONFUSION):
  """Returns the state after an epoch with these predictions."""
  labels, predicted = np.divmod(np.repeat(
      np.arange(CLASSES ** 2), np.ravel(counts)), CLASSES)
  state = attack.init(CLASSES)
  for some in np.array_split(np.arange(len(labels)), 3):
    state = attack.update(state, base.Outputs(
        labels=jnp.asarray(labels[some], jnp.int32), t_clean={}, t_adv={},
        s_clean=None, s_adv=jnp.asarray(np.eye(CLASSES)[predicted[some]]),
        noticed={}, epoch=jnp.asarray(1)))
  np.testing.assert_array_equal(state.counts, counts)
  return state


def without_own(weights):
  weights = np.where(np.eye(CLASSES, dtype=bool), 0, weights)
  return weights / weights.sum(-1, keepdims=True)


def test_first_targets_are_all_alike():
  attack = similar_target.SimilarTarget(EPS, STEP)
  np.testing.assert_allclose(attack.init(CLASSES).probs,
                             without_own(np.ones((4, 4))), rtol=1e-6)


def test_false_positives():
  attack = similar_target.SimilarTarget(EPS, STEP)
  state = attack.end_epoch(with_counts(attack), jnp.asarray(2))
  # Twelve errors, of which 4, 3, 3 and 2 fell on the classes.
  shares = np.array([4, 3, 3, 2]) / 12
  np.testing.assert_allclose(
      state.probs, without_own(np.tile(np.exp(2 * shares), (4, 1))), rtol=1e-6)
  assert not state.counts.any()


def test_confusion_over_epochs():
  attack = similar_target.SimilarTarget(EPS, STEP, rule='confusion',
                                        sharpness=3.)
  state = attack.end_epoch(with_counts(attack), jnp.asarray(2))
  errors = np.where(np.eye(4, dtype=bool), 0, CONFUSION)
  shares = errors / np.maximum(errors.sum(-1, keepdims=True), 1)
  expected = without_own(np.exp(3 * shares))
  expected[3] = [1 / 3, 1 / 3, 1 / 3, 0]  # No errors: it keeps its row.
  np.testing.assert_allclose(state.probs, expected, rtol=1e-6)
  # An epoch without any keeps all.
  again = attack.end_epoch(state, jnp.asarray(3))
  np.testing.assert_array_equal(again.probs, state.probs)


def test_large_sharpness_takes_the_most_frequent():
  attack = similar_target.SimilarTarget(EPS, STEP, rule='confusion',
                                        sharpness=1e4)
  state = attack.end_epoch(with_counts(attack), jnp.asarray(2))
  errors = np.where(np.eye(4, dtype=bool), 0, CONFUSION)[:3]
  most = errors == errors.max(-1, keepdims=True)
  np.testing.assert_allclose(
      state.probs[:3], most / most.sum(-1, keepdims=True), atol=1e-6)


def targeted(targets, attack):
  """Returns the attack by `attacks.PGD`, from the same start.

  Without targets of the call, at which it would stay.
  """
  noise = np.stack([jax.random.uniform(
      key, IMAGES.shape[1:], jnp.float64, -EPS, EPS) for key in keys()])
  pgd = attacks.PGD(EPS, STEP, attack.steps, loss=lambda logits, target: (
      -losses.cross_entropy(logits, target)))
  return pgd(student, keys(), jnp.asarray(IMAGES), jnp.asarray(targets),
             x_init=jnp.asarray(np.clip(IMAGES + noise, 0, 1)))


def call(attack, state):
  return attack(state, base.Networks(student, None, {}), jnp.asarray(IMAGES),
                jnp.asarray(LABELS), {}, None, keys())


def test_descends_the_targets_cross_entropy():
  attack = similar_target.SimilarTarget(EPS, STEP, steps=3)
  # Each class has one possible target.
  probs = np.eye(CLASSES)[[2, 0, 3, 1]]
  state = attack.init(CLASSES).replace(probs=jnp.asarray(probs))
  found = call(attack, state)
  targets = np.array([2, 0, 3, 1])[LABELS]
  np.testing.assert_allclose(
      found.images, targeted(targets, attack),
      rtol=0, atol=1e-12)
  assert set(found.noticed) == {'kappa'}
  before, after = (np.array(jax.nn.log_softmax(student(x)))[
      np.arange(6), targets] for x in (IMAGES, found.images))
  assert (after > before).all()


def test_targets_are_drawn_by_the_labels_row():
  attack = similar_target.SimilarTarget(EPS, STEP)
  probs = without_own(RNG.uniform(0.2, 1, size=(4, 4)))
  labels = np.repeat(np.arange(CLASSES), 2000)
  draws = jax.vmap(jax.random.categorical)(
      collectives.fold_in(keys(len(labels)), 1),
      jnp.log(jnp.asarray(probs))[labels])
  found = np.zeros((4, 4))
  np.add.at(found, (labels, np.array(draws)), 1 / 2000)
  np.testing.assert_allclose(found, probs, atol=0.04)
  assert (np.diag(found) == 0).all()
  # The attack draws the same ones.
  attack = similar_target.SimilarTarget(EPS, STEP, steps=1)
  state = attack.init(CLASSES).replace(probs=jnp.asarray(probs))
  targets = jax.vmap(jax.random.categorical)(
      collectives.fold_in(keys(), 1), jnp.log(jnp.asarray(probs))[LABELS])
  np.testing.assert_allclose(
      call(attack, state).images,
      targeted(np.array(targets), attack), atol=1e-12)


def test_shards_count_together():
  attack = similar_target.SimilarTarget(EPS, STEP)
  logits = RNG.normal(size=(2, 3, CLASSES))
  def update(labels, logits):
    return attack.update(attack.init(CLASSES), base.Outputs(
        labels=labels, t_clean={}, t_adv={}, s_clean=None, s_adv=logits,
        noticed={}, epoch=jnp.asarray(1)), axis_name='i')
  found = jax.vmap(update, axis_name='i')(LABELS.reshape(2, 3), logits)
  expected = np.zeros((4, 4))
  np.add.at(expected, (LABELS, logits.reshape(6, -1).argmax(-1)), 1)
  for counts in found.counts:
    np.testing.assert_array_equal(counts, expected)


def test_needs_the_student_on_attacked_images():
  attack = similar_target.SimilarTarget(EPS, STEP)
  with pytest.raises(ValueError, match='reads the student on attacked images'):
    attack.update(attack.init(CLASSES), base.Outputs(
        labels=LABELS, t_clean={}, t_adv={}, s_clean=None, s_adv=None,
        noticed={}, epoch=jnp.asarray(1)))


@pytest.mark.parametrize(('options', 'message'), [
    ({'rule': 'random'}, "rule='random'"),
    ({'sharpness': -1.}, 'sharpness=-1.0'), ({'steps': 0}, 'steps=0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    similar_target.SimilarTarget(EPS, STEP, **options)
