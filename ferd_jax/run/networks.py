"""The networks that a config names: teachers with their weights, student."""

from typing import Any

from flax import linen as nn
import jax
from ml_collections import config_dict
import numpy as np

from ferd_jax import data
from ferd_jax import models
from ferd_jax.core import buckets
from ferd_jax.core import errors
from ferd_jax.core import memory
from ferd_jax.core import parallel as parallels
from ferd_jax.core import validate
from ferd_jax.models import frozen as frozens
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import robustbench

RANDOM = 'random'
NO_TEACHER = 'none'  # as its arch
OWN = 'passed from Python'  # as a network's arch

# Settings of a network that are no options of its module.
_NO_OPTIONS = ('arch', 'path', 'select', 'normaliser', 'robustbench')


def _options(network):
  return {name: value for name, value in network.items()
          if name not in _NO_OPTIONS and value is not None}


def network(options: config_dict.ConfigDict,
            info: data.DatasetInfo) -> native.Network:
  """Returns what the network of a group of the config is."""
  return native.Network(options.arch, info.image_shape[-1], info.num_classes,
                        _options(options), image_shape=info.image_shape)


def teachers(config: config_dict.ConfigDict, info: data.DatasetInfo,
             parallel: parallels.Parallel, own: tuple[nn.Module, Any] | None
             ) -> tuple[dict[str, loading.Loaded], float | None]:
  """Returns the teachers by name, and the published accuracy of the first.

  Args:
    config: of the run.
    info: what its images are.
    parallel: where random weights are drawn.
    own: module and variables in place of `config.teacher`, None for that.

  Raises:
    ValueError: for a file that does not fit its architecture.
    OSError: if a file is absent or cannot be read.
  """
  found, published = {}, None
  if own is not None:
    module, variables = own
    found[frozens.ROBUST] = loading.Loaded(
        native.Network(OWN, info.image_shape[-1], info.num_classes), module,
        {'batch_stats': {}, **variables})
  elif config.teacher.arch == NO_TEACHER:
    if config.teachers:
      raise validate.SettingError(
          'teacher.arch', NO_TEACHER, 'to be another: there are teachers '
          f'{", ".join(config.teachers)} beside it.')
  else:
    found[frozens.ROBUST], published = _teacher(
        'teacher', config.teacher, config, info, parallel)
  for name, options in config.teachers.items():
    if name in (frozens.ROBUST, frozens.STUDENT):
      raise ValueError(f'Expected teachers.{name} to have another name; '
                       f'{name!r} is taken.')
    found[name], _ = _teacher(f'teachers.{name}', options, config, info,
                              parallel)
  return found, published


def check_teacher(group: str, options: config_dict.ConfigDict,
                  config: config_dict.ConfigDict) -> None:
  """Raises ValueError for what is wrong before a file is looked at.

  Args:
    group: of the config, 'teacher' or 'teachers.<name>'.
    options: that group.
    config: of the run.
  """
  if options.arch == NO_TEACHER:
    if group != 'teacher':
      raise validate.SettingError(
          f'{group}.arch', options.arch, 'to be a network; without the group '
          f'{group} there is none.')
    for name in settings.FILE:
      if options[name]:
        raise validate.SettingError(
            f'{group}.{name}', options[name], 'to be unset: '
            f'{group}.arch={NO_TEACHER!r} says that there is no teacher.')
    return
  if options.path == RANDOM:
    return
  with validate.named(group):
    arch, given = options.arch, _options(options)
    if options.robustbench:
      entry = robustbench.find(config.data.name, options.robustbench)
      arch, given = entry.arch, entry.options_with(given)
    if arch != loading.AUTO:  # Mistakes in it come before those of a file.
      models.build(arch, data.info(config.data.name).num_classes, **given)
  if not options.path and not options.robustbench:
    raise ValueError(_no_file(group, options, config.data.name))
  with validate.named(f'{group}.path'):
    buckets.check(options.path)
  if config.data.noise_examples:
    raise validate.SettingError(
        'data.noise_examples', config.data.noise_examples, 'to be 0 beside a '
        f'named teacher ({group}.path or {group}.robustbench): what it does on '
        'noise means nothing. Leave :smoke out, which also shrinks the '
        'networks.')


def _teacher(group, options, config, info, parallel):
  """Returns a teacher, and its published clean accuracy or None."""
  arch, given, select = options.arch, _options(options), options.select
  path, published = options.path, None
  if path == RANDOM:
    return _random_teacher(group, options, config, info, parallel), None
  if options.robustbench:
    with validate.named(group):
      entry = robustbench.find(config.data.name, options.robustbench)
      arch, select = entry.arch, select or entry.select
      given = entry.options_with(given)
      path, published = path or robustbench.fetch(entry), entry.clean
  with (data.blamed(config.data.name), validate.named(f'{group}.path'),
        buckets.local(path) as file):
    loaded = loading.load(
        file, arch=arch, options=given, channels=info.image_shape[-1],
        num_classes=info.num_classes, select=select,
        image_shape=info.image_shape, normaliser=options.normaliser)
  return loaded, published


def _no_file(group, options, dataset):
  """Returns what to do about a teacher without a file."""
  text = (f'Expected {group}.path to name a file of weights of '
          f'{options.arch}: set --config.{group}.path=FILE')
  if any(entry.dataset == dataset for entry in robustbench.entries()):
    return (f'{text}, or a RobustBench id by --config.{group}.robustbench=ID; '
            'python -m ferd_jax.teachers list shows them.')
  text = f'{text}. RobustBench has no network for {dataset}: '
  if dataset in data.NAMES:
    return (f'{text}python main.py --config=teachers/{dataset} trains a robust '
            f'one, runs/teacher_{dataset}/export/student.pt '
            '(docs/teachers.md).')
  return (f'{text}train a robust one, adversarially, as the configs of '
          'configs/teachers do (docs/teachers.md).')


def _random_teacher(group, options, config, info, parallel):
  """Returns a teacher with drawn weights, to try things out."""
  with validate.named(group):
    described = network(options, info)
    model = described.build()
  memory.check(f'the {group}',
               memory.size(shapes(group, model, info.image_shape)),
               f'a smaller {group}.width')
  key = states.key_once(jax.random.key(config.seed), states.Once.TEACHER)
  def init(key, *, axis_name=None):
    del axis_name  # Every device computes the same.
    return models.init_variables(model, key, info.image_shape)
  # Compiled: op by op, XLA's CPU compiler takes seconds per kernel's shape.
  init = parallel.compile(init, (parallels.REPLICATED,), parallels.REPLICATED)
  variables = jax.tree.map(np.asarray, init(parallel.replicate(key)))
  return loading.Loaded(described, model, variables)


def shapes(group: str, model: nn.Module,
           image_shape: tuple[int, int, int]) -> Any:
  """Returns the shapes of a network's variables for images of a shape.

  Raises:
    ValueError: if it does not take such images, whatever it raises itself.
  """
  try:
    return jax.eval_shape(
        lambda key: models.init_variables(model, key, image_shape),
        jax.random.key(0))
  except Exception as error:  # A network is anybody's code.
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise ValueError(
        f'Expected the {group} {type(model).__name__} to take images of shape '
        f'{image_shape}; {kind}{errors.reason(error)}.') from error
