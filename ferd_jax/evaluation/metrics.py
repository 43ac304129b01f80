"""Robustness and fairness of a model, from its correct images per class."""

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
