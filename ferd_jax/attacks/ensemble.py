"""Several attacks on a data set, each on what those before left robust."""

import collections
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from typing import Any
import warnings
import zlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

import ferd_jax
from ferd_jax import losses
from ferd_jax.attacks import attack as attacks
from ferd_jax.attacks import checks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import saved
from ferd_jax.attacks import slots
from ferd_jax.attacks import square
from ferd_jax.core import digests
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate

_CLEAN = -1  # of `broken_by`
_ROBUST = -2
_R, _S = parallels.REPLICATED, parallels.SHARDED


@dataclasses.dataclass
class Result:
  """What AutoAttack found about N images.

  Attributes:
    names: the attacks, in order.
    labels: int32 `[N]`.
    correct: bool `[N]`, whether the clean image is classified right.
    flags: by attack, bool `[N]`: whether the image is still robust after it
      and all before it (after it alone if `individual`).
    images: `[N, ...]`, adversarial; clean where no attack fooled the model or
      the clean image does.
    images_by_attack: if `individual` the same by attack, else empty.
    predictions: int32 `[N]`, on `images`.
    norms: `[N]`, of images - x.
    broken_by: int32 `[N]`, the position in `names` of the attack that fooled
      the model first, -1 for the clean image, -2 for none.
    seconds: by attack, in all sessions of a run.
    warnings: what makes the numbers doubtful.
    settings: version, norm, eps, bounds, number of images, seed, dtype and
      the versions of JAX and this package.
    individual: whether every attack had all correct images.
  """
  names: tuple[str, ...]
  labels: np.ndarray
  correct: np.ndarray
  flags: dict[str, np.ndarray]
  images: np.ndarray
  images_by_attack: dict[str, np.ndarray]
  predictions: np.ndarray
  norms: np.ndarray
  broken_by: np.ndarray
  seconds: dict[str, float]
  warnings: list[str]
  settings: dict[str, Any]
  individual: bool

  @property
  def robust(self) -> np.ndarray:
    """Whether no attack fooled the model, bool `[N]`."""
    return self.broken_by == _ROBUST

  @property
  def clean_accuracy(self) -> float:
    """Of all images."""
    return float(self.correct.mean())

  @property
  def robust_accuracy(self) -> float:
    """The share of all images that no attack fooled."""
    return float(self.robust.mean())

  @property
  def success_rate(self) -> float:
    """The share of the images that were right which attacks fooled.

    It is 1 - robust / clean accuracy, and NaN where none was right.
    """
    if not self.correct.any():
      return float('nan')
    return 1 - self.robust_accuracy / self.clean_accuracy

  @property
  def accuracy_after(self) -> dict[str, float]:
    """Robust accuracy by attack; see `flags`."""
    return {name: float(flags.mean()) for name, flags in self.flags.items()}

  def __repr__(self) -> str:
    after = ', '.join(f'{name} {accuracy:.2%}' for name, accuracy in
                      self.accuracy_after.items())
    warned = f'; {len(self.warnings)} warnings' if self.warnings else ''
    return (f"<Result of AutoAttack '{self.settings['version']}', "
            f'{self.settings["norm"]} eps {self.settings["eps"]:.4g}, '
            f'{len(self.labels)} images: accuracy {self.clean_accuracy:.2%} '
            f'clean, {self.robust_accuracy:.2%} robust, success rate '
            f'{self.success_rate:.2%}; after {after}{warned}>')

  def per_class(self, num_classes: int | None = None) -> dict[str, np.ndarray]:
    """Returns accuracies `[K]` of 'clean', each attack and 'autoattack'.

    Args:
      num_classes: K; default: the highest label and one. A class without
        images has NaN.

    Raises:
      ValueError: if there are labels of more classes.
    """
    least = int(self.labels.max()) + 1
    size = least if num_classes is None else num_classes
    if size < least:
      raise ValueError(f'Expected num_classes={size} to be at least {least}, '
                       'for the highest label.')
    counts = np.bincount(self.labels, minlength=size)
    def accuracy(flags):
      with np.errstate(invalid='ignore'):
        return np.bincount(self.labels[flags], minlength=size) / counts
    return {name: accuracy(flags) for name, flags in {
        'clean': self.correct, **self.flags,
        'autoattack': self.robust}.items()}

  def table(self) -> str:
    """Returns accuracies as a Markdown table: average and each class.

    `success` is the share of the correct images that are not robust.
    """
    classes = self.per_class()
    present = np.unique(self.labels)
    kind = 'alone' if self.individual else 'and all before'
    lines = [
        ', '.join(f'{name} {value}' for name, value in self.settings.items()),
        '', f'| after ({kind}) | average | success | worst class | seconds | '
        + ' | '.join(str(label) for label in present) + ' |',
        '|' + '---|' * (5 + len(present))]
    averages = {'clean': self.clean_accuracy, **self.accuracy_after,
                'autoattack': self.robust_accuracy}
    for name, average in averages.items():
      values = classes[name][present]
      seconds = f'{self.seconds[name]:.1f}' if name in self.seconds else ''
      success = (f'{1 - average / self.clean_accuracy:.2%}'
                 if name != 'clean' and self.correct.any() else '-')
      lines.append(
          f'| {name} | {average:.2%} | {success} | {values.min():.2%} | '
          f'{seconds} | '
          + ' | '.join(f'{value:.1%}' for value in values) + ' |')
    return '\n'.join(lines + [f'Warning: {text}' for text in self.warnings])


class Session:
  """One call of AutoAttack."""

  def __init__(self, members: Callable[[int], dict[str, attacks.Attack]],
               logits_fn: attacks.LogitsFn, key: jax.Array, x: ArrayLike,
               y: ArrayLike, *, batch_size: int, individual: bool,
               parallel: parallels.Parallel, reporter: reporting.Reporter,
               stochastic: bool,
               settings: dict[str, Any]):
    """Checks everything that can be without evaluating the model.

    Args:
      members: number of classes -> attacks by name.
      logits_fn: the model.
      key: one PRNG key.
      x: images `[N, ...]`.
      y: int labels `[N]`.
      batch_size: over all devices.
      individual: whether every attack gets all correct images.
      parallel: mapping over devices.
      reporter: shows how far it is.
      stochastic: whether the model takes a key.
      settings: of the attacks, JSON values.

    Raises:
      ValueError: see `AutoAttack.__call__`.
    """
    validate.count(batch_size=batch_size)
    validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
    images, labels = inputs.on_host(x, y)
    self._eps, self._norm = settings['eps'], settings['norm']
    self._bounds = settings['bounds']
    self._parallel, self._batch_size = parallel, batch_size
    self._individual, self._stochastic = individual, stochastic
    self._key = inputs.one_key(key)
    # Before the model sees them, which may not take their shape.
    checks.data_set(images, labels, self._eps, self._norm, self._bounds)
    self._num_classes = attacks.num_classes(
        logits_fn, images[:1], self._key if stochastic else None)
    checks.labels(labels, self._num_classes)
    self._x, self._y = images, labels.astype(np.int32)
    shares = isinstance(logits_fn, jax.tree_util.Partial)
    self._logits_fn: jax.tree_util.Partial = (
        logits_fn if isinstance(logits_fn, jax.tree_util.Partial)
        else jax.tree_util.Partial(_Borrowed(logits_fn)))
    self._traced = self._trace()
    # What it closes over may be other weights by the next call.
    self._compiled = (_shared(digests.of_arrays(self._traced.consts)) if shares
                      else _Compiled())
    self._members = members(self._num_classes)
    self._model = parallel.replicate(self._logits_fn)
    self._settings = settings | {
        'images': len(labels), 'seed': jax.random.key_data(self._key).tolist(),
        'dtype': str(images.dtype), 'jax': jax.__version__,
        'ferd_jax': ferd_jax.__version__}
    self._display = _Display(reporter, len(labels))

    self._clean_predictions = self._y.copy()
    # By attack and index, the image that fools the model and its prediction.
    # All that follows from them is kept besides in the next two.
    self._found: dict[str, dict[int, tuple[Any, Any]]] = {
        name: {} for name in self._members}
    self._fooled, self._zero_gradient = (
        {name: np.zeros(len(labels), bool) for name in self._members}
        for _ in range(2))
    self._broken_by = np.full(len(labels), _ROBUST, np.int32)
    self._attempts_done = {name: np.zeros(len(labels), np.int32)
                       for name in self._members}
    self._seconds = dict.fromkeys(self._members, 0.)

  def finish(self, state_file: os.PathLike | str | None,
             save_every: float) -> Result:
    """Runs what is left of all attacks and returns what they found.

    Args:
      state_file: to go on from and to write, or None.
      save_every: seconds.

    Raises:
      ValueError: see `AutoAttack.__call__`.
    """
    validate.non_negative(save_every=save_every)
    with contextlib.closing(self._display):
      clean_logits = self._logits(self._x)
      notes = checks.outputs(clean_logits) + self._check_model()
      notes += checks.class_count(self._num_classes, self._members)
      notes += checks.layout(self._x.shape)
      self._clean_predictions[:] = clean_logits.argmax(-1)
      save = _Saver(state_file, save_every, self._identity(state_file),
                    self._arrays)
      self._restore(save.found(), state_file)
      self._correct = self._clean_predictions == self._y
      self._broken_by[~self._correct] = _CLEAN
      notes += checks.clean_accuracy(self._correct.mean(), self._num_classes)
      self._display.line(f'clean: accuracy {self._correct.mean():.2%}')
      save(now=True)  # A file that cannot be written is better known now.
      try:
        for position, name in enumerate(self._members):
          self._attack(position, name, clean_logits, save)
          save(now=True)
          self._display.after(
              name, int(self._flags()[name].sum()), self._seconds[name],
              self._remaining_work(position + 1))
          notes += checks.zero_gradients(
              name, np.flatnonzero(self._zero_gradient[name]).tolist())
      except BaseException:  # Also of the keyboard.
        save(now=True)
        raise
      finally:
        if isinstance(self._logits_fn.func, _Borrowed):
          self._logits_fn.func.function = None
    result = self._result(notes)
    notes += checks.square_too_strong(
        result.accuracy_after, [
            name for name, attack in self._members.items()
            if isinstance(attack, square.Square)], self._individual)
    checks.results(result.images, self._eps, self._norm, result.norms,
                   self._bounds)
    for note in notes:
      warnings.warn(note, stacklevel=3)
    return result

  def _attack(self, position, name, clean_logits, save):
    """Runs one attack on all images that it has not been through."""
    attack = self._members[name]
    # One here reads its radius from the problem, another may not.
    general = (dataclasses.replace(attack, eps=0.)
               if type(attack).__module__.startswith('ferd_jax.') else attack)
    engine = self._compiled.slots(general, self._parallel, self._batch_size)
    key = jax.random.fold_in(self._key, zlib.crc32(name.encode()))
    attempts_done = self._attempts_done[name]
    left = self._correct & ~self._fooled[name]
    if not self._individual:
      left &= self._broken_by == _ROBUST
    tasks = collections.deque(
        (index, int(attempts_done[index])) for index in np.flatnonzero(left)
        if attempts_done[index] < attack.num_attempts)
    started, before = time.monotonic(), self._seconds[name]
    scores = self._scores(general, clean_logits, sorted(
        {index for index, _ in tasks}))
    unclear = set()  # images whose logits are not finite
    def tick(image_steps):
      self._seconds[name] = before + time.monotonic() - started
      self._display.tick(name, image_steps * attack.step_cost,
                         self._remaining_work(position),
                         int((self._broken_by == _ROBUST).sum()))
    def unfooled(index, attempt):
      attempts_done[index] = attempt + 1
      if attempt + 1 < attack.num_attempts:
        tasks.append((index, attempt + 1))
    while tasks:
      found = []
      for outcome in engine.run(self._model, key, self._eps, self._x, self._y,
                                clean_logits, scores, tasks, tick):
        self._zero_gradient[name][outcome.index] |= outcome.zero_gradient
        if not outcome.finite:
          # No attempt is counted as done: one that goes on from the saved state
          # must come here again.
          unclear.add(outcome.index)
        elif outcome.fooled:
          found.append(outcome)
        else:
          unfooled(outcome.index, outcome.attempt)
        if len(found) >= self._batch_size:
          self._verify(position, name, found, unfooled, unclear)
          found = []
        save()
      self._verify(position, name, found, unfooled, unclear)
    if unclear:
      raise ValueError(
          f'{name}: logits or gradients are not finite for adversarial images '
          f'of examples {sorted(unclear)[:10]} ({len(unclear)} in all).')

  def _scores(self, attack, clean_logits, indices):
    """Returns what targets are ranked by, `[N, K]`; of no others there is any.

    Args:
      attack: whose targets they are.
      clean_logits: `[N, K]`.
      indices: of the images that are attacked.
    """
    if not attack.num_targets or attack.target_order == 'logits':
      return clean_logits
    rank = self._compiled.scores(attack, self._parallel)
    size = self._batch_size
    # In half precision what is ranked would be ties.
    scores = np.zeros(clean_logits.shape, np.promote_types(
        clean_logits.dtype, self._x.dtype))
    for first in range(0, len(indices), size):
      chosen = indices[first:first + size]
      padded = np.resize(chosen, size)
      scores[chosen] = self._parallel.gather(rank(
          self._model, self._parallel.shard(self._x[padded]),
          self._parallel.shard(self._y[padded]),
          self._parallel.shard(clean_logits[padded]),
          self._parallel.replicate(self._key)))[:len(chosen)]
    return scores

  def _verify(self, position, name, found, unfooled, unclear):
    """Takes the images that fool the model once more; others had not."""
    if not found:
      return
    images = np.stack([outcome.image for outcome in found])
    logits = self._logits(images)
    # Of one that is no number a prediction says nothing.
    fine = (np.isfinite(images).reshape(len(images), -1).all(-1)
            & np.asarray(losses.predicts(logits)))
    indices = np.array([outcome.index for outcome in found])
    fooling = fine & (logits.argmax(-1) != self._y[indices])
    # Before anything of them is kept.
    checks.results(images[fooling], self._eps, self._norm, self._norms(
        images[fooling], indices[fooling]), self._bounds, name,
                   indices[fooling])
    for outcome, image, prediction, clear in zip(
        found, images, logits.argmax(-1), fine, strict=True):
      index = outcome.index
      if not clear:
        unclear.add(index)
      elif prediction == self._y[index]:  # By rounding, or by a tie.
        unfooled(index, outcome.attempt)
      else:
        self._found[name][index] = image, prediction
        self._note(position, name, index)

  def _norms(self, images, indices):
    """Returns the norms of what was done to the images of these indices."""
    order = geometry.of(self._norm).order
    return np.array([np.linalg.norm(each.ravel(), order)
                     for each in images - self._x[indices]], self._x.dtype)

  def _note(self, position, name, index):
    """Notes what follows from an image that was found."""
    self._fooled[name][index] = True
    if self._broken_by[index] == _ROBUST:
      self._broken_by[index] = position

  def _remaining_work(self, position):
    """Returns what attacks have to do, in forward passes, by name.

    It is the most there can be: an image that is fooled is through. Those
    before `position` are done.
    """
    left = self._correct
    if not self._individual:
      left = left & (self._broken_by == _ROBUST)
    work = dict.fromkeys(self._members, 0)
    for name, attack in list(self._members.items())[position:]:
      done = self._attempts_done[name][left & ~self._fooled[name]]
      work[name] = (int((attack.num_attempts - done).sum()) * attack.num_steps
                    * attack.step_cost)
    return work

  def _check_model(self):
    """Returns warnings about the model, from its first batch."""
    if self._stochastic:
      return []
    batch = np.resize(self._x[:self._batch_size],
                      (self._batch_size, *self._x.shape[1:]))
    notes = checks.determinism(self._logits, self._traced, self._trace, batch)
    if not notes:  # Noise is no dependence.
      # Of one image a device nothing could depend on another.
      size = max(self._batch_size, 2 * self._parallel.num_devices)
      checks.independence(functools.partial(self._logits, size=size),
                          np.resize(batch, (size, *batch.shape[1:])),
                          self._bounds)
    return notes

  def _trace(self):
    """Returns the model's jaxpr, with all constants on its outside."""
    key = [self._key] if self._stochastic else []
    # With a new function, and what the model compiles itself taken apart: what
    # is compiled remembers its last trace.
    with jax.disable_jit():
      return jax.make_jaxpr(lambda model, *args: model(*args))(
          self._logits_fn, self._x[:1], *key)

  def _logits(self, images, size=None):
    """Returns the logits `[N, K]` of images `[N, ...]`, in batches."""
    predict = self._compiled.predict(self._parallel)
    size = size or self._batch_size
    key = self._parallel.replicate(self._key) if self._stochastic else None
    found = []
    for first in range(0, len(images), size):
      batch = images[first:first + size]
      # The last batch is filled with its own images.
      padded = np.resize(batch, (size, *batch.shape[1:]))
      logits = predict(self._model, self._parallel.shard(padded), key)
      found.append(self._parallel.gather(logits)[:len(batch)])
    return np.concatenate(found)

  def _identity(self, state_file):
    """Returns what tells this run from another, JSON values."""
    if state_file is None:
      return {}  # Hashing takes a while.
    model = self._traced
    settings_of_attacks = {
        f'{name}.{setting}': saved.described(getattr(attack, setting))
        for name, attack in self._members.items()
        for setting in _settings_of(attack) if setting not in self._settings}
    return self._settings | {
        'individual': self._individual,
        'attacks': [f'{name}: {type(attack).__name__}'
                    for name, attack in self._members.items()],
        'x': digests.of_arrays(self._x), 'y': digests.of_arrays(self._y),
        'model': hashlib.sha256(saved.code_of(model).encode()).hexdigest(),
        # Of a closure they are constants.
        'variables': digests.of_arrays((self._logits_fn, model.consts)),
        'code': [self._code(self._members[name])
                 for name in sorted(self._members)],
    } | settings_of_attacks

  def _code(self, attack):
    """Returns a digest of what an attack computes, loss and gradient too."""
    def step(model, x, y, eps, keys):
      scores = jnp.zeros((1, self._num_classes), x.dtype)
      problem = attack.nth_attempt(
          attack.of_labels(attacks.Problem(x, y, None, eps, keys), scores),
          scores, 0)
      return attack.step(model, problem, attack.init(problem),
                         attack.step_key(keys))
    jaxpr = jax.make_jaxpr(step)(
        self._logits_fn, self._x[:1], self._y[:1],
        np.full(1, self._eps, self._x.dtype), jax.random.split(self._key, 1))
    text = saved.code_of(jaxpr) + digests.of_arrays(jaxpr.consts)
    return hashlib.sha256(text.encode()).hexdigest()

  def _arrays(self):
    """Returns the state to save."""
    arrays = {'clean_predictions': self._clean_predictions}
    for name in self._members:
      found = self._found[name]
      images = [image for image, _ in found.values()]
      predictions = [prediction for _, prediction in found.values()]
      arrays |= {f'found/{name}': np.array(list(found), np.int64),
                 f'images/{name}': np.array(images, self._x.dtype),
                 f'predictions/{name}': np.array(predictions, np.int32),
                 f'zero_gradient/{name}': self._zero_gradient[name],
                 f'runs_done/{name}': self._attempts_done[name],
                 f'seconds/{name}': np.array(self._seconds[name])}
    return arrays

  def _restore(self, arrays, state_file):
    """Takes over a saved state, if there is one.

    Raises:
      saved.Damaged: if its arrays are none of this run.
    """
    if arrays is None:
      return
    wrong = self._wrong(arrays)
    if wrong:
      raise saved.damaged(state_file, wrong)
    # Those saved: on other hardware a tie may be decided otherwise.
    self._clean_predictions = arrays['clean_predictions']
    for position, name in enumerate(self._members):
      for index, *found in zip(*(
          arrays[f'{kind}/{name}']
          for kind in ('found', 'images', 'predictions')), strict=True):
        self._found[name][int(index)] = tuple(found)
        self._note(position, name, index)
      self._zero_gradient[name] = arrays[f'zero_gradient/{name}']
      self._attempts_done[name] = arrays[f'runs_done/{name}']
      self._seconds[name] = float(arrays[f'seconds/{name}'])

  def _wrong(self, arrays):
    """Returns what is wrong with the arrays of a saved state, or nothing."""
    for name, expected in self._arrays().items():
      if name not in arrays:
        return f'it has no {name}'
      kind, _, member = name.partition('/')
      shape = expected.shape
      if kind in ('found', 'images', 'predictions'):
        # As many as were found, and each of an image of its own.
        found = arrays.get(f'found/{member}', np.zeros(0))
        shape = (len(np.atleast_1d(found)), *self._x.shape[1:]
                 )[:len(self._x.shape) if kind == 'images' else 1]
        if kind == 'images' and not shape[0]:
          continue  # An array of none has no shape.
      got = arrays[name]
      if got.shape != shape or got.dtype != expected.dtype:
        return (f'{name} is {got.dtype} of shape {got.shape}, expected '
                f'{expected.dtype} of shape {shape}')
      if kind == 'found' and (
          len(np.unique(got)) < len(got)
          or not np.isin(got, np.arange(len(self._y))).all()):
        return f'{name} are no positions of {len(self._y)} images'
    return ''

  def _flags(self):
    """Returns by attack which images are robust after it, bool `[N]`."""
    flags, left = {}, self._correct
    for name in self._members:
      alone = self._correct & ~self._fooled[name]
      left = left & alone
      flags[name] = alone if self._individual else left
    return flags

  def _result(self, notes):
    names = tuple(self._members)
    images, predictions = self._x.copy(), self._clean_predictions.copy()
    norms = np.zeros(len(self._y), self._x.dtype)
    for index in np.flatnonzero(self._broken_by >= 0):
      found = self._found[names[self._broken_by[index]]][index]
      images[index], predictions[index] = found
      norms[index], = self._norms(images[index][None], [index])
    images_by_attack = {}
    if self._individual:
      for name in names:
        images_by_attack[name] = self._x.copy()
        for index, (image, _) in self._found[name].items():
          images_by_attack[name][index] = image
    return Result(
        names=names, labels=self._y, correct=self._correct,
        flags=self._flags(), images=images, images_by_attack=images_by_attack,
        predictions=predictions, norms=norms,
        broken_by=self._broken_by, seconds=self._seconds, warnings=notes,
        settings=self._settings, individual=self._individual)


class _Saver:
  """Keeps the state in a file, every so often."""

  def __init__(self, path, seconds, identity, arrays):
    self._path, self._seconds = path, seconds
    self._identity, self._arrays = identity, arrays
    self._last = time.monotonic()

  def found(self):
    """Returns the saved state, None if there is none."""
    if self._path is None:
      return None
    return saved.read(self._path, self._identity)

  def __call__(self, now=False):
    due = now or time.monotonic() > self._last + self._seconds
    if self._path is not None and due and jax.process_index() == 0:
      saved.write(self._path, self._identity, self._arrays())
      self._last = time.monotonic()


class _Display:
  """Shows the robust accuracy so far, and how long it will take."""

  def __init__(self, reporter, num_images):
    self._reporter, self._num_images = reporter, num_images
    self._whole = reporter.whole('AutoAttack')
    self._name, self._done, self._task = '', 0, reporting.Task()

  def tick(self, name, work, remaining, robust):
    """Counts work done and what there is at most to do, in forward passes."""
    if name != self._name:
      self._task.close()
      # What is counted, forward passes, says nothing to a person.
      self._name, self._done = name, 0
      self._task = self._reporter.task(name, unit='')
    self._done += work
    self._task.resize(self._done + remaining[name])
    self._task.advance(work, {'robust': robust / self._num_images})
    self._reporter.remains(remaining)

  def after(self, name, robust, seconds, remaining):
    """Says what an attack has left."""
    self._reporter.remains(remaining)
    self.line(f'{name}: robust accuracy {robust / self._num_images:.2%} '
              f'({robust} of {self._num_images}), {seconds:.0f} s')

  def line(self, text):
    """Says something above the bars."""
    self._reporter.line(text)

  def close(self):
    self._task.close()
    self._whole.close()


class _Borrowed:
  """A function that others who hold this do not keep.

  JAX remembers for good what it compiled for, and so all weights in it.
  """

  def __init__(self, function):
    self.function = function

  def __call__(self, *args):
    return self.function(*args)


class _Compiled:
  """Compiled functions; another radius or other variables are no new ones."""

  def __init__(self):
    self.slots = functools.lru_cache(maxsize=64)(
        lambda attack, parallel, batch_size: slots.Slots(
            attack, _call, parallel, batch_size))
    self.predict = functools.lru_cache(maxsize=8)(_compiled_predict)
    self.scores = functools.lru_cache(maxsize=64)(_compiled_scores)


def _settings_of(attack):
  """Yields the names of an attack's fields, and of what its class says."""
  fields = [field.name for field in dataclasses.fields(attack)]
  yield from fields
  for name in ('num_steps', 'num_restarts', 'num_targets', 'target_order'):
    # A property follows from what is there already.
    if name not in fields and not isinstance(
        getattr(type(attack), name, None), property):
      yield name


def _compiled_predict(parallel):
  def predict(model, images, key, *, axis_name=None):
    del axis_name  # Examples do not interact.
    return attacks.evaluate(model, images, key)
  return parallel.compile(predict, (_R, _S, _R), _S)


def _compiled_scores(attack, parallel):
  def scores(model, x, y, clean_logits, key, *, axis_name=None):
    del axis_name
    # Only the model's own noise, if any, is drawn here.
    problem = attacks.Problem(x, y, None, None, None)
    return attack.class_scores(model, problem, clean_logits,
                               key if attack.stochastic else None)
  return parallel.compile(scores, (_R, _S, _S, _S, _R), _S)


def _call(model, *args):
  return model(*args)


@functools.lru_cache(maxsize=8)
def _shared(constants):
  """Returns what models that are `Partial`s share, by a digest of constants."""
  del constants
  return _Compiled()
