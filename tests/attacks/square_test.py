"""Tests of ferd_jax.attacks.square, also against the official PyTorch code."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import attack as attack_lib
from ferd_jax.attacks import geometry
from ferd_jax.attacks import square

BOUNDS = (0., 1.)
BATCH, SHAPE = 12, (6, 6, 2)
EPS = {'Linf': 0.12, 'L2': 0.8, 'L1': 5.}
ORDERS = {'Linf': np.inf, 'L2': 2, 'L1': 1}
every_norm = pytest.mark.parametrize('norm', [
    'Linf', 'L1', pytest.param('L2', marks=pytest.mark.slow)])


pytestmark = pytest.mark.usefixtures('float64')


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape)


class Net:
  """A two-layer tanh net, and its logits without JAX."""

  def __init__(self, shape, num_classes=3, seed=1):
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    self.first = 3 * rng.normal(size=(size, 8)) / np.sqrt(size)
    self.second = rng.normal(size=(8, num_classes))

  def __call__(self, x, tanh=jnp.tanh):
    return tanh((x - 0.5).reshape(len(x), -1) @ self.first) @ self.second

  def logits(self, x):
    return self(np.asarray(x), np.tanh)


NET = Net(SHAPE)
IMAGES = draw(BATCH, *SHAPE)


def keys(batch, seed=0):
  return jax.random.split(jax.random.key(seed), batch)


def problem_of(net, x, eps, y=None, x_init=None):
  """Returns the problem whose labels are what the net predicts."""
  y = np.argmax(net.logits(x), axis=-1) if y is None else np.asarray(y)
  return attack_lib.Problem(
      jnp.asarray(x), jnp.asarray(y), None,
      jnp.asarray(np.broadcast_to(eps, len(x)).astype(x.dtype)), keys(len(x)),
      x_init)


@functools.cache
def programs(attack, net):
  def steps(problem, state, num_steps):
    def step(state, _):
      state = attack.step(net, problem, state)
      return state, state
    return lax.scan(step, state, length=num_steps)[1]
  return jax.jit(attack.init), jax.jit(steps, static_argnums=2)


def trace(attack, net, problem, num_steps=None):
  """Returns the states `[steps + 1, B, ...]`, with NumPy leaves."""
  init, steps = programs(attack, net)
  state = init(problem)
  states = steps(problem, state, num_steps or attack.num_steps)
  return jax.tree.map(
      lambda first, later: np.concatenate([first[None], later]),
      *jax.device_get((state, states)))


def rows(tree, *index):
  return jax.tree.map(lambda leaf: leaf[index], tree)


@functools.cache
def search(norm):
  """Returns an attack, its problem and its states; 2 steps are too many."""
  attack = square.Square(EPS[norm], norm, num_queries=30,
                         rescale_schedule=True, unroll=False)
  problem = problem_of(NET, IMAGES, attack.eps)
  return attack, problem, trace(attack, NET, problem, attack.num_steps + 2)


def assert_trees_close(got, expected):
  jax.tree.map(lambda left, right: np.testing.assert_allclose(
      left, right, atol=1e-12), got, expected)


def size(delta, norm):
  flat = delta.reshape(len(delta), -1)
  return np.linalg.norm(flat, ORDERS[norm], axis=1)


def margin(logits, y):
  others = np.array(logits)
  others[np.arange(len(y)), y] = -np.inf
  return np.asarray(logits)[np.arange(len(y)), y] - others.max(axis=1)


# Schedules.


@pytest.mark.parametrize(('size', 'sides'), [
    (28, [25, 18, 13, 9, 6, 4, 3, 2]), (32, [29, 20, 14, 10, 7, 5, 4, 3]),
    (64, [57, 40, 29, 20, 14, 10, 7, 5])])
def test_sides(size, sides):
  got = square.window_sides((size, size), 5000, 0.8, False, 'Linf')
  assert got.dtype == np.int32 and got.shape == (5000,)
  starts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 5000]
  np.testing.assert_array_equal(got, np.repeat(sides, np.diff(starts)))


def test_rescaled_sides():
  got = square.window_sides((32, 32), 5000, 0.8, True, 'Linf')
  starts = [0, 6, 26, 101, 251, 501, 1001, 2001, 3001, 4001, 5000]
  np.testing.assert_array_equal(got, np.repeat(
      [29, 20, 14, 10, 7, 5, 4, 3, 2, 1], np.diff(starts)))


@pytest.mark.parametrize('norm', ['L2', 'L1'])
def test_sides_of_pyramids_are_odd(norm):
  got = square.window_sides((32, 32), 5000, 0.8, False, norm)
  starts = [0, 11, 51, 201, 501, 1001, 4001, 5000]
  np.testing.assert_array_equal(got, np.repeat(
      [29, 21, 15, 11, 7, 5, 3], np.diff(starts)))
  # No window is larger than the image, whose side may be even.
  np.testing.assert_array_equal(
      square.window_sides((4, 4), 3, 0.8, False, norm), [4, 4, 4])
  np.testing.assert_array_equal(
      square.window_sides((1, 9), 2, 0.8, False, norm), [1, 1])


@pytest.mark.parametrize(('shape', 'side'), [
    ((10,), 8), ((8, 8, 8), 7), ((4, 9), 4), ((1, 1), 1)])
def test_sides_for_any_number_of_axes(shape, side):
  assert square.window_sides(shape, 1, 0.8, False, 'Linf')[0] == side


@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('num_queries', [100, 5000, 12000])
def test_shares_against_official(official, num_queries, rescale):
  reference = official(None, n_queries=num_queries, resc_schedule=rescale)
  np.testing.assert_array_equal(
      square.window_shares(num_queries, 0.8, rescale),
      [reference.p_selection(i) for i in range(num_queries)])


# Windows and patterns.


def test_window():
  corner = np.array([[1, 0], [2, 3], [0, 0]])
  side = np.array([2, 1, 4])
  expected = np.zeros((3, 4, 5, 1), bool)
  expected[0, 1:3, 0:2] = expected[1, 2, 3] = expected[2, :4, :4] = True
  np.testing.assert_array_equal(
      square.window((4, 5), corner, side), expected)


def pyramid(height, width, norm='L2'):
  order = ORDERS[norm]
  values = np.zeros((height, width))
  row, column = height // 2, width // 2
  for k in range(max(row, column) + 1):
    values[max(row - k, 0):row + k + 1,
           max(column - k, 0):column + k + 1] += 1 / (k + 1) ** (
               {'L2': 2, 'L1': 4}[norm])
  return values / max(np.linalg.norm(values.ravel(), order), 1e-300)


pattern = jax.jit(square.pattern, static_argnums=(0, 4, 5))


@pytest.mark.parametrize('norm', ['L2', 'L1'])
def test_pattern(norm):
  sides = np.tile(np.arange(1, 14), 2)
  axis = np.repeat([0, 1], 13)
  corner = np.stack([14 - sides, sides // 3], axis=1)
  expected = np.zeros((26, 14, 20, 1))
  for i, side in enumerate(sides):
    cut = np.concatenate([pyramid(side // 2, side, norm),
                          -pyramid(side - side // 2, side, norm)])
    cut = (cut.T if axis[i] else cut) / np.linalg.norm(cut.ravel(),
                                                       ORDERS[norm])
    row, column = corner[i]
    expected[i, row:row + side, column:column + side, 0] = cut
  got = pattern((14, 20), corner, sides, axis, np.float64, norm)
  np.testing.assert_allclose(got, expected, atol=1e-14)
  # In float32 the smallest entries are as precise as the others.
  got = pattern((14, 20), corner, sides, axis, np.float32, norm)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('shape', [(9,), (5, 6, 7)])
def test_pattern_for_any_number_of_axes(shape):
  num_axes = len(shape)
  axes = np.arange(num_axes)
  corner = np.ones((num_axes, num_axes), int)
  got = np.asarray(pattern(shape, corner, np.full(num_axes, 4), axes,
                           np.float64, 'L2'))
  np.testing.assert_array_equal(got[(slice(None), *np.indices((4,) * num_axes)
                                     + 1)] != 0, True)
  assert (got != 0).sum() == num_axes * 4 ** num_axes
  np.testing.assert_allclose(np.sum(got ** 2, axis=tuple(range(1, got.ndim))),
                             1)
  for axis in axes:
    signs = np.moveaxis(np.sign(got[axis, ..., 0]), axis, -1)
    expected = np.r_[0, 1, 1, -1, -1, np.zeros(shape[axis] - 5)]
    np.testing.assert_array_equal(signs[(1,) * (num_axes - 1)], expected)


# Starts.


def test_linf_start_is_stripes():
  problem = problem_of(Net((6, 5, 2)), np.full((50, 6, 5, 2), 0.5), 0.1)
  start = jax.jit(square.Square(0.1).init)(problem).candidate
  noise = np.asarray(start) - 0.5
  np.testing.assert_allclose(np.abs(noise), 0.1)
  np.testing.assert_array_equal(noise, np.broadcast_to(noise[:, :1],
                                                       noise.shape))
  stripes = np.sign(noise[:, 0])
  assert np.abs(stripes.mean(axis=0)).max() < 0.5  # All columns and channels,
  assert len(np.unique(stripes, axis=0)) > 45      # for each image anew.


@pytest.mark.parametrize(('shape', 'side', 'tiles'), [
    ((28, 28), 5, (5, 5)), ((32, 32), 6, (5, 5)), ((64, 64), 12, (5, 5)),
    ((24, 24), 4, (5, 5)), ((4, 4), 1, (4, 4)), ((1, 9), 1, (1, 5)),
    ((10, 30), 2, (5, 5)), ((50,), 10, (5,)), ((5, 5, 6), 1, (5, 5, 5))])
def test_start_tiles(shape, side, tiles):
  assert square.start_tiles(shape) == (side, tiles)


@pytest.mark.parametrize('norm', ['L2', 'L1'])
def test_tiled_start(norm):
  # Not the size of a whole number of tiles: one position is left at each end.
  shape, side, tiles = (12, 17), 2, (5, 5)
  x = np.full((2, *shape, 3), 0.5)
  axis = np.random.default_rng(0).integers(2, size=(2, *tiles))
  signs = np.sign(draw(2, *tiles, 3) - 0.5)
  eps = np.array([0.1, 0.3])[:, None, None, None]
  got = jax.jit(square.start_tiled, static_argnums=(4, 5))(
      x, eps.ravel(), axis, signs, BOUNDS, norm)
  cut = np.concatenate([pyramid(1, 2, norm), -pyramid(1, 2, norm)])
  cut = cut / np.linalg.norm(cut.ravel(), ORDERS[norm])
  delta = np.zeros_like(x)
  for n, i, j in np.ndindex(2, *tiles):
    row, column = 1 + side * i, 3 + side * j
    delta[n, row:row + side, column:column + side] = (
        cut.T if axis[n, i, j] else cut)[..., None] * signs[n, i, j]
  if norm == 'L2':
    expected = x + eps * delta / size(delta, norm)[:, None, None, None]
  else:  # Not scaled but projected.
    expected = geometry.of(norm).project(x + delta, x, (1 - 1e-6) * eps.ravel(),
                                         BOUNDS)
  np.testing.assert_allclose(got, expected, atol=1e-14)


@every_norm
def test_given_start(norm):
  attack, problem, _ = search(norm)
  init, _ = programs(attack, NET)
  near = np.clip(IMAGES + 0.01 * (draw(BATCH, *SHAPE, seed=1) - 0.5), 0, 1)
  far = np.concatenate([near[:6], IMAGES[6:] + 3])
  got = init(problem._replace(x_init=jnp.asarray(far)))
  np.testing.assert_allclose(got.candidate[:6], near[:6], atol=1e-12)
  start = np.asarray(got.candidate)
  assert size(start - IMAGES, norm).max() <= attack.eps + 1e-12
  assert start.max() <= 1


# Draws.

draws_of = jax.jit(square.draw, static_argnums=(3, 4))


def test_draws():
  side = np.repeat([3, 6, 8], 2000)
  draws = draws_of(keys(6000), np.ones(6000, int), side, (8, 9), 2)
  for corner in (draws.corner, draws.other):
    assert corner.dtype == jnp.int32
    for side_now, num_rows, num_columns in [(3, 5, 6), (6, 2, 3), (8, 1, 1)]:
      some = np.asarray(corner)[side == side_now]
      np.testing.assert_allclose(np.bincount(some[:, 0]) / 2000,
                                 np.full(num_rows, 1 / num_rows), atol=0.05)
      np.testing.assert_allclose(
          np.bincount(some[:, 1]) / 2000,
          np.full(num_columns, 1 / num_columns), atol=0.05)
  assert not np.array_equal(draws.corner, draws.other)
  signs = np.asarray(draws.signs)
  assert set(np.unique(signs)) == {-1, 1}
  np.testing.assert_allclose(signs.mean(axis=0), 0, atol=0.05)
  np.testing.assert_allclose(np.bincount(draws.axis) / 6000, [0.5, 0.5],
                             atol=0.05)
  # Another query of the same image draws anew.
  later = draws_of(keys(6000), np.full(6000, 2), side, (8, 9), 2)
  assert np.mean(np.asarray(later.signs) == signs) < 0.55


def test_draws_do_not_depend_on_x64():
  number, side = np.arange(1, 5, dtype=np.int32), np.full(4, 2, np.int32)
  with jax.enable_x64(False):
    single = jax.device_get(draws_of(keys(4), number, side, (8, 8), 3))
  double = draws_of(keys(4), number, side, (8, 8), 3)
  jax.tree.map(np.testing.assert_array_equal, double, single)


# One query.


def windows(*corners_and_sides):
  inside = np.zeros((len(corners_and_sides), 8, 8, 1), bool)
  for i, (row, column, side) in enumerate(corners_and_sides):
    inside[i, row:row + side, column:column + side] = True
  return inside


def test_linf_query_changes_the_window_only():
  x = draw(2, 8, 8, 2)
  best = np.clip(x + 0.1 * np.sign(draw(2, 8, 8, 2, seed=1) - 0.5), 0, 1)
  inside = windows((1, 2, 3), (0, 0, 2))
  signs = np.array([[1., -1.], [-1., -1.]])
  got = np.asarray(jax.jit(square.propose_linf, static_argnums=5)(
      x, best, np.array([0.1, 0.1]), inside, signs, BOUNDS))
  expected = np.where(inside, np.clip(x + 0.1 * signs[:, None, None], 0, 1),
                      best)
  np.testing.assert_allclose(got, expected, atol=1e-15)
  np.testing.assert_array_equal(np.where(inside, 0, got),
                                np.where(inside, 0, best))


def test_l2_query_empties_the_other_window():
  x = np.full((1, 8, 8, 2), 0.5)
  best = x + 0.05 * (draw(1, 8, 8, 2) - 0.5)
  eps = np.array([np.linalg.norm(best - x)])  # All is used: no rescaling.
  inside, other = windows((0, 0, 3)), windows((1, 2, 3))
  cut = pattern((8, 8), np.array([[0, 0]]), np.array([3]), np.array([0]),
                np.float64, 'L2')
  got = np.asarray(jax.jit(square.propose_moved, static_argnums=(7, 8))(
      x, best, eps, inside, other, cut, np.array([[1., -1.]]), BOUNDS,
      'L2')) - x
  np.testing.assert_allclose(np.where(other & ~inside, got, 0), 0, atol=1e-15)
  np.testing.assert_allclose(np.where(inside | other, 0, got),
                             np.where(inside | other, 0, best - x), atol=1e-15)
  for channel in range(2):  # Each channel keeps what its windows had.
    had = np.where(inside | other, best - x, 0)[..., channel]
    has = np.where(inside, got, 0)[..., channel]
    np.testing.assert_allclose(np.linalg.norm(has), np.linalg.norm(had))


@pytest.mark.parametrize('left', [0., 0.3])
def test_l1_query(left):
  x = draw(1, 8, 8, 2)
  best = np.clip(x + 0.1 * (draw(1, 8, 8, 2, seed=1) - 0.5), 0, 1)
  delta = best - x
  eps = np.abs(delta).sum() + left
  inside, other = windows((0, 0, 3)), windows((1, 2, 3))
  cut = pattern((8, 8), np.array([[0, 0]]), np.array([3]), np.array([0]),
                np.float64, 'L1')
  cut, signs = np.asarray(cut), np.array([[1., -1.]])
  got = jax.jit(square.propose_moved, static_argnums=(7, 8))(
      x, best, np.array([eps]), inside, other, cut, signs, BOUNDS, 'L1')
  def l1(values):
    return np.abs(values).sum((0, 1, 2))
  own = np.where(inside, delta, 0)
  new = cut * signs[:, None, None] + own / l1(own)
  # A channel gets what it had and its share of what is left, C times.
  had = l1(np.where(inside | other, delta, 0))
  new = new / l1(new) * 2 * (had + left / 2)
  moved = np.where(inside, new, np.where(other, 0, delta))
  np.testing.assert_allclose(got, geometry.of('L1').project(
      x + moved, x, np.array([eps * (1 - 1e-6)]), BOUNDS), atol=1e-12)


# The search.


# Vectors, of two classes; sequences; images: too small for tiles of the L2
# start, or of a size where the official one leaves the image; volumes.
@every_norm
@pytest.mark.parametrize('shape', [(30,), (9, 2), (4, 9, 3), (24, 24, 1),
                                   (3, 4, 5, 2)])
def test_every_state_stays_in_ball_and_bounds(shape, norm):
  eps = {'Linf': 0.15, 'L2': 0.4, 'L1': 2.}[norm]
  x = np.full((5, *shape), 0.5)
  x[:4] = np.round(4 * draw(4, *shape)) / 4  # Some pixels at a bound.
  net = Net(shape, num_classes=2 if len(shape) == 1 else 3)
  attack = square.Square(eps, norm, num_queries=15, rescale_schedule=True)
  problem = problem_of(net, x, eps)
  states = trace(attack, net, problem)
  for images in (*states.candidate, *states.x_best):
    assert images.shape == x.shape and np.isfinite(images).all()
    assert size(images - x, norm).max() <= eps + 1e-12
    assert 0 <= images.min() and images.max() <= 1
  # Where no bound is in the way, the radius is used up.
  np.testing.assert_allclose(
      size(states.candidate[:, 4] - 0.5, norm), eps,
      rtol=2e-6 if norm == 'L1' else 1e-7)
  lowest = states.margin_best
  assert (np.diff(lowest, axis=0)[1:] <= 0).all()
  assert (lowest[-1] < lowest[1]).any()  # Its start alone does not do it.
  np.testing.assert_allclose(
      lowest[-1], margin(net.logits(states.x_best[-1]), problem.y),
      atol=1e-12)


@every_norm
def test_fools(norm):
  attack, problem, states = search(norm)
  counts = states.fooled.sum(axis=1)
  assert 0 < counts[1] < counts[8] < counts[-1] < BATCH
  images = np.asarray(attack.images(problem, rows(states, -1)))
  fooled = states.fooled[-1]
  np.testing.assert_array_equal(
      np.argmax(NET.logits(images), axis=1) != problem.y, fooled)
  np.testing.assert_array_equal(images[~fooled], IMAGES[~fooled])
  assert size(images - IMAGES, norm).max() <= attack.eps + 1e-12


@every_norm
def test_done_examples_do_not_change(norm):
  attack, _, states = search(norm)
  np.testing.assert_array_equal(states.fooled, states.margin_best <= 0)
  for i in range(attack.num_steps + 2):
    before, after = rows(states, i), rows(states, i + 1)
    done = np.asarray(attack.done(before))
    for old, new in zip(before, after, strict=True):
      np.testing.assert_array_equal(new[done], old[done])
    np.testing.assert_array_equal(after.iteration[~done],
                                  before.iteration[~done] + 1)
  assert attack.done(rows(states, attack.num_steps)).all()
  assert states.iteration.max() == attack.num_steps == 31


@every_norm
def test_an_example_depends_on_its_own_key_and_iteration_only(norm):
  attack, problem, states = search(norm)
  some = np.array([2, 1, 7])
  assert_trees_close(trace(attack, NET, rows(problem, some), 8),
                     rows(states, slice(9), some))
  # Examples that are at different queries, as where images are exchanged.
  _, steps = programs(attack, NET)
  at = np.arange(BATCH) * 2
  later = steps(problem, rows(states, at, np.arange(BATCH)), 33)
  for i in (0, 4):
    assert_trees_close(rows(later, i),
                       rows(states, at + i + 1, np.arange(BATCH)))


@every_norm
def test_zero_radius_gives_the_image(norm):
  attack, problem, _ = search(norm)
  # The last label is wrong without any attack.
  y = problem.y.at[-1].add(1) % 3
  states = trace(attack, NET, problem._replace(y=y, eps=0 * problem.eps), 33)
  np.testing.assert_array_equal(
      states.candidate, np.broadcast_to(IMAGES, states.candidate.shape))
  np.testing.assert_array_equal(states.fooled[-1], np.arange(BATCH) == 11)
  np.testing.assert_array_equal(states.iteration[-1], [31] * 11 + [1])


def test_call_gives_the_images_of_the_last_state():
  attack, problem, states = search('Linf')
  @jax.jit
  def run(eps):
    return attack.run(NET, problem.keys, problem.x, problem.y, eps=eps)
  result = run(problem.eps)
  np.testing.assert_allclose(
      result.images, attack.images(problem, rows(states, -1)), atol=1e-12)
  np.testing.assert_array_equal(result.success, states.fooled[-1])
  # A radius per example; nothing resists a large one.
  mixed = run(jnp.where(np.arange(BATCH) < 6, 0., 0.9))
  np.testing.assert_array_equal(mixed.success, np.arange(BATCH) >= 6)


def test_restarts_go_on_with_what_is_not_fooled():
  attack, problem, states = search('Linf')
  attack = square.Square(attack.eps, num_queries=30, num_restarts=5,
                         rescale_schedule=True, unroll=False)
  result = jax.jit(lambda: attack.run(NET, problem.keys, problem.x,
                                      problem.y))()
  assert states.fooled[-1].sum() < result.success.sum()


@every_norm
def test_float32_stays_float32(norm):
  def net(x):
    return NET(x).astype(jnp.float32)
  net.logits = NET.logits
  attack = square.Square(np.float64(0.05), norm, num_queries=4)
  problem = problem_of(net, IMAGES.astype(np.float32), 0.05)
  states = trace(attack, net, problem)  # A loop: no step changes a dtype.
  assert [leaf.dtype for leaf in states] == [
      np.int32, np.float32, np.float32, np.float32, bool, bool]
  np.testing.assert_allclose(
      size(states.candidate[0] - IMAGES.astype(np.float32), norm).max(), 0.05,
      atol=1e-6 if norm == 'Linf' else 0.01)


@every_norm
def test_radius_scales_with_the_bounds(norm):
  attack, problem, states = search(norm)
  scaled = square.Square(attack.eps * 255, norm, num_queries=30,
                         rescale_schedule=True, bounds=(0., 255.))
  wide = trace(scaled, lambda x: NET(x / 255), problem._replace(
      x=problem.x * 255, eps=problem.eps * 255))
  np.testing.assert_allclose(wide.x_best / 255, states.x_best[:-2],
                             atol=1e-12)
  np.testing.assert_array_equal(wide.iteration, states.iteration[:-2])


def test_a_tie_ends_the_search_without_success():
  x = draw(2, 4, 4, 1)
  def net(x):
    return jnp.zeros((len(x), 3)) + 0 * x[:, 0, 0]
  attack = square.Square(0.1, num_queries=3)
  problem = problem_of(None, x, 0.1, y=[0, 2])
  state = rows(trace(attack, net, problem), -1)
  np.testing.assert_array_equal(state.margin_best, [0, 0])
  assert state.fooled.all()
  np.testing.assert_array_equal(state.iteration, [1, 1])
  images = attack.images(problem, state)
  np.testing.assert_array_equal(images, state.x_best)
  # The first of equal logits is the prediction.
  result = jax.jit(functools.partial(attack.result, net))(
      problem, images, jnp.ones(2, bool))
  np.testing.assert_array_equal(result.success, [False, True])


def test_logits_that_are_not_finite_fool_nobody():
  attack, problem, _ = search('Linf')
  init, _ = programs(attack, NET)
  y, first = problem.y, init(problem).candidate
  index = np.arange(BATCH)
  # Other logits than the label's; an odd example's on the start only.
  bad = np.resize([np.nan, np.inf, np.inf, np.nan], BATCH)[:, None]
  where = np.asarray(y)[:, None] != np.arange(3)
  def net(x):
    at_start = jnp.all(x == first, axis=(1, 2, 3))
    now = at_start | (index % 2 == 0)
    return jnp.where(now[:, None] & where, bad, NET(x))
  states = trace(attack, net, problem)
  assert not states.finite[1:].any()
  largest = np.finfo(states.margin_best.dtype).max
  np.testing.assert_array_equal(states.margin_best[1], largest)
  last = rows(states, -1)
  np.testing.assert_array_equal(last.margin_best == largest, index % 2 == 0)
  assert last.fooled.any() and not last.fooled[::2].any()
  np.testing.assert_array_equal(last.x_best[::2], first[::2])


@pytest.mark.parametrize(('options', 'message'), [
    (dict(eps=-0.1), 'eps=-0.1'), (dict(norm='L0'), "norm='L0'"),
    (dict(num_queries=0), 'num_queries=0'), (dict(p_init=0), 'p_init=0'),
    (dict(p_init=1.5), 'p_init=1.5'), (dict(num_restarts=0), 'num_restarts=0'),
    (dict(bounds=(1., 0.)), r'bounds=\(1.0, 0.0\)')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    square.Square(**{'eps': 0.1, **options})


def test_settings_are_hashable():
  attack = square.Square(np.float32(0.5), p_init=np.float64(0.8),
                         bounds=np.array([0., 1.]))
  assert attack == square.Square(0.5)
  assert hash(attack) == hash(square.Square(0.5))


# Against the official code.


@pytest.fixture
def official(monkeypatch):
  """Returns the official attack's class, in float64, which logs its draws."""
  torch = pytest.importorskip('torch')
  module = pytest.importorskip('pyautoattack.square')

  class Logged(module.SquareAttack):

    def __init__(self, net, **options):
      self.queried, self.logits = [], []
      self.signs, self.offsets, self.places, self.axes = [], [], [], []
      super().__init__(self.called(net), device='cpu', **options)

    def called(self, net):
      def predict(x):
        logits = net(x)
        self.queried.append(x.numpy().copy())
        self.logits.append(logits.numpy().copy())
        return logits
      return predict

    def check_shape(self, x):
      # In L1 an entry that the projection takes back differs from the image by
      # rounding; a window of nothing else would be scaled up to noise.
      x = super().check_shape(x)
      if self.norm == 'L1':
        x = torch.where((x - self.image).abs() < 1e-12, self.image, x)
      return x

    def random_choice(self, shape):
      signs = super().random_choice(shape)
      self.signs.append(signs.numpy().copy())
      return signs

    def random_int(self, low=0, high=1, shape=(1,)):
      offset = super().random_int(low, high, shape)
      self.offsets.append(int(offset))
      self.places.append(high - low)
      return offset

    def eta(self, s):
      delta = super().eta(s)
      self.axes.append(int(delta[0, -1] < 0))  # Which is cut: the columns.
      return delta

  before = torch.get_default_dtype()
  torch.set_default_dtype(torch.float64)
  # Its projection onto the L1 ball casts to float32.
  monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
  yield Logged
  torch.set_default_dtype(before)


def stepped_nets(torch, shape, smooth):
  """Returns a net twice, (JAX NHWC, PyTorch NCHW).

  Unless smooth it rounds the pixels to integers and is of integers from there
  on, so that its logits are the same in both to the last bit. The classes
  differ by fractions: there are no ties, on which upstream queries nothing.
  """
  rng = np.random.default_rng(3)
  size = int(np.prod(shape))
  first = rng.integers(-3, 4, size=(size, 8)).astype(float)
  second = rng.integers(-3, 4, size=(8, 4)).astype(float)
  bias = rng.integers(-300, 300, size=8).astype(float)
  fractions = np.arange(4) / 4
  def of_jax(x):
    x = x.reshape(len(x), -1)
    if smooth:
      return jnp.tanh((x - 0.5) @ first / 4) @ second
    hidden = jnp.maximum(jnp.round(255 * x) @ first + bias[None], 0)
    return hidden @ second + fractions[None]
  def of_torch(x):
    x = x.permute(0, 2, 3, 1).flatten(1)
    layers = [torch.from_numpy(layer)
              for layer in (first, second, bias, fractions)]
    if smooth:
      return torch.tanh((x - 0.5) @ layers[0] / 4) @ layers[1]
    hidden = torch.round(255 * x) @ layers[0] + layers[2]
    return torch.clamp(hidden, min=0) @ layers[1] + layers[3]
  return of_jax, of_torch


def lowest_margins(logits, y):
  """Returns the margin accepted last after each of one image's queries."""
  lowest = []
  for row in logits:
    now = margin(row, y)[0]
    if not lowest or now < lowest[-1] or now <= 0:
      lowest.append(now)
    else:
      lowest.append(lowest[-1])
  return np.array(lowest)


@pytest.mark.parametrize(('norm', 'rescale'), [
    ('Linf', False), pytest.param('Linf', True, marks=pytest.mark.slow),
    pytest.param('L2', False, marks=pytest.mark.slow), ('L2', True),
    ('L1', False)])
def test_equals_official_given_its_draws(official, monkeypatch, norm, rescale):
  """Every queried image and margin, of images attacked one by one there."""
  torch = pytest.importorskip('torch')
  shape, num_queries, batch = (11, 11, 3), 300, 6
  eps = {'Linf': 8 / 255, 'L2': 0.5, 'L1': 4.}[norm]
  net, torch_net = stepped_nets(torch, shape, smooth=norm != 'Linf')
  # Pixels at the bounds keep L2's perturbation shorter than eps. The budget of
  # an empty window is the root of what is left of eps^2: of rounding noise, if
  # nothing is.
  x = np.clip(2 * draw(batch, *shape, seed=5) - 0.5, 0, 1)
  y = np.array(jnp.argmax(net(jnp.asarray(x)), axis=-1))
  num_windows = 1 if norm == 'Linf' else 2
  start_linf = jax.jit(square.start_linf, static_argnums=3)
  start_tiled = jax.jit(square.start_tiled, static_argnums=(4, 5))

  runs, starts = [], []
  corners = np.zeros((num_queries, batch, 2, 2), np.int32)
  axes = np.zeros((num_queries, batch), np.int32)
  signs = np.ones((num_queries, batch, 3))
  sides = square.window_sides(shape[:2], num_queries, 0.8, rescale, norm)
  for i in range(batch):
    run = official(torch_net, norm=norm, eps=eps, n_queries=num_queries,
                   resc_schedule=rescale)
    torch.manual_seed(i)
    image = torch.from_numpy(x[i:i + 1].transpose(0, 3, 1, 2).copy())
    run.init_hyperparam(image)
    run.image = image
    _, run.x_best = run.attack_single_run(image, torch.from_numpy(y[i:i + 1]))
    runs.append(run)
    if norm == 'Linf':
      starts.append(start_linf(x[i:i + 1], np.array([eps]),
                               run.signs[0].transpose(0, 2, 3, 1), BOUNDS))
    else:
      starts.append(start_tiled(
          x[i:i + 1], np.array([eps]), np.reshape(run.axes[:25], (1, 5, 5)),
          np.reshape(run.signs[:25], (1, 5, 5, 3)), BOUNDS, norm))
    count = len(run.queried) - 1
    corners[:count, i, :num_windows] = np.reshape(
        run.offsets, (count, num_windows, 2))
    signs[:count, i] = np.reshape(run.signs[len(run.signs) - count:],
                                  (count, 3))
    axes[:count, i] = run.axes[25:] if norm != 'Linf' else 0
    np.testing.assert_array_equal(
        11 - np.reshape(run.places, (count, 2 * num_windows)),
        np.repeat(sides[:count, None], 2 * num_windows, axis=1))

  def given(keys, number, side, shape, num_channels):
    del keys, side, shape, num_channels
    at = number - 1, np.arange(batch)
    return square.Draws(*(jnp.asarray(table)[at] for table in (
        corners[:, :, 0], corners[:, :, 1], axes, signs)))
  monkeypatch.setattr(square, 'draw', given)
  attack = square.Square(eps, norm, num_queries, rescale_schedule=rescale)
  problem = problem_of(None, x, eps, y=y, x_init=np.concatenate(starts))
  states = trace(attack, net, problem)

  tolerance = 0 if norm == 'Linf' else 1e-9
  counts = [len(run.queried) for run in runs]
  assert min(counts) < 200 and max(counts) == num_queries + 1
  np.testing.assert_array_equal(states.iteration[-1], counts)
  for i, (run, count) in enumerate(zip(runs, counts, strict=True)):
    queried = np.concatenate(run.queried).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(states.candidate[:count, i], queried, rtol=0,
                               atol=tolerance)
    np.testing.assert_allclose(
        states.x_best[-1, i], run.x_best[0].numpy().transpose(1, 2, 0),
        rtol=0, atol=tolerance)
    margins = states.margin_best[1:count + 1, i]
    lowest = lowest_margins(run.logits, y[i:i + 1])
    np.testing.assert_allclose(margins, lowest, rtol=0, atol=tolerance)
    # The same queries were accepted.
    np.testing.assert_array_equal(np.diff(margins) == 0, np.diff(lowest) == 0)
