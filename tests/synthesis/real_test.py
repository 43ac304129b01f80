"""Tests of ferd_jax.synthesis.real: batches of real images."""

import jax
import numpy as np
import pytest

from ferd_jax import data
from ferd_jax.synthesis import base
from ferd_jax.synthesis import pool
from ferd_jax.synthesis import real

SHAPE = (4, 4, 1)
# Twelve images of class 0, six of class 1, two of class 2; all different.
LABELS = np.repeat([0, 1, 2], [12, 6, 2]).astype(np.int32)


def examples():
  images = np.arange(20, dtype=np.uint8)[:, None, None, None]
  return data.Examples(np.broadcast_to(images, (20, *SHAPE)), LABELS,
                       ('a', 'b', 'c'))


def drawn(probs, batch_size=4, num_batches=10, seed=0):
  """Returns the numbers of the images of each batch."""
  batches = list(real.batches(
      examples(), np.asarray(probs, np.float32), jax.random.key(seed),
      batch_size, num_batches))
  assert len(batches) == num_batches
  numbers = np.stack([batch.images[:, 0, 0, 0] for batch in batches])
  np.testing.assert_array_equal(
      np.stack([batch.labels for batch in batches]), LABELS[numbers])
  return numbers


def test_equal_probabilities_are_passes_over_all_images():
  numbers = drawn(np.full(3, 1 / 3))
  assert numbers.shape == (10, 4)
  for one_pass in numbers.reshape(2, 20):
    np.testing.assert_array_equal(np.sort(one_pass), np.arange(20))
  # The order is the pool's.
  np.testing.assert_array_equal(
      numbers, pool.index_plan(jax.random.key(0), 20, 20, 4, 10))
  assert not np.array_equal(*numbers.reshape(2, 20))
  np.testing.assert_array_equal(drawn(np.full(3, 1 / 3)), numbers)
  assert not np.array_equal(drawn(np.full(3, 1 / 3), seed=1), numbers)


def test_probabilities_say_how_often_a_class_comes_beside_the_others():
  # Class 2 four times as often as in passes, class 0 not at all.
  numbers = drawn([0., 0.2, 0.8], batch_size=7, num_batches=40)
  times = np.bincount(numbers.ravel(), minlength=20)
  assert (times[:12] == 0).all()
  # 280 turns at weights 6 x 0.2 and 2 x 0.8.
  each = 280 / (6 * 0.2 + 2 * 0.8)
  assert (np.abs(times[12:18] - 0.2 * each) <= 1).all()
  assert (np.abs(times[18:] - 0.8 * each) <= 1).all()
  # All along, not in turns.
  halves = [np.isin(half, (18, 19)).mean() for half in np.split(numbers, 2)]
  np.testing.assert_allclose(halves, 1.6 / 2.8, atol=0.02)


def test_classes_without_images_cannot_be_all():
  with pytest.raises(ValueError, match='probability > 0'):
    list(real.batches(examples(), np.array([0., 0., 0., 1.]),
                      jax.random.key(0), 4, 1))


def test_images_are_in_the_unit_of_the_pixels():
  synthesis = real.Real(student_steps=3, student_batch_size=2)
  batch = base.RealBatch(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1),
                         np.array([1, 0], np.int32))
  images, labels = synthesis.images((), None, None, batch)
  assert images.dtype == np.float32
  np.testing.assert_array_equal(images.ravel(), [0, 1])
  np.testing.assert_array_equal(labels, [1, 0])


def test_nothing_but_student_steps():
  synthesis = real.Real(student_steps=3, student_batch_size=2)
  assert synthesis.rounds == base.Rounds(0, 3, pooled=False, reads_data=True)
  assert synthesis.batch_size == 2
  assert synthesis.generator(synthesis.init(jax.random.key(0))) is None
