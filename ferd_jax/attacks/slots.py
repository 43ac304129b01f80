"""A fixed batch of slots through which any number of images is attacked.

An image leaves its slot soon after it is fooled or through, and the next one
takes its place: shapes stay, nothing recompiles, and no slot idles but at the
end, where the batch shrinks in a few sizes. Images do not interact, and the
noise of each depends on its index only, so that the order does not matter. (A
stochastic model's own noise is that of a batch.)
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ferd_jax.attacks import attack as attacks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import hoisting
from ferd_jax.core import collectives
from ferd_jax.core import loops
from ferd_jax.core import parallel as parallels

_R, _S = parallels.REPLICATED, parallels.SHARDED
_SHRINK = 2  # A compile pays off when the batch shrinks to half.


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One attempt of the attack on one image.

  Attributes:
    index: of the image.
    attempt: of the attack's attempts.
    fooled: whether the attack says so; the image decides.
    image: the adversarial one if fooled, else None.
    finite: whether all logits were.
    zero_gradient: whether the gradient at the start was 0 everywhere.
  """
  index: int
  attempt: int
  fooled: bool
  image: np.ndarray | None
  finite: bool
  zero_gradient: bool


class _Rows(NamedTuple):
  """The contents of the slots."""
  x: Any
  y: Any
  index: Any
  attempt: Any
  logits: Any
  scores: Any


class _Slot(NamedTuple):
  """How far the attack in each slot is."""
  steps: jax.Array
  state: Any


class Slots:
  """Runs one attack on the images of a data set."""

  def __init__(self, attack: attacks.Attack, apply_fn: Callable,
               parallel: parallels.Parallel, batch_size: int):
    """Prepares the compiled functions.

    Args:
      attack: any; its `status` says what has become of an image.
      apply_fn: (variables, images[, key]) -> logits.
      parallel: mapping over devices.
      batch_size: number of slots, over all devices.
    """
    self._attack, self._parallel = attack, parallel
    self._sizes = _sizes(batch_size, parallel.num_devices,
                         fine=loops.unrolled_here())
    # How many steps before looking at what has become of the images: a look
    # interrupts an accelerator, a fooled image waits for it.
    look_every = min(3 if loops.unrolled_here() else 10, attack.num_steps)
    # On CPU Python repeats a single step.
    self._calls = look_every if loops.unrolled_here() else 1
    self._call_steps = look_every // self._calls

    def problem_of(rows, key, eps):
      problem = attacks.Problem(
          rows.x, rows.y, None, jnp.broadcast_to(eps, rows.y.shape),
          collectives.example_keys(key, rows.index))
      return attack.nth_attempt(attack.of_labels(problem, rows.logits),
                                rows.scores, rows.attempt)

    def start(rows, key, eps, *, axis_name=None):
      del axis_name  # Examples do not interact, here and below.
      return _Slot(jnp.zeros_like(rows.index),
                   attack.init(problem_of(rows, key, eps)))

    def admit(rows, fresh, slot, key, eps, *, axis_name=None):
      del axis_name
      return jax.tree.map(functools.partial(geometry.where, fresh),
                          start(rows, key, eps), slot)

    def done(slot):
      return (slot.steps >= attack.num_steps) | attack.done(slot.state)

    def step(variables, rows, slot, key, eps, model_key, i):
      if model_key is not None:
        model_key = jax.random.fold_in(model_key, i)
      after = _Slot(slot.steps + 1, attack.step(
          functools.partial(apply_fn, variables), problem_of(rows, key, eps),
          slot.state, model_key))
      return jax.tree.map(functools.partial(geometry.where, done(slot)), slot,
                          after)

    def advance(variables, rows, slot, key, eps, model_key, first):
      return loops.repeat(
          self._call_steps,
          lambda i, slot: step(variables, rows, slot, key, eps, model_key,
                               first + i),
          slot, unroll=self._call_steps == 1)

    def turn(*args, axis_name=None):
      del axis_name
      # A loop inside needs no help.
      return hoisting.turned(advance, *args) if self._calls > 1 else []

    def advance_with(variables, turned, *args, axis_name=None):
      del axis_name
      if not turned:
        return advance(variables, *args)
      return hoisting.remaining(advance, variables, turned, *args)

    def look(rows, slot, key, eps, *, axis_name=None):
      del axis_name
      status = attack.status(problem_of(rows, key, eps), slot.state)
      return status._replace(done=done(slot))

    def images(rows, slot, key, eps, *, axis_name=None):
      del axis_name
      return attack.images(problem_of(rows, key, eps), slot.state)

    compiled = parallel.compile
    self._start = compiled(start, (_S, _R, _R), _S)
    self._admit = compiled(admit, (_S, _S, _S, _R, _R), _S)
    self._turn = compiled(turn, (_R, _S, _S, _R, _R, _R, _R), _R)
    self._advance = compiled(
        advance_with, (_R, _R, _S, _S, _R, _R, _R, _R), _S, donate=(3,))
    self._look = compiled(look, (_S, _S, _R, _R), _S)
    self._images = compiled(images, (_S, _S, _R, _R), _S)

  def run(self, variables: Any, key: jax.Array, eps: float, x: np.ndarray,
          y: np.ndarray, logits: np.ndarray, scores: np.ndarray,
          tasks: collections.deque[tuple[int, int]],
          tick: Callable[[int], None]) -> Iterator[Outcome]:
    """Yields the outcomes of (index, attempt) tasks until there are no more.

    Args:
      variables: of the model, on every device.
      key: typed PRNG key of this attack.
      eps: radius.
      x: images `[N, ...]`.
      y: int32 labels `[N]`.
      logits: `[N, K]`, on these images.
      scores: `[N, K]`, of `Attack.class_scores`.
      tasks: taken from the left; the caller may append to it meanwhile.
      tick: called with the steps taken, over all images.
    """
    place, gather = self._parallel.replicate, self._parallel.gather
    key, eps = place(key), place(np.asarray(eps, x.dtype))
    size = self._fitting(len(tasks))
    rows = _Rows(*(np.zeros((size, *like.shape[1:]), like.dtype)
                   for like in (x, y, y, y, logits, scores)))
    rows.x[:] = x[0]  # A valid image in slots that stay empty.
    used, state, turned, steps = np.zeros(size, bool), None, None, 0
    while True:
      # Rows may share their memory with a device. Nothing reads them now: what
      # did has been looked at.
      fresh = np.zeros(len(used), bool)
      for slot in np.flatnonzero(~used):
        if not tasks:
          break
        index, attempt = tasks.popleft()
        for filled, new in zip(rows, (
            x[index], y[index], index, attempt, logits[index], scores[index]),
                               strict=True):
          filled[slot] = new
        used[slot] = fresh[slot] = True
      if not used.any():
        return
      smaller = self._fitting(int(used.sum()))
      if smaller <= len(used) // _SHRINK and state is not None:
        kept = np.argsort(~used, kind='stable')[:smaller]
        rows, used, fresh, state = jax.tree.map(
            lambda array, kept=kept: array[kept],
            (rows, used, fresh, gather(state)))
        state = self._parallel.shard(state)
        sharded = self._parallel.shard(rows)
      if fresh.any():
        sharded = self._parallel.shard(rows)
        state = (self._start(sharded, key, eps) if state is None else
                 self._admit(sharded, self._parallel.shard(fresh), state, key,
                             eps))
      model_key = place(jax.random.fold_in(key, steps)) if (
          self._attack.stochastic) else None
      if turned is None:
        turned = self._turn(variables, sharded, state, key, eps, model_key,
                            np.int32(0))
      for call in range(self._calls):
        state = self._advance(variables, turned, sharded, state, key, eps,
                              model_key, np.int32(call * self._call_steps))
      steps += self._calls * self._call_steps
      tick(int(used.sum()) * self._calls * self._call_steps)
      done, fooled, finite, zero = gather(
          self._look(sharded, state, key, eps))
      leaving = used & done
      if (leaving & fooled).any():
        images = gather(self._images(sharded, state, key, eps))
      used &= ~leaving
      for slot in np.flatnonzero(leaving):
        yield Outcome(
            index=int(rows.index[slot]), attempt=int(rows.attempt[slot]),
            fooled=bool(fooled[slot]),
            image=images[slot].copy() if fooled[slot] else None,
            finite=bool(finite[slot]), zero_gradient=bool(zero[slot]))

  def _fitting(self, count):
    """Returns the smallest number of slots that holds `count` images."""
    return next((size for size in self._sizes if size >= count),
                self._sizes[-1])


def _sizes(batch_size, num_devices, fine):
  """Returns the numbers of slots in use, ascending; each compiles once.

  For few images and for the end of an attack the batch is halved, up to four
  times. They depend on the batch size only, so that the next data set, or the
  next robust ones of this, find all of them compiled.

  Args:
    batch_size: over all devices.
    num_devices: that share it.
    fine: whether there are all numbers up to eight and eighths of the batch
      besides, for CPUs: there an empty slot costs as much as another.
  """
  per_device = batch_size // num_devices
  sizes = {-(-per_device // 2 ** halvings) for halvings in range(5)}
  if fine:
    sizes |= set(range(1, min(per_device, 8) + 1))
    sizes |= {-(-per_device * i // 8) for i in range(1, 9)}
  return sorted(size * num_devices for size in sizes)
