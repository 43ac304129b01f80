"""Tests of ferd_jax.run.step_log: read late, checked, averaged."""

import time

import numpy as np
import pytest

from ferd_jax.run import step_log


class Noted:
  """Metrics that note in a list when they are read."""

  def __init__(self, events, number, **values):
    self._events, self._number, self._values = events, number, values

  def read(self):
    self._events.append(('read', self._number))
    return self._values


def steps(events, *losses, first=1):
  for number, loss in enumerate(losses, first):
    events.append(('dispatched', number))
    yield Noted(events, number, loss=loss, twice=2 * loss)


def test_a_step_is_read_once_the_next_is_dispatched():
  events = []
  log = step_log.StepLog('distill', 1)
  log.follow(steps(events, 1., 2., 3.))
  assert events == [('dispatched', 1), ('dispatched', 2), ('read', 1),
                    ('dispatched', 3), ('read', 2)]
  # The last one of a round during the next round, or at the end.
  log.follow(steps(events, 4., first=4))
  assert events[5:] == [('dispatched', 4), ('read', 3)]
  log.means()
  assert events[7:] == [('read', 4)]
  log.means()
  assert len(events) == 8  # Each once.


def test_means_over_all_rounds():
  log = step_log.StepLog('synthesis', 3)
  log.follow(steps([], 1., 2.))
  log.follow(steps([], 6.))
  got = log.means()
  seconds = got.pop('synthesis/ms_per_step')
  np.testing.assert_allclose(got.pop('synthesis/seconds'), 3 * seconds / 1e3)
  assert got == {'synthesis/loss': 3., 'synthesis/twice': 6.}
  assert 0 <= seconds < 1e3


def test_a_metric_of_some_steps_is_averaged_over_those():
  log = step_log.StepLog('distill', 1)
  log.follow([Noted([], 1, a=1.), Noted([], 2, a=3., b=5.)])
  got = log.means()
  assert got['distill/a'] == 2. and got['distill/b'] == 5.


def test_time_is_that_of_the_steps_alone(monkeypatch):
  now = [100.]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])

  def slow(*seconds):
    for each in seconds:
      now[0] += each
      yield Noted([], 1, loss=0.)
  log = step_log.StepLog('distill', 1)
  log.follow(slow(1., 2.))
  now[0] += 50  # Another phase.
  log.follow(slow(6.))
  now[0] += 50
  found = log.means()
  np.testing.assert_allclose(found['distill/ms_per_step'], 3000.)
  np.testing.assert_allclose(found['distill/seconds'], 9.)


def test_no_steps():
  log = step_log.StepLog('distill', 1)
  assert log.means() == {}
  log.follow([])
  assert log.means() == {}


def test_every_step_is_told():
  told = []
  log = step_log.StepLog('distill', 1, lambda *step: told.append(step))
  log.follow(steps([], 1., 2.))
  assert told == [('distill', {'loss': 1., 'twice': 2.})]
  log.means()
  assert told[1:] == [('distill', {'loss': 2., 'twice': 4.})]


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_phase_epoch_and_step(value):
  told = []
  log = step_log.StepLog('synthesis', 7, lambda *step: told.append(step))
  log.follow(steps([], 1.))
  with pytest.raises(FloatingPointError, match='^Not finite: synthesis/loss='
                     f'{value} at epoch 7, step 2.$'):
    log.follow(steps([], value, 1., 1.))
  assert len(told) == 1  # It was not taken for a step.


def test_the_last_step_is_checked_too():
  log = step_log.StepLog('distill', 2)
  log.follow(steps([], 1., np.nan))
  with pytest.raises(FloatingPointError, match='distill/loss=nan at epoch 2, '
                     'step 2'):
    log.means()
