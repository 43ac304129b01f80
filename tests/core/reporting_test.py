"""What is shown on a terminal, elsewhere, and by other processes."""

import io
import sys
import time

import jax
import pytest

from ferd_jax.core import reporting


class _Screen(io.StringIO):

  def isatty(self):
    return True


def _on_screen(monkeypatch):
  """Returns a terminal that stands for stderr."""
  screen = _Screen()
  monkeypatch.setattr(sys, 'stderr', screen)
  monkeypatch.setenv('COLUMNS', '110')
  return screen


class _Unreadable(dict):
  """Values that would make the host wait for a device."""

  def items(self):
    raise AssertionError('read although nothing is shown')


def _shown(screen):
  """Returns what was drawn, without the blanks that clear a line."""
  return [text.strip(' ') for text in screen.getvalue().split('\r')
          if text.strip(' ')]


def _advance(task, *args, **options):
  time.sleep(0.15)  # longer than tqdm waits between two displays
  task.advance(*args, **options)


def test_bar_on_a_terminal(monkeypatch):
  screen = _on_screen(monkeypatch)
  with reporting.TERMINAL.task('one', 4, initial=1) as task:
    _advance(task, shown={'loss': 1.23456, 'bn': 2.5})
    task.rename('two')
    _advance(task, 2)
  first, second, third = _shown(screen)
  assert first.startswith('one:  25%') and '1/4' in first
  assert second.startswith('one:  50%') and '2/4' in second
  assert 'step/s' in second and 'loss=1.23, bn=2.5' in second
  assert third.startswith('two: 100%') and '4/4' in third
  assert screen.getvalue().endswith('\r')  # what follows starts a clean line


def test_line_above_the_bar(monkeypatch):
  screen = _on_screen(monkeypatch)
  with reporting.TERMINAL.task('work', 4):
    reporting.TERMINAL.line('something happened')
    _, line, bar = _shown(screen)
  assert line == 'something happened\n' and bar.startswith('work:   0%')


def test_bar_is_gone_before_an_error_is_shown(monkeypatch):
  screen = _on_screen(monkeypatch)
  with pytest.raises(KeyboardInterrupt):
    with reporting.TERMINAL.task('work', 4) as task:
      _advance(task)
      raise KeyboardInterrupt
  assert screen.getvalue().endswith('\r')
  shown = screen.getvalue()
  task.close()
  assert screen.getvalue() == shown


def test_bytes(monkeypatch):
  screen = _on_screen(monkeypatch)
  with reporting.TERMINAL.task('file', 4_000_000, 'B') as task:
    _advance(task, 1_000_000)
  assert '1.00M/4.00M' in _shown(screen)[-1]


def test_shares_of_a_total_that_changes(monkeypatch):
  screen = _on_screen(monkeypatch)
  with reporting.TERMINAL.task('work', unit='') as task:
    task.resize(10)
    _advance(task, 5)
    task.resize(40)
    _advance(task, 5)
  *_, half, quarter = _shown(screen)
  assert half.startswith('work:  50%|') and quarter.startswith('work:  25%|')
  assert '5/10' not in half and '<' in half


def test_elsewhere_there_are_lines_only(capsys):
  with reporting.TERMINAL.task('work', 4) as task:
    _advance(task, shown=_Unreadable(loss=1.))
    task.rename('other')
    task.resize(8)
    reporting.TERMINAL.line('a line')
  assert tuple(capsys.readouterr()) == ('', 'a line\n')
  assert reporting.TERMINAL.active and not reporting.TERMINAL.live


def _silent(screen, reporter):
  assert not reporter.active and not reporter.live
  with reporter.task('work', 4) as task:
    _advance(task, shown=_Unreadable(loss=1.))
    reporter.line('a line')
  assert not screen.getvalue()


def test_silence(monkeypatch):
  screen = _on_screen(monkeypatch)
  _silent(screen, reporting.SILENT)
  _silent(screen, reporting.Terminal(active=False))


@pytest.mark.parametrize('process', [0, 1])
def test_of_several_processes_the_first_shows(monkeypatch, process):
  screen = _on_screen(monkeypatch)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax, 'process_index', lambda: process)
  if process:
    _silent(screen, reporting.TERMINAL)
    assert reporting.Terminal(active=True).live
  else:
    reporting.TERMINAL.line('a line')
    assert screen.getvalue() == 'a line\n'


def test_one_process_does_not_start_devices(monkeypatch, capsys):
  def started():
    raise AssertionError('devices were started')
  monkeypatch.setattr(jax, 'process_index', started)
  reporting.Terminal().line('a line')
  assert capsys.readouterr().err == 'a line\n'


def test_interval():
  assert reporting.interval(65.4) == '01:05'
  assert reporting.interval(3605) == '1:00:05'
