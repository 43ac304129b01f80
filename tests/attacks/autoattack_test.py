"""Tests of ferd_jax.attacks.autoattack, also against pyautoattack."""

import dataclasses
import functools
import zlib

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import attack as attack_lib
from ferd_jax.attacks import autoattack as autoattacks
from ferd_jax.attacks import geometry
from ferd_jax.core import parallel

NUM_IMAGES, SHAPE, NUM_CLASSES, EPS = 14, (4, 4, 3), 4, 0.03
ITERATIONS, TARGETS, QUERIES = 4, 2, 20
X = np.random.default_rng(0).uniform(size=(NUM_IMAGES, *SHAPE)).astype('f')
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
every_norm = pytest.mark.parametrize('norm', [
    'Linf', 'L1', pytest.param('L2', marks=pytest.mark.slow)])
WIDER = {'Linf': 1, 'L2': 5, 'L1': 20}  # than Linf, to fool as many


def weights(num_classes=NUM_CLASSES, seed=1):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(48, 16)).astype('f'),
          rng.normal(size=(16, num_classes)).astype('f'))


def apply_fn(variables, x):
  first, second = (jnp.asarray(array, x.dtype) for array in variables)
  return jnp.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second


def net(num_classes=NUM_CLASSES, seed=1):
  return jax.tree_util.Partial(apply_fn, weights(num_classes, seed))


def labels(model, x=X):
  return np.array(jnp.argmax(model(jnp.asarray(x)), -1))


def short(eps=EPS, norm='Linf', bounds=(0., 1.),
          names=('square', 'fab-t', 'apgd-t')):
  """Returns an ensemble with little to do, or some attacks of it."""
  common = dict(eps=eps, norm=norm, bounds=bounds)
  members = {
      'apgd-t': attacks.APGD(**common, loss=losses.targeted_dlr,
                             num_iterations=ITERATIONS, num_targets=TARGETS,
                             keep='first'),
      'fab-t': attacks.FAB(**common, num_iterations=ITERATIONS,
                           num_targets=TARGETS, keep='first'),
      'square': attacks.Square(**common, num_queries=QUERIES)}
  return attacks.AutoAttack(version='custom', **common, attacks=[
      (name, members[name]) for name in names])


def run(autoattack, model, x=X, y=None, *, key=0, **options):
  """Returns the result; at a batch size of 1 there is one size to compile."""
  key = jax.random.key(key) if isinstance(key, int) else key
  y = labels(model, x) if y is None else y
  options = {'batch_size': 1, 'progress': False,
             'parallel': parallel.create('jit')} | options
  return autoattack(model, key, x, y, **options)


def size(delta, norm):
  flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
  return np.linalg.norm(flat, {'Linf': np.inf, 'L2': 2, 'L1': 1}[norm], axis=1)


# Settings.


def settings_of(autoattack, num_classes=10):
  """Returns the settings of its members, without those that all share."""
  return {name: {field: value for field, value in
                 dataclasses.asdict(member).items()
                 if field not in ('eps', 'norm', 'bounds', 'unroll')}
          for name, member in autoattack.members(num_classes).items()}


def apgd(loss, **changes):
  return dict(loss=loss, num_iterations=100, rho=0.75, num_restarts=1,
              num_targets=0, eot=0, large_radii=False, keep='first',
              target_order='logits') | changes


def fab(**changes):
  return dict(num_iterations=100, num_restarts=1, num_targets=0, alpha_max=0.1,
              eta=1.05, beta=0.9, keep='first',
              target_order='logits') | changes


CE, DLR, TARGETED = (losses.cross_entropy, losses.dlr, losses.targeted_dlr)
SQUARE = dict(num_queries=5000, p_init=0.8, num_restarts=1,
              rescale_schedule=False)


@pytest.mark.parametrize(('version', 'expected'), [
    ('standard', {
        'apgd-ce': apgd(CE), 'apgd-t': apgd(TARGETED, num_targets=9),
        'fab-t': fab(num_targets=9), 'square': SQUARE}),
    ('plus', {
        'apgd-ce': apgd(CE, num_restarts=5),
        'apgd-dlr': apgd(DLR, num_restarts=5), 'fab': fab(num_restarts=5),
        'square': SQUARE, 'apgd-t': apgd(TARGETED, num_targets=9),
        'fab-t': fab(num_targets=9)}),
    ('rand', {'apgd-ce': apgd(CE, eot=20, keep='fooling'),
              'apgd-dlr': apgd(DLR, eot=20, keep='fooling')}),
    ('fast', {
        'apgd-ce': apgd(CE), 'apgd-t': apgd(TARGETED, num_targets=9)}),
    ('torchattacks_compat', {
        'apgd-ce': apgd(CE, num_iterations=10),
        'apgd-t': apgd(TARGETED, num_iterations=10, num_targets=9),
        'fab-t': fab(num_iterations=10, num_targets=9),
        'square': SQUARE | {'rescale_schedule': True}})])
def test_versions(version, expected):
  autoattack = attacks.AutoAttack(EPS, version=version)
  found = settings_of(autoattack)
  assert found == expected
  assert list(found) == list(expected) == list(autoattack.names)  # In order.


@pytest.mark.parametrize(('version', 'expected'), [
    ('standard', {
        'apgd-ce': apgd(CE, num_restarts=5, large_radii=True),
        'apgd-t': apgd(TARGETED, num_targets=5, large_radii=True),
        'fab-t': fab(num_targets=9), 'square': SQUARE}),
    ('plus', {
        'apgd-ce': apgd(CE, num_restarts=5),
        'apgd-dlr': apgd(DLR, num_restarts=5), 'fab': fab(num_restarts=5),
        'square': SQUARE, 'apgd-t': apgd(TARGETED, num_targets=9),
        'fab-t': fab(num_targets=9)}),
    ('rand', {'apgd-ce': apgd(CE, eot=20, keep='fooling'),
              'apgd-dlr': apgd(DLR, eot=20, keep='fooling')})])
def test_versions_of_l1(version, expected):
  autoattack = attacks.AutoAttack(5., 'L1', version=version)
  assert settings_of(autoattack) == expected
  official = pytest.importorskip('pyautoattack').AutoAttack(
      None, eps=5., norm='L1', version=version)
  members = autoattack.members(10)
  assert list(members) == official.attacks_to_run
  for name, theirs in (('apgd-ce', official.apgd),
                       ('apgd-t', official.apgd_targeted)):
    if name in members:
      assert members[name].large_radii == theirs.use_largereps
      assert members[name].num_restarts == theirs.n_restarts
      assert members[name].num_targets == (
          theirs.n_target_classes if name == 'apgd-t' else 0)
  # No image that nothing fools costs more: of its steps and their gradients.
  if version == 'standard':
    passes = [member.num_attempts * member.num_steps
              for member in members.values()]
    assert passes == [5 * 103, 5 * 103, 9 * 100, 5001]


@pytest.mark.parametrize(('num_classes', 'num_targets'), [
    (2, [1, 1]), (5, [4, 4]), (6, [5, 5]), (9, [5, 8]), (100, [5, 9])])
def test_number_of_targets_of_l1(num_classes, num_targets):
  members = attacks.AutoAttack(5., 'L1').members(num_classes)
  assert [members[name].num_targets
          for name in ('apgd-t', 'fab-t')] == num_targets


@pytest.mark.parametrize('version', [*autoattacks.VERSIONS, 'custom'])
@every_norm
def test_members_have_the_settings_of_all(version, norm):
  if version == 'torchattacks_compat' and norm != 'Linf':
    return
  autoattack = attacks.AutoAttack(
      0.7, norm, version, autoattacks.MEMBERS if version == 'custom' else (),
      bounds=(-1, 2))
  for member in autoattack.members(10).values():
    assert (member.eps, member.norm, member.bounds) == (0.7, norm, (-1., 2.))


@pytest.mark.parametrize(('version', 'num_classes', 'num_targets'), [
    ('standard', 2, 1), ('standard', 9, 8), ('standard', 10, 9),
    ('standard', 200, 9), ('plus', 3, 2), ('plus', 100, 9), ('fast', 5, 4),
    ('torchattacks_compat', 2, 1), ('torchattacks_compat', 100, 99)])
def test_number_of_targets(version, num_classes, num_targets):
  members = attacks.AutoAttack(EPS, version=version).members(num_classes)
  for name, member in members.items():
    assert member.num_targets == (num_targets if name.endswith('-t') else 0)


def test_custom():
  mine = attacks.Square(EPS, num_queries=7)
  autoattack = attacks.AutoAttack(
      EPS, version='custom', attacks=['square', 'fab', ['mine', mine],
                                      'apgd-dlr', 'fab-t'])
  assert autoattack.names == ('square', 'fab', 'mine', 'apgd-dlr', 'fab-t')
  found = autoattack.members(10)
  assert found.pop('mine') is mine
  # As in 'standard': upstream's custom versions have 5 restarts.
  standard = attacks.AutoAttack(EPS).members(10)
  assert found['square'] == standard['square']
  assert found['fab-t'] == standard['fab-t']
  assert settings_of(autoattack)['fab'] == fab()
  assert settings_of(autoattack)['apgd-dlr'] == apgd(DLR)
  assert hash(autoattack) == hash(dataclasses.replace(autoattack))


@dataclasses.dataclass(frozen=True)
class Nameless(attacks.Attack):
  """It lacks what all have."""


@dataclasses.dataclass(frozen=True)
class Endless(attacks.Attack):
  """It does not say how many steps it takes."""
  eps: float = EPS
  norm: str = 'Linf'
  bounds: tuple[float, float] = (0., 1.)


@pytest.mark.parametrize(('settings', 'match'), [
    (dict(norm='L0'), "norm='L0' to be one of 'Linf', 'L2', 'L1'"),
    (dict(version='custom', attacks=(('mine', attack_lib.Attack()),)),
     "attack 'mine' to be an Attack, which is a frozen dataclass, got"),
    (dict(version='custom', attacks=(('mine', Nameless()),)),
     "attack 'mine' to have a setting eps"),
    (dict(version='custom', attacks=(('mine', Endless()),)),
     "attack 'mine' to have a setting num_steps"),
    (dict(version='custom', attacks=(('mine', EPS),)),
     r"attack 'mine' to be an Attack, which is a frozen dataclass, got 0.03"),
    (dict(version='best'), "version='best' to be one of 'standard', 'plus', "),
    (dict(norm='L2', version='torchattacks_compat'), "norm='L2' to be 'Linf'"),
    (dict(version='custom'), r"attacks=\(\) to be given for version='custom'"),
    (dict(attacks=('square',)), ".* given for version='custom', and only then"),
    (dict(version='custom', attacks=('apgd',)), "attack='apgd' to be one of"),
    (dict(version='custom', attacks='square'), "attacks='square' to be a tup"),
    (dict(version='custom', attacks=5), 'attacks=5 to be a tuple'),
    (dict(version='custom', attacks=('mine', attacks.FAB(EPS))),
     "attack='mine' to be one of"),
    (dict(version='custom', attacks=(attacks.FAB(EPS),)),
     r'attacks to be names, or pairs .* got FAB\('),
    (dict(version='custom', attacks=(('a', attacks.FAB(EPS), 3),)),
     r"attacks to be names, or pairs .* got \('a', FAB\("),
    (dict(version='custom', attacks=(('a', attacks.APGD(EPS, keep='best')),)),
     "keep='best' of attack 'a' to be 'first' or 'fooling'"),
    (dict(version='custom', attacks=('fab', 'fab')), '.* one name each'),
    (dict(version='custom', attacks=(
        'fab', ('fab', attacks.FAB(EPS)))), 'attacks=.* to have one name each'),
    (dict(version='custom', attacks=(('pgd', attacks.PGD(0.1, 0.1, 3)),)),
     r"eps=0.1 of attack 'pgd' to be 0.03, as for all"),
    (dict(version='custom', attacks=(('mine', attacks.Square(0.1)),)),
     r"eps=0.1 of attack 'mine' to be 0.03, as for all"),
    (dict(version='custom', attacks=(('mine', attacks.Square(EPS, 'L2')),)),
     "norm='L2' of attack 'mine' to be 'Linf'"),
    (dict(version='custom', bounds=(-1, 1),
          attacks=(('mine', attacks.Square(EPS)),)),
     r"bounds=\(0.0, 1.0\) of attack 'mine' to be \(-1.0, 1.0\)"),
    (dict(version='custom', attacks=(
        'square', ('mine', attacks.APGD(EPS, eot=2)))),
     r"attacks=\('square', 'mine'\) to be for stochastic models all"),
    (dict(bounds=(1, 0)), r'bounds=\(1, 0\) to be two finite values'),
])
def test_settings_that_do_not_fit(settings, match):
  with pytest.raises(ValueError, match='Expected ' + match):
    attacks.AutoAttack(EPS, **settings)


def test_more_targets_than_classes():
  autoattack = short()
  assert list(autoattack.members(3)) == ['square', 'fab-t', 'apgd-t']
  match = "num_targets=2 of attack 'fab-t' below the 2 classes"
  with pytest.raises(ValueError, match=match):
    autoattack.members(2)
  with pytest.raises(ValueError, match=match):
    run(autoattack, net(2))


# What it promises.


def assert_promises(result, model, x, y, eps, norm, bounds=(0., 1.)):
  slack = 1e-6 if x.dtype == np.float32 else 1e-12
  delta = size(result.images - x, norm)
  assert np.isfinite(result.images).all()
  assert (delta <= eps * (1 + slack) + slack).all()
  assert (result.images >= bounds[0]).all()
  assert (result.images <= bounds[1]).all()
  np.testing.assert_allclose(result.norms, delta, rtol=1e-5, atol=1e-6)
  predictions = labels(model, result.images)
  np.testing.assert_array_equal(result.predictions, predictions)
  np.testing.assert_array_equal(result.robust, predictions == y)
  np.testing.assert_array_equal(result.correct, labels(model, x) == y)
  np.testing.assert_array_equal(
      result.flags[result.names[-1]], result.robust)


@every_norm
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(
    eps=st.floats(0, 0.2), seed=st.integers(0, 2 ** 31),
    wrong=st.sets(st.integers(0, NUM_IMAGES - 1)), flat=st.booleans())
def test_promises(norm, eps, seed, wrong, flat):
  x = np.round(X, 1 if flat else 9)  # Many pixels at the bounds, or ties.
  model, eps = net(seed=seed % 5), eps * WIDER[norm]
  y = labels(model, x)
  y[list(wrong)] = (y[list(wrong)] + 1) % NUM_CLASSES
  names = ('square', 'fab-t', 'apgd-t')[:3 if norm == 'Linf' else 2]
  result = run(short(eps, norm, names=names), model, x, y, key=seed)
  assert_promises(result, model, x, y, eps, norm)
  if eps == 0:
    np.testing.assert_array_equal(result.robust, result.correct)
    np.testing.assert_array_equal(result.images, x)


@every_norm
def test_eps_of_0_gives_the_clean_accuracy(norm):
  y = labels(net())
  y[3] = (y[3] + 1) % NUM_CLASSES
  result = run(short(0., norm, names=('square', 'fab-t')), net(), y=y)
  assert result.robust_accuracy == result.clean_accuracy == 13 / 14
  np.testing.assert_array_equal(result.images, X)
  assert set(result.accuracy_after.values()) == {13 / 14}


@every_norm
def test_robust_accuracy_falls_with_eps(norm):
  scale = WIDER[norm]
  found = [run(short(scale * eps, norm, names=('square', 'fab-t')), net())
           for eps in (0., 0.005, 0.01, 0.02, 0.04, 0.08, 0.3)]
  accuracies = [result.robust_accuracy for result in found]
  assert accuracies == sorted(accuracies, reverse=True)
  assert accuracies[0] == 1 and accuracies[-1] == 0
  assert len(set(accuracies)) > 4


def test_bounds():
  x = 4 * X - 2
  model = jax.tree_util.Partial(
      lambda variables, x: apply_fn(variables, (x + 2) / 4), weights())
  square = functools.partial(short, names=['square'])
  result = run(square(8 * EPS, bounds=(-2., 2.)), model, x)
  assert_promises(result, model, x, labels(model, x), 8 * EPS, 'Linf',
                  (-2., 2.))
  # The same in another unit, but for rounding.
  same = run(square(2 * EPS), net())
  assert np.mean(result.robust == same.robust) > 0.9
  assert same.robust.any() and not same.robust.all()


def test_batch_size_does_not_matter():
  autoattack = short(names=['apgd-t'])
  assert_like(run(autoattack, net(), batch_size=3), run(autoattack, net()))


def assert_like(result, expected, atol=1e-6):
  """They are the same, but for rounding."""
  np.testing.assert_array_equal(result.broken_by, expected.broken_by)
  np.testing.assert_array_equal(result.predictions, expected.predictions)
  np.testing.assert_allclose(result.images, expected.images, atol=atol)
  assert {*expected.broken_by} >= {-2, 0}


def test_other_images_do_not_matter():
  """But the place of an image does: it is what noise depends on."""
  autoattack = short(0.1)
  result, alone = run(autoattack, net()), run(autoattack, net(), X[:5])
  np.testing.assert_array_equal(alone.robust, result.robust[:5])
  np.testing.assert_allclose(alone.images, result.images[:5], atol=1e-6)
  other = run(autoattack, net(), key=1)
  both = (result.broken_by == 0) & (other.broken_by == 0)  # by Square
  assert both.sum() > 2
  assert (result.images != other.images)[both].any((1, 2, 3)).all()


def test_several_devices():
  devices = parallel.create('auto', tuple(jax.devices()[:2]))
  autoattack = short(names=['square'])
  assert_like(run(autoattack, net(), parallel=devices, batch_size=2),
              run(autoattack, net()))
  with pytest.raises(ValueError, match='batch_size=5 divisible by 2 devices'):
    run(autoattack, net(), parallel=devices, batch_size=5)


@pytest.mark.slow
def test_l1_through_slots_and_on_devices():
  """Images at different radii share a batch, which shrinks at the end."""
  eps = 0.5
  autoattack = attacks.AutoAttack(eps, 'L1', 'custom', attacks=(
      ('ce', attacks.APGD(eps, 'L1', large_radii=True, num_restarts=2,
                          num_iterations=6, keep='first')),))
  expected = run(autoattack, net(), batch_size=1)
  assert_promises(expected, net(), X, labels(net()), eps, 'L1')
  assert_like(run(autoattack, net(), batch_size=2), expected)
  devices = parallel.create('auto', tuple(jax.devices()[:2]))
  assert_like(run(autoattack, net(), parallel=devices, batch_size=2), expected)


@pytest.mark.parametrize('batch_size', [0, -4, 2.5])
def test_batch_size_that_is_none(batch_size):
  with pytest.raises(ValueError, match='Expected batch_size=.* >= 1'):
    run(short(), net(), batch_size=batch_size)


@pytest.mark.slow
def test_without_jit():
  x = X[:4]
  autoattack = attacks.AutoAttack(EPS, version='custom', attacks=(
      ('square', attacks.Square(EPS, num_queries=3)),
      ('fab', attacks.FAB(EPS, num_iterations=2, keep='first')),
      ('apgd-ce', attacks.APGD(EPS, num_iterations=3, keep='first'))))
  compiled = run(autoattack, net(), x, batch_size=4)
  with jax.disable_jit():
    plain = run(autoattack, net(), x, batch_size=4)
  np.testing.assert_array_equal(plain.broken_by, compiled.broken_by)
  np.testing.assert_allclose(plain.images, compiled.images, atol=1e-6)
  assert len(set(plain.broken_by)) > 1


def test_keys():
  autoattack = short(names=['square'])
  expected = run(autoattack, net(), key=jax.random.key(5))
  assert_like(run(autoattack, net(), key=jax.random.PRNGKey(5)), expected, 0)


@pytest.mark.parametrize('cast', [
    jnp.asarray, lambda x: x.astype(np.float64), lambda x: x.tolist(),
    np.asfortranarray])
def test_images_of_any_kind(cast):
  before = X.copy()
  x, y = cast(X), labels(net()).astype(np.int64)
  if isinstance(x, np.ndarray):
    x.flags.writeable = y.flags.writeable = False
  result = run(short(), net(), x, cast(y) if isinstance(x, list) else y)
  assert_like(result, run(short(), net()), 0)
  assert result.images.dtype == np.float32 and result.images.flags.writeable
  assert result.labels.dtype == np.int32
  np.testing.assert_array_equal(X, before)


def test_float64():
  autoattack = functools.partial(short, EPS, names=['apgd-t'])
  with jax.enable_x64(True):
    x = X.astype(np.float64)
    result = run(autoattack(), net(), x)
    assert result.images.dtype == np.float64
    assert result.settings['dtype'] == 'float64'
    assert_promises(result, net(), x, labels(net()), EPS, 'Linf')
  assert np.mean(result.robust == run(autoattack(), net()).robust) > 0.9


def test_one_image():
  result = run(short(0.3), net(), X[:1])
  assert result.robust_accuracy == 0 and result.images.shape == (1, *SHAPE)
  assert run(short(0.), net(), X[:1]).robust_accuracy == 1


@pytest.mark.parametrize('version', autoattacks.VERSIONS)
def test_every_version_where_the_first_attack_fools_all(version):
  model = net(10)
  if version == 'rand':
    model = noisy(model)
  y = labels(net(10))
  result = run(attacks.AutoAttack(0.5, version=version), model, y=y,)
  assert result.names == autoattacks.VERSIONS[version]
  assert result.clean_accuracy > 0.8
  assert set(result.accuracy_after.values()) == {0}
  assert (result.broken_by <= 0).all()
  assert result.settings['version'] == version


@pytest.mark.parametrize('version', ['standard', 'plus'])
def test_nothing_to_attack(version):
  y = (labels(net(10)) + 1) % 10
  result = run(attacks.AutoAttack(EPS, version=version), net(10), y=y)
  assert result.robust_accuracy == result.clean_accuracy == 0
  assert (result.broken_by == -1).all() and not result.norms.any()
  assert set(result.seconds.values()) == {0}
  assert '| autoattack | 0.00% |' in result.table()


@pytest.mark.parametrize(('num_classes', 'names'), [
    (2, ('apgd-dlr', 'apgd-t')), (3, ('fab',)), (9, ('fab-t',))])
def test_few_classes(num_classes, names):
  model, eps = net(num_classes), 0.02
  targets = min(num_classes - 1, 2)
  common = dict(eps=eps, num_iterations=4, keep='first')
  members = {
      'apgd-dlr': attacks.APGD(loss=losses.dlr, **common),
      'apgd-t': attacks.APGD(loss=losses.targeted_dlr, num_targets=targets,
                             **common),
      'fab': attacks.FAB(**common),
      'fab-t': attacks.FAB(num_targets=targets, **common)}
  autoattack = attacks.AutoAttack(eps, version='custom', attacks=[
      (name, members[name]) for name in names])
  result = run(autoattack, model, individual=True)
  for name, accuracy in result.accuracy_after.items():
    assert 0 < accuracy < 1, name  # Each of them finds some.
  predictions = labels(model, result.images)
  np.testing.assert_array_equal(result.predictions, predictions)
  np.testing.assert_array_equal(result.robust, predictions == labels(model))


def test_images_of_another_shape():
  x = X.reshape(NUM_IMAGES, 48)
  result = run(short(0.1, names=['square']), net(), x)
  assert_promises(result, net(), x, labels(net(), x), 0.1, 'Linf')
  assert result.robust_accuracy < 1


# Stochastic models.


def noisy(model):
  def logits_fn(x, key):
    noise = jax.random.uniform(key, (len(x), 1, 1, 1), x.dtype, 0.99, 1)
    return model(x * noise)
  return logits_fn


def test_stochastic(tmp_path):
  model = noisy(net())
  autoattack = attacks.AutoAttack(EPS, version='custom', attacks=[
      ('apgd-ce', attacks.APGD(EPS, num_iterations=3, eot=2, keep='first'))])
  options = dict(y=labels(net()), state_file=tmp_path / 'state.npz')
  result = run(autoattack, model, **options)
  assert 0 < result.robust_accuracy < result.clean_accuracy
  assert result.warnings == []
  for again in (run(autoattack, model, **options),
                run(autoattack, model, y=labels(net()))):
    np.testing.assert_array_equal(again.images, result.images)
  fooled = labels(net(), result.images) != labels(net())
  assert np.mean(fooled == ~result.robust) > 0.8


def test_stochastic_models_take_a_key():
  with pytest.raises(ValueError, match=r'stochastic .* to take \(images, key'):
    run(attacks.AutoAttack(EPS, version='rand'), net(), y=labels(net()))
  with pytest.raises(ValueError, match=r"take \(images\): missing .*'key'"):
    run(attacks.AutoAttack(EPS), noisy(net()), y=labels(net()))


def test_under_jit():
  y = labels(net())
  with pytest.raises(ValueError, match='call it outside of jit'):
    jax.jit(lambda x: run(attacks.AutoAttack(EPS), net(), x, y))(X)


# Against the official code.


@functools.cache
def data():
  """Returns more images, some of which are wrong from the start."""
  x = np.random.default_rng(5).uniform(size=(40, *SHAPE)).astype(np.float32)
  y = labels(net(), x)
  y[::9] = (y[::9] + 1) % NUM_CLASSES
  return x, y


@pytest.fixture(scope='module')
def official():
  """Returns the official object, as short, and its images and labels."""
  pyautoattack = pytest.importorskip('pyautoattack')
  torch = pytest.importorskip('torch')
  first, second = map(torch.tensor, weights())
  def model(x):  # of images NCHW
    x = x.permute(0, 2, 3, 1).flatten(1) - 0.5
    return torch.tanh(x @ first) @ second
  x, y = data()
  found = pyautoattack.AutoAttack(model, eps=EPS, seed=0)
  found.attacks_to_run = ['square', 'fab-t', 'apgd-t']
  for part in (found.apgd_targeted, found.fab):
    part.n_iter, part.n_target_classes = ITERATIONS, TARGETS
  found.square.n_queries = QUERIES
  return (found, torch.tensor(x).permute(0, 3, 1, 2).contiguous(),
          torch.tensor(y).long())


def official_flags(y_adv, y):
  return (y_adv == y).numpy()


def test_against_official(official):
  autoattack, x, y = official
  result = run(short(), net(), *data())
  after = result.accuracy_after
  assert 0.9 > after['square'] > after['fab-t'] >= after['apgd-t'] > 0.1
  _, y_adv = autoattack.run_standard_evaluation(x, y, batch_size=40)
  expected = official_flags(y_adv, y)
  assert np.mean(result.robust == expected) >= 0.97
  assert abs(result.robust_accuracy - expected.mean()) <= 0.025


def test_against_official_one_by_one(official):
  autoattack, x, y = official
  result = run(short(), net(), *data(), individual=True)
  found = autoattack.run_standard_evaluation_individual(x, y, batch_size=40)
  assert list(found) == list(result.names)
  for name, (_, y_adv) in found.items():
    expected = official_flags(y_adv, y)
    if name == 'fab-t':  # There is no randomness in it.
      np.testing.assert_array_equal(result.flags[name], expected)
    else:
      assert np.mean(result.flags[name] == expected) >= 0.9, name
      assert abs(result.accuracy_after[name] - expected.mean()) <= 0.1, name


@pytest.mark.slow
def test_rand_is_as_strong_as_the_official_one():
  torch = pytest.importorskip('torch')
  pyautoattack = pytest.importorskip('pyautoattack')
  # Images at the edge of their classes, whose predictions the noise changes.
  noise, size, eps = 0.05, 192, 0.03
  first, second = weights()
  x = np.random.default_rng(6).uniform(size=(size, *SHAPE)).astype(np.float32)
  y = labels(net(), x)
  def jax_model(x, key):
    return net()(x + noise * jax.random.normal(key, x.shape, x.dtype))
  def torch_model(x):
    x = x + noise * torch.randn(x.shape)
    hidden = torch.tanh((x.permute(0, 2, 3, 1).flatten(1) - 0.5)
                        @ torch.tensor(first))
    return hidden @ torch.tensor(second)

  ours = attacks.AutoAttack(eps, version='custom', attacks=[
      ('apgd-ce', attacks.AutoAttack(eps, version='rand').members(10)[
          'apgd-ce'])])
  robust = run(ours, jax_model, x, y, batch_size=size).robust_accuracy
  theirs = pyautoattack.AutoAttack(torch_model, eps=eps, seed=0,
                                   version='rand')
  theirs.attacks_to_run = ['apgd-ce']
  _, predictions = theirs.run_standard_evaluation(
      torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long(),
      batch_size=size)
  official = np.mean(predictions.numpy() == y)
  assert 0.05 < robust < 0.9 and robust < official + 0.03


# Attacks of every kind as members.


@dataclasses.dataclass(frozen=True)
class Corners(attacks.Attack):
  """An attack of one's own: random corners of the ball, until one fools."""
  eps: float
  norm: str = 'Linf'
  bounds: tuple[float, float] = (0., 1.)
  num_steps: int = 6

  def init(self, problem):
    return problem.x, problem.keys

  def step(self, logits_fn, problem, state, key=None):
    images, keys = state
    missed = logits_fn(images).argmax(-1) != problem.y
    signs = jax.vmap(lambda key: jax.random.rademacher(
        key, images.shape[1:], images.dtype))(keys)
    drawn = jnp.clip(problem.x + self.eps * signs, *self.bounds)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    return geometry.where(missed, images, drawn), keys

  def images(self, problem, state):
    return state[0]


def test_every_attack_is_a_member():
  eps, y = 0.05, labels(net())
  members = (
      ('own', Corners(eps)), 'fgsm', ('restarted', attacks.PGD(
          eps, eps, 2, num_restarts=2)),
      ('trades', attacks.PGD(eps, eps / 2, 2, losses.divergence_from)),
      ('utae', attacks.UTAE(eps, eps / 2, 2)), 'fmn',
      ('fab', attacks.FAB(None, num_iterations=3)))
  result = run(attacks.AutoAttack(eps, version='custom', attacks=members),
               net(), y=y, individual=True)
  assert_promises_of_all(result, eps, y)
  alone = {name: flags.mean() for name, flags in result.flags.items()}
  assert len(set(alone.values())) > 2 and alone['own'] < 1
  # The best of all, image by image.
  np.testing.assert_array_equal(
      result.robust, np.logical_and.reduce(list(result.flags.values())))
  # FMN looks for nothing closer than eps, and stays within.
  assert alone['fmn'] == min(alone.values())
  assert result.success_rate == 1 - result.robust_accuracy


def assert_promises_of_all(result, eps, y):
  for name, images in result.images_by_attack.items():
    robust = labels(net(), images) == y
    np.testing.assert_array_equal(robust, result.flags[name], err_msg=name)
    assert size(images - X, 'Linf').max() <= eps * (1 + 1e-5), name


def test_members_alone_are_what_they_are():
  """A member finds what its call finds."""
  y, own, key = labels(net()), Corners(0.05), jax.random.key(0)
  result = run(attacks.AutoAttack(0.05, version='custom', attacks=(
      ('own', own),)), net(), y=y)
  with_key = jax.random.fold_in(key, zlib.crc32(b'own'))
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(
      attacks.example_keys(with_key, jnp.arange(NUM_IMAGES)))
  called = jax.jit(lambda: own.run(net(), keys, X, y))()
  np.testing.assert_array_equal(called.success, ~result.robust)
  np.testing.assert_allclose(called.images[~result.robust],
                             result.images[~result.robust], atol=1e-6)
  assert 0 < called.success.mean() < 1
  text = repr(result)
  assert 'success rate' in text and 'own' in text and len(text) < 300


def test_members_in_l0():
  """A norm that only some have."""
  y = labels(net())
  result = run(attacks.AutoAttack(1, 'L0', 'custom', ('fmn',)), net(), y=y)
  changed = (result.images != X).reshape(NUM_IMAGES, -1).sum(1)
  np.testing.assert_array_equal(result.norms, changed)
  assert changed.max() == 1 and (changed[~result.robust] > 0).all()
  assert 0 < result.robust_accuracy < 1
  with pytest.raises(ValueError, match="attack='square' to be one of 'fmn'"):
    attacks.AutoAttack(3, 'L0', 'custom', ('square',))


def test_a_member_whose_images_are_no_numbers():
  def breaks(x):
    far = jnp.abs(x - X[:1]).max() > 1e-6
    return jnp.where(far, jnp.nan, 1.) * apply_fn(weights(), x)
  autoattack = attacks.AutoAttack(EPS, version='custom', attacks=(
      ('pgd', attacks.PGD(EPS, EPS, 2)),))
  with pytest.raises(ValueError, match='pgd: logits or gradients are not'):
    run(autoattack, breaks, X[:1])
