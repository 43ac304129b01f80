"""The numbers of a comparison: methods x attacks x measures, best and close."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import statistics as means

import numpy as np

from ferd_jax.comparison import outcomes
from ferd_jax.comparison import statistics
from ferd_jax.evaluation import metrics
from ferd_jax.evaluation import per_image

TEACHER, STUDENT = 'teacher', 'student'
MAIN = ('average', 'worst', 'nsd')  # the paper's columns
MEASURES = (*MAIN, 'gap', 'gini')
_LESS_IS_BETTER = ('nsd', 'gini')
# Beyond which no interval goes.
_BOUNDS = {'average': (0, 1), 'worst': (0, 1), 'nsd': (0, math.inf),
           'gap': (-1, 0), 'gini': (0, 1)}
_APART = 0.01  # averages that count as equal
BUDGET = ('images', 'generator_steps', 'teacher_forward', 'teacher_backward',
          'student_steps', 'seconds')


@dataclasses.dataclass(frozen=True)
class Cell:
  """A measure of a method under an attack.

  Attributes:
    interval: mean and spread over seeds.
    values: of each seed.
    best: whether no method's mean is better; never that of a teacher.
    close: whether the interval of its difference from the best has 0 in it.
    difference: from the reference, None for itself and for teachers.
  """
  interval: statistics.Interval
  values: Sequence[float]
  best: bool = False
  close: bool = False
  difference: statistics.Interval | None = None


@dataclasses.dataclass(frozen=True)
class AtEqualAverage:
  """A method and the reference at epochs of like average robustness.

  Attributes:
    level: the average, the lower one of both at their ends.
    epochs: of the method, one for each seed.
    reference_epochs: of the reference.
    measures: by name: means over seeds of the method and of the reference.
  """
  level: float
  epochs: Sequence[int]
  reference_epochs: Sequence[int]
  measures: Mapping[str, tuple[float, float]]


class Table:
  """All numbers of a comparison.

  Attributes:
    methods: outcomes by method, in order.
    reference: the method that others are compared with.
    attacks: those of any method, in order.
    cells: by (row, attack, measure); rows are methods and `teachers`.
    teachers: names of the teachers' rows.
  """

  def __init__(self, methods: Mapping[str, Sequence[outcomes.Outcome]],
               reference: str | None = None):
    """Computes it.

    Args:
      methods: finished runs by method.
      reference: a method; default: the first.

    Raises:
      ValueError: if there is no method, or not that one, or runs differ in
        their number of classes or how the NSD is defined.
    """
    self.methods = {name: list(found) for name, found in methods.items()
                    if found}
    if not self.methods:
      raise ValueError('Expected finished runs; there is none yet.')
    self.reference = reference or next(iter(self.methods))
    if self.reference not in self.methods:
      raise ValueError(f'Expected reference={reference!r} to be one of '
                       f'{", ".join(map(repr, self.methods))}.')
    self._rows = dict(self._teachers()) | {
        name: (STUDENT, found) for name, found in self.methods.items()}
    self.teachers = [row for row in self._rows if row not in self.methods]
    self.attacks = list(dict.fromkeys(
        attack for model, found in self._rows.values() for outcome in found
        for attack in outcome.results['models'][model]))
    counts = {len(outcome.results['class_counts']) for outcome in self.outcomes}
    if len(counts) > 1:
      raise ValueError('Expected runs with the same classes, got some with '
                       f'{" and some with ".join(map(str, sorted(counts)))}.')
    ddofs = {outcome.identity.get('eval', {}).get('nsd_ddof', 0)
             for outcome in self.outcomes}
    if len(ddofs) > 1:
      raise ValueError('Expected one eval.nsd_ddof of all runs, got '
                       f'{", ".join(map(str, sorted(ddofs)))}.')
    self._ddof, = ddofs
    self.cells = {}
    for attack in self.attacks:
      self._fill(attack)

  @property
  def outcomes(self) -> list[outcomes.Outcome]:
    """All finished runs."""
    return [outcome for found in self.methods.values() for outcome in found]

  def num_images(self, row: str, attack: str) -> int:
    """Returns how many images an attack got."""
    model, found = self._rows[row]
    results = found[0].results
    return results['models'][model][attack].get('num_examples',
                                                results['num_examples'])

  def seeds(self, row: str) -> list[int]:
    """Returns the seeds of a row."""
    return [outcome.seed for outcome in self._rows[row][1]]

  def worst_k(self, row: str, attack: str) -> np.ndarray | None:
    """Returns means over seeds of the mean of the k worst classes, `[C]`.

    None if the attack was not on this row.
    """
    accuracies = self._accuracies(row, attack)
    if accuracies is None:
      return None
    return metrics.worst_k(accuracies[0]).mean(axis=0)

  def class_accuracies(self, row: str, attack: str) -> np.ndarray | None:
    """Returns the accuracy of every class, `[S, K]`, a row for each seed.

    It is NaN for a class without images, None if the attack was not on all
    seeds.
    """
    pairs = self._results(row, attack)
    return None if pairs is None else _per_class(pairs)

  def budget(self, method: str) -> dict[str, float | None]:
    """Returns means over seeds of what a method spent, None if unknown."""
    found = [outcome.results.get('budget', {})
             for outcome in self.methods[method]]
    return {name: _mean([each.get(name) for each in found]) for name in BUDGET}

  def speed(self, method: str, phase: str) -> float | None:
    """Returns milliseconds a step of a phase, None if it has none."""
    return _mean([outcome.speed(phase) for outcome in self.methods[method]])

  def devices(self, method: str) -> list[str]:
    """Returns what a method's runs were on."""
    return sorted({str(epoch['devices']) for outcome in self.methods[method]
                   for epoch in outcome.metrics if 'devices' in epoch})

  def at_equal_average(self, attack: str) -> dict[str, AtEqualAverage]:
    """Returns the methods beside the reference at like average robustness.

    A student that is less robust on average may look fairer, or less fair, for
    this alone. Of both the epoch of the learning curve counts whose average is
    nearest to the lower one of their last.
    Pairs that are further apart than a point are left out.

    Args:
      attack: of the learning curve; methods without it are left out.
    """
    curves = {name: [outcome.curve(attack) for outcome in found]
              for name, found in self.methods.items()}
    curves = {name: found for name, found in curves.items() if all(found)}
    if self.reference not in curves:
      return {}
    pairs = {name: _at_equal_average(found, curves[self.reference], self._ddof)
             for name, found in curves.items() if name != self.reference}
    return {name: pair for name, pair in pairs.items() if abs(
        np.subtract(*pair.measures['average'])) <= _APART}

  def curve_attacks(self) -> list[str]:
    """Returns the attacks of the reference's learning curve."""
    return [attack for attack in self.attacks if all(
        outcome.curve(attack) for outcome in self.methods[self.reference])]

  def _teachers(self) -> Iterator[tuple[str, tuple[str, list]]]:
    """Yields the teachers' rows: a run of each seed tells of them."""
    by_digest = {}
    for outcome in self.outcomes:
      if TEACHER in outcome.results['models']:
        digest = outcome.results.get('weights_digest', {}).get(TEACHER)
        by_digest.setdefault(digest, {}).setdefault(outcome.seed, outcome)
    for i, found in enumerate(by_digest.values()):
      runs = list(found.values())
      arch = runs[0].identity.get('teacher', {}).get('arch', '')
      name = f'{TEACHER} {arch}'.strip() if len(by_digest) == 1 else (
          f'{TEACHER} {i + 1} {arch}'.strip())
      yield name, (TEACHER, runs)

  def _fill(self, attack):
    """Computes the cells of an attack."""
    column = _Column(
        {row: self._flags(row, attack) for row in self._rows
         if self._accuracies(row, attack) is not None},
        {row: found for row in self._rows
         if (found := self._accuracies(row, attack)) is not None},
        metrics.named(self._ddof))
    methods = [row for row in column.rows if row in self.methods]
    for measure in MEASURES:
      means = {row: column.interval(row, measure).mean for row in methods}
      known = {row: mean for row, mean in means.items() if math.isfinite(mean)}
      choose = min if measure in _LESS_IS_BETTER else max
      # Alone it is not compared.
      best = choose(known, key=known.get) if len(known) > 1 else None
      for row in column.rows:
        close, difference, is_best = False, None, False
        if row in methods:
          compared = best is not None and row in known
          is_best = compared and known[row] == known[best]
          if compared and not is_best:
            from_best = column.difference(row, best, measure)
            close = from_best.low <= 0 <= from_best.high
          if row != self.reference and self.reference in methods:
            difference = column.difference(row, self.reference, measure)
        self.cells[row, attack, measure] = Cell(
            column.interval(row, measure), column.values(row, measure),
            is_best, close, difference)

  def _results(self, row, attack):
    """Returns (results, an attack's) of every seed; None if one lacks it."""
    model, found = self._rows[row]
    pairs = [(outcome.results, outcome.results['models'][model].get(attack))
             for outcome in found]
    return None if any(each is None for _, each in pairs) else pairs

  def _accuracies(self, row, attack):
    """Returns accuracies `[S, C]` of the classes with images, and numbers.

    A class has some with every seed: noise in their place differs by the seed.
    """
    pairs = self._results(row, attack)
    if pairs is None:
      return None
    accuracies = _per_class(pairs)
    results, found = pairs[0]
    counts = np.array(results['class_counts'], float)
    if 'labels' in results:  # Those that the attack got.
      counts = np.bincount(
          per_image.labels(results['labels'])[:found.get('num_examples')],
          minlength=len(counts)).astype(float)
    present = np.isfinite(accuracies).all(axis=0)
    return accuracies[:, present], counts[present]

  def _flags(self, row, attack):
    """Returns what is known of single images, None if it is not."""
    pairs = self._results(row, attack)
    if pairs is None or any('labels' not in results or per_image.FLAGS
                            not in found for results, found in pairs):
      return None
    flags = [per_image.flags(found[per_image.FLAGS]) for _, found in pairs]
    number = len(flags[0])
    labels = [per_image.labels(results['labels'])[:number]
              for results, _ in pairs]
    if any(len(one) != number or not np.array_equal(one_labels, labels[0])
           for one, one_labels in zip(flags, labels, strict=True)):
      return None
    results = pairs[0][0]
    return statistics.Flags(
        np.stack(flags), labels[0], images=(
            results['dataset'], results['split'], labels[0].tobytes()))


def _per_class(pairs):
  """Returns accuracies `[S, K]` of (results, an attack's) of every seed."""
  return np.array([
      [math.nan if value is None else value for value in found['per_class']]
      for _, found in pairs], float)


class _Column:
  """The measures of one attack, with intervals as far as they are known."""

  def __init__(self, flags, accuracies, measures):
    self.rows = list(accuracies)
    self._values = {
        (row, measure): function(*accuracies[row])
        for row in accuracies for measure, function in measures.items()}
    self._estimates = None
    if all(each is not None for each in flags.values()):
      self._estimates = statistics.Estimates(flags, measures)

  def values(self, row, measure):
    return self._values[row, measure].tolist()

  def interval(self, row, measure):
    found = (statistics.of_seeds(self._values[row, measure])
             if self._estimates is None
             else self._estimates.interval(row, measure))
    low, high = (float(np.clip(end, *_BOUNDS[measure]))
                 for end in (found.low, found.high))
    return dataclasses.replace(found, low=low, high=high)

  def difference(self, row, other, measure):
    if self._estimates is None:
      return statistics.difference_of_seeds(self._values[row, measure],
                                            self._values[other, measure])
    return self._estimates.difference(row, other, measure)


def _at_equal_average(curves, reference, ddof):
  """Returns the comparison of the curves of two methods, by seed."""
  level = min(np.mean([curve[-1][1] for curve in each])
              for each in (curves, reference))
  chosen = [[min(curve, key=lambda point: abs(point[1] - level))
             for curve in each] for each in (curves, reference)]
  measures = {
      'average': lambda point: point[1],
      'worst': lambda point: min(point[2]),
      'nsd': lambda point: float(
          metrics.nsd(np.array(point[2]), ddof)),
      'gap': lambda point: min(point[2]) - point[1],
      'gini': lambda point: float(metrics.gini(np.array(point[2])))}
  return AtEqualAverage(
      float(level), *([point[0] for point in points] for points in chosen),
      measures={name: tuple(
          float(np.mean([measure(point) for point in points]))
          for points in chosen) for name, measure in measures.items()})


def _mean(values):
  """Returns the mean, None if one is unknown or there is none."""
  if not values or any(value is None for value in values):
    return None
  return means.fmean(values)
