"""Tests of ferd_jax.synthesis.samplers: rules, fragilities, absent classes."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import class_sums
from ferd_jax.models import frozen
from ferd_jax.synthesis import base
from ferd_jax.synthesis import samplers

EPS, STEP = 8 / 255, 2 / 255
SOFTMAX = samplers.MarginSoftmax(EPS, STEP)
MINMAX = samplers.MarginMinMax(EPS, STEP, absent='zero')
BY_MARGINS = (samplers.MarginSoftmax, samplers.MarginMinMax,
              samplers.StudentMarginSoftmax)


def probabilities(fragility, sampler):
  return np.asarray(sampler.probabilities(jnp.asarray(fragility, jnp.float32)))


def update(state, margin_sums, counts, sampler):
  return sampler.update(state, class_sums.Sums(
      jnp.asarray(margin_sums, jnp.float32), jnp.asarray(counts, jnp.float32)))


fragilities = st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5)
properties = hypothesis.settings(max_examples=25, deadline=None,
                                 derandomize=True)


@properties
@hypothesis.given(fragilities)
def test_minmax_is_bounded(fragility):
  got = probabilities(fragility, MINMAX)
  np.testing.assert_allclose(got.sum(), 1, rtol=1e-5)
  assert got.max() / got.min() <= 4 * (1 + 1e-5)
  assert got[np.argmax(fragility)] == got.max()
  assert got[np.argmin(fragility)] == got.min()


@properties
@hypothesis.given(fragilities, st.floats(-10, 10), st.floats(0.2, 5))
def test_softmax_ignores_constants(fragility, shift, tau):
  sampler = samplers.MarginSoftmax(EPS, STEP, tau=tau)
  got = probabilities(fragility, sampler)
  np.testing.assert_allclose(got.sum(), 1, rtol=1e-5)
  assert got[np.argmax(fragility)] == got.max()
  np.testing.assert_allclose(
      probabilities(np.add(fragility, shift), sampler), got, rtol=1e-3,
      atol=1e-6)


def test_softmax():
  fragility = np.array([-2., 0.5, 1.])
  for tau in (1., 0.5):
    expected = np.exp(fragility / tau)
    np.testing.assert_allclose(
        probabilities(fragility, samplers.MarginSoftmax(EPS, STEP, tau=tau)),
        expected / expected.sum(), rtol=1e-5)


def test_minmax():
  # Scaled to 0, 1/4, 1/2 and 1, then to 0.05 .. 0.2.
  weights = np.array([0.05, 0.0875, 0.125, 0.2])
  np.testing.assert_allclose(probabilities([-4., -2., 0., 4.], MINMAX),
                             weights / weights.sum(), rtol=1e-5)
  other = samplers.MarginMinMax(EPS, STEP, range=(1., 3.))
  np.testing.assert_allclose(probabilities([0., 1.], other), [0.25, 0.75],
                             rtol=1e-5)


@pytest.mark.parametrize(('num_classes', 'largest'),
                         [(10, 0.3077), (100, 0.0388), (200, 0.0197)])
def test_largest_minmax_probability(num_classes, largest):
  fragility = np.zeros(num_classes)
  fragility[3] = 1
  got = probabilities(fragility, MINMAX)
  assert got.argmax() == 3
  np.testing.assert_allclose(got[3], largest, atol=5e-5)


@pytest.mark.parametrize('kind', BY_MARGINS)
def test_equal_fragilities_give_equal_probabilities(kind):
  np.testing.assert_allclose(
      probabilities(np.full(7, -3.), kind(EPS, STEP)), 1 / 7, rtol=1e-5)


def test_uniform_measures_and_changes_nothing():
  sampler = samplers.Uniform()
  assert sampler.measurement is None
  state = sampler.init(3)
  np.testing.assert_allclose(state.probs, 1 / 3, rtol=1e-6)
  assert sampler.update(state, None) is state


@pytest.mark.parametrize('kind', BY_MARGINS)
def test_margins_are_those_under_attack(kind):
  measurement = kind(EPS, STEP, attack_steps=7).measurement
  assert measurement.attack == attacks.PGD(EPS, STEP, 7)
  assert measurement.network == (
      frozen.STUDENT if kind is samplers.StudentMarginSoftmax
      else frozen.ROBUST)
  assert measurement.statistic is losses.margin
  assert kind(EPS, STEP).measurement.attack.num_steps == 20


@pytest.mark.parametrize('kind', BY_MARGINS)
def test_init_is_uniform(kind):
  got = kind(EPS, STEP).init(4)
  np.testing.assert_array_equal(got.probs, np.full(4, 0.25))
  np.testing.assert_array_equal(got.fragility, np.zeros(4))
  assert not got.measured.any()


@pytest.mark.parametrize('kind', BY_MARGINS)
def test_update_gives_the_probabilities_of_its_rule(kind):
  sampler = kind(EPS, STEP)
  got = update(sampler.init(3), [4., -2., 3.], [2, 1, 1], sampler)
  np.testing.assert_array_equal(got.fragility, [-2, 2, -3])
  np.testing.assert_allclose(got.probs, probabilities([-2., 2., -3.], sampler),
                             rtol=1e-6)


def test_fragility_is_the_mean_negative_margin():
  logits = jnp.array([[3., 1., 0.], [0., 2., 5.], [1., 4., 3.], [-9., -7., -8.],
                      [0., 0., 6.]])
  labels = np.array([0, 0, 1, 1, 2])
  margins = np.asarray(losses.margin(logits, labels))
  sums = np.bincount(labels, margins)
  got = update(SOFTMAX.init(3), sums, np.bincount(labels), SOFTMAX)
  # Margins: 2 and -5; 1 and 1; 6.
  np.testing.assert_allclose(got.fragility, [1.5, -1, -6], rtol=1e-6)
  expected = np.exp([1.5, -1, -6])
  np.testing.assert_allclose(got.probs, expected / expected.sum(), rtol=1e-5)
  assert got.measured.all()


def test_cross_entropies_of_the_teacher():
  sampler = samplers.TeacherCrossEntropy(tau=0.5)
  assert sampler.measurement == base.Measurement(
      statistic=losses.cross_entropy, attack=None, network=frozen.ROBUST)
  state = sampler.init(4)
  np.testing.assert_allclose(state.probs, 0.25, rtol=1e-6)
  first = update(state, [2., 1., 3., 0.], [4, 1, 2, 0], sampler)
  # Class 3 was never measured: it has the mean, 1, of 0.5, 1 and 1.5.
  fragility = np.array([0.5, 1, 1.5, 1])
  np.testing.assert_allclose(first.fragility, fragility)
  expected = np.exp(fragility / 0.5)
  np.testing.assert_allclose(first.probs, expected / expected.sum(), rtol=1e-5)
  second = update(first, [0., 0., 8., 2.], [0, 0, 2, 1], sampler)
  np.testing.assert_allclose(second.fragility, [0.5, 1, 4, 2])
  with pytest.raises(ValueError, match='tau=0.0'):
    samplers.TeacherCrossEntropy(tau=0.)
  with pytest.raises(ValueError, match="absent='skip'"):
    samplers.TeacherCrossEntropy(absent='skip')


def rule(absent):
  return samplers.MarginSoftmax(EPS, STEP, absent=absent)


def test_carry_keeps_the_last_measured_fragility():
  first = update(SOFTMAX.init(3), [4., -2., 3.], [2, 1, 1],
                 rule('carry'))
  second = update(first, [0., 10., 0.], [0, 2, 0], rule('carry'))
  np.testing.assert_allclose(second.fragility, [-2, -5, -3])
  third = update(second, [1., 0., 0.], [1, 0, 0], rule('carry'))
  np.testing.assert_allclose(third.fragility, [-1, -5, -3])


def test_carry_gives_the_mean_to_classes_never_measured():
  first = update(SOFTMAX.init(4), [4., 0., -6., 0.], [1, 0, 1, 0],
                 rule('carry'))
  np.testing.assert_allclose(first.fragility, [-4, 1, 6, 1])
  np.testing.assert_array_equal(first.measured, [True, False, True, False])
  # Later the mean is taken anew, over carried fragilities too.
  second = update(first, [0., -2., 0., 0.], [0, 1, 0, 0], rule('carry'))
  np.testing.assert_allclose(second.fragility, [-4, 2, 6, 4 / 3], rtol=1e-6)


def test_absent_mean_is_of_the_classes_present():
  first = update(SOFTMAX.init(3), [4., -2., 3.], [2, 1, 1], rule('mean'))
  second = update(first, [0., 10., 4.], [0, 2, 1], rule('mean'))
  np.testing.assert_allclose(second.fragility, [-4.5, -5, -4])


def test_absent_zero():
  first = update(SOFTMAX.init(3), [4., 2., 3.], [2, 1, 1], rule('zero'))
  second = update(first, [0., 10., 4.], [0, 2, 1], rule('zero'))
  np.testing.assert_allclose(second.fragility, [0, -5, -4])
  # Where the teacher is robust, an absent class is drawn most.
  assert np.argmax(second.probs) == 0


def test_memory_averages_over_epochs():
  sampler = samplers.MarginSoftmax(EPS, STEP, memory=0.75)
  first = update(SOFTMAX.init(3), [4., -2., 0.], [2, 1, 0], sampler)
  # The first measurement of a class has nothing to be averaged with.
  np.testing.assert_allclose(first.fragility, [-2, 2, 0])
  second = update(first, [8., 0., 6.], [1, 0, 2], sampler)
  np.testing.assert_allclose(second.fragility,
                             [0.75 * -2 + 0.25 * -8, 2, -3])
  np.testing.assert_allclose(
      second.probs, probabilities(second.fragility, sampler))


@pytest.mark.parametrize(('kind', 'options', 'message'), [
    (samplers.MarginSoftmax, {'memory': 1.}, 'memory=1.0'),
    (samplers.MarginSoftmax, {'memory': -0.1}, 'memory=-0.1'),
    (samplers.MarginSoftmax, {'memory': 0.5, 'absent': 'mean'}, 'memory=0.5'),
    (samplers.MarginSoftmax, {'memory': 0.5, 'absent': 'zero'}, 'memory=0.5'),
    *((kind, options, message) for kind in BY_MARGINS
      for options, message in (
          ({'absent': 'skip'}, "absent='skip'"),
          ({'attack_steps': 0}, 'attack_steps=0'))),
    (samplers.MarginSoftmax, {'tau': 0.}, 'tau=0.0'),
    (samplers.MarginMinMax, {'range': (0.2, 0.05)}, r'range=\(0.2, 0.05\)'),
    (samplers.MarginMinMax, {'range': (0., 1.)}, 'range=0.0'),
    (samplers.MarginMinMax, {'range': (1.,)}, r'range=\(1.0,\) to be'),
    (samplers.MarginMinMax, {'range': 0.2}, 'range=0.2 to be')])
def test_invalid_settings(kind, options, message):
  with pytest.raises(ValueError, match=message):
    kind(EPS, STEP, **options)
