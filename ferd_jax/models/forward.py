"""Forward passes of the networks: evaluation, with moments, and training.

`variables` is `{'params': ..., 'batch_stats': ...}`. Models are Linen modules,
static and hashable: those of `ferd_jax.models`, or any other that maps images
to logits. Only a `StagedModel` has stages to begin after or stop at.

A module is told the mode by the argument that its `__call__` has for it:
`train` or `training`, or `deterministic` or `use_running_average`, which are
the opposite. One that has none of them computes the same in either.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import inspect
from typing import Any
from typing import NamedTuple

from flax import errors
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from ferd_jax.models import layers
from ferd_jax.models import staged

Variables = dict[str, Any]

# Names of the argument for the mode, with the value in training mode.
_MODES = {'train': True, 'training': True, 'deterministic': False,
          'use_running_average': False}


def mode_arguments(model: nn.Module, train: bool) -> dict[str, Any]:
  """Returns the arguments of a module's `__call__` that say the mode.

  Args:
    model: any Linen module.
    train: whether it is training mode.
  """
  parameters = inspect.signature(type(model).__call__).parameters
  return {name: value == train for name, value in _MODES.items()
          if name in parameters}


def stages(model: nn.Module) -> tuple[str, ...]:
  """Returns the names of a model's stages in order; () if it has none."""
  return model.stages if isinstance(model, staged.StagedModel) else ()


def default_tap(model: nn.Module) -> str | None:
  """Returns `StagedModel.default_tap`; None for a model without stages."""
  return model.default_tap if isinstance(model, staged.StagedModel) else None


def reports_moments(model: nn.Module, variables: Variables,
                    image_shape: Sequence[int]) -> bool:
  """Returns whether `logits_and_moments` has those of all BatchNorm layers.

  So it is for `layers.BatchNorm`; Flax's own layer does not report them. Where
  there are no `batch_stats`, there is nothing to report, and it is False.

  Args:
    model: any Linen module.
    variables: of the model, or their shapes.
    image_shape: shape of one image, (H, W, C).
  """
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  _, moments = jax.eval_shape(
      lambda v, x: logits_and_moments(model, v, x), variables, image)
  layers, reporting = (
      {path[:-1] for path in traverse_util.flatten_dict(tree)}
      for tree in (variables.get('batch_stats', {}), moments))
  return bool(layers) and layers <= reporting


def synchronises(model: nn.Module, variables: Variables) -> bool:
  """Returns whether training does not depend on the number of devices.

  It does where BatchNorm takes the statistics of each device's part of the
  batch: where there are `batch_stats`, and the model has no field `axis_name`
  for `train_logits` to set.
  """
  return not variables.get('batch_stats') or _has_axis_name(model)


def follows_precision(model: nn.Module, variables: Variables,
                      image_shape: Sequence[int], dtype: jnp.dtype) -> bool:
  """Returns whether a model computes in a type, or parts of it.

  It does where it has a field `dtype`, as Flax's layers have, and gives it to
  its layers.

  Args:
    model: any Linen module.
    variables: of the model, or their shapes.
    image_shape: shape of one image, (H, W, C).
    dtype: other than float32.
  """
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  found = jax.make_jaxpr(
      lambda v, x: logits(in_precision(model, dtype), v, x))(variables, image)
  # As jaxprs write the type of an array, such as bf16[8,32,32,3].
  return jax.typeof(jnp.zeros([], dtype)).str_short(True)[:-1] in str(found)


def in_precision(model: nn.Module, dtype: jnp.dtype | None) -> nn.Module:
  """Returns the model computing in a type; its variables are the same.

  Args:
    model: any Linen module; one without a field `dtype` stays what it is.
    dtype: None for what the model itself says.
  """
  if dtype is None or not _has(model, 'dtype'):
    return model
  return model.clone(dtype=dtype)


def logits(model: nn.Module, variables: Variables, x: jax.Array, *,
           start: str | None = None, stop: str | None = None) -> jax.Array:
  """Returns logits `[B, C]`, BatchNorm on running statistics.

  Logits are at least float32, whatever the model computes in.

  Args:
    model: any Linen module.
    variables: of the model.
    x: images `[B, H, W, C]`, or the output of stage `start`.
    start: stage after which to begin.
    stop: stage whose output is returned instead of the logits.

  Raises:
    ValueError: if the model has no stages, and one is named.
  """
  out: Any = model.apply(variables, x, **_evaluation(model, start, stop))
  return out if stop else _wide(out)


def logits_fn(model: nn.Module,
              variables: Variables) -> Callable[[jax.Array], jax.Array]:
  """Returns the evaluation-mode function images -> logits, for attacks."""
  return lambda x: logits(model, variables, x)


def logits_and_moments(
    model: nn.Module, variables: Variables, x: jax.Array, *,
    start: str | None = None,
    stop: str | None = None) -> tuple[jax.Array, Variables]:
  """Returns `logits(...)` and its BatchNorm layers' input moments.

  The moments are `{'mean': [C], 'var': [C]}` at the paths of `batch_stats`,
  taken over this batch, biased; the layers still use running statistics. Only
  `layers.BatchNorm` reports them; see `reports_moments`.
  """
  out, updates = model.apply(variables, x, mutable=['moments'],
                             **_evaluation(model, start, stop))
  return out if stop else _wide(out), updates.get('moments', {})


class Observed(NamedTuple):
  """What a pass shows of a network; what nobody reads is not computed.

  Attributes:
    logits: `[B, K]`, BatchNorm on running statistics.
    moments: of the inputs of BatchNorm layers, see `logits_and_moments`.
    norm_inputs: spatial means `[B, C]` of the inputs of the BatchNorm layers,
      in the order in which they are called.
    stage_outputs: spatial means `[B, C]` of the outputs of the stages, in
      order; none of a model without stages.
    features: `[B, F]`, the input of the last dense layer; None without one.
    classifier: the path of that layer in `params`.
  """
  logits: jax.Array
  moments: Variables
  norm_inputs: list[jax.Array]
  stage_outputs: list[jax.Array]
  features: jax.Array | None
  classifier: tuple[str, ...]


def observed(model: nn.Module, variables: Variables, x: jax.Array) -> Observed:
  """Returns `logits_and_moments(...)`, and what layers inside see.

  Args:
    model: any Linen module, of this package's or of Flax's layers.
    variables: of the model.
    x: images `[B, H, W, C]`.
  """
  norms, stage_outputs, dense = [], [], [(None, ())]

  def spatial_mean(x):
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)),
                    dtype=jnp.promote_types(x.dtype, jnp.float32))

  def look(call, args, kwargs, context):
    module, method = context.module, context.method_name
    if method == '__call__' and args:
      if isinstance(module, layers.BatchNorm | nn.BatchNorm):
        norms.append(spatial_mean(args[0]))
      elif isinstance(module, layers.Dense | nn.Dense):
        dense.append((args[0], module.path))
    out = call(*args, **kwargs)
    if method == 'run_stage':
      stage_outputs.append(spatial_mean(out))
    return out

  with nn.intercept_methods(look):
    out, moments = logits_and_moments(model, variables, x)
  return Observed(out, moments, norms, stage_outputs, *dense[-1])


def train_logits(model: nn.Module, variables: Variables, x: jax.Array, *,
                 axis_name: str | None = None) -> tuple[jax.Array, Variables]:
  """Returns logits `[B, C]` on batch statistics, and the updated statistics.

  Args:
    model: any Linen module.
    variables: of the model.
    x: images `[B, H, W, C]`.
    axis_name: mapped axis over which batch statistics are synchronised, by a
      model that has the field `axis_name`; see `synchronises`.

  Raises:
    ValueError: if the model draws random numbers, as Dropout does.
  """
  if _has_axis_name(model):
    model = model.clone(axis_name=axis_name)
  try:
    out, updates = model.apply(variables, x, mutable=['batch_stats'],
                               **mode_arguments(model, train=True))
  except errors.InvalidRngError as error:
    raise ValueError(
        f'Expected model={type(model).__name__} to draw no random numbers in '
        'training mode, as Dropout does; build it without.') from error
  return _wide(out), updates.get('batch_stats', {})


def _has_axis_name(model):
  return _has(model, 'axis_name')


def _has(model, name):
  return any(field.name == name for field in dataclasses.fields(model))


def _wide(logits):
  """Returns logits at least in float32: losses and margins are of these."""
  return jnp.asarray(logits).astype(
      jnp.promote_types(jnp.result_type(logits), jnp.float32))


def _evaluation(model, start, stop):
  """Returns the arguments of a pass in evaluation mode, from stage to stage."""
  arguments = mode_arguments(model, train=False)
  if isinstance(model, staged.StagedModel):
    return arguments | {'start': start, 'stop': stop}
  if start is not None or stop is not None:
    raise ValueError(
        f'Expected start={start!r} and stop={stop!r} to be None, as '
        f'{type(model).__name__} has no stages; derive it from '
        'models.StagedModel to have them.')
  return arguments
