"""Robustness and fairness of a model, from its correct images per class.

What follows from the accuracies of the classes alone takes arrays `[..., C]`,
one row per model, seed or sample.
"""

from collections.abc import Callable
import math

import numpy as np


def summarise(correct: np.ndarray, counts: np.ndarray, *,
              ddof: int = 0) -> dict[str, float]:
  """Returns the average, worst class, worst-10% and NSD of an attack.

  Args:
    correct: `[C]`, images of each class that are classified correctly.
    counts: `[C]`, images of each class; classes without images are left out.
    ddof: 0 for the population's standard deviation over classes, 1 for the
      sample's.

  Returns:
    `average` over images; `worst`, the lowest class accuracy; `worst10`, the
    mean of the lowest tenth of the class accuracies (rounded up); `nsd`, their
    standard deviation over their mean, NaN if the mean is 0 or there are not
    more classes than `ddof`: lower is fairer.
  """
  present = counts > 0
  accuracy = np.sort(correct[present] / counts[present])
  lowest = math.ceil(0.1 * len(accuracy))
  mean = accuracy.mean()
  defined = mean > 0 and len(accuracy) > ddof
  return {
      'average': float(correct.sum() / counts.sum()),
      'worst': float(accuracy[0]),
      'worst10': float(accuracy[:lowest].mean()),
      'nsd': float(accuracy.std(ddof=ddof) / mean) if defined else math.nan,
  }


def success_rate(clean: np.ndarray, attacked: np.ndarray) -> float:
  """Returns the share of the images that are right which an attack fools.

  It is 1 - robust / clean accuracy of the same images, NaN if none is right.

  Args:
    clean: bool `[N]`, which images are right as they are.
    attacked: bool `[M]`, M <= N, which of the first M are under the attack.
  """
  clean = clean[:len(attacked)]
  return float((clean & ~attacked).sum() / clean.sum()) if clean.any() else (
      math.nan)


def nsd(accuracy: np.ndarray, ddof: int = 0) -> np.ndarray:
  """Returns the standard deviation over classes divided by their mean, `[...]`.

  It is NaN where the mean is 0.

  Args:
    accuracy: `[..., C]`, of the classes.
    ddof: 0 for the population's standard deviation, 1 for the sample's.
  """
  mean = np.mean(accuracy, axis=-1)
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.where(mean > 0, np.std(accuracy, axis=-1, ddof=ddof) / mean,
                    np.nan)


def gini(accuracy: np.ndarray) -> np.ndarray:
  """Returns Gini's coefficient over classes, `[...]`, in [0, 1 - 1/C].

  Half the mean absolute difference of two classes, over their mean: 0 if all
  are alike, 1 - 1/C if one has everything, NaN where the mean is 0.

  Args:
    accuracy: `[..., C]`, of the classes.
  """
  ordered = np.sort(accuracy, axis=-1)
  size = ordered.shape[-1]
  ranks = 2 * np.arange(1, size + 1) - size - 1
  total = np.sum(ordered, axis=-1)
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.where(total > 0, ordered @ ranks / (size * total), np.nan)


def worst_k(accuracy: np.ndarray) -> np.ndarray:
  """Returns the mean of the k lowest accuracies for k = 1 to C, `[..., C]`.

  Args:
    accuracy: `[..., C]`, of the classes.
  """
  ordered = np.sort(accuracy, axis=-1)
  return np.cumsum(ordered, axis=-1) / np.arange(1, ordered.shape[-1] + 1)


def named(ddof: int = 0) -> dict[
    str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
  """Returns measures of robustness and fairness by name.

  Each is a function of the accuracies of the classes `[..., C]` and of their
  numbers of images `[C]`, all above 0: `average` over images, `worst` class,
  `nsd`, `gap` (the worst class minus the average) and `gini`.

  Args:
    ddof: of the NSD.
  """
  def average(accuracy, counts):
    return accuracy @ counts / np.sum(counts)
  def worst(accuracy, counts):
    del counts
    return np.min(accuracy, axis=-1)
  return {
      'average': average, 'worst': worst,
      'nsd': lambda accuracy, counts: nsd(accuracy, ddof),
      'gap': lambda accuracy, counts: (worst(accuracy, counts)
                                       - average(accuracy, counts)),
      'gini': lambda accuracy, counts: gini(accuracy)}
