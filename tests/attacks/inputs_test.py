"""What callers pass: converted alike everywhere, or refused in one line."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax.attacks import inputs
from ferd_jax.core import parallel

_W = np.linspace(-1, 1, 4 * 3, dtype=np.float32).reshape(4, 3) ** 3
_X = np.linspace(.2, .8, 2 * 4, dtype=np.float32).reshape(2, 2, 2, 1)
_Y = np.array([0, 2])
_KEY = jax.random.key(0)


class _Foreign:
  """An array of another framework, which NumPy reads."""

  def __init__(self, array):
    self._array = array

  def __array__(self, dtype=None, copy=None):
    del dtype, copy
    return self._array


class _Elsewhere(_Foreign):
  """One that lies on another device."""

  def __array__(self, dtype=None, copy=None):
    raise TypeError("can't convert cuda:0 tensor to numpy.\nUse .cpu() first.")


def _apply(w, x):
  return x.reshape(len(x), -1) @ w


def _calls():
  """Returns the ways to attack, each (x, y, options) -> images."""
  pgd = attacks.PGD(.1, .1, 1)
  autoattack = attacks.AutoAttack(.1, version='custom', attacks=(
      ('square', attacks.Square(.1, num_queries=1)),))
  compiled, w = attacks.jit(pgd, _apply), jnp.asarray(_W)
  return {
      'called': lambda x, y: pgd(functools.partial(_apply, w), _KEY, x, y),
      'run': lambda x, y: pgd.run(functools.partial(_apply, w), _KEY, x,
                                  y).images,
      'compiled': lambda x, y: compiled(w, _KEY, x, y),
      'autoattack': lambda x, y: autoattack(
          jax.tree_util.Partial(_apply, w), _KEY, x, y, batch_size=2,
          progress=False, parallel=parallel.create('jit')).images}


@pytest.fixture(scope='module')
def ways():
  calls = _calls()
  return {name: (call, np.asarray(call(_X, _Y)))
          for name, call in calls.items()}


@pytest.mark.parametrize('x, y', [
    (_X.tolist(), (0, 2)), (jnp.asarray(_X), [0, 2]),
    (_X.astype('>f4'), _Y.astype('>i8')), (_X.astype('>f8'), _Y.astype('i1')),
    (_Foreign(_X), _Foreign(_Y)), (_X[::-1][::-1], _Y.astype(np.uint64)),
    (np.ma.masked_array(_X), _Y.astype(ml_dtypes.int4)),
    (list(_X), (jnp.int32(0), np.int64(2))), (_X.view(np.ndarray), tuple(_Y)),
    (memoryview(_X), range(0, 3, 2))])
def test_converted_alike(x, y, ways):
  for name, (call, expected) in ways.items():
    np.testing.assert_allclose(call(x, y), expected, atol=1e-6, err_msg=name)


def test_tensors_of_pytorch(ways):
  torch = pytest.importorskip('torch')
  for name, (call, expected) in ways.items():
    np.testing.assert_allclose(
        call(torch.tensor(_X), torch.tensor(_Y)), expected, err_msg=name)
    np.testing.assert_allclose(
        call(torch.tensor(_X), (torch.tensor(0), torch.tensor(2))), expected)
    for x, y in ((torch.tensor(_X, requires_grad=True), _Y),
                 (torch.tensor(_X).bfloat16(), _Y)):
      with pytest.raises(ValueError, match='Expected x to be') as error:
        call(x, y)
      assert '\n' not in str(error.value)


def _deleted():
  array = jnp.array(_X)
  array.delete()
  return array


@pytest.mark.parametrize('x, y, words', [
    (_Elsewhere(_X), _Y, ['x', '_Elsewhere', 'cuda:0']),
    (_X, _Elsewhere(_Y), ['y', '_Elsewhere']),
    (_X, ['a', 'b'], ['y', 'list of <U1']), (_X, object(), ['y', 'object']),
    (None, _Y, ['x', 'NoneType']), ('text', _Y, ['x', 'str of <U4']),
    (_X.astype(object), _Y, ['x']), (_X, _Y.astype('M8[s]'), ['y', 'datetime']),
    (np.ma.masked_array(_X, _X > .5), _Y, ['x without masked']),
    (_X.astype(np.longdouble), _Y, ['x', 'float128']),
    ((_X * 255).astype(np.uint8), _Y, ['x', 'uint8']),
    (_X.astype(np.complex64), _Y, ['x', 'complex64']),
    (_X, _Y * 1., ['y', 'float64|float32']), (_X, _Y == 2, ['y', 'bool']),
    (_X, (0, 2, 1), ['y']), (_X, None, ['y']), (_X, [[0], [2]], ['y']),
    (_X, [[0, 2], [1]], ['y'])], ids=lambda value: type(value).__name__)
def test_refused_alike(x, y, words, ways):
  for call, _ in ways.values():
    with pytest.raises(ValueError) as error:
      call(x, y)
    message = str(error.value)
    assert message.startswith('Expected ') and '\n' not in message
    for word in words:
      assert any(each in message for each in word.split('|')), message


def test_an_array_that_was_deleted(ways):
  for call, _ in ways.values():
    with pytest.raises(ValueError, match='Expected x to be an array that is s'):
      call(_deleted(), _Y)


def test_bytes_are_told_to_be_divided(ways):
  with pytest.raises(ValueError, match=r'images of 0..255 are divided by 255'):
    ways['called'][0]((_X * 255).astype(np.uint8), _Y)


@pytest.mark.parametrize('key', [0, [0, 1], 'key', None, np.zeros(2),
                                 _Foreign(np.zeros(2, np.uint32))])
def test_keys_that_are_none(key):
  with pytest.raises(ValueError, match='Expected key to be one PRNG key'):
    attacks.PGD(.1, .1, 1)(functools.partial(_apply, _W), key, _X, _Y)


def test_all_else_that_a_call_takes():
  w = jnp.asarray(_W)
  attack, compiled = attacks.PGD(.1, .1, 1), attacks.jit(
      attacks.PGD(.1, .1, 1), _apply)
  expected = compiled(w, _KEY, _X, _Y, (1, 1), eps=.05, x_init=_X)
  for found in (
      compiled(w, _KEY, _X, _Y, [1, 1], eps=_Foreign(np.array(.05)),
               x_init=_X.astype('>f8'), indices=[0, 1]),
      attack(functools.partial(_apply, w), _KEY, _X, _Y, _Foreign(
          np.array([1, 1])), eps=[.05, .05], x_init=_X.tolist())):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_pytree_stays_one():
  tree = {'logits': [[1., 2.]], 'labels': (0, 1)}
  found = inputs.arrays('y', {'a': np.arange(2, dtype=np.int8),
                              'b': (np.ones(2), np.zeros(2))})
  assert found['a'].dtype == np.int32 and isinstance(found['b'], tuple)
  assert set(inputs.arrays('y', tree)) == {'logits', 'labels'}
  assert inputs.arrays('y', None) is None


@pytest.mark.parametrize('make', [
    lambda: attacks.preset('cw20', .1),
    lambda: attacks.APGD(.1, num_iterations=2, num_targets=2),
    lambda: attacks.FAB(.1, num_iterations=2, num_targets=2),
    *(pytest.param(make, marks=pytest.mark.slow) for make in (
        lambda: attacks.PGD(.1, .1, 2),
        lambda: attacks.APGD(.1, num_iterations=2),
        lambda: attacks.FAB(.1, num_iterations=2),
        lambda: attacks.Square(.1, num_queries=3)))])
def test_masked_class_is_never_predicted(make):
  """-inf is as a number far below all others, in every attack."""
  w = np.concatenate([_W, 9 * np.ones((4, 1), np.float32)], axis=1)
  def masked(value):
    return lambda x: _apply(w, x).at[:, 3].set(value)
  found = {value: make().run(masked(value), _KEY, _X, _Y)
           for value in (-1e9, -np.inf)}
  np.testing.assert_array_equal(found[-np.inf].images, found[-1e9].images)
  for name in ('success', 'predictions', 'norm'):
    np.testing.assert_array_equal(getattr(found[-np.inf], name),
                                  getattr(found[-1e9], name))
  assert (found[-np.inf].predictions < 3).all()
  assert (found[-np.inf].predictions >= 0).all()
  assert np.isneginf(found[-np.inf].logits[:, 3]).all()


def test_what_predicts_nothing_is_counted_by_image():
  def broken(x):  # A NaN, an infinity, nothing but masks, and a masked class.
    values = jnp.array([[0., np.nan, 0], [np.inf, 0, 0], [-np.inf] * 3,
                        [0, 1, -np.inf]])
    return _apply(jnp.asarray(_W), x) * 0 + values
  x = np.repeat(_X, 2, axis=0)
  with pytest.warns(UserWarning, match='finite for 3 of 4 images'):
    result = attacks.PGD(.1, .1, 1, start='zero').run(
        broken, _KEY, x, np.zeros(4, np.int32))
  assert result.predictions.tolist() == [-1, -1, -1, 1]
  assert result.success.tolist() == [False, False, False, True]


def test_autoattack_with_a_masked_class():
  w = np.concatenate([_W, 9 * np.ones((4, 1), np.float32)], axis=1)
  def masked(w, x):
    return _apply(w, x).at[:, 3].set(-jnp.inf)
  autoattack = attacks.AutoAttack(.01, version='custom', attacks=tuple(
      (name, attack) for name, attack in (
          ('apgd', attacks.APGD(.01, num_iterations=2, keep='first')),
          ('fab', attacks.FAB(.01, num_iterations=2, keep='first')),
          ('square', attacks.Square(.01, num_queries=2)))))
  result = autoattack(jax.tree_util.Partial(masked, w), _KEY, _X, _Y,
                      batch_size=2, progress=False,
                      parallel=parallel.create('jit'))
  assert set(result.predictions) <= {0, 1, 2}


def test_teachers_with_a_masked_class():
  """`y` are logits that give it no probability."""
  logits = np.array([[1., 0, -np.inf], [0, 2, -np.inf]], np.float32)
  model = functools.partial(_apply, jnp.asarray(_W))
  found = {value: attacks.UTAE(.1, .1, 2)(
      model, _KEY, _X, np.maximum(logits, value)) for value in (-1e9, -np.inf)}
  np.testing.assert_array_equal(found[-np.inf], found[-1e9])
