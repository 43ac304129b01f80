"""Settings as a tired person, or a sweep gone wrong, would give them."""

from collections.abc import Iterator
import random

from ml_collections import config_dict

from ferd_jax.run import settings

_FLOATS = ['0', '-1', '1e-30', '1e30', '-1e-30', '1e308', '1e400', 'nan', 'inf',
           '-inf', '1/0', '0/0', '8/255', '1e-12', '', 'None', 'True', 'x',
           '1,5', '0.5.5', '１', '1e-320', '--1']
_INTS = ['0', '-1', '1', '3', '2147483647', '2147483648', '1000000000000',
         '99999999999999999999999', '1.5', '1e3', '', 'None', 'True', 'nan',
         'x', '0x10', '1_0', '-0']
_TEXTS = ['', ' ', '.', '..', '/', '../x', 'a/b', 'x' * 300, 'a\nb', 'None',
          'gs://bucket//folder/file', 's3://b/x', '~', 'ä', '%s', '{}', '0',
          'random', 'auto', "'", '"', '(', '[]', 'ResNet18', 'none']
_TUPLES = ['', '()', '(1,)', '(0, 0)', "('clean',)", 'clean', 'clean,clean',
           'pgd', '(1e30, 1e30)', '(1e-30,)', '(nan, 1)', '(0.5, 0.1)', 'None',
           '(1, 2, 3, 4)', '(', "('x',", '{}', '[[1]]']
_BOOLS = ['', '2', 'None', 'yes', 'True', 'False', 'x', '0', '1']


def mutated(config: config_dict.ConfigDict, number: int,
            seed: int) -> Iterator[list[str]]:
  """Yields arguments of a command line, one to three settings each.

  Args:
    config: whose settings they change.
    number: how many.
    seed: of what is drawn.
  """
  draw, known = random.Random(seed), dict(settings.flat(config))
  names = sorted(name for name, value in known.items() if value != {})
  kinds = {float: _FLOATS, int: _INTS, str: _TEXTS, tuple: _TUPLES,
           bool: _BOOLS}
  for _ in range(number):
    chosen = draw.sample(names, draw.choice([1, 1, 1, 2, 3]))
    arguments = []
    for name in chosen:
      *groups, leaf = name.split('.')
      group = config
      for part in groups:
        group = group[part]
      values = kinds.get(group.get_type(leaf), _TEXTS)
      if draw.random() < 0.1:  # Of another type altogether.
        values = draw.choice(list(kinds.values()))
      arguments.append(f'--config.{name}={draw.choice(values)}')
    yield arguments
