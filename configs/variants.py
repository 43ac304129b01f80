"""What configs share: variants (`configs/cifar10.py:smoke,released`), the
balance of losses for small teachers, and what makes a run short on a CPU.

Every config has these variants:

- `released`, `smoke`: see docs/settings.md;
- `plus`: FERD with what the paper does not have and pays, see docs/plus.md;
- ablations of FERD: `no_reweighting`, `no_fae`, `no_utae`, `similar_target`,
  and one setting at another value: `gamma=0.5`, `tau=2`, `lambda=1`, `tap=...`;
- robust losses with the attacks that they were published with: the names in
  `LOSSES`. They take the student's budget and optimiser of the config.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

from ml_collections import config_dict

from ferd_jax.run import settings


def balance_small_teacher(config: config_dict.ConfigDict) -> None:
  """Balances the generator's losses for ResNets of 8 to 20 layers.

  With the paper's weights, made for WRN-34-10, L_bn outweighs L_oh so much
  that the teacher agrees with the sampled label on 11 to 33% of the images,
  and reweighting steers nothing; and the mask finds no robust channel in the
  few of a small net, so that L_uni, five times L_oh, works against it.
  docs/small_teachers.md has the measurements.
  """
  config.synthesis.w_oh = 10.
  config.synthesis.w_uni = 0.1
  # Noise that grows fast, against the largest variance of the same image: 6 to
  # 11% of the channels are robust then, for a fifth of the time.
  config.synthesis.bottleneck.steps = 10
  config.synthesis.bottleneck.learning_rate = 0.5
  config.synthesis.bottleneck.mask = 'per_sample'
  config.sampler.tau = 4.  # these teachers' margins are large


def fit_to_cpu(config: config_dict.ConfigDict) -> None:
  """Makes steps cheap, and their rate fit for the few that there is time for.

  Numbers of epochs and steps are the config's own.
  """
  config.synthesis.width = 32
  config.synthesis.batch_size = 128
  # Small batches: 960 steps of 32 Fashion-MNIST images reach 56% PGD-20
  # accuracy, 240 of 128 images, in the same time, 42% (validation).
  config.distill.batch_size = 32
  config.inner.steps = 5
  config.eval.batch_size = 100  # fits the cache
  # On all images they take hours: python -m ferd_jax.evaluate.
  config.eval.attacks = ('clean', 'fgsm', 'pgd20', 'cw20', 'autoattack_fast')
  config.eval.autoattack_examples = 200
  config.eval.target_examples = 200


def synthesise_natural_images(config: config_dict.ConfigDict) -> None:
  """Takes faster steps towards images that are less far from real ones.

  Chosen on Fashion-MNIST; digits come out worse.
  """
  config.synthesis.generator_lr = 0.01
  config.synthesis.latent_lr = 0.05
  # Images on which student and teacher differ most are far from real ones.
  config.synthesis.w_adv = 0.1


def train_adversarially(config: config_dict.ConfigDict) -> None:
  """Turns distillation into adversarial training on real images, no teacher.

  What is trained is the config's student; a run exports it as a teacher.
  """
  config.teacher.arch = 'none'
  settings.use(config, 'synthesis', 'real')
  settings.use(config, 'sampler', 'uniform')
  config.warmup_epochs = 0
  pgd_at(config)
  config.log.samples_every = 0
  # Robustness falls again in a long training: the best epoch is kept.
  config.eval.select = 'validation_pgd20'


def pgd_at(config: config_dict.ConfigDict) -> None:
  """Takes PGD-AT's attack and loss (Madry et al., arXiv:1706.06083).

  Clean and attacked images half and half: a generator that is to make images
  for this teacher goes by its BatchNorm statistics, which else are those of
  attacked images alone.
  """
  settings.use(config, 'inner', 'ce', start='uniform')
  settings.use(config, 'outer', 'cross_entropy', w_clean=0.5, w_adv=0.5)


def train_long(config: config_dict.ConfigDict) -> None:
  """Takes the schedule with which public robust networks of CIFAR were made.

  100 epochs, the rate falling in the last quarter, and the decay 5e-4 that
  matters more than the loss (Pang et al., arXiv:2010.00467).
  """
  config.num_epochs = 100
  config.distill.batch_size = 128
  config.distill.schedule = 'milestones'
  config.distill.milestones = (75, 90)
  config.eval.every = 1  # robustness is best soon after a milestone
  config.eval.target_examples = 0


class Loss(NamedTuple):
  """An outer loss and the inner attack that it was published with.

  Attributes:
    outer: its name.
    inner: name of the attack.
    outer_settings: other than the loss' defaults.
    inner_settings: other than the attack's.
    clean_teacher: whether there has to be a second teacher, 'clean'.
  """
  outer: str
  inner: str
  outer_settings: Mapping[str, Any] = {}
  inner_settings: Mapping[str, Any] = {}
  clean_teacher: bool = False


_IN_TRAINING_MODE = {'start': 'uniform', 'statistics': 'batch'}  # as ARD
LOSSES = {
    'rslad': Loss('rslad', 'rslad'),
    'ard': Loss('ard', 'ce', inner_settings=_IN_TRAINING_MODE),
    'iad': Loss('iad', 'ce', inner_settings=_IN_TRAINING_MODE),
    'iad2': Loss('iad2', 'ce', inner_settings=_IN_TRAINING_MODE,
                 clean_teacher=True),
    'adaad': Loss('adaad', 'adaad'),
    'adaiad': Loss('adaiad', 'adaad'),
    'mtard': Loss('mtard', 'ce', clean_teacher=True),
    'trades': Loss('trades', 'trades'),
    'absld': Loss('absld', 'rslad'),
    'saad': Loss('saad', 'saad'),
    'ikl': Loss('ikl', 'rslad'),
    'gkl': Loss('gkl', 'rslad'),
    'hee': Loss('soft_ce', 'hee', {'w_clean': 0., 'w_adv': 1.,
                                   'target': 'attacked', 'hard': True}),
    'fair_rslad': Loss('fair_rslad', 'rslad'),
    'fair_ard': Loss('fair_ard', 'ce', inner_settings=_IN_TRAINING_MODE),
    'fair_iad': Loss('fair_iad', 'ce', inner_settings=_IN_TRAINING_MODE),
    'fair_mtard': Loss('fair_mtard', 'ce', clean_teacher=True),
}


def use_loss(config: config_dict.ConfigDict, name: str) -> None:
  """Puts an outer loss and its inner attack into a config.

  Args:
    config: to change.
    name: in `LOSSES`.
  """
  loss = LOSSES[name]
  settings.use(config, 'outer', loss.outer, **loss.outer_settings)
  settings.use(config, 'inner', loss.inner, **loss.inner_settings)
  if loss.clean_teacher and 'clean' not in config.teachers:
    # Of the same architecture unless the user says otherwise; its file has to
    # be given, --config.teachers.clean.path=FILE.
    config.teachers.clean = settings.network()
    for option in ('arch', *settings.NETWORK):
      config.teachers.clean[option] = config.teacher[option]


def _no_reweighting(config: config_dict.ConfigDict) -> None:
  """Draws all classes alike."""
  settings.use(config, 'sampler', 'uniform')


def _no_fae(config: config_dict.ConfigDict) -> None:
  """Leaves out the uniformity constraint on features."""
  config.synthesis.w_uni = 0.


def _no_utae(config: config_dict.ConfigDict) -> None:
  """Attacks the student as RSLAD does."""
  settings.use(config, 'inner', 'rslad')


def _similar_target(config: config_dict.ConfigDict) -> None:
  """Attacks the student towards the classes that errors fall on."""
  settings.use(config, 'inner', 'similar_target')


# Variants with a value, such as gamma=0.5, and the setting that has it.
_SWEPT = {'gamma': 'inner.gamma', 'tau': 'sampler.tau',
          'lambda': 'synthesis.w_uni', 'tap': 'synthesis.tap'}


def _sweep(config: config_dict.ConfigDict, name: str, text: str) -> None:
  """Gives a setting the value that a variant has."""
  group, setting = _SWEPT[name].split('.')
  if setting not in config[group]:
    raise ValueError(
        f'Expected variant={name}={text} where {group} has {setting!r}; '
        f'{group}.name is {config[group].name!r}.')
  try:
    config[group][setting] = type(config[group][setting])(text)
  except ValueError:
    raise ValueError(
        f'Expected variant={name}={text} to have a number.') from None


_SMALLEST = {'wrn_34_10': 'wrn_10_1', 'preact_resnet34': 'preact_resnet18',
             'cifar_resnet20': 'cifar_resnet8'}


def _smoke(config: config_dict.ConfigDict) -> None:
  """Shrinks everything until a run takes seconds on a CPU.

  The networks have random weights and are evaluated on noise: no file is
  needed, and the numbers mean nothing.
  """
  config.data.noise_examples = 24
  if config.teacher.arch == 'none':
    config.student.arch = _SMALLEST.get(config.student.arch,
                                        config.student.arch)
  else:
    for teacher in (config.teacher, *config.teachers.values()):
      teacher.arch = _SMALLEST.get(teacher.arch, teacher.arch)
      teacher.path = 'random'
      teacher.robustbench = None
      teacher.width = 4
  config.student.width = 4
  config.num_epochs = 3
  config.warmup_epochs = min(config.warmup_epochs, 1)
  config.distill.schedule, config.distill.milestones = 'cosine', ()
  if config.synthesis.name == 'ferd':
    config.synthesis.steps = 2
    config.synthesis.rounds_per_epoch = min(
        2, config.synthesis.rounds_per_epoch)
    config.synthesis.batch_size = 8
    config.synthesis.width = 8
    config.synthesis.bottleneck.steps = 3
  if 'attack_steps' in config.sampler:
    config.sampler.attack_steps = 2
  config.distill.steps = 2
  config.distill.batch_size = 8
  config.inner.steps = 2
  config.eval.attacks = ('clean', 'fgsm')
  config.eval.target_examples = 0
  config.eval.batch_size = 16
  config.eval.curve_examples = 16
  config.eval.every = 2
  config.log.samples_every = 2


def _released(config: config_dict.ConfigDict) -> None:
  """Takes the public code's rules where they differ from the paper's."""
  settings.use(config, 'sampler', 'margin_minmax', absent='zero')
  config.inner.gamma = 0.
  config.outer.prior = 'one_hot'
  config.eval.select = 'test_clean'
  config.eval.curve_examples = 0  # it selects on the whole test set


def _plus(config: config_dict.ConfigDict) -> None:
  """Makes four times as many images in the same time, and mixes them."""
  config.synthesis.rounds_per_epoch = 4
  config.synthesis.steps = max(1, config.synthesis.steps // 4)
  config.synthesis.new_generator = False
  config.distill.mix = 'cutmix'


_VARIANTS = {
    'released': _released, 'plus': _plus, 'no_reweighting': _no_reweighting,
    'no_fae': _no_fae, 'no_utae': _no_utae, 'similar_target': _similar_target,
    **{name: functools.partial(use_loss, name=name) for name in LOSSES}}
_WITHOUT_TEACHER = ('trades',)
# Of these a config takes one: each brings an inner attack, most a loss, too.
_ONE_OF = (*LOSSES, 'pgd_at', 'no_utae', 'similar_target')
# Change parts of FERD, which a loss or a baseline replaces.
_OF_FERD = ('released', 'plus', 'no_reweighting', 'no_fae', 'no_utae',
            'similar_target')


def changes_ferd(name: str) -> bool:
  """Returns whether a variant changes a part of FERD."""
  setting, equals, _ = name.partition('=')
  return name in _OF_FERD or bool(equals) and setting in _SWEPT


def _check_together(names: Sequence[str]) -> None:
  """Raises ValueError for variants of which one would undo the other."""
  parts = [name for name in dict.fromkeys(names) if name in _ONE_OF]
  losses = [name for name in parts if name not in _OF_FERD]
  together = parts if len(parts) > 1 else (
      ['released', *losses] if 'released' in names and losses else [])
  if together:
    raise ValueError(
        f'Expected one of the variants {" and ".join(map(repr, together))}: '
        'each has an inner attack or loss of its own.')


def apply(config: config_dict.ConfigDict, names: str,
          **own: Callable[[config_dict.ConfigDict], None]
          ) -> config_dict.ConfigDict:
  """Returns the config with the comma-separated variants applied.

  The config's own come first, then those that all have, then those with a
  value, and `smoke` last, in whatever order they are written. Where no teacher
  is, there are only those that ask for none.

  Args:
    config: to change; its name gets the variants appended.
    names: as written after the colon; '' for none.
    **own: further variants of this config, by name.

  Raises:
    ValueError: for an unknown variant, one that the config has no setting for,
      or two of which one would undo the other.
  """
  shared = _VARIANTS if config.teacher.arch != 'none' else {
      name: _VARIANTS[name] for name in _WITHOUT_TEACHER}
  variants = {**own, **shared}
  wanted, swept = [], {}
  for name in filter(None, names.split(',')):
    setting, equals, text = name.partition('=')
    if equals and setting in _SWEPT:
      swept[setting] = text
    elif name in variants or name == 'smoke':
      wanted.append(name)
    else:
      known = [*variants, 'smoke', *(f'{each}=...' for each in _SWEPT)]
      raise ValueError(f'Expected variant={name!r} of config {config.name!r} '
                       f'to be one of {", ".join(map(repr, known))}.')
  _check_together(wanted)
  for name, change in variants.items():
    if name in wanted:
      change(config)
      config.name += f'_{name}'
  for name, text in swept.items():
    _sweep(config, name, text)
    config.name += f'_{name}{text}'
  if 'smoke' in wanted:
    _smoke(config)
    config.name += '_smoke'
  return config
