"""Work directories of this version, of older ones, and damaged ones."""

import functools
import json
import shutil

from bucket import bucket  # noqa: F401
import jax
import numpy as np
import pytest
import tiny

from ferd_jax import models
from ferd_jax import train
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import experiment as experiments
from ferd_jax.run import lock
from ferd_jax.run import work_directory
from ferd_jax.weights import native


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  experiment = tiny.claim(tiny.config(num_epochs=2), workdir)
  train.train(experiment, workdir)
  return experiment, workdir


@pytest.fixture
def copy(whole, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(whole[1], workdir)
  return workdir


def _change(workdir, **changes):
  """Changes the saved identity; None removes a setting."""
  path = workdir / 'config.json'
  identity = json.loads(path.read_text())
  for name, value in changes.items():
    *groups, leaf = name.split('.')
    group = identity
    for each in groups:
      group = group[each]
    if value is None:
      del group[leaf]
    else:
      group[leaf] = value
  path.write_text(json.dumps(identity))


def test_in_a_bucket(bucket, monkeypatch):  # noqa: F811
  """Claimed, compared and locked; its checkpoints are Orbax' own matter."""
  monkeypatch.setattr(lock, '_SETTLED', 0.)
  place = 'gs://bucket//folder/run'
  experiment = tiny.build(tiny.config())
  work_directory.claim(place, experiment.identity)
  saved = work_directory.saved_identity(place)
  assert saved == json.loads(json.dumps(dict(experiment.identity)))
  assert sorted(path.name for path in (bucket / 'run').iterdir()) == [
      'config.json']  # The lock is given back.
  assert not work_directory.saved_epochs(place)
  (bucket / 'run' / 'checkpoints' / '3').mkdir(parents=True)
  (bucket / 'run' / 'checkpoints' / '3' / 'file').write_text('')
  assert work_directory.saved_epochs(place) == [3]
  (bucket / 'run' / 'checkpoints').rmtree()
  (bucket / 'run' / 'results.json').write_text('{}')
  other = tiny.build(tiny.config(seed=9))
  with pytest.raises(ValueError, match='seed is 9, was'):
    work_directory.claim(place, other.identity)
  with lock.held(place), pytest.raises(ValueError, match='to be free'):
    monkeypatch.setattr(lock, '_wait_for_a_sign', _sign_of_life)
    with lock.held(place):
      pass


def _sign_of_life(path, descriptor, reporter):
  del descriptor, reporter
  raise lock._refusal(path, lock._read(path))


def test_setting_that_an_older_run_did_not_have_had_its_default(whole, copy):
  experiment, _ = whole
  _change(copy, **{'inner.source': None, 'eval.nsd_ddof': None,
                   'max_minutes': None, 'teachers': None})
  work_directory.claim(copy, experiment.identity)
  other = tiny.build(tiny.config(num_epochs=2, **{'inner.source': 'teacher'}))
  with pytest.raises(ValueError, match="inner.source is 'teacher', was 'stud"):
    work_directory.claim(copy, other.identity)
  config = experiments.saved_config(copy)
  assert config.inner.source == 'student' and not config.teachers


def test_setting_that_this_version_does_not_have_is_named(whole, copy):
  experiment, _ = whole
  _change(copy, **{'inner.later': 3})
  with pytest.raises(ValueError, match='inner.later was 3, and is no setting'):
    work_directory.claim(copy, experiment.identity)
  with pytest.raises(ValueError, match='does not have: inner.later'):
    experiments.saved_config(copy)


def test_networks_from_python_are_evaluated_there(tmp_path):
  model = tiny.TwoLayers(10)
  variables = models.init_variables(model, jax.random.key(0), (8, 8, 1))
  for networks in ({'student': model}, {'teacher': (model, variables)}):
    workdir = tmp_path / next(iter(networks))
    tiny.claim(tiny.config(), workdir, **networks)
    with pytest.raises(ValueError, match='networks that were passed from Pyth'):
      experiments.saved_config(workdir)


def test_module_with_an_address_in_its_name_is_the_same_in_any_process():
  class Net(tiny.TwoLayers):
    act: object = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
  identity = tiny.build(tiny.config(), student=Net(10)).identity
  assert 'leaky_relu' in identity['student']['module']
  assert '0x' not in identity['student']['module']


@pytest.mark.parametrize('changes', [
    {'student': None}, {'sampler': 'x'}, {'eps': 'much'}, {'data': 3}])
def test_identity_of_other_types(copy, changes):
  path = copy / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(ValueError, match=r'config\.json|does not have'):
    experiments.saved_config(copy)


@pytest.mark.parametrize('start', [True, False])
def test_work_directory_of_another_format(whole, copy, start):
  experiment, _ = whole
  _change(copy, format=None, ferd_jax=None)
  with pytest.raises(ValueError) as error:
    work_directory.claim(copy, experiment.identity, start=start)
  message = str(error.value)
  for words in ('format 1', f'format {work_directory.FORMAT}',
                'ferd_jax 0.1.0', 'Nothing in it is damaged'):
    assert words in message
  assert 'without' not in message.lower()  # no advice to delete anything
  (copy / 'export').mkdir(exist_ok=True)
  (copy / 'export' / 'student.npz').touch()
  with pytest.raises(ValueError, match=r'export.student\.npz'):
    work_directory.claim(copy, experiment.identity, start=start)


def _restore(workdir, experiment, like):
  with checkpointing.Checkpoints(workdir, experiment.method) as checkpoints:
    return checkpoints.restore(like, 2)


def test_state_of_another_version_is_compared_before_it_is_read(whole):
  experiment, workdir = whole
  like = experiment.initial_state(0)
  _restore(workdir, experiment, like)
  more = like.replace(sampler={'probs': like.sampler.probs,
                               'later': np.zeros(3)})
  other = like.replace(sampler=like.sampler.replace(probs=np.zeros(7)))
  for state, words in (
      (more, ['it lacks sampler.later', 'besides sampler.fragility']),
      (other, ['of other types or shapes are sampler.probs'])):
    with pytest.raises(ValueError) as error:
      _restore(workdir, experiment, state)
    for word in (*words, 'checkpoints/2', 'nothing is damaged'):
      assert word in str(error.value)
    assert 'Without this directory' not in str(error.value)


def test_state_is_restored_as_it_was_saved(whole):
  experiment, workdir = whole
  state = _restore(workdir, experiment, experiment.initial_state(0))
  again = _restore(workdir, experiment, experiment.initial_state(5))
  for one, other in zip(*map(jax.tree.leaves, (
      state.replace(key=()), again.replace(key=()))), strict=True):
    np.testing.assert_array_equal(one, other)
  assert state.epoch == 2


@pytest.mark.parametrize('text', ['[]', '{}', '3', '{', '', None])
def test_identity_that_is_none_is_made_again(whole, copy, text, capsys):
  experiment, workdir = whole
  path = copy / 'config.json'
  if text is None:
    path.unlink()
  else:
    path.write_text(text)
  other = tiny.build(tiny.config(num_epochs=2, seed=3))
  with pytest.raises(ValueError, match='seed is 3, was 0'):
    work_directory.claim(copy, other.identity)
  assert experiments.saved_config(copy).num_epochs == 2  # which only reads
  assert not path.exists() or path.read_text() == text
  work_directory.claim(copy, experiment.identity)
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f'Warning: Cannot read {path}: ')
  assert path.read_text() == (workdir / 'config.json').read_text()


@pytest.mark.parametrize('text', ['[]', '{'])
def test_identity_that_no_checkpoint_has(whole, copy, text):
  (copy / 'config.json').write_text(text)
  for path in copy.glob('checkpoints/*/_CHECKPOINT_METADATA'):
    path.write_text(text)
  with pytest.raises(ValueError, match=r'Cannot read .*config\.json.*put the '):
    work_directory.claim(copy, whole[0].identity)


@pytest.mark.parametrize('text', ['[]', '{}', '{"models": {}}', '', 'null', '3',
                                  '{"models": {"student": 1}}'])
def test_results_that_are_none_are_made_again(copy, text, capsys):
  path = copy / 'results.json'
  path.write_text(text)
  assert train.finished_results(copy) is None
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f'Warning: Cannot read {path}: ')
  assert (copy / 'damaged' / 'results.json').read_text() == text
  shutil.rmtree(copy / 'checkpoints')
  path.write_text(text)
  with pytest.raises(ValueError, match='without this file the run starts anew'):
    train.finished_results(copy)
  assert path.read_text() == text


def test_teacher_may_move_but_not_change(whole, copy):
  experiment, _ = whole
  config = tiny.config(num_epochs=2)
  _change(copy, **{'teacher.path': 'elsewhere.pt'})
  work_directory.claim(copy, experiment.identity)
  teacher = experiment.teacher
  variables = jax.tree.map(lambda leaf: leaf + 1, teacher.variables)
  other = tiny.build(config, teacher=(teacher.model, variables))
  with pytest.raises(ValueError, match='teacher_digests.robust'):
    work_directory.claim(copy, other.identity)


def test_teacher_file_that_moved_is_gone_or_was_changed(tmp_path):
  shape, workdir = (8, 8, 1), tmp_path / 'run'
  network = native.Network('tiny', 1, 10)
  def write(path, seed):
    native.write(path, network, models.init_variables(
        network.build(), jax.random.key(seed), shape))
    # Which test images are beside the point, but noise is refused.
    return tiny.config(**{'teacher.path': str(path), 'data.noise_examples': 0})
  config = write(tmp_path / 'teacher.npz', 0)
  tiny.claim(config, workdir)
  (workdir / 'checkpoints' / '1').mkdir(parents=True)
  tiny.claim(write(tmp_path / 'moved.npz', 0), workdir)
  (tmp_path / 'teacher.npz').unlink()
  with pytest.raises(OSError, match=r'teacher\.npz'):
    tiny.build(config)
  write(tmp_path / 'teacher.npz', 1)
  with pytest.raises(ValueError, match='teacher_digests.robust is .*, was '):
    tiny.claim(config, workdir)
