"""Tests of ferd_jax.attacks.geometry: every norm, and the L1 ball's box."""

import functools
import typing

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from scipy import optimize

from ferd_jax import attacks
from ferd_jax.attacks import geometry

UNIT = (0., 1.)
ORDERS = {'Linf': np.inf, 'L2': 2, 'L1': 1}
every_norm = pytest.mark.parametrize('norm', geometry.NORMS)


pytestmark = pytest.mark.usefixtures('float64')


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape)


def norm_of(values, norm):
  return np.linalg.norm(values.reshape(len(values), -1), ORDERS[norm], axis=1)


@functools.partial(jax.jit, static_argnums=(3, 4))
def project(x_adv, x, eps, bounds=UNIT, norm='L1'):
  return geometry.of(norm).project(x_adv, x, eps, bounds)


def test_norms_are_those_of_the_hints():
  for attack in (attacks.PGD, attacks.APGD, attacks.FAB, attacks.Square,
                 attacks.AutoAttack):
    hint = typing.get_type_hints(attack)['norm']
    assert typing.get_args(hint) == geometry.NORMS == tuple(ORDERS)


@every_norm
def test_sizes(norm):
  space, values = geometry.of(norm), draw(5, 3, 4, 2) - 0.5
  expected = norm_of(values, norm)
  np.testing.assert_allclose(space.size(values), expected)
  np.testing.assert_allclose(
      space.length(values, (1, 2, 3), keepdims=True)[:, 0, 0, 0], expected)
  # Hoelder's inequality, and where it is an equation.
  gradient = draw(5, 3, 4, 2, seed=1) - 0.5
  products = np.abs((values * gradient).sum((1, 2, 3)))
  dual = np.asarray(space.dual_size(gradient))
  assert (products <= expected * dual + 1e-12).all()
  steepest = {'Linf': np.sign(gradient), 'L2': gradient,
              'L1': np.where(np.abs(gradient) == np.abs(gradient).max(
                  (1, 2, 3), keepdims=True), gradient, 0)}[norm]
  np.testing.assert_allclose(
      (steepest * gradient).sum((1, 2, 3)) / norm_of(steepest, norm), dual)


@every_norm
def test_diameter(norm):
  corners = np.stack([np.full((2, 3), -1.), np.full((2, 3), 3.)])
  np.testing.assert_allclose(
      geometry.of(norm).diameter((2, 3), (-1., 3.)),
      norm_of(corners[1:] - corners[:1], norm)[0])


@every_norm
def test_uniform_and_surface(norm):
  # In two dimensions, so that shares of areas can be counted.
  keys = jax.random.split(jax.random.key(0), 4000)
  x = np.zeros((4000, 2))
  space = geometry.of(norm)
  for eps in (0.5, np.full(4000, 0.5)):
    noise = np.asarray(jax.jit(space.uniform)(keys, x, eps))
    sizes = norm_of(noise, norm)
    assert sizes.max() <= 0.5
    # Half the radius has a quarter of the area.
    np.testing.assert_allclose((sizes < 0.25).mean(), 0.25, atol=0.03)
    np.testing.assert_allclose((noise > 0).mean(0), 0.5, atol=0.03)
    # The ball within the L1 ball has 1, 2 / pi or 1 / 2 of the area.
    np.testing.assert_allclose(
        (np.abs(noise).sum(1) < 0.5).mean(),
        {'Linf': 1 / 2, 'L2': 2 / np.pi, 'L1': 1}[norm], atol=0.03)
  noise = np.asarray(jax.jit(space.surface)(keys, x, np.full(4000, 0.5)))
  np.testing.assert_allclose(norm_of(noise, norm), 0.5, rtol=1e-9)
  np.testing.assert_allclose((noise > 0).mean(0), 0.5, atol=0.03)


# The projection onto the intersection of the L1 ball and the box.


def problems(size, count=60, seed=0, dtype=np.float64):
  """Returns centres, points and radii, random and degenerate ones."""
  rng = np.random.default_rng(seed)
  x = rng.uniform(size=(count, size))
  x[::3] = np.clip(2 * x[::3] - 0.5, 0, 1)  # Some pixels at a bound.
  x[1::6] = np.round(x[1::6])
  moves = rng.normal(size=x.shape) * 10 ** rng.uniform(-2, 1, (count, 1))
  moves *= rng.uniform(size=x.shape) < rng.uniform(0.2, 1, (count, 1))
  moves[5::7] = np.round(moves[5::7])  # Ties.
  moves[3] = 0
  eps = rng.uniform(0, 1, count) * np.abs(moves).sum(1)
  eps[::5] *= 2
  eps[7::9] = 0
  return tuple(array.astype(dtype) for array in (x, x + moves, eps))


def by_quadratic_program(x, x_adv, eps):
  """Returns the closest point, by the water level that brentq finds."""
  move = x_adv - x
  room = np.where(move > 0, 1 - x, x)
  def left(level):
    return np.minimum(room, np.maximum(np.abs(move) - level, 0))
  if left(0.).sum() <= eps:
    return x + np.sign(move) * left(0.)
  level = optimize.brentq(lambda level: left(level).sum() - eps, 0,
                          np.abs(move).max(), xtol=1e-15, maxiter=500)
  return x + np.sign(move) * left(level)


@pytest.mark.parametrize('size', [1, 2, 3, 12, 100])
def test_l1_is_the_closest_point(size):
  x, x_adv, eps = problems(size)
  got = np.asarray(project(x_adv, x, eps))
  expected = np.stack([by_quadratic_program(*one)
                       for one in zip(x, x_adv, eps, strict=True)])
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_l1_against_a_general_solver():
  x, x_adv, eps = problems(4, count=12, seed=3)
  got = np.asarray(project(x_adv, x, eps))
  for i in np.flatnonzero(eps > 0.1):
    # Moves up and down, both at least 0.
    solution = optimize.minimize(
        lambda z, i=i: np.square(x[i] + z[:4] - z[4:] - x_adv[i]).sum(),
        np.zeros(8), bounds=[*zip(np.zeros(4), 1 - x[i], strict=True),
                             *zip(np.zeros(4), x[i], strict=True)],
        constraints={'type': 'ineq', 'fun': lambda z, i=i: eps[i] - z.sum()},
        options={'ftol': 1e-14, 'maxiter': 500}, method='SLSQP')
    found = x[i] + solution.x[:4] - solution.x[4:]
    np.testing.assert_allclose(got[i], found, atol=1e-5)


def test_l1_against_official(monkeypatch):
  torch = pytest.importorskip('torch')
  base = pytest.importorskip('pyautoattack.autopgd_base')
  monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
  # Of less entries upstream's is sometimes wrong: its slope is, where the level
  # lies below the second lowest of the breakpoints.
  x, x_adv, eps = problems(100)
  x, x_adv, eps = (array[eps > 0] for array in (x, x_adv, eps))
  default = torch.get_default_dtype()
  torch.set_default_dtype(torch.float64)
  try:
    move = torch.tensor(x_adv - x)
    back = base.L1_projection(torch.tensor(x), move, torch.tensor(eps))
  finally:
    torch.set_default_dtype(default)
  np.testing.assert_allclose(project(x_adv, x, eps), x + (move + back).numpy(),
                             rtol=0, atol=1e-12)


def test_l1_of_images_in_float32():
  x, x_adv, eps = problems(3072, count=12, dtype=np.float32)
  got = np.asarray(project(x_adv, x, eps))
  assert got.dtype == np.float32
  exact = np.asarray(project(*(np.float64(array)
                               for array in (x_adv, x, eps))))
  np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6)
  assert (norm_of(np.float64(got) - x, 'L1') <= eps * (1 + 1e-5) + 1e-5).all()
  # What it takes back is the image, to the bit: sparse steps count on it.
  assert ((got == x) >= (np.abs(exact - x) < 1e-9)).mean() > 0.999


# Moves of every size, so that some vanish beside others.
moves = st.one_of(st.just(0.), st.floats(-2, 2), st.floats(-1e6, 1e6),
                  st.floats(-1e-7, 1e-7))


@every_norm
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    x=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    move=st.lists(moves, min_size=6, max_size=6), eps=st.floats(0, 10),
    dtype=st.sampled_from([np.float32, np.float64]))
def test_stays_in_ball_and_box(norm, x, move, eps, dtype):
  x = np.array([x]).astype(dtype) * 2 - 1
  bounds = (-1., 1.)
  x_adv = (x + np.array([move])).astype(dtype)
  got = np.asarray(project(x_adv, x, dtype(eps), bounds, norm))
  tiny = np.finfo(dtype).eps
  assert got.dtype == dtype and np.isfinite(got).all()
  assert (np.abs(got) <= 1).all()
  assert norm_of(np.float64(got) - x, norm)[0] <= eps * (1 + 9 * tiny) + (
      9 * tiny)
  # What is inside stays, to the bit in L1 and Linf.
  again = np.asarray(project(got, x, norm_of(got - x, norm).max() * (
      1 + 9 * tiny), bounds, norm))
  np.testing.assert_allclose(again, got, rtol=0,
                             atol=3e-12 + 9 * tiny if norm == 'L2' else 0)


def test_l1_of_a_radius_each_and_of_any_batch():
  x, x_adv, eps = problems(12)
  whole = np.asarray(project(x_adv, x, eps))
  np.testing.assert_array_equal(project(x_adv[9:12], x[9:12], eps[9:12]),
                                whole[9:12])
  shape = (-1, 2, 3, 2)
  np.testing.assert_array_equal(
      project(x_adv.reshape(shape), x.reshape(shape), eps),
      whole.reshape(shape))
  np.testing.assert_allclose(project(x_adv[:3], x[:3], 0.25),
                             project(x_adv[:3], x[:3], np.full(3, 0.25)))
  np.testing.assert_array_equal(whole[7::9], x[7::9])  # A radius of 0.


# Sparse steps.


def test_sparse_signs():
  gradient = np.array([[[3., -1.], [0.5, -3.]], [[0., 0.], [2., 0.]],
                       [[0., 0.], [0., 0.]], [[1., 1.], [-1., 1.]]])
  got = geometry.sparse_signs(gradient, np.array([3, 1, 2, 1]))
  np.testing.assert_allclose(got, [
      [[1 / 3, -1 / 3], [0, -1 / 3]], [[0, 0], [1, 0]], [[0, 0], [0, 0]],
      [[1 / 4, 1 / 4], [-1 / 4, 1 / 4]]], atol=1e-9)  # Ties go together.


def test_direction_of_l1():
  gradient, x = draw(3, 250) - 0.5, draw(3, 250, seed=1)
  steepest = np.argsort(-np.abs(gradient), axis=1)
  # The steepest of all is stopped by a bound, in the first two images.
  for i, away in ((0, False), (1, False), (2, True)):
    up = gradient[i, steepest[i, 0]] > 0
    x[i, steepest[i, 0]] = up != away
  got = np.asarray(geometry.of('L1').direction(gradient, x, UNIT))
  expected = np.zeros_like(got)
  for i, first in enumerate((1, 1, 0)):
    kept = steepest[i, first:first + 3]  # 1% of 250, rounded up.
    expected[i, kept] = np.sign(gradient[i, kept]) / 3
  np.testing.assert_allclose(got, expected, atol=1e-9)
