"""The notebook runs from top to bottom."""

import json
import pathlib

import pytest

_NOTEBOOKS = pathlib.Path(__file__).parents[1] / 'docs' / 'notebooks'


@pytest.mark.slow  # It compiles AutoAttack and the diagnosis.
def test_notebook_runs(capsys, monkeypatch):
  pyplot = pytest.importorskip('matplotlib.pyplot')
  monkeypatch.setenv('MPLBACKEND', 'agg')
  pyplot.switch_backend('agg')
  path, = _NOTEBOOKS.glob('*.ipynb')
  names = {}
  for cell in json.loads(path.read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), path.name, 'exec'), names)
  shown = capsys.readouterr().out
  assert '% robust' in shown and 'autoattack_fast' in shown
  assert len(pyplot.get_fignums()) == 2
  for number in pyplot.get_fignums():
    drawn = [artist for axis in pyplot.figure(number).axes
             for artist in (*axis.images, *axis.patches)]
    assert len(drawn) >= 20
  pyplot.close('all')
