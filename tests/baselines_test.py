"""Tests of configs/baselines: data sets, variants, the originals' constants."""

import importlib
import pathlib

import pytest

from configs.baselines import common
from ferd_jax.run import command_line
from ferd_jax.run import experiment as experiments
from ferd_jax.run import settings

_ROOT = pathlib.Path(common.__file__).parents[2]
OWN = {
    'dafl': ('zju',), 'zskt': ('zju',), 'dfad': ('zju',), 'dfq': (),
    'deepinversion': ('adaptive', 'zju'), 'cmi': ('scratch',),
    'fast': ('two_steps', 'ten_steps', 'wrn', 'reptile'), 'dfhl_rs': (),
    'nayer': ('gaussian', 'one_hot')}


def get(name, variant=''):
  return importlib.import_module(f'configs.baselines.{name}').get_config(
      variant)


def test_every_baseline_is_listed():
  found = {path.stem for path in (_ROOT / 'configs/baselines').glob('*.py')}
  assert found - {'common'} == set(OWN)
  offered = set(command_line._names(_ROOT))
  assert {f'baselines/{name}' for name in OWN} == {
      name for name in offered if name.startswith('baselines/')}
  assert not [name for name in offered if name.startswith('comparisons/')]


@pytest.mark.parametrize(('variant', 'inner', 'outer'), [
    ('digits', 'rslad', 'rslad'), ('digits,absld', 'rslad', 'absld'),
    ('digits,ard', 'ce', 'ard')])
def test_student_s_attack_and_loss_are_rslad_s_or_a_variant_s(
    variant, inner, outer):
  config = get('cmi', variant)
  assert (config.inner.name, config.outer.name) == (inner, outer)
  assert config.synthesis.name == 'cmi'


@pytest.mark.parametrize('name', OWN)
@pytest.mark.parametrize('data_set', common.DATA_SETS)
def test_settings_exist_and_have_their_types(name, data_set):
  plain = importlib.import_module(f'configs.{data_set}').get_config()
  for variant in ('', *OWN[name]):
    config = get(name, f'{data_set},{variant}')
    values = dict(settings.flat(config))
    defaults = dict(settings.flat(settings.defaults_like(config)))
    assert set(values) == set(defaults)
    for key, value in values.items():
      assert defaults[key] is None or type(value) is type(defaults[key]), key
    assert (config.synthesis.name, config.sampler.name) == (name, 'uniform')
    assert config.name == '_'.join(filter(None, (data_set, name, variant)))
    # The student has as many steps as with every other synthesis.
    assert config.num_epochs - config.warmup_epochs == (
        plain.num_epochs - plain.warmup_epochs)
    assert config.distill == plain.distill


@pytest.mark.parametrize('name', OWN)
def test_smoke_of_each_is_built(name):
  config = get(name, 'digits,smoke')
  method = experiments.build(config).method
  rounds = method.synthesis.rounds
  assert rounds.per_epoch * rounds.student_steps == config.distill.steps == 2
  assert config.synthesis.batch_size == 8


@pytest.mark.parametrize('variant', [
    'mobilenet_v2', 'cifar100,batch512', 'cifar10_resnet20,paper_length',
    'absld,smoke'])
def test_variants_of_the_data_set_remain(variant):
  config = get('cmi', variant)
  last = variant.rpartition(',')[2]
  assert config.synthesis.name == 'cmi' and config.name.endswith(last)


def test_short_names():
  config = command_line.load('baselines/cmi:digits,scratch', _ROOT)
  assert config.name == 'digits_cmi_scratch'
  with pytest.raises(ValueError, match='Did you mean baselines/fast'):
    command_line.load('fast', _ROOT)


@pytest.mark.parametrize(('variant', 'message'), [
    ('digits,cifar10', 'one data set'), ('fast', "variant='fast'"),
    *((name, f"variant='{name}' to be of 'cmi'") for name in (
        'released', 'plus', 'no_reweighting', 'no_fae', 'no_utae',
        'similar_target', 'gamma=0.5', 'tau=2', 'lambda=1', 'tap=block3')),
    ('digits,absld,tau=2', "variant='tau=2'"), ('ard,iad', "'ard' and 'iad'")])
def test_invalid_variants(variant, message):
  with pytest.raises(ValueError, match=message):
    get('cmi', variant)


@pytest.mark.parametrize(('name', 'variant', 'values'), [
    ('dafl', '', {'nz': 1000, 'w_oh': 0.05, 'w_balance': 5, 'w_act': 0.01,
                  'generator_lr': 0.02, 'batch_size': 256}),
    ('dafl', 'cifar100', {'w_oh': 0.5, 'w_balance': 20, 'w_act': 0.1}),
    ('zskt', '', {'nz': 100, 'student_steps_per_round': 10, 'clip_norm': 5}),
    ('dfad', '', {'nz': 256, 'student_steps_per_round': 5}),
    ('dfq', '', {'nz': 256, 'student_steps_per_round': 10,
                 'wide_start': True}),
    ('deepinversion', '', {'steps': 2000, 'w_bn': 100, 'roll': 2}),
    ('deepinversion', 'zju', {'steps': 1000, 'w_bn': 10, 'roll': 4,
                              'w_js': 1, 'variation': 'l1'}),
    ('cmi', '', {'steps': 200, 'nz': 256, 'features': 'stage_outputs'}),
    ('fast', '', {'generator_steps': 5, 'generator_lr': 3e-3, 'nz': 256}),
    ('fast', 'two_steps', {'generator_steps': 2, 'generator_lr': 5e-3,
                           'latent_lr': 0.015}),
    ('dfhl_rs', '', {'generator_steps': 10, 'smoothing': 0.2}),
    ('dfhl_rs', 'cifar100', {'generator_steps': 15, 'smoothing': 0.02}),
    ('nayer', '', {'generator_steps': 30, 'batch_size': 400, 'nz': 1000}),
    ('nayer', 'cifar100', {'generator_steps': 40}),
    # A data set's own budget stays, and small teachers' labels weigh more.
    ('cmi', 'fashion_mnist', {'steps': 200, 'width': 32, 'batch_size': 128,
                              'w_oh': 10, 'features': 'norm_inputs'}),
    ('fast', 'digits', {'generator_steps': 5, 'w_oh': 5}),
    ('fast', 'digits,wrn', {'w_oh': 4.}),
    # Without L_bn nothing outweighs them.
    ('dafl', 'digits', {'batch_size': 32, 'w_oh': 0.05}),
    ('dfhl_rs', 'digits', {'w_oh': 1})])
def test_constants(name, variant, values):
  config = get(name, variant)
  assert {key: config.synthesis[key] for key in values} == values
