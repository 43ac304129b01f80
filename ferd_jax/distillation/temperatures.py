"""A temperature per class, by which ABSLD softens the teacher's targets.

An outer loss that has some keeps them in its state; attacks that know of them
find them there, inside of a wrapper's state, too.
"""

from typing import Any

import flax.struct
import jax


class ClassTemperatures(flax.struct.PyTreeNode):
  """What the teacher's logits are divided by, by class of the label.

  Attributes:
    adv: `[K]`, for the targets of attacked images.
    clean: `[K]`, for those of clean images.
  """
  adv: jax.Array
  clean: jax.Array


def adversarial(class_state: Any, logits: jax.Array,
                labels: jax.Array) -> jax.Array:
  """Returns the teacher's logits as targets of attacked images, `[B, K]`.

  Args:
    class_state: of the outer loss; without temperatures in it the logits stay
      as they are.
    logits: `[B, K]` of the teacher.
    labels: int `[B]`.
  """
  def is_found(node):
    return isinstance(node, ClassTemperatures)
  found = list(filter(is_found, jax.tree.leaves(class_state, is_leaf=is_found)))
  if not found:
    return logits
  return logits / found[0].adv[labels][:, None]
