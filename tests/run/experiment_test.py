"""Every mistake in a config is one line with its name and value."""

import importlib
import pathlib

from bucket import bucket  # noqa: F401
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10
from configs import cifar100
from configs import digits
from configs import tiny_imagenet
from ferd_jax import assets
from ferd_jax import models
from ferd_jax.core import downloads
from ferd_jax.run import data_splits
from ferd_jax.run import experiment
from ferd_jax.run import settings


@pytest.fixture(scope='module')
def odd_data(tmp_path_factory):
  """Returns .npz files by the form of their images, and with one class."""
  folder = tmp_path_factory.mktemp('odd')
  for name, shape in (('five', (8, 8, 5)), ('wide', (8, 12, 3)),
                      ('small', (4, 4, 3))):
    np.savez(folder / f'{name}.npz', x=np.zeros((6, *shape), np.uint8),
             y=np.arange(6) % 3)
  np.savez(folder / 'single.npz', x=np.zeros((6, 8, 8, 1), np.uint8),
           y=np.zeros(6, np.int64))
  return folder


_TEACHER = assets.path('digits_resnet8_adv.safetensors')


@pytest.mark.parametrize('changes, words', [
    ({'seed': 2 ** 32}, ['seed=4294967296']),
    ({'synthesis.width': 7}, ['synthesis.width=7', '6 or 8']),
    ({'synthesis.width': 0}, ['synthesis.width=0']),
    ({'pool.dtype': 'float16'}, ["pool.dtype='float16'", 'uint8']),
    ({'synthesis.w_bn': 0., 'synthesis.w_oh': 0., 'synthesis.w_adv': 0.,
      'synthesis.w_uni': 0.}, ['w_bn']),
    ({'eval.select': 'test_worst'}, ['eval.select', 'test_pgd20_worst']),
    ({'eval.select': 'synthetic_pgd', 'eval.every': 0},
     ['eval.every=0', 'synthetic_pgd']),
    ({'student.mean': (0.5, 0.5, 0.5), 'student.std': (1., 1., 1.)},
     ['student.mean', '1 values']),
    ({'data.noise_examples': -1}, ['data.noise_examples=-1']),
    ({'sampler.range': (0.2,)}, ['sampler.range=(0.2,)']),
    ({'sampler.range': (0.05, float('inf'))},
     ['sampler.range=(0.05, inf)']),
    ({'sampler.range': ('a', 'b')}, ["sampler.range='a'"]),
    ({'sampler.attack_steps': 0}, ['sampler.attack_steps=0']),
    ({'synthesis.measured': 'first'}, ["synthesis.measured='first'"]),
    ({'inner.steps': 0}, ['inner.steps=0']),
    ({'outer.prior': 'x'}, ["outer.prior='x'", 'class_mean']),
    ({'outer.power': -1.}, ['outer.power=-1.0']),
    ({'outer.w_clean': 0., 'outer.w_adv': 0.},
     ['outer.w_clean', 'w_adv']),
    ({'synthesis.bottleneck.steps': 0},
     ['synthesis.bottleneck.steps=0']),
    ({'synthesis.bottleneck.learning_rate': 0.},
     ['synthesis.bottleneck.learning_rate=0.0']),
    ({'student.arch': 'resnet19'}, ["student.arch='resnet19'"]),
    ({'student.width': 0}, ['student.width=0']),
    ({'teacher.mean': ('a',), 'teacher.std': ('b',)}, ["teacher.std='b'"]),
    ({'teacher.path': '/'}, ['teacher.path', '/']),
    ({'step_size': 5.}, ['step_size=5.0', '[0, 1]']),
    ({'step_size': 0.}, ['step_size=0.0']),
    ({'seed': 10 ** 400}, ['seed=1000']),
    ({'teacher.shortcut_input': 'x'}, ['teacher: ', 'shortcut_input']),
    ({'teacher.shortcut': '', 'teacher.path': _TEACHER},
     ['teacher.path', 'do not reveal shortcut']),
    ({'teacher.arch': 'auto', 'teacher.path': _TEACHER, 'teacher.width': None},
     ['teacher.path', 'do not reveal activation', 'mean and std (0 and 1']),
    ({'teacher.robustbench': 'Standard', 'teacher.path': ''},
     ["teacher.robustbench='Standard'", "not 'digits'"]),
    ({'teacher.path': ''}, ['teacher.path=FILE', 'no network for digits',
                            '--config=teachers/digits']),
    ({'teacher.arch': 'none'}, ["teacher.path='random' to be unset"]),
    *(({'teacher.arch': 'none', 'teacher.path': '', f'teacher.{name}': 'x'},
       [f"teacher.{name}='x' to be unset"])
      for name in ('robustbench', 'select', 'normaliser')),
    ({'eps': 2e-6}, ['step_size=5e-07', 'unset: eps / 4', '>= 1e-06']),
    ({'teacher.arch': 'none', 'teacher.path': ''},
     ["synthesis.name='ferd' to need no teacher"]),
    ({'distill.schedule': 'linear'}, ["distill.schedule='linear'"]),
    ({'distill.schedule': 'milestones', 'distill.milestones': (1, 3)},
     ['distill.milestones=(1, 3)', '1..2']),
    ({'eps': float('nan')}, ['eps=nan']),
    ({'augment.pad': 8}, ['augment.pad=8', '[0, 7]']),
    ({'eval.attacks': ()}, ['eval.attacks=()']),
    ({'eval.attacks': ('clean', 'clean')}, ['eval.attacks', 'each once']),
    ({'eval.curve_attacks': ()}, ['eval.curve_attacks=()']),
    ({'data.name': 'five.npz'}, ['(8, 8, 5)', '1 or 3 channels']),
    ({'data.name': 'wide.npz'}, ['synthesis: ', '(8, 12, 3)', 'square']),
    ({'data.name': 'single.npz'}, ['num_classes=1']),
    ({'data.name': 'small.npz'}, ["synthesis.tap='layer3'", '(1, 1, 16)']),
])
def test_mistake_is_one_line(changes, words, odd_data):
  config = digits.get_config('smoke')
  if 'data.name' in changes:
    changes = changes | {'data.name': str(odd_data / changes['data.name'])}
  if 'sampler.range' in changes:
    settings.use(config, 'sampler', 'margin_minmax')
  if 'teacher.path' in changes:
    config.data.noise_examples = 0  # Which no file is measured on.
  config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, OSError)) as error:
    experiment.build(config)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_teacher_and_images_of_a_bucket(bucket, tmp_path):  # noqa: F811
  plain = digits.get_config()
  (bucket / 'teacher.safetensors').write_bytes(
      pathlib.Path(plain.teacher.path).read_bytes())
  np.savez(tmp_path / 'own.npz', x=np.zeros((20, 8, 8, 1), np.uint8),
           y=np.arange(20) % 10)
  (bucket / 'own.npz').write_bytes((tmp_path / 'own.npz').read_bytes())
  config = digits.get_config()
  config.teacher.path = 'gs://bucket//folder/teacher.safetensors'
  config.data.name = 'gs://bucket//folder/own.npz'
  run = experiment.build(config, tuple(jax.devices()[:1]))
  assert (run.identity['teacher_digests'] == experiment.build(
      plain, tuple(jax.devices()[:1])).identity['teacher_digests'])
  assert len(run.examples.labels) == 20


def test_further_teacher_is_one():
  config = digits.get_config('smoke')
  config.teachers.clean = settings.network()
  config.teachers.clean.arch = 'none'
  with pytest.raises(ValueError, match="^Expected teachers.clean.arch='none'"):
    experiment.build(config)


@pytest.mark.parametrize('synthesis, changes, words', [
    ('real', {'distill.steps': 2 ** 31 - 1, 'num_epochs': 2},
     ['order of 2,147,483,648 batches', 'fewer distill.steps']),
    ('cmi', {'synthesis.bank_size': 2 ** 31 - 1},
     ['student and synthesis', 'synthesis.bank_size'])])
def test_what_does_not_fit_the_memory(synthesis, changes, words):
  config = digits.get_config('smoke')
  settings.use(config, 'sampler', 'uniform')
  settings.use(config, 'synthesis', synthesis)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError) as error:
    experiment.build(config)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize('step_size, expected', [
    (None, 0.02), (0.02, 0.02), (0.05, 0.05)])
def test_step_size_is_a_quarter_of_the_radius_unless_set(step_size, expected):
  config = digits.get_config('smoke')
  config.eps, config.step_size = 0.08, step_size
  run = experiment.build(config, tuple(jax.devices()[:1]))
  assert run.method.sampler.measurement.attack.step_size == expected
  assert run.method.distillation.inner.step_size == expected
  assert run.identity['step_size'] == expected


@pytest.mark.parametrize('get_config', [
    cifar10.get_config, cifar100.get_config, tiny_imagenet.get_config])
@pytest.mark.parametrize('num_devices', [4, 8, 16])
def test_paper_configs_divide_over_hosts(get_config, num_devices):
  config = get_config()
  for group in ('synthesis', 'distill', 'eval'):
    assert config[group].batch_size % num_devices == 0


@pytest.mark.parametrize('name, variant', [
    ('digits', 'trades,smoke'), ('fashion_mnist', 'smoke'),
    ('cifar10', 'smoke'), ('cifar100', 'pgd_at,smoke'),
    ('tiny_imagenet', 'smoke')])
def test_teachers_are_trained_on_what_a_data_set_has(name, variant):
  module = importlib.import_module(f'configs.teachers.{name}')
  run = experiment.build(module.get_config(variant),
                         tuple(jax.devices()[:1]))
  assert run.teacher is None and not run.method.distillation.reads_clean
  assert len(run.method.training_data.labels) == 24
  assert run.identity['training_data']['num_examples'] == 24


def test_a_data_set_without_a_public_teacher_says_how_to_train_one():
  with pytest.raises(ValueError, match='no network for tiny_imagenet: python '
                     'main.py --config=teachers/tiny_imagenet'):
    experiment.build(tiny_imagenet.get_config())


def test_empty_text_unsets_an_option_of_a_network():
  config = digits.get_config('smoke')
  config.student.activation = config.student.shortcut = ''
  run = experiment.build(config, tuple(jax.devices()[:1]))
  assert run.config.student.activation is None
  assert config.student.activation == ''  # Its owner's.
  assert run.identity['student']['shortcut'] is None
  assert run.student_network.build() == run.student


def test_own_data_of_two_classes(odd_data):
  np.savez(odd_data / 'two.npz', x=np.zeros((6, 16, 16, 3), np.uint8),
           y=np.arange(6) % 2)
  config = digits.get_config('smoke')
  config.data.name, config.data.noise_examples = str(odd_data / 'two.npz'), 0
  run = experiment.build(config, tuple(jax.devices()[:1]))
  assert (run.method.num_classes, run.method.image_shape) == (2, (16, 16, 3))


@pytest.mark.parametrize('changes, words', [
    ({'data.split': 'test[600:]'}, ['data: digits', 'test[600:]']),
    ({'data.name': 'first.npz'}, ['first.npz', 'x.transpose(0, 2, 3, 1)']),
    ({'data.name': 'few.npz', 'teacher.path': _TEACHER},
     ['few.npz has 3 classes', 'class_names'])])
def test_data_are_blamed_before_the_weights(changes, words, odd_data):
  np.savez(odd_data / 'first.npz', x=np.zeros((6, 1, 8, 8), np.uint8),
           y=np.arange(6) % 3)
  np.savez(odd_data / 'few.npz', x=np.zeros((6, 8, 8, 1), np.uint8),
           y=np.arange(6) % 3)
  config = digits.get_config()
  config.teacher.path = str(odd_data / 'absent.pt')
  config.update_from_flattened_dict(changes | {
      'data.name': str(odd_data / changes['data.name'])
  } if 'data.name' in changes else changes)
  with pytest.raises((ValueError, OSError)) as error:
    experiment.build(config, tuple(jax.devices()[:1]))
  for word in words:
    assert word in str(error.value)


def test_file_that_is_not_there_says_where_to_put_it(monkeypatch, tmp_path):
  monkeypatch.setenv('FERD_JAX_CACHE', str(tmp_path))
  def refused(*args, **options):
    raise OSError('no network')
  monkeypatch.setattr(downloads, 'get', refused)
  monkeypatch.setattr(data_splits, 'judging', lambda *args: (None, None))
  with pytest.raises(OSError) as error:
    experiment.build(cifar10.get_config())
  message = str(error.value)
  for word in ('Chen2021LTD_WRN34_10', str(tmp_path), 'teacher.path',
               'python -m ferd_jax.teachers list'):
    assert word in message


@pytest.mark.parametrize('get_config, words', [
    (cifar10.get_config, ['teacher.path=FILE', 'teacher.robustbench=ID',
                          'python -m ferd_jax.teachers list']),
    (tiny_imagenet.get_config, ['teacher.path=FILE', 'no network for tiny',
                                'docs/teachers.md'])])
def test_no_teacher_says_which_ones_there_are(get_config, words):
  config = get_config()
  config.teacher.robustbench = None
  with pytest.raises(ValueError) as error:
    experiment.build(config)
  for word in words:
    assert word in str(error.value)


class Plain(nn.Module):
  """Knows nothing of stages, taps and BatchNorm's moments."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


@pytest.mark.parametrize('changes, words', [
    ({'synthesis.w_uni': 0.}, ['synthesis.w_bn', 'to be 0', 'BatchNorm']),
    ({'synthesis.w_bn': 0.}, ['synthesis.w_uni', 'to be 0', 'stages'])])
def test_teacher_of_one_s_own_that_ferd_cannot_look_into(changes, words):
  config = digits.get_config('smoke')
  config.update_from_flattened_dict(changes)
  variables = models.init_variables(Plain(), jax.random.key(0), (8, 8, 1))
  with pytest.raises(ValueError) as error:
    experiment.build(config, tuple(jax.devices()[:1]),
                     teacher=(Plain(), variables))
  for word in words:
    assert word in str(error.value)


def test_student_whose_statistics_are_not_synchronised():
  with pytest.raises(ValueError, match='Plain to have a field axis_name'):
    experiment.build(digits.get_config('smoke'), tuple(jax.devices()[:2]),
                     student=Plain())


@pytest.mark.parametrize('name, words', [
    ('eval.evry', ['eval.evry=2', 'mean eval.every']),
    ('sed', ['sed=2', 'mean seed']), ('sampler.range', ['sampler.range=2'])])
def test_misspelt_setting_in_a_config(name, words):
  config = digits.get_config('smoke')
  group, _, leaf = name.rpartition('.')
  (config[group] if group else config)[leaf] = 2
  with pytest.raises(ValueError) as error:
    experiment.build(config)
  for word in words:
    assert word in str(error.value)


class Rows(nn.Module):
  """Takes images of 28 x 28 only."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(x.reshape(len(x), 784))


def test_network_that_does_not_take_the_images():
  with pytest.raises(ValueError) as error:
    experiment.build(digits.get_config('smoke'), tuple(jax.devices()[:1]),
                     student=Rows())
  assert 'student Rows to take images of shape (8, 8, 1); TypeError' in str(
      error.value)
  assert '\n' not in str(error.value)
