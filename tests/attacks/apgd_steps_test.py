"""Tests of ferd_jax.attacks.apgd_steps."""

import jax
from jax import lax
import numpy as np
import pytest

from ferd_jax.attacks import apgd_steps
from ferd_jax.attacks import geometry

pytestmark = pytest.mark.usefixtures('float64')


CHECKPOINTS = {
    10: [*range(2, 11)],
    20: [4, 7, *range(9, 21)],
    30: [6, 11, 15, 18, *range(20, 31)],
    50: [11, 21, 30, 38, 45],
    100: [22, 41, 57, 70, 80, 87, 93, 99],
    200: [44, 82, 114, 140, 160, 174, 186, 198],
    1000: [220, 410, 570, 700, 800, 870, 930, 990],
}


@pytest.mark.parametrize('num_steps', CHECKPOINTS)
def test_checkpoints(num_steps):
  got = apgd_steps.checkpoint_periods(num_steps)
  assert got.shape == (num_steps + 1,) and got.dtype == np.int32
  np.testing.assert_array_equal(np.flatnonzero(got), CHECKPOINTS[num_steps])
  np.testing.assert_array_equal(got[got > 0],
                                np.diff([0, *CHECKPOINTS[num_steps]]))


def traces_of_losses(num_steps, batch, seed=0):
  """Returns `[num_steps + 1, batch]`, of the start first, with many ties."""
  rng = np.random.default_rng(seed)
  chance = np.linspace(0, 1, batch)  # to rise; the others fall or stay.
  steps = np.where(rng.uniform(size=(num_steps, batch)) < chance, 1,
                   rng.integers(-2, 1, size=(num_steps, batch)))
  return np.concatenate([rng.integers(-2, 3, size=(1, batch)),
                         steps]).cumsum(0).astype(float)


def halvings(trace, rho):
  """Returns the iterations that halve the step size, for one example."""
  found, before, reduced = [], 0, True
  for now in CHECKPOINTS[len(trace) - 1]:
    last = [0 if i == 1 else trace[i - 1] for i in range(before + 1, now + 1)]
    rises = np.sum(trace[before + 1:now + 1] > last)
    stuck = max(trace[:now + 1]) == max(trace[:before + 1])
    reduced = rises <= rho * (now - before) or (not reduced and stuck)
    found += [now] if reduced else []
    before = now
  return found


@pytest.mark.parametrize('rho', [0.75, 0.4])
@pytest.mark.parametrize('num_steps', [10, 30, 100])
def test_controller(num_steps, rho):
  losses_seen = traces_of_losses(num_steps, 200)
  first = np.zeros(200)
  controller = apgd_steps.Controller(
      step_size=first + 0.8, f_best=losses_seen[0], f_last=first,
      f_check=losses_seen[0], num_up=first.astype(np.int32),
      reduced=first == 0)
  def step(controller, inputs):
    controller, better, halved = apgd_steps.control(controller, *inputs, rho)
    return controller, (controller.step_size, controller.f_best, better,
                        halved)
  periods = apgd_steps.checkpoint_periods(num_steps)[1:]
  _, (step_size, f_best, better, halved) = jax.device_get(
      jax.jit(lambda *args: lax.scan(step, *args))(
          controller, (losses_seen[1:], periods)))
  expected = np.zeros((num_steps + 1, 200), bool)
  for i in range(200):
    expected[halvings(losses_seen[:, i], rho), i] = True
  np.testing.assert_array_equal(halved, expected[1:])
  np.testing.assert_array_equal(step_size, 0.8 / 2 ** expected[1:].cumsum(0))
  best = np.maximum.accumulate(losses_seen)
  np.testing.assert_array_equal(f_best, best[1:])
  np.testing.assert_array_equal(better, losses_seen[1:] > best[:-1])


# Of L1.


@pytest.mark.parametrize(('num_iterations', 'period'), [
    (1, 1), (10, 1), (49, 1), (50, 2), (100, 4), (1000, 40)])
def test_sparse_checkpoints(num_iterations, period):
  got = apgd_steps.of('L1').checkpoints(num_iterations)
  assert got.dtype == np.int32
  expected = np.zeros(num_iterations + 1)
  expected[period::period] = period
  np.testing.assert_array_equal(got, expected)


def moved_by(counts, size=30):
  """Returns perturbations with so many entries that are not 0."""
  return np.where(np.arange(size) < np.array(counts)[:, None], 0.1, 0.)


def test_sparse_controller():
  steps, eps = apgd_steps.of('L1'), np.array([2., 2., 2., 2.])
  chosen = steps.begin(moved_by([0, 1, 3, 30]), eps, chosen=True)
  np.testing.assert_array_equal(chosen.support, [0, 1, 3, 30])
  # Two thirds of them, at least one.
  np.testing.assert_array_equal(chosen.num_moved, [1, 1, 2, 20])
  controller = steps.begin(moved_by([9, 9, 9, 9]), eps, chosen=False)
  np.testing.assert_array_equal(controller.support, [30] * 4)
  np.testing.assert_array_equal(controller.num_moved, [6] * 4)
  np.testing.assert_array_equal(controller.step_size, eps)

  def control(controller, loss, counts, checkpoint, first=False):
    return steps.control(
        controller, np.array(loss), np.full(4, first), np.full(4, checkpoint),
        moved_by(counts), eps, 0.75)
  after, returns = control(controller, [1., -1., 0., 2.], [28, 29, 30, 0], 0,
                           first=True)
  np.testing.assert_array_equal(after.f_best, [1, -1, 0, 2])
  assert not returns.any() and (after.support == 30).all()
  after, returns = control(after, [2., -2., 0., 3.], [28, 29, 30, 0], 1)
  np.testing.assert_array_equal(after.f_best, [2, -1, 0, 3])
  # Sparser by 5%: 28 of 30, but not 29.
  np.testing.assert_array_equal(returns, [True, False, False, True])
  np.testing.assert_allclose(after.step_size, [2, 2 / 1.5, 2 / 1.5, 2])
  np.testing.assert_array_equal(after.support, [28, 29, 30, 0])
  np.testing.assert_array_equal(after.num_moved, [19, 20, 20, 1])
  for _ in range(9):
    after, returns = control(after, [0., 0., 0., 0.], [28, 29, 30, 0], 1)
    assert not returns.any()
  np.testing.assert_allclose(after.step_size, eps / 10)  # No smaller.


def test_sparse_step():
  steps, x = apgd_steps.of('L1'), np.full((2, 4), 0.5)
  controller = apgd_steps.SparseController(
      step_size=np.array([0.2, 0.6]), f_best=np.zeros(2),
      support=np.zeros(2, int), num_moved=np.array([2, 1]))
  gradient = np.array([[1., -3., 2., 0.], [0.1, 0.2, 0.3, -0.4]])
  move = apgd_steps.Move(centre=x, eps=np.full(2, 0.3), x=x, x_last=x,
                         gradient=gradient, first=np.zeros(2, bool))
  got = steps.advance(move, controller, (0., 1.))
  np.testing.assert_allclose(
      got, x + np.array([[0, -0.1, 0.1, 0], [0, 0, 0, -0.3]]), atol=1e-9)


def test_sparse_start():
  x = np.full((50, 30), 0.5)
  keys = jax.random.split(jax.random.key(0), 50)
  eps = np.full(50, 2.)
  start = np.asarray(apgd_steps.of('L1').start(keys, x, eps, (0., 1.)))
  # Normal noise, projected: the largest entries stay, some at the bounds.
  np.testing.assert_allclose(np.abs(start - x).sum(1), 2)
  assert 0 <= start.min() and start.max() <= 1
  support = (start != x).sum(1)
  assert 2 < support.min() and support.max() < 30
  noise = x + np.stack([jax.random.normal(key, (30,)) for key in keys])
  np.testing.assert_allclose(start, geometry.of('L1').project(
      noise, x, eps, (0., 1.)))
