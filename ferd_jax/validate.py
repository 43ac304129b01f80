"""Validators of settings: one form of message, with the name and the value.

Each takes keyword arguments, so that the name in the message is the caller's:
`validate.positive(num_steps=n)` raises `Expected num_steps=0 > 0.`
"""

from collections.abc import Collection
import math
from typing import Any


def positive(**values: float) -> None:
  """Raises ValueError unless every value is a finite number above zero."""
  for name, value in values.items():
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f'Expected {name}={value!r} > 0.')


def non_negative(**values: float) -> None:
  """Raises ValueError unless every value is finite and at least zero."""
  for name, value in values.items():
    if not (math.isfinite(value) and value >= 0):
      raise ValueError(f'Expected {name}={value!r} >= 0.')


def in_range(low: float, high: float, **values: float) -> None:
  """Raises ValueError unless every value lies in [low, high]."""
  for name, value in values.items():
    if not low <= value <= high:
      raise ValueError(f'Expected {name}={value!r} in [{low}, {high}].')


def one_of(options: Collection[Any], **values: Any) -> None:
  """Raises ValueError unless every value is one of the options."""
  for name, value in values.items():
    if value not in options:
      listed = ', '.join(repr(option) for option in options)
      raise ValueError(f'Expected {name}={value!r} to be one of {listed}.')


def divisible(by: int, of: str, **values: int) -> None:
  """Raises ValueError unless every value is a multiple of `by`.

  Args:
    by: the divisor.
    of: what the divisor counts, such as 'devices'.
    **values: the values by name.
  """
  for name, value in values.items():
    if value % by:
      below = value // by * by
      near = f'{below} or {below + by}' if below else f'{by}'
      raise ValueError(
          f'Expected {name}={value} divisible by {by} {of}; use {near}.')
