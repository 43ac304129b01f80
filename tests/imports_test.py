"""Imports go downwards only, and each heavy library has its one place."""

import ast
import pathlib
import subprocess
import sys

import pytest

_PACKAGE = pathlib.Path(__file__).parents[1] / 'ferd_jax'

# The rooms, from the ground up. A file imports from rooms that stand before
# its own, and from its own as long as nothing goes in circles.
_ROOMS = ('assets', 'core', 'losses', 'data', 'attacks', 'models',
          'jax_networks', 'torch_networks', 'torch_io', 'torch_twins',
          'weights', 'synthesis', 'distillation', 'evaluation', 'run',
          'trained', 'benchmarking', 'train', 'comparison', 'reports',
          'evaluate', 'convert', 'teachers', 'compare', 'report',
          'train_command', '__main__')
_FILES = sorted(path for path in _PACKAGE.rglob('*.py')
                if path != _PACKAGE / '__init__.py')
_NAMES = [str(path.relative_to(_PACKAGE)) for path in _FILES]


def _room(path):
  """Returns the module or package of a file, below ferd_jax."""
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imports(tree):
  """Yields the dotted names of all imports of a syntax tree."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def _tree(path):
  return ast.parse(path.read_text())


def _own(path):
  """Returns the files of this package that a file imports, by dotted name."""
  found = set()
  for name in _imports(_tree(path)):
    parts = name.split('.')
    if parts[0] == 'ferd_jax':
      for size in range(len(parts), 1, -1):
        base = _PACKAGE.joinpath(*parts[1:size])
        for file in (base.with_suffix('.py'), base / '__init__.py'):
          if file.exists():
            found.add(file)
            break
        else:
          continue
        break
  return found


def test_every_room_is_known():
  assert {_room(path) for path in _FILES} == set(_ROOMS)


@pytest.mark.parametrize('path', _FILES, ids=_NAMES)
def test_imports_go_downwards(path):
  floor = _ROOMS.index(_room(path))
  for file in _own(path):
    assert _ROOMS.index(_room(file)) <= floor, f'{path} imports {file}'


def test_no_imports_go_in_circles():
  imported = {path: _own(path) - {path} for path in _FILES}
  done = set()
  while len(done) < len(imported):
    free = {path for path, files in imported.items()
            if path not in done and files <= done}
    assert free, f'in circles: {sorted(map(str, imported.keys() - done))}'
    done |= free


@pytest.mark.parametrize('library, owners', [
    ('tensorflow_datasets', {'data'}), ('matplotlib', {'reports'}),
    ('torch', {'torch_networks', 'torch_twins', 'convert'}),
    ('orbax', {'run', 'weights'}),
    ('rich', {'core'}), ('tqdm', set()),
    ('tensorboardX', set()), ('wandb', set()), ('trackio', set()),
    ('PIL', {'run', 'data'}), ('ml_collections', {'run'}),
    ('tensorflow', set())])
def test_heavy_libraries_have_one_place(library, owners):
  users = {_room(path) for path in _FILES for name in _imports(_tree(path))
           if name.split('.')[0] == library}
  assert users <= owners


def test_only_optional_checks_import_the_modules_that_need_torch():
  for path in _FILES:
    for node in _tree(path).body:  # Of the module itself.
      if isinstance(node, ast.ImportFrom):
        assert 'torch_twins' not in {alias.name for alias in node.names}, path


@pytest.mark.parametrize('word', ['pmap', 'shard_map', 'NamedSharding'])
def test_only_parallel_maps_over_devices(word):
  for path in _FILES:
    names = {node.attr for node in ast.walk(_tree(path))
             if isinstance(node, ast.Attribute)}
    assert word not in names or path.name == 'parallel.py', path


def test_package_imports_its_modules_when_they_are_used():
  program = (
      'import sys, ferd_jax; '
      'assert not {"jax", "flax", "ml_collections"} & sys.modules.keys(); '
      'assert "attacks" in dir(ferd_jax); '
      'attack = ferd_jax.attacks.PGD(0.1, 0.1, 1); ferd_jax.losses.margin; '
      'assert not {"flax", "ml_collections", "orbax"} & sys.modules.keys(); '
      'assert not hasattr(ferd_jax, "absent")')
  subprocess.run([sys.executable, '-c', program], check=True,
                 cwd=_PACKAGE.parent)
