"""Tests of ferd_jax.synthesis.batches: labels, what is kept, rounds, checks."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ferd_jax.core import validate
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches


def labels_of(probs, size, seed=0):
  return np.array(batches.balanced_labels(
      jax.random.key(seed), jnp.asarray(probs, jnp.float32), jnp.arange(size),
      size))


@pytest.mark.parametrize('classes', [2, 3, 10, 100])
def test_equal_classes_come_in_turns(classes):
  firsts = set()
  for seed in range(3):
    labels = labels_of(np.full(classes, 1 / classes), 4 * classes, seed)
    first = labels[0]
    np.testing.assert_array_equal(
        labels, (first + np.arange(4 * classes)) % classes)
    firsts.add(first)
  # What is left over of a batch belongs to no fixed classes.
  assert classes == 2 or len(firsts) > 1
  uneven = labels_of(np.full(classes, 1 / classes), 4 * classes - 1)
  counts = np.bincount(uneven, minlength=classes)
  assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize('probs', [
    [0.5, 0.25, 0.25], [0.9, 0., 0.1], [0.05, 0.15, 0.8], [1., 0., 0.]])
def test_counts_are_the_expected_ones(probs):
  size = 300
  counts = np.bincount(labels_of(probs, size), minlength=3)
  np.testing.assert_allclose(counts, size * np.array(probs), atol=1.01)


def test_labels_belong_to_positions():
  probs = jnp.array([0.2, 0.5, 0.3])
  key, size = jax.random.key(4), 24
  whole = batches.balanced_labels(key, probs, jnp.arange(size), size)
  part = batches.balanced_labels(key, probs, jnp.arange(8, 16), size)
  np.testing.assert_array_equal(whole[8:16], part)
  noise = batches.normal(key, jnp.arange(size), (2,))
  np.testing.assert_array_equal(
      noise[8:16], batches.normal(key, jnp.arange(8, 16), (2,)))
  assert len(np.unique(noise)) == 2 * size


def test_what_is_kept():
  new, old = jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1))
  for keep, loss, is_new in (('best', 1., True), ('best', 2., False),
                             ('best', 3., False), ('last', 3., True)):
    better, images, least = batches.kept(keep, jnp.float32(loss), new,
                                         jnp.float32(2), old)
    assert bool(better) == is_new
    np.testing.assert_array_equal(images, new if is_new else old)
    assert least == (loss if is_new else 2)


def test_rounds_share_the_student_steps():
  assert batches.rounds(400, 5, 2, pooled=False) == base.Rounds(
      2, 5, per_epoch=80, pooled=False)
  # An epoch with fewer is one round.
  assert batches.rounds(2, 10, 1) == base.Rounds(1, 2, per_epoch=1)
  with pytest.raises(validate.SettingError, match='student_steps_per_round=3 '
                     'to divide distill.steps=400'):
    batches.rounds(400, 3, 1)
  with pytest.raises(validate.SettingError, match='per_round=0'):
    batches.rounds(400, 0, 1)


class _Convolutions(nn.Module):
  """A classifier without a dense layer, whose moments nobody reports."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (1, 1))(x))
    return jnp.mean(x, axis=(1, 2))


def test_what_a_teacher_shows():
  seen = batches.observed_shapes(tiny.TwoLayers(7), (8, 8, 1))
  assert seen.features.shape == (1, 4) and seen.classifier == ('head',)
  assert [each.shape for each in seen.norm_inputs] == [(1, 4), (1, 4)]
  assert [each.shape for each in seen.stage_outputs] == [
      (1, 4), (1, 4), (1, 7)]
  zeros = batches.no_moments(tiny.TwoLayers(7), (8, 8, 1))
  assert set(zeros) == {'conv1_bn', 'conv2_bn'}
  assert not any(map(np.any, jax.tree.leaves(zeros)))
  other = batches.observed_shapes(_Convolutions(), (8, 8, 1))
  assert other.features is None and other.classifier == ()
  assert [each.shape for each in other.norm_inputs] == [(1, 3)]
  batches.check_moments(0., _Convolutions(), (8, 8, 1))
  with pytest.raises(validate.SettingError, match='w_bn=1.0 to be 0'):
    batches.check_moments(1., _Convolutions(), (8, 8, 1))
