"""Programs are compiled once, with the options chosen for them."""

import functools
import os
import pathlib
import re
import stat
import subprocess
import sys

import jax
from jax import lax
import jax.numpy as jnp
import noting
import numpy as np
import pytest
import tiny

from ferd_jax import train
from ferd_jax.core import compilation
from ferd_jax.core import parallel

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Yields where caches are, with nothing chosen by the user."""
  names = ('jax_compilation_cache_dir',
           'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setenv('FERD_JAX_CACHE', str(tmp_path / 'caches'))
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  jax.config.update(names[0], None)
  jax.config.update(names[1], 1.)
  yield tmp_path / 'caches'
  for name, value in before.items():
    jax.config.update(name, value)


def _mode(path):
  return stat.S_IMODE(path.stat().st_mode)


def test_programs_are_kept_where_nobody_else_can_write(cache):
  (cache / 'programs').mkdir(parents=True, mode=0o755)
  (cache / 'programs').chmod(0o777)
  found = compilation.keep_programs()
  assert found.parent == cache / 'programs'
  assert _mode(found) == _mode(found.parent) == 0o700
  assert jax.config.jax_compilation_cache_dir == str(found)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_place_of_the_user_s_is_left_alone(cache, monkeypatch):
  jax.config.update('jax_compilation_cache_dir', '/elsewhere')
  assert compilation.keep_programs() is None
  assert jax.config.jax_compilation_cache_dir == '/elsewhere'
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 1
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '1')
  assert compilation.keep_programs() is not None
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 1


def test_it_can_be_switched_off(cache):
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    assert compilation.keep_programs() is None
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert jax.config.jax_compilation_cache_dir is None and not cache.exists()


@pytest.mark.parametrize('fault', ['file', 'link', 'owner'])
def test_what_is_of_no_use_is_said(cache, fault, monkeypatch, tmp_path):
  cache.mkdir()
  if fault == 'file':
    (cache / 'programs').write_text('')
  elif fault == 'link':
    (tmp_path / 'other').mkdir()
    (cache / 'programs').symlink_to(tmp_path / 'other')
  else:
    monkeypatch.setattr(os, 'getuid', lambda: -1)
  notes = noting.Reporter()
  assert compilation.keep_programs(notes) is None
  assert len(notes.lines) == 1 and 'are not kept in' in notes.lines[0]
  assert jax.config.jax_compilation_cache_dir is None


def test_importing_attacks_keeps_nothing(tmp_path):
  env = {name: value for name, value in os.environ.items()
         if not name.startswith('JAX_')}
  subprocess.run(
      [sys.executable, '-c', 'import jax; from ferd_jax import attacks, models;'
       'assert jax.config.jax_compilation_cache_dir is None'], check=True,
      cwd=_ROOT, env=env | {'FERD_JAX_CACHE': str(tmp_path),
                            'JAX_PLATFORMS': 'cpu'})
  assert not list(tmp_path.iterdir())


def test_programs_are_counted():
  def function(x):
    return x * 3.125 + len(x)
  with compilation.counted() as found:
    assert found.compiled == found.loaded == 0
    jax.block_until_ready(jax.jit(function)(np.ones(3)))
    assert found.compiled + found.loaded == 1
    assert 0 < found.seconds < 60
    before = found.seconds
    jax.block_until_ready(jax.jit(function)(np.ones(3)))
    assert found.seconds == before
  jax.jit(function)(np.ones(4))
  assert found.compiled + found.loaded == 1
  assert re.fullmatch(r'\d programs compiled and \d loaded in \d+ s',
                      str(found))


def _trained(workdir, seed):
  """Returns what a run of another seed compiles, as in a new process."""
  jax.clear_caches()
  run = tiny.claim(tiny.config(seed=seed, num_epochs=2, warmup_epochs=0,
                               **{'eval.every': 1}), workdir)
  with compilation.counted() as found:
    train.train(run, workdir, reporter=noting.Reporter())
  return found


def test_the_next_seed_compiles_nothing(tmp_path):
  first = _trained(tmp_path / '0', 0)
  assert first.compiled + first.loaded > 10
  second = _trained(tmp_path / '1', 1)
  assert second.compiled == 0 and second.loaded > 10


_MODES = ('jit', 'pmap', 'shard_map')


@pytest.mark.parametrize('mode', _MODES)
def test_options_reach_every_mapping(mode, monkeypatch):
  # Of an option that there is not, XLA says so.
  monkeypatch.setattr(compilation, 'options', lambda _: {'xla_no_such': 1})
  mapping = parallel.create(mode, tuple(jax.devices()))
  step = mapping.compile(lambda x, axis_name=None: x + 1, (parallel.SHARDED,),
                         parallel.SHARDED)
  with pytest.raises(RuntimeError, match='xla_no_such'):
    step(mapping.shard(np.ones((4, 2), np.float32)))


def test_options_of_the_user_have_precedence(monkeypatch):
  name = 'xla_cpu_experimental_ynn_fusion_type'
  monkeypatch.setenv('XLA_FLAGS', '')
  assert compilation.options('cpu')[name] == ''
  assert compilation.options('gpu') == {}
  monkeypatch.setenv('XLA_FLAGS', f'--{name}=LIBRARY_FUSION_TYPE_DOT')
  assert name not in compilation.options('cpu')


def _losses(x, kernel):
  """Returns a loss of strided, padded and grouped convolutions."""
  convolve = functools.partial(
      lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  first = convolve(x, kernel, (1, 1), 'SAME')
  second = convolve(jnp.tanh(first), kernel, (2, 2), ((1, 1), (1, 1)))
  third = convolve(second, kernel[:, :, :1], (1, 1), 'SAME',
                   feature_group_count=kernel.shape[-1])
  return jnp.sum(jnp.square(third))


@pytest.mark.parametrize('mode', _MODES)
def test_gradients_of_convolutions_are_those_of_float64(mode):
  # XLA's YNNPACK fusions were reported to compute wrong ones on CPU.
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(8, 9, 9, 16)), rng.normal(size=(3, 3, 16, 16))
  with jax.enable_x64(True):
    expected = jax.device_get(
        jax.grad(_losses, argnums=(0, 1))(x, kernel))
  assert expected[0].dtype == np.float64
  mapping = parallel.create(mode, tuple(jax.devices()))
  replicated, sharded = parallel.REPLICATED, parallel.SHARDED

  def gradients(x, kernel, axis_name=None):
    to_x, to_kernel = jax.grad(_losses, argnums=(0, 1))(x, kernel)
    return to_x, to_kernel if axis_name is None else lax.psum(
        to_kernel, axis_name)
  compiled = mapping.compile(gradients, (sharded, replicated),
                             (sharded, replicated))
  to_x, to_kernel = compiled(mapping.shard(np.float32(x)),
                             mapping.replicate(np.float32(kernel)))
  for found, exact in ((mapping.gather(to_x), expected[0]),
                       (np.asarray(to_kernel), expected[1])):
    assert found.dtype == np.float32
    size = np.abs(exact).max()
    np.testing.assert_allclose(found / size, exact / size, atol=1e-5)


def _main(folder, *flags):
  """Returns how many programs a command compiles, and loads."""
  env = {name: value for name, value in os.environ.items()
         if not name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))}
  done = subprocess.run(
      [sys.executable, *flags], text=True, capture_output=True, check=True,
      cwd=_ROOT, env=env | {'FERD_JAX_CACHE': str(folder / 'caches'),
                            'XLA_FLAGS': '--xla_backend_optimization_level=0'})
  found, = re.findall(r'(\d+) programs compiled and (\d+) loaded', done.stderr)
  return tuple(map(int, found))


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
  run = ('main.py', '--config=digits:smoke', '--config.num_epochs=2',
         "--config.eval.attacks=('clean','pgd20')")
  compiled, _ = _main(tmp_path, *run, f'--workdir={tmp_path / "0"}')
  assert compiled > 20
  compiled, loaded = _main(tmp_path, *run, '--config.seed=1',
                           f'--workdir={tmp_path / "1"}')
  assert compiled == 0 and loaded > 20
  compiled, loaded = _main(tmp_path, *run, '--mode=evaluate',
                           f'--workdir={tmp_path / "0"}')
  assert compiled == 0 and loaded > 5
  evaluate = ('-m', 'ferd_jax.evaluate', str(tmp_path / '0'), '--targets',
              '--attacks=clean,fgsm,autoattack_fast')
  # AutoAttack's batches have sizes that depend on what is left to attack.
  assert _main(tmp_path, *evaluate)[0] > 0
  assert _main(tmp_path, *evaluate)[0] == 0
