"""Which targets a model's defence is weak against, source by source class.

Defences are uneven in two ways: classes differ in robustness, and one class
withstands attacks towards some targets better than towards others. FERD
spreads the attacks of its training over all targets against the second.
"""

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward

_R, _S = parallels.REPLICATED, parallels.SHARDED


@dataclasses.dataclass(frozen=True)
class TargetMatrix:
  """Success rates of targeted attacks on images that are classified right.

  The diagonals, and the rows of classes without such images, are NaN.

  Attributes:
    reached: `[K, K]`, source class x target class, how often the prediction
      became the target.
    fooled: `[K, K]`, how often it became any wrong class.
    counts: int `[K]`, images of each source class that were attacked.
    num_examples: all images, also those classified wrong; None if unknown.
  """
  reached: np.ndarray
  fooled: np.ndarray
  counts: np.ndarray
  num_examples: int | None = None

  def json_values(self) -> dict[str, Any]:
    """Returns the matrices as lists, and how unevenly targets are reached.

    `source_weakness` is the mean of each row, `target_attraction` of each
    column; `source_unevenness` each row's standard deviation over its mean,
    `unevenness` that of all cells, 0 for a defence that treats all targets
    alike; `easiest` and `hardest` are the extreme cells as [source, target,
    rate]. Without attacked images a value is NaN, and a cell None.
    """
    cells = _known(self.reached)
    def cell(find):
      if not cells.size:
        return None
      source, target = np.unravel_index(find(self.reached), self.reached.shape)
      return [int(source), int(target), float(self.reached[source, target])]
    return {
        'reached': self.reached.tolist(), 'fooled': self.fooled.tolist(),
        'counts': self.counts.tolist(), 'num_examples': self.num_examples,
        'mean': _mean(cells), 'unevenness': _spread(cells),
        'source_weakness': [_mean(_known(row)) for row in self.reached],
        'target_attraction': [_mean(_known(column))
                              for column in self.reached.T],
        'source_unevenness': [_spread(_known(row)) for row in self.reached],
        'easiest': cell(np.nanargmax), 'hardest': cell(np.nanargmin),
    }


def targeted_pgd20(eps: float,
                   norm: geometry.Norm = 'Linf') -> attacks.PGD:
  """Returns PGD-20 towards a target: 20 steps of eps / 4 on its probability."""
  return attacks.PGD(eps, step_size=eps / 4, num_steps=20, norm=norm,
                     loss=losses.targeted_cross_entropy)


class TargetAnalysis:
  """Measures target matrices of a model; compiled once."""

  def __init__(self, model: nn.Module, attack: attacks.Attack,
               num_classes: int, batch_size: int,
               parallel: parallels.Parallel):
    """Prepares the compiled functions.

    Args:
      model: module under attack.
      attack: with a targeted loss, such as `targeted_pgd20(eps)`.
      num_classes: K.
      batch_size: images a step, over all devices.
      parallel: the device mapping.
    """
    self._num_classes, self._batch_size = num_classes, batch_size
    self._parallel = parallel
    self._attack = attacks.jit(
        attack, functools.partial(forward.logits, model), parallel)
    self._targets = parallel.compile(
        functools.partial(_targets, num_classes), (_S, _R), _S)
    self._outcomes = parallel.compile(
        functools.partial(_outcomes, model), (_R, _S, _S, _S), _S)

  def __call__(self, variables: Any, images: np.ndarray, labels: np.ndarray,
               key: jax.Array, *,
               reporter: reporting.Reporter = reporting.SILENT
               ) -> TargetMatrix:
    """Returns the matrix over all images and all wrong classes.

    Every image is attacked K - 1 times, from the same noise.

    Args:
      variables: of the model.
      images: `[N, H, W, C]`, uint8 or float in [0, 1].
      labels: int `[N]`.
      key: typed PRNG key; the same for models to be compared.
      reporter: shows how far it is.

    Raises:
      FloatingPointError: for logits that are not finite.
    """
    key = self._parallel.replicate(key)
    shape = (self._num_classes, self._num_classes)
    reached, fooled, tried = (np.zeros(shape, np.int64) for _ in range(3))
    with reporter.task('targets', len(labels) * (self._num_classes - 1),
                       'image') as task:
      for batch in robustness.batches(images, labels, self._batch_size):
        size = int(batch.mask.sum())
        batch = self._parallel.shard(batch)
        for offset in range(1, self._num_classes):
          targets = self._targets(batch.labels,
                                  self._parallel.replicate(np.int32(offset)))
          attacked = self._attack(variables, key, batch.images, batch.labels,
                                  targets, indices=batch.indices)
          # Of each image, and summed here: by source and target, a batch of
          # 256 has a gigabyte with a thousand classes.
          cells, *found, broken = self._parallel.gather(self._outcomes(
              variables, batch, targets, attacked))
          if broken.any():
            raise FloatingPointError(
                f'targets: the logits of {int(broken.sum())} images in a batch '
                'are not finite.')
          for total, hits in zip((reached, fooled, tried), found, strict=True):
            np.add.at(total, tuple(cells.T), hits)
          task.advance(size)
    with np.errstate(invalid='ignore'):
      return TargetMatrix(reached / tried, fooled / tried, tried.max(axis=1),
                          len(labels))


def _targets(num_classes, labels, offset, *, axis_name=None):
  """Returns the classes `offset` after the labels, cyclically, `[B]`."""
  del axis_name  # Each on its own.
  return (labels + offset) % num_classes


def _outcomes(model, variables, batch, targets, attacked, *, axis_name=None):
  """Returns source and target `[B, 2]` of each image, and four bools `[B]`.

  Whether the target was reached, whether the model was fooled, whether it was
  tried, being right about the clean image, and whether logits predict nothing,
  see `losses.predicts`.
  """
  del axis_name  # Each on its own.
  logits = [forward.logits(model, variables, images)
            for images in (batch.images, attacked)]
  clean, found = (jnp.argmax(values, axis=-1) for values in logits)
  finite = functools.reduce(jnp.logical_and, map(losses.predicts, logits))
  tried = batch.mask & (clean == batch.labels)
  return (jnp.stack([batch.labels, targets], axis=-1),
          tried & (found == targets), tried & (found != batch.labels), tried,
          ~finite & batch.mask)


def _known(rates):
  return rates[~np.isnan(rates)]


def _mean(rates):
  return float(rates.mean()) if rates.size else float('nan')


def _spread(rates):
  mean = _mean(rates)
  return float(rates.std() / mean) if mean > 0 else float('nan')
