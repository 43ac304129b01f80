"""What the record of an epoch says beside the means over its steps."""

from typing import Any

import numpy as np

from ferd_jax.run import budget as budgets
from ferd_jax.run import method as methods


def of_sampler(sampler: Any) -> dict[str, Any]:
  """Returns what a sampler keeps of each class, `sampler/...`.

  Args:
    sampler: its state, with `probs` `[K]`.
  """
  probs = np.asarray(sampler.probs)
  # A starved class has probability 0 in float32; its logarithm is kept finite.
  lowest = max(probs.min(), np.finfo(np.float32).tiny)
  values = {'sampler/min_log_prob': float(np.log(lowest)),
            'sampler/max_prob': float(probs.max())}
  for name, value in vars(sampler).items():
    if np.shape(value) == probs.shape:
      values[f'sampler/{name}'] = np.asarray(value).tolist()
  return values


def of_pool(labels: np.ndarray, judged: methods.Judgement | None,
            num_classes: int) -> dict[str, Any]:
  """Returns how often the teacher predicts what the pool's images are for.

  Args:
    labels: int `[B]`, those that the images were made for.
    judged: what the teacher says of the images, on the host; None without a
      teacher or a pool, of which nothing is said.
    num_classes: K.
  """
  if judged is None:
    return {}
  right, counts = (
      np.bincount(each, minlength=num_classes).tolist()
      for each in (labels[judged.labels == labels], labels))
  return {
      'synthesis/kept_agreement': float(judged.agreement),
      'synthesis/kept_agreement_per_class': [
          each / count if count else None
          for each, count in zip(right, counts, strict=True)],
      'synthesis/kept_per_class': counts}


def of_budget(method: methods.Method, number: int) -> dict[str, int]:
  """Returns steps and images of the epochs up to `number`."""
  spent = budgets.of(method, number)
  found = {'distill/steps': spent.student_steps}
  if not method.synthesis.rounds.reads_data:
    found |= {'synthesis/steps': spent.generator_steps,
              'synthesis/images': spent.images}
  return found
