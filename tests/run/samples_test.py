"""Tests of ferd_jax.samples: the grid and its file."""

from etils import epath
import numpy as np
from PIL import Image
import pytest

from ferd_jax.run import samples


def grid_of(labels, num_classes, channels=1, **options):
  # Image i has the level i + 1 everywhere.
  levels = np.arange(1, len(labels) + 1) / 255
  images = np.broadcast_to(levels[:, None, None, None],
                           (len(labels), 3, 2, channels))
  return samples.sample_grid(images, np.array(labels), num_classes, **options)


def cells(grid, height=4, width=3):
  """Returns the upper left level of every cell."""
  return grid[::height, ::width, 0]


def test_one_row_per_class():
  grid = grid_of([2, 0, 2, 2, 0], 3, columns=2)
  assert grid.dtype == np.uint8 and grid.shape == (3 * 4, 2 * 3, 1)
  # Class 1 has no image, and of class 2 only the first two are shown.
  np.testing.assert_array_equal(cells(grid), [[2, 5], [0, 0], [1, 3]])


def test_images_fill_their_cells_but_for_a_black_line():
  grid = grid_of([0, 1], 2, channels=3, columns=1)
  for row, level in enumerate([1, 2]):
    cell = grid[4 * row:4 * row + 4]
    assert cell.shape == (4, 3, 3)
    assert (cell[:3, :2] == level).all()
    assert not cell[3].any() and not cell[:, 2].any()


def test_levels_are_rounded():
  images = np.array([0., 0.5019, 1.]).reshape(3, 1, 1, 1)
  grid = samples.sample_grid(images, np.zeros(3), 1, columns=3)
  np.testing.assert_array_equal(cells(grid, 2, 2), [[0, 128, 255]])


def test_at_most_twenty_classes():
  grid = grid_of(list(range(30)), 30, columns=1)
  np.testing.assert_array_equal(cells(grid)[:, 0], np.arange(1, 21))


@pytest.mark.parametrize('channels', [1, 3])
def test_saved_grid_is_the_grid_enlarged(tmp_path, channels):
  grid = grid_of([0, 1, 1], 2, channels=channels, columns=10)
  path = epath.Path(tmp_path) / 'new' / 'grid.png'
  samples.save_grid(path, grid, min_side=8)
  # 10 images of 3 pixels each (with the line) become at least 8 wide.
  scale = 3
  picture = np.asarray(Image.open(path)).reshape(
      scale * grid.shape[0], scale * grid.shape[1], channels)
  np.testing.assert_array_equal(
      picture, grid.repeat(scale, axis=0).repeat(scale, axis=1))


def test_large_images_are_not_enlarged(tmp_path):
  grid = np.full((40, 330, 3), 7, np.uint8)
  samples.save_grid(epath.Path(tmp_path) / 'grid.png', grid)
  assert Image.open(tmp_path / 'grid.png').size == (330, 40)
