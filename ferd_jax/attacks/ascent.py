"""Projected sign ascent in an L-infinity ball: what every attack here shares.

That is the step, and what is asked of settings, images, targets and keys.
"""

from collections.abc import Callable
import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import collectives


def freeze(settings: Any, *names: str) -> None:
  """Turns the named settings into floats, and `bounds` into two of them.

  Then the frozen dataclass is hashable whatever the caller passed, and its
  settings never change the dtype of the images: a NumPy float64 scalar would
  promote float32 images where x64 is on.

  Args:
    settings: frozen dataclass with `bounds`, in its `__post_init__`.
    *names: of the settings that are floats.

  Raises:
    ValueError: unless `bounds` are a lower and a higher value.
  """
  for name in names:
    object.__setattr__(settings, name, float(getattr(settings, name)))
  bounds = tuple(float(bound) for bound in settings.bounds)
  if len(bounds) != 2 or not bounds[0] < bounds[1]:
    raise ValueError(f'Expected bounds={settings.bounds!r} to be two values, '
                     'low < high.')
  object.__setattr__(settings, 'bounds', bounds)


def checked_images(x: jax.Array, **targets: Any) -> jax.Array:
  """Returns `x` as a JAX array after checking it and what belongs to it.

  Only dtypes and shapes are read, so it raises while tracing. Without it one
  label would serve all images silently, by broadcasting. A NumPy float64
  becomes what JAX computes in, without a warning.

  Args:
    x: images `[B, ...]`.
    **targets: pytrees of arrays `[B, ...]`, by the caller's names for them.

  Raises:
    ValueError: unless x is floating-point and all have one batch size.
  """
  x = jnp.asarray(x)
  if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError('Expected x to be floating-point images [B, ...], got '
                     f'{x.dtype} {x.shape}.')
  for name, tree in targets.items():
    for leaf in jax.tree.leaves(tree):
      if np.shape(leaf)[:1] != x.shape[:1]:
        raise ValueError(
            f'Expected {name} of shape {np.shape(leaf)} to have the batch '
            f'size of x of shape {x.shape}.')
  return x


def project(x_adv: jax.Array, x: jax.Array, eps: float,
            bounds: tuple[float, float]) -> jax.Array:
  """Returns x_adv clipped to the eps-ball around x, then to the bounds."""
  return jnp.clip(jnp.clip(x_adv, x - eps, x + eps), *bounds)


def sign_step(objective: Callable[[jax.Array], jax.Array], x_adv: jax.Array,
              x: jax.Array, *, eps: float, step_size: float,
              bounds: tuple[float, float] = (0., 1.)) -> jax.Array:
  """Returns x_adv after one step of sign-gradient ascent, projected.

  Args:
    objective: images `[B, H, W, C]` -> values `[B]`; they are summed before
      the gradient, so examples do not interact.
    x_adv: `[B, H, W, C]`, taken as it is: it may lie outside the bounds.
    x: `[B, H, W, C]`, centres of the eps-balls.
    eps: radius in the unit of `x`.
    step_size: in the unit of `x`.
    bounds: lowest and highest pixel value.

  Returns:
    `[B, H, W, C]`, clipped to the ball, then to the bounds.
  """
  gradient = jax.grad(lambda images: jnp.sum(objective(images)))(x_adv)
  return project(x_adv + step_size * jnp.sign(gradient), x, eps, bounds)


def noise_keys(key: jax.Array, batch_size: int) -> jax.Array:
  """Returns one key per example from one key, or the `[B]` keys given.

  An example's noise then depends on its own key only: padding the batch or
  splitting it over devices does not change it, if the caller passes the keys
  of the examples' global indices.

  Args:
    key: one PRNG key or `[B]` keys, typed (`jax.random.key`) or legacy
      (`jax.random.PRNGKey`, uint32 `[2]` or `[B, 2]` by default).
    batch_size: B.

  Returns:
    Typed keys `[B]`.

  Raises:
    ValueError: if `key` is anything else.
  """
  keys = key
  if getattr(key, 'dtype', None) == jnp.uint32:
    # What does not fit the default generator stays untyped, and is refused.
    with contextlib.suppress(TypeError):
      keys = jax.random.wrap_key_data(key)
  typed = (isinstance(keys, jax.Array)
           and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key))
  if not typed or keys.shape not in ((), (batch_size,)):
    kind = getattr(key, 'dtype', type(key).__name__)
    raise ValueError(f'Expected key to be one PRNG key or {batch_size} keys, '
                     f'one per image, got {kind} {np.shape(key)}.')
  if keys.ndim:
    return keys
  return collectives.example_keys(keys, jnp.arange(batch_size))
