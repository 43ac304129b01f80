"""Tests of ferd_jax.distillation.divergences: PyTorch's words for each loss."""

import batch_of_logits as g
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.distillation import divergences

EPOCHS = {'num_epochs': 220, 'warmup_epochs': 20}
pytestmark = pytest.mark.usefixtures('float64')


def trust(power=0.1):
  return g.softmax(g.ROBUST_ADV)[np.arange(g.BATCH), g.LABELS] ** power


# Loss, epoch (completed ones of the run, 20 of them warm-up), and what it is.
def _cases():
  t, ta, ca = g.ROBUST, g.ROBUST_ADV, g.CLEAN_ADV
  s, sa = g.S_CLEAN, g.S_ADV
  own = g.kl(s, sa)
  a = trust()
  entropy = -(g.softmax(ta) * np.log(g.softmax(ta))).sum(-1)
  w = 5 * (entropy - entropy.min())
  hard = np.argmax(t, -1), np.argmax(ta, -1)
  def soft(t, s):
    return -(g.softmax(t) * np.log(g.softmax(s))).sum(-1)
  d = divergences
  return {
      'soft_ce': (d.SoftCrossEntropy(), 20,
                  5 / 6 * soft(t, s) + 1 / 6 * soft(t, sa)),
      'dfhl': (d.SoftCrossEntropy(w_clean=0., w_adv=1., target='attacked',
                                  hard=True), 20,
               g.cross_entropy(sa, hard[1])),
      'hard': (d.SoftCrossEntropy(w_clean=0.3, w_adv=0.5, hard=True), 20,
               0.3 * g.cross_entropy(s, hard[0])
               + 0.5 * g.cross_entropy(sa, hard[0])),
      'attacked': (d.SoftCrossEntropy(target='attacked'), 20,
                   5 / 6 * soft(t, s) + 1 / 6 * soft(ta, sa)),
      'ard': (d.ARD(), 20, 900 * g.kl(t, sa, 30.) / g.CLASSES),
      'ard_half': (d.ARD(temperature=5., alpha=0.5), 20,
                   0.5 * 25 * g.kl(t, sa, 5.) / g.CLASSES
                   + 0.5 * g.cross_entropy(s)),
      'rslad': (d.RSLAD(), 20, 0.1 * (5 / 6 * g.kl(t, sa) + g.kl(t, s) / 6)),
      'iad_early': (d.IAD(**EPOCHS), 79, g.kl(t, sa)),
      'iad': (d.IAD(**EPOCHS), 80, g.kl(t, sa) + (1 - a) * own),
      'iad_first': (d.IAD(**EPOCHS, weight_first=True), 80,
                    a * g.kl(t, sa) + (1 - a) * own),
      'iad2_early': (d.IAD2(**EPOCHS), 59,  # AKD2
                     g.cross_entropy(sa) / 4 + g.kl(ta, sa) / 2
                     + g.kl(ca, sa) / 4),
      'iad2': (d.IAD2(**EPOCHS), 60,
               g.cross_entropy(sa) / 4
               + (a * g.kl(ta, sa) + (1 - a) * own) / 2 + g.kl(ca, sa) / 4),
      'adaad': (d.AdaAD(), 20, 0.1 * g.kl(ta, sa)),
      'adaad_cifar100': (d.AdaAD(alpha=0.8, scale=1.), 20,
                         0.8 * g.kl(ta, sa) + 0.2 * g.kl(t, s)),
      'adaiad_early': (d.AdaIAD(**EPOCHS), 79, 900 * g.kl(ta, sa, 30.)),
      'adaiad': (d.AdaIAD(**EPOCHS), 80,
                 900 * g.kl(ta, sa, 30.) + (1 - a) * own),
      'trades': (d.Trades(), 20, g.cross_entropy(s) + 6 * own),
      'pgd_at': (d.CrossEntropy(), 20, g.cross_entropy(sa)),
      'cross_entropy': (d.CrossEntropy(w_clean=0.3, w_adv=0.7), 20,
                        0.3 * g.cross_entropy(s) + 0.7 * g.cross_entropy(sa)),
      'saad': (d.SAAD(), 20, w * g.kl(ta, sa)),
      'saad_beta': (d.SAAD(beta=0.7, mean_one=True), 20,
                    w / w.mean() * g.kl(ta, sa)
                    + 0.7 * (1 - w / w.max()) * g.kl(t, s)),
  }


CASES = _cases()


def outputs(loss, epoch, **changes):
  return g.outputs(loss.needs, epoch=jnp.asarray(epoch), **changes)


@pytest.mark.parametrize('name', CASES)
def test_value_is_the_formula(name):
  loss, epoch, expected = CASES[name]
  value, state, metrics = loss(loss.init(g.CLASSES), outputs(loss, epoch))
  np.testing.assert_allclose(value, expected.mean())
  assert state == () == loss.end_epoch(state, jnp.asarray(epoch))
  assert all(jnp.ndim(metric) == 0 for metric in metrics.values())
  # Every term of an image is weighed.
  weights = np.array([0.5, 2., 0., 1., 3., 1.])
  weighed, _, _ = loss((), outputs(loss, epoch, weights=weights))
  np.testing.assert_allclose(weighed, (weights * expected).mean())


@pytest.mark.parametrize('name', CASES)
def test_shards_add_up(name):
  loss, epoch, _ = CASES[name]
  given = outputs(loss, epoch)
  if given.s_clean is None:
    given = given.replace(s_clean=given.s_adv)

  def shard(outputs):
    def of(s_clean, s_adv):
      return loss((), outputs.replace(s_clean=s_clean, s_adv=s_adv),
                  axis_name='i')[0]
    return jax.value_and_grad(of, argnums=(0, 1))(outputs.s_clean,
                                                  outputs.s_adv)
  values, gradients = jax.vmap(shard, axis_name='i')(g.sharded(given))

  def whole(s_clean, s_adv):
    return loss((), given.replace(s_clean=s_clean, s_adv=s_adv))[0]
  expected, wanted = jax.value_and_grad(whole, argnums=(0, 1))(
      given.s_clean, given.s_adv)
  np.testing.assert_allclose(values.mean(), expected)
  for got, gradient in zip(gradients, wanted, strict=True):
    np.testing.assert_allclose(got.reshape(gradient.shape) / 2, gradient,
                               atol=1e-12)


def gradients(loss, epoch):
  def value(s_clean, s_adv):
    return loss((), outputs(loss, epoch, s_clean=s_clean, s_adv=s_adv))[0]
  return jax.grad(value, argnums=(0, 1))(jnp.asarray(g.S_CLEAN),
                                         jnp.asarray(g.S_ADV))


def own_gradients(weights):
  """Returns those of mean(weights KL(P_S(x) || P_S(x'))), nothing stopped."""
  p, q = g.softmax(g.S_CLEAN), g.softmax(g.S_ADV)
  gap = np.log(p / q)
  scale = weights[:, None] / g.BATCH
  return (scale * p * (gap - (p * gap).sum(-1, keepdims=True)), scale * (q - p))


@pytest.mark.parametrize('name', ['iad', 'adaiad', 'trades', 'iad2'])
def test_gradient_reaches_both_of_the_students_predictions(name):
  loss, epoch, _ = CASES[name]
  s_clean, s_adv = gradients(loss, epoch)
  p, q = g.softmax(g.S_CLEAN), g.softmax(g.S_ADV)
  onehot = np.eye(g.CLASSES)[g.LABELS]
  a, t, ta, ca = trust(), g.ROBUST, g.ROBUST_ADV, g.CLEAN_ADV
  clean, adv = own_gradients({
      'iad': 1 - a, 'adaiad': 1 - a, 'trades': np.full(g.BATCH, 6.),
      'iad2': (1 - a) / 2}[name])
  if name == 'iad':
    adv = adv + (q - g.softmax(t)) / g.BATCH
  elif name == 'adaiad':
    adv = adv + 30 * (g.softmax(g.S_ADV, 30) - g.softmax(ta, 30)) / g.BATCH
  elif name == 'trades':
    clean = clean + (p - onehot) / g.BATCH
  else:
    adv = adv + (0.25 * (q - onehot) + 0.5 * a[:, None] * (q - g.softmax(ta))
                 + 0.25 * (q - g.softmax(ca))) / g.BATCH
  np.testing.assert_allclose(s_clean, clean, atol=1e-14)
  np.testing.assert_allclose(s_adv, adv, atol=1e-14)


def test_ard_against_torch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  student = torch.tensor(g.S_ADV, requires_grad=True)
  # The original reduces by 'mean', over batch and classes.
  value = 900 * functional.kl_div(
      functional.log_softmax(student / 30, dim=1),
      functional.softmax(torch.tensor(g.ROBUST) / 30, dim=1), reduction='mean')
  value.backward()
  loss = divergences.ARD()
  np.testing.assert_allclose(loss((), outputs(loss, 20))[0], value.item())
  np.testing.assert_allclose(gradients(loss, 20)[1], student.grad.numpy())


def test_rslad_is_the_mean_over_ten_classes():
  # 0.1 bm is the mean over batch and classes where there are ten.
  rng = np.random.default_rng(9)
  t, s, sa = rng.normal(size=(3, 5, 10))
  loss = divergences.RSLAD()
  value, _, _ = loss((), g.outputs(
      loss.needs, labels=jnp.zeros(5, int), t_clean={'robust': jnp.asarray(t)},
      s_clean=jnp.asarray(s), s_adv=jnp.asarray(sa)))
  def mean(logits):
    p, q = g.softmax(t), g.softmax(logits)
    return (p * np.log(p / q)).mean()
  np.testing.assert_allclose(value, 5 / 6 * mean(sa) + 1 / 6 * mean(s))


def test_ard_ignores_labels_and_iad_is_ard_while_trust_is_one():
  ard = divergences.ARD(temperature=1.)
  value = ard((), outputs(ard, 20))[0]
  other = ard((), outputs(ard, 20, labels=jnp.asarray(g.LABELS[::-1])))[0]
  assert value == other
  iad = divergences.IAD(**EPOCHS)
  np.testing.assert_allclose(iad((), outputs(iad, 20))[0], g.CLASSES * value)


def test_saad_s_surest_image_counts_nothing():
  loss = divergences.SAAD()
  s_adv = gradients(loss, 20)[1]
  p = g.softmax(g.ROBUST_ADV)
  surest = np.argmin(-(p * np.log(p)).sum(-1))
  norms = np.abs(s_adv).sum(-1)
  np.testing.assert_array_equal(np.flatnonzero(norms == 0), [surest])


def test_only_what_counts_is_needed():
  needs = divergences.SoftCrossEntropy(w_clean=0., w_adv=1.,
                                       target='attacked').needs
  assert (needs.t_clean, needs.t_adv, needs.s_clean) == ((), ('robust',), False)
  assert divergences.IAD2(**EPOCHS).needs.t_adv == ('robust', 'clean')
  for loss in (divergences.ARD(), divergences.RSLAD(), divergences.SAAD(),
               divergences.IAD(**EPOCHS)):
    assert loss.needs.adversarial_first
  for loss in (divergences.AdaAD(), divergences.AdaIAD(**EPOCHS),
               divergences.Trades()):
    assert not loss.needs.adversarial_first
  assert divergences.Trades().needs.t_clean == ()


@pytest.mark.parametrize(('kind', 'options', 'message'), [
    (divergences.SoftCrossEntropy, {'w_clean': 0., 'w_adv': 0.},
     'w_clean=0.0 or w_adv above 0'),
    (divergences.SoftCrossEntropy, {'target': 'both'}, "target='both'"),
    (divergences.ARD, {'temperature': 0.}, 'temperature=0.0'),
    (divergences.ARD, {'alpha': 2.}, r'alpha=2.0 in \[0, 1\]'),
    (divergences.RSLAD, {'scale': 0.}, 'scale=0.0'),
    (divergences.IAD, EPOCHS | {'power': -1.}, 'power=-1.0'),
    (divergences.IAD, EPOCHS | {'begin': -1.}, 'begin=-1.0'),
    (divergences.IAD2, EPOCHS | {'w_label': -1.}, 'w_label=-1.0'),
    (divergences.AdaAD, {'alpha': -1.}, 'alpha=-1.0'),
    (divergences.AdaIAD, EPOCHS | {'temperature': -1.}, 'temperature=-1.0'),
    (divergences.Trades, {'beta': -1.}, 'beta=-1.0'),
    (divergences.SAAD, {'scale': 0.}, 'scale=0.0'),
    (divergences.SAAD, {'beta': -1.}, 'beta=-1.0')])
def test_invalid_settings(kind, options, message):
  with pytest.raises(ValueError, match=message):
    kind(**options)
