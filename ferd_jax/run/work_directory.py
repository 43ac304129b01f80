"""The work directory: what is in it, and whose it is.

  config.json          what the run is; another config is refused
  results.json         teacher and student at the end of the run
  evaluation.json      the same of `--mode=evaluate`
  export/              student and generator for PyTorch, see `export`
  metrics.jsonl        a line per epoch
  samples/             pictures of synthetic images
  log.txt              what the run said, with time stamps
  evaluation/          what an evaluation that is not finished has found so far
  checkpoints/<epoch>  the state, see `checkpoints`: the last epochs, the best
  pool/epoch_*.npz     the synthetic images, one file an epoch
  lock.json            who works in it, see `lock`
  sessions.json        what it was started by and on, see `sessions`
  damaged/             what could not be read, and was made again
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax

from ferd_jax.core import atomic
from ferd_jax.core import errors
from ferd_jax.core import reporting
from ferd_jax.run import checkpoints
from ferd_jax.run import lock
from ferd_jax.run import settings

# Of what a work directory holds. It changes when an older one could not be
# gone on with; a new setting does not change it, its default is filled in.
FORMAT = 2
# What an identity says of the real images that a run was trained on; a
# data-free one says nothing.
TRAINING_DATA = 'training_data'
# What may differ when a run goes on: of these only `parallel` changes numbers
# of the training, by rounding. What the teachers are, wherever they come from,
# is compared by digest and network.
_FREE = ('data.dir', 'eval.attacks', 'eval.autoattack_examples',
         'eval.batch_size', 'eval.diagnosed_examples', 'eval.nsd_ddof',
         'eval.target_examples', 'eval.teacher_dir', 'log', 'max_minutes',
         'parallel', 'pool.place', 'teacher', 'teachers')
# What may differ, besides, when a saved student is only evaluated.
_FREE_TO_EVALUATE = ('data', 'eps', 'eval.curve_attacks', 'eval.curve_examples',
                     'eval.every', 'step_size', TRAINING_DATA)
CONFIG, RESULTS, LOG = 'config.json', 'results.json', 'log.txt'
_ABSENT = object()


def claim(workdir: epath.PathLike, config: Mapping[str, Any], *,
          start: bool = True,
          reporter: reporting.Reporter = reporting.TERMINAL) -> None:
  """Writes the config into a new work directory, or compares it with the old.

  A directory is new until its first checkpoint or results. The directory's
  lock is held meanwhile, and not any more afterwards; that of a finished run is
  only read.

  Args:
    workdir: of the run; made if absent.
    config: nested dict of JSON values, all that defines the run.
    start: whether to train. Otherwise there must be a checkpoint, and the data
      may be other than those of the run's own evaluation; nothing is written.
    reporter: told if config.json was damaged.

  Raises:
    OSError: if what should be a directory in it is none.
    ValueError: if the directory belongs to another config. The message lists
      every key that differs, with both values. Also if somebody works in it,
      there must be a checkpoint and is none, or the config cannot be read or
      written.
  """
  if not start or (epath.Path(workdir) / RESULTS).exists():
    check(workdir, config, start=start, reporter=reporter)
    return
  with lock.held(workdir, reporter):
    check(workdir, config, reporter=reporter)


def check(workdir: epath.PathLike, config: Mapping[str, Any], *,
          start: bool = True,
          reporter: reporting.Reporter = reporting.TERMINAL) -> None:
  """Does what `claim` does, for who holds the lock."""
  workdir = epath.Path(workdir)
  new = json.loads(json.dumps(config))
  saved = bool(saved_epochs(workdir))
  if not (saved or start):
    raise ValueError(f'Expected a checkpoint in workdir={str(workdir)!r}; '
                     'train first.')
  if not (saved or (workdir / RESULTS).exists()):
    _write(workdir, new)
    return
  old, damage = _identity(workdir)
  check_format(workdir, old)
  free = _FREE if start else _FREE + _FREE_TO_EVALUATE
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
  if damage:
    reporter.line(f'Warning: {damage} The last checkpoint says what it said.')
    if start:
      _write(workdir, old)


def _write(workdir, identity):
  if jax.process_index():
    return
  try:
    path = workdir / CONFIG
    if path.is_dir():
      checkpoints.put_aside(path, workdir / checkpoints.DAMAGED / CONFIG)
    atomic.write_text(path, json.dumps(identity, indent=2) + '\n')
  except OSError as error:
    raise ValueError(
        f'Cannot write into workdir={str(workdir)!r}: {error}') from error


def saved_identity(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns what `claim` wrote into a work directory.

  If it cannot be read, what the last checkpoint has of it.

  Raises:
    ValueError: if it is not there or cannot be read.
  """
  return _identity(epath.Path(workdir))[0]


def _identity(workdir):
  """Returns what the run is, and what is wrong with config.json or ''."""
  path = workdir / CONFIG
  try:
    identity = json.loads(path.read_text())
    if isinstance(identity, dict) and identity:
      return identity, ''
    damage = 'it holds no settings'
  except (OSError, ValueError) as error:
    damage = errors.reason(error)
  damage = f'Cannot read {path}: {damage}.'
  for epoch in reversed(saved_epochs(workdir)):
    try:
      with checkpoints.Checkpoints(workdir, None) as saved:
        identity = saved.identity(epoch)
    except OSError:
      continue
    if identity:
      return dict(identity), damage
  raise ValueError(
      f'{damage} No checkpoint says what the run is: put the file back, or '
      'start anew in another directory.')


def saved_epochs(workdir: epath.PathLike) -> list[int]:
  """Returns what `checkpoints.saved_epochs` does, for who reads no states."""
  return checkpoints.saved_epochs(workdir)


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
      f'format {FORMAT}: go on with ferd_jax '
      f'{identity.get("ferd_jax", "0.1.0")}, which it is of, or use another '
      f'directory. Nothing in it is damaged.{hint}')


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
