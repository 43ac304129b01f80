"""How good the student is while it trains."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from ferd_jax.core import reporting
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.synthesis import pool as pools

SYNTHETIC_PGD = 'synthetic_pgd'  # A choice of epoch that needs no data.
PER_CLASS = '_per_class'  # after the names of points that have all classes
# Of the newest synthetic images, by which `eval.select=synthetic_pgd` chooses.
_SYNTHETIC = 1000


@dataclasses.dataclass(frozen=True)
class LearningCurve:
  """Measures points of the learning curve of a student.

  Attributes:
    evaluator: of the student.
    attacks: names of those that are measured.
    split: that the images are from, first in the names of the points.
    images: `[N, H, W, C]`.
    labels: int `[N]`.
    teacher_predictions: (variables, images) -> labels, for `synthetic_pgd`;
      None without it.
  """
  evaluator: robustness.Evaluator
  attacks: Sequence[str]
  split: str
  images: np.ndarray
  labels: np.ndarray
  teacher_predictions: Callable[[Any, np.ndarray], np.ndarray] | None = None

  def point(self, student: Any, teacher: Any, pool: pools.Pool,
            key: jax.Array,
            reporter: reporting.Reporter = reporting.SILENT
            ) -> Mapping[str, Any]:
    """Returns how good the student is under each attack, JSON values.

    Args:
      student: its variables.
      teacher: its variables; None without `teacher_predictions`.
      pool: of synthetic images.
      key: typed PRNG key of the attacks.
      reporter: shows how far it is.

    Returns:
      `<split>_<attack>`, `<split>_<attack>_worst`, `<split>_<attack>_per_class`
      (a list of accuracies, None for a class without images), and, if the run
      selects by it, `synthetic_pgd` and `synthetic_pgd_per_class`: how often
      the student under PGD-20 agrees with the teacher on the newest synthetic
      images.
    """
    reporter = reporter.within('student')
    found = self.evaluator(student, self.images, self.labels, key,
                           self.attacks, reporter=reporter)
    point = {}
    for attack, summary in found.items():
      point[f'{self.split}_{attack}'] = summary['average']
      point[f'{self.split}_{attack}_worst'] = summary['worst']
      point[f'{self.split}_{attack}{PER_CLASS}'] = tables.json_values(
          summary['per_class'])
    if self.teacher_predictions is not None:
      newest = np.arange(max(0, pool.count - _SYNTHETIC), pool.count)
      images, _ = pool.take(newest)
      predicted = self.teacher_predictions(teacher, images)
      found = self.evaluator(student, images, predicted, key, ('pgd20',),
                             reporter=reporter)
      point[SYNTHETIC_PGD] = found['pgd20']['average']
      point[f'{SYNTHETIC_PGD}{PER_CLASS}'] = tables.json_values(
          found['pgd20']['per_class'])
    return point
