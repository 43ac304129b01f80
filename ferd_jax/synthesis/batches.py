"""What several kinds of synthesis do with their batch, and what they check."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax import models
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.synthesis import base

KEEP = ('best', 'last')


def normal(key: jax.Array, indices: jax.Array,
           shape: Sequence[int]) -> jax.Array:
  """Returns standard normal numbers `[B, *shape]`, each example's its own.

  Args:
    key: one typed PRNG key, the same on every shard.
    indices: int `[B]`, positions of this shard's examples in the global batch.
    shape: of an example.
  """
  keys = collectives.example_keys(key, indices)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def balanced_labels(key: jax.Array, probs: jax.Array, indices: jax.Array,
                    batch_size: int) -> jax.Array:
  """Returns labels whose counts are as near to their expectation as can be.

  Classes come in turns, 0 to K - 1 from a random one on, if they are equally
  probable; else the quantiles that belong to those turns are looked up in the
  distribution.

  Args:
    key: typed PRNG key.
    probs: `[K]`, class probabilities.
    indices: int `[B]`, positions in the global batch.
    batch_size: of the global batch.

  Returns:
    int32 `[B]`.
  """
  classes = len(probs)
  first = jax.random.randint(key, (), 0, classes)
  turn, place = indices // classes, (indices + first) % classes
  turns = -(-batch_size // classes)
  quantiles = (place + (turn + 0.5) / turns) / classes
  labels = jnp.searchsorted(jnp.cumsum(probs), quantiles.astype(probs.dtype),
                            side='right')
  return jnp.minimum(labels, classes - 1).astype(jnp.int32)


def kept(keep: str, loss: jax.Array, images: jax.Array, best_loss: jax.Array,
         best_images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns whether images are the ones to keep, and those, and their loss.

  Args:
    keep: 'best' for those of the least loss, the first of equals; 'last'.
    loss: scalar, of `images`.
    images: `[B, H, W, C]`.
    best_loss: scalar, of those kept so far.
    best_images: `[B, H, W, C]`, those.
  """
  better = (loss < best_loss) | (keep == 'last')
  return (better, jnp.where(better, images, best_images),
          jnp.where(better, loss, best_loss))


def check_shares(student_steps: int, rounds_per_epoch: int) -> None:
  """Raises SettingError unless rounds have the same number of student steps.

  Args:
    student_steps: of an epoch.
    rounds_per_epoch: that share them.
  """
  if student_steps % rounds_per_epoch:
    raise validate.SettingError(
        'rounds_per_epoch', rounds_per_epoch,
        f'to divide distill.steps={student_steps}.')


def rounds(student_steps: int, per_round: int, generator_steps: int,
           **options: bool) -> base.Rounds:
  """Returns rounds that share an epoch's student steps.

  Args:
    student_steps: of an epoch.
    per_round: student steps of a round; all if an epoch has no more.
    generator_steps: of a round.
    **options: of `base.Rounds`.

  Raises:
    SettingError: if they do not share them evenly.
  """
  validate.count(student_steps_per_round=per_round)
  per_round = min(per_round, student_steps)
  if student_steps % per_round:
    raise validate.SettingError(
        'student_steps_per_round', per_round,
        f'to divide distill.steps={student_steps}.')
  return base.Rounds(generator_steps, per_round,
                     per_epoch=student_steps // per_round, **options)


def check_side(image_shape: Sequence[int]) -> None:
  """Raises ValueError for images that the generator does not make."""
  side, width, _ = image_shape
  if side != width or side % 4:
    raise ValueError(
        f'Expected square images, their side divisible by 4, not '
        f'{tuple(image_shape)}: the generator makes no others.')


def shapes(model: nn.Module, image_shape: Sequence[int]) -> forward.Variables:
  """Returns the shapes of a classifier's variables."""
  return jax.eval_shape(
      lambda key: models.init_variables(model, key, image_shape),
      jax.random.key(0))


def observed_shapes(model: nn.Module,
                    image_shape: Sequence[int]) -> forward.Observed:
  """Returns what `forward.observed` sees of one image, arrays as shapes."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  paths = []

  def run(variables, image):
    seen = forward.observed(model, variables, image)
    paths.append(seen.classifier)  # It is no array.
    return seen._replace(classifier=())
  seen = jax.eval_shape(run, shapes(model, image_shape), image)
  return seen._replace(classifier=paths[-1])


def no_moments(teacher: nn.Module,
               image_shape: Sequence[int]) -> forward.Variables:
  """Returns zeros in place of the moments of a teacher's BatchNorm layers."""
  moments = observed_shapes(teacher, image_shape).moments
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), moments)


def check_moments(w_bn: float, teacher: nn.Module,
                  image_shape: Sequence[int]) -> None:
  """Raises SettingError if L_bn counts and the teacher reports no moments."""
  if w_bn and not forward.reports_moments(
      teacher, shapes(teacher, image_shape), image_shape):
    raise validate.SettingError(
        'w_bn', w_bn, 'to be 0 for a teacher without BatchNorm layers that '
        'report the moments of their input, as those of ferd_jax.models do.')
