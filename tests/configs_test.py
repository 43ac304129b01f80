"""Tests of the configs: values, variants, nothing misspelt."""

import importlib
import pathlib

import pytest

from configs import cifar10
from configs import cifar10_resnet20
from configs import cifar100
from configs import default
from configs import tiny_imagenet
from configs import variants
from ferd_jax.run import networks
from ferd_jax.run import settings
from ferd_jax.weights import robustbench

VARIANTS = {
    'cifar10': ('mobilenet_v2',),
    'cifar100': ('mobilenet_v2', 'batch512'),
    'tiny_imagenet': (),
    'cifar10_resnet20': ('paper_length',),
    'digits': (),
    'fashion_mnist': (),
}
TEACHERS = {f'teachers.{name}': (variant,) for name, variant in (
    ('digits', 'trades'), ('fashion_mnist', 'trades'), ('cifar10', 'pgd_at'),
    ('cifar100', 'pgd_at'), ('tiny_imagenet', 'pgd_at'))}
EVERY = [(name, variant) for name, own in VARIANTS.items()
         for variant in ('', *own, 'released', 'smoke', 'released,smoke')]
EVERY += [(name, variant) for name, own in TEACHERS.items()
          for variant in ('', *own, 'smoke', f'{own[0]},smoke')]
ABLATIONS = {
    'no_reweighting': {'sampler.name': 'uniform'},
    'no_fae': {'synthesis.w_uni': 0.},
    'plus': {'synthesis.rounds_per_epoch': 4,
             'synthesis.new_generator': False, 'distill.mix': 'cutmix'},
    'no_utae': {'inner.name': 'rslad'},
    'no_fae,no_utae': {'synthesis.w_uni': 0., 'inner.name': 'rslad'},
    'similar_target': {'inner.name': 'similar_target'},
    'gamma=0.5': {'inner.gamma': 0.5}, 'tau=2': {'sampler.tau': 2.},
    'lambda=0.7': {'synthesis.w_uni': 0.7}, 'tap=block3': {
        'synthesis.tap': 'block3'},
}


def flat(config):
  """Returns the leaves by dotted name."""
  return dict(settings.flat(config))


def get(name, variant=''):
  return importlib.import_module(f'configs.{name}').get_config(variant)


def difference(config, base):
  config, base = flat(config), flat(base)
  return {name for name in config.keys() | base.keys()
          if config.get(name) != base.get(name)}


def check(config, values):
  got = flat(config)
  assert {name: got[name] for name in values} == values


def test_every_config_is_listed():
  folder = pathlib.Path(default.__file__).parent
  found = {path.stem for path in folder.glob('*.py')}
  assert found - {'default', 'variants', '__init__'} == set(VARIANTS)
  found = {f'teachers.{path.stem}' for path in folder.glob('teachers/*.py')}
  assert found == set(TEACHERS)


@pytest.mark.parametrize(('name', 'variant'), EVERY)
def test_overrides_name_existing_settings_of_the_same_type(name, variant):
  changed = get(name, variant)
  base, config = flat(settings.defaults_like(changed)), flat(changed)
  assert set(config) == set(base)
  for key, value in config.items():
    if base[key] is not None:
      assert type(value) is type(base[key]), key
  suffix = f'_{variant.replace(",", "_")}' if variant else ''
  assert config['name'] == name.replace('teachers.', 'teacher_') + suffix


@pytest.mark.parametrize('name', VARIANTS)
def test_unknown_variant(name):
  with pytest.raises(ValueError) as error:
    get(name, 'released,fast')
  message = str(error.value)
  assert "variant='fast'" in message
  for variant in (*VARIANTS[name], 'released', 'smoke'):
    assert f"'{variant}'" in message
  assert "'gamma=...'" in message and "'absld'" in message
  with pytest.raises(ValueError, match="variant='no_fae=1'"):
    get(name, 'no_fae=1')


@pytest.mark.parametrize('variant', ABLATIONS)
@pytest.mark.parametrize('name', VARIANTS)
def test_ablations_change_what_they_are_called_after(name, variant):
  config, usual = get(name, variant), get(name)
  check(config, ABLATIONS[variant])
  changed = {each.partition('.')[0] for each in ABLATIONS[variant]}
  assert {each.partition('.')[0] for each in difference(config, usual)} == {
      'name', *changed}
  assert config.inner.steps == usual.inner.steps
  # Smaller, and of known settings only.
  small = get(name, f'{variant},smoke')
  assert set(flat(settings.defaults_like(small))) == set(flat(small))


@pytest.mark.parametrize('name', VARIANTS)
def test_plus_takes_the_steps_that_there_were(name):
  usual, plus = get(name), get(name, 'plus')
  steps = plus.synthesis.steps * plus.synthesis.rounds_per_epoch
  assert 0 <= usual.synthesis.steps - steps < 4
  assert plus.distill.steps % plus.synthesis.rounds_per_epoch == 0


def test_variants_with_a_value():
  config = get('cifar10', 'gamma=0.5,smoke,released,lambda=0')
  assert config.synthesis.w_uni == 0 and config.inner.gamma == 0.5
  assert config.sampler.name == 'margin_minmax'
  assert config.name == 'cifar10_released_gamma0.5_lambda0_smoke'


@pytest.mark.parametrize(('variant', 'message'), [
    ('absld,ard', "one of the variants 'absld' and 'ard'"),
    ('no_utae,absld', "'no_utae' and 'absld'"),
    ('absld,similar_target', "'absld' and 'similar_target'"),
    ('no_utae,similar_target', "'no_utae' and 'similar_target'"),
    ('smoke,released,rslad', "'released' and 'rslad'"),
    ('gamma=0.5,no_utae', "where inner has 'gamma'; inner.name is 'rslad'"),
    ('tau=2,no_reweighting', "where sampler has 'tau'.*is 'uniform'"),
    ('tau=warm', 'tau=warm to have a number')])
def test_values_that_a_config_has_no_setting_for(variant, message):
  with pytest.raises(ValueError, match=message):
    get('digits', variant)


@pytest.mark.parametrize('name', variants.LOSSES)
def test_losses_come_with_their_attacks(name):
  loss = variants.LOSSES[name]
  for data in ('digits', 'cifar10'):
    config, usual = get(data, name), get(data)
    defaults = settings.REGISTRIES['outer'].defaults(loss.outer)
    assert config.outer.to_dict() == defaults | dict(loss.outer_settings)
    assert config.inner.name == loss.inner
    assert config.inner.steps == usual.inner.steps
    assert difference(config, usual) <= {'name'} | {
        each for each in (*flat(config), *flat(usual))
        if each.startswith(('outer.', 'inner.', 'teachers'))}
    assert list(config.teachers) == ['clean'] * loss.clean_teacher
  small = get('cifar10', f'{name},smoke')
  assert set(flat(settings.defaults_like(small))) == set(flat(small))
  for teacher in small.teachers.values():
    assert (teacher.path, teacher.arch) == ('random', 'wrn_10_1')


def test_clean_teacher_is_like_the_robust_one():
  config = get('digits', 'mtard')
  assert config.teachers.clean.arch == config.teacher.arch
  assert config.teachers.clean.shortcut == 'pad_both'
  assert config.teachers.clean.path == ''  # The user has to name one.


@pytest.mark.parametrize('name', TEACHERS)
def test_teachers_are_trained_without_one(name):
  config = get(name)
  assert config.teacher.arch == 'none' and not config.teacher.path
  assert config.synthesis.name == 'real' and not config.warmup_epochs
  # An epoch is a pass over the images.
  size = {'digits': 1198, 'fashion_mnist': 55_000, 'tiny_imagenet': 98_000
          }.get(config.data.name, 49_000)
  assert config.distill.steps == size // config.distill.batch_size
  with pytest.raises(ValueError, match="variant='released'"):
    get(name, 'released')


@pytest.mark.parametrize('name', ['digits', 'fashion_mnist', 'cifar10',
                                  'cifar100', 'tiny_imagenet'])
def test_what_is_trained_is_the_teacher_of_the_config(name):
  trained, wanted = get(f'teachers.{name}'), get(name)
  assert trained.eps == wanted.eps and trained.data.name == wanted.data.name
  arch = robustbench.find(name, wanted.teacher.robustbench).arch if (
      wanted.teacher.robustbench) else wanted.teacher.arch
  assert trained.student.arch == arch
  for option in ('shortcut', 'shortcut_input', 'activation', 'mean', 'width'):
    assert trained.student[option] == wanted.teacher[option]


def test_configs_are_independent():
  config = get('cifar10')
  config.synthesis.w_bn = 7.
  assert get('cifar10').synthesis.w_bn == 5
  assert default.get_config().synthesis.w_bn == 5


PAPER = {
    'seed': 0, 'num_epochs': 220, 'warmup_epochs': 20, 'eps': 8 / 255,
    'step_size': None, 'augment.pad': 4, 'augment.flip': True,
    'synthesis.steps': 200, 'synthesis.nz': 100, 'synthesis.width': 128,
    'synthesis.generator_lr': 2e-3, 'synthesis.latent_lr': 0.015,
    'synthesis.w_adv': 1, 'synthesis.w_bn': 5, 'synthesis.w_oh': 1,
    'synthesis.w_uni': 5, 'synthesis.keep': 'best',
    'synthesis.warmup_adv': True, 'synthesis.name': 'ferd', 'synthesis.tap': '',
    'synthesis.measured': 'last_view', 'synthesis.bottleneck.steps': 50,
    'synthesis.bottleneck.learning_rate': 0.1,
    'synthesis.bottleneck.beta': 0.3, 'synthesis.bottleneck.kl': 'mean',
    'synthesis.bottleneck.mask': 'global',
    'sampler.name': 'margin_softmax', 'sampler.tau': 1,
    'sampler.absent': 'carry', 'sampler.attack_steps': 20,
    'distill.steps': 400, 'distill.momentum': 0.9,
    'distill.weight_decay': 5e-4, 'inner.name': 'utae', 'inner.steps': 10,
    'inner.gamma': 0.3, 'inner.source': 'student',
    'outer.name': 'decoupled_kl', 'outer.prior': 'class_mean',
    'outer.norm': 'weights', 'outer.power': 1,
    'outer.prior_temperature': None, 'outer.temperature': 1,
    'outer.w_wmse': 1, 'outer.w_ce': 1,
    'outer.w_clean': 5 / 6, 'outer.w_adv': 1 / 6, 'eval.select': 'last',
    'eval.nsd_ddof': 0,
}


@pytest.mark.parametrize('config', [cifar10, cifar100, tiny_imagenet])
def test_paper_constants(config):
  check(config.get_config(), PAPER)


@pytest.mark.parametrize(('config', 'variant', 'values'), [
    (cifar10, '', {
        'data.name': 'cifar10', 'teacher.arch': 'wrn_34_10',
        'student.arch': 'resnet18', 'synthesis.batch_size': 256,
        'distill.batch_size': 256, 'distill.learning_rate': 0.1}),
    (cifar10, 'mobilenet_v2', {
        'teacher.arch': 'wrn_34_10', 'student.arch': 'mobilenet_v2'}),
    (cifar100, '', {
        'data.name': 'cifar100', 'teacher.arch': 'wrn_34_10',
        'student.arch': 'resnet18', 'synthesis.batch_size': 256,
        'distill.batch_size': 256, 'distill.learning_rate': 0.1}),
    (cifar100, 'mobilenet_v2', {'student.arch': 'mobilenet_v2'}),
    (cifar100, 'batch512', {
        'synthesis.batch_size': 512, 'distill.batch_size': 512,
        'distill.learning_rate': 0.2}),
    (tiny_imagenet, '', {
        'data.name': 'tiny_imagenet', 'teacher.arch': 'preact_resnet34',
        'student.arch': 'preact_resnet18', 'synthesis.batch_size': 512,
        'distill.batch_size': 512, 'distill.learning_rate': 0.2})])
def test_paper_settings_of_a_data_set(config, variant, values):
  check(config.get_config(variant), values)


RELEASED = {
    'sampler.name': 'margin_minmax', 'sampler.range': (0.05, 0.2),
    'sampler.absent': 'zero', 'inner.gamma': 0, 'outer.prior': 'one_hot',
    'eval.select': 'test_clean',
    'eval.curve_examples': 0,  # on the whole test set
}


@pytest.mark.parametrize('name', VARIANTS)
def test_released_changes_the_public_codes_rules_only(name):
  config = get(name, 'released')
  check(config, RELEASED)
  same = {name for name, value in flat(get(name)).items()
          if name in RELEASED and value == RELEASED[name]}
  # Temperature and memory are the other rule's.
  assert difference(config, get(name)) == set(RELEASED) - same | {
      'name', 'sampler.tau', 'sampler.memory'}


def test_paper_length_restores_the_papers_schedule():
  config = cifar10_resnet20.get_config('paper_length')
  check(config, PAPER | {
      'eps': 4 / 255, 'step_size': None, 'distill.learning_rate': 0.1,
      'synthesis.batch_size': 256, 'distill.batch_size': 256,
      'synthesis.generator_lr': 2e-3, 'synthesis.latent_lr': 0.015,
      'synthesis.w_adv': 1.0, 'inner.steps': 10,
      # The balance of the losses is the small teacher's.
      'synthesis.w_oh': 10.0, 'synthesis.w_uni': 0.1, 'sampler.tau': 4.0,
      'synthesis.bottleneck.steps': 10,
      'synthesis.bottleneck.learning_rate': 0.5,
      'synthesis.bottleneck.mask': 'per_sample', 'data.split': 'test'})


@pytest.mark.parametrize('name', ['digits', 'fashion_mnist'])
def test_shipped_teachers_exist(name):
  assert pathlib.Path(get(name).teacher.path).is_file()


@pytest.mark.parametrize('name', VARIANTS)
def test_smoke_needs_no_files(name):
  config = get(name, 'smoke')
  assert config.teacher.path == 'random' and not config.teacher.robustbench
  assert config.data.noise_examples > 0
  assert config.num_epochs > config.warmup_epochs > 0


def test_order_of_variants_does_not_matter():
  one = cifar10_resnet20.get_config('released,paper_length')
  other = cifar10_resnet20.get_config('paper_length,released')
  assert one.to_dict() == other.to_dict()
  assert one.inner.gamma == 0 and one.num_epochs == 220


def test_teachers_against_l2():
  config = cifar10.get_config()
  config.teacher.robustbench = 'L2/Rice2020Overfitting'
  networks.check_teacher('teacher', config.teacher, config)
  config.teacher.robustbench = 'Rony2019Decoupling'
  with pytest.raises(ValueError, match='teacher.robustbench=.*'
                     'against L2, L2/Rony2019Decoupling'):
    networks.check_teacher('teacher', config.teacher, config)
  # How MeanSparse is attacked may be said beside an id.
  config.teacher.robustbench = 'Amini2024MeanSparse_S-WRN-94-16'
  config.teacher.straight_through = True
  networks.check_teacher('teacher', config.teacher, config)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_teachers_of_the_paper_are_robustbench_s(name):
  config = get(name)
  entry = robustbench.find(name, config.teacher.robustbench)
  assert entry.id == 'Chen2021LTD_WRN34_10'
  assert entry.arch == config.teacher.arch == 'wrn_34_10'
  assert not config.teacher.path
