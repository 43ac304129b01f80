"""Tests of ferd_jax.validate: messages hold the name and the value."""

import functools
import math
import re

import pytest

from ferd_jax.core import validate

in_unit = functools.partial(validate.in_range, 0, 1)
one_of = functools.partial(validate.one_of, ('a', 'b'))
divisible = functools.partial(validate.divisible, 8, 'devices')


@pytest.mark.parametrize(('check', 'value'), [
    (validate.positive, 1e-9), (validate.positive, 3),
    (validate.non_negative, 0), (validate.non_negative, 0.5),
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
    (in_unit, 1.5, 'Expected size=1.5 in [0, 1].'),
    (in_unit, -0.5, 'Expected size=-0.5 in [0, 1].'),
    (in_unit, math.nan, 'Expected size=nan in [0, 1].'),
    (one_of, 'c', "Expected size='c' to be one of 'a', 'b'."),
    (one_of, None, "Expected size=None to be one of 'a', 'b'."),
    (divisible, 250,
     'Expected size=250 divisible by 8 devices; use 248 or 256.'),
    (divisible, 3, 'Expected size=3 divisible by 8 devices; use 8.')])
def test_invalid(check, value, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    check(size=value)


def test_every_value_is_checked():
  validate.positive(first=1, second=2)
  with pytest.raises(ValueError, match='second=0'):
    validate.positive(first=1, second=0)
  with pytest.raises(ValueError, match="second='c'"):
    one_of(first='a', second='c')
  with pytest.raises(ValueError, match='second=9'):
    divisible(first=8, second=9)


@pytest.mark.parametrize(('error', 'kind', 'message'), [
    (ValueError('Expected num_steps=0 > 0.'), ValueError,
     'Expected distill.attack_steps=0 > 0.'),
    (ValueError('Expected gamma=-1 >= 0.'), ValueError,
     'Expected distill.gamma=-1 >= 0.'),
    (ValueError('No such thing.'), ValueError, 'distill: No such thing.'),
    (FileNotFoundError('Expected a file at x.'), FileNotFoundError,
     'distill: Expected a file at x.'),
    (UnicodeDecodeError('utf8', b'\xff', 0, 1, 'bad'), ValueError,
     "distill: 'utf8' codec can't decode byte 0xff in position 0: bad")])
def test_errors_inside_get_the_names_of_the_config(error, kind, message):
  with pytest.raises(kind, match=f'^{re.escape(message)}$') as raised:
    with validate.named('distill', num_steps='attack_steps'):
      raise error
  assert type(raised.value) is kind
