"""Tests of ferd_jax.core.digests."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax.core import digests

of_arrays = digests.of_arrays


def test_of_json():
  """Files that are there have these digests: they must stay as they are."""
  assert digests.of_json({'b': [1, 2.5], 'a': None}) == hashlib.sha256(
      b'{"a": null, "b": [1, 2.5]}').hexdigest()


def test_digest_knows_values_dtypes_shapes_and_their_order():
  tree = {'a': np.arange(6.), 'b': [np.float32(2), jnp.ones((2, 3))]}
  digest = of_arrays(tree)
  assert digest == of_arrays(jax.tree.map(jnp.asarray, {
      'b': tree['b'], 'a': tree['a'].astype('f')}) | {'a': tree['a']})
  others = [
      tree | {'a': np.arange(6)}, tree | {'a': np.arange(6.).reshape(2, 3)},
      tree | {'a': -np.arange(6.)}, {'a': tree['b'], 'b': tree['a']},
      tree | {'c': np.zeros(0)}, tree | {'a': np.arange(6.) + 1e-15}]
  assert len({digest, *map(of_arrays, others)}) == 7


def test_digest_of_any_leaf():
  array = np.arange(24.).reshape(2, 3, 4)
  strided = np.asfortranarray(array)
  assert of_arrays(strided) == of_arrays(array)
  assert of_arrays(array[:, ::2]) == of_arrays(array[:, ::2].copy())
  for leaf in (jnp.ones(3, jnp.bfloat16), True, 3, np.zeros((0, 3)),
               jax.random.PRNGKey(0)):
    assert len(of_arrays(leaf)) == 64
  keys = [jax.random.key(0), jax.random.key(1)]
  assert of_arrays(keys[0]) != of_arrays(keys[1])
  assert of_arrays(jax.tree_util.Partial(len, array)) == of_arrays(array)
