"""What every source of examples hands out, whatever it is stored in."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What a model has to know about a dataset.

  Attributes:
    num_classes: number of classes.
    image_shape: height, width and channels.
    class_names: one name a class, in the order of the labels.
  """
  num_classes: int
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]


# Arrays have no truth value, so a generated __eq__ could only raise.
@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """Labelled images in memory.

  Attributes:
    images: uint8 `[N, H, W, C]`, 0 black to 255 white.
    labels: int32 `[N]`, each in [0, len(class_names)).
    class_names: one name a class, in the order of the labels.
    ids: `[N]` of the source's names of the images, which sort into its own
      order; None if the images are in it.
  """
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  ids: np.ndarray | None = None

  def first(self, number: int) -> 'Examples':
    """Returns the first examples in the source's own order."""
    order = (np.arange(len(self.labels)) if self.ids is None else
             np.argsort(self.ids, kind='stable'))[:number]
    return Examples(self.images[order], self.labels[order], self.class_names,
                    None if self.ids is None else self.ids[order])
