"""Tests of ferd_jax.synthesis.views: rolled batches and resized crops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.synthesis import views


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(0).uniform(size=(3, 6, 5, 2)),
                     jnp.float32)


@pytest.mark.parametrize('flip', [False, True])
def test_a_batch_is_rolled_as_a_whole(images, flip):
  candidates = {}
  for rows in range(-2, 3):
    for columns in range(-2, 3):
      rolled = np.roll(images, (rows, columns), (1, 2))
      candidates[rows, columns, False] = rolled
      candidates[rows, columns, True] = rolled[:, :, ::-1]
  roll = jax.jit(lambda key: views.roll(key, images, 2, flip=flip))
  seen = set()
  for seed in range(60):
    view = roll(jax.random.key(seed))
    found = [name for name, each in candidates.items()
             if np.array_equal(view, each)]
    assert len(found) == 1
    seen.add(found[0])
  assert {each[0] for each in seen} == {each[1] for each in seen} == set(
      range(-2, 3))
  assert {each[2] for each in seen} == ({False, True} if flip else {False})


def test_roll_of_0_is_none(images):
  np.testing.assert_array_equal(views.roll(jax.random.key(0), images, 0),
                                images)


def test_whole_crop_is_the_image(images):
  whole = jnp.tile(jnp.array([[1., 1.]]), (3, 1))
  mirror = np.array([False, True, False])
  view = views.resized_crop(images, 0 * whole, whole, mirror)
  np.testing.assert_allclose(view[::2], images[::2], atol=1e-6)
  np.testing.assert_allclose(view[1], images[1, :, ::-1], atol=1e-6)


def test_crop_is_interpolated_linearly():
  # A ramp stays one, less steep, wherever no border is near.
  ramp = jnp.arange(8.)[None, :, None, None] + jnp.zeros((1, 8, 8, 1))
  starts, sides = jnp.array([[0.25, 0.5]]), jnp.array([[0.5, 0.5]])
  view = views.resized_crop(ramp, starts, sides, np.array([False]))
  expected = 2 + (np.arange(8) + 0.5) * 0.5 - 0.5
  np.testing.assert_allclose(view[0, :, :, 0],
                             np.tile(expected[:, None], (1, 8)), rtol=1e-6)


def test_crop_equals_pytorch(images):
  torch = pytest.importorskip('torch')
  # A crop at whole pixels, as torchvision resizes it.
  x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(
      x[:, :, 1:4, 2:5], (6, 5), mode='bilinear', align_corners=False)
  starts = jnp.tile(jnp.array([[1 / 6, 2 / 5]]), (3, 1))
  sides = jnp.tile(jnp.array([[3 / 6, 3 / 5]]), (3, 1))
  view = np.array(views.resized_crop(images, starts, sides, np.zeros(3, bool)))
  # At its border ours sees the neighbours beyond the crop.
  inner = (slice(None), slice(1, 5), slice(1, 4))
  np.testing.assert_allclose(
      view[inner], expected.permute(0, 2, 3, 1).numpy()[inner], atol=1e-6)


def test_random_crops(images):
  crop = jax.jit(lambda keys: views.random_resized_crop(keys, images))
  keys = jax.random.split(jax.random.key(0), 3)
  view = crop(keys)
  assert view.shape == images.shape and view.dtype == images.dtype
  assert images.min() <= view.min() and view.max() <= images.max()
  # An image's crop is its own key's.
  other = crop(keys.at[0].set(jax.random.key(9)))
  np.testing.assert_array_equal(view[1:], other[1:])
  assert not np.allclose(view[0], other[0])
  # They keep what all crops of a flat image have.
  flat = jnp.full(images.shape, 0.3)
  np.testing.assert_allclose(views.random_resized_crop(keys, flat), flat,
                             rtol=1e-6)
  gradient = jax.grad(lambda x: jnp.sum(
      views.random_resized_crop(keys, x)))(images)
  np.testing.assert_allclose(gradient.sum((1, 2, 3)), 6 * 5 * 2, rtol=1e-5)


def test_shares_of_the_area(monkeypatch):
  seen = {}
  monkeypatch.setattr(views, 'resized_crop',
                      lambda images, starts, sides, mirror: seen.update(
                          starts=starts, sides=sides, mirror=mirror))
  number = 500
  views.random_resized_crop(jax.random.split(jax.random.key(0), number),
                            jnp.zeros((number, 4, 4, 1)))
  sides, starts = np.array(seen['sides']), np.array(seen['starts'])
  area, ratio = sides.prod(-1), sides[:, 1] / sides[:, 0]
  assert (starts >= 0).all() and (starts + sides <= 1 + 1e-6).all()
  assert 0.21 < area.min() < 0.3 and 0.9 < area.max() <= 1
  assert 3 / 4 - 1e-5 < ratio.min() < 0.8 and 1.2 < ratio.max() < 4 / 3 + 1e-5
  # Uniform but where the image is too small for the ratio.
  np.testing.assert_allclose((area < 0.5).mean(), 1 / 3, atol=0.08)
  np.testing.assert_allclose(np.mean(seen['mirror']), 0.5, atol=0.08)
