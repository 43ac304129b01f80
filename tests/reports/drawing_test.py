"""What all plots share."""

import re

import numpy as np
import pytest

pytest.importorskip('matplotlib')

from ferd_jax.reports import drawing


def test_a_few_of_many_have_both_ends():
  assert drawing.thinned(3) == [0, 1, 2]
  found = drawing.thinned(220)
  assert len(found) == 11 and found[0] == 0 and found[-1] == 219
  assert np.ptp(np.diff(found)) <= 1


@pytest.mark.parametrize('size, numbers', [(4, True), (100, False)])
def test_cells_have_numbers_where_they_can_be_read(size, numbers):
  @drawing.styled
  def draw():
    figure = drawing.figure(3.25, 3)
    values = np.arange(size * size, dtype=float).reshape(size, size)
    values[0, 0] = np.nan
    names = list(map(str, range(size)))
    drawing.heat_map(figure.subplots(), values, names, names, marked=[(1, 1)])
    return figure
  figure = draw()
  assert len(figure.axes[0].texts) == (size * size - 1 if numbers else 0)
  assert len(figure.axes[0].get_yticks()) <= 50
  assert drawing.svg(figure) == drawing.svg(draw())


def test_files_for_a_paper_have_its_width_and_fonts(tmp_path):
  figure = drawing.figure(drawing.COLUMN, 1)
  figure.subplots().set_title('a title')
  for suffix in ('.pdf', '.png'):
    drawing.save(figure, tmp_path / f'plot{suffix}')
  content = (tmp_path / 'plot.pdf').read_bytes()
  assert b'/Type3' not in content
  box = re.search(rb'/MediaBox \[ *0 0 ([\d.]+) ', content)
  assert float(box[1]) == pytest.approx(72 * 3.25, abs=1)
  assert (tmp_path / 'plot.png').stat().st_size > 1000
