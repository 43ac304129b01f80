"""What the README shows: its examples run, its files and configs exist."""

import doctest
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_README = (_ROOT / 'README.md').read_text()


def test_examples(tmp_path, monkeypatch):
  pytest.importorskip('equinox')
  monkeypatch.chdir(tmp_path)
  found = doctest.testfile(str(_ROOT / 'README.md'), module_relative=False)
  assert found.attempted > 20 and not found.failed


def test_named_files_exist():
  named = set(re.findall(
      r'\b(?:ferd_jax|configs|tests|docs|benchmarks)/\w+\.\w+', _README))
  assert len(named) > 5
  assert not [name for name in named if not (_ROOT / name).exists()]


def test_every_config_is_in_the_table():
  table = _README.partition('## Configs')[2].partition('## A run')[0]
  configs = {path.name for path in (_ROOT / 'configs').glob('*.py')}
  configs -= {'__init__.py', 'default.py', 'variants.py'}
  assert not [name for name in configs if f'| `{name}` |' not in table]


@pytest.mark.parametrize('path', [_ROOT / 'README.md',
                                  *sorted((_ROOT / 'docs').glob('*.md'))],
                         ids=lambda path: path.name)
def test_tables_have_as_many_cells_in_every_row(path):
  tables = re.findall(r'(?:^\|.*\n)+', path.read_text(), re.MULTILINE)
  assert tables
  for table in tables:
    widths = {row.count('|') for row in table.splitlines()}
    assert len(widths) == 1, table
