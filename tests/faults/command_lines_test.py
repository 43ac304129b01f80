"""Mutated command lines: what is wrong with one is said in one line.

  python tests/faults/command_lines_test.py 100

prints the figures of docs/reliability.md.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import collections
import contextlib
import io
import os
import pathlib
import random
import sys
import tempfile
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]
  os.environ['JAX_PLATFORMS'] = 'cpu'

from absl import flags

from ferd_jax import convert
from ferd_jax import evaluate
from ferd_jax import teachers
from ferd_jax.run import command_line

_SEED = 18
# Command lines of the documentation, without what they compute.
_LINES = [
    'main.py --config=digits:smoke --config.seed=1 --workdir=runs/s1',
    'main.py --config=cifar10:mobilenet_v2,released --config.eps=4/255',
    'main.py --config=digits --config.sampler.name=margin_minmax '
    '--config.sampler.absent=zero --mode=evaluate',
    'evaluate absent.pt --arch=wrn_34_10 --data=cifar10 --attacks=clean,pgd20 '
    '--eps=8/255 --n-examples=100 --batch-size=10',
    'evaluate --robustbench=Rice2020Overfitting --data=digits --norm=L2',
    'evaluate absent_run --eps 0.05 0.1 --json=a.json --targets',
    'convert absent.pt absent.npz --arch=cifar_resnet8 --num-classes=10',
    'teachers list --dataset=cifar10', 'teachers fetch digits Standard',
]
_WORDS = ['', '-', '--', '=', '--config', '--config=', '--config=nothing',
          '--config.', '--config.eps', '--config.eps=', '--noconfig.seed',
          '--config.teacher=5', '--config.a..b=1', '--config.sampler.name=x',
          '--import=no_such_module', '--data=', '--eps=', '--eps=x',
          '--eps=1/0', '--norm=L1', '--attacks=', '--attacks=clean,clean',
          '--seed=-1', '--seed=1e3', '--n-examples=0', '--batch-size=-1',
          '--width=x', '--mean=1,2', '--arch=', '--arch=resnet', '--split=',
          '--data=x.npz', '--data-dir=gs://bucket//x', 'gs://bucket//model.pt',
          '--robustbench=', '--robustbench=x', '--help=1', '--mode=x', 'a\0b',
          'ä' * 300, '--workdir', '--json', '--state-dir=/dev/null/x']


def _mutated(line, draw):
  """Returns a command line with some of its words changed."""
  words = line.split()
  for _ in range(draw.choice([1, 1, 2, 3])):
    at, kind = draw.randrange(1, len(words) + 1), draw.randrange(6)
    if at == len(words) or kind == 0:
      words.insert(at, draw.choice(_WORDS))
    elif kind == 1:
      words[at] = draw.choice(_WORDS)
    elif kind == 2 and len(words) > 2:
      del words[at]
    elif kind == 3 and len(words[at]) > 3:
      cut = draw.randrange(2, len(words[at]))
      words[at] = words[at][:cut] + words[at][cut + 1:]
    elif kind == 4:
      words[at] = words[at].partition('=')[0] + '=' + draw.choice(
          ['', 'x', '-1', '1e400', 'nan', '/', '\n', '1,2', '9' * 30])
    else:
      words.append(words[at])
  return words


def _outcome(words):
  """Returns 'parsed', 'refused' or 'help', and what was said.

  A command whose model is not there ends before it computes anything.
  """
  program, *arguments = words
  said = io.StringIO()
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
      if program == 'main.py':
        values = flags.FlagValues()
        for name in ('workdir', 'mode'):
          flags.DEFINE_string(name, None, '', flag_values=values)
        parsed = command_line.parse(words, _ROOT, values)
        if parsed.wants_help:
          command_line.help_text(parsed.config)
          return 'help', ''
      else:
        {'evaluate': evaluate, 'convert': convert,
         'teachers': teachers}[program].main(arguments)
    return 'parsed', ''
  except ValueError as error:
    if program != 'main.py':
      raise
    return 'refused', str(error)
  except SystemExit as stop:
    if stop.code in (0, None):
      return 'help', ''
    # argparse has printed its usage and its line.
    return 'refused', stop.code if isinstance(
        stop.code, str) else said.getvalue().strip().splitlines()[-1]


def _all(number, seed=_SEED):
  draw, counts = random.Random(seed), collections.Counter()
  for _ in range(number):
    words = _mutated(draw.choice(_LINES), draw)
    try:
      kind, said = _outcome(words)
      if kind == 'refused':
        assert said.strip() and '\n' not in said and len(said) < 2500, said
    except Exception as error:
      raise AssertionError(f'{words}: {error!r}') from error
    counts[kind] += 1
  return counts


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('FERD_JAX_CACHE', '/dev/null/x')  # Nothing is fetched.
  monkeypatch.setenv('TFDS_DATA_DIR', '/dev/null/y')
  return tmp_path


def test_a_few(elsewhere):
  counts = _all(15)
  assert counts['refused'] > 5


@pytest.mark.slow
def test_many(elsewhere):
  assert _all(100).total() == 100


if __name__ == '__main__':
  started = time.monotonic()
  os.environ |= {'FERD_JAX_CACHE': '/dev/null/x',
                 'TFDS_DATA_DIR': '/dev/null/y'}
  with tempfile.TemporaryDirectory() as place:
    os.chdir(place)
    print(dict(_all(int(sys.argv[1]))), 'seed', _SEED,
          f'{time.monotonic() - started:.0f} s')
