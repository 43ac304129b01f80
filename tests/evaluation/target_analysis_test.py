"""Success rates of targeted attacks by source and target class."""

import functools
import json

import jax
import jax.numpy as jnp
import noting
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import models
from ferd_jax.core import parallel
from ferd_jax.evaluation import tables
from ferd_jax.evaluation import target_analysis
from ferd_jax.models import forward

_EPS = 0.3
_ATTACK = target_analysis.targeted_pgd20(_EPS)


@pytest.fixture(scope='module')
def net():
  model = models.build('cifar_resnet8', 3, width=4)
  return model, models.init_variables(model, jax.random.key(0), (8, 8, 1))


@pytest.fixture(scope='module')
def examples(net):
  """Most images are classified right, one is not; no image is of class 2."""
  images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
  logits = np.asarray(forward.logits(*net, images.astype(np.float32) / 255))
  labels = logits[:, :2].argmax(-1).astype(np.int32)
  right = logits.argmax(-1) == labels
  chosen = np.concatenate([
      np.flatnonzero(right & (labels == c))[:5] for c in range(2)])
  wrong = np.flatnonzero(~right)[:1]
  chosen = np.concatenate([chosen, wrong])
  return images[chosen], labels[chosen]


@pytest.fixture(scope='module')
def expected(net, examples):
  """Counts from the attack called directly, one target after the other."""
  model, variables = net
  images = jnp.asarray(examples[0], jnp.float32) / 255
  labels = examples[1]
  attack = attacks.jit(_ATTACK, functools.partial(forward.logits, model))
  clean = np.asarray(forward.logits(model, variables, images)).argmax(-1)
  reached, fooled, tried = np.zeros((3, 3, 3))
  for offset in (1, 2):
    targets = (labels + offset) % 3
    result = attack.run(variables, jax.random.key(1), images, labels, targets)
    for i in np.flatnonzero(clean == labels):
      cell = labels[i], targets[i]
      tried[cell] += 1
      reached[cell] += result.predictions[i] == targets[i]
      fooled[cell] += bool(result.success[i])
  return reached, fooled, tried


@pytest.mark.parametrize('batch_size, num_devices', [(4, 1), (16, 1), (4, 4)])
def test_rates_do_not_depend_on_batches_or_devices(
    net, examples, expected, batch_size, num_devices):
  model, variables = net
  mapping = parallel.create('auto', tuple(jax.devices()[:num_devices]))
  analysis = target_analysis.TargetAnalysis(model, _ATTACK, 3, batch_size,
                                            mapping)
  reporter = noting.Reporter()
  matrix = analysis(mapping.replicate(variables), *examples,
                    jax.random.key(1), reporter=reporter)
  reached, fooled, tried = expected
  with np.errstate(invalid='ignore'):
    np.testing.assert_array_equal(matrix.reached, reached / tried)
    np.testing.assert_array_equal(matrix.fooled, fooled / tried)
  np.testing.assert_array_equal(matrix.counts, tried.max(1))
  assert matrix.json_values()['num_examples'] == len(examples[1])
  assert tried.sum() > 0 and reached.sum() > 0
  (task,) = reporter.tasks
  assert task.started == ('targets', 2 * len(examples[1]), 'image', 0)
  assert sum(task.counts) == 2 * len(examples[1]) and task.closed
  assert np.isnan(np.diag(matrix.reached)).all()
  known = ~np.isnan(matrix.reached)
  assert (matrix.reached[known] <= matrix.fooled[known]).all()


def _matrix(reached, counts):
  reached = np.array(reached, float)
  return target_analysis.TargetMatrix(reached, reached, np.array(counts))


def test_summary():
  nan = np.nan
  values = _matrix([[nan, 0.2, 0.4], [0.6, nan, 0.6], [nan, nan, nan]],
                   [10, 20, 0]).json_values()
  cells = np.array([0.2, 0.4, 0.6, 0.6])
  np.testing.assert_allclose(values['mean'], cells.mean())
  np.testing.assert_allclose(values['unevenness'], cells.std() / cells.mean())
  np.testing.assert_allclose(values['source_weakness'], [0.3, 0.6, nan])
  np.testing.assert_allclose(values['target_attraction'], [0.6, 0.2, 0.5])
  np.testing.assert_allclose(values['source_unevenness'], [1 / 3, 0, nan])
  assert values['easiest'] == [1, 0, 0.6]
  assert values['hardest'] == [0, 1, 0.2]


def test_nothing_attacked():
  values = _matrix(np.full((2, 2), np.nan), [0, 0]).json_values()
  assert np.isnan(values['mean']) and np.isnan(values['unevenness'])
  assert values['easiest'] is None and values['hardest'] is None
  json.dumps(tables.json_values(values), allow_nan=False)
