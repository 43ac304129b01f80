"""Tests of ferd_jax.synthesis.nayer: noisy layers, embeddings, phases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher_and_student as nets

from ferd_jax.synthesis import base
from ferd_jax.synthesis import nayer

BATCH, K = 7, nets.CLASSES
PART = nets.make(nayer.Nayer, batch_size=BATCH, generator_steps=2)
UNIFORM = jnp.full(K, 1 / K)
pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def frozen():
  return nets.networks()


begin = nets.jit(nayer.Nayer.begin, static_argnums=0)
step = nets.jit(nayer.Nayer.step, static_argnums=0)


@pytest.fixture(scope='module')
def kept():
  return nets.jit(PART.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def start(kept):
  return begin(PART, kept, UNIFORM, np.arange(BATCH), jax.random.key(1))


def test_defaults_are_those_of_the_original():
  part = nayer.Nayer(**{
      name: value for name, value in nets.GIVEN.items()
      if name in ('teacher', 'student', 'image_shape', 'pad', 'flip',
                  'warmup_epochs', 'student_steps', 'num_classes')})
  assert (part.w_bn, part.w_oh, part.w_adv) == (10., 0.5, 1.33)
  assert (part.generator_steps, part.batch_size, part.nz) == (30, 400, 1000)
  assert part.generator_lr == 4e-3 and part.module.layers == 134
  assert part.rounds == base.Rounds(30, 3, per_epoch=2)


def test_images_by_hand(start, frozen):
  params = start.kept.params
  embeddings = np.array(nets.teacher_of(frozen)['params']['head']['kernel']).T
  assert embeddings.shape == (K, 4) and params['noisy_kernel'].shape == (
      3, 4, 5)
  labels = np.array(start.labels)
  np.testing.assert_array_equal(
      labels, (labels[0] + np.arange(BATCH)) % K)
  x = embeddings[labels]
  # PyTorch's BatchNorm1d of the batch, then the layer of each turn.
  x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
  kernel, bias = params['noisy_kernel'], params['noisy_bias'] + 0.5
  latents = np.stack([x[i] @ kernel[i // K] + bias[i // K]
                      for i in range(BATCH)])
  expected = PART.generator_module.apply(
      {'params': params['generator'],
       'batch_stats': start.kept.batch_stats['generator']}, latents)
  got = PART.module.apply(
      {'params': params | {'noisy_bias': bias},
       'batch_stats': start.kept.batch_stats},
      embeddings, labels, np.arange(BATCH) // K)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_embeddings(kept, frozen):
  assert kept.embeddings == ()
  one_hot = dataclasses.replace(PART, embedding='one_hot')
  np.testing.assert_array_equal(one_hot._embeddings(kept, frozen), np.eye(K))
  gaussian = dataclasses.replace(PART, embedding='gaussian', embedding_size=9)
  first = gaussian.init(jax.random.key(0))
  assert first.embeddings.shape == (K, 9)
  assert gaussian._embeddings(first, frozen) is first.embeddings
  # They are the classes' for the whole run.
  phase = gaussian.begin(first, UNIFORM, np.arange(BATCH), jax.random.key(1))
  np.testing.assert_array_equal(gaussian.end(first, phase).embeddings,
                                first.embeddings)


def changed(one, other):
  return {name for name in one if any(
      not np.array_equal(a, b) for a, b in zip(
          jax.tree.leaves(one[name]), jax.tree.leaves(other[name]),
          strict=True))}


def test_noisy_layers_are_new_in_every_phase_and_the_rest_now_and_then(kept):
  # Two phases an epoch, all drawn anew every tenth epoch.
  trained = jax.tree.map(lambda leaf: leaf + 1, kept.params)
  for phases, expected in ((19, {'noisy_kernel', 'noisy_bias'}),
                           (20, set(kept.params)), (21, {'noisy_kernel',
                                                         'noisy_bias'})):
    phase = begin(PART, kept.replace(params=trained, phases=jnp.int32(phases)),
                  UNIFORM, np.arange(BATCH), jax.random.key(1))
    assert changed(phase.kept.params, trained) == expected
    kernel = phase.kept.params['noisy_kernel']
    np.testing.assert_allclose(np.std(kernel), 1, atol=0.2)
    assert not np.any(phase.kept.params['noisy_bias'])
    assert not any(map(np.any, jax.tree.leaves(phase.opt_state)))


def test_steps_train_everything_and_keep_the_best(start, frozen):
  phases, losses = [start], []
  for number in range(2):
    phase, metrics = step(PART, phases[-1], frozen, jax.random.key(number))
    phases.append(phase)
    losses.append(float(metrics['loss']))
  moved = np.abs(phases[1].kept.params['noisy_kernel']
                 - start.kept.params['noisy_kernel'])
  np.testing.assert_allclose(np.median(moved[moved > 0]), 4e-3, rtol=1e-3)
  best = phases[int(np.argmin(losses))]
  images = PART.module.apply(
      {'params': best.kept.params, 'batch_stats': best.kept.batch_stats},
      np.array(nets.teacher_of(frozen)['params']['head']['kernel']).T,
      best.labels, np.arange(BATCH) // K)
  np.testing.assert_allclose(phases[-1].best_images, images, rtol=1e-5,
                             atol=1e-6)
  end = PART.end(start.kept, phases[-1])
  assert end.phases == 1
  np.testing.assert_allclose(end.moments['conv1_bn']['mean'],
                             phases[-1].moments['conv1_bn']['mean'])
  # The student counts after the warm-up, not before.
  for epoch, counts in ((1, False), (2, True)):
    _, metrics = step(PART, start, frozen.replace(epoch=jnp.asarray(epoch)),
                      jax.random.key(0))
    assert (abs(float(metrics['adv'])) > 1e-9) == counts


def test_what_is_exported_follows_the_noisy_layers(kept):
  module, network, variables = PART.generator(kept)
  assert network.build() == module and network.options['nz'] == 5
  assert module.apply(variables, np.zeros((2, 5))).shape == (2, *nets.SHAPE)


@pytest.mark.parametrize(('options', 'message'), [
    ({'embedding': 'clip'}, "embedding='clip'"), ({'keep': 'all'}, "'all'"),
    ({'rounds_per_epoch': 4}, 'rounds_per_epoch=4 to divide distill.steps=6'),
    ({'reset_every': -1}, 'reset_every=-1'), ({'width': 3}, 'width=3'),
    ({'w_bn': 0., 'w_oh': 0., 'w_adv': 0.}, 'w_bn=0.0 or one')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PART, **options)
