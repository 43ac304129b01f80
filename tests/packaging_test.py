"""What is installed: the wheel, its extras, its commands."""

import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

from ferd_jax import __main__ as commands
from ferd_jax.run import config_files

_ROOT = pathlib.Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / 'pyproject.toml').read_text())['project']


def _requirements(name):
  lines = (_ROOT / name).read_text().splitlines()
  return {line for line in lines if line and not line.startswith(('#', '-r'))}


def test_training_extra_is_requirements_txt():
  extra = set(_PROJECT['optional-dependencies']['train'])
  assert _requirements('requirements.txt') == extra | set(
      _PROJECT['dependencies'])


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Returns the folder of an unpacked wheel."""
  pytest.importorskip('hatchling')
  folder = tmp_path_factory.mktemp('wheel')
  subprocess.run(
      [sys.executable, '-m', 'hatchling', 'build', '-t', 'wheel', '-d', folder],
      check=True, cwd=_ROOT, capture_output=True)
  file, = folder.glob('*.whl')
  with zipfile.ZipFile(file) as archive:
    archive.extractall(folder / 'site')
  return folder / 'site'


def test_wheel_has_configs_assets_and_types(wheel):
  package = wheel / 'ferd_jax'
  for name in ('py.typed', 'assets/robustbench.csv',
               'assets/digits_resnet8_adv.safetensors'):
    assert (package / name).exists()
  inside = {path.relative_to(package / 'configs')
            for path in (package / 'configs').rglob('*.py')}
  assert inside == {path.relative_to(_ROOT / 'configs')
                    for path in (_ROOT / 'configs').rglob('*.py')}
  assert {path.name for path in wheel.iterdir()} == {
      'ferd_jax', next(wheel.glob('*.dist-info')).name}


def _installed(wheel, cwd, *arguments):
  """Runs a command of the wheel far from the checkout."""
  program = (f'import sys; sys.path[:0] = [{str(wheel)!r}]; '
             'from ferd_jax import __main__; __main__.main()')
  return subprocess.run(
      [sys.executable, '-c', program, *arguments], cwd=cwd, text=True,
      capture_output=True, check=False)


def test_wheel_finds_its_configs_beside_those_of_others(wheel, tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').touch()
  (tmp_path / 'configs' / 'theirs.py').write_text('EPS = 0.125')
  (tmp_path / 'mine.py').write_text(
      'from configs import digits\n'
      'from configs import theirs\n'
      'def get_config():\n'
      '  config = digits.get_config("smoke")\n'
      '  config.eps = theirs.EPS\n'
      '  return config\n')
  done = _installed(wheel, tmp_path, 'train', '--config=mine', '--help')
  assert done.returncode == 0, done.stderr
  assert '--config.eps=0.125' in done.stdout
  done = _installed(wheel, tmp_path, 'train', '--config=digitz')
  assert done.returncode == 1 and 'Did you mean digits' in done.stderr


def test_configs_of_a_checkout_are_beside_the_package():
  assert config_files.ROOT == _ROOT


def test_every_command_shows_its_help(capsys):
  for name in commands.COMMANDS:
    with pytest.raises(SystemExit) as stop:
      commands.main([name, '--help'])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert '--config=' in shown if name == 'train' else f'.{name} ' in shown


def test_commands_are_named(capsys):
  for argv, status in (([], 2), (['--help'], 0)):
    with pytest.raises(SystemExit) as stop:
      commands.main(argv)
    assert stop.value.code == status
    shown = capsys.readouterr().out
    assert all(re.search(rf'^  {name} ', shown, re.MULTILINE)
               for name in commands.COMMANDS)
  with pytest.raises(SystemExit) as stop:
    commands.main(['evalute'])
  assert stop.value.code == 2
  assert 'Did you mean evaluate?' in capsys.readouterr().err
  commands.main(['--version'])
  assert re.fullmatch(r'\d+\.\d+\.\d+\n', capsys.readouterr().out)


def test_version_is_in_the_changelog_and_the_citation():
  version = next(
      line for line in (_ROOT / 'ferd_jax' / '__init__.py').read_text(
          ).splitlines() if line.startswith('__version__')).split("'")[1]
  assert f'\n## {version}' in (_ROOT / 'CHANGELOG.md').read_text()
  assert f'\nversion: {version}\n' in (_ROOT / 'CITATION.cff').read_text()
