"""Tests of ferd_jax.attacks.saved."""

import functools
import json
import os
import pty
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ferd_jax import losses
from ferd_jax.attacks import saved
from ferd_jax.core import digests

IDENTITY = {'eps': 8 / 255, 'bounds': (0., 1.), 'seed': [0, 1], 'norm': 'L2'}
ARRAYS = {'fooled/apgd-ce': np.array([True, False, True]),
          'images': np.ones((2, 3), np.float32), 'seconds': np.array(1.5),
          'broken': np.zeros((0, 2), int)}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'below' / 'state.npz'
  saved.write(path, IDENTITY, ARRAYS)
  return path


def assert_same(found, expected=ARRAYS):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape


def test_reads_what_was_written(path):
  assert_same(saved.read(path, IDENTITY))
  assert_same(saved.read(str(path), IDENTITY))
  later = ARRAYS | {'seconds': np.array(2.5)}
  saved.write(path, IDENTITY, later)
  found = saved.read(path, IDENTITY)
  assert_same(found, later)
  found['images'][0] = 3  # It can be gone on with.
  assert saved.read(path.with_name('other.npz'), IDENTITY) is None


def test_a_name_is_kept_as_it_is(tmp_path):
  saved.write(tmp_path / 'state', IDENTITY, ARRAYS)
  assert [file.name for file in tmp_path.iterdir()] == ['state']


@pytest.mark.parametrize(('change', 'message'), [
    ({'eps': 0.03}, f'eps is 0.03, there {8 / 255!r}'),
    ({'norm': 'Linf'}, "norm is 'Linf', there 'L2'"),
    ({'bounds': (0., 255.)}, 'bounds is [0.0, 255.0], there [0.0, 1.0]'),
    ({'images': 10}, 'images is 10, there None'),
    ({'eps': 0, 'seed': [0, 2]},
     f'eps is 0, there {8 / 255!r}, seed is [0, 2], there [0, 1]')])
def test_another_run_is_refused(path, change, message):
  with pytest.raises(ValueError) as error:
    saved.read(path, IDENTITY | change)
  assert str(error.value) == (
      f'{path} is of another run: {message}. Delete it or use another file.')


def test_digests_are_shown_by_their_beginnings(path):
  found = [digests.of_arrays(np.arange(n)) for n in range(3)]
  saved.write(path, IDENTITY | {'x': found[0], 'code': found[:2]}, ARRAYS)
  with pytest.raises(ValueError) as error:
    saved.read(path, IDENTITY | {'x': found[2], 'code': found[1:]})
  first, second, third = (digest[:8] for digest in found)
  assert (f"x is '{third}', there '{first}', code is ['{second}', '{third}'], "
          f"there ['{first}', '{second}'].") in str(error.value)


def test_what_only_the_file_says_is_of_another_run(path):
  fewer = {name: IDENTITY[name] for name in ('eps', 'bounds', 'seed')}
  with pytest.raises(ValueError, match="norm is None, there 'L2'"):
    saved.read(path, fewer)


def test_another_format_is_refused(path, monkeypatch):
  monkeypatch.setattr(saved, '_FORMAT', saved._FORMAT + 1)
  with pytest.raises(ValueError, match='of another run: format is'):
    saved.read(path, IDENTITY)


def assert_damaged(path):
  with pytest.raises(ValueError, match='no state of AutoAttack, or damaged'):
    saved.read(path, IDENTITY)


def test_every_truncation_is_noticed(path):
  content = path.read_bytes()
  for size in range(0, len(content), 11):
    path.write_bytes(content[:size])
    assert_damaged(path)


def test_no_change_of_a_byte_gives_other_arrays(path):
  content = path.read_bytes()
  refused = 0
  for place in range(0, len(content), 5):
    changed = bytearray(content)
    changed[place] ^= 0x55
    path.write_bytes(changed)
    try:
      assert_same(saved.read(path, IDENTITY))  # In a date, for example.
    except ValueError:
      refused += 1
  assert refused > len(content) / 5 / 2


@pytest.mark.parametrize('content', [b'', b'[1]', b'state', b'PK\x05\x06'])
def test_another_file_is_no_state(path, content):
  path.write_bytes(content)
  assert_damaged(path)


def test_other_arrays_are_no_state(path):
  np.save(path.with_name('array.npy'), np.ones(3))
  assert_damaged(path.with_name('array.npy'))
  np.savez(path, meta=np.array(json.dumps([1, 2])))
  assert_damaged(path)
  np.savez(path, images=np.ones(3))
  assert_damaged(path)
  assert_damaged(path.parent)  # A directory.


def test_a_lost_array_is_noticed(path):
  with zipfile.ZipFile(path) as whole:
    members = {name: whole.read(name) for name in whole.namelist()}
  del members['images.npy']
  with zipfile.ZipFile(path, 'w') as part:
    for name, content in members.items():
      part.writestr(name, content)
  assert_damaged(path)


def test_a_write_that_fails_leaves_the_last_state(path, monkeypatch):
  def interrupted(file, **arrays):
    file.write(b'some')
    raise KeyboardInterrupt
  monkeypatch.setattr(saved.np, 'savez', interrupted)
  with pytest.raises(KeyboardInterrupt):
    saved.write(path, IDENTITY, {'images': np.zeros(3)})
  assert_same(saved.read(path, IDENTITY))


# Hashes.


def test_described():
  assert saved.described(0.1) == '0.1'
  assert saved.described((0., 1.)) == '(0.0, 1.0)'
  assert saved.described(losses.dlr) == '<function dlr>'
  assert saved.described(functools.partial(losses.dlr, 2)) == (
      'functools.partial(<function dlr>, 2)')
  assert saved.described(losses.dlr) != saved.described(losses.margin)


_CODE = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from ferd_jax.attacks import saved

@jax.custom_vjp
def straight_through(x):
  return jnp.round(x)
straight_through.defvjp(lambda x: (x, None), lambda _, g: (g,))

for scale in (2, 3):
  def model(x):
    x = jax.pure_callback(lambda x: x, x, x)
    return jax.jit(lambda x: jax.nn.relu(straight_through(scale * x)))(x)
  jaxpr = jax.make_jaxpr(model)(np.ones((2, 3), np.float32))
  pathlib.Path(f'{sys.argv[1]}{scale}').write_text(saved.code_of(jaxpr))
"""


def test_code_is_the_same_in_every_process(tmp_path):
  def codes(stdout, python_hash_seed):
    subprocess.run(
        [sys.executable, '-c', _CODE, tmp_path / 'code'], check=True,
        stdout=stdout,
        env=os.environ | {'PYTHONHASHSEED': python_hash_seed})
    return [(tmp_path / f'code{scale}').read_text() for scale in (2, 3)]
  found = codes(subprocess.DEVNULL, '1')
  assert 'custom_vjp' in found[0] and 'callback' in found[0]
  assert found[0] != found[1]
  _, terminal = pty.openpty()  # JAX prints in colours there.
  assert codes(terminal, '2') == found
