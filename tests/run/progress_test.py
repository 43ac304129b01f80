"""What is shown of a training, and metrics."""

import json

import numpy as np
import pytest

from ferd_jax.core import reporting
from ferd_jax.run import progress
from ferd_jax.run import samples
from ferd_jax.run import workload

_WORK = workload.Workload(
    2, 1, steps={'synthesis': 2, 'distill': 4},
    batch_sizes={'synthesis': 8, 'distill': 4}, class_names=('zero', 'one'))


def test_epoch_line_and_metrics(tmp_path, capsys):
  with progress.Progress(tmp_path, _WORK,
                         reporter=reporting.TERMINAL) as shown:
    assert shown.last_epoch_seconds == 0
    for _ in range(2):
      shown.step('synthesis', {'loss': 1.5})
    values = {'synthesis/loss': 1.5, 'synthesis/bn': 2.5,
              'synthesis/kept_agreement': 0.75, 'probs': [0.5, 0.5],
              'seconds': 7.5}
    shown.epoch(1, values)
    assert shown.last_epoch_seconds == 7.5
  line = capsys.readouterr().err
  assert line.startswith('epoch 1/2: synthesis/loss 1.5, synthesis/kept')
  assert 'left' in line and 'bn' not in line and 'probs' not in line
  metrics = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert metrics.pop('time') > 1.7e9  # Since 1970.
  assert metrics == {'epoch': 1} | values


def test_what_a_terminal_shows(tmp_path):
  terminal = reporting.Terminal(active=True)
  def rows():
    return [row.plain.rstrip() for row in terminal.rows(80)]
  with progress.Progress(tmp_path, _WORK, reporter=terminal,
                         writers=()) as shown:
    shown.begin(1)
    shown.step('synthesis', {'bn': 2.5, 'agreement': 0.5, 'loss': 1.5})
    whole, phase, values, memory = rows()
    assert whole.startswith('epoch 1/2 ') and phase.startswith(
        'synthesis 1/2 ━')
    assert values == 'loss 1.5 →  agreement 0.5 →  bn 2.5 →'
    assert memory.startswith('1 x cpu') or ' x cpu' in memory
    shown.step('distill', {'loss': 2.})
    shown.step('synthesis', {'loss': 1.})  # The next round of the epoch.
    assert rows()[1].startswith('synthesis 2/2 ━')
    shown.epoch(1, {'sampler/probs': [0.25, 0.75]})
    shown.begin(2)
    assert rows()[0].startswith('epoch 2/2 ')
    assert 'class probabilities: most one 75.0%, least zero 25.0%' in rows()
  assert not rows() and not (tmp_path / 'metrics.jsonl').exists()


def test_pictures(tmp_path):
  found = samples.choose(
      np.zeros((2, 4, 4, 1)), np.array([0, 1]), 2,
      (np.array([1, 1]), np.array([0.9, 0.8])),
      (np.zeros((1, 4, 4, 1)), np.full((1, 4, 4, 1), 0.1), np.array([1])))
  told = {}
  with progress.Progress(tmp_path, _WORK) as shown:
    shown._writers.pictures = lambda epoch, pictures: told.update(pictures)
    shown.pictures(3, found, 0.1, np.array([0.25, 0.75]))
  names = {path.name for path in (tmp_path / 'samples').iterdir()}
  assert names == {'epoch_00003.png', 'epoch_00003_attacked.png',
                   'epoch_00003.npz'}
  assert set(told) == {'samples', 'samples_attacked'}


@pytest.mark.parametrize(('text', 'reason'), [
    ('{"epoch": 1, "sec', 'line 1 is no JSON'),
    ('{"epoch": 1}\n{"loss": 1}\n', 'line 2 has no epoch'),
    ('[]\n', 'line 1 has no epoch'), ('{"epoch": "1"}', 'line 1 has no epoch')])
def test_damaged_metrics_are_named(tmp_path, text, reason):
  (tmp_path / 'metrics.jsonl').write_text(text)
  with pytest.raises(OSError, match=(
      rf'Cannot read .*metrics\.jsonl: {reason}. Without this file the run')):
    progress.Progress(tmp_path, _WORK, done_epochs=1)


@pytest.mark.parametrize('text', [
    '{"epoch": 1, "sec', '{"loss": 1}\n', '[]', '', '{"epoch": 1, "loss": 3}',
    None])
def test_damaged_metrics_are_made_again(tmp_path, capsys, text):
  path, kept = tmp_path / 'metrics.jsonl', ['{"epoch": 1, "loss": 2}']
  if text is not None:
    path.write_text(text)
  with progress.Progress(tmp_path, _WORK, 1, reporting.TERMINAL,
                         kept) as shown:
    assert path.read_text() == '{"epoch": 1, "loss": 2}\n'
    shown.epoch(2, {'loss': 1})
  line = capsys.readouterr().err.splitlines()[0]
  assert line.startswith('Warning: ') and str(path) in line
  assert line.endswith('made again from the checkpoint.')
  if text is not None:
    assert (tmp_path / 'damaged' / 'metrics.jsonl').read_text() == text
  progress.Progress(tmp_path, _WORK, 2, reporting.TERMINAL,
                    shown.lines).end()
  assert 'Warning' not in capsys.readouterr().err


def test_epochs_that_no_checkpoint_has_are_told(tmp_path, capsys):
  text = ''.join(f'{{"epoch": {epoch}}}\n' for epoch in (1, 2, 3))
  (tmp_path / 'metrics.jsonl').write_text(text)
  for kept, told in ((3, 0), (2, 0), (1, 1), (0, 1)):
    progress.Progress(tmp_path, _WORK, kept, reporting.TERMINAL,
                      text.splitlines()[:kept]).end()
    assert capsys.readouterr().err.count('are done again') == told
  assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_resuming_drops_epochs_that_were_not_saved(tmp_path):
  lines = [json.dumps({'epoch': epoch}) for epoch in (1, 2, 3)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  with progress.Progress(tmp_path, _WORK, done_epochs=1) as shown:
    shown.epoch(2, {'again': 1.})
  kept = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  first, second = map(json.loads, kept)
  second.pop('time')
  assert first == {'epoch': 1} and second == {'epoch': 2, 'again': 1.}
