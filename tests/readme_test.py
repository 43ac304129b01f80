"""What README and docs show: examples run, names exist, commands parse.

`commands_test.py` runs the commands, `snippets_test.py` Python without prompts.
"""

import doctest
import fractions
import os
import re
import shlex

from absl import flags
import pages
import pytest

from ferd_jax import compare
from ferd_jax import convert
from ferd_jax import evaluate
from ferd_jax import report
from ferd_jax import teachers
from ferd_jax.models import registry
from ferd_jax.run import command_line
from ferd_jax.run import settings

_ROOT, _PAGES = pages.ROOT, pages.PAGES
_EXAMPLES = [page for page in _PAGES if '>>> ' in page.read_text()]
_PARSERS = {'compare': compare._parser, 'convert': convert._parser,
            'evaluate': evaluate._parser, 'report': report._parser,
            'teachers': teachers._parser}
_COMMAND = re.compile(
    r'python (?P<what>main\.py|benchmarks/\w+\.py|-m ferd_jax\.\w+)'
    r'(?P<rest>(?: [^`\n]*)?)')

_FOLDERS = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'pyproject.toml',
            'ferd_jax', 'configs', 'tests', 'docs', 'benchmarks')
_NAMED = re.compile(
    r'(?<![\w/])(?:ferd_jax|configs|tests|docs|benchmarks)/(?:\w+/)*\w+\.'
    r'(?:py|md|json|svg|png|mplstyle|ipynb|tar\.xz)\b')


def _name(page):
  return page.name


def _commands():
  """Yields page, program and arguments of every command line."""
  for page in _PAGES:
    text = re.sub(r'\\\n\s*', ' ', page.read_text())
    for found in _COMMAND.finditer(text):
      rest = re.split(r' (?:&&|\||#)(?: |$)', found['rest'])[0]
      if rest.count('"') % 2:  # The end of a command within a command.
        rest = rest.rstrip().removesuffix('"')
      yield page, found['what'], shlex.split(rest)


def _anchors(page):
  """Returns what GitHub calls the headings of a page."""
  headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
          for heading in headings}


def _known_settings():
  """Returns the settings and groups of all parts."""
  known = dict(settings.flat(settings.defaults()))
  for group, registry_ in settings.REGISTRIES.items():
    for part in registry_:
      known |= {f'{group}.{name}': value for name, value in settings.flat(
          registry_.defaults(part))}
  groups = {name.rpartition('.')[0] for name in known}
  return known.keys() | groups


def test_readme_is_short():
  assert len(_PAGES[0].read_text().splitlines()) < 200


@pytest.mark.parametrize('page', _EXAMPLES, ids=_name)
def test_examples(page, tmp_path, monkeypatch):
  if 'import equinox' in page.read_text():
    pytest.importorskip('equinox')
  monkeypatch.chdir(tmp_path)
  # Another test does not know what a page registers.
  for name in ('_entries', '_layouts'):
    monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
  for parts in settings.REGISTRIES.values():
    monkeypatch.setattr(parts, '_parts', dict(parts._parts))
  found = doctest.testfile(str(page), module_relative=False)
  assert found.attempted and not found.failed


def test_there_are_examples():
  assert {'README.md', 'attacks.md', 'methods.md'} <= set(map(_name, _EXAMPLES))


def test_named_files_exist():
  named = {(str(path.relative_to(_ROOT)), name)
           for kind in ('*.md', '*.py', '*.toml') for path in _ROOT.rglob(kind)
           if path.relative_to(_ROOT).parts[0] in _FOLDERS
           for name in _NAMED.findall(path.read_text())}
  assert len(named) > 100
  assert not [(page, name) for page, name in named
              if not (_ROOT / name).exists()]


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_links_lead_somewhere(page):
  text = page.read_text()
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    if '://' in link:
      continue
    file, _, anchor = link.partition('#')
    target = (page.parent / file).resolve() if file else page
    assert target.exists(), link
    if anchor:
      assert anchor in _anchors(target), link


@pytest.mark.parametrize('page', ['README.md', 'docs/settings.md'])
def test_every_config_is_in_the_table(page):
  text = (_ROOT / page).read_text()
  configs = {path.stem for path in (_ROOT / 'configs').glob('*.py')}
  configs -= {'__init__', 'default', 'variants'}
  assert not [name for name in configs if f'\n| `{name}` |' not in text]


def test_every_teacher_s_config_is_in_a_table():
  text = (_ROOT / 'docs' / 'settings.md').read_text()
  names = [path.stem for path in (_ROOT / 'configs' / 'teachers').glob('*.py')]
  assert names
  assert not [name for name in names if f'\n| `teachers/{name}` |' not in text]


@pytest.mark.parametrize(
    ('page', 'what', 'arguments'), list(_commands()),
    ids=lambda value: value.name if isinstance(value, os.PathLike) else
    value if isinstance(value, str) else ' '.join(value))
def test_commands_parse(page, what, arguments, monkeypatch):
  del page
  if what.startswith('-m'):
    _PARSERS[what.removeprefix('-m ferd_jax.')]().parse_args(arguments)
    return
  if what.startswith('benchmarks/'):
    assert (_ROOT / what).exists()
    arguments = [each for each in arguments if each.startswith('--config')]
    if not arguments:
      return
  monkeypatch.chdir(_ROOT)
  values = flags.FlagValues()  # As main.py defines them.
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], '',
                    flag_values=values)
  flags.DEFINE_bool('distributed', False, '', flag_values=values)
  flags.DEFINE_string('coordinator', None, '', flag_values=values)
  for name in ('num_processes', 'process_id'):
    flags.DEFINE_integer(name, None, '', flag_values=values)
  parsed = command_line.parse(['main.py', *arguments], _ROOT, values)
  assert len(parsed.positional) == 1, parsed.positional


def test_commands_are_found():
  programs = {what for _, what, _ in _commands()}
  assert {'main.py', *(f'-m ferd_jax.{name}' for name in _PARSERS)} <= programs


def test_scripts_of_faults_exist():
  named = {(page.name, script) for page in _PAGES for script in re.findall(
      r'\b(?:python )?(tests/faults/\S+?\.py)', page.read_text())}
  assert named
  assert not [each for each in named if not (_ROOT / each[1]).exists()]


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_named_settings_exist(page):
  groups = '|'.join(settings.defaults().keys())
  named = set(re.findall(
      rf'`(?:--)?(?:config\.)?((?:{groups})\.(?!(?:py|txt)`)[\w.]+)`',
      page.read_text()))
  assert not named - _known_settings()


def _shown(value):
  """Returns a default as docs/baselines.md writes it."""
  if isinstance(value, tuple):
    return f'({", ".join(map(_shown, value))})'
  if value is None:
    return 'unset'
  return value if isinstance(value, str) else str(float(value))


def _as_number(text):
  """Returns a cell's value as `_shown` has it: fractions are numbers."""
  def number(found):
    return str(float(fractions.Fraction(found[0])))
  truth = text.replace('True', '1').replace('False', '0')
  return re.sub(r'(?<![\w.])\d[\d./]*', number, truth)


@pytest.mark.parametrize('group', ['inner', 'outer', 'sampler'])
def test_settings_of_parts_are_those_of_the_page(group):
  text = (_ROOT / 'docs' / 'baselines.md').read_text()
  table = text.partition(f'| `{group}.name` | settings and defaults |')[2]
  rows = dict(re.findall(r'^\| `([\w.]+)` \| (.*) \|$',
                         table.partition('\n\n')[0], re.MULTILINE))
  fair = rows.pop('fair_...', '').removeprefix('those of the loss, ')
  registry_ = settings.REGISTRIES[group]
  own = [part for part in registry_  # Other tests register theirs.
         if registry_.find(part).__module__.startswith('ferd_jax.')]
  for part in own:
    expected = registry_.defaults(part)
    del expected['name']
    row = rows[part] if part in rows else (
        f'{rows[part.removeprefix("fair_")]}, {fair}')
    found = dict(re.findall(r'`(\w+)` ((?:\([^)]*\)|[^,])+)', row))
    assert {name: _as_number(value) for name, value in found.items()} == {
        name: _shown(value) for name, value in expected.items()}, part
  assert rows.keys() <= set(own)


@pytest.mark.parametrize('page', _PAGES, ids=_name)
def test_tables_have_as_many_cells_in_every_row(page):
  for table in re.findall(r'(?:^\|.*\n)+', page.read_text(), re.MULTILINE):
    widths = {row.count('|') for row in table.splitlines()}
    assert len(widths) == 1, table
