"""What is said of an epoch's pool and sampler, by hand."""

import types

import numpy as np
import pytest

from ferd_jax.run import epoch_metrics
from ferd_jax.run import method as methods


def test_pool_by_hand():
  judged = methods.Judgement(np.float32(0.5), np.array([0, 1, 1, 0]),
                             np.full(4, 0.9))
  found = epoch_metrics.of_pool(np.array([0, 0, 1, 1]), judged, 3)
  assert found == {
      'synthesis/kept_agreement': 0.5,
      'synthesis/kept_agreement_per_class': [0.5, 0.5, None],
      'synthesis/kept_per_class': [2, 2, 0]}
  assert epoch_metrics.of_pool(np.array([0]), None, 3) == {}


def test_sampler_of_which_a_class_starves():
  found = epoch_metrics.of_sampler(types.SimpleNamespace(
      probs=np.array([0., 1.], np.float32), fragility=np.array([-2., 3.]),
      count=np.int32(4)))
  assert found['sampler/min_log_prob'] == pytest.approx(-87.3, abs=0.1)
  assert found['sampler/max_prob'] == 1.
  assert found['sampler/fragility'] == [-2., 3.]
  assert 'sampler/count' not in found
