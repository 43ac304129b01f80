"""Tests of ferd_jax.attacks.checks, and of what AutoAttack does with them."""

import functools
import warnings

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import checks
from ferd_jax.core import parallel

SHAPE, NUM_CLASSES, EPS, BOUNDS = (4, 4, 3), 10, 0.1, (0., 1.)
X = np.random.default_rng(0).uniform(size=(12, *SHAPE)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(48, NUM_CLASSES)).astype('f')


def linear(x):
  return (x - 0.5).reshape(len(x), -1) @ WEIGHTS


def labels(logits_fn, x=X):
  return np.array(jnp.argmax(logits_fn(jnp.asarray(x)), -1))


def run(logits_fn=linear, x=X, y=None, *, eps=EPS, norm='Linf', bounds=BOUNDS,
        members=None, batch_size=1, num_devices=1, key=None):
  """Returns the result of AutoAttack, by default of a short Square.

  Each net compiles anew: at a batch size of 1 only once.
  """
  members = members or [
      ('square', attacks.Square(eps, norm, num_queries=5, bounds=bounds))]
  autoattack = attacks.AutoAttack(eps, norm, 'custom', members, bounds)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)
    return autoattack(
        logits_fn, jax.random.key(0) if key is None else key, x,
        labels(linear, x) if y is None else y, batch_size=batch_size,
        progress=False, parallel=parallel.create(
            'auto', tuple(jax.devices()[:num_devices])))


def warnings_of_model(logits_fn, **options):
  """Returns the warnings where no image is to be attacked."""
  y = (labels(logits_fn) + 1) % NUM_CLASSES
  *found, last = run(logits_fn, y=y, **options).warnings
  assert 'The clean accuracy is 0.00%' in last
  return found


def one(warnings_):
  """Returns the warning, of which there is one."""
  assert len(warnings_) == 1
  return warnings_[0]


# Inputs.


def test_a_sound_run_has_no_warnings():
  assert run(members=[
      ('apgd', attacks.APGD(EPS, num_iterations=5, keep='first')),
      ('square', attacks.Square(EPS, num_queries=5))]).warnings == []


@pytest.mark.parametrize(('x', 'y', 'match'), [
    ((255 * X).astype(np.uint8), None, 'x to be float32.* got uint8'),
    (X.astype(np.float16), None, 'x to be float32 .* got float16'),
    (X.astype(int), None, 'x to be float32 or float64 images, got int64'),
    (X, np.zeros(12), 'y to be int labels, got float64'),
    (X, np.zeros(12, bool), 'y to be int labels, got bool'),
    (X, np.zeros(11, int), r'y of shape \(11,\) .* x of shape \(12, 4, 4, 3\)'),
    (X, np.zeros((12, 1), int), r'y of shape \(12, 1\) to be \[N\]'),
    (X, np.array(1), r'y of shape \(\) to be \[N\]'),
    (X[:0], np.zeros(0, int), r'y of shape \(0,\) .* N > 0'),
    (X, np.arange(12), r'y in 0\.\.9, got 10 for images 10, 11\.'),
    (X, np.arange(12) - 1, r'y in 0\.\.9, got -1 for images 0, 11\.'),
    # Its lower 32 bits are 0.
    (X, np.full(12, 2 ** 32), r'y in 0\.\.9, got 4294967296 for images 0'),
    (X * 2, None, r'x to be finite images in \(0.0, 1.0\).* values from'),
    (X - 0.1, None, r'x to be finite images in \(0.0, 1.0\).* values from'),
    (np.where(X > 0.99, np.nan, X), None, 'x .* a value that is not finite'),
    (np.where(X > 0.99, np.inf, X), None, 'x .* a value that is not finite'),
])
def test_bad_images_and_labels(x, y, match):
  # What the labels are does not matter where the images are wrong.
  y = np.zeros(len(x), int) if y is None else y
  with pytest.raises(ValueError, match='Expected ' + match):
    run(x=x, y=y)


@pytest.mark.parametrize('shape, warns', [
    ((9, 3, 8, 8), True), ((9, 1, 8, 8), True), ((9, 1, 64, 2), False),
    ((9, 3, 4, 4), False), ((9, 8, 8, 3), False), ((9, 8, 8), False)])
def test_channels_that_seem_to_come_first(shape, warns):
  assert bool(checks.layout(shape)) == warns


def test_bad_images_never_reach_the_model():
  def convolution(x):  # Its own error would be about feature counts.
    kernel = jnp.ones((3, 3, 3, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ).reshape(len(x), -1)
  run(convolution, y=np.zeros(12, int))
  with pytest.raises(ValueError, match='N > 0'):
    run(convolution, x=X[:0], y=np.zeros(0, int))


@pytest.mark.parametrize('shape', [
    (12, 3, 16, 1), (12, 16, 3, 1), (12, 1, 1, 48), (12, 3, 16), (12, 48)])
def test_images_of_other_shapes_are_fine(shape):
  checks.data_set(X.reshape(shape), np.zeros(12, int), EPS, 'Linf', BOUNDS)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, np.uint64])
def test_any_int_labels_are_fine(dtype):
  checks.labels(np.arange(10).astype(dtype), 10)


def test_bounds_are_those_given():
  checks.data_set(2 * X - 1, np.zeros(12, int), EPS, 'L2', (-1., 1.))
  with pytest.raises(ValueError, match=r'images in \(-1.0, 1.0\)'):
    checks.data_set(3 * X - 1, np.zeros(12, int), EPS, 'L2', (-1., 1.))


@pytest.mark.parametrize('eps', [-0.1, np.nan, np.inf, '8/255', None])
def test_eps_that_is_none(eps):
  with pytest.raises(ValueError, match=r'Expected eps=.* >= 0\.'):
    attacks.AutoAttack(eps)


@pytest.mark.parametrize(('norm', 'bounds', 'widest'), [
    ('Linf', BOUNDS, 1), ('L2', BOUNDS, 48 ** .5),
    ('Linf', (-1., 3.), 4), ('L2', (-1., 3.), 4 * 48 ** .5),
    ('L1', (-1., 3.), 4 * 48)])
def test_eps_that_covers_everything(norm, bounds, widest):
  check = functools.partial(checks.data_set, X, np.zeros(12, int))
  check(0.99 * widest, norm, bounds)
  with pytest.raises(ValueError, match='eps has their unit, such as 8/255'):
    check(1.01 * widest, norm, bounds)
  with pytest.raises(ValueError, match='Expected eps=8 below 1, which covers'):
    run(eps=8)


@pytest.mark.parametrize('key', [
    0, np.zeros(2), None, 'key', np.zeros((12, 2), np.uint32)])
def test_a_key_that_is_none(key):
  with pytest.raises(ValueError, match='Expected key to be one PRNG key, got'):
    attacks.AutoAttack(EPS)(linear, key, X, labels(linear))


# The model.


@pytest.mark.parametrize('logits_fn', [
    lambda x: linear(x)[:, 0], lambda x: linear(x)[:, :1],
    lambda x: linear(x)[:, None], lambda x: linear(x)[0],
    lambda x: jnp.concatenate([linear(x)] * 2),
    lambda x: jnp.argsort(linear(x)), lambda x: x])
def test_a_model_that_returns_something_else(logits_fn):
  with pytest.raises(ValueError, match=r'logits_fn to return floating-point '
                     r'logits \[1, K\], K >= 2, got'):
    run(logits_fn, y=np.zeros(12, int))


NOISE = np.random.default_rng(2)


def numpy_noise(x):
  noise = NOISE.uniform(0.99, 1, (1, NUM_CLASSES))
  return linear(x) * noise.astype(np.float32)


def numpy_number(x):
  return linear(x) * NOISE.uniform(0.5, 1)


@pytest.mark.parametrize('logits_fn', [
    numpy_noise, jax.jit(numpy_noise), numpy_number, jax.jit(numpy_number),
    jax.tree_util.Partial(lambda w, x: numpy_noise(x), WEIGHTS)])
def test_noise_of_python_in_the_model(logits_fn):
  # Once compiled it is a constant, which five passes do not show.
  assert "version 'rand'" in one(warnings_of_model(logits_fn))


def test_noise_from_outside_of_the_model():
  state = np.random.default_rng(0)
  def noisy(x):
    return np.asarray(linear(jnp.asarray(x))) + 1e-3 * state.normal(
        size=(len(x), NUM_CLASSES))
  trace = functools.partial(jax.make_jaxpr(linear), X)
  assert 'stochastic' in one(checks.determinism(noisy, trace(), trace, X))
  assert checks.determinism(linear, trace(), trace, X) == []


@jax.custom_vjp
def straight_through(x):
  return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
KEY = jax.random.key(7)


@pytest.mark.parametrize('logits_fn', [
    lambda x: jax.nn.relu(linear(straight_through(3 * x))),
    lambda x: linear(x) + jax.random.normal(KEY, (1, NUM_CLASSES)),
    lambda x: linear(x) + jax.pure_callback(
        lambda: np.ones((1, NUM_CLASSES), 'f'),
        jax.ShapeDtypeStruct((1, NUM_CLASSES), 'f')),
    lambda x: jax.lax.scan(lambda c, _: (c + linear(x), None),
                           jnp.zeros((len(x), NUM_CLASSES)), length=3)[0],
    jax.checkpoint(linear)])
def test_models_that_are_always_the_same(logits_fn):
  assert warnings_of_model(logits_fn, batch_size=4) == []


class Net(nn.Module):
  """A net with a BatchNorm."""
  train: bool

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.BatchNorm(use_running_average=not self.train)(x)
    return nn.Dense(NUM_CLASSES)(nn.relu(x).reshape(len(x), -1))


@pytest.fixture(scope='module')
def variables():
  return Net(False).init(jax.random.key(0), X)


@pytest.mark.parametrize(('num_images', 'batch_size', 'num_devices'), [
    (12, 8, 1), (12, 8, 4), (12, 3, 1), (2, 8, 1), (1, 8, 1), (12, 1, 1),
    (12, 4, 4)])
def test_batch_statistics(variables, num_images, batch_size, num_devices):
  def logits_fn(train, x):
    net = Net(train)
    if not train:
      return net.apply(variables, x)
    return net.apply(variables, x, mutable=['batch_stats'])[0]
  run_ = functools.partial(run, x=X[:num_images], batch_size=batch_size,
                           num_devices=num_devices)
  with pytest.raises(ValueError, match='is the model in training mode'):
    run_(functools.partial(logits_fn, True))
  evaluating = functools.partial(logits_fn, False)
  run_(evaluating, y=(labels(evaluating, X[:num_images]) + 1) % NUM_CLASSES)


@pytest.mark.parametrize('scale', [1e-4, 1, 1e4])
def test_independence_of_any_scale(scale):
  def predict(x, share):
    logits = np.asarray(linear(jnp.asarray(x)))
    return scale * (logits + share * logits.mean(0))
  checks.independence(functools.partial(predict, share=0), X, BOUNDS)
  with pytest.raises(ValueError, match='training mode'):
    checks.independence(functools.partial(predict, share=0.1), X, BOUNDS)


def test_probabilities_instead_of_logits():
  result = run(lambda x: jax.nn.softmax(linear(x)))
  assert 'seems to return probabilities' in one(result.warnings)


@pytest.mark.parametrize('logits', [
    [[0.5, 0.5], [0.9, 0.2]], [[1.5, -0.5]], [[0., 0.]], [[2., 1.]],
    [[-0.1, -2.3]]])
def test_logits_are_no_probabilities(logits):
  assert checks.outputs(np.array(logits)) == []


@pytest.mark.parametrize('logits', [
    [[1., 0.]], [[0.25, 0.75], [0.5, 0.5]], [[1 + 9e-6, -9e-6]]])
def test_probabilities(logits):
  assert 'softmax' in one(checks.outputs(np.array(logits)))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_clean_logits_that_are_not_finite(value):
  def logits_fn(x):
    return jnp.where((x == X[7, 0, 0, 0]).any((1, 2, 3))[:, None], value,
                     linear(x))
  with warnings.catch_warnings():
    warnings.simplefilter('error', RuntimeWarning)  # NumPy's would be noise.
    with pytest.raises(ValueError, match='finite logits, .* for images 7'):
      run(logits_fn)


@pytest.mark.parametrize(('members', 'value'), [
    ([('square', attacks.Square(EPS, num_queries=5))], np.nan),
    ([('apgd-ce', attacks.APGD(EPS, num_iterations=5, keep='first'))], np.inf),
    ([('fab', attacks.FAB(EPS, num_iterations=5, num_targets=2, keep='first')),
      ('square', attacks.Square(EPS, num_queries=5))], np.nan)])
def test_adversarial_logits_that_are_not_finite(members, value, tmp_path):
  def logits_fn(x):  # Images 2 and 3 are strange, all around themselves.
    clean = jnp.asarray(X)
    near = jnp.abs(x[:, None] - clean[None, 2:4]).max((2, 3, 4)).min(1)
    return jnp.where(((near < 0.2) & (near > 0))[:, None], value, linear(x))
  state_file = tmp_path / 'state.npz'
  autoattack = attacks.AutoAttack(EPS, version='custom', attacks=members)
  # A NaN is no misclassification. Going on does not get around it.
  for _ in range(2):
    with pytest.raises(
        ValueError, match=rf'^{members[0][0]}: logits or gradients are not '
        r'finite for adversarial images of examples \[2, 3\] \(2 in all\)'):
      autoattack(logits_fn, jax.random.key(0), X, labels(linear), batch_size=1,
                 state_file=state_file, progress=False,
                 parallel=parallel.create('jit'))


# Numbers of classes.


def members_of(num_classes, version='plus'):
  return attacks.AutoAttack(EPS, version=version).members(num_classes)


@pytest.mark.parametrize('num_classes', range(2, 10))
def test_few_classes(num_classes):
  found = checks.class_count(num_classes, members_of(num_classes))
  assert (f'(apgd-t and fab-t) usually have 9 target classes; of {num_classes} '
          f'classes they have {num_classes - 1}') in found[0]
  expected = ['The targeted DLR loss needs 4 classes; apgd-t'] * (
      num_classes < 4) + ['The DLR loss needs 3 classes; apgd-dlr'] * (
          num_classes < 3)
  assert len(found) == 1 + len(expected)
  for warning, start in zip(found[1:], expected, strict=True):
    assert warning.startswith(start)


@pytest.mark.parametrize(('num_classes', 'names'), [
    (5, 'apgd-t and fab-t'), (6, 'fab-t'), (9, 'fab-t'), (10, '')])
def test_few_classes_of_l1(num_classes, names):
  # APGD-T has five targets there.
  members = attacks.AutoAttack(EPS, 'L1').members(num_classes)
  found = checks.class_count(num_classes, members)
  assert [f'({names}) usually' in note
          for note in found] == [True] * bool(names)
  assert [' classes (apgd-t: 5); of 5 ' in note for note in found] == (
      [num_classes == 5] * bool(names))


@pytest.mark.parametrize('num_classes', [10, 11, 100])
@pytest.mark.parametrize('version', ['plus', 'torchattacks_compat'])
def test_enough_classes(num_classes, version):
  assert checks.class_count(num_classes, members_of(num_classes, version)) == []


def test_few_classes_by_what_attacks_need():
  assert checks.class_count(5, members_of(5, 'rand')) == []
  members = {'mine': attacks.APGD(EPS, loss=losses.targeted_dlr, num_targets=2),
             'other': attacks.Square(EPS)}
  assert checks.class_count(5, members) == []
  assert '(mine) usually have 9' in checks.class_count(3, members)[0]
  assert 'mine ascends' in checks.class_count(3, members)[1]


# Results.


def test_clean_accuracy_near_chance():
  result = run(y=(labels(linear) + 1) % NUM_CLASSES)
  assert 'clean accuracy is 0.00%, for 10 classes' in one(result.warnings)
  assert checks.clean_accuracy(0.16, 10) == []
  assert 'clean accuracy is 14.00%' in one(checks.clean_accuracy(0.14, 10))
  assert 'labels' in one(checks.clean_accuracy(0.5, 2))


SHORT_APGD = ('apgd', attacks.APGD(EPS, num_iterations=5, keep='first'))


@pytest.mark.parametrize(('logits_fn', 'expected'), [
    (lambda x: linear(jnp.round(4 * x) / 4), '11 images (0, 1, 2, 3, 4, 6, '),
    # Its probabilities are exactly 0 and 1. Images that the start fools have a
    # gradient.
    (lambda x: 1e4 * linear(x), '8 images (')])
def test_zero_gradients(logits_fn, expected):
  y = labels(logits_fn)
  y[5] = (y[5] + 1) % NUM_CLASSES  # It is not attacked.
  result = run(logits_fn, members=[SHORT_APGD], y=y)
  assert f'apgd: the gradient is 0 at the start for {expected}' in (
      one(result.warnings))


def test_zero_gradients_lists_some():
  assert checks.zero_gradients('apgd-t', []) == []
  assert '2 images (3, 5)' in one(checks.zero_gradients('apgd-t', [3, 5]))
  assert '(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)' in one(
      checks.zero_gradients('apgd-t', list(range(11))))


def masking(x):
  """Returns logits whose gradients lead nowhere, although they are not 0."""
  return linear(jnp.round(4 * x) / 4) + 1e-3 * linear(x)[:, ::-1]


def test_square_finds_what_gradients_do_not():
  square = ('square', attacks.Square(EPS, num_queries=100))
  result = run(masking, members=[SHORT_APGD, square], y=labels(masking))
  after = result.accuracy_after
  assert after['square'] < after['apgd']
  assert one(result.warnings) == (
      f'square leaves a robust accuracy of {after["square"]:.2%}, attacks with '
      f'gradients alone {after["apgd"]:.2%}: gradients may be masked.')
  # First of all it has nothing to be compared with.
  assert run(masking, members=[square, SHORT_APGD],
             y=labels(masking)).warnings == []


@pytest.mark.parametrize(('robust', 'warns'), [
    ({'apgd-ce': 0.5, 'square': 0.4979}, True),
    ({'apgd-ce': 0.5, 'square': 0.4981}, False),
    ({'apgd-ce': 0.6, 'fab-t': 0.5, 'square': 0.4}, True),
    # As in 'plus': what comes later is not higher, and tells nothing.
    ({'apgd-ce': 0.6, 'square': 0.4, 'apgd-t': 0.1}, True),
    ({'apgd-ce': 0.6, 'square': 0.6, 'apgd-t': 0.1}, False),
    ({'square': 0.4, 'apgd-t': 0.3}, False),
    ({'square': 0.4}, False), ({'apgd-ce': 0.4}, False), ({}, False)])
def test_square_too_strong(robust, warns):
  assert bool(checks.square_too_strong(robust, ['square'], False)) == warns


@pytest.mark.parametrize(('robust', 'warns'), [
    ({'apgd-ce': 0.5, 'sq': 0.4979}, True),
    ({'apgd-ce': 0.5, 'sq': 0.6}, False),
    ({'sq': 0.4, 'apgd-ce': 0.5}, True), ({'sq': 0.4}, False),
    ({'apgd-ce': 0.5, 'sq': 0.4, 'apgd-t': 0.3}, False)])
def test_square_too_strong_alone(robust, warns):
  assert bool(checks.square_too_strong(robust, ['sq'], True)) == warns


@pytest.mark.parametrize('norm', ['Linf', 'L2'])
@pytest.mark.parametrize('low', [100., 1000., -10001.])
def test_bounds_far_from_0(low, norm):
  x = (low + X).astype(np.float32)
  autoattack = attacks.AutoAttack(
      EPS, norm, version='custom', bounds=(low, low + 1), attacks=[
          ('square', attacks.Square(EPS, norm, num_queries=5,
                                    bounds=(low, low + 1)))])
  def logits_fn(x):
    return linear(x - low)
  result = autoattack(logits_fn, jax.random.key(0), x, labels(logits_fn, x),
                      batch_size=4, progress=False,
                      parallel=parallel.create('jit'))
  assert result.norms.max() < EPS * 1.2


def test_results():
  x = np.clip(X, 0.2, 0.8)
  norms = np.full(12, EPS)
  checks.results(x, EPS, 'Linf', norms, BOUNDS)
  checks.results(x, EPS, 'Linf', norms + 1e-7, BOUNDS)
  checks.results(x[:0], EPS, 'Linf', norms[:0], BOUNDS)
  def refused(index, images=x, norms=norms):
    with pytest.raises(ValueError, match=rf'out of the ball .*: {index}\.'):
      checks.results(images, EPS, 'Linf', norms, BOUNDS)
  refused(3, norms=norms + 1e-4 * (np.arange(12) == 3))
  refused(4, norms=np.where(np.arange(12) == 4, np.nan, norms))
  for value in (1.001, -0.001, np.nan, np.inf):
    images = x.copy()
    images[5, 1, 2, 0] = value
    refused(5, images)
