"""Digests of what is kept in files, by which damage is seen."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_json(values: Any) -> str:
  """Returns the SHA-256 of JSON values, whatever the order of their keys."""
  return hashlib.sha256(
      json.dumps(values, sort_keys=True).encode()).hexdigest()


def of_arrays(tree: Any) -> str:
  """Returns a hash of all arrays of a pytree, in their order."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype,
                                                      jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    found.update(f'{array.dtype}{np.shape(leaf)}'.encode())
    found.update(array.reshape(-1).view(np.uint8))
  return found.hexdigest()
