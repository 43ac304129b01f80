"""Accuracy under attack, per class, on fixed-shape batches."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ferd_jax import attacks
from ferd_jax import collectives
from ferd_jax import forward
from ferd_jax import metrics
from ferd_jax import parallel as parallels

CLEAN = 'clean'
ATTACKS = (CLEAN, *attacks.PRESETS)


class EvaluationBatch(flax.struct.PyTreeNode):
  """Images to attack; the last batch is padded to the shape of the others.

  Attributes:
    images: float32 `[B, H, W, C]` in [0, 1].
    labels: int32 `[B]`.
    indices: int32 `[B]`, position in the data set: an image's randomness
      depends on it and not on the batch size.
    mask: bool `[B]`, False for padding.
  """
  images: jax.Array
  labels: jax.Array
  indices: jax.Array
  mask: jax.Array


def correct_per_class(model: nn.Module, num_classes: int, variables: Any,
                      images: jax.Array, batch: EvaluationBatch, *,
                      axis_name: str | None = None) -> jax.Array:
  """Returns how many images of each class are classified right, int32 `[C]`.

  Args:
    model: module under evaluation.
    num_classes: C.
    variables: of the model.
    images: `[B, H, W, C]`, those of the batch, attacked or not.
    batch: for labels and mask.
    axis_name: mapped axis over which the examples are sharded.
  """
  predictions = jnp.argmax(forward.logits(model, variables, images), axis=-1)
  hits = ((predictions == batch.labels) & batch.mask).astype(jnp.int32)
  classes = jax.nn.one_hot(batch.labels, num_classes, dtype=jnp.int32)
  return collectives.psum(jnp.sum(hits[:, None] * classes, axis=0), axis_name)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Measures a model's accuracy under named attacks; compiled once.

  Attributes:
    attacks: compiled attacks by name (see `attacks.jit`), None for
      clean images.
    count: compiled `correct_per_class`.
    parallel: the device mapping that they were compiled for.
    num_classes: C.
    batch_size: images a step, over all devices.
    ddof: of the NSD.
  """
  attacks: Mapping[str, Callable | None]
  count: Callable
  parallel: parallels.Parallel
  num_classes: int
  batch_size: int
  ddof: int

  def __call__(self, variables: Any, images: np.ndarray, labels: np.ndarray,
               key: jax.Array,
               names: Sequence[str] | None = None) -> dict[str, dict]:
    """Returns, by attack name, the summary and the accuracy per class.

    Args:
      variables: of the model.
      images: `[N, H, W, C]`, uint8 or float in [0, 1].
      labels: int `[N]`.
      key: typed PRNG key.
      names: of the attacks to run; default: all.

    Returns:
      `metrics.summarise` of each attack, and `per_class`, a list of C
      accuracies (NaN for a class without images).
    """
    labels = np.asarray(labels, np.int32)
    counts = np.bincount(labels, minlength=self.num_classes)
    key = self.parallel.replicate(key)
    correct = {name: []
               for name in (self.attacks if names is None else names)}
    with tqdm.tqdm(
        desc='evaluation', total=len(labels) * len(correct), unit='image',
        leave=False, disable=None if jax.process_index() == 0 else True
    ) as bar:  # None: on a terminal only.
      for batch in _batches(images, labels, self.batch_size):
        size = int(batch.mask.sum())
        batch = self.parallel.shard(batch)
        for name, found in correct.items():
          found.append(np.asarray(self._correct(name, variables, batch, key)))
          bar.update(size)
    report = {}
    for name, found in correct.items():
      total = np.sum(found, axis=0)
      with np.errstate(invalid='ignore'):
        per_class = (total / counts).tolist()
      report[name] = metrics.summarise(total, counts, ddof=self.ddof) | {
          'per_class': per_class}
    return report

  def _correct(self, name, variables, batch, key):
    attack = self.attacks[name]
    images = batch.images
    if attack is not None:
      images = attack(variables, key, images, batch.labels,
                      indices=batch.indices)
    return self.count(variables, images, batch)


def evaluator(model: nn.Module, names: Sequence[str], eps: float,
              num_classes: int, batch_size: int,
              parallel: parallels.Parallel, *, ddof: int = 0) -> Evaluator:
  """Returns an evaluator of a model under the named attacks.

  Args:
    model: module to evaluate.
    names: 'clean' or names of `attacks.PRESETS`.
    eps: radius of the attacks, in [0, 1] pixels.
    num_classes: C.
    batch_size: images a step, over all devices.
    parallel: the device mapping.
    ddof: of the NSD.
  """
  replicated, sharded = parallels.REPLICATED, parallels.SHARDED
  return Evaluator(
      attacks={
          name: None if name == CLEAN else attacks.jit(
              attacks.preset(name, eps),
              functools.partial(forward.logits, model), parallel)
          for name in names},
      count=parallel.compile(
          functools.partial(correct_per_class, model, num_classes),
          in_specs=(replicated, sharded, sharded), out_specs=replicated),
      parallel=parallel, num_classes=num_classes, batch_size=batch_size,
      ddof=ddof)


def predictor(model: nn.Module, batch_size: int,
              parallel: parallels.Parallel) -> Callable[..., np.ndarray]:
  """Returns the function (variables, images) -> predicted labels `[N]`.

  Args:
    model: module that predicts.
    batch_size: images a step, over all devices.
    parallel: the device mapping.
  """
  def predictions(variables, images, *, axis_name=None):
    del axis_name  # Every example is on its own.
    return jnp.argmax(forward.logits(model, variables, images), axis=-1)
  step = parallel.compile(
      predictions, in_specs=(parallels.REPLICATED, parallels.SHARDED),
      out_specs=parallels.SHARDED)

  def predict(variables, images):
    labels = np.zeros(len(images), np.int32)
    found = [parallel.gather(step(variables, parallel.shard(batch.images)))
             for batch in _batches(images, labels, batch_size)]
    return np.concatenate(found)[:len(images)]
  return predict


def _batches(images, labels, batch_size):
  for first in range(0, len(labels), batch_size):
    size = min(batch_size, len(labels) - first)

    def pad(array, first=first, size=size):
      widths = [(0, batch_size - size)] + [(0, 0)] * (array.ndim - 1)
      return np.pad(array[first:first + size], widths)
    padded = pad(images)
    if padded.dtype == np.uint8:
      padded = padded.astype(np.float32) / 255
    yield EvaluationBatch(
        images=padded, labels=pad(labels),
        indices=pad(np.arange(len(labels), dtype=np.int32)),
        mask=np.arange(batch_size) < size)
