"""Steps write their results over the state that they are given."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ferd_jax.core import memory
from ferd_jax.distillation import distill
from ferd_jax.models import frozen as frozens

# Of XLA's bookkeeping, and results that are no part of the state.
_MORE = 1 << 12


def _taken(mode):
  """Returns the donated states and functions of both steps, with arguments."""
  run = tiny.build(tiny.config(parallel=mode), 1 if mode == 'jit' else 4)
  method, steps = run.method, run.steps
  state, place = run.initial_state(0), run.parallel.replicate
  frozen = frozens.Frozen(run.place_teachers(),
                          jax.tree.map(jnp.copy, state.student.variables),
                          jnp.copy(state.epoch))
  size, key = method.synthesis.batch_size, place(jax.random.key(3))
  phase = steps.begin(state.synthesis, state.sampler.probs,
                      run.parallel.shard(np.arange(size)), key)
  batch = distill.StudentBatch(*run.parallel.shard(
      (np.full((8, *method.image_shape), 0.5, np.float32),
       np.zeros(8, np.int32))))
  return {'generator': (steps.generate, (phase, frozen, key)),
          'student': (steps.student, (state.student, batch,
                                      frozen.replace(student=None), key))}


@pytest.mark.parametrize('mode', [
    'pmap', *(pytest.param(mode, marks=pytest.mark.slow)
              for mode in ('jit', 'shard_map'))])
def test_donated_states_are_used_up(mode):
  for name, (step, args) in _taken(mode).items():
    leaves = jax.tree.leaves(args[0])
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # JAX's, of what it could not use.
      state, *_ = jax.block_until_ready(step(*args))
    assert jax.tree.structure(state) == jax.tree.structure(args[0])
    # What a compiler folds away was not given to it.
    kept = [leaf for leaf in leaves if not leaf.is_deleted()]
    assert len(kept) < len(leaves) / 20, name
    assert memory.size(kept) < _MORE, name


@pytest.mark.slow
def test_nothing_of_a_state_is_copied():
  for name, (step, args) in _taken('jit').items():
    lowered = step.lower(*args)
    # Of a program that was loaded XLA does not say it.
    jax.config.update('jax_enable_compilation_cache', False)
    try:
      found = lowered.compile().memory_analysis()
    finally:
      jax.config.update('jax_enable_compilation_cache', True)
    size = memory.size(args[0])
    assert size - _MORE < found.alias_size_in_bytes <= size + _MORE, name
