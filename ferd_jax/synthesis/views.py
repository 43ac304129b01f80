"""Views of images, beside `core.augment`'s: rolled, mirrored, resized crops.

All are differentiable in the images, and keep pixels within their range.
"""

import jax
import jax.numpy as jnp

# Of width to height, of a resized crop.
_LONGEST = 4 / 3


def roll(key: jax.Array, images: jax.Array, limit: int, *,
         flip: bool = False) -> jax.Array:
  """Returns a batch shifted cyclically, all images in the same way.

  Args:
    key: one typed PRNG key, the same on every shard.
    images: `[B, H, W, C]`.
    limit: largest shift in pixels, of either axis and in either direction.
    flip: whether to mirror the whole batch, too, in half of the cases.
  """
  shift_key, flip_key = jax.random.split(key)
  rows, columns = jax.random.randint(shift_key, (2,), -limit, limit + 1)
  images = jnp.roll(images, (rows, columns), axis=(1, 2))
  if not flip:
    return images
  return jnp.where(jax.random.bernoulli(flip_key), images[:, :, ::-1], images)


def random_resized_crop(keys: jax.Array, images: jax.Array, *,
                        area: tuple[float, float] = (0.25, 1.),
                        flip: bool = True) -> jax.Array:
  """Returns a crop of each image at its old size, half of them mirrored.

  A crop covers a uniform share of the area, its width over its height is
  log-uniform in [3/4, 4/3] as far as the image is large enough, its place is
  uniform. Pixels are interpolated linearly.

  Args:
    keys: typed PRNG keys `[B]`, one per image.
    images: `[B, H, W, C]`.
    area: least and greatest share of the area.
    flip: whether to mirror half of the images.
  """
  def draw(key):
    area_key, ratio_key, place_key, flip_key = jax.random.split(key, 4)
    share = jax.random.uniform(area_key, (), minval=area[0], maxval=area[1])
    limit = jnp.log(_LONGEST)
    half_ratio = jnp.exp(0.5 * jax.random.uniform(
        ratio_key, (), minval=-limit, maxval=limit))
    sides = jnp.minimum(jnp.sqrt(share) * jnp.stack(
        [1 / half_ratio, half_ratio]), 1)
    starts = jax.random.uniform(place_key, (2,)) * (1 - sides)
    return starts, sides, jax.random.bernoulli(flip_key)
  starts, sides, mirror = jax.vmap(draw)(keys)
  return resized_crop(images, starts, sides, mirror & flip)


def resized_crop(images: jax.Array, starts: jax.Array, sides: jax.Array,
                 mirror: jax.Array) -> jax.Array:
  """Returns given crops of images, resized to the images' own size.

  Args:
    images: `[B, H, W, C]`.
    starts: `[B, 2]`, row and column where a crop begins, as shares of H and W.
    sides: `[B, 2]`, its height and width, as shares of H and W.
    mirror: bool `[B]`, which crops to mirror left-right.
  """
  _, height, width, _ = images.shape
  rows = _weights(starts[:, 0], sides[:, 0], height)
  columns = _weights(starts[:, 1], sides[:, 1], width)
  columns = jnp.where(mirror[:, None, None], columns[:, ::-1], columns)
  rows, columns = (each.astype(images.dtype) for each in (rows, columns))
  images = jnp.einsum('bij,bjwc->biwc', rows, images)
  return jnp.einsum('bij,bhjc->bhic', columns, images)


def _weights(start, side, size):
  """Returns what each pixel takes of each, `[B, size, size]`, rows sum to 1."""
  centres = (jnp.arange(size) + 0.5) / size
  places = (start[:, None] + centres[None] * side[:, None]) * size - 0.5
  places = jnp.clip(places, 0, size - 1)
  return jnp.maximum(
      0, 1 - jnp.abs(places[:, :, None] - jnp.arange(size)[None, None]))
