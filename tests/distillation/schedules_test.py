"""Tests of the learning rates against PyTorch's schedulers and by hand."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import schedules

RUN = dict(num_epochs=10, first_epoch=2, steps_per_epoch=3)
STEPS = np.arange(8 * 3)


def rates(name, learning_rate=0.2, **options):
  schedule = schedules.build(name, learning_rate, **RUN | options)
  return np.array([schedule(jnp.asarray(step)) for step in STEPS])


def in_torch(make):
  torch = pytest.importorskip('torch')
  optimizer = torch.optim.SGD([torch.zeros(1)], 0.2)
  scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # No step of the optimiser is taken.
    for _ in STEPS:
      found.append(optimizer.param_groups[0]['lr'])
      scheduler.step()
  return np.array(found)


def test_milestones_are_pytorchs():
  # Two epochs of warm-up without steps count.
  expected = in_torch(lambda lr, optimizer: lr.MultiStepLR(
      optimizer, [(4 - 2) * 3, (7 - 2) * 3]))
  np.testing.assert_allclose(rates('milestones', milestones=(4, 7)), expected,
                             rtol=1e-6)


def test_one_cycle_rises_and_falls_by_cosines():
  # Every rate belongs to a step: the warm-up epochs have none.
  peak, end = 7, len(STEPS)
  up = 0.5 * (1 - np.cos(np.pi * STEPS / peak))
  down = 0.5 * (1 + np.cos(np.pi * (STEPS - peak) / (end - peak)))
  low, last = 0.2 / 25, 0.2 / 25 / 1e4
  expected = np.where(STEPS < peak, low + (0.2 - low) * up,
                      last + (0.2 - last) * down)
  np.testing.assert_allclose(rates('one_cycle'), expected, rtol=1e-5)


def test_cosine_falls_once_an_epoch():
  epochs = 2 + STEPS // 3
  np.testing.assert_allclose(
      rates('cosine'), 0.1 * (1 + np.cos(np.pi * epochs / 10)), rtol=1e-6)


@pytest.mark.parametrize(('name', 'options', 'message'), [
    ('linear', {}, "schedule='linear'"),
    ('cosine', {'milestones': (3,)}, r'milestones=\(3,\) to be \(\)'),
    ('milestones', {}, r'milestones=\(\) to be ascending'),
    ('milestones', {'milestones': (7, 4)}, r'milestones=\(7, 4\)'),
    ('milestones', {'milestones': (4, 10)}, r'some of 1\.\.9'),
    ('one_cycle', {'learning_rate': 0.}, 'learning_rate=0.0'),
    ('milestones', {'learning_rate': 0., 'milestones': (3,)},
     'learning_rate=0.0')])
def test_settings_out_of_range(name, options, message):
  with pytest.raises(ValueError, match=message):
    rates(name, **options)
