"""How good the student is while it trains."""

import jax
import numpy as np

from ferd_jax.evaluation import robustness
from ferd_jax.run import experiment
from ferd_jax.run import state as states
from ferd_jax.synthesis import pool as pools

# Of the newest synthetic images, by which `eval.select=synthetic_pgd` chooses.
_SYNTHETIC = 1000


class LearningCurve:
  """Measures points of the learning curve of a run.

  Attributes:
    images: `[N, H, W, C]`, the first `eval.curve_examples` of the data set.
    labels: int `[N]`.
  """

  def __init__(self, run: experiment.Experiment):
    config = run.config.eval
    number = config.curve_examples or None
    self.images = run.examples.images[:number]
    self.labels = run.examples.labels[:number]
    self._attacks = tuple(config.curve_attacks)
    self._evaluator = run.student_evaluator
    self._teacher_predictions = None
    if config.select == experiment.SYNTHETIC_PGD:
      self._teacher_predictions = robustness.predictor(
          run.synthesis.teacher, config.batch_size, run.parallel)

  def point(self, state: states.FerdState, teacher: dict, pool: pools.Pool,
            key: jax.Array) -> dict[str, float]:
    """Returns the student's average and worst class under each attack.

    Args:
      state: of the run.
      teacher: its variables.
      pool: of synthetic images.
      key: typed PRNG key of the attacks.

    Returns:
      `test_<attack>`, `test_<attack>_worst`, and, if the run selects by it,
      `synthetic_pgd`: how often the student under PGD-20 agrees with the
      teacher on the newest synthetic images.
    """
    report = self._evaluator(state.student, self.images, self.labels, key,
                             self._attacks)
    point = {}
    for attack, summary in report.items():
      point[f'test_{attack}'] = summary['average']
      point[f'test_{attack}_worst'] = summary['worst']
    if self._teacher_predictions:
      newest = np.arange(max(0, pool.count - _SYNTHETIC), pool.count)
      images, _ = pool.take(newest)
      predicted = self._teacher_predictions(teacher, images)
      report = self._evaluator(state.student, images, predicted, key,
                               ('pgd20',))
      point[experiment.SYNTHETIC_PGD] = report['pgd20']['average']
    return point
