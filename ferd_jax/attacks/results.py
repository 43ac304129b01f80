"""What one attack on a batch leaves: what it achieved, and the way there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ferd_jax.attacks import inputs


class AttackResult(NamedTuple):
  """What an attack achieved, from one more evaluation on its images.

  Of an example that is no valid input (see `Attack.__call__`), or where the
  model gave logits or gradients that are not finite before it was fooled (of
  logits, -inf is a masked class, one that is never predicted), the
  images and numbers are NaN, the prediction is -1 and the success False, which
  says nothing about robustness: `run` warns of it outside of `jit`, and the
  accuracies below leave it out.

  Attributes:
    images: `[B, ...]`, adversarial.
    success: bool `[B]`, whether the prediction on them is another than `y`.
    predictions: int32 `[B]`, the classes predicted on them.
    logits: `[B, K]` on them.
    norm: `[B]`, of images - x in the attack's norm.
    reached: bool `[B]`, whether the prediction on them is the target, if the
      call named target classes; else `success`.
    correct: bool `[B]`, whether the prediction on the clean image is `y`.
  """
  images: jax.Array
  success: jax.Array
  predictions: jax.Array
  logits: jax.Array
  norm: jax.Array
  reached: jax.Array
  correct: jax.Array

  @property
  def distances(self) -> jax.Array:
    """`norm` where the attack reached what it was after, else inf, `[B]`."""
    with jax.debug_infs(False):
      return _or_infinite(self.reached, self.norm)

  @property
  def clean_accuracy(self) -> float:
    """The share of the examples that are right as they are."""
    return self._shares()[0]

  @property
  def robust_accuracy(self) -> float:
    """The share that are right as they are and stay so."""
    return self._shares()[1]

  @property
  def success_rate(self) -> float:
    """The share of the right ones that were fooled: 1 - robust / clean.

    It is NaN where none was right.
    """
    clean, robust = self._shares()
    return 1 - robust / clean if clean else float('nan')

  def _shares(self):
    valid, correct, success = jax.device_get(
        (self.predictions, self.correct, self.success))
    valid = valid >= 0
    if not valid.any():
      return float('nan'), float('nan')
    return (float(correct[valid].mean()),
            float((correct & ~success)[valid].mean()))

  def __repr__(self) -> str:
    kind = f'AttackResult of {_images_text(self.images)}'
    if not inputs.is_concrete(tuple(self)):
      return f'<{kind}, traced>'
    clean, robust = self._shares()
    norm, success, valid = jax.device_get(
        (self.norm, self.success, self.predictions >= 0))
    invalid = int((~valid).sum())
    return (f'<{kind}{f", {invalid} of them invalid" if invalid else ""}: '
            f'{int(success[valid].sum())} fooled; accuracy {clean:.2%} '
            f'clean, {robust:.2%} robust, success rate '
            f'{self.success_rate:.2%}; '
            f'largest norm {norm[valid].max(initial=0):.4g}>')


class History(NamedTuple):
  """What an attack did on the way; see `Attack.record`.

  Attributes:
    losses: `[B, S]`, `Attack.objective` of the iterate of every step; of
      several attempts, those of one after those of another.
    queries: int32 `[B]`, evaluations of the model on an image until the attack
      was through with it. A gradient is one of them.
  """
  losses: jax.Array
  queries: jax.Array

  def __repr__(self) -> str:
    number, steps = self.losses.shape
    if not inputs.is_concrete(tuple(self)):
      return f'<History of {number} images over {steps} steps, traced>'
    losses, queries = jax.device_get((self.losses, self.queries))
    return (f'<History of {number} images over {steps} steps: mean loss '
            f'{losses[:, 0].mean():.4g} to {losses[:, -1].mean():.4g}, '
            f'{queries.mean():.1f} queries an image>')


@jax.jit
def _or_infinite(mask, values):
  """Returns values `[B]` where the mask is true, else inf."""
  return jnp.where(mask, values, jnp.inf)


def _images_text(images):
  number, *shape = images.shape
  return f'{number} images {"x".join(map(str, shape))}'
