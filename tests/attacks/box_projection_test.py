"""Tests of ferd_jax.attacks.box_projection."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ferd_jax.attacks import box_projection
from ferd_jax.attacks import geometry

UNIT = (0., 1.)
SIZE = 12  # One shape for most tests, since each compiles.
every_norm = pytest.mark.parametrize('norm', geometry.NORMS)


pytestmark = pytest.mark.usefixtures('float64')


@functools.partial(jax.jit, static_argnums=(3, 4))
def compiled(p, w, b, bounds, norm):
  return box_projection.project_onto_hyperplane(p, w, b, bounds, norm)


def project(p, w, b, norm, bounds=UNIT):
  return np.asarray(compiled(p, w, b, bounds, norm))


def problems(size=SIZE, count=80, seed=0, dtype=np.float64):
  """Returns points, normals and offsets, random and degenerate ones."""
  rng = np.random.default_rng(seed)
  p = rng.uniform(size=(count, size))
  w = (rng.normal(size=(count, size))
       * 10 ** rng.uniform(-3, 1, size=(count, 1)))
  p[::4] = np.round(p[::4])  # every coordinate at a bound
  p[1::4] = np.clip(2 * p[1::4] - 0.5, 0, 1)  # some of them
  w[::3] *= rng.uniform(size=w[::3].shape) < 0.5
  lowest, highest = (np.where(side * w > 0, w, 0).sum(1) for side in (-1, 1))
  # From planes behind the box on one side to those on the other, and through
  # or close to the point.
  b = lowest + rng.uniform(-0.2, 1.2, size=count) * (highest - lowest)
  close = np.arange(count) % 5 < 2
  b[close] = (w * p).sum(1)[close]
  close = np.arange(count) % 5 == 1
  b[close] += 0.01 * rng.normal(size=close.sum()) * np.abs(w).sum(1)[close]
  w[-1] = 0
  return tuple(array.astype(dtype) for array in (p, w, b))


def reachable(p, w, b):
  """Returns which planes meet the unit box, by more than rounding."""
  lowest, highest = (np.where(side * w > 0, w, 0).sum(1) for side in (-1, 1))
  slack = 1e-6 * np.abs(w).sum(1)
  return (b > lowest + slack) & (b < highest - slack)


def official(p, w, b, norm):
  torch = pytest.importorskip('torch')
  projections = pytest.importorskip('pyautoattack.fab_projections')
  default = torch.get_default_dtype()
  torch.set_default_dtype(torch.tensor(p).dtype)
  try:
    return getattr(projections, f'projection_{norm.lower()}')(
        *map(torch.tensor, (p, w, b))).numpy()
  finally:
    torch.set_default_dtype(default)


@every_norm
@pytest.mark.parametrize('size', [1, 3, SIZE, 300])
def test_against_official(norm, size):
  p, w, b = problems(size)
  np.testing.assert_allclose(project(p, w, b, norm), official(p, w, b, norm),
                             rtol=0, atol=1e-10)


@every_norm
@pytest.mark.parametrize('size', [1, 3, SIZE, 300])
def test_float32_against_official(norm, size):
  p, w, b = problems(size, dtype=np.float32)
  got = project(p, w, b, norm)
  assert got.dtype == np.float32
  # In float64, since upstream's float32 is off by 2e-5 at some.
  exact = official(*(np.float64(array) for array in (p, w, b)), norm)
  # In L1 one coordinate has the rounding errors of all.
  np.testing.assert_allclose(got, exact, rtol=0,
                             atol=4e-5 if norm == 'L1' else 1e-5)
  if size < SIZE:
    np.testing.assert_allclose(got, official(p, w, b, norm), rtol=0, atol=1e-5)


@every_norm
def test_images_in_float32(norm):
  p, w, b = problems(3072, count=12, dtype=np.float32)
  got = project(p, w, b, norm)
  assert np.isfinite(got).all()
  # Upstream's own rounding error is 1e-3 here.
  exact = project(*(np.float64(array) for array in (p, w, b)), norm)
  np.testing.assert_allclose(got, exact, rtol=0,
                             atol=4e-4 if norm == 'L1' else 2e-5)
  residual = np.abs((np.float64(w) * (p + np.float64(got))).sum(1) - b)
  fine = reachable(p, w, b)
  assert (residual[fine] < 1e-6 * np.abs(w).sum(1)[fine]).all()


@every_norm
def test_ends_on_the_plane(norm):
  p, w, b = problems()
  residual = (w * (p + project(p, w, b, norm))).sum(1) - b
  fine = reachable(p, w, b)
  assert 30 < fine.sum() < 80
  np.testing.assert_allclose(residual[fine], 0, atol=1e-12)


def test_linf_is_optimal():
  p, w, b = problems()
  got = project(p, w, b, 'Linf')
  for i in np.flatnonzero(reachable(p, w, b)):
    # Variables are d and its norm s: minimise s, -s <= d <= s.
    sides = np.concatenate([np.eye(SIZE), -np.eye(SIZE)])
    solution = optimize.linprog(
        [0] * SIZE + [1],
        A_ub=np.column_stack([sides, -np.ones(2 * SIZE)]),
        b_ub=np.zeros(2 * SIZE), A_eq=[[*w[i], 0]], b_eq=[b[i] - w[i] @ p[i]],
        bounds=[*zip(-p[i], 1 - p[i], strict=True), (0, None)])
    np.testing.assert_allclose(np.abs(got[i]).max(), solution.fun, atol=1e-7)


def test_l2_is_optimal():
  p, w, b = problems()
  got = project(p, w, b, 'L2')
  for i in np.flatnonzero(reachable(p, w, b)):
    # The conditions of Karush, Kuhn and Tucker, by bisection.
    def move(multiplier, i=i):
      return np.clip(multiplier * w[i], -p[i], 1 - p[i])
    def gap(multiplier, move=move, i=i):
      return w[i] @ (p[i] + move(multiplier)) - b[i]
    multiplier = optimize.brentq(gap, -1e9, 1e9, xtol=1e-13, rtol=1e-15,
                                 maxiter=500)
    np.testing.assert_allclose(got[i], move(multiplier), atol=1e-8)


def test_l1_is_optimal():
  p, w, b = problems()
  got = project(p, w, b, 'L1')
  for i in np.flatnonzero(reachable(p, w, b)):
    # Variables are the moves up and down, both at least 0.
    solution = optimize.linprog(
        np.ones(2 * SIZE), A_eq=[[*w[i], *-w[i]]], b_eq=[b[i] - w[i] @ p[i]],
        bounds=[*zip(np.zeros(SIZE), 1 - p[i], strict=True),
                *zip(np.zeros(SIZE), p[i], strict=True)])
    np.testing.assert_allclose(np.abs(got[i]).sum(), solution.fun, atol=1e-7)


def test_l1_moves_equal_weights_by_equal_shares():
  p = np.array([[0.5, 0.5, 0.25, 0.5]])
  w = np.array([[2., -1., -1., 0.5]])
  # The steepest goes all the way, which leaves 0.25 to two of three others.
  got = project(p, w, np.array([0.5 - 1.25]), 'L1')
  share = 0.25 / (0.5 + 0.75)
  np.testing.assert_allclose(got, [[-0.5, 0.5 * share, 0.75 * share, 0]],
                             atol=1e-15)


@every_norm
def test_unreachable_plane_moves_to_the_bounds(norm):
  p = np.array([[0.2, 0.7, 0.5, 0.]] * 2)
  w = np.array([[1., -2., 0., 3.]] * 2)
  got = project(p, w, np.array([-9., 9.]), norm)
  np.testing.assert_allclose(p + got, [[0, 1, 0.5, 0], [1, 0, 0.5, 1]],
                             atol=1e-15)


@every_norm
def test_no_plane_and_a_plane_through_the_point_move_nothing(norm):
  p = np.array([[0.2, 0.7], [0.2, 0.7], [0., 1.]])
  w = np.array([[0., 0.], [2., -1.], [1., 1.]])
  got = project(p, w, np.array([3., 0.4 - 0.7, 1.]), norm)
  np.testing.assert_allclose(got, np.zeros((3, 2)), atol=1e-15)


@pytest.mark.parametrize('norm', ['L2', 'L1'])
def test_leaves_flat_coordinates(norm):
  p = np.full((2, 3), 0.5)
  w = np.array([[1., 1e-8, 2e-8], [0.9e-8, 0., 1e-9]])
  got = project(p, w, np.array([9., 9.]), norm)
  np.testing.assert_allclose(got, [[0.5, 0, 0.5], [0, 0, 0]], atol=1e-15)


@every_norm
@pytest.mark.parametrize('bounds', [(0., 255.), (-1., 1.), (0.25, 0.5)])
def test_scales_with_the_bounds(norm, bounds):
  p, w, b = problems()
  w[0], b[0] = 1e-8 * np.arange(SIZE), 5e-7
  low, high = bounds
  width = high - low
  scaled = w / width
  got = project(low + width * p, scaled, b + low * scaled.sum(1), norm, bounds)
  np.testing.assert_allclose(got / width, project(p, w, b, norm), rtol=0,
                             atol=1e-9)


@every_norm
def test_examples_and_shapes_do_not_matter(norm):
  p, w, b = problems()
  whole = project(p, w, b, norm)
  shape = (-1, 2, 3, 2)
  np.testing.assert_array_equal(
      project(p.reshape(shape), w.reshape(shape), b, norm),
      whole.reshape(shape))
  np.testing.assert_allclose(project(p[5:8], w[5:8], b[5:8], norm),
                             whole[5:8], rtol=0, atol=1e-14)
  one_by_one = jax.vmap(lambda p, w, b: compiled(
      p[None], w[None], b[None], UNIT, norm)[0])(*map(jnp.asarray, (p, w, b)))
  np.testing.assert_allclose(one_by_one, whole, rtol=0, atol=1e-14)


@every_norm
def test_compiling_changes_nothing(norm):
  p, w, b = problems()
  np.testing.assert_allclose(
      box_projection.project_onto_hyperplane(
          *map(jnp.asarray, (p, w, b)), UNIT, norm),
      project(p, w, b, norm), rtol=0, atol=1e-14)


# Every size of normal, so that products may vanish or dominate others.
weights = st.one_of(st.just(0.), st.floats(-1, 1), st.floats(-1e6, 1e6),
                    st.floats(-1e-7, 1e-7))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    p=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    w=st.lists(weights, min_size=5, max_size=5), b=st.floats(-1e7, 1e7),
    near=st.booleans(), norm=st.sampled_from(geometry.NORMS),
    bounds=st.sampled_from([UNIT, (-1., 1.), (0., 255.)]),
    dtype=st.sampled_from([np.float32, np.float64]))
def test_stays_in_the_box(p, w, b, near, norm, bounds, dtype):
  low, high = bounds
  p = np.array([p]) * (high - low) + low
  w = np.array([w])
  b = (w * p).sum(1) + b * 1e-8 if near else np.array([b])
  p, w, b = (array.astype(dtype) for array in (p, w, b))
  p = np.clip(p, low, high)
  got = project(p, w, b, norm, bounds)
  assert got.dtype == dtype
  assert np.isfinite(got).all()
  slack = 4 * np.finfo(dtype).eps * (high - low)
  assert low - slack <= (p + got).min() and (p + got).max() <= high + slack
  assert (got[w == 0] == 0).all()
  # Towards the plane, all coordinates.
  side = np.sign(b - (np.float64(w) * p).sum(1))
  gap = np.abs(b - (np.float64(w) * p).sum(1))
  noise = 1e-5 * (1 + np.abs(w).max() * max(abs(low), high))
  if gap > noise:
    assert (side[:, None] * w * got >= 0).all()
