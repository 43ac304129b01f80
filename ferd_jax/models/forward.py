"""Forward passes of the networks: evaluation, with moments, and training.

`variables` is `{'params': ..., 'batch_stats': ...}`; models are Flax modules
of `ferd_jax.models`, static and hashable.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

Variables = dict[str, Any]


def logits(model: nn.Module, variables: Variables, x: jax.Array, *,
           start: str | None = None, stop: str | None = None) -> jax.Array:
  """Returns logits `[B, C]`, BatchNorm on running statistics.

  Args:
    model: of `ferd_jax.models`.
    variables: of the model.
    x: images `[B, H, W, C]`, or the output of stage `start`.
    start: stage after which to begin.
    stop: stage whose output is returned instead of the logits.
  """
  return model.apply(variables, x, start=start, stop=stop)


def logits_fn(model: nn.Module,
              variables: Variables) -> Callable[[jax.Array], jax.Array]:
  """Returns the evaluation-mode function images -> logits, for attacks."""
  return lambda x: logits(model, variables, x)


def logits_and_moments(
    model: nn.Module, variables: Variables, x: jax.Array, *,
    start: str | None = None,
    stop: str | None = None) -> tuple[jax.Array, Variables]:
  """Returns `logits(...)` and its BatchNorm layers' input moments.

  The moments are `{'mean': [C], 'var': [C]}` at the paths of `batch_stats`,
  taken over this batch, biased; the layers still use running statistics.
  """
  out, updates = model.apply(variables, x, start=start, stop=stop,
                             mutable=['moments'])
  return out, updates.get('moments', {})


def train_logits(model: nn.Module, variables: Variables, x: jax.Array, *,
                 axis_name: str | None = None) -> tuple[jax.Array, Variables]:
  """Returns logits `[B, C]` on batch statistics, and the updated statistics.

  Args:
    model: of `ferd_jax.models`.
    variables: of the model.
    x: images `[B, H, W, C]`.
    axis_name: mapped axis over which batch statistics are synchronised.
  """
  out, updates = model.clone(axis_name=axis_name).apply(
      variables, x, train=True, mutable=['batch_stats'])
  return out, updates['batch_stats']
