"""From a config to what a run needs, checked before training compiles."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import pathlib
import re
from typing import Any

from etils import epath
from flax import core as flax_core
from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

import ferd_jax
from ferd_jax import data
from ferd_jax.core import buckets
from ferd_jax.core import errors
from ferd_jax.core import memory
from ferd_jax.core import parallel as parallels
from ferd_jax.core import validate
from ferd_jax.distillation import distill
from ferd_jax.distillation import schedules
from ferd_jax.evaluation import results
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.run import checkpoints
from ferd_jax.run import data_splits
from ferd_jax.run import learning_curve
from ferd_jax.run import method as methods
from ferd_jax.run import networks
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.run import work_directory
from ferd_jax.run import writers
from ferd_jax.synthesis import device_pool
from ferd_jax.synthesis import pool
from ferd_jax.weights import loading
from ferd_jax.weights import native


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that is fixed during a run.

  Attributes:
    config: as given, locked.
    method: what is trained and how.
    student: its module, computing as every evaluation does.
    examples: images and labels of the evaluation.
    validation: those of the learning curve.
    teachers: what they are, their modules and variables, by name; {} without.
    student_network: what the student is; None for a module from Python whose
      architecture has no name.
    published: clean accuracy of the teacher where it is known, a fraction.
    identity: nested dict that tells this run from another.
  """
  config: config_dict.ConfigDict
  method: methods.Method
  student: nn.Module
  examples: data.Examples
  validation: data.Examples
  teachers: Mapping[str, loading.Loaded]
  student_network: native.Network | None
  published: float | None
  identity: Mapping[str, Any]

  @property
  def teacher(self) -> loading.Loaded | None:
    """The teacher that distillation is from, None without one."""
    return self.teachers.get(frozens.ROBUST)

  @property
  def parallel(self) -> parallels.Parallel:
    """The device mapping."""
    return self.method.parallel

  @property
  def protocol(self) -> results.Protocol:
    """How teacher and student are evaluated at the end."""
    options = self.config.eval
    return results.Protocol(
        attacks=tuple(options.attacks), eps=self.config.eps,
        seed=self.config.seed, batch_size=options.batch_size,
        ddof=options.nsd_ddof,
        autoattack_examples=options.autoattack_examples,
        target_examples=options.target_examples,
        diagnosed_examples=options.diagnosed_examples)

  @functools.cached_property
  def evaluators(self) -> dict[str, robustness.Evaluator]:
    """Teacher, if there is one, and student under all attacks of the config.

    Each is compiled at its first use, and once.
    """
    options = self.config.eval
    # Naming one more costs nothing.
    names = tuple(sorted({*options.attacks, *options.curve_attacks, 'pgd20'}))
    protocol = dataclasses.replace(self.protocol, attacks=names)
    return {name: protocol.evaluator(model, self.method.num_classes,
                                     self.parallel)
            for name, (model, _) in self.models(None).items()}

  @functools.cached_property
  def steps(self) -> methods.Steps:
    """The method's compiled functions, for all runs of this experiment."""
    return methods.compile_steps(self.method)

  @functools.cached_property
  def initial_state(self) -> Callable[[int], states.TrainState]:
    """What makes the state before the first epoch of a seed, compiled once."""
    return states.initialiser(self.method)

  def models(self, student: Any) -> dict[str, tuple[nn.Module, Any]]:
    """Returns what is evaluated: modules and variables by name.

    Args:
      student: its variables.
    """
    models = {'student': (self.student, student)}
    if self.teacher is not None:
      models = {'teacher': (self.teacher.model, self.teacher.variables)
                } | models
    return models

  @property
  def learning_curve(self) -> learning_curve.LearningCurve:
    """What measures the student while it trains."""
    options, predictor = self.config.eval, None
    if options.select == learning_curve.SYNTHETIC_PGD:
      predictor = robustness.predictor(self.teacher.model, options.batch_size,
                                       self.parallel)
    number = options.curve_examples or None
    return learning_curve.LearningCurve(
        evaluator=self.evaluators['student'],
        attacks=tuple(options.curve_attacks), split=split_name(self.config),
        images=self.validation.images[:number],
        labels=self.validation.labels[:number], teacher_predictions=predictor)

  def place_teachers(self) -> dict[str, Any]:
    """Returns the teachers' variables by name, on every device."""
    return {name: self.parallel.replicate(loaded.variables)
            for name, loaded in self.teachers.items()}


def split_name(config: config_dict.ConfigDict) -> str:
  """Returns what metrics call the images of the learning curve by."""
  if config.data.validation_split:
    return 'validation'
  return re.match(r'\w*', config.data.split)[0] or 'test'


def build(config: config_dict.ConfigDict,
          devices: tuple[jax.Device, ...] | None = None, *,
          teacher: tuple[nn.Module, Any] | None = None,
          student: nn.Module | None = None,
          to_train: bool = True) -> Experiment:
  """Returns the experiment that a config describes.

  Args:
    config: see run/settings.py.
    devices: to run on, by default all.
    teacher: any Flax module and its variables, {'params': ...} and
      'batch_stats' if it has some, in place of `config.teacher`.
    student: any Flax module, in place of `config.student`.
    to_train: False for an evaluation alone, which reads no images of the
      learning curve's own and none to train on.

  Raises:
    ValueError: for a setting out of range, a teacher whose file does not fit
      its architecture, or a data set that is not there.
    OSError: if the teacher's file is absent or cannot be read.
  """
  config = _with_unset(config)
  _check_names(config)
  parallel = parallels.create(config.parallel, devices)
  _check(config)
  if to_train:
    writers.check(config.log.writers)
  with validate.named('data'):
    info = data.info(config.data.name)
  _check_data(config, info)
  student_network = None if student is not None else networks.network(
      config.student, info)
  if student is None:
    with validate.named('student'):
      student = student_network.build()
  if teacher is None:
    networks.check_teacher('teacher', config.teacher, config)
  for name, options in config.teachers.items():
    networks.check_teacher(f'teachers.{name}', options, config)
  # Before the weights: what does not fit is blamed on the data that is wrong.
  with validate.named('data', data_dir='dir'):
    examples, validation = data_splits.judging(config, info, to_train)
  teachers, published = networks.teachers(config, info, parallel, teacher)
  dtype = None if config.precision == 'float32' else jnp.dtype(config.precision)
  given = {
      'eps': config.eps, 'step_size': _step_size(config),
      'num_epochs': config.num_epochs, 'warmup_epochs': config.warmup_epochs,
      'num_classes': info.num_classes, 'image_shape': info.image_shape,
      'teacher': forward.in_precision(teachers[frozens.ROBUST].model, dtype)
                 if teachers else None,
      'student': forward.in_precision(student, dtype),
      'teachers': flax_core.FrozenDict(
          {name: forward.in_precision(loaded.model, dtype)
           for name, loaded in teachers.items()}), 'dtype': dtype,
      'student_steps': config.distill.steps,
      'student_batch_size': config.distill.batch_size,
      'pad': config.augment.pad, 'flip': config.augment.flip}
  method = _method(config, given, parallel)
  _check_batches(config, method)
  _check_memory(config, method)
  _check_train_mode(student, config.distill.batch_size, parallel,
                    info.image_shape)
  training = None
  if to_train and method.synthesis.rounds.reads_data:
    with validate.named('data', data_dir='dir'):
      training = data_splits.training(config, info, {
          'split': examples, 'validation_split': validation})
    method = dataclasses.replace(method, training_data=training)
  return Experiment(
      config=config, method=method, student=student, examples=examples,
      validation=validation, teachers=teachers,
      student_network=student_network, published=published,
      identity=_identity(config, teachers, student_network, student, given,
                         training))


def _method(config, given, parallel):
  """Returns the method of a config."""
  parts = {}
  for group, registry in settings.REGISTRIES.items():
    if not given['teachers'] and 'teacher' in registry.asks(config[group].name):
      raise _needs_teacher(config, group)
    parts[group] = registry.build(config[group].to_dict(), given)
  synthesis, options = parts['synthesis'], config.distill
  if not (given['teachers'] or synthesis.samples_labels):
    raise _needs_teacher(config, 'synthesis')
  rounds = synthesis.rounds
  with validate.named('distill'):
    distillation = distill.Settings(
        teachers=given['teachers'], student=given['student'],
        inner=parts['inner'], outer=parts['outer'],
        optimizer=distill.sgd(
            schedules.build(
                options.schedule, options.learning_rate,
                num_epochs=config.num_epochs, first_epoch=config.warmup_epochs,
                steps_per_epoch=rounds.student_steps * rounds.per_epoch,
                milestones=options.milestones),
            options.momentum, options.weight_decay),
        batch_size=options.batch_size, pad=given['pad'], flip=given['flip'],
        mix=options.mix, mix_share=options.mix_share, average=options.average)
  measurement = parts['sampler'].measurement
  if measurement is not None and measurement.network not in (
      frozens.STUDENT, *given['teachers']):
    raise validate.SettingError(
        'sampler.name', config.sampler.name, 'to measure a network of the '
        f'run, not {measurement.network!r}.')
  return methods.Method(
      synthesis=synthesis, sampler=parts['sampler'], distillation=distillation,
      warmup_epochs=config.warmup_epochs, num_classes=given['num_classes'],
      image_shape=given['image_shape'], parallel=parallel)


def _needs_teacher(config, group):
  """Returns the error of a part that cannot do without a teacher."""
  return validate.SettingError(
      f'{group}.name', config[group].name,
      f'to need no teacher; teacher.arch={config.teacher.arch!r} says that '
      'there is none.')


def _identity(config, teachers, student_network, student, given, training):
  """Returns what tells a run from another, JSON values."""
  identity = config.to_dict() | {
      'format': work_directory.FORMAT, 'ferd_jax': ferd_jax.__version__,
      'step_size': given['step_size'],
      'teacher_digests': {name: _digest(loaded.variables)
                          for name, loaded in teachers.items()},
      'teacher_networks': {name: loaded.network.json_values()
                           for name, loaded in teachers.items()}}
  if student_network is None:
    identity['student'] = _own(student)
  if teachers and teachers[frozens.ROBUST].network.arch == networks.OWN:
    identity['teacher'] = _own(teachers[frozens.ROBUST].model)
  if training is not None:
    identity[work_directory.TRAINING_DATA] = {
        'dataset': 'noise' if config.data.noise_examples else config.data.name,
        'split': config.data.train_split, 'num_examples': len(training.labels),
        'digest': _digest([training.images, training.labels])}
  return identity


def _own(module):
  """Returns what is known of a module from Python, the same in any process."""
  return {'arch': networks.OWN,
          'module': re.sub(r' at 0x[0-9a-f]+', '', repr(module))}


def _check_names(config):
  """Raises SettingError for a setting that there is not."""
  known = dict(settings.flat(settings.defaults_like(config)))
  for name, value in settings.flat(config):
    if name not in known:
      raise validate.SettingError(
          name, value, f'to be a setting.{validate.nearest(name, known)}')


PRECISIONS = ('float32', 'bfloat16')
# Pixels of float32 in [0, 1] round by some 1e-7, attacks by 1e-6.
_LEAST_STEP = 1e-6


def _check(config):
  """Raises ValueError for the first setting out of range."""
  for name, value in settings.flat(config):
    for number in value if isinstance(value, tuple) else (value,):
      if isinstance(number, float):
        try:
          validate.sensible(**{name: number})
        except validate.SettingError as error:
          raise validate.SettingError(name, value,
                                      error.expectation) from error
  _check_name(config.name)
  validate.in_range(0, 2 ** 32 - 1, seed=config.seed)
  validate.positive(eps=config.eps)
  if config.eps < _LEAST_STEP:
    raise validate.SettingError(
        'eps', config.eps, f'>= {_LEAST_STEP:g}: less is lost in the rounding '
        'of pixels.')
  if config.eps >= 1:
    raise validate.SettingError('eps', config.eps, '< 1, in [0, 1] pixels.')
  if config.step_size is not None:
    validate.positive(step_size=config.step_size)
    validate.in_range(0, 1, step_size=config.step_size)
  if _step_size(config) < _LEAST_STEP:
    by_default = ' (unset: eps / 4)' if config.step_size is None else ''
    raise validate.SettingError(
        'step_size', _step_size(config), f'>= {_LEAST_STEP:g}{by_default}: '
        'less is lost in the rounding of pixels.')
  validate.one_of(PRECISIONS, precision=config.precision)
  validate.count(num_epochs=config.num_epochs)
  validate.count(0, warmup_epochs=config.warmup_epochs)
  validate.non_negative(max_minutes=config.max_minutes)
  if config.warmup_epochs >= config.num_epochs:
    raise validate.SettingError(
        'warmup_epochs', config.warmup_epochs, 'below num_epochs='
        f'{config.num_epochs}: the student would never be trained.')
  with validate.named('distill'):
    validate.count(steps=config.distill.steps)
  with validate.named('pool'):
    validate.one_of(pool.DTYPES, dtype=config.pool.dtype)
    validate.one_of(device_pool.PLACES, place=config.pool.place)
  options = config.eval
  with validate.named('eval'):
    robustness.check_names(attacks=options.attacks,
                           curve_attacks=options.curve_attacks)
    validate.one_of((0, 1), nsd_ddof=options.nsd_ddof)
    _check_directory('teacher_dir', options.teacher_dir)
    validate.count(0, every=options.every,
                   autoattack_examples=options.autoattack_examples,
                   target_examples=options.target_examples,
                   diagnosed_examples=options.diagnosed_examples,
                   curve_examples=options.curve_examples)
    measured = [f'{split_name(config)}_{attack}{kind}'
                for attack in options.curve_attacks
                for kind in ('', '_worst')]
    validate.one_of((checkpoints.LAST, learning_curve.SYNTHETIC_PGD,
                     *measured),
                    select=options.select)
    if (options.select == learning_curve.SYNTHETIC_PGD
        and config.teacher.arch == networks.NO_TEACHER):
      raise validate.SettingError(
          'select', options.select, 'to need no teacher to judge by; there is '
          'none.')
    if options.select != checkpoints.LAST and not options.every:
      raise validate.SettingError(
          'every', options.every, f'> 0, as eval.select={options.select!r} is '
          'measured then.')
  with validate.named('log'):
    validate.count(0, samples_every=config.log.samples_every)
    for name in config.log.writers:
      validate.one_of(writers.WRITERS, writers=name)
    if len(set(config.log.writers)) < len(config.log.writers):
      raise validate.SettingError('writers', tuple(config.log.writers),
                                  'to name each once.')


def _check_directory(setting, place):
  """Raises ValueError for a file, or a bucket that nothing here can read."""
  buckets.check(place)
  if place and pathlib.Path(place).is_file():
    raise validate.SettingError(setting, place, 'to be a directory.')


def _check_name(name):
  """Raises SettingError for a name that no directory can have."""
  if not name.strip() or name in ('.', '..') or not name.isprintable() or (
      '/' in name or '\\' in name or len(name) > 200):
    raise validate.SettingError('name', name, 'to name a directory.')


def _check_memory(config, method):
  """Raises ValueError for what this host cannot hold, before it is made."""
  synthesis, rounds = method.synthesis, method.synthesis.rounds
  image = int(np.prod(method.image_shape))
  if rounds.pooled:
    number = config.num_epochs * rounds.per_epoch * synthesis.batch_size
    memory.check(
        f'a pool of {number:,} images', number * (
            image * np.dtype(config.pool.dtype).itemsize + 4),
        'fewer num_epochs, a smaller synthesis.batch_size' + (
            ', or pool.dtype=uint8' if config.pool.dtype != 'uint8' else ''))
    # Twice: permutations, and their sum cut into batches.
    _check_order(rounds.student_steps, 16 * config.distill.batch_size)
  if rounds.reads_data:
    # As above, with how often each image comes and has come.
    _check_order(rounds.per_epoch * (
        1 if rounds.pooled else rounds.student_steps) + 1,
                 32 * synthesis.batch_size)
  for group, size in (('synthesis', synthesis.batch_size),
                      ('distill', config.distill.batch_size),
                      ('eval', config.eval.batch_size)):
    # The images, what is made of them, and a gradient.
    memory.check(f'{group}.batch_size={size:,} images', 12 * image * size,
                 'a smaller batch')
  networks.shapes('student', method.distillation.student, method.image_shape)
  try:
    shapes = states.shapes(method)
  except Exception as error:  # A part is anybody's code.
    raise ValueError('Expected a state of the run that can be made: '
                     f'{errors.reason(error)}.') from error
  sizes = [name for name in _SIZES if name in dict(settings.flat(config))]
  memory.check('student and synthesis', memory.size(shapes),
               f'smaller {", ".join(sizes[:-1])} or {sizes[-1]}')


# Settings that the state of a run grows with, of those that a method has.
_SIZES = ('synthesis.bank_size', 'student.width', 'synthesis.width',
          'synthesis.nz')


def _check_order(steps, bytes_of_batch):
  """Raises ValueError for more batches than can be put in an order."""
  memory.check(f'the order of {steps:,} batches', steps * bytes_of_batch,
               'fewer distill.steps')


def _check_batches(config, method):
  """Raises SettingError for batches that devices or phases cannot share."""
  synthesis, count = method.synthesis, method.parallel.num_devices
  for group, size in (('synthesis', synthesis.batch_size),
                      ('distill', config.distill.batch_size),
                      ('eval', config.eval.batch_size)):
    with validate.named(group):
      validate.count(batch_size=size)
      validate.divisible(count, 'devices', batch_size=size)
  if synthesis.rounds.pooled:
    return
  if config.eval.select == learning_curve.SYNTHETIC_PGD:
    raise validate.SettingError(
        'eval.select', config.eval.select, 'to be another choice: '
        f'{config.synthesis.name!r} keeps no images to judge by.')
  if config.distill.batch_size != synthesis.batch_size:
    raise validate.SettingError(
        'distill.batch_size', config.distill.batch_size, 'to be '
        f'synthesis.batch_size={synthesis.batch_size}: '
        f'{config.synthesis.name!r} makes fresh images for every step.')


def _check_data(config, info):
  """Raises ValueError for data that the networks cannot take."""
  height, width, channels = info.image_shape
  if channels not in (1, 3):
    raise ValueError(
        f'Expected image_shape={info.image_shape} of data.name='
        f'{config.data.name!r} to have 1 or 3 channels.')
  if info.num_classes < 2:
    raise ValueError(f'Expected num_classes={info.num_classes} of data.name='
                     f'{config.data.name!r} >= 2.')
  with validate.named('data'):
    validate.count(0, noise_examples=config.data.noise_examples)
  with validate.named('augment'):
    validate.count(0, pad=config.augment.pad)
    validate.in_range(0, min(height, width) - 1, pad=config.augment.pad)
  for name in ('teacher', 'student'):
    for statistic in ('mean', 'std'):
      values = config[name][statistic]
      if values is not None and len(values) not in (1, channels):
        raise validate.SettingError(
            f'{name}.{statistic}', values,
            f'to have {channels} values, one per channel.')


def _check_train_mode(student, batch_size, parallel, image_shape):
  """Raises ValueError for a student that cannot be trained."""
  images = jax.ShapeDtypeStruct((batch_size, *image_shape), np.float32)
  shapes = networks.shapes('student', student, image_shape)
  if parallel.num_devices > 1 and not forward.synchronises(student, shapes):
    raise ValueError(
        f'Expected {type(student).__name__} to have a field axis_name for its '
        'BatchNorm layers, over which their statistics are synchronised on '
        f'{parallel.num_devices} devices; or use parallel=jit.')
  with validate.named(f'distill.batch_size={batch_size}'):
    jax.eval_shape(
        lambda v, x: forward.train_logits(student, v, x), shapes, images)


def _step_size(config):
  return config.eps / 4 if config.step_size is None else config.step_size


def _with_unset(config):
  """Returns the config with None for each '' that stands for it.

  A command line can say '' only.
  """
  config = config.copy_and_resolve_references()
  for name, value in list(settings.flat(config)):
    if isinstance(value, str) and not value and (
        settings.may_be_unset(name, config)):
      *groups, leaf = name.split('.')
      settings_of = config
      for group in groups:
        settings_of = settings_of[group]
      settings_of[leaf] = None
  return config


def _digest(variables):
  """Returns a hash of all weights: a teacher may move, but not change."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


# What an identity holds beside the config.
_FOUND = ('format', 'ferd_jax', 'teacher_digests', 'teacher_networks',
          work_directory.TRAINING_DATA)


def saved_config(workdir: epath.PathLike) -> config_dict.ConfigDict:
  """Returns the config of a run from its work directory.

  A setting that the run did not have yet gets its default.

  Raises:
    ValueError: if there is none that can be read, or it is of another format.
  """
  saved = work_directory.saved_identity(workdir)
  work_directory.check_format(workdir, saved)
  try:
    config = settings.defaults_like(saved)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(f'Cannot read {workdir}/config.json: '
                     f'{errors.reason(error)}.') from error
  known = dict(settings.flat(config))
  values = {name: value for name, value in settings.flat(saved)
            if name in known}
  unknown = sorted(
      name for name, _ in settings.flat(saved)
      if name not in known and name.partition('.')[0] not in _FOUND)
  if networks.OWN in (dict(settings.flat(saved)).get(f'{name}.arch')
                      for name in ('student', 'teacher')):
    raise ValueError(f'{workdir} has networks that were {networks.OWN}; '
                     'evaluate it there, by train.evaluate_run.')
  if unknown:
    raise ValueError(
        f'{workdir} is a run with settings that this version does not have: '
        f'{", ".join(unknown)}.')
  try:
    config.update_from_flattened_dict(values)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(f'Cannot read {workdir}/config.json: '
                     f'{errors.reason(error)}.') from error
  return config
