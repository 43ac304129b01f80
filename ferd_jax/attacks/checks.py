"""What is asked of a model and its inputs before numbers are believed.

Errors are for what would make numbers wrong; warnings, as AutoAttack's own,
for what makes them doubtful.
"""

from collections.abc import Callable
import itertools
from typing import Any

import numpy as np

from ferd_jax.attacks import attack as attacks

_PASSES = 5
_VARIATION = 1e-4  # of normalised logits between passes
_DEPENDENCE = 1e-3  # of logits on the rest of the batch


def inputs(x: np.ndarray, y: np.ndarray, num_classes: int, eps: float,
           norm: str, bounds: tuple[float, float]) -> None:
  """Raises ValueError for data that cannot be attacked.

  Args:
    x: images `[N, ..., channels]`.
    y: labels `[N]`.
    num_classes: K of the model.
    eps: radius in the unit of the images.
    norm: 'Linf' or 'L2'.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for shapes and dtypes that do not fit, labels that are no
      class, images that are not finite or out of bounds, images that look
      like [N, channels, H, W], and a radius that covers all images.
  """
  if not np.issubdtype(y.dtype, np.integer):
    raise ValueError(f'Expected y to be int labels, got {y.dtype}.')
  if y.shape != x.shape[:1] or not len(y):
    raise ValueError(f'Expected y of shape {y.shape} to be [N], one label for '
                     f'each image in x of shape {x.shape}, N > 0.')
  attacks.checked_images(x, y=y)
  attacks.valid_examples(x, y, None, num_classes, bounds)
  if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[1] < min(x.shape[2:]):
    raise ValueError(f'Expected x with channels last, got shape {x.shape}, '
                     'which looks like [N, channels, H, W].')
  low, high = bounds
  widest = (high - low) * (1 if norm == 'Linf' else np.prod(x.shape[1:]) ** .5)
  if eps >= widest:
    raise ValueError(
        f'Expected eps={eps:g} below {widest:g}, which covers all images in '
        f'{bounds}; eps has their unit, such as 8/255.')


def outputs(logits: np.ndarray) -> list[str]:
  """Returns warnings about clean logits `[N, K]`.

  Raises:
    ValueError: if they are not finite.
  """
  finite = np.isfinite(logits).all(-1)
  if not finite.all():
    raise ValueError(
        'Expected finite logits, got others for images '
        f'{_some(np.flatnonzero(~finite))}.')
  warnings = []
  if (logits.min() > -1e-5 and logits.max() < 1 + 1e-5
      and np.abs(logits.sum(-1) - 1).max() < 1e-5):
    warnings.append('The model seems to return probabilities. Attacks need '
                    'logits: a softmax hides gradients.')
  return warnings


def determinism(predict: Callable[[np.ndarray], np.ndarray],
                trace: Callable[[], Any], x: np.ndarray) -> list[str]:
  """Returns a warning if the model's logits vary from pass to pass.

  Args:
    predict: images `[B, ...]` -> logits `[B, K]`, compiled.
    trace: returns the model's jaxpr, traced anew.
    x: images `[B, ...]`.
  """
  passes = [predict(x) for _ in range(_PASSES)]
  unit = [logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-12)
          for logits in passes]
  variation = max(np.linalg.norm(first - second, axis=-1).max()
                  for first, second in itertools.combinations(unit, 2))
  # Noise drawn by Python is a constant once compiled, but another in the next
  # trace.
  if variation > _VARIATION or _constants(trace()) != _constants(trace()):
    return ["The model seems to be stochastic. Use version 'rand' and a "
            'logits_fn(images, key).']
  return []


def independence(predict: Callable[[np.ndarray], np.ndarray],
                 x: np.ndarray) -> None:
  """Raises ValueError if an image's logits depend on the rest of its batch.

  Args:
    predict: images `[B, ...]` -> logits `[B, K]`, compiled.
    x: images `[B, ...]`.

  Raises:
    ValueError: if they do, as those of a BatchNorm in training mode.
  """
  half = (len(x) + 1) // 2
  alone = x.copy()
  alone[half:] = x[:len(x) - half]
  first, second = predict(x)[:half], predict(alone)[:half]
  scale = max(np.abs(first).max(), 1)
  if np.abs(first - second).max() > _DEPENDENCE * scale:
    raise ValueError(
        "Expected an image's logits not to depend on the other images of its "
        'batch; is the model in training mode?')


def class_count(num_classes: int, names: list[str]) -> list[str]:
  """Returns warnings about attacks that need more classes."""
  warnings = []
  targeted = [name for name in names if name in ('apgd-t', 'fab-t')]
  if num_classes < 10 and targeted:
    warnings.append(
        f'{" and ".join(targeted)} usually have 9 target classes; of '
        f'{num_classes} classes they have {num_classes - 1}: not comparable '
        'with the standard evaluation of more classes.')
  if num_classes < 4 and 'apgd-t' in names:
    warnings.append('The targeted DLR loss needs 4 classes; apgd-t ascends '
                    'the margin z_t - z_y instead.')
  if num_classes < 3 and 'apgd-dlr' in names:
    warnings.append('The DLR loss needs 3 classes; apgd-dlr ascends the '
                    'margin max_{j != y} z_j - z_y instead.')
  return warnings


def clean_accuracy(accuracy: float, num_classes: int) -> list[str]:
  """Returns a warning if a model does little better than chance."""
  if accuracy >= 1 / num_classes + 0.05:
    return []
  return [f'The clean accuracy is {accuracy:.2%}, for {num_classes} classes: '
          'do labels, normalisation and the range of the images fit?']


def zero_gradients(name: str, indices: list[int]) -> list[str]:
  """Returns a warning if there is no gradient at the start of an attack."""
  if not indices:
    return []
  return [f'{name}: the gradient is 0 at the start for {len(indices)} images '
          f'({_some(indices)}). Gradients may be masked.']


def square_too_strong(robust: dict[str, float]) -> list[str]:
  """Returns a warning if Square, without gradients, is much the strongest.

  Args:
    robust: robust accuracy after each attack that ran, in order.
  """
  others = [accuracy for name, accuracy in robust.items() if name != 'square']
  if 'square' not in robust or not others:
    return []
  if robust['square'] >= min(others) - 0.002:
    return []
  return [f"Square lowers the robust accuracy from {min(others):.2%} to "
          f"{robust['square']:.2%}, without gradients: they may be masked."]


def results(x: np.ndarray, x_adv: np.ndarray, eps: float,
            norms: np.ndarray, bounds: tuple[float, float]) -> None:
  """Raises ValueError for adversarial images that are none.

  Args:
    x: images `[N, ...]`.
    x_adv: adversarial images `[N, ...]`.
    eps: radius.
    norms: `[N]`, of x_adv - x.
    bounds: lowest and highest pixel value.
  """
  low, high = bounds
  slack = 1e-6 * (high - low)
  wrong = ~np.isfinite(x_adv).reshape(len(x), -1).all(-1)
  wrong |= norms > eps * (1 + 1e-5) + slack
  wrong |= ((x_adv < low - slack) | (x_adv > high + slack)
            ).reshape(len(x), -1).any(-1)
  if wrong.any():
    raise ValueError('An attack returned images that are out of the ball or '
                     f'the bounds: {_some(np.flatnonzero(wrong))}.')


def _constants(jaxpr):
  """Returns a traced function with its constants, to compare."""
  return str(jaxpr.jaxpr), [np.asarray(const).tobytes()
                            for const in jaxpr.consts]


def _some(indices):
  shown = ', '.join(str(index) for index in indices[:10])
  return f'{shown}, ...' if len(indices) > 10 else shown
