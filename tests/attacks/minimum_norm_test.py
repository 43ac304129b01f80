"""Tests of ferd_jax.attacks.minimum_norm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.attacks import attack as attack_lib
from ferd_jax.core import parallel
from ferd_jax.core import reporting

NUM_IMAGES, SHAPE, NUM_CLASSES = 11, (3, 3, 2), 4
_RNG = np.random.default_rng(0)
X = _RNG.uniform(size=(NUM_IMAGES, *SHAPE)).astype('f')
WEIGHTS = (_RNG.normal(size=(18, 8)).astype('f'),
           _RNG.normal(size=(8, NUM_CLASSES)).astype('f'))
TRACED = []
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def apply_fn(weights, x):
  TRACED.append(len(x))
  first, second = weights
  return jnp.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second


def labels(x, weights=WEIGHTS):
  first, second = weights
  return (np.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second).argmax(-1)


MODEL = jax.tree_util.Partial(apply_fn, WEIGHTS)
Y = labels(X)
Y[[2, 7]] = (Y[[2, 7]] + 1) % NUM_CLASSES
SHORT = (('fmn', attacks.FMN(num_steps=12)), ('ddn', attacks.DDN(
    num_steps=12, init_radius=0.5, gamma=0.2)))


def run(settings=None, model=MODEL, x=X, y=Y, num_devices=1, **options):
  options = {'batch_size': 4, 'progress': False, 'parallel': parallel.create(
      'auto', tuple(jax.devices()[:num_devices]))} | options
  return (settings or attacks.MinimumNorm(attacks=SHORT))(
      model, jax.random.key(0), x, y, **options)


@functools.cache
def found():
  return run()


def test_the_closest_of_all_attacks():
  result = found()
  wrong = np.isin(np.arange(NUM_IMAGES), [2, 7])
  np.testing.assert_array_equal(result.correct, ~wrong)
  stacked = np.stack(list(result.by_attack.values()))
  np.testing.assert_array_equal(result.distances, stacked.min(0))
  assert len(set(stacked.argmin(0)[~wrong])) == 2  # Each is the closest once.
  assert (result.distances[wrong] == 0).all()
  assert result.success.all() and result.success_rate == 1
  norms = np.linalg.norm((result.images - X).reshape(NUM_IMAGES, -1), axis=1)
  np.testing.assert_allclose(result.distances, norms, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(result.predictions, labels(result.images))
  assert (result.predictions != Y).all()
  np.testing.assert_array_equal(result.images[wrong], X[wrong])
  assert result.median == np.median(result.distances[~wrong])


def test_robust_accuracy_over_the_radius():
  result = found()
  assert result.robust_accuracy(0) == result.clean_accuracy == 9 / 11
  radii, accuracies = result.curve()
  assert radii[0] == 0 and (np.diff(radii) > 0).all()
  np.testing.assert_allclose(accuracies, np.arange(9, -1, -1) / 11)
  for radius, accuracy in zip(radii, accuracies, strict=True):
    assert (result.distances > radius).mean() == accuracy
  np.testing.assert_array_equal(result.robust_accuracy([0., 1e9]),
                                [9 / 11, 0])
  per_class = result.per_class(radii[3], NUM_CLASSES + 1)
  for label in range(NUM_CLASSES):
    if (Y == label).any():
      assert per_class[label] == (result.distances > radii[3])[
          label == Y].mean()
  assert np.isnan(per_class[-1])
  table = result.table([0, float(radii[-1])])
  assert '| 0 | 81.82% |' in table and '| 0.00% | 0.00% |' in table
  assert '| 0.25 |' in result.table()


def test_a_short_text():
  text = repr(found())
  assert 'L2' in text and 'fmn, ddn' in text and '11 images' in text
  assert len(text) < 300 and '[' not in text


def test_nothing_found_is_infinite():
  """A ball that reaches nothing, of an attack that does not minimise."""
  settings = attacks.MinimumNorm('Linf', (
      ('pgd', attacks.PGD(0.1, 0.02, 2)), ('far', attacks.PGD(0.01, 0.01, 1))))
  result = run(settings)
  assert np.isinf(result.distances).any() and result.success.any()
  np.testing.assert_array_equal(result.success, np.isfinite(result.distances))
  assert result.robust_accuracy(1.) == np.isinf(result.distances).mean()
  np.testing.assert_array_equal(result.images[~result.success],
                                X[~result.success])
  assert result.success_rate == pytest.approx(
      1 - result.robust_accuracy(1.) / result.clean_accuracy)


def test_batches_and_devices_do_not_matter():
  for options in (dict(batch_size=8), dict(batch_size=4, num_devices=2)):
    result = run(**options)
    np.testing.assert_allclose(result.distances, found().distances, rtol=1e-4)
  with pytest.raises(ValueError, match='batch_size=5 divisible by 2 devices'):
    run(batch_size=5, num_devices=2)


def test_other_variables_compile_nothing():
  found()
  TRACED.clear()
  other = tuple(0.5 * weights for weights in WEIGHTS)
  result = run(model=jax.tree_util.Partial(apply_fn, other),
               y=labels(X, other))
  assert len(TRACED) == 1  # To see what it returns.
  assert result.clean_accuracy == 1


def test_models_that_are_changed_in_place():
  class Model:
    weights = WEIGHTS

    def __call__(self, x):
      return apply_fn(self.weights, x)
  model, quick = Model(), attacks.MinimumNorm('Linf', (
      ('pgd', attacks.PGD(0.1, 0.1, 1)),))
  before = run(quick, model)
  model.weights = tuple(-weights for weights in WEIGHTS[:1]) + WEIGHTS[1:]
  assert run(quick, model).clean_accuracy != before.clean_accuracy


def test_all_targets_are_gone_through_without_a_radius():
  """With one an image is done with the first target within."""
  fab = attacks.FAB(None, 'L2', num_iterations=10, num_targets=3)
  one = attacks.FAB(4., 'L2', num_iterations=10, num_targets=3)
  results = [run(attacks.MinimumNorm('L2', (('fab-t', each),)))
             for each in (fab, one)]
  closest, first = (result.distances for result in results)
  assert (closest <= first + 1e-7).all() and (closest < first - 1e-4).any()


@pytest.mark.parametrize('norm', ['L0', 'L1', 'L2', 'Linf'])
def test_members(norm):
  members = attacks.MinimumNorm(norm).members(10)
  assert list(members) == (['fmn', 'ddn'] if norm == 'L2' else ['fmn'])
  assert members['fmn'] == attacks.FMN(norm=norm)
  if norm in ('L2', 'Linf'):
    members = attacks.MinimumNorm(norm, ('fab', 'fab-t')).members(4)
    assert members['fab-t'] == attacks.FAB(None, norm, num_targets=3)


def test_progress_is_shown():
  class Noting(reporting.Reporter):
    lines = []

    def line(self, text):
      self.lines.append(text)
  run(progress=Noting())
  assert [line.partition(':')[0] for line in Noting.lines] == ['fmn', 'ddn']
  assert 'median distance' in Noting.lines[0]


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(norm='L3'), "norm='L3'"), (dict(attacks=()), r'attacks=\(\)'),
    (dict(attacks=('pgd20',)), "attack='pgd20' to be one of 'fmn', 'ddn'"),
    (dict(norm='L1', attacks=('ddn',)), "attack='ddn' to be one of 'fmn'"),
    (dict(attacks=('fmn', 'fmn')), 'one name each'),
    (dict(attacks=(attacks.DDN(),)), 'names, or pairs'),
    (dict(attacks=(('a', 3),)), "attack 'a' to be an Attack"),
    (dict(attacks=(('a', attacks.FMN(norm='L1')),)), "norm='L1' of attack 'a'"),
    (dict(norm='Linf', attacks=(('a', attacks.APGD(0.1, eot=2)),)),
     'not stochastic'),
    (dict(attacks=(('a', attacks.DDN(bounds=(0, 2))),)), 'bounds=')])
def test_settings_that_do_not_fit(settings, message):
  with pytest.raises(ValueError, match=message):
    attacks.MinimumNorm(**settings)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(x=X + 1), 'finite images in'), (dict(y=Y + NUM_CLASSES), 'y in 0..3'),
    (dict(y=Y[:3]), 'one label for'), (dict(batch_size=0), 'batch_size=0'),
    (dict(model=lambda x: x), 'logits_fn to return')])
def test_inputs_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)


def test_models_that_break():
  def breaks(x):
    far = jnp.abs(x - jnp.round(x, 2)).max() > 1e-6
    return jnp.where(far, jnp.nan, 1.) * apply_fn(WEIGHTS, x)
  x = np.round(X, 2)
  with pytest.raises(ValueError, match='fmn: logits or gradients are not fin'):
    run(model=breaks, x=x, y=labels(x))


def test_distances_of_a_single_result():
  result = attack_lib.AttackResult(
      images=X[:3], success=np.array([True, False, True]),
      predictions=np.array([1, 0, -1]), logits=np.zeros((3, 2)),
      norm=np.array([0.5, 0.1, np.nan], 'f'),
      reached=np.array([True, False, False]), correct=np.ones(3, bool))
  np.testing.assert_array_equal(result.distances, [0.5, np.inf, np.inf])


@pytest.mark.parametrize('norm, eps', [('Linf', 8 / 255), ('L2', 0.2)])
def test_an_attack_in_a_ball_at_its_own_radius(norm, eps):
  """What it finds on the surface is within the radius, by any account."""
  distances = np.array([0, eps, eps, np.inf], np.float32)
  distances[2] *= 1 + 1e-6  # As rounding may have it.
  found = attacks.Distances(
      names=('pgd',), labels=np.array([0, 0, 1, 1]),
      correct=distances > 0, distances=distances, by_attack={},
      images=np.zeros((4, 2, 2, 1), np.float32),
      predictions=np.ones(4, np.int32), warnings=[], seconds={},
      settings={'norm': norm, 'bounds': (0., 1.)})
  assert found.robust_accuracy(eps) == 0.25
  np.testing.assert_array_equal(found.per_class(eps), [0, 0.5])
  assert found.robust_accuracy(0) == 0.75
