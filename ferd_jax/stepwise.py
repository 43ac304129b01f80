"""Long attacks, compiled for a device mapping: PGD-20 on a whole data set.

On accelerators the attack is one compiled function with a rolled loop. On CPU
XLA is slow at convolutions in rolled loops and slow to compile unrolled ones,
so there one step is compiled and Python takes it again and again.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

from ferd_jax import attacks
from ferd_jax import collectives
from ferd_jax import forward
from ferd_jax import loops
from ferd_jax import parallel as parallels

_R, _S = parallels.REPLICATED, parallels.SHARDED


def compile_attack(attack: attacks.PGD, model: nn.Module,
                   parallel: parallels.Parallel) -> Callable[..., jax.Array]:
  """Returns `(variables, images, labels, indices, key) -> adversarial images`.

  All arguments and the result are sharded over the examples, except
  `variables` and `key`. `indices` `[B]` choose the examples' randomness.

  Args:
    attack: to compile.
    model: module under attack.
    parallel: the device mapping.
  """
  def start(images, indices, key, *, axis_name=None):
    del axis_name  # Examples do not interact.
    return attack.initialise(collectives.example_keys(key, indices), images)

  def step(variables, adversarial, images, labels, *, axis_name=None):
    del axis_name
    return attack.step(forward.logits_fn(model, variables), adversarial,
                       images, labels)

  def whole(variables, images, labels, indices, key, *, axis_name=None):
    del axis_name
    keys = collectives.example_keys(key, indices)
    return attack(forward.logits_fn(model, variables), keys, images, labels)

  if not loops.unrolled_here():
    return parallel.compile(whole, (_R, _S, _S, _S, _R), _S)
  compiled_start = parallel.compile(start, (_S, _S, _R), _S)
  compiled_step = parallel.compile(step, (_R, _S, _S, _S), _S)

  def run(variables: Any, images, labels, indices, key):
    adversarial = compiled_start(images, indices, key)
    for _ in range(attack.num_steps):
      adversarial = compiled_step(variables, adversarial, images, labels)
    return adversarial
  return run
