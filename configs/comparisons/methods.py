"""The methods that plans compare, on a config of a data set.

Each function takes the config's name, `fashion_mnist` or
`cifar10_resnet20:paper_length`, and returns rows.

Two rules hold in all plans:

- A method that takes another number of generator steps than its original has
  all of its synthesis' learning rates times the original's steps over those
  that it takes, so that it goes as far: `with_steps`.
- RSLAD, ABSLD, Fair-RSLAD and AdaAD have `outer.scale` 1. The originals' 0.1,
  made for 200 to 300 epochs on data, would be a tenth of the learning rate that
  FERD's loss has.
"""

import dataclasses

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
# Of them, together: images that are in the teacher's robust region, margins
# that mean something for it, and more of each image.
_TOGETHER = ('CutMix', 'attacked views', 'memory 0.5')
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
# By method: the setting of its steps, the original's number, and its rates.
_STEPS = {
    'Fast': ('generator_steps', 10, {'generator_lr': 2e-3, 'latent_lr': 0.01}),
    'DFHL-RS': ('generator_steps', 10,
                {'generator_lr': 2e-3, 'latent_lr': 0.01}),
    'CMI': ('steps', 200,
            {'generator_lr': 1e-3, 'latent_lr': 1e-3, 'head_lr': 1e-3}),
    'DeepInversion': ('steps', 2000, {'learning_rate': 0.1}),
}


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
  together = {}
  for name in _TOGETHER:
    together |= _CHANGES[name]
  rows = [*_CHANGES.items(), (', '.join(_TOGETHER), together)]
  return plans.Plan(
      name=f'{config}_changes', minutes=minutes,
      rows=[*ferd(config), *(plans.Row(f'with {name}', config, settings)
                             for name, settings in rows)],
      settings={'data.split': split, 'eval.target_examples': 0,
                'log.samples_every': 0})


def baselines(config: str, *names: str, **settings: float
              ) -> list[plans.Row]:
  """Returns other syntheses with RSLAD's loss.

  Args:
    config: of the data set, whose variants the baselines take.
    *names: of them; default: all.
    **settings: of the synthesis, for all.
  """
  variants = config.replace(':', ',')
  return [plans.Row(name, f'baselines/{_BASELINES[name]}:{variants}',
                    _SCALE | {f'synthesis.{key}': value
                              for key, value in settings.items()})
          for name in names or _BASELINES]


def with_steps(name: str, steps: int) -> dict[str, float]:
  """Returns settings of a synthesis for another number of generator steps.

  Args:
    name: of a method with such a number.
    steps: of the generator, an epoch.

  Returns:
    The steps, and each of the original's rates times its steps over these.
  """
  setting, original, rates = _STEPS[name]
  return {setting: steps} | {
      rate: value * original / steps for rate, value in rates.items()}


def mixture(config: str, synthesis: str, loss: str,
            **settings: float) -> plans.Row:
  """Returns a synthesis with one of the losses that have a scale."""
  row, = baselines(_with(config, _LOSSES[loss]), synthesis, **settings)
  return dataclasses.replace(row, name=f'{synthesis} + {loss}')


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
  teacher but for FERD's sampler: CMI has half of the steps, for its two views.

  Args:
    config: of the data set.
    steps: of the generator in an epoch.
  """
  cmi, deepinversion, dfhl_rs, fast = (
      with_steps(name, number) for name, number in (
          ('CMI', steps // 2), ('DeepInversion', steps), ('DFHL-RS', steps),
          ('Fast', steps)))
  return [*ferd(config), *ablations(config), *losses(config, 'RSLAD'),
          *baselines(config, 'CMI', **cmi),
          *baselines(config, 'DeepInversion', **deepinversion),
          *baselines(config, 'DFHL-RS', **dfhl_rs),
          *baselines(config, 'Fast', **fast),
          mixture(config, 'Fast', 'ABSLD', **fast),
          mixture(config, 'Fast', 'Fair-RSLAD', **fast), *with_data(config)]


def _with(config, variant):
  """Returns a config's name with one variant more."""
  return f'{config},{variant}' if ':' in config else f'{config}:{variant}'
