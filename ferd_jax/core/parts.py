"""Parts of a method by name: how a config chooses and fills them.

A part is a frozen dataclass. Its fields with a default are settings, one each
in the config's group, with the meaning that the class's docstring gives them
under `Attributes:`; a default that is a frozen dataclass itself is a group
within. A field without a default is given by the run, by its name: `eps`,
`step_size`, `teacher` and so on, see `run.experiment`; one with `given` may be.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import inspect
import re
import typing
from typing import Any

from ferd_jax.core import validate

_NOT_A_SETTING, _GIVEN = 'not_a_setting', 'given'


def fixed(default: Any) -> Any:
  """Returns a dataclass field with a default that no config sets."""
  return dataclasses.field(default=default, metadata={_NOT_A_SETTING: True})


def given(default: Any) -> Any:
  """Returns a dataclass field that the run gives, by its name.

  Args:
    default: outside of a run.
  """
  return dataclasses.field(default=default,
                           metadata={_NOT_A_SETTING: True, _GIVEN: True})


class Registry:
  """The parts of one kind, by name.

  Attributes:
    group: of the config that chooses among them by its `name`.
  """

  def __init__(self, group: str, **parts: type):
    self.group = group
    self._parts = dict(parts)

  def __iter__(self) -> Iterator[str]:
    return iter(self._parts)

  def register(self, name: str, part: type) -> None:
    """Adds a part, from whatever package.

    Args:
      name: by which configs choose it.
      part: a frozen dataclass that follows the protocol of its kind.

    Raises:
      ValueError: if the name is taken by another part, or the part is no
        frozen dataclass.
    """
    if self._parts.get(name, part) is not part:
      raise ValueError(f'Expected {self.group}.name={name!r} to be registered '
                       f'once; it is {self._parts[name].__qualname__} already.')
    parameters = getattr(part, '__dataclass_params__', None)
    if not isinstance(part, type) or parameters is None or (
        not parameters.frozen):
      raise ValueError(f'Expected {part!r} to be a frozen dataclass.')
    for field in dataclasses.fields(part):
      if field.default_factory is not dataclasses.MISSING:
        raise ValueError(f'Expected {part.__qualname__}.{field.name} to have a '
                         'default, not a default_factory.')
    self._parts[name] = part

  def find(self, name: str) -> type:
    """Returns the part of that name.

    Raises:
      SettingError: if there is none.
    """
    if name not in self._parts:
      raise validate.SettingError(
          f'{self.group}.name', name, 'to be one of '
          f'{", ".join(map(repr, self._parts))}.'
          + validate.nearest(str(name), self._parts))
    return self._parts[name]

  def defaults(self, name: str) -> dict[str, Any]:
    """Returns the settings of a part with their defaults, groups as dicts."""
    return {'name': name} | _defaults(self.find(name))

  def asks(self, name: str) -> tuple[str, ...]:
    """Returns what a part asks the run for: its fields without a default."""
    return tuple(field.name for field in dataclasses.fields(self.find(name))
                 if field.default is dataclasses.MISSING)

  def optional(self, name: str) -> dict[str, type]:
    """Returns the settings of a part that are unset by default, and types."""
    part = self.find(name)
    hints = typing.get_type_hints(part)
    return {field.name: next(
        (kind for kind in typing.get_args(hints[field.name])
         if kind is not type(None)), str)
            for field in _settings(part) if field.default is None}

  def meanings(self, name: str) -> dict[str, str]:
    """Returns the meanings of a part's settings, by dotted name."""
    listed = ', '.join(sorted(self._parts))
    return {'name': f'one of {listed}'} | _meanings(self.find(name))

  def build(self, settings: Mapping[str, Any],
            given: Mapping[str, Any]) -> Any:
    """Returns the part that a group of the config describes.

    Args:
      settings: the group, with `name`.
      given: what a part may ask the run for, by name.

    Raises:
      SettingError: for a setting that the part does not have, or one out of
        range.
    """
    part = self.find(settings['name'])
    with validate.named(self.group):
      return _build(part, {name: value for name, value in settings.items()
                           if name != 'name'}, given)


def _settings(part):
  """Yields the fields that are settings."""
  for field in dataclasses.fields(part):
    if (field.default is not dataclasses.MISSING
        and _NOT_A_SETTING not in field.metadata):
      yield field


def _defaults(part):
  return {field.name: _defaults(type(field.default))
          if dataclasses.is_dataclass(field.default) else field.default
          for field in _settings(part)}


def _meanings(part):
  text, meanings = _attributes(part), {}
  for field in _settings(part):
    if dataclasses.is_dataclass(field.default):
      meanings |= {f'{field.name}.{name}': meaning for name, meaning in
                   _meanings(type(field.default)).items()}
    else:
      meanings[field.name] = text.get(field.name, '')
  return meanings


def _attributes(part):
  """Returns the texts below `Attributes:` in a docstring, by name."""
  found = {}
  for base in reversed(part.__mro__):  # A subclass has the last word.
    document = inspect.cleandoc(vars(base).get('__doc__') or '')
    section = re.search(r'^Attributes:\n((?:[ ].*\n|\n)*)', document + '\n',
                        re.MULTILINE)
    if section is None:
      continue
    for names, text in re.findall(
        r'^  (\w+(?:, \w+)*): ((?:.*\n)(?:(?:    .*)?\n)*)', section[1],
        re.MULTILINE):
      meaning = ' '.join(text.split())
      found |= dict.fromkeys(names.split(', '), meaning)
  return found


def _build(part, settings, given):
  values, known = {}, {field.name: field for field in _settings(part)}
  for name, value in settings.items():
    if name not in known:
      raise validate.SettingError(
          name, value, f'to be a setting of {part.__name__}, which has '
          f'{", ".join(known) or "none"}.')
    default = known[name].default
    if dataclasses.is_dataclass(default):
      with validate.named(name):
        value = _build(type(default), dict(value), given)
    elif isinstance(value, list):
      value = tuple(value)  # It has a hash.
    values[name] = value
  for field in dataclasses.fields(part):
    if _GIVEN in field.metadata and field.name in given:
      values[field.name] = given[field.name]
    elif field.default is dataclasses.MISSING:
      if field.name not in given:
        raise TypeError(
            f'{part.__qualname__} asks the run for {field.name!r}, which is '
            f'none of {", ".join(given)}.')
      values[field.name] = given[field.name]
  return part(**values)
