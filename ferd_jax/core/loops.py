"""Loops of a fixed length, rolled or unrolled by platform."""

from collections.abc import Callable

import jax
from jax import lax

LONGEST_UNROLLED = 50  # steps


def repeat(num_steps: int, body: Callable, carry, *, unroll: bool | None):
  """Returns `carry` after num_steps calls of `body(step, carry)`.

  Args:
    num_steps: how many, static.
    body: (step, carry) -> carry.
    carry: pytree of arrays.
    unroll: True writes the steps out, False rolls them into one loop. None
      unrolls on CPU, where XLA runs a convolution inside a loop 3 to 20 times
      slower than outside, and rolls on accelerators; and everywhere what is
      longer than `LONGEST_UNROLLED`, which XLA takes minutes to compile.
  """
  if unroll is None:
    unroll = unrolled_here() and num_steps <= LONGEST_UNROLLED
  if not unroll:
    return lax.fori_loop(0, num_steps, body, carry)
  for step in range(num_steps):
    carry = body(step, carry)
  return carry


def unrolled_here() -> bool:
  """Returns whether loops around convolutions are unrolled: on CPU they are."""
  return jax.default_backend() == 'cpu'
