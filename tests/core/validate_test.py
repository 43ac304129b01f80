"""Tests of ferd_jax.core.validate: messages hold the name and the value."""

import functools
import math
import pickle
import re

import pytest

from ferd_jax.core import validate

count = functools.partial(validate.count, 2)
in_unit = functools.partial(validate.in_range, 0, 1)
one_of = functools.partial(validate.one_of, ('a', 'b'))
divisible = functools.partial(validate.divisible, 8, 'devices')


@pytest.mark.parametrize(('check', 'value'), [
    (validate.positive, 1e-9), (validate.positive, 3),
    (validate.non_negative, 0), (validate.non_negative, 0.5),
    (validate.finite, -1e9), (validate.count, 1), (count, 2),
    (count, 2 ** 31 - 1), (validate.attack_steps, 10_000),
    (validate.rate, 1e-4), (validate.sensible, 0),
    (validate.sensible, -1e9), (validate.sensible, 1e-9),
    (in_unit, 0), (in_unit, 1), (in_unit, 0.5), (one_of, 'a'), (one_of, 'b'),
    (divisible, 0), (divisible, 256)])
def test_valid(check, value):
  check(size=value)


@pytest.mark.parametrize(('check', 'value', 'message'), [
    (validate.positive, 0, 'Expected size=0 > 0.'),
    (validate.positive, -2.5, 'Expected size=-2.5 > 0.'),
    (validate.positive, math.nan, 'Expected size=nan > 0.'),
    (validate.positive, math.inf, 'Expected size=inf > 0.'),
    (validate.non_negative, -1, 'Expected size=-1 >= 0.'),
    (validate.non_negative, math.nan, 'Expected size=nan >= 0.'),
    (validate.non_negative, math.inf, 'Expected size=inf >= 0.'),
    (validate.positive, '1', "Expected size='1' > 0."),
    (validate.non_negative, None, 'Expected size=None >= 0.'),
    (validate.finite, math.nan, 'Expected size=nan to be a finite number.'),
    (validate.finite, -math.inf, 'Expected size=-inf to be a finite number.'),
    (validate.finite, 10 ** 400, f'Expected size={10 ** 400} to be a finite '
     'number.'),
    (validate.count, 0, 'Expected size=0 to be a whole number >= 1.'),
    (count, 1, 'Expected size=1 to be a whole number >= 2.'),
    (count, 2.5, 'Expected size=2.5 to be a whole number >= 2.'),
    (count, 3., 'Expected size=3.0 to be a whole number >= 2.'),
    (count, '3', "Expected size='3' to be a whole number >= 2."),
    (count, True, 'Expected size=True to be a whole number >= 2.'),
    (count, 2 ** 31, 'Expected size=2147483648 below 2**31.'),
    (validate.attack_steps, 0, 'Expected size=0 to be a whole number >= 1.'),
    (validate.attack_steps, 10_001, 'Expected size=10001 <= 10000: a training '
     'step waits for all of them.'),
    (validate.rate, 0, 'Expected size=0 > 0.'),
    (validate.rate, 1e-8, 'Expected size=1e-08 in [1e-07, 100]: others train '
     'nothing.'),
    (validate.sensible, 1e-10, 'Expected size=1e-10 to be 0 or 1e-09 to 1e+09 '
     'in size.'),
    (validate.sensible, -1e10, 'Expected size=-10000000000.0 to be 0 or 1e-09 '
     'to 1e+09 in size.'),
    (validate.sensible, math.nan, 'Expected size=nan to be 0 or 1e-09 to 1e+09 '
     'in size.'),
    (in_unit, 1.5, 'Expected size=1.5 in [0, 1].'),
    (in_unit, -0.5, 'Expected size=-0.5 in [0, 1].'),
    (in_unit, math.nan, 'Expected size=nan in [0, 1].'),
    (one_of, 'c', "Expected size='c' to be one of 'a', 'b'."),
    (one_of, None, "Expected size=None to be one of 'a', 'b'."),
    (validate.ordered, (2, 1), 'Expected size=(2, 1) with low <= high.'),
    (validate.ordered, (1,), 'Expected size=(1,) to be (low, high).'),
    (validate.ordered, 1., 'Expected size=1.0 to be (low, high).'),
    (divisible, 250,
     'Expected size=250 divisible by 8 devices; use 248 or 256.'),
    (divisible, 3, 'Expected size=3 divisible by 8 devices; use 8.')])
def test_invalid(check, value, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$') as raised:
    check(size=value)
  error = raised.value
  assert type(error) is validate.SettingError
  assert error.name == 'size' and error.value is value
  assert message == f'Expected size={value!r} {error.expectation}'


def test_every_value_is_checked():
  validate.positive(first=1, second=2)
  with pytest.raises(ValueError, match='second=0'):
    validate.positive(first=1, second=0)
  with pytest.raises(ValueError, match="second='c'"):
    one_of(first='a', second='c')
  with pytest.raises(ValueError, match='second=9'):
    divisible(first=8, second=9)


@pytest.mark.parametrize(('error', 'kind', 'message'), [
    (validate.SettingError('num_steps', 0, '> 0.'), validate.SettingError,
     'Expected distill.attack_steps=0 > 0.'),
    (validate.SettingError('gamma', -1, '>= 0.'), validate.SettingError,
     'Expected distill.gamma=-1 >= 0.'),
    (ValueError('No such thing.'), ValueError, 'distill: No such thing.'),
    # What is not raised as a setting is not taken for one.
    (ValueError('Expected gamma=-1 >= 0.'), ValueError,
     'distill: Expected gamma=-1 >= 0.'),
    (FileNotFoundError('Expected a file at x.'), FileNotFoundError,
     'distill: Expected a file at x.'),
    (UnicodeDecodeError('utf8', b'\xff', 0, 1, 'bad'), ValueError,
     "distill: 'utf8' codec can't decode byte 0xff in position 0: bad"),
    (TypeError('as it is'), TypeError, 'as it is')])
def test_errors_inside_get_the_names_of_the_config(error, kind, message):
  with pytest.raises(kind, match=f'^{re.escape(message)}$') as raised:
    with validate.named('distill', num_steps='attack_steps'):
      raise error
  assert type(raised.value) is kind


def test_groups_within_groups():
  with pytest.raises(validate.SettingError) as raised:
    with validate.named('synthesis', kl='never'):
      with validate.named('bottleneck', divergence='kl'):
        validate.one_of(('mean', 'sum'), divergence='max')
  error = raised.value
  assert str(error) == ("Expected synthesis.bottleneck.kl='max' to be one of "
                        "'mean', 'sum'.")
  assert (error.name, error.value) == ('synthesis.bottleneck.kl', 'max')


def test_within_leaves_the_error_as_it_is():
  error = validate.SettingError('steps', 0, '> 0.')
  other = error.within('inner', {'steps': 'num_steps', 'eps': 'radius'})
  assert str(other) == 'Expected inner.num_steps=0 > 0.'
  assert str(error.within('inner')) == 'Expected inner.steps=0 > 0.'
  assert (error.name, str(error)) == ('steps', 'Expected steps=0 > 0.')


def test_setting_errors_travel_between_processes():
  error = validate.SettingError('steps', 0, '> 0.')
  copy = pickle.loads(pickle.dumps(error))
  assert type(copy) is validate.SettingError
  assert str(copy) == str(error) and copy.within('a').name == 'a.steps'


@pytest.mark.parametrize(('name', 'text'), [
    ('learning_rat', ' Did you mean learning_rate?'),
    ('LEARNING_RATE', ' Did you mean learning_rate?'),
    ('resnet8', ' Did you mean ResNet8 or ResNet18?'), ('zzz', ''), ('', '')])
def test_nearest(name, text):
  known = ('learning_rate', 'ResNet18', 'ResNet8', 'momentum')
  assert validate.nearest(name, known) == text
  assert validate.nearest(name, ()) == ''
