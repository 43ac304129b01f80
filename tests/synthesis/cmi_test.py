"""Tests of ferd_jax.synthesis.cmi: bank, head and loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.models import forward
from ferd_jax.synthesis import base
from ferd_jax.synthesis import cmi
from ferd_jax.synthesis import views

SIZE, WIDTH = 10, 8  # of the bank; features of two layers of four channels
PART = nets.make(cmi.Cmi, steps=2, bank_size=SIZE, bank_draws=3,
                 head_features=5)
pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def frozen():
  return nets.networks()


def test_defaults_are_those_of_the_original():
  part = cmi.Cmi(**{name: value for name, value in nets.GIVEN.items()
                    if name in ('teacher', 'student', 'image_shape', 'pad',
                                'flip', 'warmup_epochs', 'student_steps')})
  assert (part.w_bn, part.w_oh, part.w_adv, part.w_cr) == (1., 1., 0.5, 0.8)
  assert (part.bank_size, part.bank_draws, part.temperature) == (
      40_960, 4096, 0.2)
  assert part.rounds == base.Rounds(200, 6) and part.nz == 256


@functools.cache
def new():
  return nets.jit(PART.init)(jax.random.key(0))


begin = nets.jit(cmi.Cmi.begin, static_argnums=0)


def start_of(kept, seed=0):
  return begin(PART, kept, jnp.full(nets.CLASSES, 1 / nets.CLASSES),
               np.arange(nets.BATCH), jax.random.key(seed))


def memory(count):
  """Returns a memory whose entry i has i + 1 everywhere."""
  kept = new()
  bank = jnp.arange(1., SIZE + 1)[:, None, None] + jnp.zeros((SIZE, 2, WIDTH))
  filled = jnp.arange(SIZE)[:, None, None] < count
  return kept.memory.replace(bank=jnp.where(filled, bank, 0),
                             count=jnp.int32(count))


def test_draws_of_the_bank():
  draw = nets.jit(cmi.drawn_of_bank, static_argnums=1)
  drawn = set()
  for count, number in ((0, 3), (2, 3), (3, 3), (7, 3), (SIZE, 3), (25, 3),
                        (4, 99)):
    for seed in range(4):
      found, there = draw(memory(count), number, jax.random.key(seed))
      entries = np.array(found[:, 0, 0])
      assert len(entries) == min(number, SIZE)
      wanted = min(count, len(entries))
      assert there.sum() == wanted
      # Without replacement, of what there is.
      kept = entries[np.array(there)]
      assert len(set(kept)) == wanted and set(kept) <= set(
          range(1, min(count, SIZE) + 1))
      drawn |= set(kept) if count == SIZE else set()
  assert len(drawn) > 6


def test_bank_grows_and_wraps():
  kept = new()
  assert kept.memory.bank.shape == (SIZE, 2, WIDTH)
  for number in range(4):
    phase = start_of(kept, number)
    features = number * 10 + jnp.arange(4.)[:, None, None] + jnp.zeros(
        (4, 2, WIDTH))
    kept = PART.end(kept, phase.replace(
        extra=phase.extra.replace(best_features=features)))
    assert kept.memory.count == 4 * (number + 1)
  np.testing.assert_array_equal(
      kept.memory.bank[:, 0, 0],
      [22, 23, 30, 31, 32, 33, 12, 13, 20, 21])


def test_head_is_an_mlp_onto_the_sphere():
  params = jax.tree.map(np.array, memory(0).head)
  x = np.random.default_rng(0).normal(size=(4, WIDTH))
  hidden = np.maximum(
      x @ params['hidden']['kernel'] + params['hidden']['bias'], 0)
  out = hidden @ params['out']['kernel'] + params['out']['bias']
  np.testing.assert_allclose(
      PART.head.apply({'params': params}, x),
      out / np.linalg.norm(out, axis=-1, keepdims=True), rtol=1e-6)
  zeros = jax.tree.map(jnp.zeros_like, params)
  gradient = jax.grad(lambda x: jnp.sum(PART.head.apply(
      {'params': zeros}, x)))(jnp.asarray(x))
  assert not np.any(gradient)


def test_loss_by_hand(frozen):
  images, keys, state = nets.images(), nets.keys(), memory(2)
  cached, present = cmi.drawn_of_bank(state, 3, jax.random.key(0))
  got = nets.jit(lambda *args: PART.loss(*args))(
      images, state.head, nets.LABELS, keys, frozen, cached, present)
  global_keys, local_keys = (collectives.fold_in(keys, i) for i in range(2))
  view = augment.random_crop_flip(global_keys, images, pad=2)
  local = views.random_resized_crop(local_keys, images)
  np.testing.assert_allclose(got.view, view)

  def means(x):
    stop = nets.jit(lambda x: [
        forward.logits(nets.MODEL, nets.teacher_of(frozen), x, stop='conv1'),
        x])
    conv1 = nets.teacher_of(frozen)['params']['conv1']['kernel']
    def conv(x, kernel):
      return jax.lax.conv_general_dilated(
          x, kernel, (2, 2), ((1, 1), (1, 1)),
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    first, _ = stop(x)
    conv2 = nets.teacher_of(frozen)['params']['conv2']['kernel']
    return np.concatenate([conv(jnp.asarray(x), conv1).mean((1, 2)),
                           conv(first, conv2).mean((1, 2))], axis=-1)
  features = np.stack([means(local), means(view)], axis=1)
  np.testing.assert_allclose(got.aux, features)

  def project(x):
    return np.array(PART.head.apply({'params': state.head}, x))
  there = np.array(present)
  queries, answers = (project(np.concatenate([
      features[:, side], cached[there][:, side]])) for side in range(2))
  rows = nets.softmax(queries @ answers.T / 0.2)
  entropies = -np.log(np.diag(rows))
  teacher, student, moments = nets.logits(frozen, view)
  equal = np.array(np.argmax(teacher, -1) == np.argmax(student, -1))
  assert equal.any()
  expected = {
      'bn': nets.gap(moments, nets.teacher_of(frozen)['batch_stats']),
      'oh': nets.entropy_of_labels(teacher, nets.LABELS),
      'adv': -float((nets.kl(teacher, student) * equal).mean()),
      'cr': entropies[:4].mean() + entropies[4:].mean()}
  assert there.sum() == 2
  assert {name: float(got.metrics[name]) for name in expected
          } == pytest.approx(expected)
  np.testing.assert_allclose(
      got.metrics['loss'], expected['bn'] + expected['oh']
      + 0.5 * expected['adv'] + 0.8 * expected['cr'])


def test_features_of_the_best_step_enter_the_bank(frozen):
  phase = start_of(new())
  step = nets.jit(PART.step)
  first, _ = step(phase, frozen, jax.random.key(1))
  assert np.any(first.extra.best_features)
  heads = [each.extra.memory.head['out']['kernel'] for each in (phase, first)]
  # The head moves by its own Adam, its rate at most.
  assert 1e-4 < np.abs(heads[1] - heads[0]).max() <= 1e-3 * (1 + 1e-6)
  worse = first.replace(generator=first.generator.replace(
      best_loss=jnp.asarray(-1e9)))
  second, _ = step(worse, frozen, jax.random.key(2))
  np.testing.assert_array_equal(second.extra.best_features,
                                first.extra.best_features)
  np.testing.assert_array_equal(second.examples.best_images,
                                first.examples.best_images)
  assert int(second.extra.memory.opt_state[0].count) == 2


@pytest.mark.parametrize(('options', 'message'), [
    ({'bank_size': 3}, 'bank_size=3.*>= 4'), ({'bank_draws': 0}, 'draws=0'),
    ({'temperature': 0.}, 'temperature=0.0'), ({'w_adv': -1.}, 'w_adv=-1.0'),
    ({'features': 'pixels'}, "features='pixels'"), ({'steps': 0}, 'steps=0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)


def test_features_of_stages():
  part = dataclasses.replace(PART, features='stage_outputs')
  assert part.feature_size == 4 and PART.feature_size == WIDTH
