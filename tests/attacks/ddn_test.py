"""Tests of ferd_jax.attacks.ddn, also against foolbox on the same function."""

import foolbox_side
from foolbox_side import BATCH
from foolbox_side import NUM_CLASSES
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

pytestmark = pytest.mark.usefixtures('float64')


@pytest.mark.parametrize('targeted', [False, True])
def test_equals_foolbox(targeted):
  targets = (Y + 1) % NUM_CLASSES if targeted else None
  queried, expected = foolbox_side.run('DDNAttack', net, X, Y, targets,
                                       steps=STEPS)
  seen, found = trace(attacks.DDN(num_steps=STEPS), X, Y, targets)
  np.testing.assert_allclose(seen, queried, rtol=0, atol=1e-9)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
  assert np.abs(queried[-1] - X).max() > 0.01


def test_norms_equal_foolbox_in_float32():
  x = X.astype(np.float32)
  settings = dict(gamma=0.1, init_epsilon=0.5)
  with jax.enable_x64(False):
    _, expected = foolbox_side.run('DDNAttack', net, x, Y, steps=STEPS,
                                   **settings)
    _, found = trace(attacks.DDN(num_steps=STEPS, gamma=0.1, init_radius=0.5),
                     x, Y)
  assert found.dtype == expected.dtype == np.float32
  norms = [np.linalg.norm((each - x).reshape(BATCH, -1), axis=1)
           for each in (found, expected)]
  np.testing.assert_allclose(*norms, rtol=1e-3)


def test_by_hand():
  """On two pixels, of which the first decides at 0.5."""
  def steps(x):
    return jnp.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], axis=-1)
  x = np.array([[0.8, 0.4]])
  attack = attacks.DDN(num_steps=4, init_radius=0.2)
  problem, _ = attack.check(steps, jax.random.key(0), x, [0])
  state, seen = attack.init(problem), []
  step = jax.jit(lambda state: attack.step(steps, problem, state))
  for _ in range(4):
    state = step(state)
    seen.append((float(state.radius[0]), float(state.x[0, 0])))
  # 0.21 to the left, 0.2205, 0.2315, 0.2431: never as far as 0.5.
  radii = 0.2 * 1.05 ** np.arange(1, 5)
  np.testing.assert_allclose(seen, np.stack([radii, 0.8 - radii], 1))
  assert not state.fooled[0]


def test_a_direction_is_drawn_where_the_gradient_is_0():
  def flat(x):  # Beyond 0.3 of the image there is another class.
    far = jnp.linalg.norm((x - X).reshape(len(x), -1), axis=-1) > 0.3
    return jax.nn.one_hot(far.astype(int), 2)
  run = jax.jit(lambda key: attacks.DDN(num_steps=20, unroll=False).run(
      flat, key, X, jnp.zeros(BATCH, int)))
  first, second = run(jax.random.key(0)), run(jax.random.key(1))
  assert first.success.all() and second.success.all()
  assert (np.asarray(first.norm) > 0.3).all()
  assert np.abs(first.images - second.images).max((1, 2, 3)).min() > 0
  alone = attacks.DDN(num_steps=20, unroll=False)
  keys = attacks.example_keys(jax.random.key(0), jnp.arange(BATCH))
  few = jax.jit(lambda: alone.run(
      lambda x: jax.nn.one_hot((jnp.linalg.norm(
          (x - X[2:4]).reshape(2, -1), axis=-1) > 0.3).astype(int), 2),
      keys[2:4], X[2:4], jnp.zeros(2, int)))()
  np.testing.assert_allclose(few.images, first.images[2:4], atol=1e-12)


def test_a_start_of_its_own_gives_the_first_radius():
  attack = attacks.DDN(num_steps=1)
  problem, _ = attack.check(net, jax.random.key(0), X, Y, x_init=X * 0.9)
  np.testing.assert_allclose(
      attack.init(problem).radius,
      0.1 * np.linalg.norm(X.reshape(BATCH, -1), axis=1))
  plain = problem._replace(x_init=None)
  np.testing.assert_array_equal(attack.init(plain).radius, np.ones(BATCH))
