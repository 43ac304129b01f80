"""Tests of ferd_jax.synthesis.deepinversion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.synthesis import base
from ferd_jax.synthesis import deepinversion

PART = nets.make(deepinversion.DeepInversion, steps=4, roll=0, w_l2=0.5,
                 w_js=2.)
UNIFORM = jnp.full(nets.CLASSES, 1 / nets.CLASSES)
pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def frozen():
  return nets.networks()


begin = nets.jit(deepinversion.DeepInversion.begin, static_argnums=(0, 1))
step = nets.jit(deepinversion.DeepInversion.step, static_argnums=0)
loss = nets.jit(deepinversion.DeepInversion.loss, static_argnums=0)


@pytest.fixture(scope='module')
def start():
  return begin(PART, (), UNIFORM, np.arange(nets.BATCH), jax.random.key(0))


def test_defaults_are_those_of_the_original():
  part = deepinversion.DeepInversion(
      teacher=nets.MODEL, student=nets.MODEL, image_shape=nets.SHAPE,
      student_steps=6)
  assert (part.steps, part.learning_rate, part.w_bn, part.w_tv, part.roll) == (
      2000, 0.1, 100., 2.5e-5, 2)
  assert part.rounds == base.Rounds(2000, 6)
  assert part.generator(()) is None


def test_pixels_start_as_noise_and_stay_images(start):
  normal = start.pixels * PART.std + PART.mean
  assert normal.min() >= -1e-12 and normal.max() <= 1 + 1e-12
  many = begin(dataclasses.replace(PART, batch_size=500), (), UNIFORM,
               np.arange(500), jax.random.key(0))
  inside = np.abs(many.pixels) < 1.99
  np.testing.assert_allclose(inside.mean(), 0.954, atol=0.01)
  np.testing.assert_allclose(many.pixels.mean(), 0, atol=0.02)
  # Each class as often as any other.
  np.testing.assert_allclose(np.bincount(many.labels) / 500, 1 / 3, atol=0.01)
  images, labels = PART.images(start, None, None)
  np.testing.assert_allclose(images, normal, atol=1e-12)
  assert labels is start.labels


def _loss_by_hand(part, frozen, pixels, labels):
  x = np.array(pixels)
  teacher, student, moments = nets.logits(frozen, part.mean + part.std * x)
  differences = [x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1],
                 x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]]
  a, b = nets.softmax(np.array(student) / 3), nets.softmax(
      np.array(teacher) / 3)
  m = np.clip((a + b) / 2, 0.01, 0.99)
  a, b = np.clip(a, 0.01, 0.99), np.clip(b, 0.01, 0.99)
  js = 0.5 * (m * np.log(m / a) + m * np.log(m / b)).sum(-1).mean()
  terms = {
      'bn': nets.gap(moments, nets.teacher_of(frozen)['batch_stats']),
      'oh': nets.entropy_of_labels(teacher, np.array(labels)),
      'tv': (sum(np.abs(d).mean() for d in differences)
             if part.variation == 'l1' else
             sum(np.linalg.norm(d.ravel()) for d in differences)),
      'l2': np.linalg.norm(x.ravel()), 'js': min(js, 1)}
  weights = {'bn': part.w_bn, 'oh': part.w_oh, 'tv': part.w_tv,
             'l2': part.w_l2, 'js': -part.w_js}
  return sum(weights[name] * terms[name] for name in terms), terms


def test_loss_by_hand(start, frozen):
  for part in (PART, dataclasses.replace(PART, variation='l1', w_tv=3.)):
    got, metrics = loss(part, start.pixels, start.labels, frozen,
                        jax.random.key(1))
    expected, terms = _loss_by_hand(part, frozen, start.pixels, start.labels)
    np.testing.assert_allclose(got, expected)
    assert {name: float(metrics[name]) for name in terms} == pytest.approx(
        terms)


def test_best_and_last_pixels(start, frozen):
  for keep in ('best', 'last'):
    part = dataclasses.replace(PART, keep=keep)
    phases, losses = [start], []
    for number in range(3):
      phase, metrics = step(part, phases[-1], frozen, jax.random.key(number))
      phases.append(phase)
      losses.append(float(metrics['loss']))
    if keep == 'best':
      # Those before the update of the best step, whatever came later.
      expected = phases[int(np.argmin(losses))].pixels
      # A later step that is worse does not replace them.
      worse = phases[-1].replace(best_loss=jnp.asarray(-1e9))
      after, _ = step(part, worse, frozen, jax.random.key(5))
      np.testing.assert_array_equal(after.best_pixels, phases[-1].best_pixels)
    else:
      expected = phases[-1].pixels
    np.testing.assert_array_equal(phases[-1].best_pixels, expected)
    # Adam's first step is the rate, up to the range.
    moved = np.abs(phases[1].pixels - start.pixels)
    assert moved.max() <= 0.1 * (1 + 1e-6) and np.median(moved) > 0.099


def test_view_is_rolled(start, frozen):
  part = dataclasses.replace(PART, roll=2, roll_flip=True, w_bn=0., w_l2=0.,
                             w_js=0.)
  found = {round(float(loss(part, start.pixels, start.labels, frozen,
                            jax.random.key(seed))[0]), 9)
           for seed in range(6)}
  assert len(found) > 2


@pytest.mark.parametrize(('options', 'message'), [
    ({'w_bn': 0., 'w_oh': 0., 'w_js': 0.}, 'w_bn=0.0 or one'),
    ({'variation': 'l3'}, "variation='l3'"), ({'keep': 'first'}, "'first'"),
    ({'roll': -1}, 'roll=-1'), ({'roll': 8}, 'roll=8 in'),
    ({'std': 0.}, 'std=0.0'), ({'mean': 2.}, 'mean=2.0'),
    ({'steps': 0}, 'steps=0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)
