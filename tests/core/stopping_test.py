"""Signals: noted where work must not be torn apart, obeyed elsewhere."""

import os
import signal
import time

import jax
from jax.experimental import multihost_utils
import pytest

from ferd_jax.core import reporting
from ferd_jax.core import stopping

_BOTH = pytest.mark.parametrize(('number', 'status'), [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])


@pytest.fixture(autouse=True)
def _handlers_as_before():
  before = {number: signal.getsignal(number) for number in (
      signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def _send(number):
  os.kill(os.getpid(), number)
  time.sleep(0.001)  # Python looks for signals between two operations.


@_BOTH
def test_work_ends_where_it_next_tells_how_far_it_is(number, status):
  done = []
  with stopping.signals() as stop:
    task = stop.reporter(reporting.SILENT).task('steps', 3)
    with pytest.raises(stopping.Stopped) as stopped, stop.deferred():
      for step in range(3):
        if step == 1:
          for _ in range(5):  # Repeated ones change nothing.
            _send(number)
        done.append(step)
        task.advance()
    _send(number)  # While files are closed.
  _send(number)  # While Python ends.
  assert done == [0, 1]
  assert stopped.value.status == status
  assert stopped.value.signal == number


@_BOTH
def test_elsewhere_it_ends_at_once(number, status):
  with stopping.signals():
    with pytest.raises(stopping.Stopped) as stopped:
      _send(number)
      pytest.fail('It went on.')
    _send(number)
  assert stopped.value.status == status


def test_without_a_signal_handlers_are_as_before():
  before = signal.getsignal(signal.SIGTERM)
  with stopping.signals() as stop, stop.deferred():
    assert signal.getsignal(signal.SIGTERM) == stop.handle
    stop.check()
  assert signal.getsignal(signal.SIGTERM) == before
  assert not stop.signalled


def test_it_can_be_caught_as_an_interruption():
  assert issubclass(stopping.Stopped, KeyboardInterrupt)


def test_of_several_processes_all_end_at_the_same_check(monkeypatch):
  asked, sent = [], []
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point',
                      lambda number: asked.append(number) or number == 3)
  monkeypatch.setattr(os, 'kill', lambda *args: sent.append(args))
  stop = stopping.Stop()
  stop.handle(signal.SIGINT, None)  # JAX tells the others.
  assert sent == [(os.getpid(), signal.SIGTERM)]
  with pytest.raises(stopping.Stopped) as stopped, stop.deferred():
    while True:
      stop.check()
  assert asked == [1, 2, 3]
  assert stopped.value.status == 143


def test_without_the_preemption_service(monkeypatch):
  def off(number):
    raise RuntimeError(f'{number}: the service is off.')
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', off)
  stopping.Stop().check()


def test_reporter_shows_what_the_other_shows(capsys):
  stop = stopping.Stop()
  reporter = stop.reporter(reporting.TERMINAL)
  assert reporter.active == reporting.TERMINAL.active
  assert reporter.live == reporting.TERMINAL.live
  reporter.line('text')
  assert capsys.readouterr().err == 'text\n'
  with reporter.task('name', 2) as task:
    task.rename('other')
    task.resize(3)
    task.advance(2, {'loss': 1.})
