"""What makes the numbers of a run doubtful, said while it can be stopped."""

from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from ferd_jax import models
from ferd_jax.models import forward

_ALIKE = 1e-3  # standard deviation of pixels, in [0, 1]


def of_settings(config: config_dict.ConfigDict, step_size: float) -> list[str]:
  """Returns what is doubtful about a config that is in range.

  Args:
    config: see run/settings.py.
    step_size: of the attacks, in [0, 1] pixels.
  """
  found = []
  for group, name in (('inner', 'steps'), ('sampler', 'attack_steps')):
    steps = config[group].get(name)
    if steps is not None and steps * step_size < config.eps / 4:
      found.append(
          f'{group}.{name}={steps} steps of step_size={step_size:.3g} go no '
          f'further than {steps * step_size / config.eps:.2%} of '
          f'eps={config.eps:.3g}.')
  return found


def of_precision(precision: str, networks: Mapping[str, nn.Module],
                 image_shape: tuple[int, int, int]) -> list[str]:
  """Returns which networks do not compute in the precision of a run.

  Args:
    precision: the setting.
    networks: modules, by what they are.
    image_shape: (H, W, channels).
  """
  if precision == 'float32':
    return []
  return [f'precision={precision} changes nothing about the {name} '
          f'{type(model).__name__}, which has no field dtype or does not give '
          'it to its layers.'
          for name, model in networks.items()
          if not forward.follows_precision(
              model, models.abstract_variables(model, image_shape),
              image_shape, jnp.dtype(precision))]


def of_epoch(metrics: Mapping[str, float], images: np.ndarray,
             num_classes: int) -> dict[str, str]:
  """Returns what is doubtful about what an epoch made, by kind.

  Args:
    metrics: of the epoch.
    images: `[B, H, W, C]` that it made, in [0, 1].
    num_classes: K.
  """
  found = {}
  agreement = metrics.get('synthesis/kept_agreement')
  if agreement is not None and agreement < 0.5 / num_classes:
    found['agreement'] = (
        f'the teacher predicts the sampled label on {agreement:.1%} of the '
        f'images, fewer than by chance ({1 / num_classes:.1%}): the labels say '
        'nothing about the images (synthesis.w_oh is their weight)')
  if len(images) > 1:
    spread = float(np.std(images, axis=0).mean())
    if not spread > _ALIKE:
      found['generator'] = (
          f'the images are all alike (standard deviation {spread:.1g}): the '
          'generator seems to be dead (smaller synthesis.generator_lr?)')
  largest = metrics.get('sampler/max_prob')
  if largest is not None and largest > 0.99:
    found['sampler'] = (
        f'one class has {largest:.1%} of the probability: the others are not '
        'made any more (a larger sampler.tau is more even)')
  return found
