"""What a person types, and what it means."""

import pathlib

from absl import flags
import pytest

from ferd_jax.run import command_line

_ROOT = pathlib.Path(__file__).parents[2]


def _parse(*arguments):
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, 'There.', flag_values=values)
  parsed = command_line.parse(['main.py', *arguments], _ROOT, values)
  return parsed, values


@pytest.mark.parametrize('place', [
    'digits', 'digits.py', 'configs/digits.py', 'digits:smoke',
    str(_ROOT / 'configs' / 'digits.py')])
def test_config_is_found(place, monkeypatch):
  monkeypatch.chdir(_ROOT)
  for arguments in ([f'--config={place}'], ['--config', place]):
    parsed, _ = _parse(*arguments)
    assert parsed.config.name == 'digits' + ('_smoke' if ':' in place else '')


def test_config_of_a_name_is_found_from_elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert _parse('--config=cifar10')[0].config.name == 'cifar10'


@pytest.mark.parametrize('flag, name, value', [
    ('--config.eps=8/255', 'eps', 8 / 255),
    ('--config.eps=0.03', 'eps', 0.03),
    ('--config.eps=1e-1', 'eps', 0.1),
    ('--config.step_size=2/255', 'step_size', 2 / 255),
    ('--config.step_size=', 'step_size', None),
    ('--config.seed=3', 'seed', 3),
    ('--config.student.width=', 'student.width', None),
    ("--config.eval.attacks=('clean',)", 'eval.attacks', ('clean',)),
    ('--noconfig.augment.flip', 'augment.flip', False),
    ('--config.augment.flip', 'augment.flip', True),
    ('--config.data.dir=', 'data.dir', ''),
    ('--config.eval.attacks=clean,pgd20', 'eval.attacks', ('clean', 'pgd20')),
    ('--config.teacher.mean=1/2', 'teacher.mean', (0.5,)),
    ('--config.teacher.std=0.2, 1/4', 'teacher.std', (0.2, 0.25)),
    ('--config.synthesis.bottleneck.beta=1/4', 'synthesis.bottleneck.beta',
     0.25),
    ('--config.sampler.name=uniform', 'sampler.name', 'uniform'),
    ('--config.inner.gamma=0', 'inner.gamma', 0.),
])
def test_setting(flag, name, value):
  before = '--config=digits'
  for arguments in ([before, flag], [before, *flag.split('=', 1)]):
    if arguments[-1] == '':
      continue  # A flag without a value is another thing.
    parsed, values = _parse(*arguments, '--workdir=there')
    found = parsed.config
    for part in name.split('.'):
      found = found[part]
    assert found == value and type(found) is type(value)
    assert values.workdir == 'there' and parsed.positional == ['main.py']


def test_settings_of_the_part_that_is_chosen():
  parsed, _ = _parse('--config=digits', '--config.sampler.range=(0.1, 0.3)',
                     '--config.sampler.name=margin_minmax')
  assert parsed.config.sampler.range == (0.1, 0.3)
  assert 'tau' not in parsed.config.sampler


def test_config_is_locked():
  with pytest.raises(AttributeError):
    _parse('--config=digits')[0].config.other = 1


@pytest.mark.parametrize('arguments, words', [
    ([], ['--config=NAME', 'cifar10']),
    (['--config=cifar'], ['--config=cifar', 'Did you mean cifar10']),
    (['--config=teachers/digit'], ['Did you mean', 'teachers/digits']),
    (['--config=digits:smok'], ['digits.py, line', "'smok'", "'smoke'"]),
    (['--config=digits', '--config.epss=1'], ['config.epss', 'mean eps?']),
    (['--config=digits', '--config.distill.lr=1'],
     ['mean distill.learning_rate']),
    (['--config=digits', '--config.epochs=1'], ['mean num_epochs']),
    (['--config=digits', '--config.gamma=1'], ['mean inner.gamma']),
    (['--config=digits', '--config.distil.steps=1'], ['distill.steps']),
    (['--config=digits', '--config.qqq=1'], ['config.qqq', '--help']),
    (['--config=digits', '--config.sampler.range=(1, 2)'],
     ["sampler.name='margin_minmax'", "'margin_softmax'"]),
    (['--config=digits', '--config.eps=1/0'], ['eps=1/0', '8/255']),
    (['--config=digits', '--config.eps=x'], ['config.eps=x']),
    (['--config=digits', '--config.seed=1.5'], ['config.seed=1.5']),
    (['--config=digits', '--config.outer.name=ikll'], ["outer.name='ikll'"]),
    (['--config=digits', '--workdirr=x'], ['workdirr', 'workdir']),
])
def test_mistake_is_one_line(arguments, words):
  with pytest.raises(ValueError) as error:
    _parse(*arguments)
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


@pytest.mark.parametrize('text, words', [
    ('def get_config(:\n', ['line 1', 'invalid syntax']),
    ('\n\nimport absent_module\n', ['line 3', 'absent_module']),
    ('x = 1\n', ['get_config']),
    ('def get_config():\n  values = {}\n  return values["a"]\n',
     ['line 3', 'KeyError', "'a'"]),
    ('def get_config():\n  return {}\n', ['ConfigDict', 'dict']),
    ('from configs import digits\n\ndef get_config():\n'
     '  config = digits.get_config()\n  config.sampler.tua = 1\n'
     '  return config.absent\n', ['line 6', 'absent'])])
def test_config_that_fails_shows_its_own_line(text, words, tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    _parse(f'--config={path}')
  message = str(error.value)
  assert '\n' not in message and str(path) in message
  for word in words:
    assert word in message


def test_help_has_every_setting_with_value_and_meaning():
  parsed, _ = _parse('--config=digits', '--config.eps=1/8', '--help')
  assert parsed.wants_help
  text = command_line.help_text(parsed.config)
  assert "--config.eps=0.125\n      L-infinity radius" in text
  assert "--config.sampler.name='margin_softmax'" in text
  assert '--config.step_size=\n' in text
  assert max(map(len, text.splitlines())) <= 100


def test_modules_beside_a_config_are_found(tmp_path):
  (tmp_path / 'beside_it.py').write_text('NAME = "found"\n')
  (tmp_path / 'own.py').write_text(
      'import beside_it\nfrom configs import digits\n\n'
      'def get_config():\n  config = digits.get_config()\n'
      '  config.name = beside_it.NAME\n  return config\n')
  assert _parse(f'--config={tmp_path / "own.py"}')[0].config.name == 'found'
