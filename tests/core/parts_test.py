"""Tests of ferd_jax.core.parts: parts by name, their settings and meanings."""

import dataclasses
import inspect
import re
import typing

import pytest

from ferd_jax import distillation
from ferd_jax import synthesis
from ferd_jax.core import parts
from ferd_jax.core import validate
from ferd_jax.run import settings

REGISTRIES = (synthesis.SYNTHESES, synthesis.SAMPLERS, distillation.INNERS,
              distillation.OUTERS)


@dataclasses.dataclass(frozen=True)
class Decay:
  """A group within.

  Attributes:
    rate: how fast.
    kind: 'linear' or
      'cosine', as always.
    unroll: not for a config.
  """
  rate: float = 0.5
  kind: str = 'linear'
  unroll: bool | None = parts.fixed(None)

  def __post_init__(self):
    validate.positive(rate=self.rate)


@dataclasses.dataclass(frozen=True)
class Part:
  """Something.

  Attributes:
    eps: radius, given by the run.
    steps: how many; at
      least 1:
      more are better.
    low, high: bounds.

    decay: a group.

  References: none: it is a test.
  """
  eps: float
  steps: int = 10
  low: float = 0.
  high: tuple[int, ...] = (1, 2)
  decay: Decay = Decay()
  secret: int = parts.fixed(3)
  silent: str = ''

  other = 5  # no field

  def __post_init__(self):
    validate.count(steps=self.steps)


@dataclasses.dataclass(frozen=True)
class Bare:
  """Without settings."""
  eps: float


def registry():
  return parts.Registry('inner', part=Part, bare=Bare)


def test_defaults():
  assert registry().defaults('part') == {
      'name': 'part', 'steps': 10, 'low': 0., 'high': (1, 2),
      'decay': {'rate': 0.5, 'kind': 'linear'}, 'silent': ''}
  assert registry().defaults('bare') == {'name': 'bare'}


def test_meanings_are_those_of_the_docstring():
  assert registry().meanings('part') == {
      'name': 'one of bare, part',
      'steps': 'how many; at least 1: more are better.', 'low': 'bounds.',
      'high': 'bounds.', 'decay.rate': 'how fast.',
      'decay.kind': "'linear' or 'cosine', as always.", 'silent': ''}
  assert registry().meanings('bare') == {'name': 'one of bare, part'}


def test_build():
  given = {'eps': 0.1, 'rest': 1}
  assert registry().build({'name': 'part'}, given) == Part(0.1)
  built = registry().build(
      {'name': 'part', 'steps': 3, 'high': [4, 5],
       'decay': {'kind': 'cosine'}}, {'eps': 0.1})
  assert built == Part(0.1, steps=3, high=(4, 5), decay=Decay(kind='cosine'))
  hash(built)
  defaults = registry().defaults('part')
  assert registry().build(defaults, {'eps': 0.1}) == Part(0.1)
  assert registry().build({'name': 'bare'}, {'eps': 0.1}) == Bare(0.1)


@pytest.mark.parametrize(('values', 'message'), [
    ({'steps': 0}, 'Expected inner.steps=0 to be a whole number >= 1.'),
    ({'decay': {'rate': 0.}}, 'Expected inner.decay.rate=0.0 > 0.'),
    ({'stops': 1}, 'Expected inner.stops=1 to be a setting of Part, which has '
     'steps, low, high, decay, silent.'),
    ({'decay': {'speed': 1}}, 'Expected inner.decay.speed=1 to be a setting of '
     'Decay, which has rate, kind.'),
    # What the run gives, or nobody sets, is no setting.
    ({'eps': 1.}, 'Expected inner.eps=1.0 to be a setting of Part, which has '
     'steps, low, high, decay, silent.'),
    ({'secret': 1}, 'Expected inner.secret=1 to be a setting of Part, which '
     'has steps, low, high, decay, silent.'),
    ({'decay': {'unroll': True}}, 'Expected inner.decay.unroll=True to be a '
     'setting of Decay, which has rate, kind.'),
    ({'name': 'bare', 'steps': 1}, 'Expected inner.steps=1 to be a setting of '
     'Bare, which has none.'),
    ({'name': 'Parts'}, "Expected inner.name='Parts' to be one of 'part', "
     "'bare'. Did you mean part?"),
    ({'name': 'zzz'}, "Expected inner.name='zzz' to be one of 'part', 'bare'."),
])
def test_build_errors(values, message):
  with pytest.raises(validate.SettingError, match=f'^{re.escape(message)}$'):
    registry().build({'name': 'part'} | values, {'eps': 0.1})


def test_a_part_that_asks_for_what_the_run_does_not_have():
  with pytest.raises(TypeError, match="Bare asks the run for 'eps', which is "
                     'none of step_size, teacher'):
    registry().build({'name': 'bare'}, {'step_size': 1, 'teacher': 2})


def test_what_a_part_asks_the_run_for():
  assert registry().asks('bare') == ('eps',)


@pytest.mark.parametrize('method', ['find', 'defaults', 'meanings'])
def test_unknown_names(method):
  with pytest.raises(validate.SettingError, match="inner.name='port' .*'part'"):
    getattr(registry(), method)('port')


def test_register():
  known = registry()
  known.register('decay', Decay)
  assert list(known) == ['part', 'bare', 'decay']
  assert known.find('decay') is Decay
  known.register('decay', Decay)  # A module may be imported again.
  assert known.meanings('part')['name'] == 'one of bare, decay, part'
  with pytest.raises(ValueError, match="inner.name='decay' to be registered "
                     'once; it is Decay already'):
    known.register('decay', Bare)
  assert known.find('decay') is Decay
  assert list(registry()) == ['part', 'bare']  # Of one registry alone.


@dataclasses.dataclass
class Thawed:
  """Settings that could change."""
  steps: int = 1


@pytest.mark.parametrize('part', [Thawed, int, Part(0.1), lambda: None])
def test_only_frozen_dataclasses_are_registered(part):
  known = registry()
  with pytest.raises(ValueError, match='to be a frozen dataclass'):
    known.register('new', part)
  assert 'new' not in known


@pytest.mark.parametrize(('known', 'name'), [
    (known, name) for known in REGISTRIES for name in known])
def test_every_setting_of_a_registered_part_has_a_meaning(known, name):
  part = known.find(name)
  assert dataclasses.is_dataclass(part) and part.__dataclass_params__.frozen
  meanings = known.meanings(name)
  assert {setting for setting, _ in settings.flat(known.defaults(name))} == (
      set(meanings))
  assert all(meanings.values()), meanings
  # And so has what the run gives.
  document = '\n'.join(inspect.cleandoc(vars(base).get('__doc__') or '')
                       for base in part.__mro__)
  for field in dataclasses.fields(part):
    assert field.name in typing.get_type_hints(part)
    assert re.search(rf'^  (\w+, )*{field.name}(, \w+)*: ', document,
                     re.MULTILINE), field.name


def test_registries_are_those_of_the_config():
  assert [known.group for known in REGISTRIES] == ['synthesis', 'sampler',
                                                   'inner', 'outer']
  assert tuple(settings.REGISTRIES.values()) == REGISTRIES
