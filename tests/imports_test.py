"""Imports go downwards only, and each heavy library has its one place."""

import ast
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).parents[1] / 'ferd_jax'

# A module may import those of lower levels. A package has one level.
_LEVELS = [
    {'validate', 'collectives', 'loops', 'metrics', 'assets', 'report',
     'samples', 'atomic', 'damage'},
    {'losses', 'augment', 'data', 'pool', 'parallel', 'progress'},
    {'models', 'attacks', 'class_weights', 'forward', 'outer_losses'},
    {'features', 'inner_attacks', 'state', 'torch_io', 'torch_twins',
     'native'},
    {'synthesis', 'distill', 'robustness', 'checkpoint', 'loading',
     'teachers'},
    {'target_analysis', 'convert'},
    {'experiment'},
    {'learning_curve', 'export'},
    {'train'},
    {'evaluate'},
]
_LEVEL = {name: level for level, names in enumerate(_LEVELS) for name in names}
_FILES = sorted(_PACKAGE.rglob('*.py'))


def _unit(path):
  """Returns the module or package of a file, below ferd_jax."""
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imports(path):
  """Yields (top-level module, whole dotted name) of all imports of a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def test_every_module_has_a_level():
  units = {_unit(path) for path in _FILES} - {'__init__'}
  assert units == set(_LEVEL)


@pytest.mark.parametrize('path', _FILES, ids=lambda p: str(
    p.relative_to(_PACKAGE)))
def test_imports_go_downwards(path):
  unit = _unit(path)
  for name in _imports(path):
    parts = name.split('.')
    if parts[0] == 'ferd_jax' and len(parts) > 1 and unit != '__init__':
      assert parts[1] == unit or _LEVEL[parts[1]] < _LEVEL[unit], (
          f'{unit} imports {parts[1]}')


@pytest.mark.parametrize('library, owners', [
    ('tensorflow_datasets', {'data'}), ('torch', {'torch_twins', 'convert'}),
    ('orbax', {'checkpoint', 'native'}),
    ('tqdm', {'progress', 'robustness', 'target_analysis', 'data', 'attacks',
              'teachers'}),
    ('PIL', {'samples', 'data'}), ('ml_collections', {'experiment'}),
    ('tensorflow', set())])
def test_heavy_libraries_have_one_place(library, owners):
  users = {_unit(path) for path in _FILES for name in _imports(path)
           if name.split('.')[0] == library}
  assert users <= owners


def test_only_optional_checks_import_the_modules_that_need_torch():
  for path in _FILES:
    for node in ast.parse(path.read_text()).body:  # Of the module itself.
      if isinstance(node, ast.ImportFrom):
        assert 'torch_twins' not in {alias.name for alias in node.names}, path


@pytest.mark.parametrize('word', ['pmap', 'shard_map', 'NamedSharding'])
def test_only_parallel_maps_over_devices(word):
  for path in _FILES:
    names = {node.attr for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Attribute)}
    assert word not in names or _unit(path) == 'parallel', path
