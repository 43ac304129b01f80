"""Tests of ferd_jax.attacks.randomised, where the truth has a closed form."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.attacks import attack
from ferd_jax.attacks import randomised
from ferd_jax.core import parallel

# The second logit is a x + b and normal noise: class 1 is predicted with
# probability Phi((a x + b) / s), in the ball at least with
# Phi((a x + b - eps |a|_q) / s).
SHAPE, EPS, NOISE = (2, 2, 1), 0.05, 0.3
RNG = np.random.default_rng(0)
WEIGHTS = 3 * RNG.normal(size=4).astype('f')
X = RNG.uniform(0.2, 0.8, size=(12, *SHAPE)).astype('f')
OFFSET = np.float32(0.4 - (X.reshape(12, 4) @ WEIGHTS).mean())
Y = np.ones(12, np.int32)


def model(weights, x, key):
  score = x.reshape(len(x), -1) @ jnp.asarray(weights) + OFFSET
  score = score + NOISE * jax.random.normal(key, score.shape)
  return jnp.stack([jnp.zeros_like(score), score], axis=-1)


def truth(reach):
  scores = X.reshape(12, 4) @ WEIGHTS + OFFSET - reach
  return np.array([statistics.NormalDist().cdf(score / NOISE)
                   for score in scores])


def run(settings, weights=WEIGHTS, **options):
  options = {'batch_size': 12, 'progress': False,
             'parallel': parallel.create('jit')} | options
  return settings(jax.tree_util.Partial(model, weights), jax.random.key(0), X,
                  Y, **options)


@functools.cache
def measured(norm, attacks_=('apgd-ce', 'square')):
  return run(attacks.Randomised(
      EPS, norm, attacks_, eot=8, num_iterations=10, num_queries=60,
      num_draws=200))


DUAL = {'Linf': 1, 'L2': 2, 'L1': np.inf}


def reach(norm):
  """Returns how far the score falls in the ball."""
  return EPS * np.linalg.norm(WEIGHTS, DUAL[norm])


@pytest.mark.parametrize('norm', [
    'Linf', pytest.param('L2', marks=pytest.mark.slow), 'L1'])
def test_probabilities_are_the_true_ones(norm):
  found = measured(norm)
  worst, clean = truth(reach(norm)), truth(0)
  # 200 draws of each image; four standard errors.
  assert found.clean_accuracy == pytest.approx(
      clean.mean(), abs=4 * found.clean_standard_error)
  assert found.robust_accuracy == pytest.approx(
      worst.mean(), abs=4 * found.standard_error)
  np.testing.assert_allclose(found.probabilities, worst, atol=0.16)
  # The error is that of 200 draws of 12 images.
  expected = np.sqrt((worst * (1 - worst)).mean() / 200 / 12)
  assert found.standard_error == pytest.approx(expected, rel=0.25)
  # Asked two hundred times, nearly every image is wrong once.
  assert found.ever_wrong >= found.clean_ever_wrong > 0.9
  sizes = np.linalg.norm((found.images - X).reshape(12, 4),
                         np.inf if norm == 'Linf' else int(norm[1]), axis=1)
  np.testing.assert_array_less(sizes, EPS + 1e-6)
  assert set(np.unique(found.chosen)) <= {-1, 0, 1}


@pytest.mark.parametrize('norm', ['Linf', 'L1'])
def test_search_without_gradients_gets_there_too(norm):
  found = measured(norm)
  # No window is left that helps: all pixels are at their end of the ball.
  score = (found.images - X).reshape(12, 4) @ WEIGHTS
  assert score.min() >= -reach(norm) - 1e-4
  by_attack = found.accuracy_by_attack
  # An L1 ball of this radius moves the score less than a Linf one.
  least = 4 * found.clean_standard_error
  assert by_attack['square'] < found.clean_accuracy - least
  assert by_attack['square'] >= by_attack['apgd-ce'] - 0.05


def test_what_is_chosen_by_is_not_what_is_reported():
  """The least of many estimates is too low, and chosen among equals."""
  def equal(x, key):
    # Every image has draws of its own, and is right as often as any other.
    bits = jax.lax.bitcast_convert_type(jnp.sum(x), jnp.uint32)
    score = jax.random.normal(jax.random.fold_in(key, bits), (len(x),)) + 0.3
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)
  found = attacks.Randomised(EPS, attacks=('apgd-ce', 'square'), eot=1,
                             num_iterations=1, num_queries=1, num_draws=12)(
      equal, jax.random.key(0), X, Y, batch_size=12, progress=False,
      parallel=parallel.create('jit'))
  assert len(set(found.chosen.tolist())) == 3  # By chance.
  p = statistics.NormalDist().cdf(0.3)
  # The least of three shares of 12 draws is lower by 0.12, four times this.
  assert found.robust_accuracy > p - 0.08


def test_results_do_not_depend_on_batches_or_devices():
  settings = attacks.Randomised(EPS, attacks=('apgd-dlr',), eot=2,
                                num_iterations=3, num_draws=3)
  whole = run(settings)
  over = parallel.create('shard_map', tuple(jax.devices()[:4]))
  for found in (run(settings, batch_size=5),
                run(settings, batch_size=8, parallel=over)):
    np.testing.assert_allclose(found.images, whole.images, atol=1e-6)
    np.testing.assert_array_equal(found.correct, whole.correct)
    assert found.names == ('apgd-dlr',)


def test_draws_that_a_batch_shares():
  def drawn_weights(x, key):
    weights = jnp.asarray(WEIGHTS) + jax.random.normal(key, (4,))
    score = x.reshape(len(x), -1) @ weights
    return jnp.stack([-score, score], axis=-1)
  found = attacks.Randomised(EPS, attacks=('apgd-ce',), eot=2,
                             num_iterations=2, num_draws=40)(
      drawn_weights, jax.random.key(0), X, Y, batch_size=12, progress=False,
      shared_noise=True, parallel=parallel.create('jit'))
  accuracies = found.correct.mean(1)
  assert found.standard_error == pytest.approx(
      accuracies.std(ddof=1) / np.sqrt(40))
  # Images are right together: more than the error of independent draws.
  alone = np.sqrt((found.probabilities * (1 - found.probabilities)).mean()
                  / 40 / 12)
  assert found.standard_error > 1.5 * alone
  with pytest.raises(ValueError, match='one device for shared_noise'):
    attacks.Randomised(EPS)(
        drawn_weights, jax.random.key(0), X, Y, batch_size=4, progress=False,
        shared_noise=True,
        parallel=parallel.create('shard_map', tuple(jax.devices()[:2])))


def test_incumbents_are_evaluated_again():
  """A stored lucky margin would never be beaten."""
  member = randomised.MeanSquare(EPS, num_queries=5, eot=1)
  @functools.partial(jax.jit, static_argnums=2)
  def step(state, key, first=False):
    problem = attack.Problem(
        jnp.asarray(X), jnp.asarray(Y), None, jnp.full(12, EPS, X.dtype),
        jax.random.split(jax.random.key(0), 12))
    state = member.init(problem) if first else state
    return member.step(functools.partial(model, WEIGHTS), problem, state, key)
  state = step(None, jax.random.key(1), True)._replace(
      margin_best=jnp.full(12, -1e9, X.dtype))
  after = step(state, jax.random.key(2))
  assert (after.margin_best > -1e3).all()
  assert (after.iteration == 2).all() and not member.done(after).any()


def test_a_model_that_draws_nothing_is_said():
  def fixed(x, key):
    del key
    score = x.reshape(len(x), -1) @ jnp.asarray(WEIGHTS) + OFFSET
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)
  settings = attacks.Randomised(EPS, attacks=('apgd-ce',), eot=1,
                                num_iterations=2, num_draws=2)
  with pytest.warns(UserWarning, match='same logits under every key'):
    found = settings(fixed, jax.random.key(0), X, Y, progress=False,
                     batch_size=12, parallel=parallel.create('jit'))
  assert found.standard_error == 0 and 'Warning' in found.table()
  assert repr(found).startswith('RandomisedResult(12 images, robust accuracy')
  with pytest.raises(ValueError, match='finite logits'):
    settings(lambda x, key: fixed(x, key) * jnp.nan, jax.random.key(0), X, Y,
             progress=False, batch_size=12, parallel=parallel.create('jit'))


def test_a_radius_of_0_leaves_the_clean_accuracy():
  found = run(attacks.Randomised(0., attacks=('apgd-ce',), eot=1,
                                 num_iterations=2, num_draws=3))
  np.testing.assert_array_equal(found.correct, found.clean_correct)
  assert {'attacks', 'iterations', 'bounds'} <= set(found.settings)


def test_what_would_be_doubtful_is_said():
  settings = attacks.Randomised(EPS, attacks=('apgd-ce',), eot=1,
                                num_iterations=2, num_draws=2)
  def likely(weights, x, key):
    return jax.nn.softmax(model(weights, x, key))
  with pytest.warns(UserWarning, match='probabilities') as warned:
    settings(jax.tree_util.Partial(likely, WEIGHTS), jax.random.key(0), X, Y,
             progress=False, batch_size=12, parallel=parallel.create('jit'))
  assert warned[0].filename == __file__
  with pytest.warns(UserWarning, match='clean accuracy'):
    settings(jax.tree_util.Partial(model, -9 * WEIGHTS), jax.random.key(0), X,
             Y, progress=False, batch_size=12,
             parallel=parallel.create('jit'))


@pytest.mark.parametrize(('options', 'message'), [
    ({'eps': -1}, 'eps=-1'), ({'attacks': ('fab',)}, "attack='fab'"),
    ({'attacks': ()}, 'to name some'), ({'attacks': 'square'}, 'a tuple'),
    ({'num_draws': 1}, 'num_draws=1'), ({'norm': 'L9'}, "norm='L9'"),
    ({'eot': 0}, 'eot=0')])
def test_settings(options, message):
  with pytest.raises(ValueError, match=message):
    attacks.Randomised(**{'eps': EPS} | options)
