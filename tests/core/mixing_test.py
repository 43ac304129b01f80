"""Tests of ferd_jax.core.mixing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.core import collectives
from ferd_jax.core import mixing

BATCH, SHAPE = 16, (12, 8, 2)
# Each pixel tells whose it is.
IMAGES = np.broadcast_to(
    np.arange(BATCH, dtype=np.float32)[:, None, None, None], (BATCH, *SHAPE))


def keys(seed=0):
  return jax.random.split(jax.random.key(seed), BATCH)


def shares(kind, share=1., seed=0):
  """Returns which share of each pixel is the other image's."""
  mixed = np.asarray(jax.jit(functools.partial(
      mixing.mix, kind, share=share))(keys(seed), jnp.asarray(IMAGES)))
  found = (mixed - IMAGES) / (np.roll(IMAGES, 1, axis=0) - IMAGES)
  assert np.ptp(found, axis=-1).max() < 1e-5  # of all channels alike
  return found[..., 0]


def test_cutmix_puts_in_one_box_of_at_most_half():
  found = np.concatenate([shares('cutmix', seed=seed) for seed in range(20)])
  assert set(np.unique(np.round(found, 5))) == {0, 1}
  areas, corners = [], set()
  for box in found > 0.5:
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    areas.append(box.mean())
    if len(rows):
      assert box[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
      corners.add((rows[0], columns[0]))
  # Sides are rounded down to pixels: 8.49 of 12 are 8, 5.66 of 8 are 5.
  assert max(areas) <= 8 * 5 / (12 * 8) + 1e-6
  assert 0.15 < np.mean(areas) < 0.25
  assert len(corners) > 20


@pytest.mark.parametrize('side', [
    28, *(pytest.param(side, marks=pytest.mark.slow) for side in (8, 32))])
def test_box_of_square_images_is_at_most_half(side):
  images = jnp.arange(2.)[:, None, None, None] * jnp.ones((2, side, side, 1))
  mixed = jax.vmap(lambda key: mixing.mix(
      'cutmix', jax.random.split(key, 2), images, 1.))(
          jax.random.split(jax.random.key(0), 500))
  largest = float(jnp.mean(mixed[:, 0], axis=(1, 2, 3)).max())
  # The largest whole box is met, and no larger one.
  assert largest == pytest.approx(int(side * 0.5 ** 0.5) ** 2 / side ** 2)
  assert largest <= 0.5


def test_mixup_adds_at_most_half_to_every_pixel():
  found = np.concatenate([shares('mixup', seed=seed) for seed in range(20)])
  assert np.ptp(found, axis=(1, 2)).max() < 1e-5
  found = found[:, 0, 0]
  assert found.min() >= -1e-6 and found.max() <= 0.5 + 1e-6
  np.testing.assert_allclose(np.mean(found), 0.25, atol=0.03)


@pytest.mark.parametrize(('share', 'expected'), [
    (0., []), (0.5, range(1, BATCH, 2)), (0.25, range(3, BATCH, 4)),
    (1., range(BATCH))])
def test_share_of_the_batch(share, expected):
  mixed = np.flatnonzero(shares('mixup', share).max(axis=(1, 2)) > 1e-6)
  np.testing.assert_array_equal(mixed, list(expected))


def test_none_is_the_batch_itself():
  assert mixing.mix('none', keys(), IMAGES, 1.) is IMAGES


@pytest.mark.parametrize('kind', ['cutmix', 'mixup'])
def test_devices_do_not_matter(kind):
  whole = mixing.mix(kind, keys(), jnp.asarray(IMAGES), 0.5)
  mapped = jax.pmap(
      functools.partial(mixing.mix, kind, share=0.5,
                        axis_name=collectives.AXIS),
      axis_name=collectives.AXIS, devices=jax.devices()[:4])
  split = mapped(keys().reshape(4, -1), IMAGES.reshape(4, -1, *SHAPE))
  np.testing.assert_allclose(split.reshape(whole.shape), whole, rtol=1e-6)
