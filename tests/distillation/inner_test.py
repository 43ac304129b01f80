"""Tests of ferd_jax.distillation.inner: each attack step by step in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import distillation
from ferd_jax.distillation import base
from ferd_jax.distillation import inner
from ferd_jax.distillation import temperatures
from ferd_jax.models import frozen

EPS, STEP = 0.05, 0.02
SHAPE = (4, 3, 2, 1)
RNG = np.random.default_rng(0)
IMAGES, TEACHER_LOGITS = RNG.uniform(size=SHAPE), 3 * RNG.normal(size=(4, 3))
IMAGES[0, 0] = 0.  # at a bound
FIRST, SECOND, OTHER = (RNG.normal(size=size)
                        for size in ((6, 8), (8, 3), (6, 3)))
LABELS = np.array([0, 1, 2, 1], np.int32)
pytestmark = pytest.mark.usefixtures('float64')


def keys():
  return jax.random.split(jax.random.key(0), len(IMAGES))


def student(x):
  return jnp.tanh(x.reshape(len(x), -1) @ FIRST) @ SECOND


def teacher(x):
  return x.reshape(len(x), -1) @ OTHER


def on_the_batch(x):
  flat = x.reshape(len(x), -1)
  return student(x - jnp.mean(x, axis=0, keepdims=True)) + jnp.mean(flat)


def no_net(x):
  raise AssertionError('This network must not be read.')


def call(attack, student=no_net, student_train=no_net, teacher=no_net,
         class_state=None):
  networks = base.Networks(student=student, student_train=student_train,
                           teachers={frozen.ROBUST: teacher, 'other': no_net})
  t_clean = {frozen.ROBUST: jnp.asarray(TEACHER_LOGITS)}
  return attack(attack.init(3), networks, jnp.asarray(IMAGES), LABELS,
                {name: t_clean[name] for name in attack.needs}, class_state,
                keys())


def softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def gaussian():
  return IMAGES + 0.001 * np.stack([
      jax.random.normal(key, SHAPE[1:], jnp.float64) for key in keys()])


def pull_back(network, x, gradient_in_logits):
  """Returns the gradient in the images, and the logits."""
  logits, back = jax.vjp(network, jnp.asarray(x))
  logits = np.array(logits)
  return np.array(back(jnp.asarray(gradient_in_logits(logits)))[0]), logits


def ascend(gradient, x, steps, step=STEP, eps=EPS):
  """Returns the last iterate and kappa, in the open.

  Args:
    gradient: images -> gradient in them, and logits of the attacked network.
    x: the start.
    steps: how many.
    step: size.
    eps: radius.
  """
  kappa = np.zeros(len(x), int)
  for _ in range(steps):
    slope, logits = gradient(x)
    kappa += logits.argmax(-1) == LABELS
    x = x + step * np.sign(slope)
    x = np.clip(np.clip(x, IMAGES - eps, IMAGES + eps), 0, 1)
  return x, kappa


def check(attacked, expected):
  images, kappa = expected
  np.testing.assert_allclose(attacked.images, images, rtol=0, atol=1e-12)
  assert np.abs(images - IMAGES).max() > STEP
  assert set(attacked.noticed) == {'kappa'}
  np.testing.assert_array_equal(attacked.noticed['kappa'], kappa)


def onehot():
  return np.eye(3)[LABELS]


def cross_entropy_slope(network):
  return lambda x: pull_back(network, x, lambda s: softmax(s) - onehot())


@pytest.mark.parametrize('start', ['normal', 'uniform', 'zero'])
def test_cross_entropy(start):
  attack = inner.CrossEntropy(EPS, STEP, 3, start=start)
  x = {'normal': gaussian, 'zero': lambda: IMAGES, 'uniform': lambda: (
      IMAGES + np.stack([jax.random.uniform(key, SHAPE[1:], jnp.float64, -EPS,
                                            EPS) for key in keys()]))}[start]()
  check(call(attack, student),
        ascend(cross_entropy_slope(student), x, steps=3))
  if start == 'uniform':
    assert x.min() < 0  # The start is not clipped, as ARD's is not.


def test_cross_entropy_on_the_statistics_of_the_batch():
  attack = inner.CrossEntropy(EPS, STEP, 2, statistics='batch')
  check(call(attack, student_train=on_the_batch),
        ascend(cross_entropy_slope(on_the_batch), gaussian(), steps=2))


def test_cross_entropy_is_pgd():
  found = call(inner.CrossEntropy(EPS, STEP, 2, start='uniform'), student)
  pgd = attacks.PGD(EPS, STEP, 2, start='uniform', clip_start=False)
  np.testing.assert_array_equal(
      found.images, pgd(student, keys(), jnp.asarray(IMAGES), LABELS))


def test_rslad():
  # The gradient of KL(P_T || P_S) in the student's logits is P_S - P_T.
  def slope(x):
    return pull_back(student, x, lambda s: softmax(s) - softmax(TEACHER_LOGITS))
  found = call(inner.RSLAD(EPS, STEP, 3), student)
  check(found, ascend(slope, gaussian(), steps=3))
  # UTAEs with gamma 0, and attacks.UTAE, are the same bit by bit.
  utae = call(inner.UniformTarget(EPS, STEP, 3, gamma=0.), student)
  np.testing.assert_array_equal(found.images, utae.images)
  same = attacks.UTAE(EPS, STEP, 3, gamma=0.)
  np.testing.assert_array_equal(
      found.images, same(student, keys(), jnp.asarray(IMAGES), TEACHER_LOGITS))


def test_rslad_tempered_by_class():
  tau = np.array([0.5, 2., 4.])
  state = {'within': (temperatures.ClassTemperatures(
      adv=jnp.asarray(tau), clean=jnp.full(3, 9.)), jnp.ones(3))}
  def slope(x):
    target = softmax(TEACHER_LOGITS / tau[LABELS][:, None])
    return pull_back(student, x, lambda s: softmax(s) - target)
  found = call(inner.RSLAD(EPS, STEP, 2), student, class_state=state)
  check(found, ascend(slope, gaussian(), steps=2))
  plain = call(inner.RSLAD(EPS, STEP, 2), student).images
  assert np.abs(found.images - plain).max() > STEP
  ones = jax.tree.map(jnp.ones_like, state)
  np.testing.assert_array_equal(
      call(inner.RSLAD(EPS, STEP, 2), student, class_state=ones).images, plain)


def test_trades():
  target = softmax(np.array(student(IMAGES)))
  def slope(x):
    return pull_back(student, x, lambda s: softmax(s) - target)
  check(call(inner.Trades(EPS, STEP, 3), student),
        ascend(slope, gaussian(), steps=3))


@pytest.mark.parametrize('source', inner.SOURCES)
def test_uniform_target(source):
  attack = inner.UniformTarget(EPS, STEP, steps=3, gamma=0.4, source=source)
  network = {'student': student, 'teacher': teacher}[source]
  found = call(attack, **{source: network})  # No other network is read.
  def slope(x):
    return pull_back(network, x, lambda s: (
        0.6 * softmax(s) - softmax(TEACHER_LOGITS) + 0.4 / 3))
  check(found, ascend(slope, gaussian(), steps=3))
  same = attacks.UTAE(EPS, STEP, 3, gamma=0.4)
  np.testing.assert_array_equal(
      found.images, same(network, keys(), jnp.asarray(IMAGES), TEACHER_LOGITS))


def adaad_slope(x):
  """The gradient of sum_c p (log p - log q) through both p and q."""
  s, t = np.array(student(x)), np.array(teacher(x))
  p, q = softmax(t), softmax(s)
  gap = np.log(p / q)
  through_s, logits = pull_back(student, x, lambda _: q - p)
  through_t, _ = pull_back(teacher, x, lambda _: p * (
      gap - (p * gap).sum(-1, keepdims=True)))
  return through_s + through_t, logits


def test_adaad_ascends_through_both_networks():
  found = call(inner.AdaAD(EPS, STEP, 3), student, teacher=teacher)
  check(found, ascend(adaad_slope, gaussian(), steps=3))
  def through_the_student(x):
    return pull_back(student, x, lambda s: softmax(s) - softmax(
        np.array(teacher(x))))
  without, _ = ascend(through_the_student, gaussian(), steps=3)
  assert np.abs(without - found.images).max() > STEP


def test_adaad_of_two_equal_networks_goes_nowhere():
  found = call(inner.AdaAD(EPS, STEP, 3), student, teacher=student)
  np.testing.assert_allclose(found.images, np.clip(gaussian(), 0, 1))


def test_linear_teacher():
  # t_y(x) = x W_y, so that its slope is a column of W.
  slope_y = OTHER.T[LABELS].reshape(SHAPE)
  def slope(x):
    gain = (slope_y * (x - IMAGES)).reshape(4, -1).sum(-1)
    p = softmax(TEACHER_LOGITS + 0.7 * gain[:, None] * onehot())
    q = softmax(np.array(student(x)))
    gap = np.log(p / q)
    in_label = (p * (gap - (p * gap).sum(-1, keepdims=True)))[
        np.arange(4), LABELS]
    through_s, logits = pull_back(student, x, lambda _: q - p)
    return through_s + 0.7 * in_label[:, None, None, None] * slope_y, logits
  found = call(inner.LinearTeacher(EPS, STEP, 3, strength=0.7), student,
               teacher=teacher)
  check(found, ascend(slope, gaussian(), steps=3))
  none = call(inner.LinearTeacher(EPS, STEP, 3, strength=0.), student,
              teacher=teacher)
  rslad = call(inner.RSLAD(EPS, STEP, 3), student)
  np.testing.assert_array_equal(none.images, rslad.images)
  assert np.abs(none.images - found.images).max() > STEP


def test_high_entropy_leaves_the_ball_but_not_the_range():
  attack = inner.HighEntropy(step_size=0.1, steps=4)
  def slope(x):
    def gradient(s):
      p = softmax(s)
      entropy = -(p * np.log(p)).sum(-1, keepdims=True)
      return -p * (np.log(p) + entropy)
    return pull_back(student, x, gradient)
  found = call(attack, student)
  check(found, ascend(slope, gaussian(), steps=4, step=0.1, eps=1.))
  assert np.abs(found.images - IMAGES).max() > 0.3
  assert 0 <= found.images.min() and found.images.max() <= 1


def test_run_gives_radius_and_step_but_not_to_high_entropy():
  given = {'eps': 0.3, 'step_size': 0.1}
  for name in distillation.INNERS:
    if not distillation.INNERS.find(name).__module__.startswith('ferd_jax.'):
      continue  # A toy that another test has registered.
    attack = distillation.INNERS.build({'name': name}, given)
    expected = (1., 0.03) if name == 'hee' else (0.3, 0.1)
    assert (attack.eps, attack.step_size, attack.steps) == (*expected, 10)


@pytest.mark.parametrize('name', ['ce', 'rslad', 'trades', 'utae', 'adaad',
                                  'saad', 'similar_target'])
def test_images_stay_in_ball_and_range(name):
  attack = distillation.INNERS.build({'name': name, 'steps': 4},
                                     {'eps': 0.03, 'step_size': 0.02})
  found = call(attack, student, teacher=teacher).images
  assert np.abs(found - IMAGES).max() <= 0.03 + 1e-12
  assert 0 <= found.min() and found.max() <= 1


def test_images_have_no_gradient():
  attack = inner.UniformTarget(EPS, STEP, steps=1)

  def total(x, matrix, teacher_logits):
    def student(x):
      return jnp.tanh(x.reshape(len(x), -1) @ matrix) @ SECOND
    networks = base.Networks(student, no_net, {frozen.ROBUST: no_net})
    attacked = attack((), networks, x, LABELS, {frozen.ROBUST: teacher_logits},
                      None, keys())
    return jnp.sum(attacked.images)
  gradients = jax.grad(total, argnums=(0, 1, 2))(
      jnp.asarray(IMAGES), jnp.asarray(FIRST), jnp.asarray(TEACHER_LOGITS))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(('kind', 'options', 'message'), [
    (inner.RSLAD, {'steps': 0}, '^Expected steps=0'),
    (inner.Trades, {'eps': -1.}, 'eps=-1.0'),
    (inner.AdaAD, {'step_size': -1.}, 'step_size=-1.0'),
    (inner.HighEntropy, {'step_size': -1.}, 'step_size=-1.0'),
    (inner.UniformTarget, {'source': 'both'}, "source='both'"),
    (inner.UniformTarget, {'gamma': -0.1}, 'gamma=-0.1'),
    (inner.LinearTeacher, {'strength': -1.}, 'strength=-1.0'),
    (inner.CrossEntropy, {'start': 'far'}, "start='far'"),
    (inner.CrossEntropy, {'statistics': 'none'}, "statistics='none'")])
def test_invalid_settings(kind, options, message):
  given = {'eps': EPS, 'step_size': STEP}
  if kind is inner.HighEntropy:
    given = {}
  with pytest.raises(ValueError, match=message):
    kind(**given | options)


def test_settings_are_static():
  assert dataclasses.replace(inner.RSLAD(EPS, STEP)) == inner.RSLAD(EPS, STEP)
  assert len({inner.RSLAD(EPS, STEP), inner.RSLAD(EPS, STEP)}) == 1
