"""Mutated settings: each is accepted with a meaning, or refused in one line.

  python tests/faults/settings_test.py 700

prints the figures of docs/reliability.md.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import collections
import pathlib
import sys
import time

from absl import flags
import jax
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

import mutations
import tiny

from ferd_jax.core import validate
from ferd_jax.run import command_line
from ferd_jax.run import experiment
from ferd_jax.run import settings

_SEED = 18


def _outcome(arguments, directory):
  """Returns 'accepted' or 'refused', and what was said or is in force.

  Raises:
    BaseException: whatever is no line for a person.
  """
  config = directory / 'tiny_config.py'
  if not config.exists():
    config.write_text('import tiny\n\ndef get_config():\n'
                      '  return tiny.config()\n')
  values = flags.FlagValues()
  try:
    parsed = command_line.parse(
        ['main.py', f'--config={config}', *arguments], _ROOT, values)
    run = experiment.build(parsed.config, tuple(jax.devices()[:1]))
  except (ValueError, OSError) as error:
    return 'refused', str(error)
  return 'accepted', run.config


def _check(arguments, directory):
  kind, found = _outcome(arguments, directory)
  if kind == 'refused':
    line = ' '.join(found.split())
    assert line and len(line) < 1500, arguments
    assert 'Traceback' not in line and ' object at 0x' not in line, arguments
    return kind
  for name, value in settings.flat(found):
    for number in value if isinstance(value, tuple) else (value,):
      if isinstance(number, float):
        validate.sensible(**{name: number})
      elif isinstance(number, int) and name != 'seed':
        assert 0 <= number < 1 << 31, arguments
  assert 1e-6 <= found.eps < 1
  return kind


def _all(number, directory, seed=_SEED):
  """Returns how many of so many mutations were accepted and refused."""
  counts = collections.Counter()
  for arguments in mutations.mutated(tiny.config(), number, seed):
    try:
      counts[_check(arguments, directory)] += 1
    except Exception as error:
      raise AssertionError(f'{arguments}: {error!r}') from error
  return counts


def test_a_few(tmp_path):
  counts = _all(40, tmp_path)
  assert counts['refused'] > 20 and counts['accepted'] > 0


@pytest.mark.slow
def test_many(tmp_path):
  assert _all(700, tmp_path).total() == 700


@pytest.mark.parametrize('arguments, words', [
    (['eps=1e-30'], ['eps=1e-30', '1e-09']),
    (['eps=1e-8'], ['eps=1e-08', 'rounding']),
    (['step_size=1e-30'], ['step_size=1e-30']),
    (['sampler.tau=1e30'], ['sampler.tau=1e+30']),
    (['sampler.tau=1e-30'], ['sampler.tau=1e-30']),
    (['sampler.tau=1e4'], ['sampler.tau=10000.0', '[0.01, 1000]']),
    (['distill.learning_rate=1e-9'],
     ['distill.learning_rate=1e-09', 'train n']),
    (['distill.momentum=1'], ['distill.momentum=1.0', '< 1']),
    (['synthesis.w_oh=1e30'], ['synthesis.w_oh=1e+30']),
    (['teacher.mean=1e30', 'teacher.std=1'], ['teacher.mean=(1e+30,)']),
    (['teacher.arch='], ["teacher.arch=''", 'to be one of']),
    (['student.arch='], ["student.arch=''", 'to be one of']),
    (['num_epochs=1000000000'], ['pool of 8,000,000,000 images', 'GB']),
    (['synthesis.batch_size=2147483647'], ['GB of this host']),
    (['eval.batch_size=2147483647'], ['eval.batch_size=2,147,483,647', 'GB']),
    (['distill.steps=2147483647'], ['order of', 'fewer distill.steps']),
    (['synthesis.width=2147483646'], ['synthesis.width', 'GB']),
    (['distill.steps=99999999999'], ['distill.steps=99999999999', '2**31']),
    (['inner.steps=2000000000'], ['inner.steps=2000000000', '10000']),
    (['sampler.attack_steps=10001'], ['sampler.attack_steps=10001']),
    (['synthesis.attacked_steps=10001'], ['synthesis.attacked_steps=10001']),
    (['data.noise_examples=2147483647'], ['noise_examples', 'GB']),
    (['name=a/b'], ["name='a/b'", 'directory']),
    (['name='], ["name=''"]),
    (['teacher.path=gs://bucket//teacher.pt'],
     ['teacher.path', 'Cannot read gs://bucket//teacher.pt', 'gcsfs']),
    (['teacher.path=some.pt'], ['data.noise_examples=24', ':smoke']),
])
def test_what_would_mean_nothing(arguments, words, tmp_path):
  kind, found = _outcome([f'--config.{each}' for each in arguments], tmp_path)
  assert kind == 'refused' and '\n' not in found
  for word in words:
    assert word in found


@pytest.mark.parametrize('name, value', [
    ('student.final_bn', None), ('student.width', None), ('step_size', None),
    ('teacher.mean', None), ('teacher.robustbench', None), ('data.dir', ''),
    ('teacher.select', None), ('student.activation', None)])
def test_unset(name, value, tmp_path):
  """By nothing, or by the word that Python has for it."""
  for text in ('', 'None') if value is None else ('',):
    kind, found = _outcome([f'--config.{name}={text}'], tmp_path)
    assert kind == 'accepted', found
    assert dict(settings.flat(found))[name] == value


if __name__ == '__main__':
  import tempfile
  jax.config.update('jax_platforms', 'cpu')
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as place:
    print(dict(_all(int(sys.argv[1]), pathlib.Path(place))), 'seed', _SEED,
          f'{time.monotonic() - started:.0f} s')
