"""Synthetic and test images where the teacher sees them: in two dimensions.

Principal components of what the teacher's last layer reads, of the test images:
they are the same whenever they are computed, and distances mean something.
"""

from collections.abc import Iterator
import dataclasses

import jax
import numpy as np

from ferd_jax.core import errors
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward
from ferd_jax.reports import records
from ferd_jax.run import experiment as experiments

_MOST = 600  # images of each kind
_BATCH = 50


@dataclasses.dataclass(frozen=True)
class Embedding:
  """Points in two dimensions.

  Attributes:
    test: `[N, 2]`, of test images.
    test_labels: int `[N]`.
    pool: `[M, 2]`, of synthetic images, evenly from all epochs.
    pool_labels: int `[M]`, those that they were made for.
    explained: shares of the variance of the test images, of both components.
    num_classes: K.
  """
  test: np.ndarray
  test_labels: np.ndarray
  pool: np.ndarray
  pool_labels: np.ndarray
  explained: tuple[float, float]
  num_classes: int


def embed(run: records.Run, most: int = _MOST) -> Embedding:
  """Returns where the teacher of a run sees test and synthetic images.

  Args:
    run: with a pool; its teacher and test images are loaded.
    most: images of each kind.

  Raises:
    records.Missing: if something of this cannot be loaded.
  """
  pool, pool_labels = _pool(run, most)
  try:
    config = experiments.saved_config(run.workdir)
    config.parallel = 'jit'
    experiment = experiments.build(config, to_train=False)
  except (OSError, ValueError) as error:
    raise records.Missing('not to be computed: teacher or test images cannot '
                          f'be loaded. {errors.reason(error)}') from error
  teacher = experiment.teacher
  if teacher is None:
    raise records.Missing('not there: the run has no teacher')
  examples = experiment.examples
  chosen = np.linspace(0, len(examples.labels) - 1,
                       min(most, len(examples.labels))).astype(int)
  labels = examples.labels[chosen]
  def features(variables, images):
    found = forward.observed(teacher.model, variables, images).features
    return None if found is None else found.reshape(len(images), -1)
  features = jax.jit(features)
  test, made = (
      _in_batches(features, teacher.variables, images)
      for images in (examples.images[chosen], pool))
  if test is None:
    raise records.Missing('not to be computed: the teacher has no last dense '
                          'layer whose input could be looked at')
  mean = test.mean(axis=0)
  _, values, components = np.linalg.svd(test - mean, full_matrices=False)
  # The sign of a component is any: let its largest entry be positive.
  axes = components[:2]
  axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
                        )[:, None]
  shares = values[:2] ** 2 / max(float(np.sum(values ** 2)), 1e-30)
  return Embedding((test - mean) @ axes.T, labels, (made - mean) @ axes.T,
                   pool_labels, (float(shares[0]), float(shares[1])),
                   len(examples.class_names))


def _pool(run, most):
  """Returns synthetic images and labels, evenly from all epochs."""
  epochs = run.pool_epochs()
  if not epochs:
    raise records.Missing('not there: the run has kept no synthetic images')
  images, labels = zip(*_some_of_each(run, epochs, most), strict=True)
  return np.concatenate(images), np.concatenate(labels)


def _some_of_each(run, epochs, most) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  chosen = [epochs[i] for i in np.unique(np.linspace(
      0, len(epochs) - 1, min(len(epochs), most)).astype(int))]
  each = max(1, most // len(chosen))
  for epoch in chosen:
    images, labels = run.pool(epoch)
    yield images[:each], labels[:each]


def _in_batches(features, variables, images):
  """Returns the features `[N, F]`, None if the network has none."""
  found = []
  labels = np.zeros(len(images), np.int32)
  for batch in robustness.batches(images, labels, min(_BATCH, len(images))):
    values = features(variables, batch.images)
    if values is None:
      return None
    found.append(np.asarray(values)[batch.mask])
  return np.concatenate(found)
