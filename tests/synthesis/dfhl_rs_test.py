"""Tests of ferd_jax.synthesis.dfhl_rs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import base
from ferd_jax.synthesis import dfhl_rs

PART = nets.make(dfhl_rs.DfhlRs)
pytestmark = pytest.mark.usefixtures('float64')


def test_defaults_are_those_of_the_original():
  assert (PART.w_oh, PART.w_balance, PART.smoothing) == (1., 3., 0.2)
  assert (PART.generator_lr, PART.latent_lr) == (2e-3, 0.01)
  assert PART.rounds == base.Rounds(10, 6)


@pytest.fixture(scope='module')
def phases():
  """Returns what was kept, and the phase before and after a step."""
  kept = PART.init(jax.random.key(0))
  phase = PART.begin(kept, jnp.full(3, 1 / 3), np.arange(nets.BATCH),
                     jax.random.key(1))
  # The teacher is not even there.
  frozen = nets.networks().replace(teachers={frozens.ROBUST: None})
  return kept, phase, *nets.jit(PART.step)(phase, frozen, jax.random.key(2))


def test_loss_is_the_student_s(phases):
  _, _, after, metrics = phases
  view, labels = after.examples.view, np.array(after.examples.labels)
  _, student, _ = nets.logits(nets.networks(), view)
  targets = np.full((nets.BATCH, 3), 0.1)
  targets[np.arange(nets.BATCH), labels] = 0.8
  oh = (targets * (np.log(targets) - np.log(nets.softmax(student)))).sum(-1)
  assert {name: float(metrics[name]) for name in ('oh', 'balance')
          } == pytest.approx({'oh': oh.mean(),
                              'balance': nets.balance(student) / np.log(10)})
  np.testing.assert_allclose(metrics['loss'],
                             metrics['oh'] + 3 * metrics['balance'])


def test_generator_is_never_reset_and_its_optimiser_is(phases):
  kept, before, after, _ = phases
  assert before.generator.params is kept['params']
  new = PART.end(kept, after)
  again = PART.begin(new, jnp.full(3, 1 / 3), np.arange(nets.BATCH),
                     jax.random.key(5))
  assert again.generator.params is after.generator.params
  assert not any(map(np.any, jax.tree.leaves(again.generator.opt_state)))
  assert int(after.generator.opt_state[0].count) == 1
  assert not np.isclose(again.examples.latents, after.examples.latents).any()


def test_images_are_those_before_the_view(phases):
  _, before, after, _ = phases
  images = PART.generator_module.apply(before.generator.variables,
                                       before.examples.latents,
                                       mutable=['batch_stats'])[0]
  np.testing.assert_allclose(after.examples.best_images, images, atol=1e-12)
  assert not np.allclose(after.examples.view, images)


@pytest.mark.parametrize(('options', 'message'), [
    ({'smoothing': 2.}, 'smoothing=2.0'),
    ({'generator_steps': 0}, 'generator_steps=0'),
    ({'w_oh': 0., 'w_balance': 0.}, 'w_oh=0.0 or')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)
