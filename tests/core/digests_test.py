"""Digests of JSON values."""

import hashlib

from ferd_jax.core import digests


def test_of_json():
  """Files that are there have these digests: they must stay as they are."""
  assert digests.of_json({'b': [1, 2.5], 'a': None}) == hashlib.sha256(
      b'{"a": null, "b": [1, 2.5]}').hexdigest()
