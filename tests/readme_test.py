"""What the README shows: its example runs, its files and configs exist."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_README = (_ROOT / 'README.md').read_text()


def test_python_example():
  """The names it leaves to the reader are a linear model's here."""
  example, = re.findall(r'```python\n(.*?)```', _README, re.DOTALL)
  names = {'model_fn': lambda params, x: x.reshape(len(x), -1) @ params}
  exec(example, names)
  images = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1))
  labels = jnp.arange(4)
  params = jax.random.normal(jax.random.key(1), (9, 4))
  attacked = names['attacked'](params, jax.random.key(2), images, labels)
  assert attacked.shape == images.shape
  assert 0 < float(jnp.max(jnp.abs(attacked - images))) <= 8 / 255 + 1e-6

  def true_logits(x):
    return np.take_along_axis(np.asarray(names['model_fn'](params, x)),
                              np.asarray(labels)[:, None], axis=1)
  # On a linear model the attack lowers the true logit of nearly all.
  assert np.mean(true_logits(attacked) - true_logits(images)) < 0


def test_named_files_exist():
  named = set(re.findall(
      r'\b(?:ferd_jax|configs|tests|docs|benchmarks)/\w+\.\w+', _README))
  assert len(named) > 5
  assert not [name for name in named if not (_ROOT / name).exists()]


def test_every_config_is_in_the_table():
  table = _README.partition('## Configs')[2].partition('## A run')[0]
  configs = {path.name for path in (_ROOT / 'configs').glob('*.py')}
  configs -= {'__init__.py', 'default.py', 'variants.py'}
  assert not [name for name in configs if f'| `{name}` |' not in table]


@pytest.mark.parametrize('path', [_ROOT / 'README.md',
                                  *sorted((_ROOT / 'docs').glob('*.md'))],
                         ids=lambda path: path.name)
def test_tables_have_as_many_cells_in_every_row(path):
  tables = re.findall(r'(?:^\|.*\n)+', path.read_text(), re.MULTILINE)
  assert tables
  for table in tables:
    widths = {row.count('|') for row in table.splitlines()}
    assert len(widths) == 1, table
