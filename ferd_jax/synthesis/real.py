"""Real images in the place of made ones: what a method reaches with data.

The ceiling of data-free methods, and how a teacher is trained: the student
phase is the same, and no generator costs anything. Such a run is not data-free
and says so in its results and on its model card.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax import data
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import pool


@dataclasses.dataclass(frozen=True)
class Real:
  """Images of `config.data.train_split`; see `base.Synthesis`.

  They come with their own labels, in passes over the split that are shuffled
  anew. A sampler's probabilities say how often those of a class come, next to
  how often they would: with equal ones every image comes once a pass.

  Attributes:
    student_steps: N_S, of an epoch.
    student_batch_size: images of a student step, over all devices.
  """
  student_steps: int
  student_batch_size: int

  samples_labels = True
  passes = passes.Passes()  # No teacher is asked for images.

  @property
  def rounds(self) -> base.Rounds:
    """Student steps alone, each on a batch of real images."""
    return base.Rounds(0, self.student_steps, pooled=False, reads_data=True)

  @property
  def batch_size(self) -> int:
    """The student's: every batch is for one of its steps."""
    return self.student_batch_size

  def init(self, key: jax.Array) -> tuple[()]:
    """Returns what is kept between epochs: nothing."""
    del key
    return ()

  def begin(self, kept: Any, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None) -> tuple[()]:
    """Returns the state of a phase: none, batches are drawn outside."""
    del kept, probs, indices, key, axis_name
    return ()

  def images(self, state: Any, frozen: frozens.Frozen, key: jax.Array,
             real: base.RealBatch, *, axis_name: str | None = None
             ) -> tuple[jax.Array, jax.Array]:
    """Returns the real images `[B, H, W, C]` and their labels."""
    del state, frozen, key, axis_name
    return real.images.astype(jnp.float32) / 255, real.labels

  measured_images = images

  def end(self, kept: Any, state: Any, *,
          axis_name: str | None = None) -> tuple[()]:
    """Returns what is kept of a phase: nothing."""
    del kept, state, axis_name
    return ()

  def specs(self) -> tuple[Any, Any]:
    """Returns where nothing lives."""
    return base.REPLICATED, base.REPLICATED

  def generator(self, kept: Any) -> None:
    """Returns None: there is no generator."""
    del kept


def batches(examples: data.Examples, probs: np.ndarray, key: jax.Array,
            batch_size: int, num_batches: int) -> Iterator[base.RealBatch]:
  """Yields batches of real examples, on the host.

  Args:
    examples: to draw from.
    probs: `[K]`, how often the classes shall come in relation to equal ones:
      an image of class c comes `K * probs[c]` times as often as in passes over
      all. Equal ones are such passes, whatever the classes' sizes.
    key: typed PRNG key that the order follows from.
    batch_size: images of a batch.
    num_batches: how many.

  Raises:
    ValueError: if no example is of a class that shall come.
  """
  count, weights = len(examples.labels), probs[examples.labels]
  if not np.any(weights > 0):
    raise ValueError('Expected an example of a class with probability > 0; '
                     f'the probabilities are {probs.tolist()}.')
  for index in pool.index_plan(key, count, count, batch_size, num_batches,
                               weights):
    yield base.RealBatch(examples.images[index], examples.labels[index])
