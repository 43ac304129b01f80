"""The state of a run on disk, by Orbax, and proof that it is what was saved."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import gc
import json
import logging
import math
import sys
import textwrap
import traceback
import types
from typing import Any
from typing import NamedTuple
import warnings

from etils import epath
import jax
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ferd_jax.core import atomic
from ferd_jax.core import buckets
from ferd_jax.core import digests
from ferd_jax.core import errors
from ferd_jax.core import reporting
from ferd_jax.run import method as methods
from ferd_jax.run import record as records
from ferd_jax.run import state as states
from ferd_jax.synthesis import pool as pools

LAST = 'last'
DAMAGED = 'damaged'  # Where what could not be read is put aside.
_CHECKPOINTS, _POOL = 'checkpoints', 'pool'


class Resumed(NamedTuple):
  """Where a run goes on.

  Attributes:
    state: of the run.
    epoch: completed epochs, 0 for a new run.
    metrics: the lines of metrics.jsonl up to there; None if the checkpoint is
      of a version that did not keep them.
  """
  state: states.TrainState
  epoch: int
  metrics: list[str] | None


class Checkpoints:
  """Saves and restores a run in its work directory; use it in `with`.

  Attributes:
    select: 'last', or the name of the metric by which the best epoch is kept.
  """

  def __init__(self, workdir: epath.PathLike, method: methods.Method | None,
               select: str = LAST, *,
               identity: Mapping[str, Any] | None = None):
    """Opens the checkpoints of a work directory.

    Args:
      workdir: of the run.
      method: whose state they hold; None to look at their numbers only.
      select: see the class.
      identity: of the run, JSON values, to save it, which only the holder of
        the directory's lock may do; saves that were not finished are removed.

    Raises:
      OSError: if the directory cannot be read.
    """
    self.select, self._method, self._identity = select, method, identity
    self._workdir = buckets.absolute(workdir)
    self._directory = directory(self._workdir)
    self._pool_digests: list[str] = []
    self._ranks: dict[int, float] = {}
    self._unsynced: int | None = None
    policies = [checkpoint_managers.LatestN(2)]
    if select != LAST:
      policies.append(_Best(self._rank))
    try:
      with _quiet():
        self._manager = _Manager(
            self._directory,
            # Without it the shapes in a checkpoint are not known.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    policies),
                cleanup_tmp_directories=identity is not None,
                # What else it reads may be damaged, and is not needed.
                lightweight_initialize=True))
    except Exception as error:
      raise OSError(f'Cannot read {self._directory}: {errors.reason(error)}.'
                    ) from error

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    try:
      self._finish_save()
    finally:
      self._manager.close()

  @property
  def latest_epoch(self) -> int:
    """The last saved epoch, 0 if there is none."""
    return max(self._epochs(), default=0)

  @property
  def selected_epoch(self) -> int:
    """The epoch to evaluate: the last, or the best by `select`; 0 if none."""
    if self.select == LAST:
      return self.latest_epoch
    return _best(self._epochs(), self._rank)

  def save(self, epoch: int, state: states.TrainState, pool: pools.Pool,
           new_images: int, metrics: Sequence[str]) -> None:
    """Saves an epoch: the pool's new images first, then the state.

    Args:
      epoch: epochs completed.
      state: of the run, `states.gathered`.
      pool: of which only the last `new_images` are written.
      new_images: how many this epoch added.
      metrics: the lines of metrics.jsonl, the last of them this epoch's, with
        `select` in it if it was evaluated.

    Raises:
      OSError: if it cannot be written, or the epoch before could not.
    """
    self._finish_save()
    if new_images:
      if jax.process_index() == 0:
        pool.save_last(self._workdir / _POOL, epoch, new_images)
      self._pool_digests.append(pool.last_digest(new_images))
    self._ranks[epoch] = json.loads(metrics[-1]).get(self.select, -math.inf)
    record = records.Record(
        epoch=epoch, state=digests.of_arrays(state),
        structure=_structure(state), pool=list(self._pool_digests),
        metrics=list(metrics),
        identity=self._identity)
    with _writing(self._directory / str(epoch)):
      if not self._manager.save(epoch, args=ocp.args.StandardSave(state),
                                custom_metadata=record.json_values()):
        raise ValueError('there is a later one')
    self._unsynced = epoch

  def _finish_save(self):
    """Waits until the last save is complete and lasts."""
    if self._unsynced is None:
      return
    path = self._directory / str(self._unsynced)
    with _writing(path):
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        atomic.sync_tree(path)
    self._unsynced = None

  def resume(self, like: states.TrainState, pool: pools.Pool, new_images: int,
             reporter: reporting.Reporter) -> Resumed:
    """Returns the last state that is what was saved, and fills the pool.

    What is damaged is named, put aside in `damaged/`, and made again.

    Args:
      like: a state, returned if none was saved.
      pool: to fill.
      new_images: how many each epoch added.
      reporter: told of what is damaged.

    Raises:
      ValueError: if a checkpoint is of another version or method.
      OSError: if none can be gone on from; it says what to do.
    """
    epochs = sorted(self._epochs(), reverse=True)
    problems, limit = [], math.inf  # From which epoch on the pool is damaged.
    for epoch in epochs:
      if epoch >= limit:
        continue
      problem = resumed = None
      try:
        state, record = self._restore(like, epoch)
        if new_images:
          self._pool_digests = pool.restore(
              self._workdir / _POOL, epoch, new_images,
              self._method.num_classes, record.pool if record else ())
        resumed = Resumed(state, epoch,
                          list(record.metrics) if record else None)
      except records.Damaged as error:
        problem = str(error)
      except pools.DamagedPool as error:
        problem, limit = str(error), error.epoch
      if self._method.parallel.all_agree(problem is None):
        self._put_aside([each for each in epochs if each > epoch])
        for problem in problems:
          reporter.line(f'Warning: {problem} Going on after epoch {epoch}; '
                        f'{self._workdir / DAMAGED} keeps what was damaged.')
        if resumed.metrics is None:
          reporter.line(f'Warning: {self._directory / str(epoch)} has no digest'
                        ', as in earlier versions, and is taken as it is.')
        return resumed
      problems.append(problem or f'Another process cannot read {epoch}.')
    if problems:
      raise OSError(
          f'{problems[0]} No other checkpoint can be gone on from: put back '
          f'what is damaged, or remove {self._directory} to start anew.')
    return Resumed(like, 0, [])

  def restore(self, like: states.TrainState, epoch: int) -> states.TrainState:
    """Returns the state of an epoch, placed as `like` is.

    Raises:
      ValueError: if the checkpoint has other fields or shapes than `like`; the
        message names them. It may be of another version.
      OSError: if it cannot be read, or is not what was saved.
    """
    try:
      return self._restore(like, epoch)[0]
    except records.Damaged as error:
      earlier = [each for each in self._epochs() if each < epoch]
      advice = (f'Without this directory epoch {max(earlier)} is the last; '
                'training goes on from there by itself.' if earlier else
                'There is no earlier one: without the work directory the run '
                'starts anew.')
      raise records.Damaged(f'{error} {advice}') from error

  def metrics(self, epoch: int) -> list[str] | None:
    """Returns the lines of metrics.jsonl up to an epoch, None if not kept."""
    record = self._record(epoch)
    return list(record.metrics) if record else None

  def identity(self, epoch: int) -> Mapping[str, Any] | None:
    """Returns what the run of an epoch is, None if that was not kept."""
    record = self._record(epoch)
    return record.identity if record else None

  def _restore(self, like, epoch):
    """Returns the state of an epoch and its record, which may be None."""
    like = states.gathered(self._method, like)
    path, expected = self._directory / str(epoch), _structure(like)
    record = self._record(epoch)
    differences = _differences(
        expected, record.structure if record else self._found(epoch, expected))
    if differences:
      version = (record.identity if record else _config(self._workdir)).get(
          'ferd_jax', 'unknown')
      raise ValueError(
          f'{path} holds a state of another version or method: {differences}. '
          'The run can be gone on with by the version that it is of (ferd_jax '
          f'{version}); nothing is damaged.')
    with _damage(path), _quiet():
      state = self._manager.restore(epoch, args=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))
      if record is not None and digests.of_arrays(state) != record.state:
        raise ValueError('its arrays are not those that were saved')
    return states.placed(self._method, state), record

  def _record(self, epoch):
    """Returns the record of an epoch; None if its version kept none."""
    with _damage(self._directory / str(epoch)), _quiet():
      metadata = self._manager.metadata(epoch)
      if metadata.init_timestamp_nsecs is None:  # So Orbax takes damage.
        raise ValueError('its metadata cannot be read')
      record = records.read(metadata.custom_metadata)
      if record is not None and record.epoch != epoch:
        raise ValueError(f'it is that of epoch {record.epoch}')
      return record

  def _rank(self, epoch):
    """Returns the metric by which an epoch is chosen."""
    if epoch not in self._ranks:
      try:
        lines = self.metrics(epoch)
        with _quiet():
          values = (json.loads(lines[-1]) if lines else
                    self._manager.metrics(epoch) or {})
        self._ranks[epoch] = values.get(self.select, -math.inf)
      except Exception:  # Damaged: reading it will say so.
        self._ranks[epoch] = -math.inf
    return self._ranks[epoch]

  def _epochs(self):
    """Returns the epochs that are saved, whole or damaged."""
    return sorted({*saved_epochs(self._workdir), *self._manager.all_steps()})

  def _found(self, epoch, expected):
    """Returns a structure from what Orbax notes of a state; None for damage."""
    try:
      with _quiet():
        metadata = self._manager.item_metadata(epoch)
        leaves = jax.tree_util.tree_leaves_with_path(
            getattr(metadata, 'tree', metadata))
      # Orbax restores types as asked for.
      return {name: _described(expected.get(name, '').partition(' ')[0], shape)
              for name, shape in ((_path(path), leaf.shape)
                                  for path, leaf in leaves)}
    except Exception:  # Damage: reading it will say what is wrong.
      return None

  def _put_aside(self, epochs):
    """Moves the checkpoints of epochs out of the way."""
    if jax.process_index() == 0:
      for epoch in epochs:
        path = self._workdir / DAMAGED / f'checkpoint_{epoch}'
        put_aside(self._directory / str(epoch), path)
    if epochs:
      self._method.parallel.all_agree(True)  # Nobody looks before it is done.
      self._manager.reload()


def saved_epochs(workdir: epath.PathLike) -> list[int]:
  """Returns the epochs of which there is a checkpoint, damaged or not.

  Raises:
    OSError: if what should be their directory is none.
  """
  return sorted(int(path.name) for path in directory(workdir).glob('[0-9]*')
                if path.name.isdigit())  # Unfinished ones have a suffix.


def directory(workdir: epath.PathLike) -> epath.Path:
  """Returns where the checkpoints of a work directory are, or will be.

  Raises:
    OSError: if something else is there.
  """
  path = epath.Path(workdir) / _CHECKPOINTS
  if path.exists() and not path.is_dir():
    raise OSError(f'Expected {path} to be a directory: put it back, or remove '
                  'it to start anew.')
  return path


def put_aside(path: epath.Path, aside: epath.Path) -> None:
  """Moves a file or directory to where what was damaged is kept."""
  aside.parent.mkdir(parents=True, exist_ok=True)
  if aside.is_dir():
    aside.rmtree()
  else:
    aside.unlink(missing_ok=True)
  path.rename(aside)


class _Manager(ocp.CheckpointManager):
  """Orbax', which does not look for a preemption itself."""

  def reached_preemption(self, step: int) -> bool:
    """Returns False: `core.stopping` looks.

    JAX has one counter for all who ask whether to stop. Orbax would set it to
    the epoch, and processes would agree on a check that is long past.
    """
    del step
    return False


@dataclasses.dataclass
class _Best:
  """Keeps the best epoch; a preservation policy of Orbax."""
  rank: Callable[[int], float]

  def should_preserve(self, checkpoints, *, context):
    del context
    best = _best([each.step for each in checkpoints], self.rank)
    return [each.step == best for each in checkpoints]


def _best(epochs, rank):
  """Returns the epoch of the highest rank, of equal ones the last; 0 if none.

  An epoch that was not evaluated is the best only if none was.
  """
  return max(epochs, key=lambda epoch: (rank(epoch), epoch), default=0)


@contextlib.contextmanager
def _damage(path) -> Iterator[None]:
  """Turns the many kinds of error in which damage shows into Damaged."""
  try:
    yield
  except Exception as error:
    # Some quote whole specifications.
    reason = textwrap.shorten(errors.reason(error), 200, placeholder=' ...')
    raise records.Damaged(f'Cannot read {path}: {reason}.') from error


@contextlib.contextmanager
def _writing(path) -> Iterator[None]:
  """Turns the many kinds of error of a full disk, for example, into OSError."""
  try:
    with _quiet():
      yield
  except Exception as error:
    raise OSError(f'Cannot write {path}: {errors.reason(error)}.') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps libraries from logging errors that are raised and told anyway."""
  disabled, hook = logging.root.manager.disable, sys.unraisablehook
  logging.disable(logging.CRITICAL)
  sys.unraisablehook = _Hook(hook)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      try:
        yield
      except Exception as error:
        # Reads that are still under way say so when they, or their loop, go:
        # now where that can be had, as tracebacks keep them, and later.
        hook = _Hook(hook)
        failed = error
        while failed is not None:
          traceback.clear_frames(failed.__traceback__)
          failed = failed.__cause__ or failed.__context__
        gc.collect()
        raise
  finally:
    logging.disable(disabled)
    sys.unraisablehook = hook


class _Hook:
  """An unraisable hook that hears nothing of what is read asynchronously."""

  def __init__(self, hook):
    self._hook = hook._hook if isinstance(hook, _Hook) else hook

  def __call__(self, unraisable):
    late = (isinstance(unraisable.object, types.CoroutineType)
            or 'Event loop is closed' in str(unraisable.exc_value))
    if not late:
      self._hook(unraisable)


def _structure(tree):
  """Returns type and shape of each leaf as text, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(states.without_keys(tree))
  return {_path(path): _described(leaf.dtype, np.shape(leaf))
          for path, leaf in leaves}


def _described(dtype, shape):
  return f'{dtype} {list(shape)}'


def _differences(expected, found):
  """Returns in what a saved structure differs from an expected one."""
  if found is None:
    return ''
  listed = {
      'it lacks': sorted(expected.keys() - found.keys()),
      'it has besides': sorted(found.keys() - expected.keys()),
      'of other types or shapes are': sorted(
          name for name in expected.keys() & found.keys()
          if expected[name] != found[name])}
  return '; '.join(
      f'{what} {", ".join(names[:5])}'
      + (f' and {len(names) - 5} more' if len(names) > 5 else '')
      for what, names in listed.items() if names)


def _path(path):
  """Returns the path of a leaf with dots, of dicts and attributes alike."""
  return '.'.join(
      str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key))))
      for key in path)


def _config(workdir):
  """Returns what config.json says, {} if nothing."""
  try:
    found = json.loads((workdir / 'config.json').read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
