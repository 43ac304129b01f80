"""What single attacks are asked to attack: images, labels, radii and keys.

Shapes and types are checked while tracing, too; values where they are known.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import losses
from ferd_jax.attacks import geometry
from ferd_jax.core import collectives
from ferd_jax.core import errors
from ferd_jax.core import validate


def is_concrete(*arrays: Any) -> bool:
  """Returns whether the values can be looked at, which none traced can."""
  return not any(isinstance(leaf, jax.core.Tracer)
                 for leaf in jax.tree.leaves(arrays))


def is_tracing(*arrays: Any) -> bool:
  """Returns whether a function is being traced, which may close over arrays."""
  return not is_concrete(arrays, jax.lax.iota(jnp.int32, 1))


def array(name: str, value: Any) -> jax.Array | np.ndarray:
  """Returns what a caller calls an array as one that JAX knows.

  JAX's own are returned as they are, NumPy's in native byte order; of all else
  that NumPy can read, such as numbers, lists and tuples of them, and tensors of
  other frameworks, a NumPy array.

  Args:
    name: the caller's, for the message.
    value: of the caller.

  Raises:
    ValueError: if it is no array of numbers, or one with masked entries.
  """
  if isinstance(value, jax.Array):
    if is_concrete(value) and value.is_deleted():
      raise ValueError(f'Expected {name} to be an array that is still there; '
                       'its buffer was donated or deleted.')
    return value
  kind = f'{type(value).__module__}.{type(value).__name__}'
  if np.ma.is_masked(value):
    raise ValueError(f'Expected {name} without masked entries, got {kind}.')
  try:
    found = np.asarray(np.ma.getdata(value) if isinstance(
        value, np.ma.MaskedArray) else value)
  except Exception as error:  # Any framework's own.
    raise ValueError(f'Expected {name} to be an array, got {kind}: '
                     f'{errors.reason(error)}.') from error
  # JAX's own types beside NumPy's, such as bfloat16, are of kind V.
  known = found.dtype.kind in 'biufc' or jnp.issubdtype(found.dtype, np.number)
  if not known or found.dtype.itemsize > 16:
    held = kind if found.dtype == object else f'{kind} of {found.dtype}'
    raise ValueError(f'Expected {name} to be an array of numbers, got {held}.')
  if not found.dtype.isnative:
    found = found.astype(found.dtype.newbyteorder('='))
  return found


def arrays(name: str, tree: Any) -> Any:
  """Returns labels, targets or what a loss takes in their place, as arrays.

  A list or tuple of numbers is an array; any other pytree stays one. Types are
  wide enough for the number of classes.

  Args:
    name: the caller's, for the message.
    tree: of the caller, or None.

  Raises:
    ValueError: as `array`.
  """
  if tree is None:
    return None
  leaves = jax.tree.leaves(tree)
  if isinstance(tree, list | tuple) and leaves and not any(
      getattr(leaf, 'shape', ()) for leaf in leaves):
    tree = (jnp.stack(leaves) if any(isinstance(leaf, jax.Array)
                                     for leaf in leaves) else
            array(name, tree))
  return jax.tree.map(
      lambda leaf: losses.wide_enough(array(name, leaf)), tree)


def on_device(tree: Any) -> Any:
  """Returns NumPy's arrays as JAX's, which no transfer guard minds."""
  def place(leaf):
    return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf)
  return jax.tree.map(place, tree)


def labels_of(y: Any) -> jax.Array:
  """Returns the labels `[B]` that success is measured by.

  Args:
    y: int labels `[B]`, or logits `[B, K]`, whose highest are the labels, or a
      pytree whose first leaf is one of them.

  Raises:
    ValueError: for anything else.
  """
  leaves = jax.tree.leaves(y)
  if leaves:
    y = leaves[0]
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
      return jnp.asarray(y)
    if y.ndim == 2 and jnp.issubdtype(y.dtype, jnp.floating):
      return jnp.argmax(y, axis=-1)
  found = f'{y.dtype} {y.shape}' if leaves else type(y).__name__
  raise ValueError('Expected y to be int labels [B] or floating-point logits '
                   f'[B, K], got {found}.')


def image_array(name: str, value: Any) -> jax.Array | np.ndarray:
  """Returns images as `array` does, floats in a type that JAX computes in.

  Raises:
    ValueError: unless they are float32 or float64 `[B, ..., channels]`.
  """
  value = array(name, value)
  # In half precision the ball is as wide as its rounding.
  if value.ndim < 2 or value.dtype not in (np.float32, np.float64):
    cure = ('; images of 0..255 are divided by 255 before'
            if value.dtype == np.uint8 else '')
    raise ValueError(f'Expected {name} to be float32 or float64 images [B, '
                     f'..., channels], got {value.dtype} {value.shape}{cure}.')
  return value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)


def on_host(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images and labels of a data set as they come, as NumPy's.

  Floats are of a type that JAX computes in, labels wide enough for any class;
  `checks.data_set` says what is wrong with them.
  """
  images, labels = jax.device_get((
      array('x', x), losses.wide_enough(array('y', y))))
  if np.issubdtype(images.dtype, np.floating):
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype),
                           copy=False)
  return images, labels


def checked_images(x: Any, **targets: Any) -> jax.Array:
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
  x = on_device(image_array('x', x))
  if 'y' in targets:
    jax.eval_shape(labels_of, targets['y'])
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


def checked_radii(eps: Any, shape: tuple[int, ...], norm: geometry.Distance,
                  bounds: tuple[float, float]) -> None:
  """Raises ValueError for radii that are none, if they are known.

  Args:
    eps: radius or radii.
    shape: of an image.
    norm: one of `geometry.DISTANCES`.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for radii that are negative, not finite, or larger than the
      distance between any two images.
  """
  if not is_concrete(eps):
    return
  for radius in np.unique(jax.device_get(eps)):
    validate.non_negative(eps=float(radius))
    widest = geometry.of(norm).diameter(shape, bounds)
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
  if not isinstance(key, jax.Array | np.ndarray):
    return None
  if key.dtype == np.uint32:
    # What does not fit the default generator stays untyped.
    with contextlib.suppress(TypeError):
      key = jax.random.wrap_key_data(on_device(key))
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return collectives.independent(key)
  return None


def valid_examples(x: jax.Array | np.ndarray, y: Any, targets: Any,
                   num_classes: int, bounds: tuple[float, float],
                   x_init: jax.Array | np.ndarray | None = None
                   ) -> jax.Array | np.ndarray:
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
  checks = {'x': (x, _fine(x, low - slack, high + slack))}
  for name, leaf in (('y', next(iter(jax.tree.leaves(y)), None)),
                     ('targets', targets), ('x_init', x_init)):
    if leaf is None or isinstance(leaf, tuple | list | dict):
      continue  # What a loss of the caller's takes is the caller's.
    # NumPy's before JAX takes the low half of their bits.
    leaf = losses.wide_enough(leaf)
    ends = ((0, num_classes - 1) if jnp.issubdtype(leaf.dtype, jnp.integer)
            else None)
    checks[name] = leaf, _fine(leaf, *ends or ())
  valid = functools.reduce(lambda a, b: a & b,
                           (fine for _, fine in checks.values()))
  if is_concrete(valid):
    for name, (values, fine) in checks.items():
      if not fine.all():
        _refuse(name, jax.device_get(values), fine, num_classes, bounds)
  return valid


def _fine(values, low=None, high=None):
  """Returns whether examples are within, or finite without ends, bool `[B]`.

  Logits in place of labels have to predict a class.
  """
  if isinstance(values, np.ndarray):
    return _are_fine(np, values, low, high)
  if not is_concrete(values):
    return _are_fine(jnp, values, low, high)
  # Compiled, so that no transfer guard minds the constants.
  return jax.device_get(_compiled_fine(values, low, high))


def _are_fine(library, values, low, high):
  if low is None:
    fine = library.isfinite(values)
    if values.ndim == 2:  # Masked classes are -inf.
      fine = fine | (library.isneginf(values)
                     & library.isfinite(values).any(-1, keepdims=True))
  else:
    fine = (values >= low) & (values <= high)
  return fine.reshape(len(fine), -1).all(-1)


_compiled_fine = functools.partial(
    jax.jit(_are_fine, static_argnums=(0, 2, 3)), jnp)


def _refuse(name, values, fine, num_classes, bounds):
  first = int(np.argmin(fine))
  value = np.asarray(values)[first]
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


@contextlib.contextmanager
def own_transfers(tracing: bool = False
                  ) -> Iterator[Callable[[Callable], Callable]]:
  """Lets an attack that is not compiled place its constants on the device.

  Args:
    tracing: whether it is being compiled, when there is nothing to allow.

  Yields:
    What puts a model under the caller's transfer guard again.
  """
  config: Any = jax.config  # Its settings are made when JAX is imported.
  guard = (config.jax_transfer_guard_host_to_device
           or config.jax_transfer_guard or 'allow')
  def guarded(model):
    @functools.wraps(model, updated=())
    def call(*args):
      with jax.transfer_guard_host_to_device(guard):
        return model(*args)
    return call
  if tracing or guard == 'allow':
    yield lambda model: model
    return
  with jax.transfer_guard_host_to_device('allow'):
    yield guarded
