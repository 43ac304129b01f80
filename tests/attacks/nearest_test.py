"""What DDN and FMN promise, and where they stand beside FAB."""

import dataclasses
import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks

BATCH, SHAPE, NUM_CLASSES, STEPS = 16, (4, 4, 2), 5, 40
ORDERS = {'L0': 0, 'L1': 1, 'L2': 2, 'Linf': np.inf}
pytestmark = pytest.mark.usefixtures('float64')


_RNG = np.random.default_rng(3)
FIRST = 0.4 * _RNG.normal(size=(32, 16))
SECOND = _RNG.normal(size=(16, NUM_CLASSES))
X = np.clip(_RNG.uniform(-.2, 1.2, (BATCH, *SHAPE)), 0, 1)


def net(x, tanh=jnp.tanh):
  return tanh((x - 0.5).reshape(len(x), -1) @ FIRST) @ SECOND


def labels(x):
  return net(np.asarray(x), np.tanh).argmax(-1)


Y = labels(X)


ATTACKS = {'ddn': attacks.DDN(num_steps=STEPS, gamma=0.1, unroll=False)} | {
    f'fmn {norm}': attacks.FMN(norm=norm, num_steps=STEPS, unroll=False)
    for norm in ORDERS}
every_attack = pytest.mark.parametrize('name', ATTACKS)
# What they share is in one module.
some_attacks = pytest.mark.parametrize('name', ['ddn', 'fmn L1'])


def size(delta, norm):
  return np.linalg.norm(np.reshape(delta, (len(delta), -1)), ORDERS[norm],
                        axis=1)


@functools.cache
def program(name):
  attack = ATTACKS[name]
  @jax.jit
  def run(key, x, y, eps):
    return attack.run(net, key, x, y, eps=eps)
  return run


@functools.cache
def traced(name):
  """Returns the states `[steps, B, ...]` after every step, NumPy leaves."""
  attack = ATTACKS[name]
  problem, _ = attack.check(net, jax.random.key(0), X, Y)
  def step(state, _):
    state = attack.step(net, problem, state)
    return state, state
  states = jax.jit(lambda state: jax.lax.scan(step, state, length=STEPS)[1])(
      attack.init(problem))
  return jax.tree.map(np.asarray, states)


@every_attack
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 99), wrong=st.integers(0, BATCH),
                  share=st.floats(0, 1))
def test_promises(name, seed, wrong, share):
  """Adversarial on another look, in box and ball; the wrong ones at 0."""
  norm = ATTACKS[name].norm
  rng = np.random.default_rng(seed)
  x = np.clip(rng.uniform(-.3, 1.3, X.shape), 0, 1)
  y = labels(x)
  y[:wrong] = (y[:wrong] + 1) % NUM_CLASSES
  # Any radius, or one that some images have something within.
  widest = {'L0': 32., 'L1': 32., 'L2': 32 ** .5, 'Linf': 1.}[norm]
  eps = widest if seed % 2 else share * widest / 8
  found = program(name)(jax.random.key(0), x, y, eps)
  images = np.asarray(found.images)
  assert 0 <= images.min() and images.max() <= 1
  norms = size(images - x, norm)
  np.testing.assert_allclose(found.norm, norms, atol=1e-12)
  assert (norms <= eps).all()
  np.testing.assert_array_equal(found.success, labels(images) != y)
  assert found.success[:wrong].all() and not norms[:wrong].any()
  np.testing.assert_array_equal(images[~np.asarray(found.success)],
                                x[~np.asarray(found.success)])
  np.testing.assert_allclose(
      found.distances, np.where(found.success, norms, np.inf), atol=1e-12)
  assert (np.asarray(found.distances)[wrong:] > 0).all()


@every_attack
def test_the_closest_of_all_iterates(name):
  """Is no farther than any before that fooled, and found within the steps."""
  states, norm = traced(name), ATTACKS[name].norm
  queried = np.concatenate([X[None], states.x[:-1]])
  assert (queried >= 0).all() and (queried <= 1).all()
  norms = np.stack([size(x - X, norm) for x in queried])
  fooled = np.stack([labels(x) != Y for x in queried])
  expected = np.minimum.accumulate(np.where(fooled, norms, np.inf))
  found = np.where(states.fooled, states.norm_best, np.inf)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  assert fooled.any(0).all() and not fooled[0].any()
  np.testing.assert_allclose(size(states.x_best[-1] - X, norm), expected[-1],
                             atol=1e-12)


@some_attacks
def test_keeps_the_first_within_the_radius(name):
  states = traced(name)
  eps = 1.1 * states.norm_best[-1]
  first = dataclasses.replace(ATTACKS[name], keep='first')
  within = np.argmax(states.norm_best <= eps, axis=0)
  found = jax.jit(lambda: first.run(net, jax.random.key(0), X, Y,
                                    eps=eps))()
  expected = states.x_best[within, np.arange(BATCH)]
  np.testing.assert_allclose(found.images, expected, atol=1e-12)
  assert len(np.unique(within)) > 1


@pytest.mark.parametrize('norm', ['Linf', 'L2'])
def test_medians_are_near_fab(norm):
  fab = attacks.FAB(None, norm, num_iterations=STEPS, unroll=False)
  run = jax.jit(lambda attack: attack.run(net, jax.random.key(0), X, Y),
                static_argnums=0)
  expected = np.median(run(fab).distances)
  found = np.median(traced(f'fmn {norm}').norm_best[-1])
  assert found < 1.05 * expected
  if norm == 'L2':  # DDN's radius moves by gamma a step, from 1.
    ddn = attacks.DDN(unroll=False)
    assert np.median(run(ddn).distances) < 1.05 * expected


@every_attack
def test_targets_are_reached(name):
  y = Y.copy()
  y[3] = (y[3] + 1) % NUM_CLASSES
  targets = (y + 2) % NUM_CLASSES
  found = jax.jit(lambda: ATTACKS[name].run(net, jax.random.key(0), X, y,
                                            targets))()
  np.testing.assert_array_equal(found.reached, labels(found.images) == targets)
  assert found.reached.mean() > 0.9 and (found.norm > 0).all()
  np.testing.assert_array_equal(
      found.distances, np.where(found.reached, found.norm, np.inf))


@some_attacks
def test_scales_with_the_bounds(name):
  attack, (low, high) = ATTACKS[name], (-1., 3.)
  wide = dataclasses.replace(attack, bounds=(low, high))
  scaled = jax.jit(lambda: wide.run(
      lambda x: net((x - low) / (high - low)), jax.random.key(0),
      low + (high - low) * X, Y))()
  width = 1 if attack.norm == 'L0' else high - low
  # Rounding may decide which iterate is the closest by a little.
  np.testing.assert_allclose(np.asarray(scaled.norm) / width,
                             traced(name).norm_best[-1], rtol=1e-6)


@some_attacks
def test_starts_where_it_is_told(name):
  attack = ATTACKS[name]
  problem, _ = attack.check(net, jax.random.key(0), X, Y,
                            x_init=1 - X)
  state = attack.init(problem)
  np.testing.assert_array_equal(state.x, 1 - X)
  state = jax.jit(lambda: attack.step(net, problem, state))()
  hit = labels(1 - X) != Y
  assert hit.any()
  np.testing.assert_allclose(np.asarray(state.norm_best)[hit],
                             size(1 - 2 * X, attack.norm)[hit])


@some_attacks
def test_models_without_a_gradient_or_that_break(name):
  run = jax.jit(lambda net, y: ATTACKS[name].run(
      net, jax.random.key(0), X, y), static_argnums=0)
  flat = run(lambda x: jnp.tile(jnp.array([[1., 0]]), (len(x), 1)),
             np.zeros(BATCH, int))
  assert not flat.success.any() and np.isinf(flat.distances).all()
  np.testing.assert_array_equal(flat.images, X)
  def breaks(x):  # Away from the image.
    return jnp.where(jnp.abs(x - X).max() > 0, jnp.nan, 1) * net(x)
  broken = run(breaks, Y)
  assert not broken.success.any() and (broken.predictions == -1).all()
  assert np.isnan(broken.images).all() and np.isinf(broken.distances).all()


@pytest.mark.parametrize(('make', 'message'), [
    (functools.partial(attacks.DDN, eps=-1), 'eps=-1'),
    (functools.partial(attacks.DDN, num_steps=0), 'num_steps=0'),
    (functools.partial(attacks.DDN, gamma=2), 'gamma=2'),
    (functools.partial(attacks.DDN, init_radius=0), 'init_radius=0'),
    (functools.partial(attacks.DDN, keep='best'), "keep='best'"),
    (functools.partial(attacks.FMN, norm='L3'), "norm='L3'"),
    (functools.partial(attacks.FMN, step_size=0), 'step_size=0'),
    (functools.partial(attacks.FMN, overshoot=0.9), 'overshoot=0.9'),
    (functools.partial(attacks.FMN, overshoot=np.nan), 'overshoot=nan'),
    (functools.partial(attacks.FMN, bounds=(1, 0)), r'bounds=\(1, 0\)'),
    (functools.partial(attacks.FAB, None, num_restarts=2), 'num_restarts=2')])
def test_settings_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()
