"""What is shown on a terminal, elsewhere, in a log, and by other processes."""

import datetime
import io
import os
import re
import sys

import clocks
import jax
import pytest

from ferd_jax.core import reporting


class _Screen(io.StringIO):

  def isatty(self):
    return True


class _Unreadable(dict):
  """Values that would make the host wait for a device."""

  def items(self):
    raise AssertionError('read although nothing is shown')


@pytest.fixture
def clock():
  return clocks.Clock()


@pytest.fixture
def terminal(clock):
  return reporting.Terminal(
      active=True, clock=clock,
      now=lambda: datetime.datetime(2026, 2, 3, 4, 5, int(clock.now) % 60))


def _on_screen(monkeypatch):
  """Returns a terminal that stands for stderr, which pytest sets later."""
  screen = _Screen()
  monkeypatch.setattr(sys, 'stderr', screen)
  monkeypatch.setenv('COLUMNS', '80')
  monkeypatch.setenv('TERM', 'xterm')
  return screen


def _text(screen):
  """Returns what was written to a screen, without what moves its cursor."""
  return re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', screen.getvalue())


def _rows(terminal, width=80):
  return [row.plain.rstrip() for row in terminal.rows(width)]


def test_a_task(terminal, clock):
  with terminal.task('one', 4, initial=1) as task:
    clock.now += 2
    task.advance(shown={'loss': 1.23456, 'bn': 2.5})
    task.rename('two')
    row, values = _rows(terminal)
    assert row.startswith('two 2/4 ━') and ' 50% ' in row
    assert row.endswith('0.5 steps/s, 00:04 left')
    assert values == 'loss 1.23 →  bn 2.5 →'
  assert not _rows(terminal)
  task.close()  # Once more.


def test_values_have_a_trend(terminal):
  with terminal.task('work', 100) as task:
    for i in range(20):
      task.advance(shown={'up': i, 'down': -i, 'same': 3.})
    assert re.fullmatch(r'up [\d.]+ ↗  down -[\d.]+ ↘  same 3 →',
                        _rows(terminal)[1])


def test_images_a_second(terminal, clock):
  with terminal.task('steps', 100, images=256) as task:
    clock.now += 1
    task.advance(10)
    assert '2,560 images/s' in _rows(terminal)[0]


def test_bytes_and_shares(terminal, clock):
  with terminal.task('file', 4_000_000, 'B') as task:
    clock.now += 1
    task.advance(1_000_000)
    assert 'file 1 MB/4 MB' in _rows(terminal)[0]
    assert '1 MB/s' in _rows(terminal)[0]
  with terminal.task('work', unit='') as task:
    task.resize(10)
    task.advance(5)
    assert _rows(terminal)[0].startswith('work ━')
    assert ' 50%' in _rows(terminal)[0]


def test_whole_has_the_one_time_that_is_left(terminal, clock):
  terminal.expect({'steps': reporting.Work(10, 1.),
                   'student, pgd20': reporting.Work(4, 5.)})
  with terminal.whole('epoch 1/2', lambda: 'memory') as whole:
    assert _rows(terminal)[0].startswith('epoch 1/2 ─')
    with terminal.task('steps', 10) as task:
      clock.now += 30  # It compiles.
      task.advance()
      for _ in range(4):
        clock.now += 1
        task.advance()
      first, second, footer = _rows(terminal)
      # Five steps, and four images as expensive as five of them each, which
      # compile, too.
      assert terminal.left == pytest.approx(5 + 20 + 29)
      assert first.endswith('about 00:54 left') and ' 39% ' in first
      assert second.startswith('steps 5/10') and 'left' not in second
      assert footer == 'memory'
    with terminal.whole('another', lambda: 'nothing'):
      assert len(_rows(terminal)) == 2  # Within one it shows nothing.
    whole.rename('epoch 2/2')
    whole.bars('weights', ['a', 'b'], [0.25, 0.75])
    assert _rows(terminal)[:3][0].startswith('epoch 2/2')
    assert 'most b 75.0%' in _rows(terminal)[1]


def test_within_a_place(terminal, capsys):
  there = terminal.within('student').within('autoattack')
  there.expect({'apgd': reporting.Work(3, 1.)})
  there.line('robust 3%')
  there.line('Warning: few classes')
  with there.task('apgd', 3) as task:
    task.advance()
    task.advance()
    assert _rows(terminal)[0].startswith('student, autoattack, apgd 2/3')
    there.remains({'apgd': 0})
    assert terminal.left == 0
  there.count('other')
  assert capsys.readouterr().err == (
      'student, autoattack, robust 3%\n'
      'Warning: student, autoattack, few classes\n')


def test_lines_above_the_bars(terminal, monkeypatch):
  screen = _on_screen(monkeypatch)
  with terminal.task('work', 4) as task:
    task.advance()
    terminal.line('[something] happened')
    terminal.beat()
  text = _text(screen)
  assert '[something] happened\n' in text
  assert 'work 1/4 ━' in text.partition('happened')[2]
  # It is gone, and what follows starts a clean line.
  assert '\x1b[2K' in screen.getvalue().rpartition('work 1/4')[2]
  assert screen.getvalue().endswith(('\r', '\x1b[2K'))


def _narrow_from(monkeypatch, terminal, screen):
  """Returns how many lines the rows take once 120 columns became 50."""
  monkeypatch.delenv('COLUMNS')
  def size_of(columns):
    monkeypatch.setattr(reporting.os, 'get_terminal_size',
                        lambda *_: os.terminal_size((columns, 25)))
  size_of(120)
  task = terminal.task('work', 4)
  task.advance(shown={'a loss': 1.25})
  terminal.beat()
  rows = [row.plain for row in terminal.rows(120)]
  assert len(rows) == 2 and len(rows[0]) > 100 and len(rows[1]) < 50
  size_of(50)
  screen.truncate(0)
  return task, -(-len(rows[0]) // 50) + 1


@pytest.mark.parametrize('what', ['beat', 'line', 'close'])
def test_rows_that_a_narrower_terminal_wraps_are_erased(terminal, monkeypatch,
                                                        what):
  screen = _on_screen(monkeypatch)
  task, lines = _narrow_from(monkeypatch, terminal, screen)
  if what == 'beat':
    terminal.beat()
  elif what == 'line':
    terminal.line('a line')
  else:
    task.close()
  # Up to the first of them, and each is erased; closing, rich draws once more
  # what it then erases.
  said = screen.getvalue().partition('work 1/4')[0]
  assert lines > 3 and said.count('\x1b[1A') == lines - 1
  assert said.count('\x1b[2K') == lines + 1  # One of them twice.
  screen.truncate(0)
  if what != 'close':
    terminal.beat()  # As drawn at 50 columns.
    assert screen.getvalue().count('\x1b[1A') == 1
    task.close()


def test_bars_are_gone_before_an_error_is_shown(terminal, monkeypatch):
  screen = _on_screen(monkeypatch)
  with pytest.raises(KeyboardInterrupt):
    with terminal.task('work', 4) as task:
      task.advance()
      raise KeyboardInterrupt
  shown = screen.getvalue()
  assert shown.endswith(('\r', '\x1b[2K'))
  task.close()
  terminal.beat()
  assert screen.getvalue() == shown


def test_a_terminal_that_cannot_move_its_cursor(terminal, monkeypatch):
  _on_screen(monkeypatch)
  assert terminal.live
  monkeypatch.setenv('TERM', 'dumb')
  assert not terminal.live


def test_elsewhere_there_are_lines_now_and_then(terminal, clock, capsys):
  with terminal.whole('evaluation'), terminal.task('pgd20', 4, 'image') as task:
    for _ in range(4):
      clock.now += 50
      task.advance(shown={'robust': 0.5})
      terminal.beat()
    terminal.line('a line')
    for _ in range(130):  # Nothing advances: a batch takes its time.
      clock.now += 1
      terminal.beat()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3 and not terminal.live
  assert lines[0].startswith('evaluation: ')
  assert 'pgd20 3/4: 75%' in lines[0] and 'robust 0.5' in lines[0]
  assert lines[1] == 'a line' and 'pgd20 4/4: 100%' in lines[2]


def test_lines_are_kept_with_their_time(terminal, clock, capsys, tmp_path):
  log = tmp_path / 'new' / 'log.txt'
  terminal.line('before')
  with pytest.raises(ValueError, match='broken'):
    with terminal.kept(log):
      terminal.line('one')
      clock.now = 7
      terminal.within('model').line('two')
      raise ValueError('it is broken')
  terminal.line('after')
  said = '2026-02-03 04:05:00 one\n2026-02-03 04:05:07 model, two\n'
  assert capsys.readouterr().err == f'before\n{said}after\n'
  assert log.read_text() == (
      f'{said}2026-02-03 04:05:07 stopped: ValueError: it is broken\n')
  with terminal.kept(log):  # It is gone on with.
    terminal.line('three')
    terminal.within('model').note('| a table |')
  assert log.read_text().count('\n') == 5
  assert log.read_text().endswith('three\n| a table |\n')
  assert 'table' not in capsys.readouterr().err
  with terminal.kept():
    terminal.line('four')
  assert 'four' not in log.read_text()


def test_a_log_that_stderr_goes_to_has_each_line_once(terminal, tmp_path,
                                                      monkeypatch):
  with open(tmp_path / 'log.txt', 'a') as file:
    monkeypatch.setattr(sys, 'stderr', file)
    with terminal.kept(tmp_path / 'log.txt'):
      terminal.line('once')
      terminal.note('a table')  # Where stdout may go to, too.
  assert (tmp_path / 'log.txt').read_text() == '2026-02-03 04:05:00 once\n'


def test_a_log_that_cannot_be_written_stops_nothing(terminal, tmp_path, capsys):
  with terminal.kept(tmp_path):  # A directory.
    terminal.line('shown')
  assert capsys.readouterr().err.endswith('shown\n')


def test_a_screen_has_no_time_stamps(terminal, monkeypatch, tmp_path):
  screen = _on_screen(monkeypatch)
  with terminal.kept(tmp_path / 'log.txt'):
    terminal.line('shown')
  assert screen.getvalue() == 'shown\n'


def _silent(screen, reporter):
  assert not reporter.active and not reporter.live
  with reporter.kept(), reporter.whole('all') as whole:
    with reporter.task('work', 4) as task:
      task.advance(shown=_Unreadable(loss=1.))
      whole.bars('weights', 'ab', [0.5, 0.5])
      reporter.line('a line')
  assert not screen.getvalue()


def test_silence(monkeypatch):
  screen = _on_screen(monkeypatch)
  _silent(screen, reporting.SILENT)
  _silent(screen, reporting.Terminal(active=False))
  _silent(screen, reporting.Terminal(active=False).within('somewhere'))


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
