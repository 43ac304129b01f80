"""Collectives that are identities on one device, and per-example keys.

Every step takes `axis_name=None`. With a name it runs on a shard of the batch
inside `pmap` or `shard_map`; with None it sees the whole batch and nothing is
reduced. The numbers are the same: means and maxima are taken over the axis,
and randomness belongs to an example's index in the global batch, not to the
device that holds it.
"""

import jax
from jax import lax
import jax.numpy as jnp

AXIS = 'data'
_INDEPENDENT = 'threefry2x32'  # generator


def pmean(tree, axis_name: str | None):
  """Returns the mean over the axis of every leaf; `tree` if there is none."""
  return tree if axis_name is None else lax.pmean(tree, axis_name)


def psum(tree, axis_name: str | None):
  """Returns the sum over the axis of every leaf; `tree` if there is none."""
  return tree if axis_name is None else lax.psum(tree, axis_name)


def pmax(tree, axis_name: str | None):
  """Returns the maximum over the axis of every leaf; `tree` if none."""
  return tree if axis_name is None else lax.pmax(tree, axis_name)


def all_gather(tree, axis_name: str | None):
  """Returns the examples of all shards, `[B, ...]`, in the global order."""
  if axis_name is None:
    return tree
  return lax.all_gather(tree, axis_name, tiled=True)


def axis_size(axis_name: str | None) -> int:
  """Returns the number of shards of the batch."""
  return 1 if axis_name is None else lax.axis_size(axis_name)


def example_indices(local_size: int, axis_name: str | None) -> jax.Array:
  """Returns the int32 [local_size] positions of a shard's examples."""
  indices = jnp.arange(local_size)
  if axis_name is None:
    return indices
  return indices + lax.axis_index(axis_name) * local_size


def example_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
  """Returns one key per example: `key` folded with the example's index.

  Args:
    key: one typed PRNG key.
    indices: int [B], each example's index in the global batch or data set.

  Returns:
    Typed keys [B], of `independent`'s generator.
  """
  key = independent(key)
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def independent(keys: jax.Array) -> jax.Array:
  """Returns keys whose draws under `vmap` are those of each by itself.

  JAX draws the numbers of a whole batch of 'rbg' or 'unsafe_rbg' keys from the
  first of them: what an example gets would depend on its neighbours.

  Args:
    keys: typed PRNG keys of any shape.

  Returns:
    The keys if they are of JAX's usual generator, else such ones made of them.
  """
  if str(jax.random.key_impl(keys)) == _INDEPENDENT:
    return keys
  def make(words):
    key = jax.random.key(0, impl=_INDEPENDENT)
    for i in range(words.shape[0]):
      key = jax.random.fold_in(key, words[i])
    return key
  words = jax.random.key_data(keys)
  # Compiled: no transfer guard minds its constants.
  made = jax.jit(jax.vmap(make))(words.reshape(-1, words.shape[-1]))
  return made.reshape(keys.shape)


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
  """Returns `keys` [B], each folded with the same `data`."""
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
