"""What results keep of single images, as short texts.

Which images of a class a model gets right says how far an accuracy would move
with other test images, and makes models comparable image by image. A flag is
one character, '1' or '0', in the order of the images; labels are numbers with
spaces between them. A list would be a line of the file for each.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

FLAGS, LABELS = 'correct', 'labels'  # in an attack's results, and beside them


def flags_text(flags: np.ndarray) -> str:
  """Returns bools `[N]` as text: '101' for True, False, True."""
  return ''.join('1' if flag else '0' for flag in np.asarray(flags, bool))


def flags(text: str) -> np.ndarray:
  """Returns the bools `[N]` of `flags_text`.

  Raises:
    ValueError: if there are other characters than 0 and 1.
  """
  if set(text) - {'0', '1'}:
    raise ValueError(f'Expected flags of 0 and 1, got {text[:20]!r}.')
  return np.frombuffer(text.encode(), np.uint8) == ord('1')


def labels_text(labels: Sequence[int]) -> str:
  """Returns labels `[N]` as text: '7 2 1'."""
  return ' '.join(map(str, np.asarray(labels).tolist()))


def labels(text: str) -> np.ndarray:
  """Returns the int labels `[N]` of `labels_text`.

  Raises:
    ValueError: for what is no number.
  """
  return np.array(text.split(), int)


def without(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns results without what they keep of single images."""
  models = {
      model: {attack: {name: value for name, value in found.items()
                       if name != FLAGS} for attack, found in attacks.items()}
      for model, attacks in results['models'].items()}
  return {name: value for name, value in results.items()
          if name != LABELS} | {'models': models}
