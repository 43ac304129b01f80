"""How robust and fair a model is, in one line, as RobustBench has it.

  ferd_jax.benchmark(apply_fn, 'cifar10')
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from ferd_jax import data
from ferd_jax import trained
from ferd_jax.attacks import geometry
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate
from ferd_jax.evaluation import results as evaluations
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.models import forward

Images = tuple[ArrayLike, ArrayLike]
_MODEL = 'model'  # as results name it


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """What `benchmark` found.

  Attributes:
    clean_accuracy: a fraction.
    robust_accuracy: the same under the strongest of the attacks.
    attacks: by name: `average`, `success_rate`, `worst` class, `worst10`,
      `nsd`, `per_class` and which images were right, see
      `evaluation.results.evaluate`.
    class_names: in the order of `per_class`.
    results: all that is known, JSON values.
  """
  clean_accuracy: float
  robust_accuracy: float
  attacks: Mapping[str, Mapping[str, Any]]
  class_names: Sequence[str]
  results: Mapping[str, Any]

  def __str__(self) -> str:
    return tables.text(self.results)


def benchmark(model: Any, data: str | data.Examples | Images, *,
              eps: float | None = None, norm: geometry.Norm = 'Linf',
              attacks: Sequence[str] = ('autoattack',),
              n_examples: int | None = None, split: str = 'test',
              data_dir: str | None = None, batch_size: int | None = None,
              seed: int = 0,
              state_dir: str | os.PathLike[str] | None = None,
              progress: bool = True) -> Benchmark:
  """Returns the accuracy of a model, clean and under attack, per class.

  Args:
    model: images float `[B, H, W, C]` in [0, 1] -> logits `[B, K]`, in
      evaluation mode: any function, `jax.tree_util.Partial` of its variables,
      an NNX or Equinox object, or what `load_model` returns; or a pair of a
      Linen module and its variables; or what `load_model` takes.
    data: a data set's name or the path of an .npz, `data.Examples`, or a pair
      of images `[N, H, W, C]`, uint8 or float in [0, 1], and int labels `[N]`.
    eps: radius in [0, 1] pixels; default for Linf: 8/255.
    norm: 'Linf', 'L2' or 'L1'.
    attacks: of `evaluation.robustness.ATTACKS`, besides clean images.
    n_examples: the first images only; default: all.
    split: of a named data set.
    data_dir: of TFDS.
    batch_size: images a step, over all devices; default: 256 per accelerator,
      on a CPU what fits the cache.
    seed: of the attacks.
    state_dir: keeps what is finished, which is not repeated then.
    progress: whether to show on stderr how far it is.

  Raises:
    ValueError: for a model that cannot be called so, images or settings that do
      not fit, and what the attacks refuse.
    OSError: if a file cannot be read.
    FloatingPointError: for logits that are not finite.
  """
  examples, name = _examples(data, split, data_dir)
  if n_examples is not None:
    validate.positive(n_examples=n_examples)
    if n_examples > len(examples.labels):
      raise ValueError(f'Expected n_examples={n_examples} of at most '
                       f'{len(examples.labels)} images.')
    examples = examples.first(n_examples)
  names = [robustness.CLEAN, *(attack for attack in attacks
                               if attack != robustness.CLEAN)]
  robustness.check_names(attacks=names)
  if eps is None:
    if norm != 'Linf':
      raise ValueError(f'Expected eps for norm={norm!r}.')
    eps = 8 / 255
  module, variables = _module(model)
  examples = _with_all_classes(module, variables, examples)
  parallel = parallels.create()
  if batch_size is None:
    batch_size = robustness.fitting_batch(examples.images.shape[1:],
                                          parallel)
  validate.positive(batch_size=batch_size)
  validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
  found = evaluations.evaluate(
      evaluations.Subject(
          name=type(module).__name__, models={_MODEL: (module, variables)},
          examples=examples, dataset=name,
          split=split if isinstance(data, str) else None),
      evaluations.Protocol(tuple(names), eps=eps, norm=norm, seed=seed,
                           batch_size=batch_size),
      parallel, state_dir=None if state_dir is None else epath.Path(state_dir),
      reporter=reporting.TERMINAL if progress else reporting.SILENT)
  by_attack = found['models'][_MODEL]
  return Benchmark(
      clean_accuracy=by_attack[robustness.CLEAN]['average'],
      robust_accuracy=min(each['average'] for each in by_attack.values()),
      attacks=by_attack, class_names=examples.class_names, results=found)


def _examples(given, split, data_dir):
  """Returns examples, and the name of their data set."""
  if isinstance(given, str):
    return data.load(given, split, data_dir=data_dir), given
  if isinstance(given, data.Examples):
    return given, 'own'
  try:
    images, labels = given
  except (TypeError, ValueError) as error:
    raise ValueError(
        'Expected data to be the name of a data set, Examples or a pair of '
        f'images and labels, got {type(given).__name__}.') from error
  images, labels = np.asarray(images), np.asarray(labels)
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype,
                                                           np.integer):
    raise ValueError(f'Expected labels to be {images.shape[:1]} whole numbers, '
                     f'one for each image, got {labels.dtype} {labels.shape}.')
  if not len(labels):
    raise ValueError('Expected images, got none.')
  return data.Examples(images, labels.astype(np.int32), tuple(
      map(str, range(int(labels.max()) + 1)))), 'own'


def _with_all_classes(module, variables, examples):
  """Returns examples with a name for each of the logits.

  Raises:
    ValueError: if the model returns no logits for them, or too few.
  """
  shape = (1, *examples.images.shape[1:])
  logits = jax.eval_shape(
      lambda v, x: forward.logits(module, v, x), variables,
      jax.ShapeDtypeStruct(shape, jnp.float32))
  if getattr(logits, 'ndim', 0) != 2 or logits.shape[0] != 1:
    raise ValueError('Expected the model to return logits [B, K] for images '
                     f'{shape}, got {getattr(logits, "shape", logits)}.')
  known, number = len(examples.class_names), logits.shape[1]
  if number < known:
    raise ValueError(f'Expected a model of {known} classes, got {number} '
                     'logits.')
  return dataclasses.replace(examples, class_names=(
      *examples.class_names, *map(str, range(known, number))))


def _module(model):
  """Returns a Flax module that computes a model, and its variables."""
  if isinstance(model, str | os.PathLike):
    model = trained.load_model(model)
  if isinstance(model, tuple) and len(model) > 1 and isinstance(model[0],
                                                                nn.Module):
    return model[:2]
  if isinstance(model, nn.Module):
    raise ValueError('Expected the variables of the module, too: '
                     f'({type(model).__name__}, variables).')
  if not callable(model):
    raise ValueError('Expected a model that can be called with images, got '
                     f'{type(model).__name__}.')
  leaves, structure = jax.tree.flatten(model)
  arrays = {str(i): leaf for i, leaf in enumerate(leaves)
            if isinstance(leaf, jax.Array | np.ndarray)}
  rest = tuple((i, leaf) for i, leaf in enumerate(leaves)
               if str(i) not in arrays)
  return Called(structure, rest), {'params': arrays}


class Called(nn.Module):
  """Whatever can be called with images, as a module; its arrays are variables.

  Attributes:
    structure: of the pytree that it is; a plain function is one leaf.
    rest: numbers and values of the leaves that are no arrays.
  """
  structure: Any
  rest: tuple[tuple[int, Any], ...]

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    leaves = dict(self.rest)
    leaves |= {int(name): leaf for name, leaf in self.variables.get(
        'params', {}).items()}
    model: Callable[[jax.Array], jax.Array] = jax.tree.unflatten(
        self.structure, [leaves[i] for i in range(len(leaves))])
    return model(images)
