"""The bar on a terminal, plain lines elsewhere, and metrics."""

import io
import json
import sys
import time

import pytest

from ferd_jax.core import reporting
from ferd_jax.run import progress


def test_epoch_line_and_metrics(tmp_path, capsys):
  with progress.Progress(tmp_path, total_steps=4,
                         reporter=reporting.TERMINAL) as shown:
    assert shown.last_epoch_seconds == 0
    for _ in range(2):
      shown.step('synthesis', {'loss': 1.5})
    shown.epoch(1, 2, {'synthesis/loss': 1.5, 'synthesis/bn': 2.5,
                       'synthesis/kept_agreement': 0.75, 'probs': [0.5, 0.5],
                       'seconds': 7.5})
    assert shown.last_epoch_seconds == 7.5
  line = capsys.readouterr().err
  assert line.startswith('epoch 1/2: synthesis/loss 1.5, synthesis/kept')
  assert 'left' in line and 'bn' not in line and 'probs' not in line
  metrics = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert metrics == {'epoch': 1, 'synthesis/loss': 1.5, 'synthesis/bn': 2.5,
                     'synthesis/kept_agreement': 0.75, 'probs': [0.5, 0.5],
                     'seconds': 7.5}


class _Terminal(io.StringIO):

  def isatty(self):
    return True


def test_bar_on_a_terminal(tmp_path, monkeypatch):
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('COLUMNS', '110')
  with pytest.raises(KeyboardInterrupt):
    with progress.Progress(tmp_path, total_steps=4,
                           reporter=reporting.TERMINAL) as shown:
      for _ in range(3):
        time.sleep(0.15)  # longer than tqdm waits between two displays
        shown.step('synthesis', {'bn': 2.5, 'loss': 1.5})
      raise KeyboardInterrupt
  *_, last, cleared, end = terminal.getvalue().split('\r')
  assert last.startswith('synthesis:  75%')
  # The time to go, and the loss before its terms.
  assert '3/4' in last and '<' in last and 'loss=1.5, bn=2.5' in last
  assert not cleared.strip() and not end  # what follows starts a clean line


@pytest.mark.parametrize(('text', 'reason'), [
    ('{"epoch": 1, "sec', 'line 1 is no JSON'),
    ('{"epoch": 1}\n{"loss": 1}\n', 'line 2 has no epoch'),
    ('[]\n', 'line 1 has no epoch'), ('{"epoch": "1"}', 'line 1 has no epoch')])
def test_damaged_metrics_are_named(tmp_path, text, reason):
  (tmp_path / 'metrics.jsonl').write_text(text)
  with pytest.raises(OSError, match=(
      rf'Cannot read .*metrics\.jsonl: {reason}. Without this file the run')):
    progress.Progress(tmp_path, total_steps=4, done_epochs=1)


@pytest.mark.parametrize('text', [
    '{"epoch": 1, "sec', '{"loss": 1}\n', '[]', '', '{"epoch": 1, "loss": 3}',
    None])
def test_damaged_metrics_are_made_again(tmp_path, capsys, text):
  path, kept = tmp_path / 'metrics.jsonl', ['{"epoch": 1, "loss": 2}']
  if text is not None:
    path.write_text(text)
  with progress.Progress(tmp_path, 4, 1, 2, reporting.TERMINAL, kept) as shown:
    assert path.read_text() == '{"epoch": 1, "loss": 2}\n'
    shown.epoch(2, 4, {'loss': 1})
  line = capsys.readouterr().err.splitlines()[0]
  assert line.startswith('Warning: ') and str(path) in line
  assert line.endswith('made again from the checkpoint.')
  if text is not None:
    assert (tmp_path / 'damaged' / 'metrics.jsonl').read_text() == text
  progress.Progress(tmp_path, 4, 2, 4, reporting.TERMINAL,
                    [*kept, '{"epoch": 2, "loss": 1}'])
  assert 'Warning' not in capsys.readouterr().err


def test_epochs_that_no_checkpoint_has_are_told(tmp_path, capsys):
  text = ''.join(f'{{"epoch": {epoch}}}\n' for epoch in (1, 2, 3))
  (tmp_path / 'metrics.jsonl').write_text(text)
  for kept, told in ((3, 0), (2, 0), (1, 1), (0, 1)):
    progress.Progress(tmp_path, 4, kept, 0, reporting.TERMINAL,
                      text.splitlines()[:kept])
    assert capsys.readouterr().err.count('are done again') == told
  assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_resuming_drops_epochs_that_were_not_saved(tmp_path):
  lines = [json.dumps({'epoch': epoch}) for epoch in (1, 2, 3)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  with progress.Progress(tmp_path, total_steps=8, done_epochs=1,
                         done_steps=2) as shown:
    shown.epoch(2, 4, {'again': 1.})
  kept = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in kept] == [
      {'epoch': 1}, {'epoch': 2, 'again': 1.}]
