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
