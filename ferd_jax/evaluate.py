"""Accuracy under attack, per class, on fixed-shape batches."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

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
    images: `[B, H, W, C]`, uint8 in 0..255 or float in [0, 1].
    labels: int32 `[B]`.
    indices: int32 `[B]`, position in the data set: an image's randomness
      depends on it and not on the batch size.
    mask: bool `[B]`, False for padding.
  """
  images: jax.Array
  labels: jax.Array
  indices: jax.Array
  mask: jax.Array


def correct_per_class(model: nn.Module, attack: attacks.PGD | None,
                      num_classes: int, variables: Any,
                      batch: EvaluationBatch, key: jax.Array, *,
                      axis_name: str | None = None) -> jax.Array:
  """Returns how many images of each class survive the attack, int32 `[C]`.

  Args:
    model: module under evaluation.
    attack: None for clean accuracy.
    num_classes: C.
    variables: of the model.
    batch: images and labels.
    key: typed PRNG key of the whole evaluation.
    axis_name: mapped axis over which the examples are sharded.
  """
  images = batch.images
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255
  logits_fn = forward.logits_fn(model, variables)
  if attack is not None:
    keys = collectives.example_keys(key, batch.indices)
    images = attack(logits_fn, keys, images, batch.labels)
  correct = jnp.argmax(logits_fn(images), axis=-1) == batch.labels
  classes = jax.nn.one_hot(batch.labels, num_classes, dtype=jnp.int32)
  hits = (correct & batch.mask).astype(jnp.int32)
  return collectives.psum(jnp.sum(hits[:, None] * classes, axis=0), axis_name)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """A model's accuracy under named attacks, compiled once.

  Attributes:
    attack_steps: compiled `correct_per_class` by attack name.
    parallel: the device mapping they were compiled for.
    num_classes: C.
    batch_size: images a step, over all devices.
    ddof: of the NSD.
  """
  attack_steps: dict[str, Callable]
  parallel: parallels.Parallel
  num_classes: int
  batch_size: int
  ddof: int

  def __call__(self, variables: Any, images: np.ndarray, labels: np.ndarray,
               key: jax.Array) -> dict[str, dict]:
    """Returns, by attack name, the summary and the accuracy per class.

    Args:
      variables: of the model.
      images: `[N, H, W, C]`, uint8 or float in [0, 1].
      labels: int `[N]`.
      key: typed PRNG key.

    Returns:
      `metrics.summarise` of each attack, and `per_class`, a list of C
      accuracies (NaN for a class without images).
    """
    labels = np.asarray(labels, np.int32)
    batches = [self.parallel.shard(batch)
               for batch in _batches(images, labels, self.batch_size)]
    counts = np.bincount(labels, minlength=self.num_classes)
    report = {}
    for name, attack_step in self.attack_steps.items():
      # Dispatched without waiting, then read.
      correct = [attack_step(variables, batch, key) for batch in batches]
      correct = np.sum([np.asarray(c) for c in correct], axis=0)
      with np.errstate(invalid='ignore'):
        per_class = (correct / counts).tolist()
      report[name] = metrics.summarise(correct, counts, ddof=self.ddof) | {
          'per_class': per_class}
    return report


def evaluator(model: nn.Module, names: tuple[str, ...], eps: float,
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
  def compiled(name):
    attack = None if name == CLEAN else attacks.preset(name, eps)
    return parallel.compile(
        functools.partial(correct_per_class, model, attack, num_classes),
        in_specs=(parallels.REPLICATED, parallels.SHARDED,
                  parallels.REPLICATED),
        out_specs=parallels.REPLICATED)
  return Evaluator({name: compiled(name) for name in names}, parallel,
                   num_classes, batch_size, ddof)


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
    yield EvaluationBatch(
        images=pad(images), labels=pad(labels),
        indices=pad(np.arange(len(labels), dtype=np.int32)),
        mask=np.arange(batch_size) < size)


