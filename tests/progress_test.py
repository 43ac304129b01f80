"""Plain lines and metrics of a run that is not on a terminal."""

import json

from ferd_jax import progress
from ferd_jax import report


def test_epoch_line_and_metrics(tmp_path, capsys):
  shown = progress.Progress(tmp_path, total_steps=4)
  for _ in range(2):
    shown.step('generator', {'loss': 1.5})
  shown.epoch(1, 2, {'generator/loss': 1.5, 'generator/bn': 2.5,
                     'kept_agreement': 0.75, 'probs': [0.5, 0.5]})
  shown.close()
  line = capsys.readouterr().err
  assert line.startswith('epoch 1/2: generator/loss 1.5, kept_agreement 0.75')
  assert 'left' in line and 'bn' not in line and 'probs' not in line
  metrics = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert metrics == {'epoch': 1, 'generator/loss': 1.5, 'generator/bn': 2.5,
                     'kept_agreement': 0.75, 'probs': [0.5, 0.5]}


def test_resuming_drops_epochs_that_were_not_saved(tmp_path):
  lines = [json.dumps({'epoch': epoch}) for epoch in (1, 2, 3)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  shown = progress.Progress(tmp_path, total_steps=8, done_epochs=1,
                            done_steps=2)
  shown.epoch(2, 4, {'again': 1.})
  shown.close()
  kept = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in kept] == [
      {'epoch': 1}, {'epoch': 2, 'again': 1.}]


def test_table_has_teacher_beside_student():
  summary = {'average': 0.5, 'worst': 0.25, 'worst10': 0.25, 'nsd': 0.125}
  results = {'config': 'c', 'dataset': 'd', 'split': 'test', 'epoch': 3,
             'num_examples': 7, 'eps': 0.1, 'seed': 0, 'models': {
                 'teacher': {'pgd20': summary},
                 'student': {'pgd20': summary | {'average': 0.4}}}}
  title, _, header, _, row = report.table(results).splitlines()
  assert title.startswith('c: d test, 7 images') and '0.10000' in title
  assert [cell.strip() for cell in header.split('|')[1:-1]] == [
      'attack', *(f'{model} {column}' for model in ('teacher', 'student')
                  for column in ('average', 'worst', 'worst10', 'nsd'))]
  assert [cell.strip() for cell in row.split('|')[1:-1]] == [
      'pgd20', '50.00%', '25.00%', '25.00%', '0.125',
      '40.00%', '25.00%', '25.00%', '0.125']
