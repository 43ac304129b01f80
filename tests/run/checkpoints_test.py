"""States are restored as they were saved, wherever that was.

`python tests/run/checkpoints_test.py` writes the checkpoint of another JAX
anew; it is needed if what a state holds has changed.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np
import pytest

sys.path.extend(map(str, pathlib.Path(__file__).parents[1:3]))

import tiny

from ferd_jax.core import reporting
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import state as states
from ferd_jax.synthesis import pool as pools

# Of the tiny run's first state, by JAX 0.10.2.
_OTHER_JAX = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoint.zip'


class _Lines(reporting.Reporter):

  def __init__(self):
    self.lines = []

  def line(self, text):
    self.lines.append(text)


def _save(workdir, mode='jit', devices=1, epochs=(1,)):
  """Saves states as a run would, without training; returns the last."""
  experiment = tiny.shared(tiny.config(parallel=mode), devices)
  method, lines = experiment.method, []
  pool = pools.Pool.empty(8, method.image_shape)
  with checkpointing.Checkpoints(
      workdir, method, identity={'ferd_jax': '0.9'}) as checkpoints:
    for epoch in epochs:
      state = experiment.initial_state(epoch)
      lines.append(json.dumps({'epoch': epoch}))
      checkpoints.save(epoch, states.gathered(method, state), pool, 0,
                       lines)
  return _on_host(method, state)


def _resume(workdir, mode='jit', devices=1, reporter=reporting.SILENT):
  experiment = tiny.shared(tiny.config(parallel=mode), devices)
  method = experiment.method
  pool = pools.Pool.empty(8, method.image_shape)
  with checkpointing.Checkpoints(
      workdir, method, identity={'ferd_jax': '0.9'}) as checkpoints:
    state, epoch, lines = checkpoints.resume(
        experiment.initial_state(9), pool, 0, reporter)
  return _on_host(method, state), epoch, lines


def _on_host(method, state):
  return jax.tree.map(np.asarray, states.without_keys(
      states.gathered(method, state)))


def _assert_same(one, other):
  for first, second in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_array_equal(first, second)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  return workdir, _save(workdir, epochs=(1, 2, 3))


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.mark.parametrize(('mode', 'devices'), [
    ('jit', 1), ('pmap', 4), ('shard_map', 2)])
def test_restored_on_other_devices_in_another_mode(saved, mode, devices):
  workdir, expected = saved
  state, epoch, lines = _resume(workdir, mode, devices)
  assert epoch == 3 and len(lines) == 3
  _assert_same(state, expected)


def test_saved_on_several_devices(tmp_path):
  expected = _save(tmp_path, 'pmap', 4)
  _assert_same(_resume(tmp_path)[0], expected)


def test_restored_by_another_jax(tmp_path):
  shutil.unpack_archive(_OTHER_JAX, tmp_path)
  state, epoch, _ = _resume(tmp_path)  # Its digest was compared.
  experiment = tiny.shared(tiny.config())
  assert epoch == 1
  for one, other in zip(*map(jax.tree.leaves, (
      state, _on_host(experiment.method, experiment.initial_state(1)))),
                          strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_two_epochs_are_kept(saved):
  assert sorted(path.name for path in
                (saved[0] / 'checkpoints').iterdir()) == ['2', '3']


def test_what_is_damaged_is_put_aside(copy):
  for path in (copy / 'checkpoints' / '3').rglob('*'):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(b'')
  (copy / 'checkpoints' / '9').mkdir()  # What is no checkpoint at all.
  (copy / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir()  # Not finished.
  reporter = _Lines()
  state, epoch, lines = _resume(copy, reporter=reporter)
  assert epoch == 2 and len(lines) == 2 and state.epoch == 0
  assert len(reporter.lines) == 2
  for name, line in zip(('9', '3'), reporter.lines, strict=True):
    assert f'Cannot read {copy}/checkpoints/{name}: ' in line
    assert f'Going on after epoch 2; {copy}/damaged keeps' in line
  assert sorted(path.name for path in (copy / 'damaged').iterdir()) == [
      'checkpoint_3', 'checkpoint_9']
  assert [path.name for path in (copy / 'checkpoints').iterdir()] == ['2']


def test_nothing_is_put_aside_if_nothing_can_be_read(copy):
  for path in copy.glob('checkpoints/*/_CHECKPOINT_METADATA'):
    path.write_text('{}')
  with pytest.raises(OSError, match=(
      f'Cannot read {copy}/checkpoints/3: .*remove {copy}/checkpoints to')):
    _resume(copy)
  assert not (copy / 'damaged').exists()


def test_something_else_in_place_of_the_directory(tmp_path):
  (tmp_path / 'checkpoints').touch()
  with pytest.raises(OSError, match=f'Expected {tmp_path}/checkpoints to be a'):
    _resume(tmp_path)
  with pytest.raises(OSError, match=f'Expected {tmp_path}/checkpoints to be a'):
    tiny.claim(tiny.config(), tmp_path)
  assert not (tmp_path / 'config.json').exists()


def test_checkpoints_that_were_exchanged(copy):
  directory = copy / 'checkpoints'
  (directory / '3').rename(directory / 'x')
  (directory / '2').rename(directory / '3')
  (directory / 'x').rename(directory / '2')
  with pytest.raises(OSError, match='checkpoints/3: it is that of epoch 2'):
    _resume(copy)


def _without_record(path):
  metadata = json.loads(path.read_text())
  metadata['custom_metadata'] = {}
  path.write_text(json.dumps(metadata))


def test_checkpoint_of_a_version_without_digests(copy, saved):
  for path in copy.glob('checkpoints/*/_CHECKPOINT_METADATA'):
    _without_record(path)
  reporter = _Lines()
  state, epoch, lines = _resume(copy, reporter=reporter)
  assert epoch == 3 and lines is None
  _assert_same(state, saved[1])
  line, = reporter.lines
  assert 'checkpoints/3 has no digest' in line


def test_state_of_another_type_is_no_damage(saved):
  workdir, _ = saved
  experiment = tiny.shared(tiny.config())
  method, like = experiment.method, experiment.initial_state(0)
  like = like.replace(epoch=like.epoch.astype(np.uint32))
  with checkpointing.Checkpoints(workdir, method) as checkpoints:
    with pytest.raises(ValueError, match=(
        r'of other types or shapes are epoch.*ferd_jax 0\.9.*nothing is dam')):
      checkpoints.restore(like, 3)


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as folder:
    _save(folder)
    shutil.make_archive(str(_OTHER_JAX.with_suffix('')), 'zip', folder)
