"""Tests of ferd_jax.augment against cropping with NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.core import augment

# One compilation is faster than one for each operation.
crop_flip = jax.jit(augment.crop_flip, static_argnames='pad')
random_crop_flip = jax.jit(augment.random_crop_flip,
                           static_argnames=('pad', 'flip'))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(0.1, 1, shape).astype(np.float32)


def reference(image, offset, mirror, pad):
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  row, column = offset
  height, width, _ = image.shape
  crop = padded[row:row + height, column:column + width]
  return crop[:, ::-1] if mirror else crop


def every_crop(pad):
  side = range(2 * pad + 1)
  rows = list(itertools.product(side, side, (False, True)))
  return (np.array([row[:2] for row in rows]),
          np.array([row[2] for row in rows]))


@pytest.mark.parametrize(('pad', 'height', 'width'),
                         [(4, 6, 7), (1, 3, 3), (3, 2, 5)])
def test_every_offset_and_flip_is_exact(pad, height, width):
  offsets, mirror = every_crop(pad)
  images = draw(len(mirror), height, width, 2)
  got = crop_flip(images, offsets, mirror, pad=pad)
  expected = np.stack([reference(*row, pad) for row in
                       zip(images, offsets, mirror, strict=True)])
  np.testing.assert_array_equal(got, expected)


def test_identity_in_the_middle():
  images = draw(2, 8, 8, 3)
  got = crop_flip(images, np.full((2, 2), 4), np.zeros(2, bool), pad=4)
  np.testing.assert_array_equal(got, images)


def test_gradient_is_the_adjoint_of_the_crop():
  pad = 2
  offsets, mirror = every_crop(pad)
  images, cotangent = (draw(len(mirror), 4, 5, 1, seed=i) for i in range(2))
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(
      cotangent * crop_flip(x, offsets, mirror, pad=pad))))(images)
  for got, one, (row, column), flip in zip(
      gradient, cotangent, offsets, mirror, strict=True):
    padded = np.zeros((4 + 2 * pad, 5 + 2 * pad, 1), np.float32)
    padded[row:row + 4, column:column + 5] = one[:, ::-1] if flip else one
    np.testing.assert_array_equal(got, padded[pad:-pad, pad:-pad])


def test_random_views_are_uniform_over_offsets_and_flips():
  count, pad = 3600, 1
  image = np.zeros((3, 3, 1), np.float32)
  image[1, 1], image[1, 0] = 1, 0.5  # Survives or vanishes, left or right.
  images = np.broadcast_to(image, (count, 3, 3, 1))
  keys = jax.random.split(jax.random.key(0), count)
  views = np.asarray(random_crop_flip(keys, images, pad=pad))
  offsets, mirror = every_crop(pad)
  found = np.zeros(count, int)
  for offset, flip in zip(offsets, mirror, strict=True):
    expected = reference(image, offset, flip, pad)
    same = (views == expected).all((1, 2, 3))
    found += same
    # Offsets at the right edge look alike with and without the left pixel.
    share = sum(np.array_equal(expected, reference(image, *other, pad))
                for other in zip(offsets, mirror, strict=True)) / 18
    sigma = np.sqrt(count * share * (1 - share))
    assert abs(same.sum() - count * share) < 5 * sigma, (offset, flip)
  assert (found > 0).all()


def test_a_view_depends_on_its_own_key_only():
  images = draw(6, 5, 5, 1)
  keys = jax.random.split(jax.random.key(1), 6)
  whole = random_crop_flip(keys, images, pad=2)
  part = random_crop_flip(keys[2:4], images[2:4], pad=2)
  np.testing.assert_array_equal(part, whole[2:4])
  other = random_crop_flip(
      jax.random.split(jax.random.key(2), 6), images, pad=2)
  assert not np.array_equal(other, whole)


def test_without_pad_and_flip_nothing_changes():
  images = draw(16, 5, 5, 1)
  keys = jax.random.split(jax.random.key(1), 16)
  same = random_crop_flip(keys, images, pad=0, flip=False)
  np.testing.assert_array_equal(same, images)
  flipped = np.asarray(random_crop_flip(keys, images, pad=0))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  kept = (flipped == images).all((1, 2, 3))
  assert (mirrored ^ kept).all()
  assert 0 < mirrored.sum() < 16
