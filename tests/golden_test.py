"""A whole tiny run, number by number, as it was when it was last looked at.

A change of the method, of an order or of a key shows here; rounding does not.
If it is meant, `python tests/golden_test.py` writes the numbers anew, and the
commit says why.
"""

import json
import pathlib
import re
import sys
import tempfile

import numpy as np

_FILE = pathlib.Path(__file__).parent / 'golden' / 'tiny_run.json'
# Other vector widths and thread counts change 5e-7; on a processor where the
# sign of a small gradient flips in some pixel, it is more.
_TOLERANCE = 1e-3
_ACCURACY = re.compile(r'per_class|/test_|agreement$')


def _run(workdir):
  """Returns the numbers of a run of three epochs."""
  import as_if_trained
  import jax
  import timeless
  import tiny

  from ferd_jax import train
  from ferd_jax.run import checkpoints as checkpointing

  config = tiny.config(**{'eval.attacks': ('clean', 'fgsm'), 'eval.every': 1})
  # A teacher whose channels are robust in part.
  model = tiny.TwoLayers(10)
  teacher = jax.tree.map(
      lambda leaf: leaf.astype(np.float32),
      as_if_trained.random_variables(model, (8, 8, 1), seed=1))
  experiment = tiny.claim(config, workdir, teacher=(model, teacher),
                          student=model)
  results = train.train(experiment, workdir)
  epochs = [{name: value for name, value in record.items()
             # Of a class there are one or two images.
             if not name.endswith(('devices', 'per_class'))}
            for record in timeless.records(workdir)]
  with checkpointing.Checkpoints(workdir, experiment.method) as checkpoints:
    state = checkpoints.restore(
        experiment.initial_state(0), checkpoints.latest_epoch)
  norms = {
      jax.tree_util.keystr(path, simple=True, separator='/'):
      float(np.linalg.norm(np.asarray(leaf, np.float64)))
      for path, leaf in jax.tree_util.tree_leaves_with_path(
          state.replace(key=()))}
  pool = {path.name: [float(np.load(path)['images'].mean()),
                      np.load(path)['labels'].tolist()]
          for path in sorted((workdir / 'pool').iterdir())}
  return {'epochs': epochs, 'norms': norms, 'pool': pool,
          'per_class': {model: {attack: found['per_class']
                                for attack, found in attacks.items()}
                        for model, attacks in results['models'].items()}}


def _differences(expected, got, path=''):
  """Yields where two trees of JSON values differ."""
  if isinstance(expected, dict):
    if expected.keys() != got.keys():
      yield f'{path}: {sorted(expected.keys() ^ got.keys())}'
      return
    pairs = [(name, expected[name], got[name]) for name in expected]
  elif isinstance(expected, list):
    if len(expected) != len(got):
      yield f'{path}: {len(got)} in place of {len(expected)}'
      return
    pairs = [(i, *pair) for i, pair in enumerate(
        zip(expected, got, strict=True))]
  else:
    if isinstance(expected, float):
      # Accuracies of few images move by whole ones.
      step = 1 / 8 if _ACCURACY.search(path) else 0
      if not abs(got - expected) <= step + _TOLERANCE * (1 + abs(expected)):
        yield f'{path}: {got} in place of {expected}'
    elif expected != got:
      yield f'{path}: {got!r} in place of {expected!r}'
    return
  for name, one, other in pairs:
    yield from _differences(one, other, f'{path}/{name}')


def test_tiny_run_is_as_it_was(tmp_path):
  got = json.loads(json.dumps(_run(tmp_path)))
  expected = json.loads(_FILE.read_text())
  assert not list(_differences(expected, got))


def test_differences_are_found():
  expected = json.loads(_FILE.read_text())
  other = json.loads(_FILE.read_text())
  other['epochs'][1]['distill/loss'] *= 1.1
  other['pool']['epoch_00001.npz'][1][0] += 1
  del other['norms']['epoch']
  assert len(list(_differences(expected, other))) == 3


if __name__ == '__main__':
  sys.path[:0] = [str(pathlib.Path(__file__).parent),
                  str(pathlib.Path(__file__).parents[1])]
  with tempfile.TemporaryDirectory() as directory:
    _FILE.parent.mkdir(exist_ok=True)
    _FILE.write_text(json.dumps(_run(pathlib.Path(directory)), indent=1) + '\n')
