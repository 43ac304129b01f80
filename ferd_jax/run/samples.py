"""Pictures of an epoch: its images by class, and what attacks made of some.

  epoch_<number>.png           the images, and where the teacher disagrees
  epoch_<number>_attacked.png  image, attacked image, perturbation
  epoch_<number>.npz           the arrays behind both
"""

from collections.abc import Sequence
import dataclasses

from etils import epath
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from ferd_jax.core import atomic

_MAX_CLASSES = 20  # A picture of 200 rows shows nothing.
_COLUMNS, _PAIRS = 10, 3  # of a class
_SIDE = 64  # pixels that an image has at least
_FONT, _TITLE = 13, 15  # pixels
_GAP, _HAIR = 6, 2
_DISAGREES = (190, 30, 30)


@dataclasses.dataclass(frozen=True)
class Samples:
  """What an epoch shows of itself, a few images of each class.

  Attributes:
    images: uint8 `[S, H, W, C]`, ordered by class.
    labels: int32 `[S]`, that they were made for.
    teacher_labels: int32 `[S]`, that the teacher predicts; None without one.
    teacher_confidence: float32 `[S]`, with which probability.
    clean: float32 `[P, H, W, C]` in [0, 1], views of the student's last step,
      ordered by class; None of an epoch without such a step.
    attacked: float32 `[P, H, W, C]`, what the inner attack made of them.
    pair_labels: int32 `[P]`.
  """
  images: np.ndarray
  labels: np.ndarray
  teacher_labels: np.ndarray | None = None
  teacher_confidence: np.ndarray | None = None
  clean: np.ndarray | None = None
  attacked: np.ndarray | None = None
  pair_labels: np.ndarray | None = None

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns those that there are, by their names in a file."""
    found = {
        'images': self.images, 'labels': self.labels,
        'teacher_labels': self.teacher_labels,
        'teacher_confidence': self.teacher_confidence,
        'pairs/clean': self.clean, 'pairs/attacked': self.attacked,
        'pairs/labels': self.pair_labels}
    return {name: value for name, value in found.items() if value is not None}


def choose(images: np.ndarray, labels: np.ndarray, num_classes: int,
           judged: tuple[np.ndarray, np.ndarray] | None = None,
           pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
           ) -> Samples:
  """Returns the first images of each of the first 20 classes.

  Args:
    images: float `[B, H, W, C]` in [0, 1], C of 1 or 3.
    labels: int `[B]`.
    num_classes: how many classes.
    judged: labels `[B]` that the teacher predicts, and with which probability.
    pairs: images `[N, H, W, C]`, attacked images and labels `[N]`.
  """
  images = np.asarray(images)
  of = _first(labels, num_classes, _COLUMNS)
  found = {'images': np.round(images[of] * 255).astype(np.uint8),
           'labels': np.asarray(labels, np.int32)[of]}
  if judged is not None:
    found['teacher_labels'] = np.asarray(judged[0], np.int32)[of]
    found['teacher_confidence'] = np.asarray(judged[1], np.float32)[of]
  if pairs is not None:
    of = _first(pairs[2], num_classes, _PAIRS)
    for name, values, kind in zip(('clean', 'attacked', 'pair_labels'), pairs,
                                  (np.float32, np.float32, np.int32),
                                  strict=True):
      found[name] = np.asarray(values, kind)[of]
  return Samples(**found)


def picture(samples: Samples, title: str, class_names: Sequence[str],
            probs: np.ndarray | None = None) -> np.ndarray:
  """Returns a picture of the images, a row per class.

  The class's name and weight stand before them, and below an image that the
  teacher takes for another class that one and the teacher's confidence.

  Args:
    samples: to show.
    title: above all.
    class_names: of the K classes.
    probs: `[K]`, weights of the classes; None: not shown.

  Returns:
    uint8 `[rows, columns, 3]`.
  """
  captions = [''] * len(samples.labels)
  if samples.teacher_labels is not None:
    captions = [
        '' if predicted == label else
        f'{class_names[predicted]} {confidence:.0%}'
        for label, predicted, confidence in zip(
            samples.labels, samples.teacher_labels, samples.teacher_confidence,
            strict=True)]
  return _grid(title, samples.labels, [samples.images], captions, class_names,
               probs, _COLUMNS)


def attacked_picture(samples: Samples, title: str, eps: float,
                     class_names: Sequence[str]) -> np.ndarray:
  """Returns a picture of pairs: image, attacked image and perturbation.

  Args:
    samples: with pairs.
    title: above all.
    eps: radius of the attack: the perturbation is black at -eps, white at eps.
    class_names: of the K classes.

  Returns:
    uint8 `[rows, columns, 3]`.
  """
  change = 0.5 + (samples.attacked - samples.clean) / (2 * eps)
  shown = [np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
           for values in (samples.clean, samples.attacked, change)]
  return _grid(title, samples.pair_labels, shown, [''] * len(shown[0]),
               class_names, None, _PAIRS)


def save(directory: epath.Path, number: int, samples: Samples,
         pictures: dict[str, np.ndarray]) -> None:
  """Writes an epoch's samples.

  Args:
    directory: made if absent.
    number: of the epoch.
    samples: whose arrays are written.
    pictures: uint8 `[rows, columns, 3]` by what their file's name ends in.
  """
  for suffix, pixels in pictures.items():
    with atomic.writing(
        directory / f'epoch_{number:05d}{suffix}.png') as file:
      Image.fromarray(pixels).save(file, format='png')
  with atomic.writing(directory / f'epoch_{number:05d}.npz') as file:
    np.savez(file, **samples.arrays())


def _first(labels, num_classes, number):
  """Returns the places of the first images of each class, by class."""
  labels = np.asarray(labels)
  return np.concatenate([
      np.flatnonzero(labels == label)[:number]
      for label in range(min(num_classes, _MAX_CLASSES))]).astype(int)


def _grid(title, labels, shown, captions, class_names, probs, columns):
  """Returns rows of images, each of them once for every array that is shown."""
  font, head = (ImageFont.load_default(size) for size in (_FONT, _TITLE))
  height, width, channels = shown[0].shape[1:]
  scale = max(1, -(-_SIDE // height))
  height, width = height * scale, width * scale
  classes = range(min(len(class_names), _MAX_CLASSES))
  texts = [class_names[label] + (
      '' if probs is None else f'\n{probs[label]:.1%}') for label in classes]
  margin = 2 * _GAP + max(
      int(font.getlength(line)) for text in texts for line in text.split('\n'))
  cell = max(width, *(int(font.getlength(text)) for text in captions),
             width) + _GAP
  group = (width + _HAIR) * len(shown) + _GAP
  across = max(cell, group)
  row = height + _GAP + (_FONT + _GAP if any(captions) else 0)
  top = _TITLE + 3 * _GAP
  size = (max(margin + columns * across,
              2 * _GAP + int(head.getlength(title))),
          top + len(classes) * row)
  canvas = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(canvas)
  draw.text((_GAP, _GAP), title, fill='black', font=head)
  for line, label in enumerate(classes):
    y = top + line * row
    draw.text((_GAP, y), texts[line], fill='black', font=font)
    for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
      x = margin + column * across
      for i, values in enumerate(shown):
        pixels = values[index]
        image = Image.fromarray(
            pixels[..., 0] if channels == 1 else pixels).convert('RGB')
        canvas.paste(image.resize((width, height), Image.Resampling.NEAREST),
                     (x + i * (width + _HAIR), y))
      if captions[index]:
        draw.text((x, y + height + 1), captions[index], fill=_DISAGREES,
                  font=font)
  return np.asarray(canvas)
