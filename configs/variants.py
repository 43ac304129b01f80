"""What configs share: variants (`configs/cifar10.py:smoke,released`), the
balance of losses for small teachers, and what makes a run short on a CPU.
"""

from collections.abc import Callable
from collections.abc import Mapping

from ml_collections import config_dict

from ferd_jax.run import settings


def balance_small_teacher(config: config_dict.ConfigDict) -> None:
  """Balances the generator's losses for ResNets of 8 to 20 layers.

  With the paper's weights, made for WRN-34-10, L_bn outweighs L_oh so much
  that the teacher agrees with the sampled label on 11 to 33% of the images,
  and reweighting steers nothing; and the mask finds no robust channel in the
  few of a small net, so that L_uni, five times L_oh, works against it.
  docs/method.md has the measurements.
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


def trades(config: config_dict.ConfigDict) -> None:
  """Takes the attack and loss of TRADES (Zhang et al., arXiv:1901.08573)."""
  settings.use(config, 'inner', 'trades')
  settings.use(config, 'outer', 'trades')


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
    config.teacher.arch = _SMALLEST.get(config.teacher.arch,
                                        config.teacher.arch)
    config.teacher.path = 'random'
    config.teacher.robustbench = None
    config.teacher.width = 4
  config.student.width = 4
  config.num_epochs = 3
  config.warmup_epochs = min(config.warmup_epochs, 1)
  config.distill.schedule, config.distill.milestones = 'cosine', ()
  if config.synthesis.name == 'ferd':
    config.synthesis.steps = 2
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


_VARIANTS = {'released': _released, 'smoke': _smoke}


def apply(config: config_dict.ConfigDict, names: str,
          **own: Callable[[config_dict.ConfigDict], None]
          ) -> config_dict.ConfigDict:
  """Returns the config with the comma-separated variants applied.

  The config's own come first and `smoke` last, in whatever order they are
  written. `released` is there for the paper's method alone.

  Args:
    config: to change; its name gets the variants appended.
    names: as written after the colon; '' for none.
    **own: further variants of this config, by name.

  Raises:
    ValueError: for an unknown variant.
  """
  variants: Mapping = own | {
      name: change for name, change in _VARIANTS.items()
      if name != 'released' or config.outer.name == 'decoupled_kl'}
  wanted = [name for name in names.split(',') if name]
  for name in wanted:
    if name not in variants:
      raise ValueError(f'Expected variant={name!r} of config {config.name!r} '
                       f'to be one of {", ".join(map(repr, variants))}.')
  for name, change in variants.items():
    if name in wanted:
      change(config)
      config.name += f'_{name}'
  return config
