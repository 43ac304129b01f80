"""What `precision = 'bfloat16'` changes of a run: a little, step by step."""

import as_if_trained
import jax
import jax.numpy as jnp
import noting
import numpy as np
import pytest
import tiny

from ferd_jax import train
from ferd_jax.core import scalars
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens


def _settings(**changes):
  changes = {'warmup_epochs': 0, 'synthesis.bottleneck.mask': 'per_sample',
             'synthesis.bottleneck.learning_rate': 6.} | changes
  return tiny.config(**changes)


@pytest.fixture(scope='module')
def taken():
  """Returns what one step of each phase comes to, by precision."""
  found = {}
  for precision in ('float32', 'bfloat16'):
    run = tiny.build(_settings(precision=precision))
    method, steps = run.method, run.steps
    state = run.initial_state(0)
    teacher = as_if_trained.random_variables(
        run.teacher.model, method.image_shape, seed=1)
    frozen = frozens.Frozen({frozens.ROBUST: teacher}, state.student.variables,
                            state.epoch)
    size, key = method.synthesis.batch_size, jax.random.key(3)
    phase = steps.begin(state.synthesis, state.sampler.probs,
                        jnp.arange(size), key)
    phase, synthesis = steps.generate(phase, frozen, key)
    images = np.random.default_rng(0).random(
        (size, *method.image_shape), np.float32)
    labels = np.arange(size, dtype=np.int32)
    attacked = steps.attack(teacher, key, images, labels)
    measured = steps.measure(attacked, labels, teacher)
    student, distill, _ = steps.student(
        state.student, train.distill.StudentBatch(images, labels),
        frozen.replace(student=None), key)
    found[precision] = {
        'phase': phase, 'student': student, 'measured': measured,
        'attacked': attacked - images,
        'metrics': synthesis.read() | {
            f'student_{name}': value for name, value in distill.read().items()}}
  return found


def test_states_keep_their_types(taken):
  for one, other in zip(jax.tree.leaves(taken['float32']),
                        jax.tree.leaves(taken['bfloat16']), strict=True):
    assert jnp.result_type(one) == jnp.result_type(other)
    assert jnp.result_type(other) != jnp.bfloat16


def _distances(taken, pick):
  """Returns by path how far apart arrays are, relative to their norm."""
  trees = (pick(taken[precision]) for precision in ('bfloat16', 'float32'))
  return {
      jax.tree_util.keystr(path):
      float(np.linalg.norm(one - other) / (np.linalg.norm(other) + 1e-6))
      for (path, one), other in zip(
          *(f(tree) for f, tree in zip(
              (jax.tree_util.tree_leaves_with_path, jax.tree.leaves), trees,
              strict=True)), strict=True)}


def test_losses_are_close(taken):
  exact, found = (taken[precision]['metrics']
                  for precision in ('float32', 'bfloat16'))
  losses = [name for name in exact if name.endswith(
      ('loss', 'bn', 'oh', 'adv', 'uni'))]
  assert len(losses) >= 7
  for name in losses:
    assert found[name] == pytest.approx(exact[name], rel=0.02, abs=2e-3), name
  assert found != exact


def test_gradients_are_close(taken):
  # First moments after one step are multiples of the gradients.
  generator = _distances(
      taken, lambda one: one['phase'].generator.opt_state[0].mu)
  student = _distances(taken, lambda one: one['student'].opt_state)
  for name, distance in (generator | student).items():
    assert distance < 0.2, name
  assert max(student.values()) > 1e-4


def test_statistics_are_close(taken):
  for name, distance in _distances(
      taken, lambda one: one['student'].variables['batch_stats']).items():
    assert distance < 0.01, name


def test_attacks_are_close(taken):
  exact, found = (taken[precision] for precision in ('float32', 'bfloat16'))
  # Where a gradient is about 0, its sign is another.
  moved = np.abs(exact['attacked'] - found['attacked']) > 1e-3
  assert moved.mean() < 0.05
  np.testing.assert_array_equal(found['measured'].counts,
                                exact['measured'].counts)
  np.testing.assert_allclose(found['measured'].values,
                             exact['measured'].values, rtol=0.05,
                             atol=0.05)


def test_evaluations_are_in_float32():
  run = tiny.build(_settings(precision='bfloat16'))
  bfloat16 = jnp.dtype(jnp.bfloat16)
  settings = run.method.distillation
  assert settings.student.dtype == bfloat16
  assert settings.teachers[frozens.ROBUST].dtype == bfloat16
  assert run.method.synthesis.teacher.dtype == bfloat16
  assert run.method.synthesis.generator_module.dtype == bfloat16
  models = run.models(None)
  assert len(models) == 2
  for model, _ in models.values():
    assert model.dtype is None
  assert tiny.build(_settings()).method.synthesis.generator_module.dtype is None


def test_precision_that_there_is_not():
  with pytest.raises(ValueError, match="precision='float16'"):
    tiny.build(_settings(precision='float16'))


def test_a_network_without_it_is_said(tmp_path, monkeypatch):
  monkeypatch.setattr(forward, 'in_precision', lambda model, _: model)
  run = tiny.claim(_settings(precision='bfloat16', num_epochs=1,
                             **{'synthesis.steps': 1, 'distill.steps': 1}),
                   tmp_path)
  notes = noting.Reporter()
  train.train(run, tmp_path, stop_after=0, reporter=notes)
  lines = [line for line in notes.lines if 'precision' in line]
  assert lines == [
      f'Warning: precision=bfloat16 changes nothing about the {name} TwoLayers,'
      ' which has no field dtype or does not give it to its layers.'
      for name in ('student', 'teacher')]


def test_scalars_stay_float32():
  found = scalars.Scalars.of({'loss': jnp.float32(1.5)})
  assert found.values.dtype == jnp.float32
