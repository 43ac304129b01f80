"""The work directory: its config, checkpoints and pool.

  config.json          what the run is; another config is refused
  results.json         teacher and student at the end of the run
  evaluation.json      the same of `--mode=evaluate`
  export/              student and generator for PyTorch, see `export`
  generator.npz        the last epoch's generator
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
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.run import state as states
from ferd_jax.synthesis import pool as pools

LAST = 'last'
# What may differ when a run goes on: of these only `parallel` changes numbers
# of the training, by rounding.
_FREE = ('data.dir', 'eval.attacks', 'eval.autoattack_examples',
         'eval.batch_size', 'eval.nsd_ddof', 'eval.target_examples', 'log',
         'max_minutes', 'parallel', 'teacher.path', 'teacher.select')
# What may differ, besides, when a saved student is only evaluated.
_FREE_TO_EVALUATE = ('data', 'eps', 'eval.curve_attacks', 'eval.curve_examples',
                     'eval.every', 'step_size')
RESULTS = 'results.json'


class Checkpoints:
  """Saves and restores a run in its work directory; use it in `with`.

  Attributes:
    select: 'last', or the name of the metric by which the best epoch is kept.
  """

  def __init__(self, workdir: epath.PathLike, select: str = LAST):
    self.select = select
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

  def save(self, epoch: int, state: states.FerdState, pool: pools.Pool,
           new_images: int, metrics: Mapping[str, float]) -> None:
    """Saves an epoch: the pool's new images first, then the state.

    Args:
      epoch: epochs completed.
      state: of the run.
      pool: of which only the last `new_images` are written.
      new_images: how many this epoch added.
      metrics: with `select` in it if this epoch was evaluated.
    """
    if jax.process_index() == 0:
      pool.save_last(self._pool_dir, epoch, new_images)
    ranked = {name: metrics[name] for name in metrics if name == self.select}
    self._manager.save(epoch, args=ocp.args.StandardSave(state),
                       metrics=ranked)

  def restore(self, like: states.FerdState, epoch: int) -> states.FerdState:
    """Returns the state of an epoch, with the shardings of `like`.

    Raises:
      OSError: if it cannot be read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      return self._manager.restore(
          epoch, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      path = self._workdir / 'checkpoints' / str(epoch)
      raise OSError(f'Cannot read {path}: {errors.reason(error)}. Without this '
                    'directory the run goes on from the one before.'
                    ) from error

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
    changes = [
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
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'Cannot read {path}: {error}') from error


def _differences(new, old, prefix=''):
  """Yields (key, new value, old value) of the leaves that differ."""
  if isinstance(new, dict) and isinstance(old, dict):
    for name in sorted(new.keys() | old.keys()):
      yield from _differences(new.get(name), old.get(name),
                              f'{prefix}.{name}' if prefix else name)
  elif new != old:
    yield prefix, new, old
