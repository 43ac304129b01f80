"""From a config to what a run needs, with every check before any compile."""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from etils import epath
import jax
from ml_collections import config_dict
import numpy as np

from ferd_jax import attacks
from ferd_jax import data
from ferd_jax import models
from ferd_jax.core import parallel as parallels
from ferd_jax.core import validate
from ferd_jax.distillation import distill
from ferd_jax.distillation import inner
from ferd_jax.distillation import outer
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import target_analysis
from ferd_jax.models import forward
from ferd_jax.run import state as states
from ferd_jax.run import work_directory
from ferd_jax.synthesis import bottleneck
from ferd_jax.synthesis import class_weights
from ferd_jax.synthesis import ferd
from ferd_jax.synthesis import pool
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import robustbench

SYNTHETIC_PGD = 'synthetic_pgd'  # a choice of epoch that needs no data
RANDOM = 'random'


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that is fixed during a run.

  Attributes:
    config: as given, locked.
    parallel: the device mapping.
    num_classes: of the data set, the teacher and the student.
    image_shape: (H, W, channels).
    examples: images and labels of the evaluation.
    teacher: what the teacher is, its module and variables.
    published: clean accuracy of the teacher where it is known, a fraction.
    synthesis: settings of the generator phase.
    margin_attack: on the teacher, behind the margins.
    class_rule: how margins become class probabilities.
    distillation: settings of the student phase.
    identity: nested dict that tells this run from another.
  """
  config: config_dict.ConfigDict
  parallel: parallels.Parallel
  num_classes: int
  image_shape: tuple[int, int, int]
  examples: data.Examples
  teacher: loading.Loaded
  published: float | None
  synthesis: ferd.Synthesis
  margin_attack: attacks.PGD
  class_rule: class_weights.Rule
  distillation: distill.Distillation
  identity: Mapping[str, Any]

  @functools.cached_property
  def teacher_evaluator(self) -> robustness.Evaluator:
    """The teacher under all attacks of the config, each compiled once."""
    return self._evaluator(self.synthesis.teacher)

  @functools.cached_property
  def student_evaluator(self) -> robustness.Evaluator:
    """The student under all attacks of the config, each compiled once."""
    return self._evaluator(self.synthesis.student)

  def target_analysis(self, model) -> target_analysis.TargetAnalysis:
    """Returns what measures which targets a model is weak against."""
    return target_analysis.TargetAnalysis(
        model, target_analysis.targeted_pgd20(self.config.eps),
        self.num_classes, self.config.eval.batch_size, self.parallel)

  def _evaluator(self, model):
    config = self.config
    # Compiled at first use: naming one more costs nothing.
    names = {*config.eval.attacks, *config.eval.curve_attacks, 'pgd20'}
    return robustness.evaluator(
        model, sorted(names), config.eps, self.num_classes,
        config.eval.batch_size, self.parallel, ddof=config.eval.nsd_ddof,
        autoattack_examples=config.eval.autoattack_examples)


def saved_config(workdir: epath.PathLike) -> config_dict.ConfigDict:
  """Returns the config of a run from its work directory.

  Raises:
    ValueError: if there is none that can be read.
  """
  identity = work_directory.saved_identity(workdir)
  for found in ('teacher_digest', 'teacher_network'):
    identity.pop(found, None)
  return config_dict.ConfigDict(identity)


def build(config: config_dict.ConfigDict,
          devices: tuple[jax.Device, ...] | None = None) -> Experiment:
  """Returns the experiment that a config describes.

  Args:
    config: see configs/default.py.
    devices: to run on, by default all.

  Raises:
    ValueError: for a setting out of range, a teacher whose file does not fit
      its architecture, or a data set that is not there.
    OSError: if the teacher's file is absent or cannot be read.
  """
  config = _with_unset(config)
  parallel = parallels.create(config.parallel, devices)
  _check(config, parallel.num_devices)
  with validate.named('data.name'):
    info = data.info(config.data.name)
  height, _, channels = info.image_shape
  _check_data(config, info)
  student = _student(config, info)
  loaded, published = _teacher(config, info, parallel)
  teacher = loaded.model
  tap = config.features.tap or teacher.default_tap
  validate.one_of(teacher.stages[:-1], **{'features.tap': tap})
  _check_tap(teacher, tap, info.image_shape)
  _check_train_mode(student, config.distill.batch_size, info.image_shape)
  with validate.named('data', data_dir='dir'):
    examples = _examples(config, info)

  augmentation = dict(pad=config.augment.pad, flip=config.augment.flip)
  step_size = _step_size(config)
  bottleneck = _bottleneck(config.features, teacher, tap)
  options = config.synthesis
  with validate.named('synthesis'):
    generator_phase = ferd.Synthesis(
        generator=models.Generator(side=height, channels=channels,
                                   width=options.width),
        teacher=teacher, student=student, tap=tap,
        batch_size=options.batch_size, nz=options.nz,
        generator_lr=options.generator_lr, latent_lr=options.latent_lr,
        w_bn=options.w_bn, w_oh=options.w_oh, w_adv=options.w_adv,
        w_uni=options.w_uni, keep=options.keep, bottleneck=bottleneck,
        margin_batch=config.class_weights.batch, **augmentation)
  options = config.distill
  with validate.named('distill', num_steps='attack_steps', gamma='utae_gamma',
                      source='utae_source', prior='ikl_prior', norm='ikl_norm',
                      power='ikl_power'):
    student_phase = distill.Distillation(
        teacher=teacher, student=student,
        inner=inner.UniformTarget(
            attacks.UTAE(config.eps, step_size, options.attack_steps,
                         gamma=options.utae_gamma),
            source=options.utae_source),
        outer=outer.DecoupledKL(
            w_clean=options.w_clean, w_adv=options.w_adv,
            prior=options.ikl_prior, norm=options.ikl_norm,
            power=options.ikl_power),
        batch_size=options.batch_size, learning_rate=options.learning_rate,
        num_epochs=config.num_epochs, momentum=options.momentum,
        weight_decay=options.weight_decay, **augmentation)
  options = config.class_weights
  with validate.named('class_weights', num_steps='attack_steps'):
    margin_attack = attacks.PGD(config.eps, step_size, options.attack_steps)
    rule = class_weights.Rule(options.rule, options.tau, tuple(options.range),
                              options.absent)
  return Experiment(
      config=config, parallel=parallel, num_classes=info.num_classes,
      image_shape=info.image_shape, examples=examples,
      teacher=loaded, published=published, synthesis=generator_phase,
      margin_attack=margin_attack, class_rule=rule,
      distillation=student_phase,
      identity=config.to_dict() | {
          'step_size': step_size, 'teacher_digest': _digest(loaded.variables),
          'teacher_network': loaded.network.json_values()})


def _check(config, num_devices):
  """Raises ValueError for the first setting out of range."""
  validate.in_range(0, 2 ** 32 - 1, seed=config.seed)
  validate.positive(eps=config.eps)
  if config.eps >= 1:
    raise ValueError(f'Expected eps={config.eps!r} < 1, in [0, 1] pixels.')
  if config.step_size is not None:
    validate.positive(step_size=config.step_size)
    validate.in_range(0, 1, step_size=config.step_size)
  validate.positive(num_epochs=config.num_epochs)
  validate.non_negative(warmup_epochs=config.warmup_epochs,
                        max_minutes=config.max_minutes)
  if config.warmup_epochs >= config.num_epochs:
    raise ValueError(
        f'Expected warmup_epochs={config.warmup_epochs} below '
        f'num_epochs={config.num_epochs}: the student would never be trained.')
  for name in ('synthesis', 'distill', 'eval'):
    size = config[name].batch_size
    validate.positive(**{f'{name}.batch_size': size})
    validate.divisible(num_devices, 'devices', **{f'{name}.batch_size': size})
  for name in ('synthesis', 'distill'):
    validate.positive(**{f'{name}.steps': config[name].steps})
  validate.positive(**{'synthesis.width': config.synthesis.width})
  validate.divisible(2, 'channels',
                     **{'synthesis.width': config.synthesis.width})
  validate.one_of(pool.DTYPES, **{'pool.dtype': config.pool.dtype})
  robustness.check_names(**{
      f'eval.{name}': config.eval[name] for name in ('attacks',
                                                     'curve_attacks')})
  validate.one_of(ferd.MARGIN_BATCHES,
                  **{'class_weights.batch': config.class_weights.batch})
  if not (config.distill.w_clean or config.distill.w_adv):
    raise ValueError('Expected one of distill.w_clean, distill.w_adv above 0.')
  validate.one_of((0, 1), **{'eval.nsd_ddof': config.eval.nsd_ddof})
  validate.non_negative(**{
      'eval.every': config.eval.every,
      'eval.autoattack_examples': config.eval.autoattack_examples,
      'eval.target_examples': config.eval.target_examples,
      'eval.curve_examples': config.eval.curve_examples,
      'log.samples_every': config.log.samples_every})
  select = config.eval.select
  measured = [f'test_{attack}{kind}' for attack in config.eval.curve_attacks
              for kind in ('', '_worst')]
  validate.one_of((work_directory.LAST, SYNTHETIC_PGD, *measured),
                  **{'eval.select': select})
  if select != work_directory.LAST and not config.eval.every:
    raise ValueError(f'Expected eval.every=0 > 0, as eval.select={select!r} '
                     'is measured then.')


def _check_data(config, info):
  """Raises ValueError for data that the networks cannot take."""
  height, width, channels = info.image_shape
  if height != width or height % 4 or channels not in (1, 3):
    raise ValueError(
        f'Expected image_shape={info.image_shape} of data.name='
        f'{config.data.name!r} to be square, its side divisible by 4, with 1 '
        'or 3 channels.')
  if info.num_classes < 2:
    raise ValueError(f'Expected num_classes={info.num_classes} of data.name='
                     f'{config.data.name!r} >= 2.')
  validate.non_negative(**{'data.noise_examples': config.data.noise_examples})
  validate.in_range(0, height - 1, **{'augment.pad': config.augment.pad})
  for name in ('teacher', 'student'):
    for statistic in ('mean', 'std'):
      values = config[name][statistic]
      if values is not None and len(values) not in (1, channels):
        raise ValueError(f'Expected {name}.{statistic}={values!r} to have '
                         f'{channels} values, one per channel.')


def _check_tap(teacher, tap, image_shape):
  """Raises ValueError if channels at the tap have no spatial variance."""
  image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  variables = jax.eval_shape(
      lambda key: models.init_variables(teacher, key, image_shape),
      jax.random.key(0))
  latent = jax.eval_shape(
      lambda v, x: forward.logits(teacher, v, x, stop=tap), variables, image)
  if latent.shape[1] * latent.shape[2] < 2:
    raise ValueError(
        f'Expected bottleneck.tap={tap!r} to have more than one position, got '
        f'the shape {latent.shape[1:]}; choose an earlier stage of '
        f'{teacher.stages}.')


def _check_train_mode(student, batch_size, image_shape):
  """Raises ValueError if BatchNorm would see one value per channel."""
  images = jax.ShapeDtypeStruct((batch_size, *image_shape), np.float32)
  def step(key, images):
    variables = models.init_variables(student, key, image_shape)
    return forward.train_logits(student, variables, images)
  with validate.named(f'distill.batch_size={batch_size}'):
    jax.eval_shape(step, jax.random.key(0), images)


def _step_size(config):
  return config.eps / 4 if config.step_size is None else config.step_size


# Settings of a network that are no options of its module.
_NO_OPTIONS = ('arch', 'path', 'select', 'robustbench')


def _options(network):
  return {name: value for name, value in network.items()
          if name not in _NO_OPTIONS and value is not None}


def _with_unset(config):
  """Returns the config with None for each '' in the settings of a network.

  A command line can say '' only.
  """
  config = config.copy_and_resolve_references()
  for network in (config.teacher, config.student):
    for name, value in network.items():
      if name != 'path' and value == '':
        network[name] = None
  return config


def _student(config, info):
  with validate.named('student'):
    return models.build(config.student.arch, info.num_classes,
                        **_options(config.student))


def _bottleneck(options, teacher, tap):
  # On CPU a loop around convolutions must be unrolled; after the last stage
  # before the head there are none.
  linear_tail = tap == teacher.stages[-2]
  with validate.named('features'):
    return bottleneck.Bottleneck(
        steps=options.steps, learning_rate=options.learning_rate,
        beta=options.beta, kl=options.kl, mask=options.mask,
        unroll=False if linear_tail else None)


def _teacher(config, info, parallel):
  """Returns the teacher, and its published clean accuracy or None."""
  settings, channels = config.teacher, info.image_shape[-1]
  arch, options, select = settings.arch, _options(settings), settings.select
  path, published = settings.path, None
  if path == RANDOM:
    return _random_teacher(config, info, parallel), None
  if settings.robustbench:
    with validate.named('teacher'):
      entry = robustbench.find(config.data.name, settings.robustbench)
      arch, select = entry.arch, select or entry.select
      options = entry.options_with(options)
      path, published = path or robustbench.fetch(entry), entry.clean
  if not path:
    raise ValueError('Expected teacher.path to name a file; set '
                     '--config.teacher.path=FILE, or a RobustBench id by '
                     '--config.teacher.robustbench=ID.')
  with validate.named('teacher'):
    if arch != loading.AUTO:  # Mistakes in it come before those of a file.
      models.build(arch, info.num_classes, **options)
  with validate.named('teacher.path'):
    loaded = loading.load(
        pathlib.Path(path).expanduser(), arch=arch, options=options,
        channels=channels, num_classes=info.num_classes, select=select)
  return loaded, published


def _random_teacher(config, info, parallel):
  """Returns a teacher with drawn weights, to try things out."""
  with validate.named('teacher'):
    network = native.Network(config.teacher.arch, info.image_shape[-1],
                             info.num_classes, _options(config.teacher))
    model = network.build()
  key = states.key_once(jax.random.key(config.seed), states.Once.TEACHER)
  def init(key, *, axis_name=None):
    del axis_name  # Every device computes the same.
    return models.init_variables(model, key, info.image_shape)
  # Compiled: op by op, XLA's CPU compiler takes seconds per kernel's shape.
  init = parallel.compile(init, (parallels.REPLICATED,), parallels.REPLICATED)
  variables = jax.tree.map(np.asarray, init(parallel.replicate(key)))
  return loading.Loaded(network, model, variables)


def _examples(config, info):
  options = config.data
  if options.noise_examples:
    rng = np.random.default_rng(config.seed)
    size = options.noise_examples
    return data.Examples(
        images=rng.integers(0, 256, (size, *info.image_shape), np.uint8),
        labels=rng.integers(0, info.num_classes, size, np.int32),
        class_names=info.class_names)
  return data.load(options.name, options.split, data_dir=options.dir or None)


def _digest(variables):
  """Returns a hash of all weights: a teacher may move, but not change."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


