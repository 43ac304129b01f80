"""Scalar metrics of a step in one array: one transfer for all of them."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Scalars(flax.struct.PyTreeNode):
  """Named scalars.

  Attributes:
    values: `[M]`.
    names: of the values, sorted.
  """
  values: jax.Array
  names: tuple[str, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, metrics: Mapping[str, jax.Array]) -> 'Scalars':
    """Returns the scalars of a dict, in the widest of their types."""
    names = tuple(sorted(metrics))
    if not names:
      return cls(jnp.zeros([0]), names)
    return cls(jnp.stack([jnp.asarray(metrics[name]) for name in names]), names)

  def read(self) -> dict[str, float]:
    """Returns the scalars on the host; waits for the device."""
    return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


def packed(step: Callable[..., tuple[Any, ...]]
           ) -> Callable[..., tuple[Any, ...]]:
  """Returns a step (...) -> (state, metrics, ...) with metrics in one array."""
  @functools.wraps(step)
  def call(*args, **kwargs):
    state, metrics, *others = step(*args, **kwargs)
    return state, Scalars.of(metrics), *others
  return call
