"""Whole runs of tiny nets: resume, compilations, failures, results."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timeless
import tiny

from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax.evaluation import per_image
from ferd_jax.evaluation import tables
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import work_directory


def _config(**changes):
  return tiny.config(**{'num_epochs': 4} | changes)


def _run(config, workdir, **kwargs):
  run = tiny.claim(config, workdir)
  return run, train.train(run, workdir, **kwargs)


def _saved(run, workdir, epoch):
  """Returns the state of an epoch as saved, keys as their data."""
  with checkpointing.Checkpoints(
      workdir, run.method, run.config.eval.select) as checkpoints:
    state = checkpoints.restore(
        run.initial_state(run.config.seed), epoch)
  return jax.tree.map(np.asarray, state.replace(
      key=jax.random.key_data(state.key)))


def _pool(workdir):
  return {path.name: np.load(path)['images']
          for path in sorted((workdir / 'pool').iterdir())}


def _metrics(workdir):
  """Returns the metrics of every epoch but the times."""
  return timeless.records(workdir)


def _assert_same(results, expected):
  assert json.dumps(results['models']) == json.dumps(expected['models'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  run, results = _run(_config(), workdir)
  return run, workdir, results


def test_resumed_run_is_the_whole_run_bit_for_bit(whole, tmp_path):
  run, workdir, results = whole
  _, nothing = _run(_config(), tmp_path, stop_after=2)
  assert nothing is None
  assert not (tmp_path / 'results.json').exists()
  _, resumed = _run(_config(), tmp_path)
  chex.assert_trees_all_equal(_saved(run, tmp_path, 4), _saved(run, workdir, 4))
  chex.assert_trees_all_equal(_pool(tmp_path), _pool(workdir))
  assert _metrics(tmp_path) == _metrics(workdir)
  _assert_same(resumed, results)


def test_lost_epochs_are_done_again(whole, tmp_path):
  # A run that died between writing an epoch's files and its checkpoint.
  run, workdir, _ = whole
  _run(_config(), tmp_path, stop_after=2)
  np.savez(tmp_path / 'pool' / 'epoch_00003.npz', images=np.ones(3))
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"epoch": 3, "lost": 1}\n')
  _run(_config(), tmp_path)
  chex.assert_trees_all_equal(_pool(tmp_path), _pool(workdir))
  assert _metrics(tmp_path) == _metrics(workdir)


def test_epochs_have_what_the_method_says(whole):
  run, workdir, _ = whole
  size = run.config.synthesis.batch_size
  pool = _pool(workdir)
  assert [len(images) for images in pool.values()] == [size] * 4
  for images in pool.values():
    assert images.min() >= 0 and images.max() <= 1
  metrics = _metrics(workdir)
  assert 'distill/loss' not in metrics[0]  # warm-up
  for epoch in metrics[1:]:
    assert np.isfinite(epoch['distill/loss'])
  for epoch in metrics:
    assert 0 <= epoch['synthesis/kept_agreement'] <= 1
    np.testing.assert_allclose(sum(epoch['sampler/probs']), 1, rtol=1e-5)
  state = _saved(run, workdir, 4)
  assert state.epoch == 4
  np.testing.assert_array_equal(state.sampler.probs.astype(np.float32),
                                np.float32(metrics[-1]['sampler/probs']))


def test_results(whole):
  run, workdir, results = whole
  written = (workdir / 'results.json').read_text()
  assert json.dumps(results, indent=2) + '\n' == written
  assert results['num_examples'] == len(run.examples.labels)
  assert set(results['models']) == {'teacher', 'student'}
  for model in results['models'].values():
    assert set(model) == {'clean'}
    assert 0 <= model['clean']['average'] <= 1
    assert len(model['clean']['per_class']) == 10
  assert list(results['models']) == ['teacher', 'student']


def test_student_is_exported_for_pytorch(whole):
  run, workdir, results = whole
  expected = _saved(run, workdir, 4).student.variables
  for name in ('student.pt', 'student.safetensors'):
    got = torch_io.load_variables(workdir / 'export' / name,
                                  run.student, run.method.image_shape)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, got), dict(expected))
  card = json.loads((workdir / 'export' / 'model_card.json').read_text())
  assert card['results'] == per_image.without(results)
  assert card['config'] == json.loads(json.dumps(run.identity))
  assert card['student']['arch'] == run.config.student.arch
  text = (workdir / 'export' / 'README.md').read_text()
  assert tables.text(results) in text and '0.1; seed 0, epoch 4 of 4' in text


@pytest.mark.parametrize('mode', [
    'jit', *(pytest.param(mode, marks=pytest.mark.slow)
             for mode in ('pmap', 'shard_map'))])
def test_second_epoch_compiles_nothing(mode, tmp_path, monkeypatch):
  # With a point of the learning curve and a sample grid in every epoch.
  config = _config(num_epochs=4, warmup_epochs=0, parallel=mode,
                   **{'eval.every': 1, 'log.samples_every': 1})
  run = tiny.claim(config, tmp_path, 4)
  compiled = [[]]
  save = checkpointing.Checkpoints.save

  def save_and_count_anew(self, epoch, *args):
    save(self, epoch, *args)  # Orbax compiles slices at its first save.
    compiled.append([])
  monkeypatch.setattr(checkpointing.Checkpoints, 'save', save_and_count_anew)

  def count(event, duration, fun_name='', **kwargs):
    del duration, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      compiled[-1].append(fun_name)
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    train.train(run, tmp_path, stop_after=3)
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
  first, *others = compiled
  assert first and others == [[], [], []]


def test_non_finite_loss_stops_and_keeps_the_last_good_epoch(
    tmp_path, monkeypatch):
  config = _config()
  _run(config, tmp_path, stop_after=2)
  run = tiny.build(config)
  resume = checkpointing.Checkpoints.resume

  def poisoned(self, *args):
    resumed = resume(self, *args)
    student = jax.tree.map(lambda leaf: leaf * np.nan,
                           resumed.state.student.variables)
    return resumed._replace(state=resumed.state.replace(
        student=resumed.state.student.replace(variables=student)))
  monkeypatch.setattr(checkpointing.Checkpoints, 'resume', poisoned)
  with pytest.raises(FloatingPointError,
                     match=r'synthesis.*=nan at epoch 3, step 1.*epoch 2'):
    train.train(run, tmp_path)
  monkeypatch.undo()
  state = _saved(run, tmp_path, 2)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


class _Breaking(tiny.TwoLayers):
  """A student whose logits are NaN once it has been trained for a step."""

  def run_stage(self, stage, x, train):
    x = super().run_stage(stage, x, train)
    head = self.variables.get('params', {}).get('head')
    if stage != 'head' or head is None:
      return x
    scale = self.variables['params']['conv1_bn']['scale']
    return jnp.where(jnp.all(scale == 1), x, jnp.nan)


def test_number_that_is_not_finite_inside_a_compiled_step(tmp_path):
  run = tiny.claim(_config(), tmp_path, student=_Breaking(10))
  for _ in range(2):  # The next start ends in the same way.
    with pytest.raises(FloatingPointError, match=(
        r'^Not finite: distill/\w+=nan at epoch 2, step 2\. The checkpoint of '
        r'epoch 1 is kept\.$')):
      train.train(run, tmp_path)
  assert _latest(tmp_path) == 1 and len(_metrics(tmp_path)) == 1


def test_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
  # An update can diverge after the last loss of an epoch was looked at.
  epoch = train.epoch

  def diverged(*args):
    done = epoch(*args)
    scale = np.float32(np.inf if done.state.epoch == 3 else 1)
    student = jax.tree.map(lambda leaf: leaf * scale, done.state.student)
    return done._replace(state=done.state.replace(student=student))
  monkeypatch.setattr(train, 'epoch', diverged)
  with pytest.raises(FloatingPointError,
                     match=r'student.* after epoch 3.*epoch 2 is kept'):
    _run(_config(), tmp_path)
  assert _latest(tmp_path) == 2


def _latest(workdir):
  with checkpointing.Checkpoints(workdir, None) as checkpoints:
    return checkpoints.latest_epoch


def test_time_budget_stops_after_an_epoch_and_goes_on(whole, tmp_path):
  config = _config(max_minutes=1e-6)
  run, results = _run(config, tmp_path)
  assert results is None
  assert _latest(tmp_path) == 1
  # Judged by the epoch before, also if an earlier session did it.
  line, = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  config.max_minutes = json.loads(line)['seconds'] / 60
  assert _run(config, tmp_path)[1] is None
  assert len(_metrics(tmp_path)) == 1
  config.max_minutes = 0.
  _, results = _run(config, tmp_path)
  _assert_same(results, whole[2])


@pytest.mark.parametrize('select', ['test_clean_worst', 'synthetic_pgd'])
def test_best_epoch_is_kept_and_evaluated(tmp_path, select):
  config = _config(**{'eval.select': select, 'eval.every': 1,
                      'eval.curve_attacks': ('clean',)})
  run, results = _run(config, tmp_path)
  curve = [epoch[select] for epoch in _metrics(tmp_path)]
  # Of equal ones any may be kept.
  assert curve[results['epoch'] - 1] == max(curve)
  with checkpointing.Checkpoints(tmp_path, None, select) as checkpoints:
    assert checkpoints.latest_epoch == 4
    assert checkpoints.selected_epoch == results['epoch']


def test_evaluation_alone_gives_the_same_numbers(whole):
  run, workdir, results = whole
  again = train.evaluate_run(run, workdir)
  _assert_same(again, results)


def _files(workdir):
  return sorted(path.relative_to(workdir) for path in workdir.rglob('*'))


def _truncate(workdir, epoch):
  for path in (workdir / 'checkpoints' / str(epoch)).rglob('*'):
    if path.is_file() and path.stat().st_size > 1000:
      path.write_bytes(path.read_bytes()[:100])


def test_damaged_checkpoint_is_named(whole, tmp_path):
  run, workdir, _ = whole
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  _truncate(copy, 4)
  with pytest.raises(OSError, match=r'Cannot read .*checkpoints.4.*epoch 3 is'):
    train.evaluate_run(run, copy)
  shutil.rmtree(copy / 'checkpoints' / '4')  # as the message says
  assert train.evaluate_run(run, copy)['epoch'] == 3


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    whole, tmp_path, capfd):
  run, workdir, results = whole
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  (copy / 'results.json').unlink()
  _truncate(copy, 4)
  _assert_same(train.train(run, copy), results)
  warning, *lines = capfd.readouterr().err.splitlines()
  assert f' Warning: Cannot read {copy}/checkpoints/4' in warning
  assert 'Going on after epoch 3' in warning
  assert not [line for line in lines if 'Error' in line or 'Traceback' in line]
  assert (copy / 'damaged' / 'checkpoint_4').exists()
  chex.assert_trees_all_equal(_saved(run, copy, 4), _saved(run, workdir, 4))
  chex.assert_trees_all_equal(_pool(copy), _pool(workdir))
  (copy / 'results.json').unlink()
  for epoch in (3, 4):
    _truncate(copy, epoch)
  with pytest.raises(OSError, match=f'remove {copy}/checkpoints to start'):
    train.train(run, copy)


def test_best_epoch_is_not_chosen_by_a_damaged_number(tmp_path):
  config = _config(**{'eval.select': 'test_clean', 'eval.every': 1,
                      'eval.curve_attacks': ('clean',)})
  run, results = _run(config, tmp_path)
  path = (tmp_path / 'checkpoints' / str(results['epoch'])
          / '_CHECKPOINT_METADATA')
  path.write_text(path.read_text().replace('test_clean', 'test_klean'))
  with checkpointing.Checkpoints(tmp_path, None, 'test_clean') as checkpoints:
    assert checkpoints.selected_epoch != results['epoch'] or len(list(
        (tmp_path / 'checkpoints').iterdir())) == 1


def test_evaluation_without_a_checkpoint(tmp_path):
  run = tiny.build(_config())
  with pytest.raises(ValueError, match='train first'):
    work_directory.claim(tmp_path, run.identity, start=False)
  assert not list(tmp_path.iterdir())


def test_evaluation_of_another_run(whole):
  _, workdir, _ = whole
  other = tiny.build(_config(seed=7))
  before = _files(workdir)
  with pytest.raises(ValueError, match='seed is 7, was'):
    train.evaluate_run(other, workdir)
  assert _files(workdir) == before


def test_evaluation_of_an_unfinished_run_does_not_finish_it(whole, tmp_path):
  run, _ = _run(_config(), tmp_path, stop_after=2)
  assert train.evaluate_run(run, tmp_path)['epoch'] == 2
  assert train.finished_results(tmp_path) is None
  _, results = _run(_config(), tmp_path)
  assert train.finished_results(tmp_path) == results
  _assert_same(results, whole[2])


def test_workdir_without_a_checkpoint_takes_another_config(tmp_path):
  # A corrected setting must not be refused for what never ran.
  for seed in (1, 2):
    tiny.claim(_config(seed=seed), tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 2


def test_damaged_config_of_a_workdir_is_named(whole, tmp_path):
  run, _, _ = whole
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  (tmp_path / 'config.json').write_text('')
  with pytest.raises(ValueError, match='config.json'):
    work_directory.claim(tmp_path, run.identity)


def test_workdir_of_another_config(whole):
  run, workdir, _ = whole
  other = tiny.build(_config(seed=3, **{'inner.gamma': 0.1}))
  with pytest.raises(ValueError) as error:
    work_directory.claim(workdir, other.identity)
  message = str(error.value)
  assert 'seed is 3, was 0' in message
  assert 'inner.gamma is 0.1, was 0.3' in message
  assert '\n' not in message


def test_workdir_takes_other_evaluation_settings(whole):
  run, workdir, _ = whole
  other = tiny.build(_config(**{'eval.batch_size': 8,
                                      'max_minutes': 3.}))
  work_directory.claim(workdir, other.identity)


def test_saved_student_is_evaluated_otherwise(whole, tmp_path):
  _, workdir, results = whole
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  path = tmp_path / 'own.npz'
  np.savez(path, x=np.zeros((6, 8, 8, 1), np.uint8), y=np.arange(6) + 4)
  run = tiny.build(_config(eps=0.05, **{
      'data.name': str(path), 'data.noise_examples': 0}))
  with pytest.raises(ValueError, match='data.name is .* eps is 0.05'):
    work_directory.claim(copy, run.identity)  # to go on with the training
  work_directory.claim(copy, run.identity, start=False)
  other = tiny.build(_config(seed=3))
  with pytest.raises(ValueError, match='seed is 3'):  # another student
    work_directory.claim(copy, other.identity, start=False)
  evaluation = train.evaluate_run(run, copy)
  assert evaluation['num_examples'] == 6 and evaluation['eps'] == 0.05
  # The results of the run itself stay.
  assert train.finished_results(copy) == results


def test_results_of_another_run_are_not_taken_for_this_ones(whole, tmp_path):
  run, workdir, _ = whole
  # As after deleting the checkpoints to start again.
  shutil.copy(workdir / 'results.json', tmp_path)
  with pytest.raises(ValueError, match='config.json'):
    work_directory.claim(tmp_path, run.identity)
  shutil.copy(workdir / 'config.json', tmp_path)
  work_directory.claim(tmp_path, run.identity)
  other = tiny.build(_config(seed=3))
  with pytest.raises(ValueError, match='seed is 3, was 0'):
    work_directory.claim(tmp_path, other.identity)


def test_noise_does_not_pass_for_a_data_set(whole):
  assert whole[2]['dataset'] == 'noise shaped like digits'
