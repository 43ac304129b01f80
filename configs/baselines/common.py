"""What the configs of the baselines share.

  --config=baselines/cmi                      CIFAR-10
  --config=baselines/cmi:digits               another data set
  --config=baselines/cmi:digits,zju,smoke     variants: the method's own, and
                                              those of the data set's config

Data set, networks, optimiser, epochs and student steps are those of the data
set's own config, the same for every method; what a baseline brings is its
synthesis, with its original's constants. docs/baselines.md has them, and what
differs from the originals.
"""

from collections.abc import Callable
import importlib
from typing import Any

from ml_collections import config_dict

from configs import variants
from ferd_jax.run import settings

DATA_SETS = ('cifar10', 'cifar100', 'tiny_imagenet', 'cifar10_resnet20',
             'digits', 'fashion_mnist')
# Whose teachers are ResNets of 8 to 20 layers, and whose runs fit a CPU.
_SMALL = ('cifar10_resnet20', 'digits', 'fashion_mnist')
# The student's attack and loss, for every synthesis, unless a variant has them.
_LOSS = 'rslad'
# No sampler steers a baseline.
_SAMPLER = 'uniform'

Change = Callable[[config_dict.ConfigDict], None]


def get_config(synthesis: str, variant: str, *, original: dict[str, Any],
               own: dict[str, Change] | None = None, data: Change | None = None,
               warmup: bool = True) -> config_dict.ConfigDict:
  """Returns the config of a baseline on a data set.

  Args:
    synthesis: the part.
    variant: as written after the colon: a data set, variants, or both.
    original: settings that say how much is computed, with the original's
      values; on small data sets those are of the data set's config.
    own: variants of the method, by name.
    data: changes what the original has for another data set.
    warmup: whether images are made before the student is trained. Without,
      there are as many fewer epochs: the student has its steps all the same.

  Raises:
    ValueError: for an unknown variant, or one of FERD's parts, which a
      baseline does not have.
  """
  own = own or {}
  names = [name for name in variant.split(',') if name]
  chosen = [name for name in names if name in DATA_SETS]
  if len(chosen) > 1:
    raise ValueError(f'Expected one data set, got {", ".join(chosen)}.')
  data_set = chosen[0] if chosen else DATA_SETS[0]
  others = [name for name in names if name not in (*DATA_SETS, *own)]
  for name in others:
    if variants.changes_ferd(name):
      raise ValueError(
          f'Expected variant={name!r} to be of {synthesis!r}, a data set or a '
          'loss: it changes a part of FERD, which this method does not have.')
  config = importlib.import_module(f'configs.{data_set}').get_config(
      ','.join(others))
  small = data_set in _SMALL or 'smoke' in others
  settings.use(config, 'synthesis', synthesis)
  settings.use(config, 'sampler', _SAMPLER)
  if not any(name in variants.LOSSES for name in others):
    variants.use_loss(config, _LOSS)
  if not small:
    config.synthesis.update(original)
  if data is not None:
    data(config)
  for name, change in own.items():
    if name in names:
      change(config)
  if data_set in _SMALL and config.synthesis.get('w_bn', 0) and (
      'w_oh' in config.synthesis):
    # As FERD's: L_bn of a small teacher outweighs the label's loss. Variants
    # of the method, which have the original's weights, are scaled alike.
    config.synthesis.w_oh *= 10
  if 'student_steps_per_round' in config.synthesis:
    # The student is trained on the very batches that are made.
    config.synthesis.batch_size = config.distill.batch_size
  if not warmup:
    config.num_epochs -= config.warmup_epochs
    config.warmup_epochs = 0
  suffixes = [name for name in names if name not in DATA_SETS]
  config.name = '_'.join((data_set, synthesis, *suffixes))
  return config
