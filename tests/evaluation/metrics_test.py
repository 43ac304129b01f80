"""Tests of ferd_jax.metrics."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ferd_jax.evaluation import metrics


def summarise(correct, counts, **options):
  return metrics.summarise(np.array(correct), np.array(counts), **options)


def test_by_hand():
  got = summarise([5, 9, 2, 8], [10, 10, 10, 10])
  accuracy = np.array([0.5, 0.9, 0.2, 0.8])
  assert set(got) == {'average', 'worst', 'worst10', 'nsd'}
  np.testing.assert_allclose(got['average'], 0.6)
  np.testing.assert_allclose(got['worst'], 0.2)
  np.testing.assert_allclose(got['worst10'], 0.2)
  np.testing.assert_allclose(
      got['nsd'], np.sqrt(((accuracy - 0.6) ** 2).mean()) / 0.6)


def test_equal_classes_have_no_deviation():
  got = summarise([3, 6, 1], [6, 12, 2])
  assert got == {'average': 0.5, 'worst': 0.5, 'worst10': 0.5, 'nsd': 0}


def test_nsd_ignores_the_scale_of_accuracy():
  one, two = (summarise(np.array([10, 20, 15]) * scale, [100] * 3)['nsd']
              for scale in (1, 3))
  np.testing.assert_allclose(one, two)
  assert one > 0.2


@pytest.mark.parametrize(('num_classes', 'size'), [
    (1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (100, 10), (200, 20)])
def test_worst_tenth_is_rounded_up(num_classes, size):
  correct = np.random.default_rng(0).permutation(num_classes)
  got = metrics.summarise(correct, np.full(num_classes, 1000))
  np.testing.assert_allclose(got['worst10'], np.mean(range(size)) / 1000)
  assert got['worst'] == 0


@pytest.mark.parametrize('num_classes', [2, 10, 100])
def test_ratio_of_the_deviations(num_classes):
  correct = np.arange(num_classes)
  population, sample = (metrics.summarise(
      correct, np.full(num_classes, 1000), ddof=ddof)['nsd'] for ddof in (0, 1))
  np.testing.assert_allclose(sample / population,
                             np.sqrt(num_classes / (num_classes - 1)))


def test_average_is_over_images():
  got = summarise([90, 1], [100, 10])
  np.testing.assert_allclose(got['average'], 91 / 110)
  np.testing.assert_allclose(got['worst'], 0.1)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_order_of_the_metrics(correct):
  got = metrics.summarise(np.array(correct), np.full(len(correct), 50))
  assert got['worst'] <= got['worst10'] + 1e-12
  assert got['worst10'] <= got['average'] + 1e-12
  np.testing.assert_allclose(got['average'], np.mean(correct) / 50)
  if len(correct) <= 10:
    assert got['worst10'] == got['worst']
  assert np.isnan(got['nsd']) == (sum(correct) == 0)
  assert not got['nsd'] < 0


def test_classes_without_images_are_left_out():
  assert summarise([4, 0, 2], [5, 0, 8]) == summarise([4, 2], [5, 8])


def test_deviation_of_one_class():
  assert summarise([4], [5])['nsd'] == 0
  assert np.isnan(metrics.summarise(np.array([4]), np.array([5]),
                                    ddof=1)['nsd'])


def test_gini_is_half_the_mean_difference_of_two_over_their_mean():
  accuracy = np.random.default_rng(0).random((3, 7))
  differences = np.abs(accuracy[:, :, None] - accuracy[:, None])
  np.testing.assert_allclose(
      metrics.gini(accuracy),
      differences.mean(axis=(1, 2)) / (2 * accuracy.mean(axis=1)))
  np.testing.assert_allclose(metrics.gini(np.full(4, 0.3)), 0, atol=1e-12)
  np.testing.assert_allclose(metrics.gini(np.array([0, 0, 0, 1])), 3 / 4)
  assert np.isnan(metrics.gini(np.zeros(4)))


def test_worst_k():
  np.testing.assert_allclose(
      metrics.worst_k(np.array([[0.9, 0.1, 0.5], [1, 1, 0]])),
      [[0.1, 0.3, 0.5], [0, 0.5, 2 / 3]])


@pytest.mark.parametrize('ddof', [0, 1])
def test_named_measures_are_those_of_the_summary(ddof):
  correct, counts = np.array([5, 9, 2, 8]), np.array([10, 12, 10, 20])
  expected = metrics.summarise(correct, counts, ddof=ddof)
  named = metrics.named(ddof)
  found = {name: float(measure(correct / counts, counts))
           for name, measure in named.items()}
  for name in ('average', 'worst', 'nsd'):
    np.testing.assert_allclose(found[name], expected[name])
  np.testing.assert_allclose(found['gap'],
                             expected['worst'] - expected['average'])
  # Of many at once.
  many = np.random.default_rng(0).random((2, 3, 4))
  for measure in named.values():
    assert measure(many, counts).shape == (2, 3)
    np.testing.assert_allclose(measure(many, counts)[1, 2],
                               measure(many[1, 2], counts))


def test_success_rate():
  clean = np.array([True, True, False, True, True])
  assert metrics.success_rate(clean, np.array(
      [True, False, True, False, False])) == 0.75
  assert metrics.success_rate(clean, clean) == 0
  # Of an attack on the first images only.
  assert metrics.success_rate(clean, np.array([True, False])) == 0.5
  assert np.isnan(metrics.success_rate(~clean, np.array([True, False])))
