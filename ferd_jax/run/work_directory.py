"""The work directory: its config, checkpoints and pool.

  config.json          what the run is; another config is refused
  results.json         teacher and student at the end of the run
  evaluation.json      the same of `--mode=evaluate`
  export/              student and generator for PyTorch, see `export`
  metrics.jsonl        a line per epoch
  samples/             pictures of synthetic images
  autoattack/          states of an evaluation that is not finished
  checkpoints/<epoch>  the state, by Orbax: the latest epochs and the best one
  pool/epoch_*.npz     the synthetic images, one file an epoch
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath
import jax
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.run import method as methods
from ferd_jax.run import settings
from ferd_jax.run import state as states
from ferd_jax.synthesis import pool as pools

# Of what a work directory holds. It changes when an older one could not be
# gone on with; a new setting does not change it, its default is filled in.
FORMAT = 2
LAST = 'last'
# What an identity says of the real images that a run was trained on; a
# data-free one says nothing.
TRAINING_DATA = 'training_data'
# What may differ when a run goes on: of these only `parallel` changes numbers
# of the training, by rounding. What the teachers are, wherever they come from,
# is compared by digest and network.
_FREE = ('data.dir', 'eval.attacks', 'eval.autoattack_examples',
         'eval.batch_size', 'eval.nsd_ddof', 'eval.target_examples', 'log',
         'max_minutes', 'parallel', 'teacher', 'teachers')
# What may differ, besides, when a saved student is only evaluated.
_FREE_TO_EVALUATE = ('data', 'eps', 'eval.curve_attacks', 'eval.curve_examples',
                     'eval.every', 'step_size', TRAINING_DATA)
RESULTS = 'results.json'
_ABSENT = object()


class Checkpoints:
  """Saves and restores a run in its work directory; use it in `with`.

  Attributes:
    select: 'last', or the name of the metric by which the best epoch is kept.
  """

  def __init__(self, workdir: epath.PathLike, method: methods.Method | None,
               select: str = LAST):
    """Opens the checkpoints of a work directory.

    Args:
      workdir: of the run.
      method: whose state they hold; None to look at their numbers only.
      select: see the class.
    """
    self.select, self._method = select, method
    self._workdir = epath.Path(workdir).absolute()
    policies = [checkpoint_managers.LatestN(2)]
    best = {}
    if select != LAST:
      # An epoch that was not evaluated is the best only if none was.
      best = dict(best_fn=lambda metrics: metrics.get(select, -math.inf),
                  best_mode='max')
      policies.append(checkpoint_managers.BestN(
          n=1, get_metric_fn=best['best_fn']))
    self._manager = ocp.CheckpointManager(
        self._workdir / 'checkpoints',
        # Without it the shapes in a checkpoint are not known.
        item_handlers=ocp.StandardCheckpointHandler(),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                policies), **best))

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  @property
  def latest_epoch(self) -> int:
    """The last saved epoch, 0 if there is none."""
    return self._manager.latest_step() or 0

  @property
  def selected_epoch(self) -> int:
    """The epoch to evaluate: the last, or the best by `select`; 0 if none."""
    if self.select == LAST:
      return self.latest_epoch
    return self._manager.best_step() or self.latest_epoch

  def save(self, epoch: int, state: states.TrainState, pool: pools.Pool,
           new_images: int, metrics: Mapping[str, float]) -> None:
    """Saves an epoch: the pool's new images first, then the state.

    Args:
      epoch: epochs completed.
      state: of the run.
      pool: of which only the last `new_images` are written.
      new_images: how many this epoch added.
      metrics: with `select` in it if this epoch was evaluated.
    """
    if new_images and jax.process_index() == 0:
      pool.save_last(self._pool_dir, epoch, new_images)
    ranked = {name: metrics[name] for name in metrics if name == self.select}
    self._manager.save(
        epoch, args=ocp.args.StandardSave(
            states.gathered(self._method, state)), metrics=ranked)

  def restore(self, like: states.TrainState, epoch: int) -> states.TrainState:
    """Returns the state of an epoch, placed as `like` is.

    Raises:
      ValueError: if the checkpoint has other fields or shapes than `like`; the
        message names them. It may be of another version.
      OSError: if it cannot be read.
    """
    like = states.gathered(self._method, like)
    path = self._workdir / 'checkpoints' / str(epoch)
    differences = _tree_differences(like, self._shapes(epoch))
    if differences:
      raise ValueError(
          f'{path} holds a state of another version or method: {differences}. '
          'The run can be gone on with by the version that it is of '
          f'({_version(self._workdir)}); nothing is damaged.')
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      state = self._manager.restore(
          epoch, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      earlier = [step for step in self._manager.all_steps() if step < epoch]
      advice = (f'Without this directory the run goes on from epoch '
                f'{max(earlier)}.' if earlier else
                'There is no earlier one: without the work directory the run '
                'starts anew.')
      raise OSError(f'Cannot read {path}: {errors.reason(error)}. {advice}'
                    ) from error
    return states.placed(self._method, state)

  def _shapes(self, epoch):
    """Returns the saved arrays' shapes by path, None if they are not known."""
    try:
      metadata = self._manager.item_metadata(epoch)
      leaves = jax.tree_util.tree_leaves_with_path(
          getattr(metadata, 'tree', metadata))
      return {_path(path): tuple(leaf.shape) for path, leaf in leaves}
    except Exception:  # Damage: reading it will say what is wrong.
      return None

  def restore_pool(self, pool: pools.Pool, epoch: int) -> None:
    """Fills an empty pool with the images of the epochs up to `epoch`."""
    pool.restore(self._pool_dir, epoch)

  @property
  def _pool_dir(self) -> epath.Path:
    return self._workdir / 'pool'


def claim(workdir: epath.PathLike, config: Mapping[str, Any], *,
          start: bool = True) -> None:
  """Writes the config into a new work directory, or compares it with the old.

  A directory is new until its first checkpoint or results.

  Args:
    workdir: of the run; made if absent.
    config: nested dict of JSON values, all that defines the run.
    start: whether to train. Otherwise there must be a checkpoint, and the data
      may be other than those of the run's own evaluation.

  Raises:
    ValueError: if the directory belongs to another config. The message lists
      every key that differs, with both values. Also if there must be a
      checkpoint and is none, or the config cannot be read or written.
  """
  workdir = epath.Path(workdir)
  path = workdir / 'config.json'
  new = json.loads(json.dumps(config))
  saved = any(path.name.isdigit()  # Unfinished ones have a suffix.
              for path in (workdir / 'checkpoints').glob('[0-9]*'))
  if not (saved or start):
    raise ValueError(f'Expected a checkpoint in workdir={str(workdir)!r}; '
                     'train first.')
  free = _FREE if start else _FREE + _FREE_TO_EVALUATE
  if saved or (workdir / RESULTS).exists():
    old = saved_identity(workdir)
    check_format(workdir, old)
    changes = [
        f'{key} was {old_value!r}, and is no setting of this version'
        if new_value is _ABSENT else
        f'{key} is {new_value!r}, was {old_value!r}'
        for key, new_value, old_value in _differences(new, old)
        if not any(key == name or key.startswith(f'{name}.')
                   for name in free)]
    if changes:
      advice = (
          'Use another --workdir or the old config.' if start else
          'In an evaluation only data of the same shape and classes, eps and '
          'the attacks may be others.')
      raise ValueError(
          f'Expected workdir={str(workdir)!r} to be of this config: '
          f'{"; ".join(changes)}. {advice}')
  elif jax.process_index() == 0:
    try:
      atomic.write_text(path, json.dumps(new, indent=2) + '\n')
    except OSError as error:
      raise ValueError(
          f'Cannot write into workdir={str(workdir)!r}: {error}') from error


def saved_identity(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns what `claim` wrote into a work directory.

  Raises:
    ValueError: if it is not there or cannot be read.
  """
  path = epath.Path(workdir) / 'config.json'
  try:
    identity = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'Cannot read {path}: {error}') from error
  if not isinstance(identity, dict):
    raise ValueError(f'Cannot read {path}: it holds no settings.')
  return identity


def training_data(workdir: epath.PathLike) -> dict[str, Any] | None:
  """Returns on which real images a run was trained, None for a data-free one.

  Its `dataset`, `split`, `num_examples` and `digest`.

  Raises:
    ValueError: if the run's config is not there or cannot be read.
  """
  return saved_identity(workdir).get(TRAINING_DATA)


def check_format(workdir: epath.PathLike, identity: Mapping[str, Any]) -> None:
  """Raises ValueError for a work directory of another format."""
  found = identity.get('format', 1)
  if found == FORMAT:
    return
  student = epath.Path(workdir) / 'export' / 'student.npz'
  hint = (f' Its student is still there for python -m ferd_jax.evaluate: '
          f'{student}.' if student.exists() else '')
  raise ValueError(
      f'{workdir} is a work directory of format {found!r}, this version has '
      f'format {FORMAT}: go on with {_version(workdir)}, which it is of, or '
      f'use another directory. Nothing in it is damaged.{hint}')


def _version(workdir):
  """Returns the version that a work directory is of."""
  try:
    version = saved_identity(workdir).get('ferd_jax', '0.1.0')
  except ValueError:
    version = 'unknown'
  return f'ferd_jax {version}'


def _differences(new, old):
  """Yields (setting, new value, old value) of those that differ.

  A setting that the old one does not have had its default then.
  """
  new_values, old_values = dict(settings.flat(new)), dict(settings.flat(old))
  default = dict(settings.flat(json.loads(json.dumps(
      settings.defaults_like(new).to_dict()))))
  for name in sorted(new_values.keys() | old_values.keys()):
    if name == 'ferd_jax':
      continue
    new_value = new_values.get(name, _ABSENT)
    old_value = old_values.get(name, default.get(name))
    if new_value != old_value:
      yield name, new_value, old_value


def _tree_differences(like, saved):
  """Returns in what a saved tree differs from an expected one, or nothing."""
  if saved is None:
    return ''
  expected = {_path(path): tuple(np.shape(leaf)) for path, leaf in
              jax.tree_util.tree_leaves_with_path(states.without_keys(like))}
  listed = {
      'it lacks': sorted(expected.keys() - saved.keys()),
      'it has besides': sorted(saved.keys() - expected.keys()),
      'of other shapes are': sorted(
          name for name in expected.keys() & saved.keys()
          if expected[name] != saved[name])}
  return '; '.join(
      f'{what} {", ".join(names[:5])}'
      + (f' and {len(names) - 5} more' if len(names) > 5 else '')
      for what, names in listed.items() if names)


def _path(path):
  """Returns the path of a leaf with dots, of dicts and attributes alike."""
  return '.'.join(
      str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key))))
      for key in path)
