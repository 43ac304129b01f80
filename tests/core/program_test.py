"""Tests of ferd_jax.core.program."""

import sys

import pytest

from ferd_jax import teachers
from ferd_jax.core import program


@pytest.mark.parametrize('started, expected', [
    ('/usr/bin/ferd-jax', 'ferd-jax teachers'),
    ('ferd-jax.exe', 'ferd-jax teachers'),
    ('/x/ferd_jax/teachers.py', 'python -m ferd_jax.teachers')])
def test_a_command_is_called_as_it_was_started(started, expected, monkeypatch):
  monkeypatch.setattr(sys, 'argv', [started])
  assert program.name('teachers') == expected
  assert f'usage: {expected} ' in teachers._parser().format_help()
