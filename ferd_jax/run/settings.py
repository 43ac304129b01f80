"""Every setting of a run once: its default, which is the paper's, and meaning.

"Paper" is arXiv:2509.20793, "code" its public implementation, GitHub
mayaobuduyao/FERD, used where the paper is silent; docs/differences.md lists
where they differ. The groups `synthesis`, `sampler`, `inner` and `outer` each
name a part and hold its settings, see `core.parts`: the defaults are its own.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from ml_collections import config_dict

from ferd_jax import distillation
from ferd_jax import synthesis
from ferd_jax.core import validate


class _Unset(NamedTuple):
  """The default of a setting that may be unset: its type."""
  type: type


_RUN = {
    'name': ('default', 'of the work directory and in tables'),
    'seed': (0, 'of all that is random'),
    'num_epochs': (220, 'how many; paper'),
    'warmup_epochs': (20, 'the first, in which the student is not trained; '
                      'paper'),
    'eps': (8 / 255, 'L-infinity radius of every attack, in [0, 1] pixels; '
            'paper'),
    'step_size': (_Unset(float), 'of the attacks while training; unset: '
                  "eps / 4, the paper's 2/255"),
    'parallel': ('auto', 'auto, jit, pmap or shard_map'),
    'precision': ('float32', 'in which networks compute while training: '
                  'float32, or bfloat16 for GPUs and TPUs; parameters, '
                  'statistics, losses and the optimiser are float32 in either, '
                  'and so is every evaluation'),
    'max_minutes': (0., 'start no epoch that would end later; 0: no limit'),
}
_DATA = {  # for evaluation, unless the synthesis reads real images
    'name': ('cifar10', 'of ferd_jax.data.NAMES, or a path to an .npz'),
    'dir': ('', "of TFDS; '' is TFDS's own default"),
    'split': ('test', 'TFDS syntax, such as test[:1000]'),
    'validation_split': ('', 'of the learning curve and the choice of epoch; '
                         "'': the first images of split"),
    'train_split': ('train', 'real images, of a synthesis that reads such '
                    '(real); no others are read for training'),
    'noise_examples': (0, '> 0: that many images of noise instead (smoke)'),
}
NETWORK = {  # what networks of a group have besides their architecture
    'width': (_Unset(int), 'channels of the first convolution'),
    'mean': (_Unset(tuple), 'normalisation inside the network'),
    'std': (_Unset(tuple), 'normalisation inside the network'),
    'standardise': (_Unset(bool), 'every image by its own mean and standard '
                    'deviation instead'),
    'activation': (_Unset(str), 'relu or silu'),
    'padding': (_Unset(str), 'of convolutions of stride 2: both or same'),
    'shortcut': (_Unset(str), 'of cifar_resnet: pad_both, pad_after or conv'),
    'shortcut_input': (_Unset(str), 'of preact_resnet: input or preact'),
    'final_bn': (_Unset(bool), 'of preact_resnet'),
    'stem': (_Unset(str), 'of resnet, first convolution and its stride: 3x3, '
             '3x3/2, 7x7 or 7x7/2'),
    'pooling': (_Unset(str), 'of resnet, after it: none or max'),
    'patch': (_Unset(int), "of xcit, pixels of a token's side: 1, 2, 4, 8 or "
              '16'),
    'straight_through': (_Unset(bool), 'of MeanSparse layers: gradients as if '
                         'they changed nothing'),
}
FILE = {  # what those that are read from one have besides
    'robustbench': (_Unset(str), 'a RobustBench id (python -m '
                    'ferd_jax.teachers list), L2/ID for one against L2, '
                    'which sets arch and all that belongs to it; its file '
                    'is fetched if no path is given'),
    'path': ('', "its file; 'random': no file (smoke)"),
    'select': (_Unset(str), 'dict of weights in the file, or what its keys '
               'begin with'),
    'normaliser': (_Unset(str), 'keys of mean and std in the file, with a '
                   'comma, where their names do not tell'),
}
_TEACHER = {
    'arch': ('wrn_34_10', "architecture; 'auto': recognised from the file, "
             "what that does not say is asked; 'none': no teacher, for methods "
             'that need none'),
    **NETWORK, **FILE,
}
_STUDENT = {'arch': ('resnet18', 'architecture'), **NETWORK}
_AUGMENT = {  # of views and batches
    'pad': (4, 'largest shift, in pixels'),
    'flip': (True, 'whether images are mirrored at random'),
}
_POOL = {
    'dtype': ('float32', 'or uint8, a quarter of the memory, which rounds '
              'pixels to 1/255'),
    'place': ('host', "where the student's batches are drawn from: host, or "
              'the devices, all of it replicated on each or sharded'),
}
_DISTILL = {
    'steps': (400, 'N_S, student steps an epoch, which a synthesis divides '
              'among its rounds'),
    'batch_size': (256, 'images a step, over all devices'),
    'learning_rate': (0.1, 'of SGD, the largest'),
    'schedule': ('cosine', 'of the learning rate: cosine falls to 0 over '
                 'num_epochs, once an epoch; milestones, to a tenth at each; '
                 'one_cycle rises in the first 30% of the steps and falls to '
                 '0'),
    'milestones': ((), 'epochs completed when the rate falls, of '
                   'schedule=milestones'),
    'momentum': (0.9, 'of SGD'),
    'weight_decay': (5e-4, 'of SGD'),
    'mix': ('none', 'how images are mixed with one another, the teacher being '
            'asked anew: none, cutmix, mixup; its label stays that of the '
            'larger part'),
    'mix_share': (0.5, 'of a batch that is mixed'),
    'average': (0., 'decay of the running average of the student, which is '
                'then evaluated, exported and what L_adv, generators and '
                'student margins see; the attack sees the student itself; '
                '0: none'),
}
_EVAL = {
    'attacks': (('clean', 'fgsm', 'pgd20', 'cw20', 'autoattack'),
                'at the end: of ferd_jax.evaluation.robustness.ATTACKS'),
    'autoattack_examples': (0, 'the first images only; 0: all'),
    'target_examples': (10_000, 'so many images are also attacked towards '
                        'every wrong class; 0: none'),
    'diagnosed_examples': (0, 'on so many it is looked whether gradients are '
                           'masked (attacks.diagnose); 0: none'),
    'teacher_dir': ('', 'directory for what is found of the teacher: runs '
                    'that share it attack each teacher once'),
    'batch_size': (512, 'images a step, over all devices; on CPU at most those '
                   'that fit its cache, which changes no number'),
    'every': (10, 'epochs between points of the learning curve; 0: none'),
    'curve_attacks': (('clean', 'pgd20'), 'of the learning curve'),
    'curve_examples': (1000, 'first images for it, of data.validation_split '
                       'or else data.split; 0: all'),
    'select': ('last', 'the epoch to report: last, or the best by '
               'synthetic_pgd (needs no data) or by a point of the learning '
               'curve, <split>_<attack> or <split>_<attack>_worst, <split> '
               'being validation with data.validation_split'),
    'nsd_ddof': (0, "1: the sample's standard deviation over classes"),
}
_LOG = {
    'samples_every': (10, 'epochs between pictures of the images; 0: none'),
    'writers': (('jsonl', 'terminal'),
                'what the numbers of each epoch go to: of jsonl, terminal, '
                'tensorboard, wandb, trackio; the last three need the extra of '
                'their name'),
}
_GROUPS = {'data': _DATA, 'teacher': _TEACHER, 'student': _STUDENT,
           'augment': _AUGMENT, 'pool': _POOL, 'distill': _DISTILL,
           'eval': _EVAL, 'log': _LOG}
REGISTRIES = {
    registry.group: registry for registry in (
        synthesis.SYNTHESES, synthesis.SAMPLERS, distillation.INNERS,
        distillation.OUTERS)}
_PARTS = {'synthesis': 'ferd', 'sampler': 'margin_softmax', 'inner': 'utae',
          'outer': 'decoupled_kl'}
# What a part costs and not what it does: kept when another takes its place.
_BUDGET = ('steps', 'batch_size', 'width', 'nz', 'attack_steps')


def defaults() -> config_dict.ConfigDict:
  """Returns the default config."""
  config = config_dict.ConfigDict()
  _fill(config, _RUN)
  for name, settings in _GROUPS.items():
    config[name] = config_dict.ConfigDict()
    _fill(config[name], settings)
  # Further teachers by name, each with the settings of `network()`.
  config.teachers = config_dict.ConfigDict()
  for group, part in _PARTS.items():
    use(config, group, part)
  return config


def network() -> config_dict.ConfigDict:
  """Returns the settings of one more teacher, for `config.teachers`."""
  config = config_dict.ConfigDict()
  _fill(config, _TEACHER)
  return config


def use(config: config_dict.ConfigDict, group: str, part: str,
        **settings: Any) -> None:
  """Puts another part into a group of the config, with its own defaults.

  What says how much is computed (steps, batch size, width) stays.

  Args:
    config: to change.
    group: 'synthesis', 'sampler', 'inner' or 'outer'.
    part: a registered name.
    **settings: of the part, other than its defaults.

  Raises:
    SettingError: if there is no such part, or it has no such setting.
  """
  values = REGISTRIES[group].defaults(part)
  before = config.get(group, {})
  kept = {name: before[name] for name in _BUDGET
          if name in before and name in values}
  for name, value in settings.items():
    if name not in values:
      raise validate.SettingError(
          f'{group}.{name}', value, f'to be a setting of {part!r}, which has '
          f'{", ".join(values)}.')
  values |= kept | settings
  config[group] = config_dict.ConfigDict(values)
  for name, kind in REGISTRIES[group].optional(part).items():
    config[group][name] = config_dict.placeholder(kind)
    if values[name] is not None:
      config[group][name] = values[name]


def flat(config: Mapping[str, Any], prefix: str = ''
         ) -> Iterator[tuple[str, Any]]:
  """Yields the settings of a config, or a dict of dicts, by dotted name.

  A group without settings is one, an empty dict.
  """
  for name, value in config.items():
    if not isinstance(value, config_dict.ConfigDict | dict):
      yield f'{prefix}{name}', value
    elif value:
      yield from flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', {}


def defaults_like(values: Mapping[str, Any]) -> config_dict.ConfigDict:
  """Returns the defaults of the parts and teachers that settings name.

  Args:
    values: a config, or what was saved of one.
  """
  config = defaults()
  for group, registry in REGISTRIES.items():
    name = values.get(group, {}).get('name')
    if name in registry:
      use(config, group, name)
  for name in values.get('teachers', {}):
    config.teachers[name] = network()
  return config


def may_be_unset(name: str, config: config_dict.ConfigDict) -> bool:
  """Returns whether a setting of a config, by dotted name, may have no value.
  """
  *groups, leaf = name.split('.')
  if groups and groups[0] in REGISTRIES:
    registry = REGISTRIES[groups[0]]
    return leaf in registry.optional(config[groups[0]].name)
  table = _GROUPS.get(groups[0], {}) if groups else _RUN
  if groups and groups[0] == 'teachers':
    table = _TEACHER
  return isinstance(table.get(leaf, ('',))[0], _Unset)


def meanings(config: config_dict.ConfigDict) -> dict[str, str]:
  """Returns the meaning of every setting of a config, by dotted name."""
  known = {name: meaning for name, (_, meaning) in _RUN.items()}
  for group, settings in _GROUPS.items():
    known |= {f'{group}.{name}': meaning
              for name, (_, meaning) in settings.items()}
  for name in config.teachers:
    known |= {f'teachers.{name}.{setting}': meaning
              for setting, (_, meaning) in _TEACHER.items()}
  for group, registry in REGISTRIES.items():
    found = registry.meanings(config[group]['name'])
    known |= {f'{group}.{name}': meaning for name, meaning in found.items()}
  return known


def give_way(config: config_dict.ConfigDict,
             given: Mapping[str, str]) -> None:
  """Removes what settings that a user gives put out of force.

  Another part brings its own settings. Another architecture brings its own
  options, and needs a file of its own; a file takes the place of a RobustBench
  id. What is given itself stays out of this.

  Args:
    config: to change; the given settings themselves are not applied.
    given: settings by dotted name, as text.
  """
  for group in REGISTRIES:
    part = given.get(f'{group}.name')
    if part is not None and part != config[group]['name']:
      use(config, group, part)
  for network in ('teacher', 'student',
                  *(f'teachers.{name}' for name in config.teachers)):
    settings = config
    for name in network.split('.'):
      settings = settings[name]
    arch = given.get(f'{network}.arch')
    if arch and given.get(f'{network}.robustbench'):
      raise validate.SettingError(
          f'{network}.arch', arch, f'not to be given beside {network}.'
          'robustbench, which has its own.')
    if arch is not None and arch != settings.arch:
      for option in NETWORK:
        settings[option] = None
      if 'path' in settings:
        if settings.path != 'random':
          settings.path = ''
        for name in ('robustbench', 'select', 'normaliser'):
          settings[name] = None
    elif given.get(f'{network}.path') and 'robustbench' in settings:
      settings.robustbench = None
    elif given.get(f'{network}.robustbench') and 'path' in settings:
      settings.path = ''
      for option in NETWORK:
        settings[option] = None


def _fill(config, settings):
  for name, (default, _) in settings.items():
    config[name] = (config_dict.placeholder(default.type)
                    if isinstance(default, _Unset) else default)
