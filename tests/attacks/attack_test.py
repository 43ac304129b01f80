"""What every attack promises, whatever it does inside."""

import dataclasses
import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses

_EPS, _BATCH, _SHAPE, _CLASSES = 0.2, 8, (3, 2, 2), 5
_BOUNDS = (-0.5, 1.)
_RNG = np.random.default_rng(0)
_HIDDEN = _RNG.normal(size=(12, 16))
_WEIGHTS = _RNG.normal(size=(16, _CLASSES))

_common = dict(bounds=_BOUNDS, unroll=False)
_ATTACKS = {
    'fgsm': attacks.PGD(_EPS, _EPS, 1, start='zero', **_common),
    'pgd': attacks.PGD(_EPS, _EPS / 4, 4, num_restarts=2, **_common),
    'pgd_l2_cw': attacks.PGD(_EPS, _EPS / 4, 4, loss=losses.carlini_wagner,
                             norm='L2', start='normal', **_common),
    'pgd_l1': attacks.PGD(_EPS, _EPS / 4, 4, norm='L1', **_common),
    'pgd_targeted': attacks.PGD(_EPS, _EPS / 4, 4, loss=losses.targeted_dlr,
                                clip_steps=False, **_common),
    'utae': attacks.UTAE(_EPS, _EPS / 4, 4, **_common),
    'apgd': attacks.APGD(_EPS, num_iterations=8, **_common),
    'apgd_l2': attacks.APGD(_EPS, 'L2', num_iterations=8, keep='best',
                            **_common),
    'apgd_t_l1': attacks.APGD(_EPS, 'L1', num_targets=2, num_iterations=5,
                              large_radii=True, **_common),
    'apgd_t': attacks.APGD(_EPS, loss=losses.targeted_dlr, num_targets=2,
                           num_iterations=5, keep='first', **_common),
    'fab': attacks.FAB(_EPS, num_iterations=4, num_restarts=2, **_common),
    'fab_l2': attacks.FAB(_EPS, 'L2', num_iterations=4, **_common),
    'fab_l1': attacks.FAB(_EPS, 'L1', num_iterations=4, **_common),
    'fab_t': attacks.FAB(_EPS, num_targets=2, num_iterations=4, **_common),
    'ddn': attacks.DDN(_EPS, 8, init_radius=0.1, **_common),
    'fmn_l1': attacks.FMN(_EPS, 'L1', 6, keep='first', **_common),
    'square': attacks.Square(_EPS, num_queries=8, **_common),
    'square_l2': attacks.Square(_EPS, 'L2', num_queries=8, **_common),
    'square_l1': attacks.Square(_EPS, 'L1', num_queries=8, **_common),
}
# One of each kind, and of each norm; -m slow takes the others.
_QUICK = ('pgd', 'utae', 'apgd_l2', 'apgd_t_l1', 'fab_t', 'ddn', 'fmn_l1',
          'square')
every_attack = pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
    for name in _ATTACKS])


pytestmark = pytest.mark.usefixtures('float64')


def _net(x):
  flat = x.reshape(x.shape[0], -1)
  return jnp.tanh(flat @ _HIDDEN) @ _WEIGHTS


def _examples(seed, wrong=1):
  """Returns keys, images, labels and targets; some labels are wrong."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.uniform(*_BOUNDS, (_BATCH, *_SHAPE)))
  y = np.array(_net(x).argmax(-1), np.int32)
  y[:wrong] = (y[:wrong] + 1) % _CLASSES
  targets = (y + 2) % _CLASSES
  return (jax.random.split(jax.random.key(seed), _BATCH), x, jnp.asarray(y),
          jnp.asarray(targets))


def _call(name, method='run', shift=0., **settings):
  """Returns the attack as a function of what may be mapped over."""
  attack = dataclasses.replace(_ATTACKS[name], **settings)
  def net(x):
    return _net(x + shift)
  def call(key, x, y, targets, eps):
    labels = net(x) if name == 'utae' and len(x) else y
    return getattr(attack, method)(
        net, key, x, labels, targets if name == 'pgd_targeted' else None,
        eps=eps)
  return call


@functools.cache
def _jitted(name):
  return jax.jit(_call(name))


def _labels(name, x, y):
  """Returns what success is measured by."""
  return np.asarray(_net(x).argmax(-1) if name == 'utae' else y)


@every_attack
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(eps=st.one_of(st.just(0.), st.floats(0, 3)),
                  seed=st.integers(0, 999), wrong=st.integers(0, _BATCH))
def test_promises(name, eps, seed, wrong):
  keys, x, y, targets = _examples(seed, wrong)
  result = _jitted(name)(keys, x, y, targets, eps)
  images = np.asarray(result.images)
  labels = _labels(name, x, y)
  assert images.shape == x.shape and images.dtype == x.dtype
  assert np.isfinite(images).all()
  assert images.min() >= _BOUNDS[0] and images.max() <= _BOUNDS[1]
  order = {'Linf': np.inf, 'L2': 2, 'L1': 1}[_ATTACKS[name].norm]
  norms = np.linalg.norm((images - x).reshape(_BATCH, -1), order, axis=1)
  assert norms.max() <= eps * (1 + 1e-9)
  np.testing.assert_allclose(result.norm, norms, atol=1e-12)
  predictions = np.asarray(_net(images).argmax(-1))
  np.testing.assert_array_equal(result.predictions, predictions)
  np.testing.assert_array_equal(result.success, predictions != labels)
  np.testing.assert_allclose(result.logits, _net(images), atol=1e-9)
  if eps == 0:
    clean = np.asarray(_net(x).argmax(-1))
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(result.success, clean != labels)


@every_attack
def test_a_larger_radius_fools_more(name):
  # Many images: a larger ball may mislead an attack on a single one.
  robust = []
  for eps in (0., 0.05, 0.2, 1.):
    found = [_jitted(name)(*_examples(seed, 0), eps).success
             for seed in range(12)]
    robust.append(1 - np.mean(found))
  assert robust == sorted(robust, reverse=True)
  assert robust[0] == 1 and robust[-1] < 1


@every_attack
def test_compiling_and_rolling_change_nothing(name):
  arguments = *_examples(0), _EPS
  for found, expected in zip(_call(name, unroll=True)(*arguments),
                             _jitted(name)(*arguments), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-9)


@every_attack
def test_other_examples_and_the_batch_size_do_not_matter(name):
  keys, x, y, targets = _examples(0)
  expected = _jitted(name)(keys, x, y, targets, _EPS)
  # Three of them, filled up with copies of another image, in another order.
  chosen = np.array([5, 2, 7, 3, 3, 3, 3, 3])
  found = _jitted(name)(keys[chosen], x[chosen], y[chosen], targets[chosen],
                        _EPS)
  few = jax.jit(_call(name))(keys[5:6], x[5:6], y[5:6], targets[5:6], _EPS)
  np.testing.assert_allclose(found.images, expected.images[chosen], atol=1e-9)
  np.testing.assert_allclose(few.images, expected.images[5:6], atol=1e-9)


@every_attack
def test_each_example_has_its_radius(name):
  keys, x, y, targets = _examples(0)
  radii = jnp.where(jnp.arange(_BATCH) % 2 == 0, _EPS, _EPS / 2)
  found = _jitted(name)(keys, x, y, targets, radii).images
  for parity, eps in ((0, _EPS), (1, _EPS / 2)):
    expected = _jitted(name)(keys, x, y, targets, eps).images
    np.testing.assert_allclose(found[parity::2], expected[parity::2],
                               atol=1e-9)


def _mapped(how, call):
  if how == 'vmap':
    return jax.jit(jax.vmap(call))
  return jax.pmap(call, devices=jax.devices()[:4])


@every_attack
@pytest.mark.parametrize('how', ['vmap', 'pmap'])
def test_mapped_over_batches(name, how):
  arguments = _examples(0)
  expected = _jitted(name)(*arguments, _EPS).images
  call = functools.partial(_call(name, '__call__'), eps=_EPS)
  split = [array.reshape(4, 2, *array.shape[1:]) for array in arguments]
  found = _mapped(how, call)(*split)
  np.testing.assert_allclose(found.reshape(expected.shape), expected,
                             atol=1e-9)


@every_attack
def test_sharded_over_devices(name):
  arguments = _examples(0)
  expected = _jitted(name)(*arguments, _EPS).images
  mesh = jax.make_mesh((4,), ('devices',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  spec = PartitionSpec('devices')
  # With the check of what varies over devices, as others call it.
  sharded = jax.jit(jax.shard_map(
      functools.partial(_call(name, '__call__'), eps=_EPS), mesh=mesh,
      in_specs=spec, out_specs=spec))
  np.testing.assert_allclose(sharded(*arguments), expected, atol=1e-9)


@every_attack
def test_explicit_mesh(name):
  keys, *images_and_classes = _examples(0)
  expected = _jitted(name)(keys, *images_and_classes, _EPS).images
  mesh = jax.make_mesh((4,), ('devices',),
                       axis_types=(jax.sharding.AxisType.Explicit,))
  spec = PartitionSpec('devices')
  call = functools.partial(_call(name, '__call__'), eps=_EPS)
  sharding = jax.NamedSharding(mesh, spec)
  with jax.set_mesh(mesh):
    sharded = jax.device_put(images_and_classes, sharding)
    found = jax.jit(jax.sharding.auto_axes(
        lambda *arrays: call(keys, *arrays), out_sharding=spec))(*sharded)
    assert found.sharding.is_equivalent_to(sharding, found.ndim)
  np.testing.assert_allclose(found, expected, atol=1e-9)


@every_attack
def test_no_images(name):
  arguments = [array[:0] for array in _examples(0)]
  with pytest.raises(ValueError, match='Expected x to have images'):
    _call(name)(*arguments, _EPS)


@every_attack
def test_logits_may_be_wider_than_images(name):
  keys, x, y, targets = _examples(0)
  found = _jitted(name)(keys, x.astype(jnp.float32), y, targets,
                        jnp.float32(_EPS))
  assert found.images.dtype == found.norm.dtype == jnp.float32
  assert found.logits.dtype == jnp.float64


@every_attack
def test_gradients_do_not_leak(name):
  keys, x, y, targets = _examples(0)
  def total(x, eps, shift):
    return jnp.sum(_call(name, '__call__', shift)(keys, x, y, targets, eps))
  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(x, _EPS, 0.)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


# What is told besides.


@pytest.mark.parametrize('name', ['pgd', 'square'])
def test_record(name):
  keys, x, y, _ = _examples(0)
  attack = _ATTACKS[name]
  result, history = jax.jit(lambda: attack.record(_net, keys, x, y))()
  for found, expected in zip(result, _jitted(name)(keys, x, y, None, _EPS),
                             strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-9)
  steps = attack.num_attempts * attack.num_steps
  assert history.losses.shape == (_BATCH, steps)
  problem, _ = attack.check(_net, keys, x, y)
  if name == 'pgd':  # Of the iterates of both attempts, by hand.
    problem = attack.nth_attempt(problem, _net(x), 1)
    state, step = attack.init(problem), jax.jit(
        lambda state: attack.step(_net, problem, state))
    for i in range(attack.num_steps):
      expected = losses.cross_entropy(_net(state.x_adv), y)
      np.testing.assert_allclose(history.losses[:, attack.num_steps + i],
                                 expected, atol=1e-9)
      state = step(state)
    assert history.queries[0] == 0  # It is wrong as it is.
    assert set(np.unique(history.queries[1:])) <= {4, 8}
  else:  # A search ends with the first that fools.
    margins = np.asarray(history.losses)
    ends = np.where((margins >= 0).any(1), (margins >= 0).argmax(1) + 1, steps)
    np.testing.assert_array_equal(history.queries, ends)
    assert history.queries[0] == 1
  compiled = attacks.jit(attack, lambda _, x: _net(x))
  same, told = compiled.record((), jax.random.key(0), x, y)
  assert told.losses.shape == history.losses.shape
  np.testing.assert_allclose(
      same.images, compiled((), jax.random.key(0), x, y), atol=1e-12)
  assert len(repr(told)) < 200 and '[' not in repr(told)


def test_accuracies_and_a_short_text():
  keys, x, y, targets = _examples(0, wrong=2)
  result = _jitted('apgd')(keys, x, y, targets, 0.05)
  correct, success = (np.asarray(each) for each in (result.correct,
                                                    result.success))
  np.testing.assert_array_equal(correct, np.arange(_BATCH) >= 2)
  robust = (correct & ~success).mean()
  assert result.clean_accuracy == 0.75 and result.robust_accuracy == robust
  assert result.success_rate == 1 - robust / 0.75
  assert result.success_rate == pytest.approx(success[2:].mean())
  text = repr(result)
  assert '8 images 3x2x2' in text and '75.00% clean' in text
  assert f'success rate {result.success_rate:.2%}' in text
  assert len(text) < 250 and '[' not in text
  seen = []
  jax.eval_shape(lambda: seen.append(repr(
      _call('pgd')(keys, x, y, targets, _EPS))))
  assert seen[0].endswith('traced>')
  invalid = np.arange(_BATCH) == 3
  text = repr(result._replace(
      predictions=np.where(invalid, -1, result.predictions),
      norm=np.where(invalid, np.nan, result.norm)))
  assert ', 1 of them invalid: ' in text and 'nan' not in text
  broken = result._replace(predictions=np.full(_BATCH, -1))
  assert np.isnan(broken.success_rate) and np.isnan(broken.robust_accuracy)
