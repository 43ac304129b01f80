"""What is asked of a model and its inputs before numbers are believed.

Errors are for what would make numbers wrong; warnings, as AutoAttack's own,
for what makes them doubtful.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import itertools
from typing import Any

import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import attack as attacks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import saved
from ferd_jax.core import digests

_PASSES = 5
_VARIATION = 1e-4  # of normalised logits between passes
_DEPENDENCE = 1e-3  # of logits on the rest of the batch, of the largest


def data_set(x: np.ndarray, y: np.ndarray, eps: float, norm: geometry.Distance,
             bounds: tuple[float, float]) -> None:
  """Raises ValueError for data that no model can be attacked on.

  Args:
    x: images `[N, ..., channels]`.
    y: labels `[N]`.
    eps: radius in the unit of the images.
    norm: one of `geometry.DISTANCES`.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for shapes and dtypes that do not fit, images that are not
      finite or out of bounds, and a radius that covers all images.
  """
  if x.dtype not in (np.float32, np.float64):
    # In half precision the ball is as wide as its rounding.
    raise ValueError('Expected x to be float32 or float64 images, got '
                     f'{x.dtype}.')
  if not np.issubdtype(y.dtype, np.integer):
    raise ValueError(f'Expected y to be int labels, got {y.dtype}.')
  if x.ndim < 2:
    raise ValueError('Expected x to be images [N, ..., channels], got '
                     f'{x.shape}.')
  if y.ndim != 1 or y.shape != x.shape[:1] or not len(y):
    raise ValueError(f'Expected y of shape {y.shape} to be [N], one label for '
                     f'each image in x of shape {x.shape}, N > 0.')
  radius(eps, norm, x.shape[1:], bounds)
  inputs.valid_examples(x, None, None, 0, bounds)


def layout(shape: tuple[int, ...]) -> list[str]:
  """Returns a warning if images `[N, ...]` seem to have their channels first.

  A model that takes them works, but Square's windows would lie across channels.
  """
  if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
    return [f'x of shape {shape} looks like [N, channels, H, W]; attacks take '
            'the last axis for channels.']
  return []


def radius(eps: float, norm: geometry.Distance, shape: tuple[int, ...],
           bounds: tuple[float, float]) -> None:
  """Raises ValueError for a radius that covers all images.

  Args:
    eps: radius in the unit of the images.
    norm: one of `geometry.DISTANCES`.
    shape: of an image.
    bounds: lowest and highest pixel value.
  """
  widest = geometry.of(norm).diameter(shape, bounds)
  if eps >= widest:
    raise ValueError(
        f'Expected eps={eps:g} below {widest:g}, which covers all images in '
        f'{bounds}; eps has their unit, such as 8/255.')


def labels(y: np.ndarray, num_classes: int) -> None:
  """Raises ValueError for labels `[N]` that are none of K classes."""
  # In NumPy: JAX would take the low 32 bits of an int64.
  wrong = np.flatnonzero((y < 0) | (y >= num_classes))
  if len(wrong):
    raise ValueError(f'Expected y in 0..{num_classes - 1}, got {y[wrong[0]]} '
                     f'for images {_some(wrong)}.')


def outputs(logits: np.ndarray) -> list[str]:
  """Returns warnings about clean logits `[N, K]`.

  Raises:
    ValueError: if they are not finite.
  """
  fine = (logits < np.inf).all(-1) & (logits > -np.inf).any(-1)
  if not fine.all():
    raise ValueError(
        'Expected finite logits, or -inf for a class that is never predicted, '
        f'got others for images {_some(np.flatnonzero(~fine))} '
        f'({int((~fine).sum())} of {fine.size}).')
  return [attacks.NO_LOGITS] if attacks.seem_probabilities(logits) else []


def determinism(predict: Callable[[np.ndarray], np.ndarray],
                traced: Any, trace: Callable[[], Any],
                x: np.ndarray) -> list[str]:
  """Returns a warning if the model's logits vary from pass to pass.

  Args:
    predict: images `[B, ...]` -> logits `[B, K]`, compiled.
    traced: the model's jaxpr.
    trace: returns another, with nothing remembered of other traces.
    x: images `[B, ...]`.
  """
  passes = [_unmasked(predict(x)) for _ in range(_PASSES)]
  unit = [logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-12)
          for logits in passes]
  variation = max(np.linalg.norm(first - second, axis=-1).max()
                  for first, second in itertools.combinations(unit, 2))
  # Noise drawn by Python is a constant once compiled, but another in the next
  # trace.
  again = trace()
  if (variation > _VARIATION
      or saved.code_of(traced) != saved.code_of(again)
      or digests.of_arrays(traced.consts) != digests.of_arrays(again.consts)):
    return ["The model seems to be stochastic. Use version 'rand', or "
            'attacks.Randomised, and a logits_fn(images, key).']
  return []


def independence(predict: Callable[[np.ndarray], np.ndarray], x: np.ndarray,
                 bounds: tuple[float, float]) -> None:
  """Raises ValueError if an image's logits depend on the rest of its batch.

  Args:
    predict: images `[B, ...]` -> logits `[B, K]`, compiled.
    x: images `[B, ...]`.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: if they do, as those of a BatchNorm in training mode.
  """
  # Every second image is replaced, so that each device has some of both, and
  # by noise, as the others may all be the same.
  others = x.copy()
  noise = np.random.default_rng(2003)
  others[1::2] = noise.uniform(*bounds, x[1::2].shape)
  first, second = (_unmasked(predict(images))[::2] for images in (x, others))
  if np.abs(first - second).max() > _DEPENDENCE * np.abs(first).max():
    raise ValueError(
        "Expected an image's logits not to depend on the other images of its "
        'batch; is the model in training mode?')


def class_count(num_classes: int,
                members: Mapping[str, attacks.Attack]) -> list[str]:
  """Returns warnings about attacks that would need more classes.

  Args:
    num_classes: K.
    members: attacks by name.
  """
  def with_loss(loss):
    return ' and '.join(name for name, attack in members.items()
                        if getattr(attack, 'loss', None) is loss)
  warnings = []
  # As in 'standard': APGD-T has less of them where it has larger radii, in L1.
  fewer = {name for name, attack in members.items()
           if getattr(attack, 'large_radii', False)}
  targeted = [name for name, attack in members.items()
              if attack.num_targets == num_classes - 1
              and num_classes <= (5 if name in fewer else 9)]
  if targeted:
    usual = ''.join(f' ({name}: 5)' for name in targeted if name in fewer)
    warnings.append(
        f'Targeted attacks ({" and ".join(targeted)}) usually have 9 target '
        f'classes{usual}; of {num_classes} classes they have '
        f'{num_classes - 1}: not comparable with the standard evaluation of '
        'more classes.')
  if num_classes < 4 and (names := with_loss(losses.targeted_dlr)):
    warnings.append(f'The targeted DLR loss needs 4 classes; {names} ascends '
                    'the margin z_t - z_y instead.')
  if num_classes < 3 and (names := with_loss(losses.dlr)):
    warnings.append(f'The DLR loss needs 3 classes; {names} ascends the '
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


def square_too_strong(robust: Mapping[str, float], squares: Collection[str],
                      individual: bool) -> list[str]:
  """Returns warnings if Square finds what attacks with gradients do not.

  Args:
    robust: robust accuracy after each attack, in the order in which they ran.
    squares: the names of those that are Square.
    individual: whether each attack had all images. Else each had what those
      before left, and only these tell: accuracies after it are not higher.
  """
  names, warnings = list(robust), []
  for position, name in enumerate(names):
    others = [robust[other] for other in (names if individual else
                                          names[:position])
              if other not in squares]
    if name in squares and others and robust[name] < min(others) - 0.002:
      warnings.append(
          f'{name} leaves a robust accuracy of {robust[name]:.2%}, attacks '
          f'with gradients alone {min(others):.2%}: gradients may be masked.')
  return warnings


def results(x_adv: np.ndarray, eps: float, norm: geometry.Distance,
            norms: np.ndarray, bounds: tuple[float, float],
            name: str = 'An attack', indices: Any = None) -> None:
  """Raises ValueError for adversarial images that are none.

  Args:
    x_adv: adversarial images `[N, ...]`.
    eps: radius.
    norm: one of `geometry.DISTANCES`.
    norms: `[N]`, of x_adv - x.
    bounds: lowest and highest pixel value.
    name: of the attack.
    indices: `[N]`, of the images in the data set; None: 0..N-1.

  Raises:
    ValueError: if they are out of the ball or the bounds, or not finite.
  """
  low, high = bounds
  slack = geometry.rounding(bounds, x_adv.dtype)
  # A NaN is in no interval.
  valid = ((x_adv >= low - slack) & (x_adv <= high + slack)).all(
      axis=tuple(range(1, x_adv.ndim)))
  # Every pixel may be rounded, but those that L0 counts differ or do not.
  valid &= norms <= eps * (1 + 1e-5) + (
      0 if norm == 'L0' else geometry.of(norm).diameter(
          x_adv.shape[1:], (0, slack)))
  if not valid.all():
    wrong = np.flatnonzero(~valid)
    raise ValueError(
        f'{name} returned images that are out of the ball or the bounds: '
        f'{_some(wrong if indices is None else np.asarray(indices)[wrong])}.')


def _unmasked(logits):
  """Returns logits with 0 for classes that are never predicted."""
  return np.where(np.isneginf(logits), 0, logits)


def _some(indices):
  shown = ', '.join(str(index) for index in indices[:10])
  return f'{shown}, ...' if len(indices) > 10 else shown
