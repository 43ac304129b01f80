"""Locks of the operating system on open files.

One ends with the process that took it, however that ends, and children inherit
it with the file.
"""

from typing import Any

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None


def take(file: Any) -> bool | None:
  """Returns whether a file was locked: False if somebody else has it locked.

  It does not wait.

  Args:
    file: open, or its descriptor.

  Returns:
    None where there are no locks: on Windows, and on some shared disks.
  """
  if fcntl is None:
    return None
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True
