"""MeanSparse: what is near its channel's mean becomes the mean.

It is put into a trained network, at its activations. Where a value is moved to
the mean, the output is a plateau, whose gradient is 0: attacks by gradients,
AutoAttack among them, find fewer adversarial images than there are.
"""

import dataclasses

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax.models import layers

COLLECTION = 'mean_sparse'  # of its variables


class MeanSparse(nn.Module):
  """Returns the mean where a value is less than T deviations from it.

  Mean, variance and T are measured once, on training images, and are no
  parameters: `mean` [C], `var` [C] and `threshold` [] of a collection of their
  own. T = 0 changes nothing.

  Attributes:
    straight_through: whether the gradient is that of the identity (BPDA). The
      outputs are the same.

  References: Amini et al. 2024, arXiv:2406.05927; RobustBench/robustbench,
    model_zoo/architectures/Meansparse_wrn_70_16.py.
  """
  straight_through: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float [..., C] to the same shape."""
    dtype, shape = layers.param_dtype(x), x.shape[-1:]
    mean = self.variable(COLLECTION, 'mean', jnp.zeros, shape, dtype).value
    var = self.variable(COLLECTION, 'var', jnp.zeros, shape, dtype).value
    threshold = self.variable(COLLECTION, 'threshold', jnp.zeros, (),
                              dtype).value
    mean = layers.per_channel(mean, x.ndim)
    nearest = layers.per_channel(threshold * jnp.sqrt(var), x.ndim)
    moved = jnp.where(jnp.abs(x - mean) < nearest, mean, x).astype(x.dtype)
    if not self.straight_through:
      return moved
    # The difference is 0, so that the outputs are the same bits.
    return lax.stop_gradient(moved) + (x - lax.stop_gradient(x))


@dataclasses.dataclass(frozen=True)
class Sparse:
  """What a network does where others have nothing.

  Attributes:
    used: whether there are layers.
    straight_through: of these.
  """
  used: bool = False
  straight_through: bool = False

  def __call__(self, name: str, x: jax.Array) -> jax.Array:
    """Returns x, or what the caller's submodule of that name makes of it."""
    if not self.used:
      return x
    return MeanSparse(self.straight_through, name=name)(x)


def doubt(model: nn.Module) -> str | None:
  """Returns why attacks by gradients overrate a network, if they do."""
  if (getattr(model, 'sparse', False) is not True
      or getattr(model, 'straight_through', True)):
    return None
  return ('MeanSparse layers have plateaus whose gradient is 0, so that '
          'attacks by gradients and AutoAttack overrate the robustness: of '
          'the published WRN-94-16, AutoAttack leaves 75.28%, APGD with the '
          "identity's gradient 73.10%; straight_through attacks with that.")
