"""Tests of ferd_jax.attacks.fab."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import fab
from ferd_jax.attacks import geometry
from ferd_jax.attacks import targets

EPS = {'Linf': 0.02, 'L2': 0.15, 'L1': 0.5}
ORDERS = {'Linf': np.inf, 'L2': 2, 'L1': 1}
BATCH, SHAPE, NUM_CLASSES = 20, (6, 5, 2), 4
every_norm = pytest.mark.parametrize('norm', [
    'Linf', 'L1', pytest.param('L2', marks=pytest.mark.slow)])
both_norms = pytest.mark.parametrize('norm', ['Linf', 'L2'])


pytestmark = pytest.mark.usefixtures('float64')


def weights():
  rng = np.random.default_rng(0)
  return (rng.normal(size=(3, 3, SHAPE[-1], 4)),
          0.3 * rng.normal(size=(6 * 5 * 4, NUM_CLASSES)))


def conv_net(x):
  """Returns logits in the dtype of the images."""
  kernel, dense = (jnp.asarray(w, x.dtype) for w in weights())
  x = jnp.tanh(jax.lax.conv_general_dilated(
      x - 0.5, kernel, (1, 1), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
  return x.reshape(len(x), -1) @ dense


def torch_conv_net(x):
  """`conv_net` in PyTorch, of images NCHW."""
  import torch
  kernel, dense = (torch.tensor(w, dtype=x.dtype) for w in weights())
  x = torch.tanh(torch.nn.functional.conv2d(
      x - 0.5, kernel.permute(3, 2, 0, 1), padding=1))
  return x.permute(0, 2, 3, 1).flatten(1) @ dense


def images():
  """Returns images with some pixels at the bounds."""
  rng = np.random.default_rng(1)
  return np.clip(rng.uniform(-0.2, 1.2, size=(BATCH, *SHAPE)), 0, 1)


def predicted(net, x):
  return np.array(jnp.argmax(net(jnp.asarray(x)), -1))


@functools.cache
def dense_net(size, num_classes):
  """Returns a tanh net, images of any shape -> logits."""
  rng = np.random.default_rng(size)
  first, second = rng.normal(size=(size, 8)), rng.normal(size=(8, num_classes))
  return lambda x: (jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first)
                    @ second).astype(x.dtype)


def key():
  return jax.random.key(0)


# Rolled loops compile faster.
FAB = functools.partial(fab.FAB, unroll=False)
run = jax.jit(fab.FAB.__call__, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(settings, net, problem, state):
  return settings.step(net, problem, state)


def trace(settings, net, x, y, num_steps, targets=None, **options):
  """Returns the problem and the states before and after every step.

  Targets are those that the attack chooses: any misclassification counts.
  """
  problem, _ = settings.check(net, key(), x, y, **options)
  if targets is not None:
    settings = dataclasses.replace(settings, num_targets=1)
    problem = problem._replace(targets=jnp.asarray(targets))
  states = [settings.init(problem)]
  for _ in range(num_steps):
    states.append(step(settings, net, problem, states[-1]))
  return problem, states


def size(delta, norm):
  flat = np.reshape(delta, (len(delta), -1))
  return np.linalg.norm(flat, ORDERS[norm], axis=1)


class Official:
  """The official attack, NHWC outside."""

  def __init__(self, monkeypatch, dtype=np.float64, **settings):
    self._torch = pytest.importorskip('torch')
    fab_pt = pytest.importorskip('pyautoattack.fab_pt')
    self._dtype = dtype
    self.seen = []
    self.attack = fab_pt.FABAttack_PT(torch_conv_net, device='cpu', **settings)
    for name in ('get_diff_logits_grads_batch',
                 'get_diff_logits_grads_batch_targeted'):
      monkeypatch.setattr(self.attack, name,
                          self._recording(getattr(self.attack, name)))
    if dtype == np.float64:  # The official code casts to float32.
      monkeypatch.setattr(self._torch.Tensor, 'float',
                          self._torch.Tensor.double)

  def _recording(self, function):
    def record(x, *labels):
      self.seen.append(x.numpy().transpose(0, 2, 3, 1).copy())
      return function(x, *labels)
    return record

  def __call__(self, method, x, y, **options):
    default = self._torch.get_default_dtype()
    x = self._torch.tensor(x.transpose(0, 3, 1, 2).astype(self._dtype))
    self._torch.set_default_dtype(x.dtype)
    try:
      adv = getattr(self.attack, method)(x, self._torch.tensor(y), **options)
    finally:
      self._torch.set_default_dtype(default)
    return adv.numpy().transpose(0, 2, 3, 1)

  def run(self, x, y, rank=None, **options):
    """Returns the closest misclassified image of one run."""
    self.attack.target_class = rank
    return self('attack_single_run', x, y, is_targeted=rank is not None,
                **options)


def ranked(net, x, rank):
  """Returns the targets of the run on one rank, or None."""
  if rank is None:
    return None
  return targets.ranked_classes(net(jnp.asarray(x)), jnp.full(len(x), rank))


@pytest.mark.parametrize('norm', geometry.NORMS)
@pytest.mark.parametrize('rank', [
    None, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_against_official(monkeypatch, norm, rank):
  x = images()
  y = predicted(conv_net, x)
  official = Official(monkeypatch, norm=norm)
  expected = official.run(x, y, rank)
  _, states = trace(FAB(EPS[norm], norm), conv_net, x, y, 100,
                    ranked(conv_net, x, rank))
  np.testing.assert_allclose(
      np.stack([state.x for state in states[:-1]]), np.stack(official.seen),
      rtol=0, atol=1e-9)
  np.testing.assert_allclose(states[-1].x_best, expected, rtol=0, atol=1e-9)
  np.testing.assert_allclose(states[-1].norm_best, size(expected - x, norm),
                             rtol=0, atol=1e-9)
  assert (predicted(conv_net, states[-1].x_best) != y).mean() > 0.9


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_random_start_against_official(monkeypatch, norm):
  x = images()
  y = predicted(conv_net, x)
  official = Official(monkeypatch, norm=norm, n_iter=20, eps=EPS[norm])
  expected = official.run(x, y, use_rand_start=True)
  assert np.abs(official.seen[0] - x).max() > EPS[norm] / 50
  _, states = trace(FAB(EPS[norm], norm), conv_net, x, y, 20,
                    x_init=jnp.asarray(official.seen[0]))
  np.testing.assert_allclose(
      np.stack([state.x for state in states[:-1]]), np.stack(official.seen),
      rtol=0, atol=1e-9)
  np.testing.assert_allclose(states[-1].x_best, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(('norm', 'num_targets'), [
    ('Linf', 0), ('Linf', 3), ('L2', 0), ('L2', 3), ('L1', 0)])
def test_what_is_accepted_against_official(monkeypatch, norm, num_targets):
  x = images()
  y = predicted(conv_net, x)
  y[:2] = (y[:2] + 1) % NUM_CLASSES  # Wrong as they are.
  official = Official(monkeypatch, norm=norm, n_iter=20, eps=EPS[norm],
                      targeted=bool(num_targets), n_target_classes=num_targets)
  expected = official('perturb', x, y)
  settings = FAB(EPS[norm], norm, num_iterations=20, num_targets=num_targets)
  got = np.asarray(run(settings, conv_net, key(), x, y))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
  fooled = size(expected - x, norm) > 0
  assert 4 < fooled.sum() < 16 and not fooled[:2].any()
  np.testing.assert_array_equal(
      predicted(conv_net, got) != y, fooled | (np.arange(BATCH) < 2))
  assert size(got - x, norm).max() <= EPS[norm]
  assert 0 <= got.min() and got.max() <= 1
  np.testing.assert_array_equal(got[~fooled], x[~fooled])


@pytest.mark.parametrize('norm', [
    'Linf', pytest.param('L2', marks=pytest.mark.slow)])
def test_norms_in_float32(monkeypatch, norm):
  x = images().astype(np.float32)
  y = predicted(conv_net, x)
  _, states = trace(FAB(EPS[norm], norm), conv_net, x, y, 100)
  assert states[-1].norm_best.dtype == states[-1].x_best.dtype == np.float32
  expected = size(Official(monkeypatch, norm=norm).run(x, y) - x, norm)
  error = np.abs(states[-1].norm_best / expected - 1)
  assert np.quantile(error, 0.95) < 1e-3


@both_norms
def test_accepts_up_to_eps_and_not_beyond(norm):
  x = images()
  y = predicted(conv_net, x)
  settings = FAB(EPS[norm], norm)
  _, states = trace(settings, conv_net, x, y, 10)
  found = states[-1].norm_best
  assert found.max() < 1
  for eps in (found, jnp.nextafter(found, 0)):
    problem, states = trace(settings, conv_net, x, y, 10, eps=eps)
    within = eps is found
    np.testing.assert_array_equal(states[-1].norm_best, found)
    np.testing.assert_array_equal(states[-1].fooled, np.full(BATCH, within))
    np.testing.assert_array_equal(settings.images(problem, states[-1]),
                                  states[-1].x_best if within else x)


@both_norms
def test_keeps_the_smallest_or_the_first(norm):
  x = images()
  y = predicted(conv_net, x)
  smallest = FAB(EPS[norm], norm)
  first = dataclasses.replace(smallest, keep='first')
  targets = ranked(conv_net, x, 4)
  _, states = trace(smallest, conv_net, x, y, 10, targets)
  # Found sooner or later, and not at all for some.
  eps = states[-1].norm_best * np.linspace(0.99, 1.05, BATCH)
  problem, states = trace(smallest, conv_net, x, y, 10, targets, eps=eps)
  last = trace(first, conv_net, x, y, 10, targets, eps=eps)[1][-1]
  fooled = np.stack([state.fooled for state in states])
  np.testing.assert_array_equal(last.fooled, fooled[-1])
  hit = np.where(fooled[-1], np.argmax(fooled, axis=0), 10)
  assert len(np.unique(hit)) > 3 and 1 < fooled[-1].sum() < BATCH
  np.testing.assert_array_equal(last.iteration, hit)
  expected = [states[hit[i]].x_best[i] if fooled[-1, i] else x[i]
              for i in range(BATCH)]
  np.testing.assert_allclose(first.images(problem, last), np.stack(expected),
                             rtol=0, atol=1e-12)
  smallest, first = (dataclasses.replace(settings, num_iterations=10)
                     for settings in (smallest, first))
  np.testing.assert_array_equal(first.done(states[5]), states[5].fooled)
  np.testing.assert_array_equal(first.done(last), np.ones(BATCH, bool))
  np.testing.assert_array_equal(smallest.done(states[-1]), first.done(last))
  assert not np.asarray(smallest.done(states[-2])).any()

  norms = np.stack([state.norm_best for state in states])
  assert (norms[0] == 1e10).all() and (np.diff(norms, axis=0) <= 0).all()
  np.testing.assert_allclose(size(states[-1].x_best - x, norm), norms[-1],
                             rtol=1e-12)
  assert (norms[-1] < np.asarray(last.norm_best)).any()


@pytest.mark.parametrize(('num_classes', 'shape', 'norm'), [
    (2, (6,), 'Linf'), (3, (3, 2, 1), 'L2'), (2, (6,), 'L1')])
def test_few_classes_and_any_shape(num_classes, shape, norm):
  net = dense_net(6, num_classes)
  x = np.random.default_rng(2).uniform(size=(16, *shape))
  y = predicted(net, x)
  found = []
  for num_targets in (0, num_classes - 1):
    settings = FAB(0.3, norm, num_iterations=10, num_targets=num_targets)
    got = np.asarray(run(settings, net, key(), x, y))
    assert got.shape == x.shape and size(got - x, norm).max() <= 0.3
    found.append(predicted(net, got) != y)
    assert found[-1].mean() > 0.4
  if num_classes == 2:  # There is no class to choose.
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(('norm', 'bounds'), [('Linf', (0., 255.)),
                                              ('L2', (-1., 1.)),
                                              ('L1', (-1., 1.))])
def test_scales_with_the_bounds(norm, bounds):
  x = images()
  y = predicted(conv_net, x)
  low, width = bounds[0], bounds[1] - bounds[0]
  _, states = trace(FAB(EPS[norm], norm), conv_net, x, y, 15)
  _, scaled = trace(FAB(width * EPS[norm], norm, bounds=bounds),
                    lambda x: conv_net((x - low) / width),
                    low + width * x, y, 15)
  for field in ('x', 'x_best'):
    np.testing.assert_allclose((getattr(scaled[-1], field) - low) / width,
                               getattr(states[-1], field), rtol=0, atol=1e-11)
  np.testing.assert_allclose(scaled[-1].norm_best / width,
                             states[-1].norm_best, rtol=0, atol=1e-11)
  np.testing.assert_array_equal(scaled[-1].fooled, states[-1].fooled)
  assert 2 < states[-1].fooled.sum() < BATCH


@pytest.mark.parametrize('targeted', [False, True])
def test_wrong_images_stay(targeted):
  x = images()
  y = predicted(conv_net, x)
  y[::2] = (y[::2] + 1) % NUM_CLASSES
  targets = (y + 2) % NUM_CLASSES if targeted else None
  _, states = trace(FAB(EPS['Linf']), conv_net, x, y, 5, targets)
  state = states[-1]
  np.testing.assert_array_equal(state.x_best[::2], x[::2])
  np.testing.assert_array_equal(state.x[::2], x[::2])
  assert (np.asarray(state.norm_best)[::2] == 0).all()
  assert np.asarray(state.fooled)[::2].all()
  assert (np.asarray(state.norm_best)[1::2] > 0).all()


@pytest.mark.parametrize(('bad', 'rank'), [(np.nan, 2), (np.inf, None)])
def test_logits_that_are_not_finite_fool_nobody(bad, rank):
  x = images()
  y = predicted(conv_net, x)
  def net(images):  # It breaks at the first image and around the second.
    moved = jnp.any(images != x, axis=(1, 2, 3))
    index = jnp.arange(BATCH)
    breaks = (index == 0) | ((index == 1) & moved)
    # Of another class alone: argmax would be that.
    is_next = jax.nn.one_hot((y + 1) % NUM_CLASSES, NUM_CLASSES, dtype=bool)
    return jnp.where(breaks[:, None] & is_next, bad, conv_net(images))
  settings = FAB(EPS['Linf'])
  problem, states = trace(settings, net, x, y, 10, ranked(conv_net, x, rank),
                          eps=1.)
  state = states[-1]
  rest = np.arange(BATCH) > 1
  np.testing.assert_array_equal(state.fooled, rest)
  np.testing.assert_array_equal(state.finite, rest)
  assert np.isnan(settings.images(problem, state)[:2]).all()
  assert np.isfinite(np.asarray(state.x_best)).all()
  _, states = trace(settings, conv_net, x, y, 10, ranked(conv_net, x, rank))
  np.testing.assert_allclose(state.x[2:], states[-1].x[2:], rtol=0, atol=1e-12)


@both_norms
def test_an_example_does_not_depend_on_others(norm):
  x = images()
  y = predicted(conv_net, x)
  _, whole = trace(FAB(EPS[norm], norm), conv_net, x, y, 10)
  _, part = trace(FAB(EPS[norm], norm), conv_net, x[12:], y[12:], 10)
  assert 0 < whole[-1].fooled[12:].sum() < 8
  for left, right in zip(whole[-1], part[-1], strict=True):
    np.testing.assert_allclose(left[12:], right, rtol=0, atol=1e-12)


def test_first_run_draws_nothing_and_restarts_do():
  x = images()
  y = predicted(conv_net, x)
  settings = FAB(EPS['Linf'], num_iterations=5)
  first = run(settings, conv_net, jax.random.key(1), x, y)
  np.testing.assert_array_equal(
      run(settings, conv_net, jax.random.key(2), x, y), first)
  settings = dataclasses.replace(settings, num_restarts=3)
  again = run(settings, conv_net, jax.random.key(1), x, y)
  np.testing.assert_array_equal(
      run(settings, conv_net, jax.random.key(1), x, y), again)
  fooled = size(first - x, 'Linf') > 0
  np.testing.assert_allclose(again[fooled], first[fooled], rtol=0, atol=1e-12)
  assert (size(again - x, 'Linf') > 0).sum() >= fooled.sum()


@every_norm
def test_starts_of_restarts(norm):
  x = np.full((BATCH, *SHAPE), 0.5)
  x[-1] = 1.
  y = predicted(conv_net, x)
  settings = FAB(0.2, norm, num_restarts=2, num_targets=3)
  problem, _ = settings.check(conv_net, key(), x, y)
  logits = conv_net(jnp.asarray(x))
  runs = [settings.nth_attempt(problem, logits, number) for number in range(6)]
  for number, nth in enumerate(runs):
    assert nth.restart.dtype == jnp.int32
    np.testing.assert_array_equal(nth.restart, np.full(BATCH, number // 3))
    np.testing.assert_array_equal(nth.targets,
                                  ranked(conv_net, x, number % 3 + 2))
  starts = [np.asarray(settings.init(nth).x) for nth in (problem, *runs)]
  for start in starts[:4]:
    np.testing.assert_array_equal(start, x)
  for start in starts[4:]:
    np.testing.assert_allclose(size(start - x, norm)[:-1], 0.1, rtol=1e-9)
    assert start.max() <= 1
  assert np.abs(starts[4] - starts[5]).max() > 1e-3
  part = jax.tree.map(lambda leaf: leaf[5:8], runs[-1])  # of the batch
  np.testing.assert_allclose(settings.init(part).x, starts[-1][5:8],
                             rtol=1e-12)
  given = settings.init(runs[-1]._replace(x_init=jnp.asarray(x) + 0.7))
  np.testing.assert_array_equal(given.x, np.ones_like(x))


@every_norm
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('targeted', [False, True])
def test_state_keeps_its_types(dtype, targeted, norm):
  x = jnp.asarray(images(), dtype)
  y = np.zeros(BATCH, np.int64)
  settings = FAB(np.float64(0.1), norm, alpha_max=np.float64(0.1))
  problem, _ = settings.check(conv_net, key(), x, y,
                              y + 1 if targeted else None)
  problem = settings.nth_attempt(problem, conv_net(x), 0)
  before = jax.eval_shape(settings.init, problem)
  after = jax.eval_shape(functools.partial(settings.step, conv_net), problem,
                         before)
  assert before == after
  for leaf in before:
    assert leaf.shape[0] == BATCH
    assert (leaf.dtype == dtype
            or not jnp.issubdtype(leaf.dtype, jnp.floating))


def test_logits_of_another_precision():
  x = images()
  y = predicted(conv_net, x)
  _, states = trace(FAB(EPS['Linf']), conv_net, x, y, 5)
  _, rounded = trace(FAB(EPS['Linf']),
                     lambda x: conv_net(x).astype(jnp.float32), x, y, 5)
  assert rounded[-1].x.dtype == np.float64
  np.testing.assert_allclose(rounded[-1].norm_best, states[-1].norm_best,
                             rtol=1e-3)


@pytest.mark.parametrize(('options', 'message'), [
    ({'eps': -0.1}, 'eps=-0.1'), ({'norm': 'L0'}, "norm='L0'"),
    ({'num_iterations': 0}, 'num_iterations=0'),
    ({'num_restarts': 0}, 'num_restarts=0'),
    ({'num_targets': -1}, 'num_targets=-1'),
    ({'alpha_max': 1.5}, 'alpha_max=1.5'), ({'eta': 0.}, 'eta=0.0'),
    ({'beta': -0.5}, 'beta=-0.5'), ({'keep': 'best'}, "keep='best'"),
    ({'bounds': (1., 0.)}, r'bounds=\(1.0, 0.0\)')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    fab.FAB(**{'eps': 0.1, **options})
