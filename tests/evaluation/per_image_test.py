"""Texts that hold what is known of single images."""

import numpy as np
import pytest

from ferd_jax.evaluation import per_image


def test_texts_become_what_they_were_made_of():
  flags = np.random.default_rng(0).random(100) < 0.5
  text = per_image.flags_text(flags)
  assert len(text) == 100 and set(text) == {'0', '1'}
  np.testing.assert_array_equal(per_image.flags(text), flags)
  assert per_image.flags_text([True, False]) == '10'
  labels = np.array([7, 0, 199])
  assert per_image.labels_text(labels) == '7 0 199'
  np.testing.assert_array_equal(per_image.labels('7 0 199'), labels)
  assert per_image.flags('').shape == per_image.labels('').shape == (0,)


def test_other_characters():
  with pytest.raises(ValueError, match="'01x'"):
    per_image.flags('01x')


def test_results_without_them():
  results = {'labels': '1', 'eps': 0.1, 'models': {
      'student': {'clean': {'average': 1., 'correct': '1'}}}}
  assert per_image.without(results) == {
      'eps': 0.1, 'models': {'student': {'clean': {'average': 1.}}}}
  assert results['models']['student']['clean']['correct'] == '1'
