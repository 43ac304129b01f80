"""Tests of ferd_jax.attacks.hoisting."""

import functools

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import hoisting

_NORMAL = np.random.default_rng(0).standard_normal


def _convolved(x, kernel, numbers, **settings):
  return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers,
                                  **settings)


def _input_gradient(function):
  return jax.grad(lambda variables, x: jnp.sum(function(variables, x) ** 2),
                  argnums=1)


def _check(function, variables, x, count):
  """Checks the results with `count` variables turned around."""
  variables, x = jax.tree.map(jnp.asarray, (variables, x))
  turned = jax.jit(functools.partial(hoisting.turned, function))(variables, x)
  assert len(turned) == count
  remaining = functools.partial(hoisting.remaining, function)
  chex.assert_trees_all_equal_shapes_and_dtypes(
      jax.eval_shape(function, variables, x),
      jax.eval_shape(remaining, variables, turned, x))
  chex.assert_trees_all_close(
      jax.jit(remaining)(variables, turned, x),
      jax.jit(function)(variables, x), rtol=1e-5, atol=1e-5)
  return turned


@pytest.mark.parametrize('shape, kernel, numbers, settings', [
    ((2, 6, 5, 4), (3, 3, 4, 6), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(1, 1), padding='SAME')),
    ((2, 6, 5, 4), (3, 2, 4, 6), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(2, 1), padding=((1, 0), (0, 2)))),
    ((2, 6, 5, 4), (1, 1, 4, 6), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(2, 2), padding='VALID')),
    ((2, 4, 6, 5), (6, 4, 3, 3), ('NCHW', 'OIHW', 'NCHW'),
     dict(window_strides=(1, 1), padding='SAME')),
    ((2, 6, 5, 4), (3, 3, 2, 6), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(1, 1), padding='SAME', feature_group_count=2)),
    ((2, 6, 5, 4), (3, 3, 1, 4), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(1, 1), padding='SAME', feature_group_count=4)),
    ((2, 7, 7, 4), (3, 3, 4, 6), ('NHWC', 'HWIO', 'NHWC'),
     dict(window_strides=(1, 1), padding='VALID', rhs_dilation=(2, 1))),
    ((2, 9, 4), (3, 4, 6), ('NHC', 'HIO', 'NHC'),
     dict(window_strides=(2,), padding='SAME')),
    ((2, 4, 4, 4, 2), (3, 3, 3, 2, 3), ('NHWDC', 'HWDIO', 'NHWDC'),
     dict(window_strides=(1, 1, 1), padding='SAME')),
])
def test_results_are_those_of_the_function(shape, kernel, numbers, settings):
  function = functools.partial(_convolved, numbers=numbers, **settings)
  gradient = _input_gradient(
      lambda variables, x: function(x, variables['kernel']))
  turned = _check(gradient, {'kernel': _NORMAL(kernel, np.float32)},
                  _NORMAL(shape, np.float32), 1 + (numbers[1] == 'OIHW'))
  assert all(array.size == np.prod(kernel) for array in turned)


def _two_layers(variables, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  for layer in ('a', 'b'):
    x = _convolved(x, variables[layer], numbers, window_strides=(1, 1),
                   padding='SAME')
    x = jax.nn.relu(x + variables['bias'][None, None, None])
  return x


_VARIABLES = {'a': _NORMAL((3, 3, 4, 4), np.float32),
              'b': _NORMAL((3, 3, 4, 4), np.float32),
              'bias': _NORMAL(4, np.float32)}


def test_the_result_does_not_depend_on_the_batch_size():
  turned = [_check(_input_gradient(_two_layers), _VARIABLES,
                   _NORMAL((size, 5, 5, 4), np.float32), 2)
            for size in (1, 2, 7)]
  chex.assert_trees_all_equal(*turned)


def test_no_step_turns_a_kernel_around():
  gradient = _input_gradient(_two_layers)
  x = np.ones((2, 5, 5, 4), np.float32)
  turned = hoisting.turned(gradient, _VARIABLES, x)
  def turns(function, *args):
    text = str(jax.make_jaxpr(function)(*args))
    return text.count(' = rev[') + text.count(' = transpose[')
  assert turns(gradient, _VARIABLES, x) > 0
  assert turns(functools.partial(hoisting.remaining, gradient), _VARIABLES,
               turned, x) == 0


def test_nothing_to_turn_around():
  def forward(variables, x):
    return jnp.tanh(x @ variables['w'])
  variables = {'w': _NORMAL((3, 2), np.float32)}
  x = _NORMAL((4, 3), np.float32)
  _check(forward, variables, x, 0)
  _check(_two_layers, _VARIABLES, np.ones((1, 4, 4, 4), np.float32), 0)


def test_results_of_all_kinds():
  noise = _NORMAL(3, np.float32)  # a constant of the function
  def function(variables, state):
    def body(i, carry):
      return carry + i * variables['w'].sum()
    return {'turned': variables['w'].T, 'same': variables['w'], 'one': 1.,
            'loop': lax.fori_loop(0, 3, body, state['x'] + noise),
            'noise': jax.random.normal(state['key'], (2,)),
            'jitted': jax.jit(lambda w: w.T @ state['x'])(variables['w'])}
  _check(function, {'w': _NORMAL((3, 2), np.float32)},
         {'x': _NORMAL(3, np.float32), 'key': jax.random.key(1)}, 1)
