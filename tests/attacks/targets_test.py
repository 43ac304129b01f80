"""Tests of ferd_jax.attacks.targets, and of what targets mean to attacks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.attacks import targets as target_orders
from ferd_jax.core import parallel

BATCH, SIZE, NUM_CLASSES = 10, 6, 7
_RNG = np.random.default_rng(5)
FIRST, SECOND = _RNG.normal(size=(SIZE, 8)), _RNG.normal(size=(8, NUM_CLASSES))
X = _RNG.uniform(size=(BATCH, SIZE))
pytestmark = pytest.mark.usefixtures('float64')


def net(x, tanh=jnp.tanh):
  return tanh((x - 0.5) @ FIRST) @ SECOND


LOGITS = net(X, np.tanh)
Y = LOGITS.argmax(-1)
Y[0] = (Y[0] + 1) % NUM_CLASSES


def jacobian():
  """Returns the gradients of all logits `[B, K, D]`."""
  slope = 1 - np.tanh((X - 0.5) @ FIRST) ** 2
  return np.einsum('dh,bh,hk->bkd', FIRST, slope, SECOND)


@functools.partial(jax.jit, static_argnums=0)
def malt(norm, x):
  return target_orders.malt_scores(net, x, jnp.asarray(Y), norm)


@pytest.mark.parametrize(('norm', 'dual'), [('Linf', 1), ('L2', 2),
                                            ('L1', np.inf)])
def test_malt_scores(norm, dual):
  found, gradients = np.asarray(malt(norm, X)), jacobian()
  for i in range(BATCH):
    expected = {
        t: -(LOGITS[i].max() - LOGITS[i, t]) / np.linalg.norm(
            gradients[i, t] - gradients[i, Y[i]], dual)
        for t in range(NUM_CLASSES) if t != Y[i]}
    for t, score in expected.items():
      np.testing.assert_allclose(found[i, t], score, rtol=1e-9, atol=1e-12)
    assert found[i].argmax() == Y[i]
    order = sorted(expected, key=expected.get, reverse=True)
    for rank, t in enumerate(order):
      ranked = target_orders.ranked_classes(found[i:i + 1],
                                            jnp.array([rank + 2]))
      assert ranked[0] == t


def test_malt_leaves_out_what_has_no_gradient_and_what_is_far_down():
  """They rank behind all others, where upstream has them first."""
  weights = np.linspace(-1, 1, 120)
  def wide(x):
    logits = x[:, :1] * weights[None] - 0.001 * jnp.arange(120)[None]
    # Class 0 is the label and the highest; class 3 moves with it.
    logits = logits.at[:, 0].set(2 * x[:, 0] + 9)
    return logits.at[:, 3].set(2 * x[:, 0] + 8)
  x, y = np.full((1, 1), 0.5), np.zeros(1, int)
  scores = np.asarray(jax.jit(lambda: target_orders.malt_scores(
      wide, jnp.asarray(x), jnp.asarray(y), 'L2'))())[0]
  logits = np.asarray(wide(jnp.asarray(x)))[0]
  candidates = np.argsort(-logits)[1:101]
  assert 3 in candidates  # The second highest, without a gradient against 0.
  others = [t for t in candidates if t != 3]
  assert scores[others].min() > scores[3]
  left_out = np.setdiff1d(np.arange(1, 120), candidates)
  assert len(left_out) == 19 and scores[others].min() > scores[left_out].max()
  assert np.isfinite(scores).all()


@pytest.mark.parametrize('make', [
    functools.partial(attacks.APGD, 0.05, num_iterations=3, keep='first'),
    functools.partial(attacks.FAB, 0.05, num_iterations=3)])
def test_malt_is_the_order_of_an_attack(make):
  attack = make(num_targets=2, target_order='malt', unroll=False)
  key = jax.random.key(0)
  found = jax.jit(lambda: attack.run(net, key, X, Y))()
  problem, _ = attack.check(net, key, X, Y)
  scores = malt('Linf', X)
  images, fooled = jnp.asarray(X), LOGITS.argmax(-1) != Y
  one = dataclasses.replace(attack, num_targets=1)
  solve = jax.jit(lambda nth: one._solve(net, nth)[0])
  for number in range(2):
    nth = attack.nth_attempt(problem, scores, number)
    new = solve(nth)
    images = np.where(fooled[:, None], images, new)
    fooled = fooled | (net(np.asarray(new), np.tanh).argmax(-1) != Y)
  np.testing.assert_allclose(found.images, images, atol=1e-9)
  compiled = attacks.jit(attack, lambda _, x: net(x))
  np.testing.assert_allclose(compiled((), key, X, Y), images, atol=1e-9)
  with pytest.raises(ValueError, match="target_order='best'"):
    make(target_order='best')


def test_malt_in_an_ensemble():
  def results(order):
    own = attacks.FAB(0.3, num_targets=1, num_iterations=4, keep='first',
                      target_order=order)
    return attacks.AutoAttack(0.3, version='custom', attacks=(('t', own),))(
        net, jax.random.key(0), X, Y, batch_size=4, progress=False)
  malted, plain = results('malt'), results('logits')
  assert malted.robust_accuracy <= malted.clean_accuracy
  # The order is another for some.
  first = [np.argsort(-np.asarray(scores))[:, 1] for scores in (
      malt('Linf', X), LOGITS)]
  assert (first[0] != first[1])[1:].any()
  assert (malted.images != plain.images).any()


# Close to each other: in half precision all ways to a class would be one.
SLOPES = np.array([1., 3., 3.006, 3.003, 3.009])
STEEPEST = [4, 2, 3, 1]
LINES_X = np.linspace(0.2, 0.8, 4, dtype='f')[:, None]


def lines(dtype, x):
  """Returns logits of five classes, the first the highest, as whole numbers."""
  start = jnp.array([4., 1., 1., 1., 1.], x.dtype)
  moves = jnp.asarray(SLOPES, x.dtype)[None] * (x - jax.lax.stop_gradient(x))
  return (start[None] + moves).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Noting(attacks.Attack):
  """One of a user: it takes a teacher's logits, and targets besides."""
  eps: float
  num_targets: int = 1
  target_order: str = 'malt'

  norm, bounds, num_steps, takes_logits = 'Linf', (0., 1.), 1, True
  seen = []

  def init(self, problem):
    jax.debug.callback(lambda *now: self.seen.append(now), problem.y,
                       problem.targets)
    return problem.x

  def step(self, logits_fn, problem, state, key=None):
    return state

  def images(self, problem, state):
    return state


def in_an_ensemble(attack, model, x, y):
  attacks.AutoAttack(0.1, version='custom', attacks=(('mine', attack),))(
      model, jax.random.key(0), x, y, batch_size=len(x), progress=False,
      parallel=parallel.create('jit'))


def among_distances(attack, model, x, y):
  attacks.MinimumNorm('Linf', (('mine', attack),))(
      model, jax.random.key(0), x, y, batch_size=len(x), progress=False,
      parallel=parallel.create('jit'))


def alone(attack, model, x, y):
  del y
  attacks.jit(attack, lambda _, x: model(x)).run((), jax.random.key(0), x,
                                                 model(jnp.asarray(x)))


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('call', [in_an_ensemble, among_distances, alone])
def test_malt_of_an_attack_that_takes_logits(call, dtype):
  """Its `y` are the logits, not the scores; half precision orders as well."""
  model = functools.partial(lines, dtype)
  Noting.seen.clear()
  with jax.numpy_dtype_promotion('strict'):
    call(Noting(0.1, num_targets=4), model, LINES_X, np.zeros(4, int))
  jax.effects_barrier()
  expected = np.asarray(model(jnp.asarray(LINES_X)), np.float32)
  assert len(Noting.seen) == 4
  for (y, targets), target in zip(Noting.seen, STEEPEST, strict=True):
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(targets, np.full(4, target))


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_malt_of_masked_classes_and_broken_gradients(dtype):
  """They rank behind, and no number overflows on the way."""
  def model(factors, x):
    z = lines(x.dtype, x).at[:, 1].set(-jnp.inf)
    moved = x[:, 0] - jax.lax.stop_gradient(x[:, 0])
    return z.at[:, 2].add(factors[0] * (factors[1] * moved)).astype(dtype)
  # As arguments, else XLA multiplies them beforehand.
  scores = np.asarray(jax.jit(lambda *factors: target_orders.malt_scores(
      functools.partial(model, factors), jnp.asarray(LINES_X),
      jnp.zeros(4, int), 'L2'))(*np.array([2e38, 10.], 'f')))
  assert np.isfinite(scores).all() and scores.dtype == np.float32
  np.testing.assert_array_equal(np.argsort(-scores)[:, :3], [[0, 4, 3]] * 4)


ATTACKS = {
    'pgd': attacks.PGD(0.5, 0.1, 15, start='zero'),
    'pgd restarted': attacks.PGD(0.5, 0.2, 3, num_restarts=4),
    'apgd': attacks.APGD(0.5, num_iterations=20),
    'apgd first': attacks.APGD(0.5, num_iterations=20, keep='first'),
    'fab': attacks.FAB(0.5, num_iterations=20),
    'square': attacks.Square(0.6, num_queries=80, rescale_schedule=True),
    'square l2': attacks.Square(1.2, 'L2', num_queries=80)}


@pytest.mark.parametrize('name', ATTACKS)
def test_targets_are_reached(name):
  attack = dataclasses.replace(ATTACKS[name], unroll=False)
  # The closest, which all can reach; of the first image its prediction.
  targets = np.where(np.eye(NUM_CLASSES, dtype=bool)[Y], -np.inf,
                     LOGITS).argmax(-1)
  found = jax.jit(lambda: attack.run(net, jax.random.key(0), X, Y, targets))()
  predictions = net(np.asarray(found.images), np.tanh).argmax(-1)
  np.testing.assert_array_equal(found.reached, predictions == targets)
  np.testing.assert_array_equal(found.success, predictions != Y)
  assert found.reached.mean() >= 0.7 and found.reached[0]


def test_an_attack_goes_on_where_it_only_misses_the_label():
  """Three classes on a line: what is misclassified first is not the target."""
  def line(x):
    return jnp.stack([0.2 - x[:, 0], jnp.full(len(x), 0.),
                      3 * x[:, 0] - 1.8], axis=-1)
  x, y, target = np.full((1, 1), 0.1), [0], [2]
  for attack in (attacks.APGD(0.8, num_iterations=10, keep='first'),
                 attacks.FMN(norm='Linf', num_steps=20),
                 attacks.FAB(0.8, num_iterations=10)):
    attack = dataclasses.replace(attack, unroll=False)
    run = jax.jit(lambda *targets, attack=attack: attack.run(
        line, jax.random.key(0), x, jnp.array(y), *targets))
    any_class, reached = run(), run(jnp.array(target))
    assert any_class.success.all()
    assert reached.reached.all() and reached.predictions == 2
    assert reached.norm[0] > 0.45
  # Where the ball ends before the target, APGD returns what it found.
  found = jax.jit(lambda: attacks.APGD(
      0.3, num_iterations=10, unroll=False).run(
          line, jax.random.key(0), x, jnp.array(y), jnp.array(target)))()
  assert found.success.all() and not found.reached.any()
  assert found.predictions == 1 and np.isinf(found.distances).all()


def test_pgd_stays_where_the_target_is_reached():
  """Class 1 lies around 0.5; steps of 0.3 lead there and back."""
  def band(x):
    return jnp.stack([jnp.zeros(len(x)), 1 - 8 * jnp.abs(x[:, 0] - 0.5)], -1)
  pgd = attacks.PGD(0.5, 0.3, 4, start='zero', unroll=False)
  x = np.array([[0.25], [0.9]])
  found = jax.jit(lambda: pgd.run(band, jax.random.key(0), x, jnp.zeros(
      2, int), jnp.ones(2, int)))()
  assert found.reached.all()
  np.testing.assert_allclose(found.images, [[0.55], [0.6]], atol=1e-6)
  # Without targets it goes on as ever.
  other = jax.jit(lambda: pgd(band, jax.random.key(0), x, jnp.zeros(2, int)))()
  np.testing.assert_allclose(other[0], [0.25], atol=1e-6)


@pytest.mark.parametrize('kind', [attacks.APGD, attacks.FAB])
def test_an_order_of_nothing_is_refused(kind):
  with pytest.raises(ValueError, match="num_targets beside target_order='malt"):
    kind(0.1, target_order='malt')
