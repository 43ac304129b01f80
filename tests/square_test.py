"""Tests of ferd_jax.attacks.square, also against the official PyTorch code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import attack as attack_lib
from ferd_jax.attacks import geometry
from ferd_jax.attacks import square

BOUNDS = (0., 1.)
# Vectors, sequences, images (not square, too small or of a size where the
# official L2 start leaves the image), volumes.
SHAPES = [(7,), (9, 2), (6, 9, 2), (4, 4, 3), (24, 24, 1), (3, 4, 5, 2),
          (1, 1, 3)]


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape)


def smooth_net(shape, num_classes=3, seed=0):
  """Returns a two-layer tanh net, images -> logits."""
  rng = np.random.default_rng(seed)
  size = int(np.prod(shape))
  first = rng.normal(size=(size, 8)) / np.sqrt(size)
  second = rng.normal(size=(8, num_classes))
  return lambda x: jnp.tanh(
      3 * (x - 0.5).reshape(len(x), -1) @ first) @ second


def keys(batch, seed=0):
  return jax.random.split(jax.random.key(seed), batch)


def problem_of(net, x, eps, seed=0, y=None, x_init=None):
  """Returns the problem whose labels are what the net predicts."""
  x = jnp.asarray(x)
  y = jnp.argmax(net(x), axis=-1) if y is None else jnp.asarray(y)
  return attack_lib.Problem(
      x, y, None, jnp.broadcast_to(jnp.asarray(eps, x.dtype), x.shape[:1]),
      keys(len(x), seed), x_init)


def trace(attack, net, problem, num_steps=None):
  """Returns all states, with NumPy leaves."""
  step = jax.jit(lambda state: attack.step(net, problem, state))
  states = [attack.init(problem)]
  for _ in range(num_steps or attack.num_steps):
    states.append(step(states[-1]))
  return [jax.tree.map(np.asarray, state) for state in states]


def assert_trees_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


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


def test_sides_of_l2_are_odd():
  got = square.window_sides((32, 32), 5000, 0.8, False, 'L2')
  starts = [0, 11, 51, 201, 501, 1001, 4001, 5000]
  np.testing.assert_array_equal(got, np.repeat(
      [29, 21, 15, 11, 7, 5, 3], np.diff(starts)))
  # No window is larger than the image, whose side may be even.
  np.testing.assert_array_equal(
      square.window_sides((4, 4), 3, 0.8, False, 'L2'), [4, 4, 4])
  np.testing.assert_array_equal(
      square.window_sides((1, 9), 2, 0.8, False, 'L2'), [1, 1])


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
  np.testing.assert_array_equal(square.window((4, 5), corner, side), expected)


def pyramid(height, width):
  values = np.zeros((height, width))
  row, column = height // 2, width // 2
  for k in range(max(row, column) + 1):
    values[max(row - k, 0):row + k + 1,
           max(column - k, 0):column + k + 1] += 1 / (k + 1) ** 2
  return values / max(np.linalg.norm(values), 1e-300)


@pytest.mark.parametrize('axis', [0, 1])
def test_pattern(axis):
  sides = np.arange(1, 14)
  corner = np.stack([14 - sides, sides // 3], axis=1)
  got = square.pattern((14, 20), corner, sides, np.full(13, axis), np.float64)
  expected = np.zeros((13, 14, 20, 1))
  for i, side in enumerate(sides):
    cut = np.concatenate([pyramid(side // 2, side),
                          -pyramid(side - side // 2, side)])
    cut = (cut.T if axis else cut) / np.linalg.norm(cut)
    row, column = corner[i]
    expected[i, row:row + side, column:column + side, 0] = cut
  np.testing.assert_allclose(got, expected, atol=1e-14)
  # In float32 the smallest entries are as precise as the others.
  single = square.pattern((14, 20), corner, sides, np.full(13, axis),
                          np.float32)
  np.testing.assert_allclose(single, expected, rtol=1e-5)


@pytest.mark.parametrize('shape', [(9,), (5, 6, 7)])
def test_pattern_for_any_number_of_axes(shape):
  num_axes = len(shape)
  axes = np.arange(num_axes)
  corner = np.ones((num_axes, num_axes), int)
  side = np.full(num_axes, 4)
  got = np.asarray(square.pattern(shape, corner, side, axes, np.float64))
  inside = np.asarray(square.window(shape, corner, side))
  np.testing.assert_array_equal(got != 0, inside)
  np.testing.assert_allclose(np.sum(got ** 2, axis=tuple(range(1, got.ndim))),
                             1)
  for axis in axes:
    signs = np.moveaxis(np.sign(got[axis, ..., 0]), axis, -1)
    expected = np.r_[0, 1, 1, -1, -1, np.zeros(shape[axis] - 5)]
    np.testing.assert_array_equal(signs[(1,) * (num_axes - 1)], expected)


# Starts.


def test_linf_start_is_stripes():
  problem = problem_of(smooth_net((6, 5, 2)), np.full((50, 6, 5, 2), 0.5),
                       0.1)
  start = square.Square(0.1).init(problem).candidate
  noise = np.asarray(start) - 0.5
  np.testing.assert_allclose(np.abs(noise), 0.1)
  np.testing.assert_array_equal(noise, np.broadcast_to(noise[:, :1],
                                                       noise.shape))
  stripes = np.sign(noise[:, 0])
  assert np.abs(stripes.mean(axis=0)).max() < 0.5  # All columns and channels,
  assert len(np.unique(stripes, axis=0)) > 45      # for each image anew.


def test_linf_start_of_vectors_and_sequences():
  for shape in [(40,), (20, 3)]:
    problem = problem_of(smooth_net(shape), np.full((4, *shape), 0.5), 0.1)
    noise = np.asarray(square.Square(0.1).init(problem).candidate) - 0.5
    np.testing.assert_allclose(np.abs(noise), 0.1)
    assert 0.3 < np.mean(noise > 0) < 0.7


@pytest.mark.parametrize(('shape', 'side', 'tiles'), [
    ((28, 28), 5, (5, 5)), ((32, 32), 6, (5, 5)), ((64, 64), 12, (5, 5)),
    ((24, 24), 4, (5, 5)), ((4, 4), 1, (4, 4)), ((1, 9), 1, (1, 5)),
    ((10, 30), 2, (5, 5)), ((50,), 10, (5,)), ((5, 5, 6), 1, (5, 5, 5))])
def test_l2_start_tiles(shape, side, tiles):
  assert square.start_tiles(shape) == (side, tiles)
  x = np.full((2, *shape, 2), 0.5)
  problem = problem_of(smooth_net(x.shape[1:]), x, 0.1)
  attack = square.Square(0.1, 'L2')
  noise = np.asarray(attack.init(problem).candidate) - 0.5
  np.testing.assert_allclose(geometry.size(noise, 'L2'), 0.1)
  touched = (noise != 0).reshape(-1, *shape, 2)
  assert touched.sum() == 2 * 2 * side ** len(shape) * np.prod(tiles)
  assert not np.array_equal(noise[0], noise[1])


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_given_start(norm):
  x = draw(3, 4, 4, 2)
  net = smooth_net((4, 4, 2))
  attack = square.Square(0.1, norm)
  near = np.clip(x + 0.01 * (draw(3, 4, 4, 2, seed=1) - 0.5), 0, 1)
  start = attack.init(problem_of(net, x, 0.1, x_init=jnp.asarray(near)))
  np.testing.assert_allclose(start.candidate, near, atol=1e-12)
  far = attack.init(problem_of(net, x, 0.1, x_init=jnp.asarray(x + 3)))
  assert np.max(geometry.size(far.candidate - x, norm)) <= 0.1 + 1e-12
  assert np.max(far.candidate) <= 1


# Draws.


def test_draws():
  side = np.repeat([3, 6, 8], 2000)
  draws = square.draw(keys(6000), np.ones(6000, int), side, (8, 9), 2)
  for corner in (draws.corner, draws.other):
    assert corner.dtype == jnp.int32
    for side_now, rows, columns in [(3, 5, 6), (6, 2, 3), (8, 1, 1)]:
      some = np.asarray(corner)[side == side_now]
      np.testing.assert_allclose(np.bincount(some[:, 0]) / 2000,
                                 np.full(rows, 1 / rows), atol=0.05)
      np.testing.assert_allclose(np.bincount(some[:, 1]) / 2000,
                                 np.full(columns, 1 / columns), atol=0.05)
  assert not np.array_equal(draws.corner, draws.other)
  assert set(np.unique(draws.signs)) == {-1, 1}
  np.testing.assert_allclose(np.mean(draws.signs, axis=0), 0, atol=0.05)
  np.testing.assert_allclose(np.bincount(draws.axis) / 6000, [0.5, 0.5],
                             atol=0.05)


def test_draws_do_not_depend_on_x64():
  get = functools.partial(square.draw, number=np.arange(1, 5, dtype=np.int32),
                          side=np.full(4, 2, np.int32), shape=(8, 8),
                          num_channels=3)
  with jax.enable_x64(False):
    single = jax.tree.map(np.asarray, get(keys(4)))
  assert_trees_equal(get(keys(4)), single)
  # Another query of the same image draws anew.
  later = square.draw(keys(4), np.arange(2, 6), np.full(4, 2), (8, 8), 3)
  assert not np.array_equal(later.corner, single.corner)


# One query.


def test_linf_query_changes_the_window_only():
  x = draw(2, 5, 6, 2)
  best = np.clip(x + 0.1 * np.sign(draw(2, 5, 6, 2, seed=1) - 0.5), 0, 1)
  inside = np.asarray(square.window((5, 6), np.array([[1, 2], [0, 0]]),
                                    np.array([3, 2])))
  signs = np.array([[1., -1.], [-1., -1.]])
  got = np.asarray(square.propose_linf(x, best, np.array([0.1, 0.1]), inside,
                                       signs, BOUNDS))
  expected = np.where(inside, np.clip(x + 0.1 * signs[:, None, None], 0, 1),
                      best)
  np.testing.assert_allclose(got, expected, atol=1e-15)
  np.testing.assert_array_equal(np.where(inside, 0, got),
                                np.where(inside, 0, best))


def test_l2_query_empties_the_other_window():
  x = np.full((1, 8, 8, 2), 0.5)
  best = x + 0.05 * (draw(1, 8, 8, 2) - 0.5)
  eps = geometry.size(best - x, 'L2')  # Nothing is left: no rescaling.
  corner, side = np.array([[0, 0]]), np.array([3])
  inside = np.asarray(square.window((8, 8), corner, side))
  other = np.asarray(square.window((8, 8), np.array([[1, 4]]), side))
  cut = square.pattern((8, 8), corner, side, np.array([0]), np.float64)
  got = np.asarray(square.propose_l2(x, best, eps, inside, other, cut,
                                     np.array([[1., -1.]]), BOUNDS))
  assert (np.where(other, got - x, 0) == 0).all()
  np.testing.assert_allclose(np.where(inside | other, 0, got),
                             np.where(inside | other, 0, best))
  for channel in range(2):  # Each channel keeps what its windows had.
    had = np.where(inside | other, best - x, 0)[..., channel]
    has = np.where(inside, got - x, 0)[..., channel]
    np.testing.assert_allclose(np.linalg.norm(has), np.linalg.norm(had))


# The search.


@pytest.mark.parametrize('norm', geometry.NORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_every_state_stays_in_ball_and_bounds(shape, norm):
  eps = 0.15 if norm == 'Linf' else 0.4
  x = np.round(4 * draw(5, *shape)) / 4  # Some pixels at a bound.
  net = smooth_net(shape)
  attack = square.Square(eps, norm, num_queries=15, rescale_schedule=True)
  problem = problem_of(net, x, eps)
  states = trace(attack, net, problem)
  before = margin(net(problem.x), np.asarray(problem.y))
  for state in states:
    for images in (state.candidate, state.x_best,
                   attack.images(problem, state)):
      assert images.shape == x.shape and np.isfinite(images).all()
      assert np.max(geometry.size(images - x, norm)) <= eps + 1e-12
      assert 0 <= images.min() and images.max() <= 1
  margins = np.stack([state.margin_best for state in states])
  assert (np.diff(margins, axis=0) <= 0)[1:].all()
  assert (margins[-1] < before).all()  # The search gets somewhere,
  assert (margins[-1] < margins[1]).any()  # and not by its start alone.
  last = states[-1]
  np.testing.assert_array_equal(
      last.margin_best, margin(net(jnp.asarray(last.x_best)),
                               np.asarray(problem.y)))


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_fools(norm):
  shape = (8, 8, 3)
  x, net = draw(16, *shape), smooth_net(shape, seed=1)
  eps = 0.15 if norm == 'Linf' else 1.5
  attack = square.Square(eps, norm, num_queries=100, unroll=False)
  problem = problem_of(net, x, eps)
  result = jax.jit(lambda: attack.run(net, problem.keys, problem.x,
                                      problem.y))()
  start = attack.result(net, problem, attack.init(problem).candidate)
  assert start.success.sum() + 2 <= result.success.sum() >= 8
  # What is not fooled is the clean image.
  np.testing.assert_array_equal(result.images[~result.success],
                                x[~np.asarray(result.success)])
  assert result.norm.max() <= eps + 1e-12


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_done_examples_do_not_change(norm):
  shape = (6, 6, 2)
  x, net = draw(12, *shape), smooth_net(shape, seed=1)
  eps = 0.15 if norm == 'Linf' else 0.8
  attack = square.Square(eps, norm, num_queries=30)
  problem = problem_of(net, x, eps)
  states = trace(attack, net, problem, num_steps=attack.num_steps + 2)
  assert 0 < attack.done(states[1]).sum() < 12  # At the start and later.
  assert attack.done(states[-4]).sum() > attack.done(states[1]).sum()
  for before, after in zip(states[:-1], states[1:], strict=True):
    done = np.asarray(attack.done(before))
    np.testing.assert_array_equal(after.fooled, after.margin_best <= 0)
    for old, new in zip(before, after, strict=True):
      np.testing.assert_array_equal(new[done], old[done])
    np.testing.assert_array_equal(after.iteration[~done],
                                  before.iteration[~done] + 1)
  assert attack.done(states[-3]).all()  # All queries are made.
  assert states[-1].iteration.max() == attack.num_steps == 31


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_an_example_depends_on_its_own_key_and_iteration_only(norm):
  shape = (6, 6, 2)
  x, net = draw(4, *shape), smooth_net(shape)
  attack = square.Square(0.05, norm, num_queries=20, rescale_schedule=True)
  problem = problem_of(net, x, 0.05)
  states = trace(attack, net, problem)

  def rows(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)
  fewer = trace(attack, net, rows(problem, np.array([2, 1])))
  jax.tree.map(lambda got, whole: np.testing.assert_allclose(
      got, whole[np.array([2, 1])], atol=1e-12), fewer[-1], states[-1])
  # Examples that are at different queries, as where images are exchanged.
  mixed = jax.tree.map(
      lambda *leaves: np.stack([leaf[i] for i, leaf in enumerate(leaves)]),
      *(states[i] for i in (0, 3, 8, 14)))
  after = jax.jit(lambda state: attack.step(net, problem, state))(mixed)
  expected = jax.tree.map(
      lambda *leaves: np.stack([leaf[i] for i, leaf in enumerate(leaves)]),
      *(states[i] for i in (1, 4, 9, 15)))
  jax.tree.map(lambda got, want: np.testing.assert_allclose(
      got, want, atol=1e-12), after, expected)


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_jit_and_rolling_change_nothing(norm):
  shape = (6, 6, 2)
  x, net = draw(3, *shape), smooth_net(shape)
  y = jnp.argmax(net(jnp.asarray(x)), axis=-1)
  attack = square.Square(0.3, norm, num_queries=3, unroll=True)
  eager = attack(net, keys(3), x, y)
  rolled = square.Square(0.3, norm, num_queries=3, unroll=False)
  compiled = jax.jit(rolled, static_argnums=0)(net, keys(3), x, y)
  np.testing.assert_allclose(compiled, eager, atol=1e-12)


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_float32_stays_float32(norm):
  shape = (6, 6, 2)
  x = draw(3, *shape).astype(np.float32)
  double = smooth_net(shape)
  def net(x):
    return double(x).astype(jnp.float32)
  attack = square.Square(np.float64(0.05), norm, num_queries=4, unroll=False)
  problem = problem_of(net, x, 0.05)
  states = trace(attack, net, problem)
  for state in (states[0], states[-1]):
    assert [leaf.dtype for leaf in state] == [
        np.int32, np.float32, np.float32, np.float32, bool, bool]
  np.testing.assert_array_equal(
      attack(net, problem.keys, x, problem.y),
      attack.images(problem, states[-1]))
  assert np.max(geometry.size(states[-1].x_best - x, norm)) <= 0.05 + 1e-6


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_zero_radius_gives_the_image(norm):
  shape = (6, 6, 2)
  x, net = draw(4, *shape), smooth_net(shape)
  problem = problem_of(net, x, 0.)
  # The last label is wrong without any attack.
  y = problem.y.at[-1].add(1) % 3
  attack = square.Square(0., norm, num_queries=5)
  states = trace(attack, net, problem._replace(y=y))
  for state in states:
    np.testing.assert_array_equal(state.candidate, x)
  np.testing.assert_array_equal(states[-1].fooled, [False] * 3 + [True])
  np.testing.assert_array_equal(states[-1].iteration, [6, 6, 6, 1])


def test_radius_per_example_and_two_classes():
  shape = (6, 6, 2)
  x, net = draw(4, *shape), smooth_net(shape, num_classes=2)
  y = jnp.argmax(net(jnp.asarray(x)), axis=-1)
  attack = square.Square(0.3, num_queries=40, unroll=False)
  result = jax.jit(lambda eps: attack.run(net, keys(4), x, y, eps=eps))(
      jnp.asarray([0., 0.3, 0.9, 0.9]))
  assert not result.success[0] and result.success[2:].all()
  assert result.norm[1] <= 0.3 + 1e-12


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_radius_scales_with_the_bounds(norm):
  shape = (6, 6, 2)
  x, net = draw(4, *shape), smooth_net(shape)
  attack = square.Square(0.1, norm, num_queries=20)
  scaled = square.Square(25.5, norm, num_queries=20, bounds=(0., 255.))
  problem = problem_of(net, x, 0.1)
  plain = trace(attack, net, problem)[-1]
  wide = trace(scaled, lambda x: net(x / 255), problem._replace(
      x=problem.x * 255, eps=problem.eps * 255))[-1]
  np.testing.assert_allclose(wide.x_best / 255, plain.x_best, atol=1e-12)
  np.testing.assert_array_equal(wide.iteration, plain.iteration)


def test_a_tie_ends_the_search_without_success():
  x = draw(2, 4, 4, 1)
  def net(x):
    return jnp.zeros((len(x), 3)) + 0 * x[:, 0, 0]
  attack = square.Square(0.1, num_queries=3)
  problem = problem_of(net, x, 0.1, y=[0, 2])
  state = trace(attack, net, problem)[-1]
  np.testing.assert_array_equal(state.margin_best, [0, 0])
  assert state.fooled.all()
  np.testing.assert_array_equal(state.iteration, [1, 1])
  np.testing.assert_array_equal(attack.images(problem, state), state.x_best)
  # The first of equal logits is the prediction.
  np.testing.assert_array_equal(
      attack.run(net, keys(2), x, problem.y).success, [False, True])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fool_nobody(bad):
  shape = (4, 4, 1)
  x, net = draw(3, *shape), smooth_net(shape)
  attack = square.Square(0.1, num_queries=6)
  problem = problem_of(net, x, 0.1)
  first = attack.init(problem).candidate
  def broken(x):
    # Example 0 always, example 1 on its start only, example 2 never.
    at_start = jnp.all(x == first, axis=(1, 2, 3))
    mask = jnp.arange(3) < jnp.where(at_start, 2, 1)
    column = jnp.arange(3)[None] == problem.y[:, None]
    return jnp.where(mask[:, None] & (column == (bad < 0)), bad, net(x))
  states = trace(attack, broken, problem)
  np.testing.assert_array_equal(states[1].margin_best[:2], [np.inf, np.inf])
  np.testing.assert_array_equal(states[1].finite, [False, False, True])
  last = states[-1]
  assert last.margin_best[0] == np.inf and not last.fooled[0]
  assert np.isfinite(last.margin_best[1:]).all()
  np.testing.assert_array_equal(last.finite, [False, False, True])
  np.testing.assert_array_equal(attack.images(problem, last)[0], x[0])
  np.testing.assert_array_equal(last.x_best[0], first[0])


def test_restarts_go_on_with_what_is_not_fooled():
  shape = (6, 6, 2)
  x, net = draw(12, *shape), smooth_net(shape, seed=1)
  y = jnp.argmax(net(jnp.asarray(x)), axis=-1)
  def successes(num_restarts):
    attack = square.Square(0.12, num_queries=10, num_restarts=num_restarts,
                           unroll=False)
    return np.asarray(attack.run(net, keys(12), x, y).success)
  one, several = successes(1), successes(6)
  assert several.sum() > one.sum()


@pytest.mark.parametrize(('options', 'message'), [
    (dict(eps=-0.1), 'eps=-0.1'), (dict(norm='L1'), "norm='L1'"),
    (dict(num_queries=0), 'num_queries=0'), (dict(p_init=0), 'p_init=0'),
    (dict(p_init=1.5), 'p_init=1.5'), (dict(num_restarts=0), 'num_restarts=0'),
    (dict(bounds=(1., 0.)), r'bounds=\(1.0, 0.0\)')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    square.Square(**{'eps': 0.1, **options})


def test_settings_are_hashable():
  attack = square.Square(np.float32(0.5), p_init=np.float64(0.8),
                         bounds=np.array([0., 1.]))
  assert attack == square.Square(0.5) and hash(attack) == hash(
      square.Square(0.5))


# Against the official code.


@pytest.fixture
def official():
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
  yield Logged
  torch.set_default_dtype(before)


def stepped_nets(torch, shape, smooth):
  """Returns a net twice, (JAX NHWC, PyTorch NCHW).

  Unless smooth it rounds the pixels to integers and is of integers from there
  on, so that its logits are the same in both to the last bit.
  """
  rng = np.random.default_rng(3)
  size = int(np.prod(shape))
  first = rng.integers(-3, 4, size=(size, 8)).astype(float)
  second = rng.integers(-3, 4, size=(8, 4)).astype(float)
  bias = rng.integers(-300, 300, size=8).astype(float)
  def of_jax(x):
    x = x.reshape(len(x), -1)
    if smooth:
      return jnp.tanh((x - 0.5) @ first / 4) @ second
    return jnp.maximum(jnp.round(255 * x) @ first + bias[None], 0) @ second
  def of_torch(x):
    x = x.permute(0, 2, 3, 1).flatten(1)
    layers = [torch.from_numpy(layer) for layer in (first, second, bias)]
    if smooth:
      return torch.tanh((x - 0.5) @ layers[0] / 4) @ layers[1]
    hidden = torch.round(255 * x) @ layers[0] + layers[2]
    return torch.clamp(hidden, min=0) @ layers[1]
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


@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('norm', geometry.NORMS)
def test_equals_official_given_its_draws(official, monkeypatch, norm, rescale):
  """Every queried image and margin, of images attacked one by one there."""
  torch = pytest.importorskip('torch')
  shape, num_queries, batch = (11, 11, 3), 300, 6
  eps = 8 / 255 if norm == 'Linf' else 0.5
  net, torch_net = stepped_nets(torch, shape, smooth=norm == 'L2')
  x = draw(batch, *shape, seed=5)
  y = np.array(jnp.argmax(net(jnp.asarray(x)), axis=-1))
  num_windows = 1 if norm == 'Linf' else 2
  num_tiles = 0 if norm == 'Linf' else 25

  runs, starts = [], []
  corners = np.zeros((num_queries + 1, batch, 2, 2), np.int32)
  axes = np.zeros((num_queries + 1, batch), np.int32)
  signs = np.ones((num_queries + 1, batch, 3))
  for i in range(batch):
    run = official(torch_net, norm=norm, eps=eps, n_queries=num_queries,
                   resc_schedule=rescale)
    torch.manual_seed(i)
    image = torch.from_numpy(x[i:i + 1].transpose(0, 3, 1, 2).copy())
    run.init_hyperparam(image)
    _, run.x_best = run.attack_single_run(image, torch.from_numpy(y[i:i + 1]))
    runs.append(run)
    count = len(run.queried) - 1
    if norm == 'Linf':
      starts.append(square.start_linf(
          x[i:i + 1], np.array([eps]), run.signs[0].transpose(0, 2, 3, 1),
          BOUNDS))
    else:
      tiles = np.reshape(run.signs[:num_tiles], (1, 5, 5, 3))
      starts.append(square.start_l2(
          x[i:i + 1], np.array([eps]), np.reshape(run.axes[:25], (1, 5, 5)),
          tiles, BOUNDS))
      axes[:count, i] = run.axes[25:]
    corners[:count, i, :num_windows] = np.reshape(
        run.offsets, (count, num_windows, 2))
    signs[:count, i] = np.reshape(run.signs[num_tiles or 1:], (count, 3))
    sides = square.window_sides(shape[:2], num_queries, 0.8, rescale, norm)
    np.testing.assert_array_equal(
        11 - np.reshape(run.places, (count, -1))[:, 0], sides[:count])

  def given(keys, number, side, shape, num_channels):
    del keys, side, shape, num_channels
    at = number - 1, np.arange(batch)
    return square.Draws(*(jnp.asarray(table)[at] for table in (
        corners[:, :, 0], corners[:, :, 1], axes, signs)))
  monkeypatch.setattr(square, 'draw', given)
  attack = square.Square(eps, norm, num_queries, rescale_schedule=rescale)
  problem = problem_of(net, x, eps, y=y, x_init=jnp.concatenate(starts))
  states = trace(attack, net, problem)

  tolerance = 0 if norm == 'Linf' else 1e-9
  counts = [len(run.queried) for run in runs]
  assert min(counts) < 200 and max(counts) == num_queries + 1
  np.testing.assert_array_equal(states[-1].iteration, counts)
  for i, run in enumerate(runs):
    queried = np.concatenate(run.queried).transpose(0, 2, 3, 1)
    ours = np.stack([state.candidate[i] for state in states[:counts[i]]])
    np.testing.assert_allclose(ours, queried, rtol=0, atol=tolerance)
    margins = np.stack([state.margin_best[i]
                        for state in states[1:counts[i] + 1]])
    lowest = lowest_margins(run.logits, y[i:i + 1])
    np.testing.assert_allclose(margins, lowest, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.diff(margins) == 0, np.diff(lowest) == 0)
    np.testing.assert_allclose(
        states[-1].x_best[i], run.x_best[0].numpy().transpose(1, 2, 0),
        rtol=0, atol=tolerance)
