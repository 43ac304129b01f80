"""Annotations: what the documentation shows passes mypy, mistakes do not."""

import doctest
import pathlib
import subprocess
import sys
import typing

import pytest

from ferd_jax.attacks import autoattack
from ferd_jax.attacks import geometry
from ferd_jax.attacks import presets

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = ('README.md', 'docs/attacks.md', 'docs/python.md')
_WRONG = '''
from ferd_jax import attacks
import ferd_jax
attacks.AutoAttack(0.1, version='standart')
attacks.AutoAttack(0.1, norm='L3')
attacks.MinimumNorm('L3')
attacks.PGD(0.1, 0.1, 1, start='unifrom')
attacks.APGD(0.1, keep='smallest')
attacks.FAB(0.1, keep='best')
attacks.FMN(norm='l2')
attacks.APGD(0.1, target_order='logit')
attacks.preset('pgd', 0.1)
attacks.AutoAttack(0.1, version='custom', attacks=('agpd-ce',))
attacks.MinimumNorm('L2', ('fmm',))
attacks.Randomised(0.1, attacks=('apgd',))
ferd_jax.benchmark(print, 'digits', norm='Inf')
attacks.PGD(0.1, 0.1, 1)(print, 0, 'images', 0)
'''


def _mypy(*files):
  """Returns what mypy says about files, without its summary."""
  pytest.importorskip('mypy')
  found = subprocess.run(
      [sys.executable, '-m', 'mypy', '--no-error-summary',
       # A page gives a name to one thing after the other.
       '--allow-redefinition', *map(str, files)],
      capture_output=True, text=True, cwd=_ROOT, check=False)
  assert found.returncode in (0, 1), found.stderr
  return found.stdout.splitlines()


@pytest.mark.slow
def test_pages_and_mistakes(tmp_path):
  files = []
  for page in _PAGES:
    snippets = doctest.DocTestParser().get_examples((_ROOT / page).read_text())
    assert snippets
    file = tmp_path / f'{pathlib.Path(page).stem.lower()}_page.py'
    file.write_text(''.join(snippet.source for snippet in snippets))
    files.append(file)
  wrong = tmp_path / 'wrong.py'
  wrong.write_text(_WRONG)
  said = _mypy(*files, wrong)
  errors = [line for line in said if ': error: ' in line]
  about_pages = [line for line in errors if 'wrong.py' not in line]
  assert not about_pages, '\n'.join(about_pages)
  calls = [number for number, line in enumerate(_WRONG.splitlines(), 1)
           if '(' in line]
  refused = {int(line.split('wrong.py:')[1].split(':')[0]) for line in errors}
  assert sorted(refused) == calls


def test_literals_name_what_there_is():
  assert typing.get_args(autoattack.Version) == (
      *autoattack.VERSIONS, 'custom')
  assert {name for names in autoattack.VERSIONS.values()
          for name in names} == set(autoattack.MEMBERS)
  assert presets.PRESETS == tuple(presets._SETTINGS)
  assert set(geometry._GEOMETRIES) == set(geometry.DISTANCES)
