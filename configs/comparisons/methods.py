"""The methods that plans compare, on a config of a data set.

Each function takes the config's name, `fashion_mnist` or
`cifar10_resnet20:paper_length`, and returns rows.

Three rules hold in all plans:

- Methods whose originals take one to ten generator steps at a time, in
  hundreds of epochs, take more: DAFL, ZSKT, DFAD and DFQ one with each student
  step, Fast and DFHL-RS as many as FERD in an epoch.
- The rate of a generator, or of pixels, is its original's or five times it: in
  the plans `<data set>_rates` each runs once, on training images, and the one
  whose student withstands PGD-20 on more of them is in `_FIVE_TIMES`, or not.
- RSLAD, ABSLD, Fair-RSLAD and AdaAD have `outer.scale` 1. The originals' 0.1,
  made for 200 to 300 epochs on data, would be a tenth of the learning rate that
  FERD's loss has.
"""

from collections.abc import Mapping
import dataclasses
import importlib

from ferd_jax.comparison import plan as plans

# FERD without one of its parts: variants of all configs.
_ABLATIONS = {
    'no reweighting': 'no_reweighting', 'no FAE': 'no_fae',
    'no UTAE': 'no_utae', 'neither FAE nor UTAE': 'no_fae,no_utae',
}
# FERD with other values of the paper's constants.
_CONSTANTS = {
    'gamma 0.1': {'inner.gamma': 0.1}, 'gamma 0.5': {'inner.gamma': 0.5},
    'tau 1': {'sampler.tau': 1.}, 'tau 16': {'sampler.tau': 16.},
    'w_clean 1/2': {'outer.w_clean': 0.5, 'outer.w_adv': 0.5},
    'w_clean 5/6': {'outer.w_clean': 5 / 6, 'outer.w_adv': 1 / 6},
    'tap layer1': {'synthesis.tap': 'layer1'},
    'tap layer2': {'synthesis.tap': 'layer2'},
}
# What FERD's paper does not have (docs/method.md, further settings).
_CHANGES = {
    'CutMix': {'distill.mix': 'cutmix'},
    'attacked views': {'synthesis.attacked_steps': 1},
    'memory 0.5': {'sampler.memory': 0.5},
    'average 0.99': {'distill.average': 0.99},
    'L_adv if agreed': {'synthesis.adv_agreed': True},
    'prior at T 4': {'outer.prior_temperature': 4.},
}
# More images in the same time: the synthesis of the variant `plus`.
_PHASES = 'four phases'
# Of them, together: images that are in the teacher's robust region, margins
# that mean something for it, and more of each image; more images; all of this.
_TOGETHER = (('CutMix', 'attacked views', 'memory 0.5'), ('CutMix', _PHASES),
             ('CutMix', 'attacked views', 'memory 0.5', _PHASES))
# Other syntheses, each with RSLAD's attack and loss: `configs/baselines/`.
_BASELINES = {
    'DAFL': 'dafl', 'ZSKT': 'zskt', 'DFAD': 'dfad', 'DFQ': 'dfq',
    'DeepInversion': 'deepinversion', 'CMI': 'cmi', 'Fast': 'fast',
    'DFHL-RS': 'dfhl_rs', 'NAYER (noisy layer)': 'nayer',
}
# Other losses of the student, each with its attack: variants of all configs.
_LOSSES = {
    'ARD': 'ard', 'IAD': 'iad', 'RSLAD': 'rslad', 'AdaAD': 'adaad',
    'ABSLD': 'absld', 'Fair-RSLAD': 'fair_rslad', 'SAAD': 'saad',
    'TRADES': 'trades',
}
# Those with a factor in front of the whole loss.
_SCALED = ('RSLAD', 'ABSLD', 'Fair-RSLAD', 'AdaAD')
# What tables of methods say below them.
FOOTNOTES = ('DFARD (arXiv:2303.11611) and DERD (OpenReview CJKVSlCoRA) have '
             'no public code and are not compared.',)
_SCALE = {'outer.scale': 1.}
# The original's rate of a generator, or of pixels. Fast's is that of ten steps.
_RATES = {
    'DAFL': {'generator_lr': 0.02}, 'ZSKT': {'generator_lr': 1e-3},
    'DFAD': {'generator_lr': 1e-3}, 'DFQ': {'generator_lr': 1e-3},
    'DeepInversion': {'learning_rate': 0.1}, 'CMI': {'generator_lr': 1e-3},
    'Fast': {'generator_lr': 2e-3}, 'DFHL-RS': {'generator_lr': 2e-3},
    'NAYER (noisy layer)': {'generator_lr': 4e-3},
}
# The setting of the steps; the others have one of their own, or two rounds.
_STEPS = {'DeepInversion': 'steps', 'CMI': 'steps', 'Fast': 'generator_steps',
          'DFHL-RS': 'generator_steps'}
_FURTHER = {
    # Several student steps follow one of the generator in the originals.
    **dict.fromkeys(('DAFL', 'ZSKT', 'DFAD', 'DFQ'),
                    {'student_steps_per_round': 1}),
    **dict.fromkeys(('Fast', 'DFHL-RS'), {'latent_lr': 0.01}),
}
# By data set: those that are the better for five times as much.
_FIVE_TIMES = {'digits': ('DAFL', 'ZSKT', 'DFAD', 'DeepInversion', 'CMI',
                          'DFHL-RS')}
# DFAD's generator looks for distances of logits. RSLAD's loss sees none where
# both networks are certain; ARD's does, whose temperature is 30.
_OWN_LOSS = {'DFAD': 'ARD'}


def ferd(config: str) -> list[plans.Row]:
  """Returns FERD itself."""
  return [plans.Row('FERD', config)]


def ablations(config: str) -> list[plans.Row]:
  """Returns FERD without reweighting, FAE, UTAE, and both of these."""
  return [plans.Row(name, _with(config, variant))
          for name, variant in _ABLATIONS.items()]


def constants(config: str) -> list[plans.Row]:
  """Returns FERD with other gamma, tau, clean weight and tap."""
  return [plans.Row(name, config, settings)
          for name, settings in _CONSTANTS.items()]


def changes(config: str, split: str, minutes: float) -> plans.Plan:
  """Returns FERD beside each change of `_CHANGES`, and some together.

  Args:
    config: of the data set.
    split: of the images that a choice is made on, no test images.
    minutes: that a run takes, roughly.
  """
  better = importlib.import_module(f'configs.{config}').get_config('plus')
  known = _CHANGES | {_PHASES: {
      f'synthesis.{name}': better.synthesis[name]
      for name in ('rounds_per_epoch', 'steps', 'new_generator')}}
  rows = [*known.items(), *(
      (', '.join(names), {setting: value for name in names
                          for setting, value in known[name].items()})
      for names in _TOGETHER)]
  return plans.Plan(
      name=f'{config}_changes', minutes=minutes,
      rows=[*ferd(config), *(plans.Row(f'with {name}', config, settings)
                             for name, settings in rows)],
      settings={'data.split': split, 'eval.target_examples': 0,
                'log.samples_every': 0})


def plus(config: str, minutes: float, steps: int) -> plans.Plan:
  """Returns FERD, its variant `plus`, and that without each part of FERD.

  Besides the two syntheses that were the best others on digits, with CutMix.

  Args:
    config: of the data set, without variants.
    minutes: that a run takes, roughly.
    steps: of a generator in an epoch.
  """
  better = _with(config, 'plus')
  others = {'NAYER (noisy layer)': steps, 'DeepInversion': steps}
  return plans.Plan(
      name=f'{config}_plus', minutes=minutes,
      rows=[*ferd(config), plans.Row('plus', better),
            *(dataclasses.replace(row, name=f'plus, {row.name}')
              for row in ablations(better)),
            *(dataclasses.replace(
                row, name=f'{row.name}, CutMix',
                settings={**row.settings, 'distill.mix': 'cutmix'})
              for row in baselines(config, others))],
      settings={'eval.target_examples': 0, 'log.samples_every': 0})


def as_many_steps(steps: int) -> dict[str, int]:
  """Returns the steps of each synthesis if all have as many in an epoch."""
  return dict.fromkeys(_BASELINES, steps)


def as_many_passes(steps: int) -> dict[str, int]:
  """Returns the steps of those that ask the teacher as often as FERD.

  CMI has half of the steps, for its two views. DFHL-RS asks the student.
  """
  return {'CMI': steps // 2, 'DeepInversion': steps, 'DFHL-RS': steps,
          'Fast': steps}


def baselines(config: str, steps: Mapping[str, int],
              times: int | None = None) -> list[plans.Row]:
  """Returns other syntheses, with RSLAD's loss but where theirs is another.

  Args:
    config: of the data set, whose variants the baselines take.
    steps: of the generator in an epoch, by synthesis.
    times: what their original's rate is multiplied with; None: with what is
      the better on this data set.
  """
  return [_baseline(config, name, _OWN_LOSS.get(name, 'RSLAD'), number, times)
          for name, number in steps.items()]


def mixture(config: str, synthesis: str, loss: str,
            steps: int) -> plans.Row:
  """Returns a synthesis with one of the losses."""
  row = _baseline(config, synthesis, loss, steps)
  return dataclasses.replace(row, name=f'{synthesis} + {loss}')


def rates(config: str, split: str, minutes: float,
          steps: Mapping[str, int]) -> plans.Plan:
  """Returns each synthesis at its original's rate and at five times it.

  Args:
    config: of the data set.
    split: of the images that the choice is made on, no test images.
    minutes: that a run takes, roughly.
    steps: of the generator in an epoch, by synthesis.
  """
  data_set = config.partition(':')[0]
  rows = [*ferd(config)]
  for name, number in steps.items():
    for times in (1, 5):
      row, = baselines(config, {name: number}, times)
      rows.append(dataclasses.replace(row, name=f'{name}, x{times}'))
  return plans.Plan(
      name=f'{data_set}_rates', minutes=minutes, rows=rows, seeds=(7,),
      settings={'data.split': split, 'eval.attacks': ('clean', 'pgd20'),
                'eval.target_examples': 0, 'log.samples_every': 0})


def losses(config: str, *names: str) -> list[plans.Row]:
  """Returns FERD's images with the attacks and losses of others.

  Args:
    config: of the data set.
    *names: of losses; default: all.
  """
  return [plans.Row(f'FERD\'s images + {name}', _with(config, _LOSSES[name]),
                    _SCALE if name in _SCALED else {})
          for name in names or _LOSSES]


def with_data(config: str) -> list[plans.Row]:
  """Returns RSLAD on real images, the ceiling."""
  return [plans.Row('real images + RSLAD', _with(config, 'rslad'), _SCALE | {
      'synthesis.name': 'real', 'sampler.name': 'uniform'})]


def at_one_budget(config: str, steps: int) -> list[plans.Row]:
  """Returns FERD, its ablations and others at one budget, and the ceiling.

  All have as many student steps and images, and as many passes through the
  teacher but for FERD's sampler: `as_many_passes`.

  Args:
    config: of the data set.
    steps: of the generator in an epoch.
  """
  return [*ferd(config), *ablations(config), *losses(config, 'RSLAD'),
          *baselines(config, as_many_passes(steps)),
          mixture(config, 'Fast', 'ABSLD', steps),
          mixture(config, 'Fast', 'Fair-RSLAD', steps), *with_data(config)]


def _baseline(config, name, loss, steps, times=None):
  """Returns the row of a synthesis with a loss."""
  if times is None:
    data_set = config.partition(':')[0]
    times = 5 if name in _FIVE_TIMES.get(data_set, ()) else 1
  settings = {rate: value * times for rate, value in _RATES[name].items()}
  settings |= _FURTHER.get(name, {})
  if name in _STEPS:
    settings[_STEPS[name]] = steps
  variants = config.replace(':', ',')
  if loss != 'RSLAD':  # Which all baselines have.
    variants += f',{_LOSSES[loss]}'
  return plans.Row(
      name, f'baselines/{_BASELINES[name]}:{variants}',
      (_SCALE if loss in _SCALED else {}) | {
          f'synthesis.{key}': value for key, value in settings.items()})


def _with(config, variant):
  """Returns a config's name with one variant more."""
  return f'{config},{variant}' if ':' in config else f'{config}:{variant}'
