"""Tests of ferd_jax.attacks.fab."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import attack
from ferd_jax.attacks import fab

EPS = {'Linf': 0.02, 'L2': 0.15}
BATCH, SHAPE, NUM_CLASSES = 20, (6, 5, 2), 4
both_norms = pytest.mark.parametrize('norm', ['Linf', 'L2'])


@pytest.fixture(scope='module', autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


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
  return np.asarray(jnp.argmax(net(jnp.asarray(x)), -1))


def dense_net(size, num_classes):
  """Returns a tanh net, images of any shape -> logits."""
  rng = np.random.default_rng(size)
  first, second = rng.normal(size=(size, 8)), rng.normal(size=(8, num_classes))
  return lambda x: (jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first)
                    @ second).astype(x.dtype)


def key():
  return jax.random.key(0)


def trace(settings, net, x, y, targets=None, x_init=None):
  """Returns the problem, every x that was linearised at, and all states."""
  problem, _ = settings.check(net, key(), x, y, targets, x_init=x_init)
  step = jax.jit(lambda problem, state: settings.step(net, problem, state))
  states = [settings.init(problem)]
  for _ in range(settings.num_steps):
    states.append(step(problem, states[-1]))
  return problem, np.stack([state.x for state in states[:-1]]), states


def size(delta, norm):
  flat = np.reshape(delta, (len(delta), -1))
  return (np.abs(flat).max(1) if norm == 'Linf'
          else np.sqrt(np.square(flat).sum(1)))


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


@both_norms
@pytest.mark.parametrize('rank', [2, 4, None])
def test_against_official(monkeypatch, norm, rank):
  x = images()
  y = predicted(conv_net, x)
  official = Official(monkeypatch, norm=norm)
  expected = official.run(x, y, rank)
  targets = (None if rank is None else attack.ranked_classes(
      conv_net(jnp.asarray(x)), jnp.full(BATCH, rank)))
  settings = fab.FAB(EPS[norm], norm)
  _, iterates, states = trace(settings, conv_net, x, y, targets)
  np.testing.assert_allclose(iterates, np.stack(official.seen), rtol=0,
                             atol=1e-9)
  np.testing.assert_allclose(states[-1].x_best, expected, rtol=0, atol=1e-9)
  np.testing.assert_allclose(states[-1].norm_best, size(expected - x, norm),
                             rtol=0, atol=1e-9)
  assert len(iterates) == 100
  assert (predicted(conv_net, states[-1].x_best) != y).mean() > 0.9


@both_norms
def test_random_start_against_official(monkeypatch, norm):
  x = images()
  y = predicted(conv_net, x)
  official = Official(monkeypatch, norm=norm, n_iter=20, eps=EPS[norm])
  expected = official.run(x, y, use_rand_start=True)
  assert np.abs(official.seen[0] - x).max() > EPS[norm] / 50
  settings = fab.FAB(EPS[norm], norm, num_iterations=20)
  _, iterates, states = trace(settings, conv_net, x, y,
                              x_init=jnp.asarray(official.seen[0]))
  np.testing.assert_allclose(iterates, np.stack(official.seen), rtol=0,
                             atol=1e-9)
  np.testing.assert_allclose(states[-1].x_best, expected, rtol=0, atol=1e-9)


@both_norms
@pytest.mark.parametrize('num_targets', [0, 3])
def test_what_is_accepted_against_official(monkeypatch, norm, num_targets):
  x = images()
  y = predicted(conv_net, x)
  y[:2] = (y[:2] + 1) % NUM_CLASSES  # Wrong as they are.
  official = Official(monkeypatch, norm=norm, n_iter=30, eps=EPS[norm],
                      targeted=bool(num_targets), n_target_classes=num_targets)
  expected = official('perturb', x, y)
  settings = fab.FAB(EPS[norm], norm, num_iterations=30,
                     num_targets=num_targets)
  got = jax.jit(settings, static_argnums=0)(conv_net, key(), x, y)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
  changed = size(expected - x, norm) > 0
  assert 4 < changed.sum() < 16 and not changed[:2].any()


@both_norms
def test_norms_in_float32(monkeypatch, norm):
  x = images().astype(np.float32)
  y = predicted(conv_net, x)
  settings = fab.FAB(EPS[norm], norm)
  *_, states = trace(settings, conv_net, x, y)
  got, best = states[-1].norm_best, states[-1].x_best
  assert got.dtype == best.dtype == np.float32
  expected = size(Official(monkeypatch, norm=norm).run(x, y) - x, norm)
  error = np.abs(got / expected - 1)
  assert np.quantile(error, 0.95) < 1e-3


@both_norms
@pytest.mark.parametrize('num_targets', [0, 3])
def test_result(norm, num_targets):
  x = images()
  y = predicted(conv_net, x)
  settings = fab.FAB(EPS[norm], norm, num_iterations=20,
                     num_targets=num_targets)
  result = settings.run(conv_net, key(), x, y)
  got = np.asarray(result.images)
  fooled = predicted(conv_net, got) != y
  np.testing.assert_array_equal(result.success, fooled)
  assert 2 < fooled.sum() < BATCH
  assert size(got - x, norm).max() <= EPS[norm]
  assert 0 <= got.min() and got.max() <= 1
  np.testing.assert_array_equal(got[~fooled], x[~fooled])
  assert (size(got - x, norm)[fooled] > 0).all()


@both_norms
def test_accepts_up_to_eps_and_not_beyond(norm):
  x = images()
  y = predicted(conv_net, x)
  settings = fab.FAB(EPS[norm], norm, num_iterations=10)
  _, _, states = trace(settings, conv_net, x, y)
  found = np.asarray(states[-1].norm_best)
  assert found.max() < 1
  run = jax.jit(lambda eps: settings(conv_net, key(), x, y, eps=eps))
  # Norms may round in their last bits, differently in another program.
  beyond = 1 + 1e-12
  np.testing.assert_allclose(run(found * beyond), states[-1].x_best,
                             rtol=0, atol=1e-12)
  np.testing.assert_array_equal(run(found / beyond), x)


@both_norms
def test_keeps_the_smallest_or_the_first(norm):
  x = images()
  y = predicted(conv_net, x)
  smallest = fab.FAB(EPS[norm], norm, num_iterations=20)
  first = dataclasses.replace(smallest, keep='first')
  problem, _, states = trace(smallest, conv_net, x, y)
  *_, last = trace(first, conv_net, x, y)[2]
  fooled = np.stack([state.fooled for state in states])
  np.testing.assert_array_equal(last.fooled, fooled[-1])
  hit = np.argmax(fooled, axis=0)  # the state in which it is fooled first
  assert len(np.unique(hit)) > 2
  got = first.images(problem, last)
  for i in range(BATCH):
    expected = states[hit[i]].x_best[i] if fooled[-1, i] else x[i]
    np.testing.assert_allclose(got[i], expected, rtol=0, atol=1e-12)
    assert last.iteration[i] == (hit[i] if fooled[-1, i] else 20)
  assert np.asarray(first.done(last)).all()
  np.testing.assert_array_equal(first.done(states[3]), states[3].fooled)
  assert np.asarray(smallest.done(states[-1])).all()
  assert not np.asarray(smallest.done(states[-2])).any()
  closer = np.asarray(states[-1].norm_best)[last.fooled]
  assert (closer <= np.asarray(last.norm_best)[last.fooled]).all()
  assert (closer < np.asarray(last.norm_best)[last.fooled]).any()


def test_norm_shrinks_and_is_that_of_the_best():
  x = images()
  y = predicted(conv_net, x)
  _, _, states = trace(fab.FAB(EPS['L2'], 'L2', num_iterations=10), conv_net,
                       x, y)
  norms = np.stack([state.norm_best for state in states])
  assert (norms[0] == 1e10).all() and (np.diff(norms, axis=0) <= 0).all()
  np.testing.assert_allclose(size(states[-1].x_best - x, 'L2'), norms[-1],
                             rtol=1e-12)


@both_norms
@pytest.mark.parametrize('num_classes', [2, 3])
@pytest.mark.parametrize('shape', [(6,), (3, 2, 1)])
def test_few_classes_and_any_shape(norm, num_classes, shape):
  net = dense_net(6, num_classes)
  x = np.random.default_rng(2).uniform(size=(16, *shape))
  y = predicted(net, x)
  finds = {}
  for num_targets in (0, num_classes - 1):
    settings = fab.FAB(0.5, norm, num_iterations=10, num_targets=num_targets)
    got = np.asarray(settings(net, key(), x, y))
    assert got.shape == x.shape and size(got - x, norm).max() <= 0.5
    finds[num_targets] = predicted(net, got) != y
    assert finds[num_targets].mean() > 0.5
  if num_classes == 2:  # There is one class to choose.
    np.testing.assert_array_equal(finds[0], finds[1])


@both_norms
def test_scales_with_the_bounds(norm):
  x = images()
  y = predicted(conv_net, x)
  got = fab.FAB(EPS[norm], norm, num_iterations=15)(conv_net, key(), x, y)
  scaled = fab.FAB(255 * EPS[norm], norm, num_iterations=15,
                   bounds=(0., 255.))(
                       lambda x: conv_net(x / 255), key(), 255 * x, y)
  np.testing.assert_allclose(scaled / 255, got, rtol=0, atol=1e-11)
  shifted = fab.FAB(2 * EPS[norm], norm, num_iterations=15, bounds=(-1., 1.))(
      lambda x: conv_net((x + 1) / 2), key(), 2 * x - 1, y)
  np.testing.assert_allclose((shifted + 1) / 2, got, rtol=0, atol=1e-11)


@both_norms
@pytest.mark.parametrize('num_targets', [0, 2])
def test_zero_radius_fools_nobody(norm, num_targets):
  x = images()
  y = predicted(conv_net, x)
  result = fab.FAB(0., norm, num_iterations=5, num_targets=num_targets).run(
      conv_net, key(), x, y)
  np.testing.assert_array_equal(result.images, x)
  assert not np.asarray(result.success).any()


@pytest.mark.parametrize('targeted', [False, True])
def test_wrong_images_stay(targeted):
  x = images()
  y = predicted(conv_net, x)
  y[::2] = (y[::2] + 1) % NUM_CLASSES
  targets = (y + 2) % NUM_CLASSES if targeted else None
  settings = fab.FAB(EPS['Linf'], num_iterations=5)
  _, _, states = trace(settings, conv_net, x, y, targets)
  np.testing.assert_array_equal(states[-1].x_best[::2], x[::2])
  np.testing.assert_array_equal(states[-1].x[::2], x[::2])
  assert (np.asarray(states[-1].norm_best)[::2] == 0).all()
  assert np.asarray(states[-1].fooled)[::2].all()
  assert (np.asarray(states[-1].norm_best)[1::2] > 0).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_logits_that_are_not_finite_fool_nobody(bad):
  x = images()
  y = predicted(conv_net, x)
  x[0] = 0.5  # The net breaks at the first image, and around the second.
  def net(x):
    mean = jnp.mean(x, axis=(1, 2, 3))
    breaks = (mean == 0.5) | (jnp.abs(mean - start) < 0.1) & (mean != start)
    return jnp.where(breaks[:, None], bad, conv_net(x))
  start = jnp.mean(jnp.asarray(x[1]))
  settings = fab.FAB(1., num_iterations=10)
  problem, _, states = trace(settings, net, x, y)
  state = states[-1]
  assert not np.asarray(state.fooled)[:2].any()
  assert not np.asarray(state.finite)[:2].any()
  np.testing.assert_array_equal(settings.images(problem, state)[:2], x[:2])
  whole = ~np.isin(np.arange(BATCH), np.flatnonzero(~np.asarray(state.finite)))
  assert whole.sum() > 5 and np.asarray(state.fooled)[whole].all()
  assert np.isfinite(np.asarray(state.x_best)).all()


@pytest.mark.parametrize('options', [{}, {'num_targets': 2}, {
    'num_restarts': 2, 'norm': 'L2'}], ids=['untargeted', 'targeted',
                                            'restarts'])
def test_compiling_and_rolling_change_nothing(options):
  net = dense_net(6, 4)
  x = np.random.default_rng(3).uniform(size=(5, 3, 2, 1))
  y = predicted(net, x)
  settings = fab.FAB(0.1, num_iterations=4, unroll=True, **options)
  eager = np.asarray(settings(net, key(), x, y))
  assert np.abs(eager - x).max() > 0.01
  for unroll in (False, True):
    settings = dataclasses.replace(settings, unroll=unroll)
    compiled = jax.jit(settings, static_argnums=0)(net, key(), x, y)
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-12)


@pytest.mark.parametrize('num_targets', [0, 2])
def test_an_example_does_not_depend_on_others(num_targets):
  x = images()
  y = predicted(conv_net, x)
  settings = fab.FAB(EPS['Linf'], num_iterations=10, num_restarts=2,
                     num_targets=num_targets)
  keys = jax.random.split(key(), BATCH)
  whole = settings(conv_net, keys, x, y)
  assert np.abs(whole - x)[3:8].max() > 0
  part = settings(conv_net, keys[3:8], x[3:8], y[3:8])
  np.testing.assert_allclose(part, whole[3:8], rtol=0, atol=1e-12)


def test_first_run_draws_nothing_and_restarts_do():
  x = images()
  y = predicted(conv_net, x)
  settings = fab.FAB(EPS['Linf'], num_iterations=5)
  first = settings(conv_net, jax.random.key(1), x, y)
  np.testing.assert_array_equal(
      settings(conv_net, jax.random.key(2), x, y), first)
  more = dataclasses.replace(settings, num_restarts=4)
  found = [np.asarray(more.run(conv_net, jax.random.key(seed), x, y).success)
           for seed in (1, 1, 2)]
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0] >= (predicted(conv_net, first) != y)).all()


@both_norms
def test_starts_of_restarts(norm):
  x = np.full((BATCH, *SHAPE), 0.5)
  x[-1] = 1.
  y = predicted(conv_net, x)
  settings = fab.FAB(0.2, norm, num_restarts=2, num_targets=3)
  problem, _ = settings.check(conv_net, key(), x, y)
  logits = conv_net(jnp.asarray(x))
  runs = [settings.nth_run(problem, logits, number) for number in range(6)]
  for number, run in enumerate(runs):
    assert run.restart.dtype == jnp.int32
    np.testing.assert_array_equal(run.restart, np.full(BATCH, number // 3))
    np.testing.assert_array_equal(
        run.targets, attack.ranked_classes(
            logits, jnp.full(BATCH, number % 3 + 2)))
  starts = [np.asarray(settings.init(run).x) for run in (problem, *runs)]
  for start in starts[:4]:
    np.testing.assert_array_equal(start, x)
  for start in starts[4:]:
    np.testing.assert_allclose(size(start - x, norm)[:-1], 0.1, rtol=1e-9)
    assert start.max() <= 1
  assert np.abs(starts[4] - starts[5]).max() > 1e-3
  given = settings.init(runs[-1]._replace(x_init=jnp.asarray(x) + 0.7))
  np.testing.assert_array_equal(given.x, np.ones_like(x))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('targeted', [False, True])
@both_norms
def test_state_keeps_its_types(dtype, targeted, norm):
  x = jnp.asarray(images(), dtype)
  y = np.zeros(BATCH, np.int64)
  settings = fab.FAB(np.float64(0.1), norm, alpha_max=np.float64(0.1))
  problem, _ = settings.check(conv_net, key(), x, y,
                              y + 1 if targeted else None)
  problem = settings.nth_run(problem, conv_net(x), 0)
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
  settings = fab.FAB(EPS['Linf'], num_iterations=5)
  got = settings(lambda x: conv_net(x).astype(jnp.float32), key(), x, y)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, settings(conv_net, key(), x, y), atol=1e-4)


@pytest.mark.parametrize(('options', 'message'), [
    ({'eps': -0.1}, 'eps=-0.1'), ({'norm': 'L1'}, "norm='L1'"),
    ({'num_iterations': 0}, 'num_iterations=0'),
    ({'num_restarts': 0}, 'num_restarts=0'),
    ({'num_targets': -1}, 'num_targets=-1'),
    ({'alpha_max': 1.5}, 'alpha_max=1.5'), ({'eta': 0.}, 'eta=0.0'),
    ({'beta': -0.5}, 'beta=-0.5'), ({'keep': 'best'}, "keep='best'"),
    ({'bounds': (1., 0.)}, r'bounds=\(1.0, 0.0\)')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    fab.FAB(**{'eps': 0.1, **options})
