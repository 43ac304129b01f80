"""Tests of adversarial training: losses and attacks against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import adversarial_training
from ferd_jax.distillation import base

torch = pytest.importorskip('torch')
F = torch.nn.functional

BATCH, CLASSES, SHAPE = 6, 4, (4, 4, 1)
LABELS = np.array([0, 2, 2, 1, 0, 2])
EPS, STEP_SIZE = 0.1, 0.03


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


CLEAN, ADV = (2 * draw(seed, BATCH, CLASSES) for seed in range(2))
IMAGES = np.random.default_rng(2).uniform(size=(BATCH, *SHAPE))
WEIGHTS = draw(3, 16, 5), draw(4, 5, CLASSES)


def outputs(clean=CLEAN, adv=ADV):
  return base.Outputs(
      labels=jnp.asarray(LABELS), t_clean={}, t_adv={},
      s_clean=None if clean is None else jnp.asarray(clean),
      s_adv=jnp.asarray(adv), noticed={}, epoch=jnp.asarray(3))


def evaluate(loss, clean=CLEAN, adv=ADV):
  return jax.jit(lambda o: loss(loss.init(CLASSES), o))(outputs(clean, adv))


def gradients(loss):
  def value(clean, adv):
    return loss((), outputs(clean, adv))[0]
  return jax.jit(jax.grad(value, argnums=(0, 1)))(CLEAN, ADV)


def torch_loss(function):
  """Returns a loss of PyTorch and its gradients by clean and attacked."""
  clean, adv = (torch.tensor(x, requires_grad=True) for x in (CLEAN, ADV))
  loss = function(clean, adv, torch.tensor(LABELS))
  found = torch.autograd.grad(loss, (clean, adv), allow_unused=True)
  return loss.item(), [
      np.zeros_like(CLEAN) if each is None else each.numpy() for each in found]


def trades_in_torch(clean, adv, labels, beta=6.):
  return F.cross_entropy(clean, labels) + beta * F.kl_div(
      F.log_softmax(adv, -1), F.softmax(clean, -1), reduction='batchmean')


@pytest.mark.parametrize(('loss', 'in_torch'), [
    (adversarial_training.CrossEntropy(),
     lambda clean, adv, labels: F.cross_entropy(adv, labels)),
    # One batch of both, as when a generator is to go by the statistics.
    (adversarial_training.CrossEntropy(w_clean=0.5, w_adv=0.5),
     lambda clean, adv, labels: F.cross_entropy(
         torch.cat([clean, adv]), torch.cat([labels, labels]))),
    (adversarial_training.Trades(), trades_in_torch),
    (adversarial_training.Trades(beta=2.),
     functools.partial(trades_in_torch, beta=2.))])
def test_losses_and_their_gradients_are_pytorchs(loss, in_torch):
  value, state, metrics = evaluate(loss)
  expected, expected_gradients = torch_loss(in_torch)
  assert state == ()
  np.testing.assert_allclose(value, expected)
  for got, want in zip(gradients(loss), expected_gradients, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-12)
  terms = loss.terms((), outputs())
  assert all(term.shape == (BATCH,) for term in terms.values())
  np.testing.assert_allclose(sum(jnp.mean(t) for t in terms.values()), expected)
  np.testing.assert_allclose(metrics['adv_accuracy'],
                             np.mean(ADV.argmax(-1) == LABELS))


def test_what_has_no_weight_is_not_computed():
  loss = adversarial_training.CrossEntropy()
  assert not loss.needs.s_clean and loss.needs.s_adv
  value, _, metrics = evaluate(loss, clean=None)
  assert set(metrics) == {'adv_loss', 'adv_accuracy'}
  np.testing.assert_allclose(value, metrics['adv_loss'])
  assert adversarial_training.CrossEntropy(w_clean=0.1).needs.s_clean


@pytest.mark.parametrize('part', [
    adversarial_training.CrossEntropy(), adversarial_training.Trades()])
def test_no_loss_asks_for_a_teacher(part):
  assert part.needs.t_clean == part.needs.t_adv == ()


def student(images):
  hidden = jnp.tanh(images.reshape(len(images), -1) @ WEIGHTS[0])
  return hidden @ WEIGHTS[1]


def student_in_torch(images):
  first, second = map(torch.tensor, WEIGHTS)
  return torch.tanh(images.reshape(len(images), -1) @ first) @ second


def attacked(inner, images=IMAGES):
  networks = base.Networks(student, student, {})
  keys = jax.random.split(jax.random.key(0), BATCH)
  return jax.jit(lambda x: inner(networks, x, jnp.asarray(LABELS), {}, (),
                                 keys))(images)


def ascend_in_torch(start, objective, steps):
  images, x = torch.tensor(IMAGES), torch.tensor(start)
  for _ in range(steps):
    x.requires_grad_()
    gradient, = torch.autograd.grad(objective(student_in_torch(x)), x)
    x = x.detach() + STEP_SIZE * gradient.sign()
    x = torch.min(torch.max(x, images - EPS), images + EPS).clamp(0, 1)
  return x.numpy()


def test_attack_on_the_labels_is_pytorchs():
  inner = adversarial_training.CrossEntropyAttack(EPS, STEP_SIZE, steps=3,
                                                  start='zero')
  expected = ascend_in_torch(IMAGES, lambda logits: F.cross_entropy(
      logits, torch.tensor(LABELS), reduction='sum'), 3)
  np.testing.assert_allclose(attacked(inner).images, expected, atol=1e-12)


def test_attack_on_the_labels_starts_anywhere_in_the_ball():
  inner = adversarial_training.CrossEntropyAttack(EPS, 0., steps=1)
  start = np.asarray(attacked(inner).images) - IMAGES
  assert np.abs(start).max() <= EPS + 1e-12
  assert np.abs(start).max() > 0.8 * EPS
  assert len(np.unique(start)) > BATCH


def test_attack_of_trades_is_pytorchs():
  inner = adversarial_training.TradesAttack(EPS, STEP_SIZE, steps=3)
  first = adversarial_training.TradesAttack(EPS, 0., steps=1)
  start = np.asarray(attacked(first, np.full_like(IMAGES, 0.5)).images) - 0.5
  # Noise of 0.001: without it, the divergence has no gradient.
  assert 2e-4 < start.std() < 3e-3
  target = F.softmax(student_in_torch(torch.tensor(IMAGES)), -1)
  expected = ascend_in_torch(IMAGES + start, lambda logits: F.kl_div(
      F.log_softmax(logits, -1), target, reduction='sum'), 3)
  np.testing.assert_allclose(attacked(inner).images, expected, atol=1e-9)


@pytest.mark.parametrize(('part', 'options', 'message'), [
    ('CrossEntropy', {'w_clean': -1.}, 'w_clean=-1.0'),
    ('CrossEntropy', {'w_adv': 0.}, 'w_adv=0.0'),
    ('Trades', {'beta': 0.}, 'beta=0.0'),
    ('CrossEntropyAttack', {'eps': 0.1, 'step_size': 0.1, 'start': 'far'},
     "start='far'"),
    ('TradesAttack', {'eps': 0.1, 'step_size': 0.1, 'steps': 0}, 'steps=0')])
def test_settings_out_of_range(part, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(adversarial_training, part)(**options)
