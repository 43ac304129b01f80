"""A vision transformer as a student: trained, gone on with, exported, attacked.

Little in it is a convolution, and it has BatchNorm in places only; the moments
that images are made by are the teacher's.
"""

import json

import jax
import numpy as np
import pytest
import tiny

from ferd_jax import evaluate
from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax.run import work_directory


@pytest.mark.slow  # Compiling its steps takes half a minute.
def test_transformer_student(tmp_path, capsys):
  config = tiny.config(num_epochs=2, **{
      'student.arch': 'xcit_1_2', 'student.width': 1, 'student.patch': 4,
      'eval.attacks': ('clean', 'fgsm')})

  def build():
    experiment = tiny.build(config)
    work_directory.claim(tmp_path, experiment.identity)
    return experiment

  experiment = build()
  assert train.train(experiment, tmp_path, stop_after=1) is None
  first = train.saved_state(experiment, tmp_path).state.student.variables
  found = train.train(build(), tmp_path)
  student = train.saved_state(build(), tmp_path).state.student.variables
  for collection in ('params', 'batch_stats'):
    assert any(not np.array_equal(one, other) for one, other in zip(
        jax.tree.leaves(first[collection]),
        jax.tree.leaves(student[collection]), strict=True))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student))
  metrics = [json.loads(line) for line in (
      tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(value) for line in metrics for value in line.values()
             if isinstance(value, float))

  # As PyTorch's file under timm's names, and evaluated as any other.
  exported = torch_io.read_state_dict(tmp_path / 'export' / 'student.pt')
  assert exported['blocks.0.attn.temperature'].shape == (2, 1, 1)
  np.testing.assert_array_equal(exported['cls_token'],
                                student['params']['cls_token'])
  card = json.loads((tmp_path / 'export' / 'model_card.json').read_text())
  assert 'timm/models/xcit.py' in json.dumps(card)
  capsys.readouterr()
  evaluate.main([str(tmp_path), '--attacks=clean,fgsm', '--batch-size=16',
                 f'--json={tmp_path / "again.json"}'])
  again, = json.loads((tmp_path / 'again.json').read_text())
  for attack in ('clean', 'fgsm'):
    assert again['models']['student'][attack]['correct'] == (
        found['models']['student'][attack]['correct'])
