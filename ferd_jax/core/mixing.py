"""Images made of two: CutMix and mixup, without their labels.

A teacher that is asked anew says what a mixed image shows. At most half of an
image is another's, so that its own class is still the one it shows most of.

References: CutMix, arXiv:1905.04899; mixup, arXiv:1710.09412; with robust
networks, arXiv:2111.05328.
"""

import jax
import jax.numpy as jnp

from ferd_jax.core import collectives

KINDS = ('none', 'cutmix', 'mixup')
_LARGEST = 0.5  # share of the other image


def mix(kind: str, keys: jax.Array, images: jax.Array, share: float, *,
        axis_name: str | None = None) -> jax.Array:
  """Returns a batch in which some images have a part of the one before them.

  The share of the other image is uniform in [0, 1/2]: of the area, one box of
  whole pixels, its sides rounded down, at a uniform place within the image, for
  'cutmix'; of every pixel for 'mixup'.

  Args:
    kind: of `KINDS`.
    keys: typed PRNG keys `[B]`, one per image.
    images: `[B, H, W, C]`; the first is mixed with the last.
    share: of the batch that is mixed, evenly spread over it, in [0, 1].
    axis_name: mapped axis over which the examples are sharded.

  Returns:
    `[B, H, W, C]`.
  """
  if kind == 'none':
    return images
  size = images.shape[0]
  indices = collectives.example_indices(size, axis_name)
  # In exact arithmetic every (1 / share)-th; half a step keeps it so.
  chosen = (jnp.floor((indices + 1) * share + 1e-3)
            > jnp.floor(indices * share + 1e-3))
  everything = collectives.all_gather(images, axis_name)
  others = everything[(indices - 1) % everything.shape[0]]
  parts = jax.vmap(lambda key: _part(kind, key, images.shape[1:3]))(keys)
  parts = (parts * chosen[:, None, None])[..., None].astype(images.dtype)
  return images + parts * (others - images)


def _part(kind, key, shape):
  """Returns which share of each pixel is the other image's, `[H, W]`."""
  share_key, place_key = jax.random.split(key)
  share = jax.random.uniform(share_key, maxval=_LARGEST)
  if kind == 'mixup':
    return jnp.full(shape, share)
  # Whole pixels, as CutMix counts them: never more than the share.
  sides = jnp.floor(jnp.sqrt(share) * jnp.asarray(shape))
  corner = jnp.floor(jax.random.uniform(place_key, (2,))
                     * (jnp.asarray(shape) - sides + 1))
  rows, columns = (
      (jnp.arange(length) >= first) & (jnp.arange(length) < first + side)
      for length, first, side in zip(shape, corner, sides, strict=True))
  return (rows[:, None] & columns[None]).astype(share.dtype)
