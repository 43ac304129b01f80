"""Tests of ferd_jax.evaluation.results: what an evaluation says of doubts."""

import as_if_trained
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax.core import parallel
from ferd_jax.core import reporting
from ferd_jax.data import examples
from ferd_jax.evaluation import results
from ferd_jax.evaluation import tables

NUM_CLASSES, SHAPE = 4, (3, 3, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), np.uint8)


class Lines(reporting.Reporter):
  """Keeps what it is told."""

  def __init__(self):
    self.lines = []

  def line(self, text):
    self.lines.append(text)


class Linear(nn.Module):
  """A linear classifier; `levels` quantises its images."""
  levels: int | None = None

  @nn.compact
  def __call__(self, x):
    if self.levels:
      x = jnp.round(x * self.levels) / self.levels
    return nn.Dense(NUM_CLASSES)((x - 0.5).reshape(len(x), -1))


def subject(*named, right=True):
  variables = named[0][1].init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  logits = named[0][1].apply(variables, IMAGES.astype(np.float32) / 255)
  labels = np.asarray(jnp.argmax(logits, -1), np.int32)
  return results.Subject(
      name='linear', models={name: (model, variables)
                             for name, model in named}, dataset='own',
      examples=examples.Examples(
          IMAGES, labels if right else (labels + 1) % NUM_CLASSES,
          tuple('abcd')))


def test_diagnosis_is_kept_and_printed(tmp_path):
  protocol = results.Protocol(
      attacks=('clean',), eps=0.02, batch_size=4, diagnosed_examples=3,
      curve_radii=(0.01,))
  both = subject(('sound', Linear()), ('masked', Linear(8)))
  def run(reporter=reporting.SILENT):
    return results.evaluate(both, protocol, parallel.create('jit'),
                            state_dir=tmp_path, reporter=reporter)
  terminal = reporting.Terminal(active=True)
  with terminal.kept():  # Else it forgets what was done.
    found = run(terminal)
    assert terminal.left == 0
  assert set(found['diagnosis']) == {'sound', 'masked'}
  assert found['diagnosis']['sound']['num_images'] == 3
  failed = {name: [check['name'] for check in values['checks']
                   if not check['passed']]
            for name, values in found['diagnosis'].items()}
  assert not failed['sound'] and 'zero gradients' in failed['masked']
  text = tables.text(found)
  assert 'sound: can these numbers be believed? 3 images' in text
  assert 'zero gradients: of so many images' in text
  assert len(list(tmp_path.glob('diagnosis-*.json'))) == 2
  with terminal.kept():  # What is kept is not to come, either.
    assert run(terminal) == found
    assert not terminal.left


def test_evaluations_of_one_model_share_what_is_found(tmp_path):
  protocol = results.Protocol(
      attacks=('clean', 'fgsm', 'autoattack_fast'), eps=0.02, batch_size=4,
      target_examples=2, diagnosed_examples=3)
  both = subject(('teacher', Linear()), ('student', Linear(8)))
  def run(name):
    reporter = Lines()
    found = results.evaluate(
        both, protocol, parallel.create('jit'), state_dir=tmp_path / name,
        found_dirs={'teacher': tmp_path / 'shared'}, reporter=reporter)
    return found, [line for line in reporter.lines if 'found before' in line]
  first, before = run('first')
  assert not before
  second, before = run('second')
  for part in ('models', 'targets', 'diagnosis'):
    assert second[part]['teacher'] == first[part]['teacher']
  assert [line.split(':')[0] for line in before] == [
      f'teacher, {part}' for part in (*protocol.attacks, 'targets',
                                      'diagnosis')]
  assert len(list((tmp_path / 'shared').iterdir())) == 5
  assert len(list((tmp_path / 'second').glob('*.json'))) == 5  # the student's
  # Nothing that is unfinished is shared.
  assert not list((tmp_path / 'shared').glob('*.npz'))


def test_a_model_that_is_never_right_is_not_diagnosed():
  protocol = results.Protocol(attacks=('clean',), eps=0.02, batch_size=12,
                              diagnosed_examples=3)
  reporter = Lines()
  found = results.evaluate(subject(('wrong', Linear()), right=False), protocol,
                           parallel.create('jit'), reporter=reporter)
  assert 'diagnosis' not in found
  assert found['models']['wrong']['clean']['average'] == 0
  assert any('wrong is not diagnosed' in line for line in reporter.lines)


@pytest.mark.parametrize('straight_through', [False, True])
def test_mean_sparse_is_doubted(straight_through):
  model = models.build('meansparse_dm_wrn_10_1', 10, width=1,
                       straight_through=straight_through)
  variables = as_if_trained.random_variables(model, (8, 8, 1), seed=0)
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
  sparse = results.Subject(
      name='sparse', models={'model': (model, variables)}, dataset='own',
      examples=examples.Examples(images, np.arange(4, dtype=np.int32),
                                 tuple('0123456789')))
  reporter = Lines()
  found = results.evaluate(
      sparse, results.Protocol(('clean', 'fgsm'), eps=0.1, batch_size=4),
      parallel.create('jit'), reporter=reporter)
  said = [any('AutoAttack overrate' in warning for warning in found['models'][
      'model'][attack]['warnings']) for attack in ('clean', 'fgsm')]
  assert said == [False, not straight_through]
  assert any('overrate' in line for line in reporter.lines) == (
      not straight_through)
