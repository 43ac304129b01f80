"""Tests of ferd_jax.attacks on toy nets."""

import dataclasses
import functools
import subprocess
import sys
import warnings

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import attack as attack_module

EPS, STEP = 8 / 255, 2 / 255
SHAPE = (4, 3, 2, 1)
pytestmark = pytest.mark.usefixtures('float64')


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape)


def weights(size, num_classes, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(size, 8)), rng.normal(size=(8, num_classes)))


def smooth_net(size, num_classes, seed=0):
  """Returns a two-layer tanh net, images -> logits."""
  first, second = weights(size, num_classes, seed)
  return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


def keys(batch=SHAPE[0], seed=0):
  return jax.random.split(jax.random.key(seed), batch)


NET = smooth_net(6, 3)
IMAGES = draw(*SHAPE)
LABELS = np.array([0, 1, 2, 1])
ONE_HOT = np.eye(3)[LABELS]
TEACHER_LOGITS = 3 * draw(SHAPE[0], 3, seed=1)

ATTACKS = {
    'fgsm': (attacks.preset('fgsm', EPS), LABELS),
    'pgd': (attacks.PGD(EPS, STEP, 10), LABELS),
    'pgd_normal': (attacks.PGD(EPS, STEP, 10, start='normal'), LABELS),
    'cw': (attacks.PGD(EPS, STEP, 10, loss=losses.carlini_wagner,
                       clip_start=False), LABELS),
    'rslad': (attacks.UTAE(EPS, STEP, 10, gamma=0.), TEACHER_LOGITS),
    'utae': (attacks.UTAE(EPS, STEP, 10), TEACHER_LOGITS),
}
every_attack = pytest.mark.parametrize(('attack', 'y'), ATTACKS.values(),
                                       ids=ATTACKS)


def run(attack, key, x, y, net=NET):
  # Without `jit`, operations are compiled once for all tests.
  attack = dataclasses.replace(attack, unroll=True)
  return np.asarray(attack(net, key, jnp.asarray(x), jnp.asarray(y)))


def problem(attack, keyed, x, y=None):
  return attacks.Problem(jnp.asarray(x), y, None,
                         jnp.full(len(x), attack.eps), keyed)


def initial(attack, keyed, x):
  """Returns the start of PGD or UTAE."""
  return attack.init(problem(attack, keyed, x)).x_adv


def objective(attack, net, x, y):
  loss = attack.loss or losses.cross_entropy
  return np.asarray(loss(net(jnp.asarray(x)), y))


# Few shapes, since each one compiles.
boxes = st.tuples(st.floats(-2, 1, allow_subnormal=False),
                  st.floats(0.05, 3)).map(
    lambda box: (box[0], box[0] + box[1]))


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(shape=st.sampled_from([(1, 2, 3, 1), (3, 1, 2, 2)]),
                  eps=st.floats(0, 1), step_size=st.floats(0, 1), bounds=boxes,
                  num_steps=st.integers(1, 3), seed=st.integers(0, 99),
                  kind=st.sampled_from(['uniform', 'normal', 'zero', 'utae']))
def test_stays_in_ball_and_bounds(shape, eps, step_size, bounds, num_steps,
                                  seed, kind):
  low, high = bounds
  eps = min(eps, high - low)
  x = jnp.asarray(np.clip(low + (high - low) * draw(*shape, seed=seed),
                          low, high))
  net = smooth_net(int(np.prod(shape[1:])), 3, seed)
  if kind == 'utae':
    attack = attacks.UTAE(eps, step_size, num_steps, bounds=bounds,
                          unroll=True)
    y = jnp.asarray(draw(shape[0], 3))
  else:
    attack = attacks.PGD(eps, step_size, num_steps, start=kind, bounds=bounds,
                         clip_start=bool(seed % 2), unroll=True)
    y = jnp.asarray(np.arange(shape[0]) % 3)
  got = np.asarray(attack(net, keys(shape[0], seed), x, y))
  assert got.shape == shape
  assert np.abs(got - x).max() <= eps + 1e-12
  assert low <= got.min() and got.max() <= high


@pytest.mark.parametrize('start', ['uniform', 'normal', 'zero'])
def test_every_step_stays_in_ball_and_bounds(start):
  x = np.round(IMAGES)  # Every pixel at a bound.
  attack = attacks.PGD(EPS, STEP, 10, start=start, clip_start=False)
  given = problem(attack, keys(), x, jnp.asarray(LABELS))
  state = attack.init(given)
  for _ in range(10):
    state = attack.step(NET, given, state)
    x_adv = attack.images(given, state)
    assert np.abs(x_adv - x).max() <= EPS + 1e-12
    assert 0 <= x_adv.min() and x_adv.max() <= 1
  assert np.abs(x_adv - x).max() > 0.9 * EPS


def test_every_step_of_utae_stays_in_ball_and_bounds():
  x = np.round(IMAGES)
  for num_steps in range(1, 11):  # The same key: step for step the same path.
    x_adv = run(attacks.UTAE(EPS, STEP, num_steps), keys(), x, TEACHER_LOGITS)
    assert np.abs(x_adv - x).max() <= EPS + 1e-12
    assert 0 <= x_adv.min() and x_adv.max() <= 1
  assert np.abs(x_adv - x).max() > 0.9 * EPS


@pytest.mark.parametrize(('attack', 'y'), [
    (attacks.PGD(0., STEP, 2), LABELS), (attacks.preset('fgsm', 0.), LABELS),
    (attacks.UTAE(0., STEP, 2), TEACHER_LOGITS)])
def test_zero_radius_gives_the_image(attack, y):
  np.testing.assert_array_equal(run(attack, keys(), IMAGES, y), IMAGES)


def test_zero_radius_of_cw_gives_the_image():
  attack = attacks.PGD(0., STEP, 1, loss=losses.carlini_wagner,
                       clip_start=False)
  np.testing.assert_array_equal(run(attack, keys(), IMAGES, LABELS), IMAGES)


@pytest.mark.parametrize(('attack', 'y'), [
    (attacks.PGD(EPS, STEP / 2, 2), LABELS),
    (attacks.UTAE(EPS, STEP, 2), TEACHER_LOGITS)])
def test_deterministic_given_the_key(attack, y):
  first = run(attack, jax.random.key(1), IMAGES, y)
  np.testing.assert_array_equal(run(attack, jax.random.key(1), IMAGES, y),
                                first)
  assert not np.array_equal(run(attack, jax.random.key(2), IMAGES, y), first)


@pytest.mark.parametrize(('attack', 'y'), [
    (attacks.PGD(EPS, STEP / 2, 2), LABELS),
    (attacks.UTAE(EPS, STEP, 2), TEACHER_LOGITS)])
def test_an_example_depends_on_its_own_key_only(attack, y):
  whole = run(attack, keys(), IMAGES, y)
  np.testing.assert_allclose(
      run(attack, keys()[1:3], IMAGES[1:3], y[1:3]), whole[1:3], atol=1e-12)
  padded = [np.concatenate([a, a[:1] * 0]) for a in (IMAGES, y)]
  padded_keys = jnp.concatenate([keys(), keys()[:1]])
  np.testing.assert_allclose(run(attack, padded_keys, *padded)[:4], whole,
                             atol=1e-12)


def test_one_key_is_folded_with_the_index():
  attack = attacks.PGD(EPS, STEP / 2, 2)
  whole = run(attack, jax.random.key(3), IMAGES, LABELS)
  np.testing.assert_allclose(
      run(attack, jax.random.key(3), IMAGES[:2], LABELS[:2]), whole[:2],
      atol=1e-12)
  folded = jnp.stack([jax.random.fold_in(jax.random.key(3), i)
                      for i in range(4)])
  np.testing.assert_array_equal(run(attack, folded, IMAGES, LABELS), whole)
  same = np.broadcast_to(IMAGES[:1], SHAPE)
  noise = np.asarray(initial(attack, folded, same)) - same
  assert len(np.unique(noise[:, 0, 0, 0])) == 4


@pytest.mark.parametrize('name', ['cw', 'utae'])
@pytest.mark.parametrize('unroll', [False, True])
def test_jit_and_rolling_change_nothing(name, unroll):
  attack, y = ATTACKS[name]
  attack = dataclasses.replace(attack, num_steps=3, unroll=unroll)
  compiled = jax.jit(attack, static_argnums=0)(NET, keys(), IMAGES, y)
  eager = run(attack, keys(), IMAGES, y)
  assert np.abs(eager - IMAGES).max() > STEP / 2
  np.testing.assert_allclose(compiled, eager, atol=1e-12)


@every_attack
def test_loss_increases(attack, y):
  keyed = keys()
  start = initial(attack, keyed, IMAGES)
  before = objective(attack, NET, start, y)
  after = objective(attack, NET, run(attack, keyed, IMAGES, y), y)
  assert (after > before).all()


@every_attack
def test_gradients_do_not_leak(attack, y):
  first, second = weights(6, 3)

  def total(x, matrix, y):
    def net(x):
      return jnp.tanh(x.reshape(len(x), -1) @ matrix) @ second
    return jnp.sum(attack(net, keys(), x, y))
  soft = isinstance(attack, attacks.UTAE)
  attack = dataclasses.replace(attack, num_steps=1, unroll=True)
  gradients = jax.grad(total, argnums=(0, 1, 2) if soft else (0, 1))(
      jnp.asarray(IMAGES), jnp.asarray(first), jnp.asarray(y))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(('attack', 'y'), [
    (attacks.preset('fgsm', EPS), LABELS % 2),
    (attacks.PGD(EPS, STEP, 5, loss=losses.carlini_wagner), LABELS % 2),
    (attacks.UTAE(EPS, STEP, 5), TEACHER_LOGITS[:, :2])])
def test_two_classes(attack, y):
  net = smooth_net(6, 2)
  got = run(attack, keys(), IMAGES, y, net=net)
  assert np.isfinite(got).all()
  assert (objective(attack, net, got, y)
          > objective(attack, net, IMAGES, y)).all()


def test_radius_and_steps_scale_with_the_bounds():
  # Pixels in 0..255 and a net that divides by 255: the same attack.
  attack = attacks.PGD(EPS, STEP, 3, start='zero')
  scaled = attacks.PGD(8., 2., 3, start='zero', bounds=(0., 255.))
  got = run(scaled, keys(), IMAGES * 255, LABELS, net=lambda x: NET(x / 255))
  np.testing.assert_allclose(got / 255, run(attack, keys(), IMAGES, LABELS),
                             atol=1e-12)


def test_starts():
  x = np.broadcast_to(np.round(IMAGES[:1]), (400, 3, 2, 1))
  many = keys(400)

  def noise(**options):
    attack = attacks.PGD(EPS, STEP, 1, **options)
    return np.asarray(initial(attack, many, x)) - x
  np.testing.assert_array_equal(noise(start='zero'), np.zeros_like(x))
  uniform = noise(clip_start=False)
  assert np.abs(uniform).max() <= EPS
  np.testing.assert_allclose(uniform.std(), EPS / np.sqrt(3), rtol=0.05)
  np.testing.assert_allclose(uniform.mean(), 0, atol=EPS / 20)
  normal = noise(start='normal', clip_start=False)
  np.testing.assert_allclose(normal.std(), 0.001, rtol=0.1)
  clipped = noise() + x
  assert clipped.min() == 0 and clipped.max() == 1
  np.testing.assert_array_equal(clipped, np.clip(uniform + x, 0, 1))


@pytest.mark.parametrize('gamma', [0., 0.3, 1.])
def test_gradient_of_utae_objective(gamma):
  logits = draw(4, 5)
  teacher_logits = 3 * draw(4, 5, seed=1)
  attack = attacks.UTAE(EPS, STEP, 1, gamma=gamma)
  gradient = jax.jit(jax.grad(
      lambda z: jnp.sum(attack.loss(z, teacher_logits))))(logits)
  attacked, teacher = (np.asarray(jax.nn.softmax(z))
                       for z in (logits, teacher_logits))
  np.testing.assert_allclose(
      gradient, (1 - gamma) * attacked - teacher + gamma / 5, atol=1e-14)


def rslad(net, start, x, teacher_logits, num_steps):
  """RSLAD's inner loop, written on its own."""
  teacher = jax.nn.softmax(teacher_logits)

  def divergence(x_adv):
    student = jax.nn.log_softmax(net(x_adv))
    return jnp.sum(teacher * (jnp.log(teacher) - student))
  x_adv = start
  for _ in range(num_steps):
    x_adv = x_adv + STEP * jnp.sign(jax.grad(divergence)(x_adv))
    x_adv = jnp.minimum(jnp.maximum(x_adv, x - EPS), x + EPS)
    x_adv = jnp.clip(x_adv, 0., 1.)
  return x_adv


def test_utae_without_uniform_target_is_rslad_bit_for_bit():
  x, teacher_logits = np.float32(IMAGES), np.float32(TEACHER_LOGITS)
  keyed = keys()
  attack = attacks.UTAE(EPS, STEP, 4, gamma=0., unroll=True)
  noise = jnp.stack([jax.random.normal(key, x.shape[1:], jnp.float32)
                     for key in keyed])
  expected = rslad(NET, x + 0.001 * noise, x, teacher_logits, 4)
  got = attack(NET, keyed, jnp.asarray(x), teacher_logits)
  assert got.dtype == expected.dtype == jnp.float32
  np.testing.assert_array_equal(got, expected)
  strong = attacks.UTAE(EPS, STEP, 4, gamma=0.9, unroll=True)
  assert not np.array_equal(strong(NET, keyed, jnp.asarray(x), teacher_logits),
                            expected)


def test_start_of_utae_is_not_clipped():
  x = jnp.asarray(np.round(IMAGES))
  attack = attacks.UTAE(EPS, STEP, 2)
  given = problem(attack, keys(), x, TEACHER_LOGITS)
  state = attack.init(given)
  first, second = state.x_adv, attack.step(NET, given, state).x_adv
  assert first.min() < 0 and first.max() > 1
  assert 1e-4 < np.abs(first - x).std() < 2e-3
  assert second.min() == 0 and second.max() == 1


def torch_loss(torch, name, logits, labels):
  if not name.startswith('cw'):
    return torch.nn.functional.cross_entropy(logits, labels, reduction='sum')
  label_logits = logits.gather(1, labels[:, None])[:, 0]
  others = logits.scatter(1, labels[:, None], -torch.inf)
  return (others.max(1).values - label_logits).sum()


@pytest.mark.parametrize(('name', 'num_steps', 'step_size'), [
    ('fgsm', 1, 8 / 255), ('fgsm_fairard', 1, 8 / 255),
    ('pgd10', 10, 2 / 255), ('pgd20', 20, 2 / 255),
    ('pgd20_fairard', 20, 2 / 255), ('pgd20_trades', 20, 0.003),
    ('cw20', 20, 2 / 255), ('cw30_ciard', 30, 2 / 255),
    ('cw100_dfhl', 100, 2 / 255)])
def test_presets_against_torch(name, num_steps, step_size):
  torch = pytest.importorskip('torch')
  attack = attacks.preset(name, EPS)
  start = np.array(initial(attack, keys(), IMAGES))
  if name in ('fgsm', 'cw30_ciard'):
    np.testing.assert_array_equal(start, IMAGES)
  x, x_adv = torch.tensor(IMAGES), torch.tensor(start)
  labels = torch.tensor(LABELS)
  first, second = (torch.tensor(w) for w in weights(6, 3))
  for _ in range(num_steps):
    x_adv.requires_grad_(True)
    logits = torch.tanh(x_adv.flatten(1) @ first) @ second
    gradient, = torch.autograd.grad(
        torch_loss(torch, name, logits, labels), x_adv)
    x_adv = x_adv.detach() + step_size * gradient.sign()
    x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
    if name != 'cw30_ciard':
      x_adv = x_adv.clamp(0, 1)
  x_adv = x_adv.clamp(0, 1)
  np.testing.assert_allclose(run(attack, keys(), IMAGES, LABELS),
                             x_adv.numpy(), atol=1e-12)


def test_starts_of_presets():
  x = np.round(IMAGES)
  pgd, cw = (np.asarray(initial(attacks.preset(name, EPS), keys(), x))
             for name in ('pgd20', 'cw20'))
  assert np.abs(pgd - x).max() > 0 and pgd.min() == 0 and pgd.max() == 1
  assert cw.min() < 0 and cw.max() > 1


@pytest.mark.parametrize('norm', ['L2', 'L1'])
def test_presets_of_other_norms(norm):
  attack = attacks.preset('pgd20', 12., norm, (-1., 1.))
  assert attack == attacks.PGD(12., 3., 20, norm=norm, bounds=(-1., 1.))


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: attacks.preset('pgd7', EPS), "attack='pgd7'"),
    (lambda: attacks.preset('pgd20', EPS, 'L0'), "norm='L0'"),
    (lambda: attacks.preset('fgsm', -0.1), 'eps=-0.1'),
    (lambda: attacks.PGD(-1., STEP, 1), 'eps=-1.0'),
    (lambda: attacks.PGD(EPS, -1., 1), 'step_size=-1.0'),
    (lambda: attacks.PGD(EPS, STEP, 0), 'num_steps=0'),
    (lambda: attacks.PGD(EPS, STEP, 2.5), 'num_steps=2.5 .* whole number'),
    (lambda: attacks.PGD(EPS, STEP, 1, start='best'), "start='best'"),
    (lambda: attacks.UTAE(EPS, STEP, 1, gamma=-0.1), 'gamma=-0.1'),
    (lambda: attacks.UTAE(EPS, STEP, 0), 'num_steps=0'),
    (lambda: attacks.PGD(EPS, STEP, 1, bounds=(1., 0.)),
     r'bounds=\(1.0, 0.0\)'),
    (lambda: attacks.PGD(EPS, STEP, 1, bounds=(0., np.inf)), 'two finite'),
    (lambda: attacks.UTAE(EPS, STEP, 1, bounds=[0.]), r'bounds=\[0.0\]')])
def test_invalid_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('kind', [attacks.PGD, attacks.UTAE])
@pytest.mark.parametrize('wrap', [list, np.array])
def test_bounds_of_any_sequence_are_a_tuple(kind, wrap):
  attack = kind(EPS, STEP, 1, bounds=wrap([0., 0.5]))
  assert attack == kind(EPS, STEP, 1, bounds=(0., 0.5))
  hash(attack)
  y = ATTACKS['pgd' if kind is attacks.PGD else 'utae'][1]
  assert run(attack, keys(), IMAGES / 2, y).max() <= 0.5


@pytest.mark.parametrize(('kind', 'y'), [(attacks.PGD, LABELS),
                                         (attacks.UTAE, TEACHER_LOGITS)])
def test_settings_of_any_scalar_type_are_floats(kind, y):
  # A NumPy or JAX float64 would promote float32 images where x64 is on.
  plain = kind(EPS, STEP, 2)
  x = IMAGES.astype(np.float32)
  y = y.astype(np.int32 if y.ndim == 1 else np.float32)
  for scalar in (np.float64, jnp.float64):
    attack = kind(scalar(EPS), scalar(STEP), 2)
    assert attack == plain and hash(attack) == hash(plain)
    got = run(attack, keys(), x, y)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, run(plain, keys(), x, y))


@every_attack
@pytest.mark.filterwarnings('error')
def test_float64_images_where_x64_is_off(attack, y):
  attack = dataclasses.replace(attack, num_steps=1)
  matrix = draw(6, 3, seed=2).astype(np.float32)
  def net(x):
    return x.reshape(len(x), -1) @ matrix
  with jax.enable_x64(False):
    got = attack(net, keys(), IMAGES, y)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(
        got, attack(net, keys(), jnp.float32(IMAGES), y))


def refused(attack, key, x, y):
  """Returns the message of the ValueError that tracing `attack` raises."""
  with pytest.raises(ValueError) as error:
    jax.eval_shape(lambda key, x, y: attack(NET, key, x, y), key, x, y)
  assert '\n' not in str(error.value)
  return str(error.value)


@every_attack
@pytest.mark.parametrize('unroll', [False, True])
@pytest.mark.parametrize('size', [1, 3])
def test_targets_of_another_batch_size(attack, y, unroll, size):
  attack = dataclasses.replace(attack, unroll=unroll)
  y = y[:size]
  assert refused(attack, keys(), IMAGES, y) == (
      f'Expected y of shape {y.shape} to have the batch size of x of '
      f'shape {SHAPE}.')


def test_targets_without_a_batch_axis():
  message = refused(attacks.PGD(EPS, STEP, 1), keys(), IMAGES, LABELS[0])
  assert 'int labels [B]' in message and '()' in message


@pytest.mark.parametrize('attack', [
    attacks.UTAE(EPS, EPS, 1),
    attacks.APGD(EPS, num_iterations=1, num_targets=2),
    attacks.FAB(EPS, num_iterations=1, num_targets=2)])
def test_targets_that_would_not_be_used(attack):
  targets = np.zeros(len(LABELS), int)
  with pytest.raises(ValueError, match='Expected no targets'):
    attack(NET, keys(), IMAGES, LABELS, targets)
  with pytest.raises(ValueError, match='Expected no targets'):
    attacks.jit(attack, lambda _, x: NET(x))(
        (), jax.random.key(0), IMAGES, LABELS, targets)


@pytest.mark.parametrize('make, untargeted, targeted', [
    (functools.partial(attacks.PGD, EPS, EPS / 2, 2), losses.cross_entropy,
     losses.targeted_cross_entropy),
    (functools.partial(attacks.APGD, EPS, num_iterations=2),
     losses.cross_entropy, losses.targeted_dlr)])
def test_default_losses(make, untargeted, targeted):
  targets = (LABELS + 1) % 3
  for loss, arguments in ((untargeted, ()), (targeted, (targets,))):
    np.testing.assert_array_equal(
        make()(NET, keys(), IMAGES, LABELS, *arguments),
        make(loss=loss)(NET, keys(), IMAGES, LABELS, *arguments))
  if make.func is attacks.APGD:
    np.testing.assert_array_equal(
        make(num_targets=2)(NET, keys(), IMAGES, LABELS),
        make(loss=targeted, num_targets=2)(NET, keys(), IMAGES, LABELS))


@pytest.mark.parametrize('loss, y, message', [
    (losses.carlini_wagner, ONE_HOT, r'int labels \[B\]'),
    (losses.dlr, ONE_HOT, r'int labels \[B\]'),
    (losses.cross_entropy, ONE_HOT, r'int labels \[B\]'),
    (lambda *given: losses.cross_entropy(*given).mean(), LABELS,
     'one value per image')])
@pytest.mark.parametrize('make', [
    functools.partial(attacks.PGD, EPS, EPS / 2, 2),
    functools.partial(attacks.APGD, EPS, num_iterations=2)])
def test_losses_of_something_else(make, loss, y, message):
  with pytest.raises(ValueError, match=message):
    make(loss=loss)(NET, keys(), IMAGES, y)


def test_targets_may_be_a_tree():
  def loss(logits, y):
    labels, scales = y
    return scales * losses.cross_entropy(logits, labels)
  attack = attacks.PGD(EPS, STEP, 2, loss=loss)
  y = (jnp.asarray(LABELS), jnp.ones(4))
  np.testing.assert_array_equal(
      attack(NET, keys(), IMAGES, y),
      attacks.PGD(EPS, STEP, 2)(NET, keys(), IMAGES, LABELS))
  assert 'y of shape (1,)' in refused(attack, keys(), IMAGES,
                                      (LABELS, np.ones(1)))


def test_teacher_logits_of_another_number_of_classes():
  # One class would broadcast.
  for num_classes in (1, 2):
    message = refused(attacks.UTAE(EPS, STEP, 1), keys(), IMAGES,
                      TEACHER_LOGITS[:, :num_classes])
    assert f'target_logits of shape (4, {num_classes})' in message
    assert '(4, 3)' in message


@every_attack
def test_images_that_are_no_floating_point_batch(attack, y):
  for x in (np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, int),
            np.zeros(SHAPE, bool), np.zeros(len(y)), np.float64(0)):
    cure = ('; images of 0..255 are divided by 255 before'
            if x.dtype == np.uint8 else '')
    assert refused(attack, keys(), x, y) == (
        'Expected x to be float32 or float64 images [B, ..., channels], got '
        f'{x.dtype} {x.shape}{cure}.')


@every_attack
def test_keys_that_are_neither_one_nor_one_per_image(attack, y):
  for key in (keys(3), keys(1), keys().reshape(2, 2), np.zeros(2),
              *(np.zeros(shape, np.uint32)
                for shape in [(), (3,), (3, 2), (4, 3), (2, 2, 2)])):
    assert refused(attack, key, IMAGES, y) == (
        'Expected key to be one PRNG key or 4 keys, one per image, got '
        f'{key.dtype} {key.shape}.')


@pytest.mark.parametrize('key', [None, 0, 'key', [0, 0]])
def test_keys_that_are_no_arrays(key):
  with pytest.raises(ValueError, match='Expected key to be one PRNG key'):
    attacks.preset('fgsm', EPS)(NET, key, IMAGES, LABELS)


@pytest.mark.parametrize(('attack', 'y'), [
    (attacks.PGD(EPS, STEP / 2, 2), LABELS),
    (attacks.UTAE(EPS, STEP, 2), TEACHER_LOGITS)])
def test_legacy_keys_are_the_typed_ones(attack, y):
  legacy = jax.random.PRNGKey(3)
  one = run(attack, jax.random.key(3), IMAGES, y)
  np.testing.assert_array_equal(run(attack, legacy, IMAGES, y), one)
  np.testing.assert_array_equal(run(attack, np.asarray(legacy), IMAGES, y),
                                one)
  many = jax.random.split(legacy, 4)
  np.testing.assert_array_equal(run(attack, many, IMAGES, y),
                                run(attack, keys(seed=3), IMAGES, y))
  # [2] uint32 is one key, also where B = 2.
  np.testing.assert_allclose(run(attack, legacy, IMAGES[:2], y[:2]), one[:2],
                             atol=1e-12)


@pytest.mark.parametrize('make', [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize('per_example', [False, True])
def test_vmap_over_batches(make, per_example):
  attack = attacks.PGD(EPS, STEP / 2, 2)
  key = jax.random.split(make(0), (2, 2) if per_example else 2)
  x, y = IMAGES.reshape(2, 2, *SHAPE[1:]), LABELS.reshape(2, 2)
  got = jax.vmap(lambda key, x, y: attack(NET, key, x, y))(key, x, y)
  for i in range(2):
    np.testing.assert_allclose(got[i], run(attack, key[i], x[i], y[i]),
                               atol=1e-12)


INVALID = {
    'label': (IMAGES, np.array([0, 3, 2, 1]), 'y in 0..2, got 3'),
    'negative label': (IMAGES, np.array([0, -1, 2, 1]), 'y in 0..2, got -1'),
    'nan': (np.where(np.arange(4)[:, None, None, None] == 1, np.nan, IMAGES),
            LABELS, 'finite'),
    'bounds': (IMAGES + np.array([0, 1, 0, 0])[:, None, None, None], LABELS,
               r'images in \(0.0, 1.0\), got values from 1'),
}


@pytest.mark.parametrize(('x', 'y', 'message'), INVALID.values(), ids=INVALID)
@pytest.mark.parametrize('name', ['pgd', 'apgd'])
def test_invalid_examples(name, x, y, message):
  attack = {'pgd': attacks.PGD(EPS, STEP, 2),
            'apgd': attacks.APGD(EPS, num_iterations=2)}[name]
  with pytest.raises(ValueError, match=f'{message}.* in example 1 '):
    attack(NET, keys(), x, y)
  result = jax.jit(attack.run, static_argnums=0)(NET, keys(), x, y)
  assert np.isnan(result.images[1]).all() and np.isnan(result.norm[1])
  assert result.predictions[1] == -1 and not result.success[1]
  fine = jax.jit(attack.run, static_argnums=0)(NET, keys(), IMAGES, LABELS)
  for got, expected in zip(result, fine, strict=True):
    np.testing.assert_allclose(np.asarray(got)[[0, 2, 3]],
                               np.asarray(expected)[[0, 2, 3]],
                               atol=1e-12)


@pytest.mark.parametrize(('y', 'message'), [
    (LABELS[:, None], r'labels \[B\] or .* \(4, 1\)'),
    (LABELS.astype(float), r'labels \[B\] or .*float'),
    (LABELS > 0, r'labels \[B\] or .*bool'),
    ({'a': draw(4), 'y': LABELS}, r'labels \[B\] or .*float'),
    ((), r'labels \[B\] or '), ((LABELS + 9,), 'y in 0..2, got 9'),
    # Their low 32 bits are classes.
    (LABELS + 2 ** 32, 'y in 0..2, got 4294967296'),
    (np.full((4, 3), np.nan), 'y to be finite')])
def test_labels_that_are_none(y, message):
  attack = attacks.PGD(EPS, STEP, 1, loss=losses.carlini_wagner)
  compiled = attacks.jit(attack, lambda _, x: NET(x))
  with jax.enable_x64(False):
    for call in (functools.partial(attack, NET),
                 functools.partial(attack.run, NET),
                 functools.partial(compiled, ()),
                 functools.partial(compiled.run, ())):
      with pytest.raises(ValueError, match=message):
        call(jax.random.key(0), IMAGES, y)


@pytest.mark.parametrize(('options', 'message'), [
    ({'eps': -0.1}, '-0.1'), ({'eps': np.nan}, 'nan'),
    ({'eps': np.full(4, -0.1)}, 'eps'), ({'eps': np.ones(3)}, 'eps'),
    ({'x_init': IMAGES[:, :1]}, r'x_init of shape \(4, 1, 2, 1\)'),
    ({'x_init': IMAGES * np.nan}, 'x_init to be finite'),
    ({'key': jax.random.split(jax.random.key(0), 3)}, 'key')])
def test_options_that_are_none(options, message):
  attack = attacks.PGD(EPS, STEP, 1)
  compiled = attacks.jit(attack, lambda _, x: NET(x))
  key = options.pop('key', jax.random.key(0))
  for call in (functools.partial(attack, NET), functools.partial(compiled, ()),
               functools.partial(compiled.run, ())):
    with pytest.raises(ValueError, match=message):
      call(key, IMAGES, LABELS, **options)


@pytest.mark.parametrize('attack', [
    attacks.PGD(EPS, STEP, 2), attacks.APGD(EPS, num_iterations=2),
    attacks.FAB(EPS, num_iterations=2), attacks.Square(EPS, num_queries=2)],
    ids=lambda attack: type(attack).__name__)
def test_traced_options_that_are_none(attack):
  call = jax.jit(lambda **options: attack.run(
      NET, keys(), IMAGES, LABELS, **options))
  fine = call(eps=EPS, x_init=IMAGES)
  for options in ({'eps': np.array([EPS, -EPS, np.nan, EPS]),
                   'x_init': IMAGES},
                  {'eps': EPS, 'x_init': np.where(
                      np.arange(4)[:, None, None, None] % 3, np.nan, IMAGES)}):
    result = call(**options)
    assert np.isnan(result.images[1:3]).all()
    np.testing.assert_array_equal(result.predictions[1:3], -1)
    np.testing.assert_allclose(result.images[::3], fine.images[::3],
                               atol=1e-12)


def test_a_start_has_the_dtype_of_the_images():
  x, start = IMAGES.astype(np.float32), IMAGES  # float64
  for attack in (attacks.PGD(EPS, STEP, 2), attacks.FAB(EPS)):
    call = functools.partial(attack, NET, keys(), x, LABELS, x_init=start)
    assert jax.eval_shape(call).dtype == np.float32


def test_probabilities_get_a_warning():
  attack = attacks.PGD(EPS, STEP, 1)
  def probabilities(x):
    return jax.nn.softmax(NET(x))
  with pytest.warns(UserWarning, match='return probabilities'):
    attack.run(probabilities, keys(), IMAGES, LABELS)
  attacked = attacks.jit(attack, lambda _, x: probabilities(x))
  with pytest.warns(UserWarning, match='return probabilities'):
    attacked.run((), jax.random.key(0), IMAGES, LABELS)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    attacked.run((), jax.random.key(0), IMAGES, LABELS)  # Once is enough.
    attack.run(NET, keys(), IMAGES, LABELS)
    jax.jit(attack.run, static_argnums=0)(probabilities, keys(), IMAGES, LABELS)


def test_a_model_that_breaks_predicts_nothing():
  def net(x):  # All it has seen are the clean images.
    return jnp.where(jnp.all(x == IMAGES), NET(x), jnp.nan)
  result = attacks.PGD(EPS, STEP, 1).run(net, keys(), IMAGES, LABELS)
  assert not result.success.any() and (result.predictions == -1).all()


def breaks_off(what, image=2):
  """Returns a net whose logits or gradients break off the clean image."""
  def broken(x):
    gap = jnp.abs(x - IMAGES).sum((1, 2, 3))[:, None]
    if what == 'logits':
      bad = jnp.where(gap > 0, jnp.nan, 0.)
    else:
      at = jnp.arange(len(x))[:, None] == image
      bad = jnp.sqrt(jnp.where(at, gap * 0, 1))  # 0, with a gradient of NaN
    return NET(x) + jnp.where(jnp.arange(len(x))[:, None] == image, bad, 0)
  return broken


@pytest.mark.parametrize('attack', [
    attacks.PGD(EPS, STEP, 2), attacks.APGD(EPS, num_iterations=3),
    attacks.APGD(EPS, num_iterations=3, keep='best'),
    attacks.FAB(EPS, num_targets=1, num_iterations=3),
    attacks.FAB(EPS, num_iterations=3), attacks.Square(EPS, num_queries=3)],
                         ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize('what', ['logits', 'gradients'])
def test_broken_models_are_not_robust(attack, what):
  if what == 'gradients' and isinstance(attack, attacks.Square):
    return  # It asks for none.
  labels = np.asarray(NET(IMAGES).argmax(-1))
  net = breaks_off(what)
  with pytest.warns(UserWarning, match='not finite for 1 of 4 images'):
    result = attack.run(net, keys(), IMAGES, labels)
  compiled = attacks.jit(attack, lambda _, x: net(x))
  with pytest.warns(UserWarning, match='not finite for 1 of 4 images'):
    again = compiled.run((), jax.random.key(0), IMAGES, labels)
  for found in (result, again):
    assert np.isnan(found.images[2]).all() and found.predictions[2] == -1
    assert not found.success[2] and np.isnan(found.logits[2]).all()
    others = np.delete(np.asarray(found.images), 2, axis=0)
    assert np.isfinite(others).all()
  with jax.debug_nans(True):
    attack.run(NET, keys(), IMAGES, labels)  # It computes no NaN itself.


def test_logits_of_half_precision():
  # So confident that a softmax in half precision is 1, with no gradient left.
  def net(x, dtype):
    return (9 * jnp.eye(3)[LABELS] + NET(x)).astype(dtype)
  x, y = IMAGES.astype(np.float32), LABELS
  for loss in (losses.cross_entropy, losses.dlr):
    def gradient(dtype, loss=loss):
      def ascended(x):
        logits = net(x, dtype).astype(jnp.float32)
        given = attacks.Problem(x, y, None, None, None)
        return attack_module.loss_of(loss, logits.astype(dtype), given,
                                     loss).sum()
      return jax.grad(ascended)(jnp.asarray(x))
    exact = gradient(jnp.float32)
    np.testing.assert_allclose(gradient(jnp.bfloat16), exact, rtol=0.1,
                               atol=0.05 * np.abs(exact).max())
  ties = jnp.array([[2., 2, 2, 1]])
  for dtype in (jnp.float16, jnp.bfloat16):
    given = attacks.Problem(x[:1], jnp.zeros(1, int), None, None, None)
    found = attack_module.loss_of(losses.dlr, ties.astype(dtype), given, None)
    assert found == 0 and found.dtype == jnp.float32


@pytest.mark.parametrize('dtype', [
    np.int8, *(pytest.param(dtype, marks=pytest.mark.slow)
               for dtype in (np.uint8, np.uint32))])
@pytest.mark.parametrize('make', [
    functools.partial(attacks.PGD, EPS, STEP, 1, losses.carlini_wagner),
    functools.partial(attacks.PGD, EPS, STEP, 1, losses.dlr),
    functools.partial(attacks.FAB, EPS, num_iterations=1, num_targets=1),
    functools.partial(attacks.Square, EPS, num_queries=1)])
def test_labels_of_few_bits(make, dtype):
  wide = smooth_net(6, 300)
  wide_logits = wide(IMAGES).at[:, 256].add(3.)
  def net(x):
    return wide(x).at[:, 256].add(3.)
  y = np.array([0, 7, 100, 3])
  expected = make()(net, keys(), IMAGES, y)
  for kind in (np.asarray, jnp.asarray):
    found = make()(net, keys(), IMAGES, kind(y.astype(dtype)))
    np.testing.assert_array_equal(found, expected)
    for loss in (losses.margin, losses.dlr, losses.cross_entropy):
      np.testing.assert_array_equal(
          loss(wide_logits, kind(y.astype(dtype))), loss(wide_logits, y))
  # 128 and 256 classes are no labels of int8 and uint8.
  for num_classes in (128, 256):
    make()(smooth_net(6, num_classes), keys(), IMAGES,
           jnp.asarray(y.astype(dtype)))


@pytest.mark.parametrize(('attack', 'given', 'message'), [
    (attacks.PGD(EPS, STEP, 1, losses.targeted_margin), (),
     r'loss, without targets, to take \(logits, y\): missing'),
    (attacks.PGD(EPS, STEP, 1, losses.carlini_wagner), (LABELS,),
     r'loss, with targets, to take \(logits, y, targets\): too many'),
    (attacks.APGD(EPS, loss=losses.cross_entropy, num_targets=2), (),
     'loss, with targets, to take'),
    (attacks.APGD(EPS, loss=losses.targeted_dlr), (), 'without targets')])
def test_losses_that_take_something_else(attack, given, message):
  with pytest.raises(ValueError, match=message):
    attack(NET, keys(), IMAGES, LABELS, *given)


@pytest.mark.parametrize('indices, message', [
    ([0, 1, 2], r'4 whole numbers, one per image, got int64 \(3,\)'),
    ([0., 1, 2, 3], 'got float64'), (2, r'got int64 \(\)')])
def test_indices_that_are_none(indices, message):
  attacked = attacks.jit(attacks.PGD(EPS, STEP, 1), lambda _, x: NET(x))
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=message):
    attacked((), key, IMAGES, LABELS, indices=indices)
  np.testing.assert_array_equal(
      attacked((), key, IMAGES, LABELS, indices=[0, 1, 2, 3]),
      attacked((), key, IMAGES, LABELS))


@pytest.mark.parametrize('norm, widest', [('Linf', 1.), ('L2', 6 ** 0.5),
                                          ('L1', 6.)])
def test_radii_in_another_unit(norm, widest):
  attack = attacks.PGD(8, 2, 1, norm=norm)
  compiled = attacks.jit(attack, lambda _, x: NET(x))
  for call in (functools.partial(attack, NET), functools.partial(compiled, ())):
    with pytest.raises(ValueError, match='eps=8 of at most .* such as 8/255'):
      call(keys()[0], IMAGES, LABELS)
    call(keys()[0], IMAGES, LABELS, eps=widest)  # to see that all are fooled


@pytest.mark.parametrize('impl', [
    'rbg', pytest.param('unsafe_rbg', marks=pytest.mark.slow)])
@every_attack
def test_noise_with_any_generator(attack, y, impl):
  given = jax.random.split(jax.random.key(0, impl=impl), len(IMAGES))
  whole = run(attack, given, IMAGES, y)
  for i in range(len(IMAGES)):
    alone = run(attack, given[i:i + 1], IMAGES[i:i + 1], y[i:i + 1])
    np.testing.assert_allclose(alone, whole[i:i + 1], atol=1e-12)


def test_more_targets_than_classes():
  for attack in (attacks.APGD(EPS, loss=losses.targeted_margin, num_targets=3),
                 attacks.FAB(EPS, num_targets=3)):
    compiled = attacks.jit(attack, lambda _, x: NET(x))
    for call in (functools.partial(attack, NET),
                 functools.partial(compiled, ())):
      with pytest.raises(ValueError, match='num_targets=3 below the 3 classes'):
        call(keys()[0], IMAGES, LABELS)


@pytest.mark.parametrize('method', ['__call__', 'run'])
def test_compiled_attacks_within_what_is_traced(method):
  attack = attacks.PGD(EPS, STEP, 2)
  first, second = weights(6, 3)
  def apply(matrix, x):
    return jnp.tanh(x.reshape(len(x), -1) @ matrix) @ second
  compiled = getattr(attacks.jit(attack, apply), method)
  key = jax.random.key(0)
  expected = compiled(first, key, IMAGES, LABELS)
  images = expected if method == '__call__' else expected.images
  def check(found):
    found = found if method == '__call__' else found.images
    np.testing.assert_allclose(found, images, atol=1e-12)
  check(jax.jit(lambda x: compiled(first, key, x, LABELS))(IMAGES))
  check(jax.jit(lambda i: compiled(first, key, IMAGES, LABELS, indices=i))(
      np.arange(4)))
  # All that it takes is constant.
  check(jax.jit(lambda x: jax.tree.map(
      lambda leaf: leaf + x, compiled(first, key, IMAGES, LABELS)))(0))
  _, found = jax.lax.scan(
      lambda carry, _: (carry, compiled(first, key, IMAGES, LABELS)), 0, None,
      length=1)
  check(jax.tree.map(lambda leaf: leaf[0], found))


@pytest.mark.parametrize(('net', 'shape'), [
    (lambda x: x, '(4, 3, 2, 1)'), (lambda x: NET(x)[:, 0], '(4,)'),
    (lambda x: NET(x)[:, :1], '(4, 1)'), (lambda x: NET(x)[:2], '(2, 3)'),
    (lambda x: NET(x)[None], '(1, 4, 3)'),
    (lambda x: jnp.argmax(NET(x), -1), 'int'),
    (lambda x: (NET(x), None), 'tuple'), (lambda x: [NET(x)], 'list'),
    (lambda x: {'logits': NET(x)}, 'dict'), (lambda x: None, 'NoneType')])
def test_models_that_return_no_logits(net, shape):
  for attack in (attacks.PGD(EPS, STEP, 1), attacks.APGD(EPS)):
    with pytest.raises(ValueError, match='Expected logits_fn to return') as e:
      attack(net, keys(), IMAGES, LABELS)
    assert shape in str(e.value)


def test_import_needs_jax_only():
  code = ('import sys, ferd_jax.attacks; print(sorted('
          '{name.split(".")[0] for name in sys.modules}))')
  found = subprocess.run([sys.executable, '-c', code], check=True,
                         capture_output=True, text=True).stdout
  assert "'ferd_jax'" in found and "'jax'" in found
  for name in ('flax', 'ml_collections', 'optax', 'orbax', 'tensorflow',
               'tensorflow_datasets', 'torch'):
    assert f"'{name}'" not in found, name
