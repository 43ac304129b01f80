"""The memory of this host, and whether something fits into it."""

import math
import os
import pathlib
from typing import Any

import jax

# Of containers, by version of the kernel's interface.
_LIMITS = ('/sys/fs/cgroup/memory.max',
           '/sys/fs/cgroup/memory/memory.limit_in_bytes')


def of_host() -> int:
  """Returns the bytes of memory that this process may have at most."""
  try:
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (AttributeError, OSError, ValueError):  # Not on Windows.
    total = 1 << 50
  for path in _LIMITS:
    try:
      total = min(total, int(pathlib.Path(path).read_text()))
    except (OSError, ValueError):  # Absent, or 'max'.
      continue
  return total


def size(tree: Any) -> int:
  """Returns the bytes of arrays, or of their shapes."""
  return sum(math.prod(leaf.shape) * (
      8 if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))


def check(what: str, num_bytes: int, cure: str) -> None:
  """Raises ValueError for what cannot fit, before it is allocated.

  Args:
    what: is to be held, such as 'a pool of 10 images'.
    num_bytes: that it takes at least.
    cure: which settings make it smaller.
  """
  total = of_host()
  if num_bytes > total:
    raise ValueError(
        f'Expected {what} to fit the {total / 1e9:,.1f} GB of this host, not '
        f'to take {num_bytes / 1e9:,.1f} GB: {cure}.')


def in_use() -> tuple[int, int]:
  """Returns the bytes of memory in use on this process' devices, and of all.

  Where the devices are the processor that is what this process has, of what
  it may have. (0, 0) if nobody knows.
  """
  used = limit = 0
  for device in jax.local_devices():
    stats = device.memory_stats() or {}
    used += stats.get('bytes_in_use', 0)
    limit += stats.get('bytes_limit', 0)
  if limit or jax.default_backend() != 'cpu':
    return used, limit
  try:
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE'), of_host()
  except (AttributeError, OSError, ValueError):  # Not on Linux.
    return 0, 0


def text() -> str:
  """Returns what a person is told of the devices and their memory."""
  devices = jax.local_devices()
  name = f'{len(devices)} x {devices[0].device_kind}'
  used, limit = in_use()
  if not used:
    return name
  share = f' of {limit / 2 ** 30:,.1f}' if limit else ''
  return f'{name}, memory {used / 2 ** 30:,.1f}{share} GiB'
