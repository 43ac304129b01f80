"""How far a measured mean would move with other seeds and other test images.

The mean of a measure (average, worst class, NSD, ...) over seeds varies for
two reasons. Other seeds give other students: their standard deviation over
the root of their number, known from few. Other test images give other
accuracies: images are drawn again, with replacement and class by class, the
same for all seeds and methods, and the measure is taken anew. Both variances
add up, and Student's t at Satterthwaite's degrees of freedom makes an interval
of them. A bootstrap of three seeds would be too short: its draws know the
spread of three values only, two thirds of the variance on average.

Both parts hold what is random in a seed and an image at once, so that
intervals are rather too long than too short. With one seed they say nothing of
other seeds.

References: Satterthwaite 1946 (degrees of freedom); Owen 2007,
arXiv:0712.1111 (why the parts overlap); Efron & Tibshirani 1993, ch. 8
(bootstrap by strata).
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
import dataclasses
import math
import zlib

import numpy as np
from scipy import special

DRAWS = 1000  # of the images
LEVEL = 0.95
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Flags:
  """Which images the models of a method get right.

  Attributes:
    correct: bool `[S, N]`, a row for each seed.
    labels: int `[N]`.
    images: what tells these images from others: methods on the same images
      are compared image by image.
  """
  correct: np.ndarray
  labels: np.ndarray
  images: Hashable = ()

  def __post_init__(self):
    if self.correct.shape[1:] != self.labels.shape:
      raise ValueError(f'Expected {self.labels.shape} flags for each seed, got '
                       f'{self.correct.shape[1:]}.')


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over seeds, and where it would lie with others.

  Attributes:
    mean: over seeds; NaN if it is undefined in one.
    std: over seeds (n - 1); NaN for one seed.
    low, high: ends of the interval.
  """
  mean: float
  std: float
  low: float
  high: float


class Estimates:
  """Measures of methods under one attack, with intervals."""

  def __init__(self, methods: Mapping[str, Flags],
               measures: Mapping[str, Measure], *, draws: int = DRAWS,
               seed: int = 0):
    """Measures, also on images drawn again.

    Args:
      methods: by name.
      measures: by name: functions of class accuracies `[..., C]` and numbers of
        images `[C]`.
      draws: how often images are drawn.
      seed: of the draws.
    """
    self._images = {name: flags.images for name, flags in methods.items()}
    self._values, self._drawn = {}, {}
    by_images = {}
    for name, flags in methods.items():
      by_images.setdefault(flags.images, []).append(name)
    for images, names in by_images.items():
      labels = methods[names[0]].labels
      correct = np.concatenate([methods[name].correct for name in names])
      # Other images, other draws.
      rng = np.random.default_rng(
          [seed, zlib.crc32(repr(images).encode())])
      exact, drawn, counts = _accuracies(correct, labels, draws, rng)
      ends = np.cumsum([len(methods[name].correct) for name in names])[:-1]
      for name, own, again in zip(
          names, np.split(exact, ends), np.split(drawn, ends, axis=1),
          strict=True):
        for measure, function in measures.items():
          self._values[name, measure] = function(own, counts)
          self._drawn[name, measure] = np.mean(function(again, counts), axis=1)

  def values(self, name: str, measure: str) -> np.ndarray:
    """Returns a measure of each seed, `[S]`."""
    return self._values[name, measure]

  def interval(self, name: str, measure: str) -> Interval:
    """Returns a method's mean over seeds and its interval."""
    values = self._values[name, measure]
    return _interval(float(np.mean(values)), [values],
                     self._drawn[name, measure])

  def difference(self, name: str, other: str, measure: str) -> Interval:
    """Returns how much more a method has than another.

    Image by image where the images are the same; seeds of different methods
    have nothing in common. Its `std` is NaN.
    """
    values = [self._values[each, measure] for each in (name, other)]
    drawn = self._drawn[name, measure] - self._drawn[other, measure]
    found = _interval(float(np.mean(values[0]) - np.mean(values[1])), values,
                      drawn)
    return dataclasses.replace(found, std=math.nan)


def of_seeds(values: np.ndarray) -> Interval:
  """Returns a mean over seeds where single images are not known, `[S]`.

  Its interval is of the seeds alone, and NaN for one.
  """
  values = np.asarray(values, float)
  if len(values) < 2:
    return Interval(float(np.mean(values)), math.nan, math.nan, math.nan)
  return _interval(float(np.mean(values)), [values], np.zeros(1))


def difference_of_seeds(values: np.ndarray, other: np.ndarray) -> Interval:
  """Returns the difference of two means over seeds, by the seeds alone.

  It is that of Welch's t-test; NaN ends unless both have several seeds.
  """
  values, other = np.asarray(values, float), np.asarray(other, float)
  mean = float(np.mean(values) - np.mean(other))
  if min(len(values), len(other)) < 2:
    return Interval(mean, math.nan, math.nan, math.nan)
  return dataclasses.replace(
      _interval(mean, [values, other], np.zeros(1)), std=math.nan)


def _interval(mean, samples, drawn):
  """Returns the interval of a mean, or a difference of means.

  Args:
    mean: of it.
    samples: values over seeds that its variance comes from, each `[S]`.
    drawn: `[R]`, of images drawn again.
  """
  std = float(np.std(samples[0], ddof=1)) if len(samples[0]) > 1 else math.nan
  parts = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1)
           for values in samples if len(values) > 1]
  # An NSD is undefined where nothing is right: some draws of few images.
  drawn = drawn[np.isfinite(drawn)]
  of_images = float(np.var(drawn)) if len(drawn) else math.nan
  variance = sum(part for part, _ in parts) + of_images
  uncertain = sum(part ** 2 / freedom for part, freedom in parts)
  if not math.isfinite(variance) or not math.isfinite(mean):
    return Interval(mean, std, math.nan, math.nan)
  freedom = variance ** 2 / uncertain if uncertain else math.inf  # t is normal
  tail = (1 + LEVEL) / 2
  quantile = (float(special.ndtri(tail)) if math.isinf(freedom)
              else float(special.stdtrit(freedom, tail)))
  half = quantile * math.sqrt(variance)
  return Interval(mean, std, mean - half, mean + half)


def _accuracies(correct, labels, draws, rng):
  """Returns accuracies by class, as they are and of images drawn again.

  Args:
    correct: bool `[M, N]`.
    labels: `[N]`.
    draws: R.
    rng: NumPy's generator.

  Returns:
    `[M, C]`, `[R, M, C]` and the numbers of images `[C]`, of the classes that
    have some.
  """
  classes, counts = np.unique(labels, return_counts=True)
  exact, drawn = [], []
  for label, count in zip(classes, counts, strict=True):
    own = correct[:, labels == label].astype(np.float32)
    exact.append(own.mean(axis=1, dtype=np.float64))
    # How often each image is drawn.
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    drawn.append(times.astype(np.float32) @ own.T / count)
  return np.stack(exact, -1), np.stack(drawn, -1).astype(np.float64), counts
