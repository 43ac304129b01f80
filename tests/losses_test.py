"""Tests of ferd_jax.losses against NumPy, closed forms and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import losses

pytestmark = pytest.mark.usefixtures('float64')


# One compilation is faster than one for each operation.
def grad(function):
  return jax.jit(jax.grad(function))


def vmap(function, **options):
  return jax.jit(jax.vmap(function, **options))


def draw(*shape, seed=0, scale=2.):
  return np.random.default_rng(seed).normal(0, scale, shape)


def positive(*shape, seed=0):
  return np.random.default_rng(seed).uniform(0.1, 2, shape)


def softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def entropy(logits):
  p = softmax(logits)
  return -(p * np.log(p)).sum(-1)


def double_sum(t, s, weights):
  """The pairwise definition of wMSE, O(C^2)."""
  d = t - s
  gaps = (d[:, :, None] - d[:, None, :]) ** 2
  pairs = weights[:, :, None] * weights[:, None, :]
  return 0.25 * (pairs * gaps).sum((1, 2))


def test_cross_entropy():
  logits, labels = draw(5, 4), np.array([0, 3, 1, 2, 3])
  expected = -np.log(softmax(logits)[np.arange(5), labels])
  np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected)


def test_cross_entropy_of_huge_logits_is_finite():
  logits = np.array([[1e4, 0., -1e4]])
  got = [float(losses.cross_entropy(logits, np.array([y]))[0])
         for y in range(3)]
  assert got == [0., 1e4, 2e4]


def test_kl_divergence():
  t, s = draw(5, 4), draw(5, 4, seed=1)
  p, q = softmax(t), softmax(s)
  np.testing.assert_allclose(losses.kl_divergence(t, s),
                             (p * np.log(p / q)).sum(-1))
  np.testing.assert_allclose(losses.kl_divergence(t, t + 3), 0, atol=1e-14)


def test_entropy():
  logits = draw(5, 4)
  np.testing.assert_allclose(losses.entropy(logits), entropy(logits))
  np.testing.assert_allclose(losses.entropy(np.zeros((2, 7))), np.log(7))
  assert losses.entropy(np.array([[1e4, 0., -1e4]])) == 0


def test_tempered_kl():
  t, s = draw(5, 4), draw(5, 4, seed=1)
  p, q = softmax(t / 20), softmax(s / 20)
  np.testing.assert_allclose(losses.tempered_kl(t, s, 20.),
                             400 * (p * np.log(p / q)).sum(-1))
  np.testing.assert_allclose(losses.tempered_kl(t, t + 3, 20.), 0, atol=1e-11)
  np.testing.assert_allclose(losses.tempered_kl(t, s, 1.),
                             losses.kl_divergence(t, s))


def test_soft_cross_entropy_is_kl_plus_target_entropy():
  t, s = draw(5, 4), draw(5, 4, seed=1)
  gap = losses.soft_cross_entropy(t, s) - losses.kl_divergence(t, s)
  np.testing.assert_allclose(gap, entropy(t))


def test_soft_targets_get_no_gradient_but_differences_do():
  t, s, w = draw(5, 4), draw(5, 4, seed=1), positive(5, 4)
  soft = grad(lambda t: losses.soft_cross_entropy(t, s).sum())(t)
  np.testing.assert_array_equal(soft, np.zeros_like(t))
  pairs = grad(lambda t: losses.weighted_mse(t, s, w).sum())(t)
  assert np.abs(pairs).min() > 0
  both = grad(lambda t: losses.decoupled_kl(t, s, w, norm='batch'))(t)
  np.testing.assert_allclose(both, pairs / 5)


def test_uniformity_is_kl_from_uniform():
  logits = draw(6, 5)
  expected = (np.log(1 / 5 / softmax(logits)) / 5).sum(-1)
  got = losses.uniformity(logits)
  np.testing.assert_allclose(got, expected)
  assert np.min(got) > 0.1


@pytest.mark.parametrize('num_classes', [2, 3, 10, 200])
def test_uniformity_of_constant_logits_is_zero(num_classes):
  logits = np.full((2, num_classes), 0.1)
  np.testing.assert_allclose(losses.uniformity(logits), 0, atol=1e-14)
  logits[:, 0] += 1e-3
  assert np.min(losses.uniformity(logits)) > 1e-10


def test_gradient_of_uniformity():
  logits = draw(6, 5)
  gradient = grad(lambda z: losses.uniformity(z).mean())(logits)
  np.testing.assert_allclose(gradient, (softmax(logits) - 1 / 5) / 6,
                             atol=1e-15)


@pytest.mark.parametrize('num_classes', [2, 3, 7])
@pytest.mark.parametrize('shift', [0., -50., 50.])
def test_margin(num_classes, shift):
  # With a shift of -50 all logits are negative: the label's must not be
  # replaced by 0 before the maximum over the others is taken.
  logits = draw(9, num_classes) + shift
  labels = np.arange(9) % num_classes
  expected = [row[y] - max(np.delete(row, y))
              for row, y in zip(logits, labels, strict=True)]
  got = losses.margin(logits, labels)
  np.testing.assert_allclose(got, expected)
  np.testing.assert_array_equal(np.asarray(got) > 0,
                                logits.argmax(-1) == labels)
  np.testing.assert_array_equal(losses.carlini_wagner(logits, labels), -got)


def test_margin_of_lone_positive_logit():
  logits = np.array([[3., -4., -5.]])
  np.testing.assert_allclose(losses.margin(logits, np.array([0])), [7])
  np.testing.assert_allclose(losses.margin(logits, np.array([2])), [-8])


def test_gradient_of_margin_is_label_minus_runner_up():
  logits = np.array([[3., 1., 2.], [3., 1., 2.]])
  gradient = grad(
      lambda z: losses.margin(z, np.array([0, 1])).sum())(logits)
  np.testing.assert_array_equal(gradient, [[1, 0, -1], [-1, 1, 0]])


# Attack losses: against the official code, and the formulas in NumPy.

LABELED = {'dlr': losses.dlr, 'targeted_dlr': losses.targeted_dlr,
           'targeted_margin': losses.targeted_margin,
           'targeted_cross_entropy': losses.targeted_cross_entropy}


def attack_cases(num_classes):
  """Returns logits, labels of every rank, and other classes as targets."""
  labels = np.repeat(np.arange(num_classes), num_classes - 1)
  targets = np.concatenate([np.delete(np.arange(num_classes), y)
                            for y in range(num_classes)])
  return draw(len(labels), num_classes, seed=num_classes), labels, targets


def ranks(logits, labels):
  label = logits[np.arange(len(labels)), labels]
  return 1 + (logits > label[:, None]).sum(-1)


def formula(name, logits, y, t):
  """Returns the loss of one example."""
  first, *_, last = ordered = np.sort(logits)[::-1]
  if name == 'targeted_cross_entropy':
    return np.log(softmax(logits)[t])
  if name == 'dlr':
    gap = max(np.delete(logits, y)) - logits[y]
    return gap if len(logits) < 3 else gap / (first - ordered[2] + 1e-12)
  gap = logits[t] - logits[y]
  if name == 'targeted_margin' or len(logits) < 4:
    return gap
  return gap / (first - (ordered[2] + ordered[3]) / 2 + 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def gradient_and_value(name, logits, labels, targets):
  others = (labels,) if name == 'dlr' else (labels, targets)
  def loss(logits):
    values = LABELED[name](logits, *others)
    return jnp.sum(values), values
  return jax.grad(loss, has_aux=True)(logits)


def value_and_gradient(name, logits, labels, targets):
  gradient, values = jax.device_get(
      gradient_and_value(name, logits, labels, targets))
  assert values.dtype == gradient.dtype == logits.dtype
  return values, gradient


@pytest.mark.parametrize('num_classes', [2, 3, 4, 10])
@pytest.mark.parametrize('name', LABELED)
def test_attack_losses(name, num_classes):
  logits, labels, targets = attack_cases(num_classes)
  values, gradient = value_and_gradient(name, logits, labels, targets)
  def expected(logits):
    return np.array([formula(name, *case) for case in
                     zip(logits, labels, targets, strict=True)])
  np.testing.assert_allclose(values, expected(logits), rtol=1e-12)
  for k in range(num_classes):  # Differences in place of the derivative.
    step = 1e-6 * np.eye(num_classes)[k]
    slope = (expected(logits + step) - expected(logits - step)) / 2e-6
    np.testing.assert_allclose(gradient[:, k], slope, rtol=1e-6, atol=1e-7)


def official_loss(name, logits, labels, targets):
  """Returns the official code's values and gradient."""
  torch = pytest.importorskip('torch')
  base = pytest.importorskip('pyautoattack.autopgd_base')
  official = base.APGDAttack_targeted(None, eps=1.)
  official.y_target = torch.tensor(targets)
  leaf = torch.tensor(logits, requires_grad=True)
  loss = {'dlr': official.dlr_loss, 'targeted_dlr': official.dlr_loss_targeted,
          'targeted_cross_entropy': official.ce_loss_targeted}[name]
  values = loss(leaf, torch.tensor(labels))
  values.sum().backward()
  return values.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize(('name', 'num_classes'), [
    *[('dlr', k) for k in (3, 4, 10)], ('targeted_dlr', 4),
    ('targeted_dlr', 10), *[('targeted_cross_entropy', k) for k in (2, 10)]])
def test_attack_losses_against_official(name, num_classes, dtype):
  logits, labels, targets = attack_cases(num_classes)
  logits = logits.astype(dtype)
  expected, slope = official_loss(name, logits, labels, targets)
  values, gradient = value_and_gradient(name, logits, labels, targets)
  rtol = 1e-6 if dtype == np.float32 else 1e-12
  np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol)
  rank = ranks(logits, labels)
  assert set(rank) == set(range(1, num_classes + 1))
  some = (rank != 3) | (name != 'dlr')  # The third has rounding noise.
  np.testing.assert_allclose(gradient[some], slope[some], rtol=rtol,
                             atol=rtol * np.abs(slope[some]).max())


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('num_classes', [3, 4, 10])
def test_dlr_of_third_label_has_no_gradient(num_classes, dtype):
  logits, labels, targets = attack_cases(num_classes)
  third = ranks(logits, labels) == 3
  assert 1 < third.sum() < len(labels)
  values, gradient = value_and_gradient('dlr', logits.astype(dtype), labels,
                                        targets)
  np.testing.assert_allclose(values[third], 1, rtol=1e-6)
  # What the 1e-12 in its denominator leaves, and rounding.
  small = 1e-6 if dtype == np.float32 else 1e-10
  assert np.abs(gradient[third]).max() < small
  assert np.abs(gradient[~third]).max(-1).min() > 0.01


def ties(dtype):
  """Returns logits with ties, each with all labels and targets."""
  logits = [[3., 3., 1., 0.], [3., 1., 1., 0.], [3., 1., 0., 0.],
            [3., 3., 0., 0.], [3., 3., 3., 0.], [3., 0., 0., 0.],
            [2., 2., 2., 2.]]
  _, labels, targets = attack_cases(4)
  return (np.repeat(logits, len(labels), axis=0).astype(dtype),
          *(np.tile(array, len(logits)) for array in (labels, targets)))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('name', ['dlr', 'targeted_dlr'])
def test_attack_losses_of_ties(name, dtype):
  logits, labels, targets = ties(dtype)
  values, gradient = value_and_gradient(name, logits, labels, targets)
  expected = [formula(name, *case) for case in
              zip(logits.astype(float), labels, targets, strict=True)]
  rtol = 1e-6 if dtype == np.float32 else 1e-12
  np.testing.assert_allclose(values, expected, rtol=rtol)
  # A shift of all logits changes nothing.
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(gradient.sum(-1), 0,
                             atol=rtol * np.abs(gradient).max())


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('name', ['dlr', 'targeted_dlr'])
def test_attack_losses_of_ties_against_official(name, dtype):
  logits, labels, targets = ties(dtype)
  values, _ = value_and_gradient(name, logits, labels, targets)
  expected, _ = official_loss(name, logits, labels, targets)
  np.testing.assert_allclose(values, expected,
                             rtol=1e-6 if dtype == np.float32 else 1e-12)


def test_dlr_does_not_scale():
  logits, labels, targets = attack_cases(4)
  for name in ('dlr', 'targeted_dlr'):
    values, _ = value_and_gradient(name, logits, labels, targets)
    scaled, _ = value_and_gradient(name, 100 * logits + 7, labels, targets)
    np.testing.assert_allclose(scaled, values)
  correct = ranks(logits, labels) == 1
  values, _ = value_and_gradient('dlr', logits, labels, targets)
  np.testing.assert_array_equal(values < 0, correct)
  assert values.min() >= -1


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_divergence_from_against_torch(dtype):
  torch = pytest.importorskip('torch')
  logits, target_logits = (draw(6, 5, seed=seed).astype(dtype)
                           for seed in range(2))
  leaf = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.kl_div(
      leaf.log_softmax(1), torch.tensor(target_logits).softmax(1),
      reduction='none').sum(1)
  expected.sum().backward()
  rtol = 1e-6 if dtype == np.float32 else 1e-12
  np.testing.assert_allclose(losses.divergence_from(logits, target_logits),
                             expected.detach().numpy(), rtol=10 * rtol)
  gradient = grad(lambda z: losses.divergence_from(z, target_logits).sum())(
      logits)
  assert gradient.dtype == dtype
  np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=rtol,
                             atol=rtol)


def test_divergence_from():
  logits, target_logits = draw(5, 4), draw(5, 4, seed=1)
  p, q = softmax(target_logits), softmax(logits)
  np.testing.assert_allclose(losses.divergence_from(logits, target_logits),
                             (p * np.log(p / q)).sum(-1))
  gradient = grad(lambda z: losses.divergence_from(z, target_logits).sum())(
      logits)
  np.testing.assert_allclose(gradient, q - p, atol=1e-14)


def test_weighted_mse_equals_double_sum():
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  np.testing.assert_allclose(losses.weighted_mse(t, s, w), double_sum(t, s, w))


def test_weighted_mse_ignores_constant_offsets():
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  offset = draw(6, 1, seed=2)
  expected = losses.weighted_mse(t, s, w)
  np.testing.assert_allclose(losses.weighted_mse(t + offset, s, w), expected)
  np.testing.assert_allclose(losses.weighted_mse(t, s + offset, w), expected)


def test_weighted_mse_does_not_cancel_in_float32():
  t, s = draw(6, 5, scale=0.1), draw(6, 5, seed=1, scale=0.1)
  w = positive(6, 5)
  got = losses.weighted_mse(np.float32(t + 1000), np.float32(s), np.float32(w))
  np.testing.assert_allclose(got, double_sum(t, s, w), rtol=0.02)


@pytest.mark.parametrize('norm', ['weights', 'batch'])
def test_gradient_of_weighted_mse(norm):
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  d, total = t - s, w.sum(-1, keepdims=True)
  mu = (w * d).sum(-1, keepdims=True) / total
  size = (total ** 2).sum() if norm == 'weights' else 6
  expected = -total / size * w * (d - mu) + (softmax(s) - softmax(t)) / 6
  gradient = grad(
      lambda s: losses.decoupled_kl(t, s, w, norm=norm))(s)
  np.testing.assert_allclose(gradient, expected, atol=1e-14)


def test_one_hot_weights_leave_the_soft_cross_entropy():
  t, s = draw(6, 5), draw(6, 5, seed=1)
  one_hot = np.eye(5)[np.arange(6) % 5]
  np.testing.assert_allclose(losses.weighted_mse(t, s, one_hot), 0, atol=1e-14)
  np.testing.assert_allclose(losses.decoupled_kl(t, s, one_hot),
                             losses.soft_cross_entropy(t, s).mean())


def test_uniform_weights_give_half_the_variance():
  t, s = draw(6, 5), draw(6, 5, seed=1)
  uniform = np.full((6, 5), 1 / 5)
  np.testing.assert_allclose(losses.weighted_mse(t, s, uniform),
                             0.5 * (t - s).var(-1))


@pytest.mark.parametrize('norm', ['weights', 'batch'])
def test_decoupled_kl(norm):
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  size = (w.sum(-1) ** 2).sum() if norm == 'weights' else 6
  soft = -(softmax(t) * np.log(softmax(s))).sum(-1).mean()
  np.testing.assert_allclose(losses.decoupled_kl(t, s, w, norm=norm),
                             double_sum(t, s, w).sum() / size + soft)


def test_decoupled_kl_norms_agree_if_weights_sum_to_one():
  t, s, w = draw(6, 5), draw(6, 5, seed=1), softmax(draw(6, 5, seed=2))
  np.testing.assert_allclose(losses.decoupled_kl(t, s, w, norm='weights'),
                             losses.decoupled_kl(t, s, w, norm='batch'))


def test_decoupled_kl_against_torch():
  torch = pytest.importorskip('torch')
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  t_, s_, w_ = (torch.tensor(a, requires_grad=True) for a in (t, s, w))
  pairs = w_[:, :, None] @ w_[:, None, :]
  t_gaps, s_gaps = (z[:, :, None] - z[:, None, :] for z in (t_, s_))
  expected = (0.25 * (pairs * (s_gaps - t_gaps) ** 2).sum() / pairs.sum()
              - (t_.softmax(1).detach() * s_.log_softmax(1)).sum(1).mean())
  expected.backward()
  value, gradients = jax.jit(jax.value_and_grad(
      losses.decoupled_kl, argnums=(0, 1, 2)))(t, s, w)
  np.testing.assert_allclose(value, expected.item())
  for got, leaf in zip(gradients, (t_, s_, w_), strict=True):
    np.testing.assert_allclose(got, leaf.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize('norm', ['weights', 'batch'])
def test_decoupled_kl_of_shards_averages_to_that_of_the_batch(norm):
  t, s, w = draw(6, 5), draw(6, 5, seed=1), positive(6, 5)
  shares = vmap(
      lambda *arrays: losses.decoupled_kl(*arrays, norm=norm, axis_name='i'),
      axis_name='i')(*(a.reshape(3, 2, 5) for a in (t, s, w)))
  assert shares.shape == (3,)
  np.testing.assert_allclose(shares.mean(),
                             losses.decoupled_kl(t, s, w, norm=norm))


def moments(x):
  return {'mean': x.mean(0), 'var': x.var(0)}


def two_layers(x, z):
  return {'bn': moments(x), 'block': {'bn1': moments(z)}}


def running_stats(seed=3):
  rng = np.random.default_rng(seed)
  def layer(channels):
    return {'mean': rng.normal(size=channels),
            'var': rng.uniform(0.5, 2, channels)}
  return {'bn': layer(3), 'block': {'bn1': layer(4), 'bn2': layer(4)}}


def test_moment_gap_sums_the_norms_of_all_layers():
  x, z, running = draw(8, 3), draw(8, 4, seed=1), running_stats()
  pairs = ((x, running['bn']), (z, running['block']['bn1']))
  expected = sum(np.sqrt(((stats['var'] - a.var(0)) ** 2).sum())
                 + np.sqrt(((stats['mean'] - a.mean(0)) ** 2).sum())
                 for a, stats in pairs)
  np.testing.assert_allclose(losses.moment_gap(two_layers(x, z), running),
                             expected)


def test_moment_gap_and_its_gradient_are_zero_at_equality():
  stats = running_stats()
  value, gradient = jax.jit(jax.value_and_grad(losses.moment_gap))(
      stats, stats)
  assert value == 0
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_gradient_of_moment_gap_has_unit_norm():
  x, running = draw(8, 3), running_stats()
  gradient = grad(losses.moment_gap)({'bn': moments(x)}, running)['bn']
  gap = x.mean(0) - running['bn']['mean']
  np.testing.assert_allclose(gradient['mean'], gap / np.linalg.norm(gap))
  np.testing.assert_allclose(np.linalg.norm(gradient['var']), 1)


def test_moment_gap_of_shards_equals_that_of_the_batch():
  # The means of the shards differ much more than the values within them.
  offset = np.repeat([[-9.], [0.], [5.]], 4, axis=0)
  x, z, running = draw(12, 3) + offset, draw(12, 4, seed=1), running_stats()

  def shard_gap(x, z):
    return losses.moment_gap(two_layers(x, z), running, axis_name='i')
  got = vmap(shard_gap, axis_name='i')(x.reshape(3, 4, 3),
                                           z.reshape(3, 4, 4))
  expected = losses.moment_gap(two_layers(x, z), running)
  np.testing.assert_allclose(got, [expected] * 3)


def test_moment_gap_of_shards_does_not_cancel_in_float32():
  x = np.float32(draw(12, 3) + 1000)
  running = jax.tree.map(np.float32, running_stats())
  got = vmap(
      lambda x: losses.moment_gap({'bn': moments(x)}, running, axis_name='i'),
      axis_name='i')(jnp.asarray(x.reshape(3, 4, 3)))
  exact = x.astype(np.float64)
  np.testing.assert_allclose(
      got[0], losses.moment_gap({'bn': moments(exact)}, running_stats()),
      rtol=1e-5)


def test_masked_classes():
  logits = jnp.array([[1., -jnp.inf, 2.], [jnp.nan, 0, 1], [jnp.inf, 0, 1],
                      [-jnp.inf] * 3, [-2e9, -jnp.inf, 0], [0, 1, 2]])
  assert losses.predicts(logits).tolist() == [True, False, False, False, True,
                                              True]
  found = losses.unmasked(logits)
  assert found[0].tolist() == [1, -1e9, 2] and found[5].tolist() == [0, 1, 2]
  assert found[4, 1] < -2e9 and jnp.isfinite(found[4]).all()
  def total(logits):
    values = losses.unmasked(logits[:1])
    labels = jnp.array([0])
    return jnp.sum(losses.cross_entropy(values, labels)
                   + losses.margin(values, labels))
  gradient = jax.grad(total)(logits)
  assert gradient[0, 1] == 0 and jnp.isfinite(gradient).all()
