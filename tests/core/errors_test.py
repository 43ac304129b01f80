"""What an error says, in one line."""

import pytest

from ferd_jax.core import errors


@pytest.mark.parametrize('error, reason', [
    (ValueError('  no such key.\n\nMany\nlines'), 'no such key'),
    (KeyError(), 'KeyError'), (OSError('\n'), 'OSError'),
    (ValueError('found \x1b[2Jä'), r'found \x1b[2Jä')])
def test_reason(error, reason):
  assert errors.reason(error) == reason
