"""What is chosen of an epoch, its pictures, and their files."""

from etils import epath
import numpy as np
from PIL import Image
import pytest

from ferd_jax.run import samples

_NAMES = [f'class {i}' for i in range(30)]


def _chosen(labels, num_classes, channels=1, side=4, **options):
  # Image i has the level i + 1 everywhere.
  levels = np.arange(1, len(labels) + 1) / 255
  images = np.broadcast_to(levels[:, None, None, None],
                           (len(labels), side, side, channels))
  return samples.choose(images, np.array(labels), num_classes, **options)


def _has_red(picture):
  return (picture[..., 0].astype(int) - picture[..., 1] > 60).any()


def test_first_images_of_each_class_by_class():
  found = _chosen([2, 0, 2, 2, 0] + [1] * 12, 3)
  np.testing.assert_array_equal(found.labels, [0, 0] + [1] * 10 + [2] * 3)
  np.testing.assert_array_equal(
      found.images[:, 0, 0, 0], [2, 5, *range(6, 16), 1, 3, 4])
  assert found.images.dtype == np.uint8 and found.clean is None


def test_levels_are_rounded():
  images = np.array([0., 0.5019, 1.]).reshape(3, 1, 1, 1)
  found = samples.choose(images, np.zeros(3, int), 1)
  np.testing.assert_array_equal(found.images.ravel(), [0, 128, 255])


def test_at_most_twenty_classes():
  found = _chosen(list(range(30)), 30)
  np.testing.assert_array_equal(found.labels, range(20))
  assert samples.picture(found, 'title', _NAMES).shape[0] < 20 * 80 + 60


@pytest.mark.parametrize('channels', [1, 3])
def test_images_are_of_readable_size_and_as_they_are(channels):
  found = _chosen([0, 1, 1], 2, channels, side=4)
  picture = samples.picture(found, 'title', _NAMES[:2],
                            np.array([0.25, 0.75]))
  for level in (1, 2, 3):  # 64 x 64 pixels of each, without smoothing.
    assert (picture == level).all(-1).sum() >= 64 * 64
  large = samples.picture(_chosen([0, 1, 1], 2, channels, side=96), '',
                          _NAMES[:2])
  assert ((large == 2).all(-1).sum()) >= 96 * 96


def test_teacher_speaks_where_it_disagrees():
  def picture(teacher):
    found = _chosen([0, 1], 2, judged=(np.array(teacher),
                                       np.array([0.93, 0.5])))
    assert found.teacher_confidence.dtype == np.float32
    return samples.picture(found, 'title', _NAMES)
  assert not _has_red(picture([0, 1]))
  assert _has_red(picture([0, 0]))
  assert picture([0, 0]).shape[0] > picture([0, 1]).shape[0]


def test_perturbations_are_amplified():
  clean = np.full((2, 4, 4, 1), 0.5)
  change = np.zeros_like(clean)
  change[:, :2], change[:, 2:] = 0.01, -0.01
  found = samples.choose(clean, np.zeros(2, int), 1,
                         pairs=(clean, clean + change, np.zeros(2, int)))
  picture = samples.attacked_picture(found, '', 0.01, ['a'])
  # Half of an image is white, and half black; grey is the image itself.
  assert (picture == 0).all(-1).sum() >= 2 * 32 * 64
  assert (picture == 255).all(-1).sum() >= 2 * 32 * 64
  assert (picture == 128).all(-1).sum() >= 2 * 64 * 64


def test_pairs_are_chosen_by_class_too():
  images = np.zeros((8, 4, 4, 3))
  labels = np.array([1, 0, 1, 1, 1, 0, 0, 0])
  found = samples.choose(images, labels, 2, pairs=(images, images, labels))
  np.testing.assert_array_equal(found.pair_labels, [0] * 3 + [1] * 3)
  assert found.clean.shape == found.attacked.shape == (6, 4, 4, 3)


def test_files(tmp_path):
  found = _chosen([0, 1], 2, judged=(np.array([0, 0]), np.array([0.9, 0.5])))
  picture = samples.picture(found, 'title', _NAMES)
  samples.save(epath.Path(tmp_path) / 'new', 7, found, {'_x': picture})
  np.testing.assert_array_equal(
      np.asarray(Image.open(tmp_path / 'new' / 'epoch_00007_x.png')), picture)
  with np.load(tmp_path / 'new' / 'epoch_00007.npz') as arrays:
    assert set(arrays.files) == {'images', 'labels', 'teacher_labels',
                                 'teacher_confidence'}
    np.testing.assert_array_equal(arrays['teacher_labels'], [0, 0])
