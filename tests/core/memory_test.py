"""What does not fit is said before it is allocated."""

import jax
import jax.numpy as jnp
import pytest

from ferd_jax.core import memory


def test_size():
  tree = {'a': jax.ShapeDtypeStruct((3, 5), jnp.float32),
          'b': jnp.zeros(7, jnp.int8), 'key': jax.random.key(0)}
  assert memory.size(tree) == 60 + 7 + 8


def test_of_host(monkeypatch, tmp_path):
  total = memory.of_host()
  assert 1e8 < total <= 1 << 50
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(memory, '_LIMITS', (str(limit), str(tmp_path / 'no')))
  assert memory.of_host() >= total
  for text, expected in (('1000\n', 1000), ('max\n', memory.of_host())):
    limit.write_text(text)
    assert memory.of_host() == expected


def test_check(monkeypatch):
  monkeypatch.setattr(memory, 'of_host', lambda: 10 ** 9)
  memory.check('a pool', 10 ** 9, 'fewer')
  with pytest.raises(ValueError, match=r'a pool to fit the 1.0 GB of this host,'
                     ' not to take 2.5 GB: fewer epochs.'):
    memory.check('a pool', 25 * 10 ** 8, 'fewer epochs')
