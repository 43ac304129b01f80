"""Validators of settings: one form of message, with the name and the value.

Each takes keyword arguments, so that the name in the message is the caller's:
`validate.positive(num_steps=n)` raises `Expected num_steps=0 > 0.`
"""

from collections.abc import Collection
from collections.abc import Iterator
import contextlib
import math
import numbers
import re
from typing import Any


@contextlib.contextmanager
def named(group: str, **names: str) -> Iterator[None]:
  """Turns the names in messages raised inside into those of the config.

  Args:
    group: of the config, put before the names.
    **names: the config's name of a setting whose own name differs.

  Raises:
    ValueError: `Expected distill.attack_steps=0 > 0.` for one raised inside
      as `Expected num_steps=0 > 0.` Other messages get the group in front.
    OSError: the same for one raised inside, of its own kind.
  """
  try:
    yield
  except (OSError, ValueError) as error:
    # FileNotFoundError stays one; decoding errors take other arguments.
    kind = type(error) if isinstance(error, OSError) else ValueError
    match = re.match(r'Expected (\w+)=', str(error))
    if match is None:
      raise kind(f'{group}: {error}') from error
    name = names.get(match[1], match[1])
    raise kind(
        f'Expected {group}.{name}={str(error)[match.end():]}') from error


def finite(**values: float) -> None:
  """Raises ValueError unless every value is a finite number."""
  for name, value in values.items():
    if not _is_finite(value):
      raise ValueError(f'Expected {name}={value!r} to be a finite number.')


def positive(**values: float) -> None:
  """Raises ValueError unless every value is a finite number above zero."""
  for name, value in values.items():
    if not (_is_finite(value) and value > 0):
      raise ValueError(f'Expected {name}={value!r} > 0.')


def non_negative(**values: float) -> None:
  """Raises ValueError unless every value is finite and at least zero."""
  for name, value in values.items():
    if not (_is_finite(value) and value >= 0):
      raise ValueError(f'Expected {name}={value!r} >= 0.')


def count(minimum: int = 1, **values: int) -> None:
  """Raises ValueError unless every value is a whole number >= minimum."""
  for name, value in values.items():
    if not isinstance(value, numbers.Integral) or value < minimum:
      raise ValueError(f'Expected {name}={value!r} to be a whole number >= '
                       f'{minimum}.')


def in_range(low: float, high: float, **values: float) -> None:
  """Raises ValueError unless every value lies in [low, high]."""
  for name, value in values.items():
    if not (_is_finite(value) and low <= value <= high):
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


def _is_finite(value):
  if isinstance(value, str):
    return False
  try:
    return math.isfinite(value)
  except (OverflowError, TypeError):  # too large for a float, or no number
    return False
