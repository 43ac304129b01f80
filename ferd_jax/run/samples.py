"""A picture of the synthetic images: one row per class."""

from etils import epath
import numpy as np
from PIL import Image

from ferd_jax.core import atomic

_MAX_CLASSES = 20  # A grid of 200 rows shows nothing.


def sample_grid(images: np.ndarray, labels: np.ndarray, num_classes: int, *,
                columns: int = 10) -> np.ndarray:
  """Returns a grid of images, a row per class, black where there are too few.

  Args:
    images: float `[B, H, W, C]` in [0, 1], C of 1 or 3.
    labels: int `[B]`.
    num_classes: how many classes; the first 20 are shown.
    columns: images per class.

  Returns:
    uint8 `[rows * (H + 1), columns * (W + 1), C]`.
  """
  rows = min(num_classes, _MAX_CLASSES)
  _, height, width, channels = images.shape
  grid = np.zeros([rows, height + 1, columns, width + 1, channels], np.uint8)
  pixels = np.round(np.asarray(images) * 255).astype(np.uint8)
  for row in range(rows):
    for column, index in enumerate(np.flatnonzero(labels == row)[:columns]):
      grid[row, :height, column, :width] = pixels[index]
  return grid.reshape(rows * (height + 1), columns * (width + 1), channels)


def save_grid(path: epath.Path, grid: np.ndarray, *,
              min_side: int = 32) -> None:
  """Writes a grid as PNG, enlarged without smoothing if images are small.

  Args:
    path: of the file; its directory is made.
    grid: uint8 `[rows, columns, C]`, C of 1 or 3.
    min_side: pixels that an image of a 10-column grid should have at least.
  """
  scale = max(1, -(-10 * min_side // grid.shape[1]))
  picture = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
  picture = picture.resize((picture.width * scale, picture.height * scale),
                           Image.Resampling.NEAREST)
  with atomic.writing(path) as file:
    picture.save(file, format='png')
