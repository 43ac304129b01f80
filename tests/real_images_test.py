"""Runs on real images: with a teacher, and without, to make one."""

import json

import chex
import jax
import numpy as np
import pytest
import tiny

from configs import variants
from ferd_jax import data
from ferd_jax import train
from ferd_jax.core import reporting
from ferd_jax.models import forward
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import experiment as experiments
from ferd_jax.run import settings
from ferd_jax.run import work_directory
from ferd_jax.synthesis import pool as pools


def _own_data(folder):
  """Returns the path of 400 images: rows, columns or neither, by class."""
  labels = np.arange(400) % 3
  images = np.random.default_rng(0).integers(0, 60, (400, 8, 8, 1), np.uint8)
  images[labels == 0, ::2] += 150
  images[labels == 1, :, ::2] += 150
  path = folder / 'stripes.npz'
  np.savez(path, x=images, y=labels)
  return str(path)


@pytest.fixture(scope='module')
def stripes(tmp_path_factory):
  return _own_data(tmp_path_factory.mktemp('data'))


def _config(path, **changes):
  """Returns the settings of an adversarial training of seconds."""
  config = tiny.config()
  config.teacher.path = config.teacher.arch = ''
  config.student.width = None
  variants.train_adversarially(config)
  config.inner.steps = 2
  config.data.noise_examples = 0
  config.data.name = path
  config.data.split, config.data.train_split = 'test[300:]', 'train[:256]'
  config.data.validation_split = 'train[256:300]'
  config.num_epochs, config.distill.steps = 4, 8
  config.distill.batch_size = 32
  config.distill.schedule = 'one_cycle'
  config.eval.every, config.eval.select = 2, 'validation_clean'
  config.eval.curve_attacks = ('clean',)
  config.eps = 0.02
  config.update_from_flattened_dict(changes)
  return config


def _saved(experiment, workdir, epoch):
  with checkpointing.Checkpoints(
      workdir, experiment.method, experiment.config.eval.select) as checkpoints:
    state = checkpoints.restore(
        experiment.initial_state(experiment.config.seed), epoch)
  return jax.tree.map(np.asarray, state.replace(
      key=jax.random.key_data(state.key)))


class _Lines(reporting.Reporter):
  """Keeps the lines that are shown."""

  def __init__(self):
    self.lines = []

  def line(self, text):
    self.lines.append(text)


@pytest.fixture(scope='module')
def trained(stripes, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('teacher')
  experiment = tiny.claim(_config(stripes), workdir)
  reporter = _Lines()
  results = train.train(experiment, workdir, reporter=reporter)
  return experiment, workdir, results, reporter.lines


def test_a_network_learns_from_labels_alone(trained):
  experiment, workdir, results, _ = trained
  assert experiment.teacher is None and not experiment.teachers
  assert list(results['models']) == ['student']
  assert results['models']['student']['clean']['average'] > 0.5
  lines = [json.loads(line) for line in
           (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert lines[-1]['distill/loss'] < lines[0]['distill/loss']
  assert 'distill/adv_accuracy' in lines[0]
  assert not any(name.startswith('synthesis/') for name in lines[0])
  # The epoch is chosen on images that are not those of the results.
  assert 'validation_clean' in lines[1] and 'test_clean' not in lines[1]
  assert not (workdir / 'pool').exists()


def test_all_that_a_run_leaves_says_that_it_had_data(trained, stripes):
  experiment, workdir, results, lines = trained
  assert results['training_data'].items() >= {
      'dataset': stripes, 'split': 'train[:256]', 'num_examples': 256}.items()
  words = 'NOT DATA-FREE: the student was trained on 256 real images'
  assert any(words in line for line in lines)
  card = json.loads((workdir / 'export' / 'model_card.json').read_text())
  assert card['training_data'] == results['training_data']
  assert card['teacher'] is None
  assert words in (workdir / 'export' / 'README.md').read_text()


def test_killed_training_goes_on_bit_for_bit(trained, stripes, tmp_path,
                                             monkeypatch):
  experiment, workdir, results, _ = trained
  epoch = train.epoch

  def killed(method, steps, state, teachers, pool, on_step):
    if int(state.epoch) == 2:
      def on_step(phase, values):
        del phase, values
        raise KeyboardInterrupt
    return epoch(method, steps, state, teachers, pool, on_step)
  again = tiny.claim(_config(stripes), tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'epoch', killed)
    with pytest.raises(KeyboardInterrupt):
      train.train(again, tmp_path)
  resumed = train.train(tiny.claim(_config(stripes), tmp_path), tmp_path)
  chex.assert_trees_all_equal(_saved(again, tmp_path, 4),
                              _saved(experiment, workdir, 4))
  assert resumed['models'] == results['models']


def test_other_images_are_another_run(trained, stripes, tmp_path):
  _, workdir, _, _ = trained
  with np.load(stripes) as arrays:
    x, y = arrays['x'].copy(), arrays['y']
  x[0, 0, 0, 0] += 1
  np.savez(tmp_path / 'stripes.npz', x=x, y=y)
  config = _config(str(tmp_path / 'stripes.npz'))
  with pytest.raises(ValueError, match='training_data.digest'):
    work_directory.claim(workdir, tiny.build(config).identity)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
def test_numbers_do_not_depend_on_devices(mode, stripes):
  ends = []
  for parallel, devices in (('jit', 1), (mode, 4)):
    config = _config(stripes, parallel=parallel)
    config.distill.steps = 2
    experiment = tiny.build(config, devices)
    method = experiment.method
    done = train.epoch(method, experiment.steps, experiment.initial_state(0),
                       {}, pools.Pool.empty(0, method.image_shape))
    ends.append(jax.tree.map(np.asarray, done.state.student.variables))
    assert done.images.shape == (32, 8, 8, 1)
  chex.assert_trees_all_close(*ends, atol=1e-5)


def test_an_export_is_a_teacher(trained, stripes):
  experiment, workdir, _, _ = trained
  variables = _saved(experiment, workdir, 4).student.variables
  config = tiny.config()
  config.data.noise_examples = 0
  config.data.name, config.data.split = stripes, 'test[300:]'
  config.teacher.width = None
  for name in ('student.pt', 'student.npz'):
    config.teacher.path = str(workdir / 'export' / name)
    config.teacher.arch = 'tiny' if name.endswith('.pt') else 'auto'
    other = tiny.build(config)
    chex.assert_trees_all_equal(dict(other.teacher.variables), dict(variables))
  logits = forward.logits(other.teacher.model, other.teacher.variables,
                          other.examples.images / np.float32(255))
  assert np.mean(np.argmax(logits, -1) == other.examples.labels) > 0.5


def test_saved_network_is_evaluated_without_training_images(trained):
  _, workdir, results, _ = trained
  config = experiments.saved_config(workdir)
  config.data.train_split = 'nowhere'  # It is not read.
  run = experiments.build(config, tuple(jax.devices()[:1]), to_train=False)
  work_directory.claim(workdir, run.identity, start=False)
  again = train.evaluate_run(run, workdir)
  assert again['models'] == results['models']
  assert again['training_data'] == results['training_data']


@pytest.mark.parametrize(('changes', 'words'), [
    ({'data.split': 'test[200:]'},
     r"data.split='test\[200:\]' .*56 of 200 are the same"),
    ({'data.validation_split': 'train[:20]'}, 'data.validation_split='),
    ({'data.train_split': 'train[400:]'}, 'selects no example'),
    ({'eval.select': 'test_clean'}, "eval.select='test_clean'"),
    ({'eval.select': 'synthetic_pgd'}, "select='synthetic_pgd'.*no teacher"),
    ({'teacher.path': 'net.pt'}, "teacher.path='net.pt' to be unset")])
def test_mistakes(changes, words, stripes):
  with pytest.raises(ValueError, match=words):
    tiny.build(_config(stripes, **changes))


@pytest.mark.parametrize(('group', 'part', 'words'), [
    ('synthesis', 'ferd', "synthesis.name='ferd' to need no teacher"),
    ('sampler', 'margin_softmax', "not 'robust'"),
    ('inner', 'utae', "a teacher 'robust', .*there is none"),
    ('outer', 'decoupled_kl', "a teacher 'robust', .*there is none")])
def test_a_part_that_needs_a_teacher_says_so(group, part, words, stripes):
  config = _config(stripes)
  settings.use(config, group, part)
  with pytest.raises(ValueError, match=words):
    tiny.build(config)


def test_distillation_on_real_images_by_class(stripes):
  """FERD's student step, its sampler and its loss on real images."""
  config = tiny.config(warmup_epochs=0)
  settings.use(config, 'synthesis', 'real')
  config.data.noise_examples = 0
  config.data.name, config.data.split = stripes, 'test[300:]'
  config.data.train_split = 'train[:300]'
  config.distill.batch_size, config.distill.steps = 32, 3
  experiment = tiny.build(config)
  method, steps = experiment.method, experiment.steps
  assert isinstance(method.training_data, data.Examples)
  before = experiment.initial_state(0)
  taken = []
  probs = [0., 0.25, 0.75]

  def noting(phase, frozen, key, real):
    taken.extend(np.asarray(real.labels))
    return steps.images(phase, frozen, key, real)
  done = train.epoch(
      method, steps._replace(images=noting),
      before.replace(sampler=before.sampler.replace(
          probs=jax.numpy.asarray(probs, jax.numpy.float32))),
      tiny.build(config).place_teachers(),
      pools.Pool.empty(0, method.image_shape))
  times = np.bincount(taken, minlength=3)
  assert times[0] == 0 and times.sum() == 3 * 32
  assert 60 <= times[2] <= 84
  # What the sampler measures are real images, too.
  assert set(done.labels) <= {1, 2}
  assert np.asarray(done.state.sampler.measured).sum() == 2
