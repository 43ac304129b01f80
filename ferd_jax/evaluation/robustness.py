"""Accuracy under attack, per class, on fixed-shape batches."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from typing import Any
import warnings

from etils import epath
from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import ferd_jax
from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import checks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import saved
from ferd_jax.core import collectives
from ferd_jax.core import digests
from ferd_jax.core import loops
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate
from ferd_jax.evaluation import finished
from ferd_jax.evaluation import metrics
from ferd_jax.evaluation import per_image
from ferd_jax.models import forward

CLEAN = 'clean'
# Versions of AutoAttack by the name under which a table has them.
AUTOATTACKS = {
    'autoattack': 'standard', 'autoattack_fast': 'fast',
    'autoattack_plus': 'plus',
    'autoattack_torchattacks': 'torchattacks_compat'}
ATTACKS = (CLEAN, *attacks.PRESETS, *AUTOATTACKS)


class EvaluationBatch(flax.struct.PyTreeNode):
  """Images to attack; the last batch is padded to the shape of the others.

  Attributes:
    images: float32 `[B, H, W, C]` in [0, 1].
    labels: int32 `[B]`.
    indices: int32 `[B]`, position in the data set: an image's randomness
      depends on it and not on the batch size.
    mask: bool `[B]`, False for padding.
  """
  images: jax.Array
  labels: jax.Array
  indices: jax.Array
  mask: jax.Array


def fitting_batch(image_shape: Sequence[int],
                  parallel: parallels.Parallel) -> int:
  """Returns how many images a step are fast, over all devices.

  On CPU those whose activations fit its cache, 16 of CIFAR; on accelerators
  256 each.

  Args:
    image_shape: of one image, (H, W, C).
    parallel: the device mapping.
  """
  height, width, _ = image_shape
  return parallel.num_devices * (
      min(max(2 ** 14 // (height * width), 8), 128)
      if loops.unrolled_here() else 256)


def check_names(**settings: Sequence[str]) -> None:
  """Raises ValueError unless each setting names some of `ATTACKS`, once."""
  for setting, names in settings.items():
    for name in names:
      validate.one_of(ATTACKS, **{setting: name})
    if not names or len(set(names)) < len(names):
      raise validate.SettingError(setting, tuple(names),
                                  'to name attacks, each once.')


def correct_images(model: nn.Module, variables: Any, images: jax.Array,
                   batch: EvaluationBatch, *, axis_name: str | None = None
                   ) -> tuple[jax.Array, jax.Array]:
  """Returns which images are classified right, bool `[B]`.

  Also of how many images logits predict nothing, see `losses.predicts`.

  Args:
    model: module under evaluation.
    variables: of the model.
    images: `[B, H, W, C]`, those of the batch, attacked or not.
    batch: for labels and mask; padding is never right.
    axis_name: mapped axis over which the examples are sharded.
  """
  logits = forward.logits(model, variables, images)
  finite = losses.predicts(logits)
  hits = finite & (jnp.argmax(logits, axis=-1) == batch.labels) & batch.mask
  return hits, collectives.psum(
      jnp.sum((~finite & batch.mask).astype(jnp.int32)), axis_name)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Measures a model's accuracy under named attacks; compiled once.

  Attributes:
    apply_fn: (variables, images) -> logits.
    settings: what decides what an attack finds, as text by name.
    attacks: by name: compiled presets, settings of AutoAttack, None for clean
      images.
    hits: compiled `correct_images`.
    parallel: the device mapping that they were compiled for.
    num_classes: C.
    batch_size: images a step, over all devices; on CPU at most
      `fitting_batch`, which changes no number.
    ddof: of the NSD.
    settings: of each attack as text, which tells it from another.
    autoattack_examples: how many images, the first, AutoAttack gets; 0: all.
  """
  apply_fn: Callable[..., jax.Array]
  settings: Mapping[str, str]
  attacks: Mapping[str, Callable | attacks.AutoAttack | None]
  hits: Callable
  parallel: parallels.Parallel
  num_classes: int
  batch_size: int
  ddof: int
  settings: Mapping[str, str]
  autoattack_examples: int = 0

  def __call__(self, variables: Any, images: np.ndarray, labels: np.ndarray,
               key: jax.Array, names: Sequence[str] | None = None, *,
               state_dir: epath.PathLike | None = None,
               found_dir: epath.PathLike | None = None,
               on_result: Callable[[str, dict], None] | None = None,
               reporter: reporting.Reporter = reporting.SILENT
               ) -> dict[str, dict]:
    """Returns, by attack name, the summary and the accuracy per class.

    Args:
      variables: of the model.
      images: `[N, H, W, C]`, uint8 or float in [0, 1].
      labels: int `[N]`.
      key: typed PRNG key.
      names: of the attacks to run; default: all.
      state_dir: keeps what every attack found as soon as it is done, so that
        it is not repeated, and the state of an AutoAttack that is interrupted.
      found_dir: keeps what is done in its place, for others that measure the
        same model, too.
      on_result: called with the name of every attack that is done and what is
        returned of it.
      reporter: shows how far each attack is.

    Returns:
      `metrics.summarise` of each attack, `per_class`, a list of C accuracies
      (NaN for a class without images), `correct`, which images were classified
      right (`per_image.flags_text`), and `warnings`; beside `clean` also
      `metrics.success_rate`; of AutoAttack also
      `num_examples` that it got, and `after`, by attack, the robust accuracy
      after it, `per_class` and its `seconds`.

    Raises:
      FloatingPointError: for logits that are not finite.
      ValueError: for what else AutoAttack refuses.
    """
    images, labels = _checked(images, labels)
    found_dir = found_dir or state_dir
    data = '' if found_dir is None else digests.of_arrays(
        (variables, images, labels, jax.random.key_data(key)))
    report = {}
    for name in self.attacks if names is None else names:
      run = self._run(name, data)
      report[name] = finished.once(
          found_dir, name, run,
          lambda name=name, run=run: self._summary(
              name, variables, images, labels, key,
              state_dir and epath.Path(state_dir) / f'{name}-{run[:16]}.npz',
              reporter), self.parallel, reporter)
      _add_success_rates(report)
      if on_result is not None:
        on_result(name, report[name])
    return report

  def batch_of(self, image_shape: Sequence[int]) -> int:
    """Returns how many images a step has, of shape (..., H, W, C)."""
    if not loops.unrolled_here():
      return self.batch_size
    return min(self.batch_size, fitting_batch(image_shape[-3:], self.parallel))

  def _run(self, name, data):
    """Returns a digest of all that decides what an attack finds."""
    return hashlib.sha256('\n'.join([
        data, self.settings[name], saved.described(self.apply_fn),
        f'{self.num_classes} {self.ddof} {self.autoattack_examples}',
        jax.__version__, ferd_jax.__version__]).encode()).hexdigest()

  def _summary(self, name, variables, images, labels, key, state_file,
               reporter):
    """Returns what is reported of an attack."""
    number, notes = len(labels), {}
    if name in AUTOATTACKS:
      number = self.autoattack_examples or number
      correct, notes = self._autoattack(
          name, variables, images[:number], labels[:number], key, state_file,
          reporter)
    else:
      correct = self._in_batches(name, variables, images, labels, key,
                                 reporter)
    if name == CLEAN:
      notes = {'warnings': checks.clean_accuracy(
          correct.sum() / number, self.num_classes)}
    found, counts = (
        np.bincount(those, minlength=self.num_classes)
        for those in (labels[:number][correct], labels[:number]))
    with np.errstate(invalid='ignore'):
      per_class = (found / counts).tolist()
    return metrics.summarise(found, counts, ddof=self.ddof) | {
        'per_class': per_class, 'correct': per_image.flags_text(correct),
        'warnings': []} | notes

  def _in_batches(self, name, variables, images, labels, key, reporter):
    """Returns which images are right under an attack, bool `[N]`."""
    key, correct, unclear = self.parallel.replicate(key), [], 0
    with reporter.task(name, len(labels), 'image') as task:
      for batch in batches(images, labels, self.batch_of(images.shape)):
        size = int(batch.mask.sum())
        batch = self.parallel.shard(batch)
        attacked = batch.images
        if self.attacks[name] is not None:
          attacked = self.attacks[name](variables, key, attacked, batch.labels,
                                        indices=batch.indices)
        hits, broken = self.hits(variables, attacked, batch)
        correct.append(self.parallel.gather(hits)[:size])
        unclear += int(np.asarray(broken))
        task.advance(size)
    if unclear:
      raise FloatingPointError(f'{name}: the logits of {unclear} of '
                               f'{len(labels)} images are not finite.')
    return np.concatenate(correct)

  def _autoattack(self, name, variables, images, labels, key, state_file,
                  reporter):
    """Returns which images are right, bool `[N]`, and what else it says."""
    images = as_float(images)
    with warnings.catch_warnings():  # They are returned.
      warnings.simplefilter('ignore', UserWarning)
      attack = functools.partial(
          self.attacks[name], jax.tree_util.Partial(self.apply_fn, variables),
          key, images, labels, batch_size=self.batch_of(images.shape),
          state_file=state_file, progress=reporter.within(name),
          parallel=self.parallel)
      try:
        result = attack()
      except saved.Damaged as error:
        # Its name says that it is this run's: there is nothing to keep it for.
        reporter.line(f'Warning: {error} {name} is done again.')
        if self.parallel.is_first:
          state_file.unlink(missing_ok=True)
        self.parallel.all_agree(True)  # Nobody reads it any more.
        result = attack()
    per_class = result.per_class(self.num_classes)
    return np.asarray(result.robust, bool), {
        'num_examples': len(labels),
        'after': {attack: {'average': average,
                           'per_class': per_class[attack].tolist(),
                           'seconds': result.seconds[attack]}
                  for attack, average in result.accuracy_after.items()},
        'warnings': result.warnings}


def _add_success_rates(report):
  """Adds to each attack which share of what is right without it it fools."""
  if CLEAN not in report:
    return
  correct = {name: per_image.flags(summary[per_image.FLAGS])
             for name, summary in report.items()}
  for name, summary in report.items():
    if name != CLEAN:
      summary['success_rate'] = metrics.success_rate(correct[CLEAN],
                                                     correct[name])


def evaluator(model: nn.Module, names: Sequence[str], eps: float,
              num_classes: int, batch_size: int,
              parallel: parallels.Parallel, *, norm: geometry.Norm = 'Linf',
              ddof: int = 0, autoattack_examples: int = 0) -> Evaluator:
  """Returns an evaluator of a model under the named attacks.

  Args:
    model: module to evaluate.
    names: of `ATTACKS`.
    eps: radius of the attacks, in [0, 1] pixels.
    num_classes: C.
    batch_size: images a step, over all devices.
    parallel: the device mapping.
    norm: of the attacks, one of `geometry.NORMS`.
    ddof: of the NSD.
    autoattack_examples: how many images, the first, AutoAttack gets; 0: all.
  """
  replicated, sharded = parallels.REPLICATED, parallels.SHARDED
  apply_fn = functools.partial(forward.logits, model)
  def choose(name):
    if name == CLEAN:
      return None
    if name in AUTOATTACKS:
      return attacks.AutoAttack(eps, norm, AUTOATTACKS[name])
    return attacks.preset(name, eps, norm)
  chosen = {name: choose(name) for name in names}
  return Evaluator(
      apply_fn=apply_fn,
      settings={name: saved.described(attack)
                for name, attack in chosen.items()},
      attacks={name: attack if name == CLEAN or name in AUTOATTACKS else
               attacks.jit(attack, apply_fn, parallel)
               for name, attack in chosen.items()},
      hits=parallel.compile(
          functools.partial(correct_images, model),
          in_specs=(replicated, sharded, sharded),
          out_specs=(sharded, replicated)),
      parallel=parallel, num_classes=num_classes, batch_size=batch_size,
      ddof=ddof, autoattack_examples=autoattack_examples)


def _checked(images, labels):
  """Returns images and labels as NumPy's arrays, labels as int32.

  Raises:
    ValueError: for what are no images, or not one whole number for each.
  """
  images, labels = jax.device_get((inputs.array('images', images),
                                   inputs.array('labels', labels)))
  if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype,
                                                            jnp.integer):
    raise ValueError(f'Expected labels to be {images.shape[:1]} whole numbers, '
                     f'one for each image, got {labels.dtype} {labels.shape}.')
  return images, labels.astype(np.int32)


def as_float(images: np.ndarray) -> np.ndarray:
  """Returns images of uint8 as float32 in [0, 1], others as they are."""
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 255
  return images


def predictor(model: nn.Module, batch_size: int,
              parallel: parallels.Parallel) -> Callable[..., np.ndarray]:
  """Returns the function (variables, images) -> predicted labels `[N]`.

  Args:
    model: module that predicts.
    batch_size: images a step, over all devices.
    parallel: the device mapping.
  """
  def predictions(variables, images, *, axis_name=None):
    del axis_name  # Every example is on its own.
    return jnp.argmax(forward.logits(model, variables, images), axis=-1)
  step = parallel.compile(
      predictions, in_specs=(parallels.REPLICATED, parallels.SHARDED),
      out_specs=parallels.SHARDED)

  def predict(variables, images):
    labels = np.zeros(len(images), np.int32)
    found = [parallel.gather(step(variables, parallel.shard(batch.images)))
             for batch in batches(images, labels, batch_size)]
    return np.concatenate(found)[:len(images)]
  return predict


def batches(images: np.ndarray, labels: np.ndarray,
            batch_size: int) -> Iterator[EvaluationBatch]:
  """Yields a data set in batches of one shape, the last one padded.

  Args:
    images: `[N, H, W, C]`, uint8 or float in [0, 1].
    labels: int32 `[N]`.
    batch_size: B.
  """
  for first in range(0, len(labels), batch_size):
    size = min(batch_size, len(labels) - first)

    def pad(array, first=first, size=size):
      widths = [(0, batch_size - size)] + [(0, 0)] * (array.ndim - 1)
      return np.pad(array[first:first + size], widths)
    yield EvaluationBatch(
        images=as_float(pad(images)), labels=pad(labels),
        indices=pad(np.arange(len(labels), dtype=np.int32)),
        mask=np.arange(batch_size) < size)
