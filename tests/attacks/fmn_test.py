"""Tests of ferd_jax.attacks.fmn, also against foolbox on the same function."""

import functools
import math

import foolbox_side
from foolbox_side import BATCH
from foolbox_side import NUM_CLASSES
from foolbox_side import SHAPE
from foolbox_side import STEPS
from foolbox_side import X
from foolbox_side import Y
from foolbox_side import net
from foolbox_side import trace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.attacks import fmn
from ferd_jax.attacks import geometry

pytestmark = pytest.mark.usefixtures('float64')


CLASSES = {'L0': 'L0FMNAttack', 'L1': 'L1FMNAttack', 'L2': 'L2FMNAttack',
           'Linf': 'LInfFMNAttack'}


def clip_l2(delta, radius):
  """Returns what foolbox means to: its own factor is always 1."""
  norms = jnp.linalg.norm(delta.reshape(len(delta), -1), axis=1)
  factor = jnp.minimum(1, radius / jnp.maximum(norms, 1e-12))
  return delta * factor[:, None, None, None]


def largest(delta, radius):
  """Returns the entries that foolbox means to keep: it takes one more."""
  flat = np.asarray(delta).reshape(len(delta), -1)
  ordered = -np.sort(-np.abs(flat), axis=1)
  place = np.maximum(np.asarray(radius).astype(int), 1) - 1
  least = np.take_along_axis(ordered, place[:, None], 1)
  return jnp.asarray(np.where(np.abs(flat) >= least, flat, 0)).reshape(
      delta.shape)


PROJECT = {'L2': clip_l2, 'L0': largest}


@pytest.mark.parametrize(('norm', 'targeted'), [
    ('L1', False), ('L2', False), ('Linf', False), ('L0', False),
    ('Linf', True), ('L0', True)])
def test_equals_foolbox(norm, targeted):
  targets = (Y + 1) % NUM_CLASSES if targeted else None
  queried, expected = foolbox_side.run(
      CLASSES[norm], net, X, Y, targets, project=PROJECT.get(norm),
      steps=STEPS)
  attack = attacks.FMN(norm=norm, num_steps=STEPS, overshoot=1)
  seen, found = trace(attack, X, Y, targets)
  # It aims at the boundary: on it rounding decides what comes after.
  later = np.cumsum(np.abs(margins(queried, Y if targets is None else targets))
                    < 1e-13, axis=0) > 0
  before = ~np.roll(later, 1, axis=0)
  before[0] = True
  np.testing.assert_allclose(seen[before], queried[before], rtol=0, atol=1e-9)
  whole = ~later[-1]
  assert whole.any()
  if norm == 'L0':
    # Of two iterates of one norm foolbox keeps the last.
    found, expected = ((each != X).reshape(BATCH, -1).sum(1)
                       for each in (found, expected))
  np.testing.assert_allclose(found[whole], expected[whole], rtol=0, atol=1e-9)
  assert np.abs(queried[-1] - X).max() > 1e-3


def margins(queried, classes):
  """Returns by how much the classes lead at queried points `[steps, B]`."""
  logits = net(queried.reshape(-1, *SHAPE), np.tanh).reshape(
      *queried.shape[:2], NUM_CLASSES)
  is_class = np.eye(NUM_CLASSES, dtype=bool)[classes]
  return (np.where(is_class, logits, -np.inf).max(-1)
          - np.where(is_class, -np.inf, logits).max(-1))


@pytest.mark.parametrize('norm', ['L1', 'Linf'])
def test_norms_equal_foolbox_in_float32(norm):
  x = X.astype(np.float32)
  with jax.enable_x64(False):
    _, expected = foolbox_side.run(CLASSES[norm], net, x, Y, steps=STEPS,
                                   gamma=0.1, max_stepsize=0.5)
    _, found = trace(attacks.FMN(norm=norm, num_steps=STEPS, gamma=0.1,
                                 step_size=0.5, overshoot=1), x, Y)
  assert found.dtype == expected.dtype == np.float32
  norms = [np.linalg.norm((each - x).reshape(BATCH, -1),
                          1 if norm == 'L1' else np.inf, axis=1)
           for each in (found, expected)]
  np.testing.assert_allclose(*norms, rtol=1e-3, atol=1e-6)


def test_rules_of_the_l0_radius():
  """One less or 5% less after a success, one more or 5% more otherwise."""
  attack = attacks.FMN(norm='L0', num_steps=STEPS)
  problem, _ = attack.check(net, jax.random.key(0), X, Y)
  state = attack.init(problem)
  np.testing.assert_array_equal(state.radius, np.ones(BATCH))
  step = jax.jit(lambda state: attack.step(net, problem, state))
  for i in range(STEPS):
    gamma = 0.001 + (0.05 - 0.001) * (1 + math.cos(math.pi * i / STEPS)) / 2
    hit = net(np.asarray(state.x), np.tanh).argmax(-1) != Y
    after = step(state)
    r, best = np.asarray(state.radius), np.asarray(after.norm_best)
    expected = np.where(
        hit, np.minimum(np.maximum(np.minimum(
            r - 1, np.floor(r * (1 - gamma))), 0), best),
        np.maximum(r + 1, np.floor(r * (1 + gamma))))
    np.testing.assert_array_equal(after.radius, np.minimum(expected, 18))
    state = after


def test_overshoot_crosses_the_boundary():
  """At 1 the iterate creeps up to it from inside."""
  y = net(X, np.tanh).argmax(-1)
  shares = []
  for overshoot in (1, 1.05):
    attack = attacks.FMN(norm='L1', num_steps=STEPS, overshoot=overshoot)
    _, images = trace(attack, X, y)
    shares.append((net(images, np.tanh).argmax(-1) != y).mean())
  assert shares[0] < 1 and shares[1] == 1


@functools.partial(jax.jit, static_argnums=2)
def project(delta, radius, norm):
  return fmn.project(delta, radius, norm)


@pytest.mark.parametrize('norm', geometry.DISTANCES)
def test_projections(norm):
  rng = np.random.default_rng(0)
  delta = rng.normal(size=(200, 5)) * rng.uniform(0, 2, (200, 1))
  delta[:20] = np.round(delta[:20])  # Ties, and entries of 0.
  radius = rng.uniform(0, 3, 200)
  if norm == 'L0':
    radius = np.ceil(radius)
  got = np.asarray(project(delta, radius, norm))
  if norm == 'Linf':
    expected = np.clip(delta, -radius[:, None], radius[:, None])
  elif norm == 'L2':
    norms = np.maximum(np.linalg.norm(delta, axis=1), 1e-12)
    expected = delta * np.minimum(1, radius / norms)[:, None]
  elif norm == 'L0':
    expected = np.asarray(largest(delta[:, None, None], radius))[:, 0, 0]
  else:
    expected = np.stack(list(map(duchi, delta, radius)))
    assert np.abs(got).sum(1)[20:].max() <= 3 + 1e-9
  np.testing.assert_allclose(got, expected, atol=1e-12)


def duchi(delta, radius):
  """Returns the projection onto the L1 ball, by sorting."""
  if np.abs(delta).sum() <= radius:
    return delta
  ordered = np.sort(np.abs(delta))[::-1]
  level = (np.cumsum(ordered) - radius) / np.arange(1, len(delta) + 1)
  last = np.flatnonzero(ordered > level)[-1]
  return np.sign(delta) * np.maximum(np.abs(delta) - level[last], 0)
