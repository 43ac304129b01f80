"""What changes while training, as one explicit pytree."""

from collections.abc import Callable
import enum
import functools
from typing import Any

import flax.struct
import jax
import numpy as np

from ferd_jax import models
from ferd_jax.core import parallel as parallels
from ferd_jax.distillation import distill
from ferd_jax.run import method as methods


class Once(enum.IntEnum):
  """What is random, but not part of an epoch."""
  STUDENT = 0
  EVALUATION = 1
  TEACHER = 2
  SYNTHESIS = 3


def key_once(root: jax.Array, purpose: Once) -> jax.Array:
  """Returns the key of a purpose; those of epochs, from 1, are apart."""
  return jax.random.fold_in(jax.random.fold_in(root, 0), purpose)


class TrainState(flax.struct.PyTreeNode):
  """State of a run between epochs: all that a checkpoint holds but the pool.

  Attributes:
    student: variables, optimiser and the state of the outer loss.
    sampler: of the sampler, with the class probabilities.
    synthesis: what the synthesis keeps between epochs.
    epoch: int32 scalar, epochs completed.
    key: root PRNG key; it never changes. Whatever is random in an epoch comes
      from it by `fold_in` of epoch and step, so a resumed run is exact.
  """
  student: distill.StudentState
  sampler: Any
  synthesis: Any
  epoch: jax.Array
  key: jax.Array


def initialiser(method: methods.Method) -> Callable[[int], TrainState]:
  """Returns what makes the state before the first epoch of a seed.

  It is placed on the devices, and compiled once.
  """
  parallel = method.parallel
  # Compiled, so that on several processes the state is made where it lives.
  initial = parallel.compile(
      functools.partial(_initial, method), (parallels.REPLICATED,),
      parallels.REPLICATED)
  def init(seed):
    return placed(method, initial(parallel.replicate(jax.random.key(seed))))
  return init


def shapes(method: methods.Method) -> TrainState:
  """Returns shapes and types of that state; nothing is computed."""
  return jax.eval_shape(functools.partial(_initial, method), jax.random.key(0))


def _initial(method, key, *, axis_name=None):
  del axis_name  # Every device computes the same.
  variables = models.init_variables(
      method.distillation.student, key_once(key, Once.STUDENT),
      method.image_shape)
  return TrainState(
      student=distill.init(method.distillation, variables, method.num_classes),
      sampler=method.sampler.init(method.num_classes),
      synthesis=method.synthesis.init(key_once(key, Once.SYNTHESIS)),
      epoch=jax.numpy.zeros([], jax.numpy.int32), key=key)


def placed(method: methods.Method, state: TrainState) -> TrainState:
  """Returns a state, all of it on every device, with its examples sharded."""
  return state.replace(synthesis=_per_example(
      method, state.synthesis,
      lambda leaf: method.parallel.shard(np.asarray(leaf))))


def gathered(method: methods.Method, state: TrainState) -> TrainState:
  """Returns a state with its examples on every device, as checkpoints hold it.

  They can then be restored on any number of devices.
  """
  parallel = method.parallel
  return state.replace(synthesis=_per_example(
      method, state.synthesis,
      lambda leaf: parallel.replicate(parallel.gather(leaf))))


def _per_example(method, kept, place):
  """Applies a function to the leaves of `kept` that belong to examples."""
  specs = jax.tree.broadcast(method.synthesis.specs()[0], kept)
  return jax.tree.map(
      lambda spec, leaf: place(leaf) if spec is parallels.SHARDED else leaf,
      specs, kept)


def without_keys(state: TrainState) -> TrainState:
  """Returns a state with the data of PRNG keys in their place, as on disk."""
  def data(leaf):
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key_data(leaf)
    return leaf
  return jax.tree.map(data, state)


def host_key(state: TrainState) -> jax.Array:
  """Returns the root key on this host's default device."""
  return jax.random.wrap_key_data(np.asarray(jax.random.key_data(state.key)))
