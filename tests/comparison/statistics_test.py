"""Intervals over seeds and images, against closed forms and by simulation."""

import math

import numpy as np
import pytest
from scipy import special
from scipy import stats

from ferd_jax.comparison import statistics
from ferd_jax.evaluation import metrics

_NAMED = metrics.named()
_LABELS = np.repeat(np.arange(5), 40)


def _estimates(draws=4000, labels=_LABELS, **flags):
  return statistics.Estimates(
      {name: statistics.Flags(np.atleast_2d(correct), labels)
       for name, correct in flags.items()}, _NAMED, draws=draws)


def _random(seeds, probability=0.7, rng=0):
  return np.random.default_rng(rng).random(
      (seeds, len(_LABELS))) < probability


def _half(interval):
  return (interval.high - interval.low) / 2


def test_one_seed_has_the_interval_of_its_images():
  correct = _random(1)
  p = np.array([correct[0, _LABELS == c].mean() for c in range(5)])
  # Each class is drawn by itself.
  variance = np.sum(p * (1 - p) / 40) / 25
  found = _estimates(a=correct).interval('a', 'average')
  assert found.mean == correct.mean() and math.isnan(found.std)
  np.testing.assert_allclose(_half(found), 1.959964 * math.sqrt(variance),
                             rtol=0.05)


def test_seeds_alone_have_the_interval_of_students_t():
  # Every class is all right or all wrong: other images change nothing.
  correct = np.stack([_LABELS < k for k in (2, 3, 3)])
  found = _estimates(a=correct).interval('a', 'average')
  values = np.array([2, 3, 3]) / 5
  low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
  np.testing.assert_allclose([found.low, found.high], [low, high])
  np.testing.assert_allclose(found.std, values.std(ddof=1))
  alone = statistics.of_seeds(values)
  np.testing.assert_allclose([alone.low, alone.high], [low, high])
  assert math.isnan(statistics.of_seeds(values[:1]).low)


def test_both_variances_add_up():
  correct = _random(4)
  found = _estimates(a=correct).interval('a', 'average')
  of_seeds = correct.mean(axis=1).var(ddof=1) / 4
  mean = correct.mean(axis=0)  # of the seeds, the same images for all
  of_images = np.sum([np.var(mean[_LABELS == c]) / 40 for c in range(5)]) / 25
  freedom = (of_seeds + of_images) ** 2 / (of_seeds ** 2 / 3)
  expected = special.stdtrit(freedom, 0.975) * math.sqrt(of_seeds + of_images)
  np.testing.assert_allclose(_half(found), expected, rtol=0.05)


def test_difference_is_taken_image_by_image():
  correct = _random(1)[0]
  other = correct.copy()
  other[:4] = ~other[:4]  # but for four images the same
  found = _estimates(a=correct, b=other)
  difference = found.difference('a', 'b', 'average')
  assert difference.mean == correct.mean() - other.mean()
  step = (correct.astype(float) - other)[:40]
  np.testing.assert_allclose(
      _half(difference), 1.959964 * math.sqrt(np.var(step) / 40) / 5, rtol=0.1)
  apart = math.hypot(*(_half(found.interval(name, 'average'))
                       for name in 'ab'))
  assert _half(difference) < apart / 3
  same = _estimates(a=correct, b=correct).difference('a', 'b', 'average')
  assert same.low == same.high == 0


def test_other_images_are_drawn_apart():
  correct = _random(1)
  found = statistics.Estimates(
      {'a': statistics.Flags(correct, _LABELS, 'some'),
       'b': statistics.Flags(correct, _LABELS, 'others')}, _NAMED, draws=4000)
  expected = math.hypot(*(_half(found.interval(name, 'average'))
                          for name in 'ab'))
  np.testing.assert_allclose(
      _half(found.difference('a', 'b', 'average')), expected, rtol=0.06)


def test_difference_of_seeds_is_welch_s():
  a, b = np.array([0.5, 0.6, 0.55]), np.array([0.3, 0.5, 0.4, 0.45])
  found = statistics.difference_of_seeds(a, b)
  expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
  np.testing.assert_allclose([found.low, found.high], expected)
  # Images that change nothing leave the same.
  correct = {name: np.stack([_LABELS < k for k in ks])
             for name, ks in (('a', (2, 3, 3)), ('b', (1, 4, 2)))}
  values = [np.array(ks) / 5 for ks in ((2, 3, 3), (1, 4, 2))]
  found = _estimates(**correct).difference('a', 'b', 'average')
  expected = stats.ttest_ind(*values, equal_var=False).confidence_interval()
  np.testing.assert_allclose([found.low, found.high], expected)
  assert math.isnan(statistics.difference_of_seeds(a, b[:1]).low)


def test_same_numbers_every_time():
  first, second = (_estimates(draws=50, a=_random(2)).interval('a', 'nsd')
                   for _ in range(2))
  assert first == second


def test_undefined_measure_has_no_interval():
  found = _estimates(draws=50, a=np.zeros((2, len(_LABELS)), bool))
  assert math.isnan(found.interval('a', 'nsd').mean)
  assert math.isnan(found.interval('a', 'nsd').low)
  assert found.interval('a', 'average').mean == 0


def test_absent_classes_and_flags_that_do_not_fit():
  labels = np.array([0, 0, 3, 3])
  found = _estimates(labels=labels, a=np.array([[1, 0, 1, 1]], bool))
  assert found.interval('a', 'worst').mean == 0.5
  with pytest.raises(ValueError, match=r'\(4,\) flags.*\(3,\)'):
    statistics.Flags(np.ones((2, 3), bool), labels)


@pytest.mark.parametrize('seeds, of_seeds', [(3, 0.3), (3, 0.), (1, 0.)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_seeds):
  """Students, images and both together vary; 300 comparisons are made."""
  rng, classes, each = np.random.default_rng(0), 5, 50
  labels = np.repeat(np.arange(classes), each)
  ease = np.linspace(1.2, -0.2, classes)
  scale = math.sqrt(of_seeds ** 2 + 0.7 ** 2 + 0.5 ** 2)
  truth = special.ndtr(ease / scale)
  hits = dict.fromkeys(('average', 'worst', 'nsd'), 0)
  for trial in range(300):
    correct = ease[labels] + of_seeds * rng.normal(size=(seeds, 1)) + (
        0.7 * rng.normal(size=len(labels))
        + 0.5 * rng.normal(size=(seeds, len(labels)))) > 0
    found = statistics.Estimates(
        {'a': statistics.Flags(correct, labels)}, _NAMED, draws=100,
        seed=trial)
    for measure in hits:
      interval = found.interval('a', measure)
      exact = _NAMED[measure](truth, np.ones(classes))
      hits[measure] += interval.low <= exact <= interval.high
  assert all(0.88 <= count / 300 for count in hits.values()), hits
