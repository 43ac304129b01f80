"""Tests of ferd_jax.synthesis.on_the_fly, and of the four methods on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.synthesis import base
from ferd_jax.synthesis import dafl
from ferd_jax.synthesis import dfad
from ferd_jax.synthesis import dfq
from ferd_jax.synthesis import on_the_fly
from ferd_jax.synthesis import zskt

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def frozen():
  return nets.networks()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bright(on_the_fly.OnTheFly):
  """Wants bright images."""
  w_dark: float = 2.

  weights = property(lambda self: {'dark': self.w_dark})

  def rate_of_epoch(self, epoch):
    return 1 / (1 + epoch)

  def terms(self, images, frozen, *, axis_name=None):
    del frozen, axis_name
    return {'dark': -jnp.mean(images)}


PART = nets.make(Bright, student_steps_per_round=3)


@pytest.fixture(scope='module')
def run(frozen):
  """Returns what was kept at first, and the phase after each of two steps."""
  kept = nets.jit(PART.init)(jax.random.key(0))
  phases = [PART.begin(kept, None, np.arange(nets.BATCH), jax.random.key(9))]
  step, found = nets.jit(PART.step), []
  for number in range(2):
    phase, metrics = step(phases[-1], frozen, jax.random.key(number))
    phases.append(phase)
    found.append(metrics)
  return kept, phases, found


def generate(generator, latents):
  return PART.generator_module.apply(
      {'params': generator.params, 'batch_stats': generator.batch_stats},
      latents)


def test_rounds_and_defaults():
  assert PART.rounds == base.Rounds(1, 3, per_epoch=2, pooled=False)
  assert not PART.samples_labels
  assert PART.specs()[0] is base.REPLICATED


def test_a_step_takes_new_latents_and_adam_s_first_is_the_rate(run):
  kept, phases, found = run
  assert len({float(phase.latents[0, 0]) for phase in phases}) == 3
  moved = np.concatenate([
      np.abs(new - old).ravel() for new, old in zip(
          jax.tree.leaves(phases[1].generator.params),
          jax.tree.leaves(kept.params), strict=True)])
  # In the sixth epoch it is a sixth of 1e-3.
  assert moved.max() <= 1e-3 / 6 * (1 + 1e-3)  # rounded in float32
  np.testing.assert_allclose(np.median(moved[moved > 0]), 1e-3 / 6, rtol=1e-3)
  images = generate(kept, phases[1].latents)
  np.testing.assert_allclose(found[0]['dark'], -np.mean(images))
  np.testing.assert_allclose(found[0]['loss'], -2 * np.mean(images))


def test_fresh_images_and_those_of_a_round(run, frozen):
  _, phases, _ = run
  state, keys = phases[-1], [jax.random.key(seed) for seed in range(2)]
  first, second = (nets.jit(PART.images)(state, frozen, key)[0]
                   for key in keys)
  assert not np.isclose(first, second).all()
  assert PART.images(state, frozen, keys[0])[1] is None
  held = dataclasses.replace(PART, fresh=False)
  for key in keys:
    np.testing.assert_allclose(
        nets.jit(held.images)(state, frozen, key)[0],
        generate(state.generator, state.latents), atol=1e-12)


def test_generator_and_optimiser_are_kept(run):
  _, phases, _ = run
  kept = PART.end(None, phases[-1])
  assert kept is phases[-1].generator
  assert int(kept.opt_state[0].count) == 2
  wide = dataclasses.replace(PART, wide_start=True)
  module, network, variables = wide.generator(kept)
  assert network.build() == module and module.wide_start
  assert variables['params'] is kept.params
  # A start that is not wide is said by nothing.
  assert 'wide_start' not in PART.generator(kept)[1].options


@pytest.mark.parametrize(('options', 'message'), [
    ({'w_dark': -1.}, 'w_dark=-1.0 >= 0'), ({'w_dark': 0.}, 'w_dark=0.0 or'),
    ({'width': 5}, 'width=5'), ({'generator_lr': 0.}, 'generator_lr=0.0'),
    ({'beta1': 1.5}, 'beta1=1.5'), ({'generator_steps': 0}, 'steps=0'),
    ({'image_shape': (6, 6, 1)}, 'divisible by 4'),
    ({'student_steps_per_round': 4}, 'per_round=4 to divide')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)


X = nets.images()


def found_terms(part, frozen):
  return jax.tree.map(float, nets.jit(part.terms)(X, frozen))


def test_dafl(frozen):
  part = nets.make(dafl.Dafl)
  assert part.rounds == base.Rounds(1, 1, per_epoch=6, pooled=False)
  assert (part.weights, part.generator_lr, part.beta1) == (
      {'oh': 0.05, 'balance': 5., 'act': 0.01}, 0.02, 0.9)
  logits, _, _ = nets.logits(frozen, X)
  head = nets.teacher_of(frozen)['params']['head']
  features = nets.jit(lambda x: nets.MODEL.apply(
      nets.teacher_of(frozen), x, stop='conv2'))(X).mean((1, 2))
  np.testing.assert_allclose(features @ head['kernel'] + head['bias'][None],
                             logits)
  got = found_terms(part, frozen)
  expected = {
      'oh': nets.entropy_of_labels(logits, np.argmax(logits, -1)),
      'balance': nets.balance(logits) / np.log(10),
      'act': -np.abs(features).mean()}
  assert got == pytest.approx(expected)
  assert set(found_terms(nets.make(dafl.Dafl, w_act=0.), frozen)) == {
      'oh', 'balance'}


def test_zskt(frozen):
  part = nets.make(zskt.Zskt)
  assert not part.fresh and part.student_steps_per_round == 10
  teacher, student, _ = nets.logits(frozen, X)
  assert found_terms(part, frozen) == pytest.approx(
      {'adv': -nets.kl(teacher, student).mean() / nets.CLASSES})
  np.testing.assert_allclose(part.rate_of_epoch(jnp.asarray(5)), 0.5)
  assert dataclasses.replace(part, cosine=False).rate_of_epoch(5) == 1
  # A gradient of norm 500 is one of norm 5.
  gradient = jnp.array([300., 400.])
  adam = nets.make(zskt.Zskt, clip_norm=1e9).optimizer
  got, _ = part.optimizer.update(gradient, part.optimizer.init(gradient))
  _, state = part.optimizer.update(gradient, part.optimizer.init(gradient))
  np.testing.assert_allclose(state[1][0].mu, [0.3, 0.4])
  expected, _ = adam.update(gradient / 100, adam.init(gradient))
  np.testing.assert_allclose(got, expected)


def test_dfad(frozen):
  part = nets.make(dfad.Dfad, student_steps=10)
  teacher, student, _ = nets.logits(frozen, X)
  assert found_terms(part, frozen) == pytest.approx(
      {'adv': -np.abs(np.array(teacher) - np.array(student)).mean()})
  rates = [float(part.rate_of_epoch(jnp.asarray(epoch)))
           for epoch in (0, 1, 2, 3, 4, 9)]
  np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01])
  assert dataclasses.replace(part, milestones=()).rate_of_epoch(9) == 1


def test_dfq(frozen):
  part = nets.make(dfq.Dfq)
  assert part.generator_module.wide_start
  assert part.weights == {'bn': 1., 'oh': 1., 'adv': 1., 'balance': 20.}
  teacher, student, moments = nets.logits(frozen, X)
  assert found_terms(part, frozen) == pytest.approx({
      'bn': nets.gap(moments, nets.teacher_of(frozen)['batch_stats']),
      'oh': nets.entropy_of_labels(teacher, np.argmax(teacher, -1)),
      # The student's, not the teacher's a second time, which would be 0.
      'adv': -nets.kl(teacher, student).mean(),
      'balance': nets.balance(teacher)})
