"""Robust accuracy over the radius, from one run of minimum-norm attacks."""

from collections.abc import Sequence
import functools
from typing import Any
import warnings

from flax import linen as nn
import jax
import numpy as np

from ferd_jax.attacks import minimum_norm
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.evaluation import metrics
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward


def curve(model: nn.Module, variables: Any, images: np.ndarray,
          labels: np.ndarray, key: jax.Array, num_classes: int,
          attack: minimum_norm.MinimumNorm, radii: Sequence[float],
          batch_size: int, parallel: parallels.Parallel, *, ddof: int = 0,
          reporter: reporting.Reporter = reporting.SILENT) -> dict[str, Any]:
  """Returns a model's robust accuracy at radii, and every image's distance.

  Args:
    model: module under attack.
    variables: of the model.
    images: `[N, H, W, C]`, uint8 or float in [0, 1].
    labels: int `[N]`.
    key: typed PRNG key.
    num_classes: C.
    attack: that looks for the closest images.
    radii: M, at least 0.
    batch_size: images a step, over all devices.
    parallel: the device mapping.
    ddof: of the NSD.
    reporter: shows how far it is.

  Returns:
    JSON values: `norm`, `attacks`, `num_examples`, `clean`, `success_rate`,
    `median`, `eps` and as many of `metrics.summarise` in `at`, `distances` of
    all images as one text (`inf` where nothing was found), `seconds` by attack,
    `warnings`.

  Raises:
    ValueError: for a model or images that the attacks refuse.
  """
  with warnings.catch_warnings():  # They are returned.
    warnings.simplefilter('ignore', UserWarning)
    found = attack(
        jax.tree_util.Partial(functools.partial(forward.logits, model),
                              variables),
        key, robustness.as_float(images), labels, batch_size=batch_size,
        progress=reporter, parallel=parallel)
  counts = np.bincount(labels, minlength=num_classes)
  def at(eps):
    robust = np.bincount(labels[found.robust(eps)], minlength=num_classes)
    return metrics.summarise(robust, counts, ddof=ddof)
  return {
      'norm': attack.norm, 'attacks': list(found.names),
      'num_examples': len(labels), 'clean': found.clean_accuracy,
      'success_rate': found.success_rate, 'median': found.median,
      'eps': [float(eps) for eps in radii], 'at': [at(eps) for eps in radii],
      'distances': ' '.join(f'{value:.7g}' for value in found.distances),
      'seconds': found.seconds, 'warnings': found.warnings}
