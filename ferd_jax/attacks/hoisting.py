"""Convolution kernels turned around once instead of in every step.

The gradient of a convolution by its input is a convolution by the kernel with
its sides reversed and its channels exchanged. On CPU XLA copies the kernel for
both whenever it is called: a third of a gradient of a ResNet-18 on eight
images, two thirds on one. A loop inside the compiled function would do it once,
but is slow otherwise (`loops.repeat`).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

# They only move values, to shapes that no batch size enters.
_MOVES = frozenset((primitives.reshape_p, primitives.rev_p,
                    primitives.transpose_p))


def turned(function: Callable, variables: Any, *args: Any) -> list[jax.Array]:
  """Returns the variables as `function` turns them around, for `remaining`.

  Args:
    function: (variables, *args) -> pytree of arrays, pure.
    variables: pytree of arrays.
    *args: pytrees of arrays, of which only shapes and types matter. The
      result is the same for every batch size.
  """
  jaxpr, _ = _trace(function, variables, args)
  leaves = jax.tree.leaves(variables)
  first, _, passed_on = _split(jaxpr.jaxpr, len(leaves))
  found = dict(zip(jaxpr.jaxpr.invars, leaves, strict=False))
  for equation in first:
    _evaluate(jaxpr, equation, found)
  return [found[variable] for variable in passed_on]


def remaining(function: Callable, variables: Any, turned: list[jax.Array],
              *args: Any) -> Any:
  """Returns `function(variables, *args)`.

  Args:
    function: as for `turned`.
    variables: of which `turned` was made.
    turned: the function's result for them.
    *args: as for `function`.
  """
  jaxpr, structure = _trace(function, variables, args)
  leaves = jax.tree.leaves(variables)
  _, rest, passed_on = _split(jaxpr.jaxpr, len(leaves))
  found = _inputs(jaxpr, [*leaves, *jax.tree.leaves(args)])
  found |= zip(passed_on, turned, strict=True)
  for equation in rest:
    _evaluate(jaxpr, equation, found)
  return jax.tree.unflatten(structure, _outputs(jaxpr, found))


def _trace(function, variables, args):
  """Returns the function's jaxpr with all moves, and its result's structure."""
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(variables, *args)
  def transposed(*values):
    found = _inputs(jaxpr, values)
    for equation in jaxpr.jaxpr.eqns:
      if equation.primitive is primitives.conv_general_dilated_p:
        found[equation.outvars[0]] = _convolve(
            *(found[atom] for atom in equation.invars), equation)
      else:
        _evaluate(jaxpr, equation, found)
    return _outputs(jaxpr, found)
  return (jax.make_jaxpr(transposed)(*jax.tree.leaves((variables, args))),
          jax.tree.structure(shapes))


def _convolve(x, kernel, equation):
  """Convolves by the kernel transposed to [..., C_in, C_out]."""
  numbers = equation.params['dimension_numbers']
  outputs, inputs, *sides = numbers.rhs_spec
  last = kernel.ndim - 1
  return equation.primitive.bind(
      x, lax.transpose(kernel, (*sides, inputs, outputs)),
      **equation.params | {'dimension_numbers': numbers._replace(
          rhs_spec=(last, last - 1, *range(last - 1)))})


def _split(jaxpr, num_leaves):
  """Returns the equations that move variables, the others, what these need."""
  known = set(jaxpr.invars[:num_leaves])
  first, rest = [], []
  for equation in jaxpr.eqns:
    moves = equation.primitive in _MOVES and known.issuperset(equation.invars)
    (first if moves else rest).append(equation)
    if moves:
      known |= set(equation.outvars)
  needed = _variables(jaxpr.outvars).union(
      *(_variables(equation.invars) for equation in rest))
  return first, rest, [output for equation in first
                       for output in equation.outvars if output in needed]


def _evaluate(jaxpr, equation, found):
  """Adds the equation's results to `found`, values by variable."""
  inputs = sorted(_variables(equation.invars), key=id)
  alone = jaxpr.jaxpr.replace(constvars=[], invars=inputs, eqns=[equation],
                              outvars=equation.outvars)
  results = jax.core.eval_jaxpr(alone, [], *(found[atom] for atom in inputs))
  found |= zip(equation.outvars, results, strict=True)


def _variables(atoms):
  return {atom for atom in atoms if isinstance(atom, core.Var)}


def _inputs(jaxpr, values):
  """Returns the values of the variables that the equations start from."""
  return dict(zip([*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars],
                  [*jaxpr.consts, *values], strict=True))


def _outputs(jaxpr, found):
  return [found[atom] if isinstance(atom, core.Var) else atom.val
          for atom in jaxpr.jaxpr.outvars]
