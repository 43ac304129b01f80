"""What a run was started by, and on what: a record for whoever reads it later.

`sessions.json` has one entry for each start of training: the time, the exact
command, versions and hardware, and what the evaluation took that ended it.
Nothing of a run depends on it.
"""

from collections.abc import Iterator
import contextlib
import datetime
from importlib import metadata
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

from etils import epath
import jax

import ferd_jax
from ferd_jax.core import atomic
from ferd_jax.run import checkpoints

SESSIONS = 'sessions.json'
EVALUATION = 'evaluation_seconds'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def begin(workdir: epath.PathLike) -> None:
  """Adds this session; process 0 alone writes.

  Args:
    workdir: of the run, whose lock is held.
  """
  if jax.process_index():
    return
  _write(workdir, [*read(workdir), {
      'started': datetime.datetime.now(datetime.UTC).isoformat(
          timespec='seconds'),
      'command': shlex.join(['python', *sys.orig_argv[1:]]),
      'versions': versions(), 'hardware': hardware()}])


@contextlib.contextmanager
def timed(workdir: epath.PathLike, name: str) -> Iterator[None]:
  """Adds to the last session how many seconds something took."""
  started = time.monotonic()
  try:
    yield
  finally:  # An evaluation that is stopped goes on in another session.
    found = read(workdir)
    if found and not jax.process_index():
      spent = found[-1].get(name, 0.)
      found[-1][name] = spent + time.monotonic() - started
      _write(workdir, found)


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the sessions, first one first; none if nothing can be read."""
  try:
    found = json.loads((epath.Path(workdir) / SESSIONS).read_text())
  except (OSError, ValueError):
    return []
  if not isinstance(found, list):
    return []
  return [each for each in found if isinstance(each, dict)]


def versions() -> dict[str, str]:
  """Returns the versions of what a run's numbers depend on, by name."""
  found = {'ferd_jax': ferd_jax.__version__,
           'python': platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[package] = metadata.version(package)
  return found


def hardware() -> dict[str, Any]:
  """Returns devices, processor and system, JSON values."""
  devices = jax.devices()
  return {'devices': f'{len(devices)} x {devices[0].device_kind}',
          'processes': jax.process_count(), 'processor': _processor(),
          'cores': len(os.sched_getaffinity(0)) if hasattr(
              os, 'sched_getaffinity') else os.cpu_count(),
          'system': platform.platform()}


def _processor():
  """Returns the name of the processor, as far as the system tells it."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def _write(workdir, found):
  path = epath.Path(workdir) / SESSIONS
  if path.is_dir():
    checkpoints.put_aside(path, path.parent / checkpoints.DAMAGED / SESSIONS)
  atomic.write_text(path, json.dumps(found, indent=2) + '\n')
