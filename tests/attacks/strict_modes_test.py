"""Every attack under each of JAX's strict modes, with the numbers as without.

What a mode checks while tracing is only traced: that takes no compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import parallel

_W = np.linspace(-1, 1, 4 * 4, dtype=np.float32).reshape(4, 4) ** 3
_X = np.linspace(.2, .8, 2 * 4, dtype=np.float32).reshape(2, 2, 2, 1)
_Y = (_X.reshape(2, -1) @ _W).argmax(-1)
_EPS = .1

_TRACING = {
    'dtype promotion': lambda: jax.numpy_dtype_promotion('strict'),
    'rank promotion': lambda: jax.numpy_rank_promotion('raise'),
    'tracer leaks': jax.checking_leaks,
    'legacy keys': lambda: jax.legacy_prng_key('error'),
}
_RUNNING = {
    'debug nans': lambda: jax.debug_nans(True),
    'debug infs': lambda: jax.debug_infs(True),
    'transfer guard': lambda: jax.transfer_guard('disallow'),
    'key reuse': lambda: jax.debug_key_reuse(True),
}
_MODES = _TRACING | _RUNNING

_ATTACKS = {
    'pgd': attacks.PGD(_EPS, _EPS, 2),
    'cw, not clipped': attacks.PGD(_EPS, _EPS, 2, loss=losses.carlini_wagner,
                                   start='normal', clip_steps=False),
    'pgd l1': attacks.PGD(_EPS, _EPS, 2, norm='L1'),
    'utae': attacks.UTAE(_EPS, _EPS, 2),
    'apgd-t': attacks.APGD(_EPS, num_iterations=2, num_targets=2),
    'apgd-t malt': attacks.APGD(_EPS, num_iterations=2, num_targets=2,
                                target_order='malt'),
    'apgd l2 dlr': attacks.APGD(_EPS, 'L2', losses.dlr, 2, keep='first'),
    'apgd l1': attacks.APGD(_EPS, 'L1', num_iterations=2, large_radii=True),
    'eot': attacks.APGD(_EPS, num_iterations=1, eot=2),
    'fab': attacks.FAB(_EPS, num_iterations=2),
    'fab-t l2': attacks.FAB(_EPS, 'L2', num_iterations=2, num_targets=2),
    'fab-t l1': attacks.FAB(_EPS, 'L1', num_iterations=2, num_targets=2),
    'ddn': attacks.DDN(num_steps=2),
    'fmn l0': attacks.FMN(norm='L0', num_steps=2),
    'fmn l1': attacks.FMN(norm='L1', num_steps=2),
    'square': attacks.Square(_EPS, num_queries=2),
    'square l2': attacks.Square(_EPS, 'L2', num_queries=2),
    'square l1': attacks.Square(_EPS, 'L1', num_queries=2),
}
# One of each kind, and of each norm; -m slow takes the others.
_QUICK = ('pgd', 'utae', 'apgd-t malt', 'apgd l1', 'fab-t l2', 'ddn', 'fmn l0',
          'square l1')
every_attack = pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
    for name in _ATTACKS])


def _apply(w, x, key=None):
  del key
  return x.reshape(len(x), -1) @ w


def _calls(name):
  """Returns the attack called, and compiled, as (w, key, x, y) -> images."""
  attack, compiled = _ATTACKS[name], attacks.jit(_ATTACKS[name], _apply)
  def called(w, key, x, y):
    model = functools.partial(_apply, w)
    return attack.run(model, key, x, y).images
  return called, compiled


@pytest.fixture(scope='module')
def arrays():
  return jax.tree.map(jnp.asarray, (_W, jax.random.key(0), _X, _Y))


@pytest.fixture(scope='module')
def expected(arrays):
  w, key, x, y = arrays
  return functools.cache(lambda name: np.asarray(_calls(name)[1](
      w, key, x, _apply(w, x) if name == 'utae' else y)))


@every_attack
@pytest.mark.parametrize('mode', _MODES)
def test_every_attack(mode, name, arrays, expected):
  w, key, x, y = arrays
  if name == 'utae':
    y = _apply(w, x)
  called, compiled = _calls(name)
  with _MODES[mode]():
    if mode in _TRACING:
      jax.eval_shape(called, w, key, x, y)
      jax.eval_shape(compiled, w, key, x, y)
      return
    # NumPy's arrays are placed by the attack, a model's by its owner.
    found = compiled(w, key, _X, y if name == 'utae' else _Y)
  np.testing.assert_allclose(found, expected(name), atol=2e-6)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@every_attack
def test_logits_of_half_precision(name, dtype, arrays):
  """Where promotion is strict they are no less than anywhere else."""
  w, key, x, y = arrays
  def apply_fn(w, x, key=None):
    return _apply(w, x, key).astype(dtype)
  if name == 'utae':
    y = apply_fn(w, x)
  with jax.numpy_dtype_promotion('strict'):
    found, history = jax.eval_shape(
        attacks.jit(_ATTACKS[name], apply_fn).record, w, key, x, y)
  assert found.images.dtype == history.losses.dtype == jnp.float32


@pytest.mark.parametrize('mode', _MODES)
@pytest.mark.parametrize('name', ['fab', *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('apgd-t', 'eot', 'square'))])
def test_without_jit(mode, name, arrays, expected):
  w, key, _, _ = arrays
  called, _ = _calls(name)
  with _MODES[mode]():
    found = called(w, key, _X, _Y)
  np.testing.assert_allclose(found, expected(name), atol=2e-6)


@pytest.mark.parametrize('mode', _MODES)
def test_autoattack(mode, arrays):
  w, key, _, _ = arrays
  autoattack = attacks.AutoAttack(
      _EPS, version='custom', attacks=tuple(
          (name, _ATTACKS[name]) for name in ('apgd-t', 'fab', 'square')))
  with _MODES[mode]():
    result = autoattack(jax.tree_util.Partial(_apply, w), key, _X, _Y,
                        batch_size=2, progress=False,
                        parallel=parallel.create('jit'))
  assert result.correct.all() and len(result.flags) == 3


@pytest.mark.parametrize('mode', ['transfer guard', 'key reuse',
                                  'dtype promotion'])
def test_what_drives_attacks_from_outside(mode, arrays):
  w, key, _, _ = arrays
  dtype = 'bfloat16' if mode == 'dtype promotion' else 'float32'
  def apply_fn(w, x):
    return _apply(w, x).astype(dtype)
  def noisy(w, x, key):
    noise = jax.random.normal(key, x.shape, x.dtype)
    return apply_fn(w, x + 0.1 * noise)
  with _MODES[mode]():
    found = attacks.Randomised(
        _EPS, attacks=('apgd-ce', 'square'), eot=2, num_iterations=1,
        num_queries=1, num_draws=2)(
            jax.tree_util.Partial(noisy, w), key, _X, _Y, batch_size=2,
            progress=False, parallel=parallel.create('jit'))
    diagnosis = attacks.diagnose(
        jax.tree_util.Partial(apply_fn, w), key, _X, _Y, _EPS, num_queries=1,
        num_draws=1, batch_size=2)
  assert found.correct.shape == (2, 2) and diagnosis.num_images == 2


def test_guard_holds_for_the_model(arrays):
  """What an attack places itself hides nothing that a model transfers."""
  w, key, x, y = arrays
  with jax.transfer_guard('disallow'), pytest.raises(Exception,
                                                     match='Disallowed'):
    _ATTACKS['pgd'](lambda x: _apply(w, x) * 2, key, x, y)
