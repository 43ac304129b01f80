"""Runs that mean nothing say so."""

import noting
import numpy as np
import pytest
import tiny

from ferd_jax import train
from ferd_jax.run import doubts

_IMAGES = np.random.default_rng(0).random((8, 4, 4, 1))
_FINE = {'synthesis/kept_agreement': 0.9, 'sampler/max_prob': 0.2}


@pytest.mark.parametrize('metrics, images, kinds', [
    ({}, _IMAGES, []),
    ({'synthesis/kept_agreement': 0.1}, _IMAGES, []),
    ({'synthesis/kept_agreement': 0.04}, _IMAGES, ['agreement']),
    ({'synthesis/kept_agreement': 0.}, _IMAGES, ['agreement']),
    ({'sampler/max_prob': 0.995}, _IMAGES, ['sampler']),
    ({}, np.ones((8, 4, 4, 1)), ['generator']),
    # Each by itself has a structure, the same.
    ({}, np.repeat(_IMAGES[:1], 8, axis=0), ['generator']),
    ({}, np.full((8, 4, 4, 1), np.nan), ['generator']),
    ({}, np.ones((1, 4, 4, 1)), []),
    ({'synthesis/kept_agreement': 0., 'sampler/max_prob': 1.},
     np.zeros((8, 4, 4, 1)), ['agreement', 'generator', 'sampler'])])
def test_of_epoch(metrics, images, kinds):
  found = doubts.of_epoch(_FINE | metrics, images, 10)
  assert list(found) == kinds
  for text in found.values():
    assert '\n' not in text


def test_of_a_sampler_that_measures_nothing():
  assert doubts.of_epoch({}, _IMAGES, 10) == {}


def test_of_settings():
  config = tiny.config()
  assert doubts.of_settings(config, config.eps / 4) == []
  (inner, sampler) = doubts.of_settings(config, config.eps / 1000)
  assert 'inner.steps=2' in inner and '0.20%' in inner
  assert 'sampler.attack_steps=2' in sampler


def test_a_run_says_it_once(tmp_path, monkeypatch):
  """Of a generator that is dead from its second epoch on."""
  epoch, reporter = train.epoch, noting.Reporter()
  def dead(*args):
    done = epoch(*args)
    if int(done.state.epoch) > 1:
      done = done._replace(images=np.full_like(done.images, 0.5))
    return done
  monkeypatch.setattr(train, 'epoch', dead)
  config = tiny.config(num_epochs=3, warmup_epochs=2, step_size=1e-5)
  run = tiny.claim(config, tmp_path)
  train.train(run, tmp_path, stop_after=3 - 1, reporter=reporter)
  train.train(run, tmp_path, stop_after=3 - 1, reporter=reporter)
  warnings = [line for line in reporter.lines if line.startswith('Warning: ')]
  assert sum('generator seems to be dead' in line for line in warnings) == 1
  assert 'in epoch 2 the images are all alike' in ' '.join(warnings)
  assert any('inner.steps' in line for line in warnings)
