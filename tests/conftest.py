"""Settings for all tests; they must precede the first use of a device."""

import gc
from importlib import metadata
import os
import pathlib
import tempfile

# Wherever they run; benchmarks/accelerator.py takes what there is, ''.
os.environ['JAX_PLATFORMS'] = os.environ.get('FERD_JAX_TEST_PLATFORMS', 'cpu')
# Four devices for the device-count tests. The tests' nets are tiny: compiling
# them takes longer than running them, optimised or not.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=4',
    '--xla_backend_optimization_level=0',
    # With its new emitters of fused loops XLA takes half as long again to
    # compile; later versions have no others.
    *(['--xla_cpu_use_fusion_emitters=false']
      if metadata.version('jaxlib').startswith('0.10.') else [])])
# Many tests compile the same programs; the processes they start inherit this.
# Most are single operations, which take longer to compile than to load.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='ferd_jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# Where in Python operations come from is a fifteenth of the tests' CPU time.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'

import jax
import pytest

if os.environ['JAX_PLATFORMS'] != 'cpu':
  # Compared with what a CPU computes.
  jax.config.update('jax_default_matmul_precision', 'highest')
# [B] + [B, 1] is a mistake, not a broadcast.
jax.config.update('jax_numpy_rank_promotion', 'raise')


# Pieces of the memory map, of which Linux gives a process 65,530; a whole
# suite's compiled functions are more.
_MAPS, _FULL = pathlib.Path('/proc/self/maps'), 30_000


@pytest.fixture(scope='module', autouse=True)
def _forget_what_was_compiled():
  yield
  if not _MAPS.exists() or len(_MAPS.read_bytes().splitlines()) > _FULL:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='module')
def float64():
  """All of a module computes in it: `pytest.mark.usefixtures('float64')`."""
  with jax.enable_x64(True):
    yield
