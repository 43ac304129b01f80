"""Compiled programs: kept between starts, counted, and XLA's options for them.

A command keeps what it compiles in a directory of its user, so that the next
start, another seed and an evaluation load it. Code that only imports the
attacks does not: where programs are kept is for the program to say that runs.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import time

import jax

from ferd_jax.core import caches
from ferd_jax.core import errors
from ferd_jax.core import reporting

_COMPILED = '/jax/core/compile/backend_compile_duration'  # or loaded
_SECONDS = (_COMPILED, '/jax/core/compile/jaxpr_trace_duration',
            '/jax/core/compile/jaxpr_to_mlir_module_duration')
_LOADED = '/jax/compilation_cache/cache_hits'
_LEAST_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def options(platform_name: str) -> dict[str, int | str]:
  """Returns XLA's options for the programs of this package.

  Those that the user gives in `XLA_FLAGS` are left out: they have precedence.

  Args:
    platform_name: of the devices, such as 'cpu' or 'gpu'.
  """
  if platform_name != 'cpu':
    return {}
  chosen = os.environ.get('XLA_FLAGS', '')  # by the user
  return {name: value for name, value in {
      # LLVM at its default level takes two to five times as long to compile
      # a step, most of it on the random numbers, for no faster code.
      'xla_backend_optimization_level': 1,
      # XLA's YNNPACK fusions make the weight gradients of convolutions up to
      # five times slower, a generator step up to twice; and wrong gradients
      # of convolutions were reported of them (jaxlib 0.11).
      'xla_cpu_experimental_ynn_fusion_type': '',
  }.items() if f'--{name}=' not in chosen}


def keep_programs(
    reporter: reporting.Reporter = reporting.TERMINAL) -> pathlib.Path | None:
  """Keeps what this process compiles from now on, for its next start.

  In `programs` of `caches.place()`, by kind of processor, with mode 0700: who
  can write there can run code as this user. `JAX_COMPILATION_CACHE_DIR` names
  another place, which is then JAX's own affair, and
  `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.

  Must be called before anything is compiled.

  Args:
    reporter: told in one line if the directory is of no use.

  Returns:
    The directory; None if this process keeps nothing there.
  """
  if (jax.config.jax_compilation_cache_dir
      or not jax.config.jax_enable_compilation_cache):
    return None
  directory = caches.place() / 'programs' / _processor()
  try:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in (directory.parent, directory):
      each.chmod(0o700)
      _check_own(each)
  except OSError as error:
    reporter.line(f'Warning: compiled programs are not kept in {directory}: '
                  f'{errors.reason(error)}.')
    return None
  jax.config.update('jax_compilation_cache_dir', str(directory))
  if _LEAST_SECONDS.upper() not in os.environ:
    # A start has hundreds of programs that take less than JAX's second each.
    jax.config.update(_LEAST_SECONDS, 0.)
  return directory


def _check_own(directory):
  """Raises OSError for a directory that somebody else could write to."""
  found = directory.lstat()
  if not stat.S_ISDIR(found.st_mode):
    raise OSError('it is no directory')
  if hasattr(os, 'getuid') and found.st_uid != os.getuid():
    raise OSError('it is another user\'s')


def _processor():
  """Returns a name of this host's kind of processor.

  Programs for a CPU use the instructions that it has, and homes are shared.
  """
  about = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text()
    about += sorted({line for line in text.splitlines() if line.startswith(
        ('model name', 'flags', 'Features'))})
  digest = hashlib.sha256('\n'.join(about).encode()).hexdigest()[:12]
  return f'{platform.machine() or "any"}-{digest}'


class Programs:
  """What has been compiled since it was made.

  Attributes:
    compiled: how many programs.
    loaded: how many came from those that were kept.
    seconds: that tracing, compiling and loading took.
  """

  def __init__(self):
    self.compiled, self.loaded, self.seconds = 0, 0, 0.
    self._busy_until = time.monotonic()

  def __str__(self):
    return (f'{self.compiled} programs compiled and {self.loaded} loaded in '
            f'{self.seconds:.0f} s')

  def _event(self, name, **_):
    if name == _LOADED:
      self.loaded += 1
      self.compiled -= 1  # It is counted as compiled, too.

  def _duration(self, name, seconds, **_):
    if name not in _SECONDS:
      return
    self.compiled += name == _COMPILED
    # Functions within one another are traced at the same time.
    now = time.monotonic()
    self.seconds += max(0., min(seconds, now - self._busy_until))
    self._busy_until = now


@contextlib.contextmanager
def counted() -> Iterator[Programs]:
  """Yields what is compiled in this context, as it goes on."""
  found = Programs()
  jax.monitoring.register_event_listener(found._event)
  jax.monitoring.register_event_duration_secs_listener(found._duration)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_listener(found._event)
    jax.monitoring.unregister_event_duration_listener(found._duration)
