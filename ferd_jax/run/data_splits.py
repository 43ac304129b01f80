"""The images that a config names: those to judge by, those to train on."""

from collections.abc import Mapping

from ml_collections import config_dict
import numpy as np

from ferd_jax import data
from ferd_jax.core import memory
from ferd_jax.core import validate

# Of examples to judge by, those that may be among the training images all the
# same: data sets have a few images twice.
_TWICE = 0.05


def judging(config: config_dict.ConfigDict, info: data.DatasetInfo,
            to_train: bool) -> tuple[data.Examples, data.Examples]:
  """Returns examples of the evaluation and of the learning curve.

  Args:
    config: of the run.
    info: what its images are.
    to_train: whether there will be a learning curve.
  """
  examples = _load(config, info, 'split')
  if not (config.data.validation_split and to_train):
    return examples, examples
  return examples, _load(config, info, 'validation_split')


def training(config: config_dict.ConfigDict, info: data.DatasetInfo,
             judges: Mapping[str, data.Examples]) -> data.Examples:
  """Returns real examples to train on.

  Args:
    config: of the run.
    info: what its images are.
    judges: examples to judge by, by the setting that names them.

  Raises:
    SettingError: if examples to judge by, by setting, are among them.
  """
  found = _load(config, info, 'train_split')
  for name, examples in judges.items():
    if config.data[name]:
      _check_disjoint(config.data, name, examples, found)
  return found


def _load(config, info, setting):
  """Returns the examples that a setting names, or noise in their place."""
  options = config.data
  if not options.noise_examples:
    return data.load(options.name, options[setting],
                     data_dir=options.dir or None)
  # Others for each split.
  number = ('split', 'validation_split', 'train_split').index(setting)
  rng = np.random.default_rng([config.seed, number] if number else config.seed)
  size = options.noise_examples
  memory.check(f'data.noise_examples={size:,} images',
               5 * size * int(np.prod(info.image_shape)), 'fewer of them')
  return data.Examples(
      images=rng.integers(0, 256, (size, *info.image_shape), np.uint8),
      labels=rng.integers(0, info.num_classes, size, np.int32),
      class_names=info.class_names)


def _check_disjoint(options, name, examples, training):
  """Raises SettingError if a network would be judged by what it learned."""
  known = {hash(image.tobytes()) for image in training.images}
  both = sum(hash(image.tobytes()) in known for image in examples.images)
  if both > _TWICE * len(examples.images):
    raise validate.SettingError(
        name, options[name], f'to have other images than train_split='
        f'{options.train_split!r}: {both} of {len(examples.images)} are the '
        'same, and a network is not judged by what it was trained on.')
