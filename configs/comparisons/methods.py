"""The methods that plans compare, on a config of a data set.

Each function takes the config's name, `fashion_mnist` or
`cifar10_resnet20:paper_length`, and returns rows.
"""

import dataclasses

from ferd_jax.comparison import plan as plans

# FERD without one of its parts. Without UTAEs the attack is RSLAD's.
_ABLATIONS = {
    'no reweighting': {'sampler.name': 'uniform'},
    'no FAE': {'synthesis.w_uni': 0},
    'no UTAE': {'inner.gamma': 0},
    'neither FAE nor UTAE': {'synthesis.w_uni': 0, 'inner.gamma': 0},
}
# FERD with other values of the paper's constants.
_CONSTANTS = {
    'gamma 0.1': {'inner.gamma': 0.1}, 'gamma 0.5': {'inner.gamma': 0.5},
    'tau x 1/4': {'sampler.tau': 1.}, 'tau x 4': {'sampler.tau': 16.},
    'lambda 1/2': {'outer.w_clean': 0.5, 'outer.w_adv': 0.5},
    'lambda 5/6': {'outer.w_clean': 5 / 6, 'outer.w_adv': 1 / 6},
    'tap layer1': {'synthesis.tap': 'layer1'},
    'tap layer2': {'synthesis.tap': 'layer2'},
}
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


def ferd(config: str) -> list[plans.Row]:
  """Returns FERD itself."""
  return [plans.Row('FERD', config)]


def ablations(config: str) -> list[plans.Row]:
  """Returns FERD without reweighting, FAE, UTAE, and both of these."""
  return [plans.Row(name, config, settings)
          for name, settings in _ABLATIONS.items()]


def constants(config: str) -> list[plans.Row]:
  """Returns FERD with other gamma, tau, lambda and tap."""
  return [plans.Row(name, config, settings)
          for name, settings in _CONSTANTS.items()]


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
                    {f'synthesis.{key}': value
                     for key, value in settings.items()})
          for name in names or _BASELINES]


def mixture(config: str, synthesis: str, loss: str,
            **settings: float) -> plans.Row:
  """Returns a synthesis with one of the losses."""
  row, = baselines(_with(config, _LOSSES[loss]), synthesis, **settings)
  return dataclasses.replace(row, name=f'{synthesis} + {loss}')


def losses(config: str) -> list[plans.Row]:
  """Returns FERD's images with the attacks and losses of others."""
  return [plans.Row(f'FERD\'s images + {name}', _with(config, variant))
          for name, variant in _LOSSES.items()]


def with_data(config: str) -> list[plans.Row]:
  """Returns RSLAD on real images, the ceiling."""
  return [plans.Row('real images + RSLAD', _with(config, 'rslad'), {
      'synthesis.name': 'real', 'sampler.name': 'uniform'})]


def _with(config, variant):
  """Returns a config's name with one variant more."""
  return f'{config},{variant}' if ':' in config else f'{config}:{variant}'
