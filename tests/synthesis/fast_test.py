"""Tests of ferd_jax.synthesis.fast: meta gradients and running moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher_and_student as nets

from ferd_jax.core import augment
from ferd_jax.synthesis import base
from ferd_jax.synthesis import fast

PART = nets.make(fast.Fast, generator_steps=2, reset_epoch=0)
UNIFORM = jnp.full(nets.CLASSES, 1 / nets.CLASSES)
pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def frozen():
  return nets.networks()


step = nets.jit(fast.Fast.step, static_argnums=0)
begin = nets.jit(fast.Fast.begin, static_argnums=0)


def start_of(part, kept, seed=0):
  return begin(part, kept, UNIFORM, np.arange(nets.BATCH),
               jax.random.key(seed))


@pytest.fixture(scope='module')
def kept():
  return jax.tree.map(
      lambda leaf: leaf.astype(jnp.float64)
      if leaf.dtype == jnp.float32 else leaf, PART.init(jax.random.key(0)))


@pytest.fixture(scope='module')
def phases(kept, frozen):
  """Returns the phase at its start and after each of two steps."""
  found = [start_of(PART, kept)]
  for number in range(2):
    found.append(step(PART, found[-1], frozen, jax.random.key(number))[0])
  return found


def test_defaults_are_those_of_the_original():
  part = fast.Fast(**{name: value for name, value in nets.GIVEN.items()
                      if name in ('teacher', 'student', 'image_shape', 'pad',
                                  'flip', 'warmup_epochs', 'student_steps')})
  assert (part.w_bn, part.w_oh, part.w_adv) == (10., 0.5, 1.33)
  assert (part.generator_steps, part.generator_lr, part.latent_lr) == (
      5, 3e-3, 0.01)
  assert part.rounds == base.Rounds(5, 6) and part.nz == 256
  assert (part.meta, part.momentum, part.reset_epoch) == ('fomaml', 0.9, 140)


def test_a_phase_starts_from_the_meta_generator(kept, phases):
  for one, two in zip(jax.tree.leaves(phases[0].generator.params),
                      jax.tree.leaves(kept.params), strict=True):
    np.testing.assert_array_equal(one, two)
  assert not any(map(np.any, jax.tree.leaves(phases[0].extra.gradient)))
  assert not any(map(np.any, jax.tree.leaves(phases[0].generator.opt_state)))


def test_fomaml_descends_the_sum_of_the_copy_s_gradients(kept, phases):
  # Adam's mean gradients tell each step's: m1 = g1 / 2, m2 = m1 / 2 + g2 / 2.
  mu = [phase.generator.opt_state[0].mu for phase in phases]
  total = jax.tree.map(lambda m1, m2: 2 * m1 + (2 * m2 - m1), *mu[1:])
  for got, expected in zip(jax.tree.leaves(phases[-1].extra.gradient),
                           jax.tree.leaves(total), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
  meta = optax.adam(2 * PART.generator_lr, b1=0.5)
  updates, _ = meta.update(total, meta.init(kept.params))
  new = PART.end(kept, phases[-1])
  for got, expected in zip(
      jax.tree.leaves(new.params),
      jax.tree.leaves(optax.apply_updates(kept.params, updates)), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
  assert new.phases == 1 and int(new.opt_state[0].count) == 1


def test_fomaml_of_one_step_is_the_plain_gradient(phases):
  first = phases[1]
  for got, expected in zip(
      jax.tree.leaves(first.extra.gradient),
      jax.tree.leaves(first.generator.opt_state[0].mu), strict=True):
    np.testing.assert_allclose(got, 2 * expected, rtol=1e-6, atol=1e-12)


def test_reptile_descends_the_way_back(kept, phases):
  part = dataclasses.replace(PART, meta='reptile')
  new = part.end(kept, phases[-1])
  way = jax.tree.map(lambda start, end: 67 * (start - end), kept.params,
                     phases[-1].generator.params)
  for got, expected in zip(jax.tree.leaves(new.opt_state[0].mu),
                           jax.tree.leaves(way), strict=True):
    np.testing.assert_allclose(got, 0.5 * expected, rtol=1e-6, atol=1e-12)
  # A copy that went nowhere teaches nothing.
  still = part.end(kept, phases[0])
  for got, expected in zip(jax.tree.leaves(still.params),
                           jax.tree.leaves(kept.params), strict=True):
    np.testing.assert_array_equal(got, expected)


def _moments(seed):
  rng = np.random.default_rng(seed)
  return {layer: {name: rng.uniform(size=4) for name in ('mean', 'var')}
          for layer in ('conv1_bn', 'conv2_bn')}


def test_running_moments():
  now, before = _moments(0), _moments(1)
  got = fast.followed(now, before, 0.9, first=jnp.asarray(False))
  np.testing.assert_allclose(
      got['conv1_bn']['var'],
      0.9 * before['conv1_bn']['var'] + 0.1 * now['conv1_bn']['var'])
  for momentum, first in ((0., False), (0.9, True)):
    got = fast.followed(now, before, momentum, first=jnp.asarray(first))
    np.testing.assert_allclose(got['conv2_bn']['mean'],
                               now['conv2_bn']['mean'])
  # A batch that is as the ones before changes nothing.
  got = fast.followed(now, now, 0.9, first=jnp.asarray(False))
  np.testing.assert_allclose(got['conv2_bn']['mean'], now['conv2_bn']['mean'])


@pytest.mark.parametrize('first', [True, False])
def test_loss_by_hand(frozen, first):
  keys, average = nets.keys(), _moments(0)
  got = nets.jit(lambda images: fast.running_loss(
      PART, images, nets.LABELS, keys, frozen, average,
      first=jnp.asarray(first), adversarial=jnp.asarray(not first)))(
          nets.images())
  view = augment.random_crop_flip(keys, nets.images(), pad=2)
  teacher, student, moments = nets.logits(frozen, view)
  equal = np.array(np.argmax(teacher, -1) == np.argmax(student, -1))
  assert equal.any()
  running = moments if first else jax.tree.map(
      lambda old, new: 0.9 * old + 0.1 * np.array(new), average, moments)
  expected = {
      'bn': nets.gap(running, nets.teacher_of(frozen)['batch_stats']),
      'oh': nets.entropy_of_labels(teacher, nets.LABELS),
      'adv': 0. if first else -float(
          (nets.kl(teacher, student) * equal).mean())}
  assert {name: float(got.metrics[name]) for name in expected
          } == pytest.approx(expected)
  np.testing.assert_allclose(
      got.metrics['loss'], 10 * expected['bn'] + 0.5 * expected['oh']
      + 1.33 * expected['adv'])
  # Those of this batch are what the average will get.
  np.testing.assert_allclose(got.aux['conv1_bn']['var'],
                             moments['conv1_bn']['var'])


def test_moments_are_kept_from_phase_to_phase(kept, phases, frozen):
  last = phases[-1].extra.moments
  new = PART.end(kept, phases[-1])
  np.testing.assert_allclose(new.moments['conv2_bn']['mean'],
                             last['conv2_bn']['mean'])
  phase = start_of(PART, new, 1)
  phase, _ = step(PART, phase, frozen, jax.random.key(3))
  third = PART.end(new, phase)
  np.testing.assert_allclose(
      third.moments['conv2_bn']['mean'],
      0.9 * new.moments['conv2_bn']['mean']
      + 0.1 * phase.extra.moments['conv2_bn']['mean'])


@pytest.mark.parametrize(('epoch', 'counts'), [(0, False), (1, True)])
def test_student_counts_from_the_last_warm_up_epoch(phases, frozen, epoch,
                                                    counts):
  _, metrics = step(PART, phases[0], frozen.replace(epoch=jnp.asarray(epoch)),
                    jax.random.key(0))
  equal = np.allclose(metrics['adv'], 0)
  assert equal != counts


def test_first_layers_are_drawn_anew_once(kept):
  part = dataclasses.replace(PART, reset_epoch=3)
  for phases in range(4):
    phase = start_of(part, kept.replace(phases=jnp.int32(phases)))
    assert all(np.array_equal(a, b) for a, b in zip(
        jax.tree.leaves(phase.extra.params),
        jax.tree.leaves(phase.generator.params), strict=True))
    for name, layer in phase.extra.params.items():
      same = all(np.array_equal(a, b) for a, b in zip(
          jax.tree.leaves(layer), jax.tree.leaves(kept.params[name]),
          strict=True))
      resets = phases == 2 and name in ('l1_0', 'conv_blocks_0')
      assert same != resets, (phases, name)
      if resets and 'scale' in layer:
        assert abs(np.mean(layer['scale'])) < 0.1  # Around 0, not 1.


@pytest.mark.parametrize(('options', 'message'), [
    ({'meta': 'maml'}, "meta='maml'"), ({'momentum': 2.}, 'momentum=2.0'),
    ({'generator_steps': 0}, 'generator_steps=0'),
    ({'reset_epoch': -1}, 'reset_epoch=-1'), ({'w_oh': -1.}, 'w_oh=-1.0'),
    ({'w_bn': 0., 'w_oh': 0., 'w_adv': 0.}, 'w_bn=0.0 or one')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)
