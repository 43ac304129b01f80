"""Inner maximisations: which images a student step attacks itself with.

An inner attack is a frozen dataclass called as
`inner(student_fn, teacher_fn, keys, x, labels, teacher_logits)`: the two
functions map images to logits in evaluation mode, `keys` `[B]` are one PRNG
key per example, `labels` `[B]` the sampled ones and `teacher_logits` `[B, C]`
those on `x`. It returns attacked images, gradient stopped. A new method adds
one here and leaves `distill.step` as it is.
"""

from collections.abc import Callable
import dataclasses

import jax

from ferd_jax import attacks
from ferd_jax.core import validate

SOURCES = ('student', 'teacher')
LogitsFn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class UniformTarget:
  """UTAEs, FERD's inner attack.

  Attributes:
    attack: radius, steps and gamma.
    source: whose loss is ascended: the 'student', whom the attack must fool,
      or the 'teacher', as the paper's formula literally writes.
  """
  attack: attacks.UTAE
  source: str = 'student'

  def __post_init__(self):
    validate.one_of(SOURCES, source=self.source)

  def __call__(self, student_fn: LogitsFn, teacher_fn: LogitsFn,
               keys: jax.Array, x: jax.Array, labels: jax.Array,
               teacher_logits: jax.Array) -> jax.Array:
    """Returns the UTAEs of `x`, `[B, H, W, C]`."""
    del labels  # The targets are the teacher's soft predictions.
    attacked = student_fn if self.source == 'student' else teacher_fn
    return self.attack(attacked, keys, x, teacher_logits)
