"""Random crop and mirror of image batches, differentiable in the images."""

import jax
import jax.numpy as jnp


def random_crop_flip(keys: jax.Array, images: jax.Array, *, pad: int = 4,
                     flip: bool = True) -> jax.Array:
  """Returns each image shifted by up to `pad` pixels and mirrored at random.

  The same as padding with `pad` zero pixels on every side, cropping to the
  old size at an offset drawn uniformly from 0..2*pad per axis, and mirroring
  left-right with probability 0.5. At offset (pad, pad), not mirrored, an image
  is unchanged.

  Args:
    keys: typed PRNG keys `[B]`, one per image.
    images: `[B, H, W, C]`.
    pad: largest shift in pixels.
    flip: whether to mirror half of the images.

  Returns:
    `[B, H, W, C]`.
  """
  def draw(key):
    offset_key, flip_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (2,), 0, 2 * pad + 1)
    return offset, jax.random.bernoulli(flip_key)
  offsets, mirror = jax.vmap(draw)(keys)
  return crop_flip(images, offsets, mirror & flip, pad=pad)


def crop_flip(images: jax.Array, offsets: jax.Array, mirror: jax.Array, *,
              pad: int) -> jax.Array:
  """Returns images cropped at given offsets of their zero-padded selves.

  Args:
    images: `[B, H, W, C]`.
    offsets: int `[B, 2]` in 0..2*pad, row and column.
    mirror: bool `[B]`, which crops to mirror left-right.
    pad: zero pixels on every side.

  Returns:
    `[B, H, W, C]`.
  """
  _, height, width, _ = images.shape
  rows = offsets[:, :1] + jnp.arange(height)[None] - pad
  columns = offsets[:, 1:] + jnp.arange(width)[None] - pad
  columns = jnp.where(mirror[:, None], columns[:, ::-1], columns)
  images = _take(images, rows, axis=1)
  return _take(images, columns, axis=2)


def _take(images: jax.Array, index: jax.Array, *, axis: int) -> jax.Array:
  """Returns images[b, index[b]] along an axis, zero where out of range."""
  size = images.shape[axis]
  shape = [images.shape[0], 1, 1, 1]
  shape[axis] = index.shape[1]
  inside = ((index >= 0) & (index < size)).reshape(shape)
  taken = jnp.take_along_axis(
      images, jnp.clip(index, 0, size - 1).reshape(shape), axis=axis)
  return jnp.where(inside, taken, 0)


