"""Every setting has a default and a meaning; parts take each other's place."""

import pytest

from configs import cifar10
from configs import digits
from ferd_jax.run import settings


def test_every_setting_has_a_meaning():
  config = settings.defaults()
  meanings = settings.meanings(config)
  names = {name for name, value in settings.flat(config) if value != {}}
  assert set(meanings) == names
  assert all(meanings.values())


@pytest.mark.parametrize('group', list(settings.REGISTRIES))
def test_every_part_has_meanings(group):
  for part in settings.REGISTRIES[group]:
    config = settings.defaults()
    settings.use(config, group, part)
    assert all(settings.meanings(config).values())


def test_another_part_brings_its_settings_and_keeps_the_budget():
  config = digits.get_config()
  config.sampler.attack_steps = 7
  settings.use(config, 'sampler', 'margin_minmax', absent='zero')
  assert config.sampler.to_dict() == {
      'name': 'margin_minmax', 'range': (0.05, 0.2), 'absent': 'zero',
      'attack_steps': 7}
  settings.use(config, 'sampler', 'uniform')
  assert config.sampler.to_dict() == {'name': 'uniform'}


def test_setting_of_no_part():
  with pytest.raises(ValueError, match='sampler.tau.*which has name, range'):
    settings.use(settings.defaults(), 'sampler', 'margin_minmax', tau=2.)
  with pytest.raises(ValueError, match="sampler.name='softmax'.*Did you mean"):
    settings.use(settings.defaults(), 'sampler', 'softmax')


def test_another_architecture_drops_what_belonged_to_the_old_one():
  config = digits.get_config()
  settings.give_way(config, {'teacher.arch': 'resnet18'})
  assert config.teacher.shortcut is None and config.teacher.path == ''
  assert config.student.width == 8  # that of another network
  config = digits.get_config()
  settings.give_way(config, {'teacher.arch': 'cifar_resnet8'})
  assert config.teacher.shortcut == 'pad_both' and config.teacher.path


def test_a_file_takes_the_place_of_a_robustbench_id():
  config = cifar10.get_config()
  settings.give_way(config, {'teacher.path': 'own.pt'})
  assert config.teacher.robustbench is None
  assert config.teacher.arch == 'wrn_34_10'
  config = cifar10.get_config()
  settings.give_way(config, {'teacher.arch': 'resnet18'})
  assert config.teacher.robustbench is None


def test_a_robustbench_id_takes_the_place_of_a_file():
  config = digits.get_config()
  settings.give_way(config, {'teacher.robustbench': 'Rice2020Overfitting'})
  assert config.teacher.path == '' and config.teacher.shortcut is None


@pytest.mark.parametrize('name, expected', [
    ('step_size', True), ('eps', False), ('teacher.width', True),
    ('teacher.path', False), ('teachers.clean.mean', True),
    ('student.final_bn', True), ('absent', False), ('absent.width', False),
    ('sampler.tau', False)])
def test_may_be_unset(name, expected):
  assert settings.may_be_unset(name, settings.defaults()) is expected


def test_another_architecture_beside_a_robustbench_id():
  with pytest.raises(ValueError, match='teacher.arch.*robustbench'):
    settings.give_way(cifar10.get_config(), {
        'teacher.arch': 'resnet18', 'teacher.robustbench': 'Rice2020'})
