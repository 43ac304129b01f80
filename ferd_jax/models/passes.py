"""What a method asks of its teachers, in passes of an image through one."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax import models
from ferd_jax.models import forward


@dataclasses.dataclass(frozen=True)
class Passes:
  """Passes of images through teachers; those of batches are sums of them.

  A pass through a part of a network counts by that part's share of the
  operations, see `tail_share`.

  Attributes:
    forward: how many images went through, to the logits or not.
    backward: for how many of them a gradient came back to the input.
  """
  forward: float = 0.
  backward: float = 0.

  def __add__(self, other: 'Passes') -> 'Passes':
    return Passes(self.forward + other.forward, self.backward + other.backward)

  def __mul__(self, number: float) -> 'Passes':
    return Passes(self.forward * number, self.backward * number)


def tail_share(model: nn.Module, image_shape: Sequence[int],
               start: str) -> float:
  """Returns which share of a pass the stages after `start` are, in [0, 1].

  Args:
    model: with stages.
    image_shape: shape of one image, (H, W, C).
    start: a stage.
  """
  shapes = jax.eval_shape(
      lambda key: models.init_variables(model, key, image_shape),
      jax.random.key(0))
  head, whole = (
      operations(model, shapes, image_shape, stop) for stop in (start, None))
  return 1 - head / whole


def operations(model: nn.Module, variables: Any, image_shape: Sequence[int],
               stop: str | None = None) -> float:
  """Returns the floating point operations of a forward pass of an image.

  Args:
    model: any module; with stages if it is to stop at one.
    variables: of it, or their shapes.
    image_shape: shape of one image, (H, W, C).
    stop: the last stage; None for the logits.
  """
  leaves, structure = jax.tree.flatten(variables)
  shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                 for leaf in leaves)
  return _operations(model, structure, shapes, tuple(image_shape), stop)


@functools.lru_cache(maxsize=64)  # It traces the network.
def _operations(model, structure, leaves, image_shape, stop):
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  options = {} if stop is None else {'stop': stop}
  return jax.jit(functools.partial(forward.logits, model, **options)).lower(
      jax.tree.unflatten(structure, leaves), image).cost_analysis()['flops']
