"""Where the teacher sees images: principal components of its features."""

import numpy as np
import pytest
import tiny

from ferd_jax.models import forward
from ferd_jax.reports import embedding
from ferd_jax.reports import records


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A claimed run with a pool of two epochs."""
  workdir = tmp_path_factory.mktemp('run')
  experiment = tiny.claim(tiny.config(), workdir)
  rng = np.random.default_rng(0)
  (workdir / 'pool').mkdir()
  for epoch in (1, 2):
    np.savez(workdir / 'pool' / f'epoch_{epoch:05d}.npz',
             images=rng.uniform(size=(5, 8, 8, 1)).astype(np.float32),
             labels=np.arange(5, dtype=np.int32) + epoch)
  return experiment, records.read(workdir)


def test_it_is_numpy_s(run):
  experiment, read = run
  found = embedding.embed(read, most=8)
  again = embedding.embed(read, most=8)
  np.testing.assert_array_equal(found.test, again.test)
  assert found.pool_labels.tolist() == [1, 2, 3, 4, 2, 3, 4, 5]
  chosen = np.linspace(0, len(experiment.examples.labels) - 1, 8).astype(int)
  images = experiment.examples.images[chosen].astype(np.float32) / 255
  features = np.asarray(forward.observed(
      experiment.teacher.model, experiment.teacher.variables, images).features)
  centred = features - features.mean(axis=0)
  values, vectors = np.linalg.eigh(centred.T @ centred)
  for i in (0, 1):
    expected = centred @ vectors[:, -1 - i]
    sign = np.sign(expected @ found.test[:, i])
    np.testing.assert_allclose(found.test[:, i], sign * expected, rtol=1e-3,
                               atol=1e-4 * np.abs(expected).max())
    assert found.explained[i] == pytest.approx(
        values[-1 - i] / values.sum(), rel=1e-3)


def test_without_a_pool_it_says_so(tmp_path):
  tiny.claim(tiny.config(), tmp_path)
  with pytest.raises(records.Missing, match='no synthetic images'):
    embedding.embed(records.read(tmp_path))
