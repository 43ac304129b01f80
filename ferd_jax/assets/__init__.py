"""Robust teachers shipped with the package, in PyTorch key layout.

benchmarks/train_teacher.py made them; a `.json` beside each holds its recipe
and its test accuracies.
"""

import pathlib


def path(name: str) -> str:
  """Returns the path of a shipped file."""
  return str(pathlib.Path(__file__).parent / name)
