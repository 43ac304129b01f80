"""Variables of untrained nets with statistics as if trained."""

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import models


def random_variables(model, image_shape, seed):
  """Returns variables whose BatchNorm layers are not trivial.

  They are float64 where x64 is enabled.
  """
  rng = np.random.default_rng(seed)
  abstract = jax.eval_shape(lambda: models.init_variables(
      model, jax.random.key(0), image_shape))

  def draw(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape))
    fan_in = np.prod(leaf.shape[:-1])
    return jnp.asarray(rng.normal(0, 1.5 / np.sqrt(fan_in), leaf.shape))
  return jax.tree_util.tree_map_with_path(draw, abstract)
