"""Validators of settings: one form of message, with the name and the value.

Each takes keyword arguments, so that the name in the message is the caller's:
`validate.positive(num_steps=n)` raises `Expected num_steps=0 > 0.`
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import difflib
import math
import numbers
from typing import Any

_SMALLEST, _LARGEST = 1e-9, 1e9
# Evaluations have thousands at most.
_MOST_ATTACK_STEPS = 10_000
_LEAST_RATE, _LARGEST_RATE = 1e-7, 100


class SettingError(ValueError):
  """A setting that is out of range.

  Attributes:
    name: of the setting, with the groups that it is in.
    value: as it was given.
    expectation: what was expected of it.
  """

  def __init__(self, name: str, value: Any, expectation: str):
    super().__init__(f'Expected {name}={value!r} {expectation}')
    self.name, self.value, self.expectation = name, value, expectation

  def __reduce__(self):
    return type(self), (self.name, self.value, self.expectation)

  def within(self, group: str,
             names: Mapping[str, str] | None = None) -> 'SettingError':
    """Returns the error with the group's name before the setting's.

    Args:
      group: of a config.
      names: the group's name of a setting whose own name differs.
    """
    name = (names or {}).get(self.name, self.name)
    return SettingError(f'{group}.{name}', self.value, self.expectation)


@contextlib.contextmanager
def named(group: str, **names: str) -> Iterator[None]:
  """Puts a group of the config before the names in errors raised inside.

  Args:
    group: of the config.
    **names: the config's name of a setting whose own name differs.

  Raises:
    SettingError: `Expected distill.steps=0 > 0.` for one raised inside as
      `Expected steps=0 > 0.`
    ValueError: with the group in front, for another one.
    OSError: the same, of its own kind.
  """
  try:
    yield
  except SettingError as error:
    raise error.within(group, names) from error
  except (OSError, ValueError) as error:
    # FileNotFoundError stays one; decoding errors take other arguments.
    kind = type(error) if isinstance(error, OSError) else ValueError
    raise kind(f'{group}: {error}') from error


def finite(**values: float) -> None:
  """Raises SettingError unless every value is a finite number."""
  for name, value in values.items():
    if not _is_finite(value):
      raise SettingError(name, value, 'to be a finite number.')


def positive(**values: float) -> None:
  """Raises SettingError unless every value is a finite number above zero."""
  for name, value in values.items():
    if not (_is_finite(value) and value > 0):
      raise SettingError(name, value, '> 0.')


def non_negative(**values: float) -> None:
  """Raises SettingError unless every value is finite and at least zero."""
  for name, value in values.items():
    if not (_is_finite(value) and value >= 0):
      raise SettingError(name, value, '>= 0.')


def sensible(**values: float) -> None:
  """Raises SettingError for what is too small or large to mean anything.

  Beside numbers of usual size it vanishes in float32, or they do.
  """
  for name, value in values.items():
    if not _is_finite(value) or value and not (
        _SMALLEST <= abs(value) <= _LARGEST):
      raise SettingError(name, value, f'to be 0 or {_SMALLEST:g} to '
                         f'{_LARGEST:g} in size.')


def rate(**values: float) -> None:
  """Raises SettingError unless every value can be a learning rate."""
  positive(**values)
  for name, value in values.items():
    if not _LEAST_RATE <= value <= _LARGEST_RATE:
      raise SettingError(
          name, value, f'in [{_LEAST_RATE:g}, {_LARGEST_RATE:g}]: others train '
          'nothing.')


def count(minimum: int = 1, **values: int) -> None:
  """Raises SettingError unless every value is a whole number >= minimum.

  It has to fit an int32, in which devices count.
  """
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(
        value, numbers.Integral) or value < minimum:
      raise SettingError(name, value, f'to be a whole number >= {minimum}.')
    if value >= 1 << 31:
      raise SettingError(name, value, 'below 2**31.')


def attack_steps(minimum: int = 1, **values: int) -> None:
  """Raises SettingError unless every value is a number of attack steps."""
  count(minimum, **values)
  for name, value in values.items():
    if value > _MOST_ATTACK_STEPS:
      raise SettingError(name, value, f'<= {_MOST_ATTACK_STEPS}: a training '
                         'step waits for all of them.')


def in_range(low: float, high: float, **values: float) -> None:
  """Raises SettingError unless every value lies in [low, high]."""
  for name, value in values.items():
    if not (_is_finite(value) and low <= value <= high):
      raise SettingError(name, value, f'in [{low}, {high}].')


def ordered(**bounds: tuple[float, float]) -> None:
  """Raises SettingError unless all are (low, high), 0 < low <= high."""
  for name, values in bounds.items():
    if not isinstance(values, tuple) or len(values) != 2:
      raise SettingError(name, values, 'to be (low, high).')
    for value in values:
      positive(**{name: value})
    if values[0] > values[1]:
      raise SettingError(name, values, 'with low <= high.')


def one_of(options: Collection[Any], **values: Any) -> None:
  """Raises SettingError unless every value is one of the options."""
  for name, value in values.items():
    if value not in options:
      listed = ', '.join(repr(option) for option in options)
      raise SettingError(name, value, f'to be one of {listed}.')


def divisible(by: int, of: str, **values: int) -> None:
  """Raises SettingError unless every value is a multiple of `by`.

  Args:
    by: the divisor.
    of: what the divisor counts, such as 'devices'.
    **values: the values by name.
  """
  for name, value in values.items():
    if value % by:
      below = value // by * by
      near = f'{below} or {below + by}' if below else f'{by}'
      raise SettingError(name, value, f'divisible by {by} {of}; use {near}.')


def nearest(name: str, known: Collection[str]) -> str:
  """Returns ' Did you mean ...?' for a name like a known one, or nothing."""
  lower = {each.lower(): each for each in known}
  close = [lower[each] for each in difflib.get_close_matches(
      name.lower(), lower, n=3)]
  return f' Did you mean {" or ".join(close)}?' if close else ''


def _is_finite(value):
  if isinstance(value, str):
    return False
  try:
    return math.isfinite(value)
  except (OverflowError, TypeError):  # too large for a float, or no number
    return False
