"""What single attacks are asked to attack: images, labels, radii and keys.

Shapes and types are checked while tracing, too; values where they are known.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.core import collectives
from ferd_jax.core import validate


def is_concrete(*arrays: Any) -> bool:
  """Returns whether the values can be looked at, which none traced can."""
  return not any(isinstance(leaf, jax.core.Tracer)
                 for leaf in jax.tree.leaves(arrays))


def is_tracing(*arrays: Any) -> bool:
  """Returns whether a function is being traced, which may close over arrays."""
  return not is_concrete(arrays, jnp.add(0, 0))


def labels_of(y: Any) -> jax.Array:
  """Returns the labels `[B]` that success is measured by.

  Args:
    y: int labels `[B]`, or logits `[B, K]`, whose highest are the labels, or a
      pytree whose first leaf is one of them.

  Raises:
    ValueError: for anything else.
  """
  leaves = jax.tree.leaves(y)
  y = jnp.asarray(leaves[0]) if leaves else jnp.zeros(())
  if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
    return y
  if y.ndim == 2 and jnp.issubdtype(y.dtype, jnp.floating):
    return jnp.argmax(y, axis=-1)
  raise ValueError('Expected y to be int labels [B] or floating-point logits '
                   f'[B, K], got {y.dtype} {y.shape}.')


def as_arrays(classes: Any) -> Any:
  """Returns labels or targets, a list as an array, with types wide enough."""
  if isinstance(classes, list):
    classes = np.asarray(classes)
  return jax.tree.map(losses.wide_enough, classes)


def checked_images(x: jax.Array, **targets: Any) -> jax.Array:
  """Returns `x` as a JAX array after checking it and what belongs to it.

  Only dtypes and shapes are read, so it raises while tracing. Without it one
  label would serve all images silently, by broadcasting. A NumPy float64
  becomes what JAX computes in, without a warning.

  Args:
    x: images `[B, ...]`.
    **targets: pytrees of arrays `[B, ...]`, by the caller's names for them.

  Raises:
    ValueError: unless x is float32 or float64, all have one batch size above
      0, `y` are labels or logits, and `x_init` has the shape of x.
  """
  x = jnp.asarray(x)
  # In half precision the ball is as wide as its rounding.
  if x.ndim < 2 or x.dtype not in (jnp.float32, jnp.float64):
    raise ValueError('Expected x to be float32 or float64 images [B, ..., '
                     f'channels], got {x.dtype} {x.shape}.')
  if targets.get('y') is not None:
    labels_of(targets['y'])
  if not x.shape[0]:
    raise ValueError(f'Expected x to have images, got the shape {x.shape}.')
  start = targets.get('x_init')
  if start is not None and np.shape(start) != x.shape:
    raise ValueError(f'Expected x_init of shape {np.shape(start)} to have the '
                     f'shape of x, {x.shape}.')
  for name, tree in targets.items():
    for leaf in jax.tree.leaves(tree):
      if np.shape(leaf)[:1] != x.shape[:1]:
        raise ValueError(
            f'Expected {name} of shape {np.shape(leaf)} to have the batch '
            f'size of x of shape {x.shape}.')
  return x


def checked_radii(eps: Any, shape: tuple[int, ...], norm: str,
                  bounds: tuple[float, float]) -> None:
  """Raises ValueError for radii that are none, if they are known.

  Args:
    eps: radius or radii.
    shape: of an image.
    norm: 'Linf' or 'L2'.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for radii that are negative, not finite, or larger than the
      distance between any two images.
  """
  if not is_concrete(eps):
    return
  for radius in np.unique(np.asarray(eps)):
    validate.non_negative(eps=float(radius))
    widest = geometry.diameter(shape, norm, bounds)
    if radius > widest * (1 + 1e-6):
      raise ValueError(
          f'Expected eps={radius:g} of at most {widest:g}, the largest '
          f'distance of images in {bounds}; eps has their unit, such as 8/255.')


def noise_keys(key: jax.Array, batch_size: int) -> jax.Array:
  """Returns one key per example from one key, or the `[B]` keys given.

  An example's noise then depends on its own key only: padding the batch or
  splitting it over devices does not change it, if the caller passes the keys
  of the examples' global indices.

  Args:
    key: one PRNG key or `[B]` keys, typed (`jax.random.key`) or legacy
      (`jax.random.PRNGKey`, uint32 `[2]` or `[B, 2]` by default), of any
      generator.
    batch_size: B.

  Returns:
    Typed keys `[B]` that are `collectives.independent`.

  Raises:
    ValueError: if `key` is anything else.
  """
  keys = _typed(key)
  if keys is None or keys.shape not in ((), (batch_size,)):
    kind = getattr(key, 'dtype', type(key).__name__)
    raise ValueError(f'Expected key to be one PRNG key or {batch_size} keys, '
                     f'one per image, got {kind} {np.shape(key)}.')
  if keys.ndim:
    return keys
  return collectives.example_keys(keys, jnp.arange(batch_size))


def one_key(key: jax.Array) -> jax.Array:
  """Returns one PRNG key, typed or legacy, as a typed one.

  Raises:
    ValueError: if it is none, or several.
  """
  typed = _typed(key)
  if typed is None or typed.ndim:
    kind = getattr(key, 'dtype', type(key).__name__)
    raise ValueError(f'Expected key to be one PRNG key, got {kind} '
                     f'{np.shape(key)}.')
  return typed


def _typed(key):
  """Returns keys as typed ones, None for anything else."""
  if getattr(key, 'dtype', None) == jnp.uint32:
    # What does not fit the default generator stays untyped.
    with contextlib.suppress(TypeError):
      key = jax.random.wrap_key_data(key)
  if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype,
                                                   jax.dtypes.prng_key):
    return collectives.independent(key)
  return None


def valid_examples(x: jax.Array, y: Any, targets: Any, num_classes: int,
                   bounds: tuple[float, float],
                   x_init: jax.Array | None = None) -> jax.Array:
  """Returns which examples are valid input, `[B]`; outside of `jit` all are.

  Args:
    x: images `[B, ...]`.
    y: as for `Attack.__call__`, as are targets.
    targets: of a targeted loss.
    num_classes: of the model.
    bounds: lowest and highest pixel value.
    x_init: to start from.

  Raises:
    ValueError: outside of `jit`, for images that are not finite or out of
      bounds, labels or targets that are no class, and logits in their place or
      a start that are not finite.
  """
  low, high = bounds
  slack = geometry.rounding(bounds, x.dtype)
  checks = {'x': (x, _all(jnp.isfinite(x) & (x >= low - slack)
                          & (x <= high + slack)))}
  for name, leaf in (('y', next(iter(jax.tree.leaves(y)), None)),
                     ('targets', targets), ('x_init', x_init)):
    if leaf is None or isinstance(leaf, tuple | list | dict):
      continue  # What a loss of the caller's takes is the caller's.
    # NumPy's before JAX takes the low half of their bits.
    leaf = losses.wide_enough(
        leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf))
    checks[name] = leaf, _all(
        (leaf >= 0) & (leaf < num_classes)
        if jnp.issubdtype(leaf.dtype, jnp.integer) else jnp.isfinite(leaf))
  valid = functools.reduce(jnp.logical_and,
                           (fine for _, fine in checks.values()))
  if is_concrete(valid):
    for name, (values, fine) in checks.items():
      if not bool(jnp.all(fine)):
        _refuse(name, np.asarray(values), np.asarray(fine), num_classes,
                bounds)
  return valid


def _refuse(name, values, fine, num_classes, bounds):
  first = int(np.argmin(fine))
  value = values[first]
  if name == 'x':
    expected = f'x to be finite images in {bounds}'
    found = ('a value that is not finite' if not np.isfinite(value).all()
             else f'values from {value.min():g} to {value.max():g}')
  elif not np.issubdtype(values.dtype, np.integer):
    expected, found = f'{name} to be finite', 'a value that is not'
  else:
    expected, found = f'{name} in 0..{num_classes - 1}', f'{value}'
  raise ValueError(f'Expected {expected}, got {found} in example {first} '
                   f'({int((~fine).sum())} such of {len(fine)}).')


def _all(mask):
  return jnp.all(geometry.flat(mask), axis=-1)
