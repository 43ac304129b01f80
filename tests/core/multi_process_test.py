"""Two processes, as `mpirun -n 2` or the hosts of a TPU pod start them."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import timeless
import whole_epoch

_ROOT = pathlib.Path(__file__).parents[2]
_FLAGS = [f'--config={_ROOT / "configs" / "digits.py"}:smoke',
          '--config.warmup_epochs=0', '--config.eval.curve_examples=8',
          "--config.eval.attacks=('clean',)"]


def _start(workdir, num_devices, *flags, **env):
  return subprocess.Popen(
      [sys.executable, _ROOT / 'main.py', *_FLAGS, f'--workdir={workdir}',
       *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | env | {
          'JAX_PLATFORMS': 'cpu',
          'XLA_FLAGS': '--xla_backend_optimization_level=0 '
                       '--xla_force_host_platform_device_count='
                       f'{num_devices}'})


def _finish(processes):
  outputs = [process.communicate(timeout=600) for process in processes]
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors
  return outputs


def _free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def _start_two(workdir, *flags, minutes=(0, 0)):
  """Returns both processes, joined through Open MPI's variables."""
  port = _free_port()
  return [
      _start(workdir, 1, '--distributed',
             f'--config.max_minutes={minutes[rank]}', *flags,
             OMPI_MCA_orte_hnp_uri='4096.0;tcp://127.0.0.1:1',
             OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK=str(rank),
             OMPI_COMM_WORLD_LOCAL_RANK=str(rank),
             JAX_COORDINATOR_PORT=str(port)) for rank in range(2)]


def _on_two_processes(workdir, minutes=(0, 0)):
  """Returns (stdout, stderr) of both."""
  return _finish(_start_two(workdir, minutes=minutes))


def _on_two_with_two_devices(workdir, *flags):
  """Returns (stdout, stderr) of both, which are told where they find others."""
  port = _free_port()
  return _finish([
      _start(workdir, 2, f'--coordinator=127.0.0.1:{port}',
             '--num_processes=2', f'--process_id={rank}', *flags)
      for rank in range(2)])


_ATTACK = """
import jax, jax.numpy as jnp, sys
jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2]))
from ferd_jax import attacks
attacked = attacks.jit(attacks.PGD(0.1, 0.1, 2),
                       lambda w, x: x.reshape(len(x), -1) @ w)
x = jnp.full((3, 2, 2, 1), 0.5)
print(len(jax.devices()), attacked(
    jnp.arange(8.).reshape(4, 2), jax.random.key(0), x, jnp.ones(3, int)).shape)
"""


@pytest.mark.slow
def test_each_process_attacks_what_is_its_own():
  port = _free_port()
  outputs = _finish([subprocess.Popen(
      [sys.executable, '-c', _ATTACK, str(port), str(rank)], text=True,
      cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''})
                     for rank in range(2)])
  assert [out for out, _ in outputs] == ['2 (3, 2, 2, 1)\n'] * 2


def _metrics(workdir):
  return [json.loads(line) for line in
          (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_resume_and_agree_with_one(tmp_path):
  two, one = tmp_path / 'two', tmp_path / 'one'
  _finish([_start(one, 2, '--config.parallel=shard_map')])
  # Stopped by the first process's clock after one epoch, then gone on with.
  _on_two_processes(two, minutes=(1e-6, 1e6))
  assert not (two / 'results.json').exists()
  assert len(_metrics(two)) == 1
  outputs = _on_two_processes(two)
  assert 'student average' in outputs[0][0]
  assert 'student' not in outputs[1][0], 'only process 0 prints'
  results = [json.loads((run / 'results.json').read_text())
             for run in (one, two)]
  assert results[1]['parallel'] == 'shard_map'
  assert len(results[1]['devices']) == 2
  assert results[0]['models']['teacher'] == results[1]['models']['teacher']
  for alone, joined in zip(_metrics(one), _metrics(two), strict=True):
    assert alone.keys() == joined.keys()
    for name, value in alone.items():
      if isinstance(value, str):
        assert joined[name] == value, name
      elif timeless.record({name: value}):
        # A class without images has no accuracy: None.
        np.testing.assert_allclose(
            np.array(joined[name], float), np.array(value, float), rtol=1e-4,
            atol=1e-4, err_msg=name)


def _assert_close(some, others):
  """Asserts that metrics of two runs are those of the same run."""
  for one, other in zip(some, others, strict=True):
    for name, value in one.items():
      if not (isinstance(value, str) or name.endswith(('seconds',
                                                       'ms_per_step'))):
        np.testing.assert_allclose(
            np.array(other[name], float), np.array(value, float), rtol=1e-4,
            atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_checkpoints_of_two_processes_are_those_of_one(tmp_path):
  whole, two_first, one_first = (
      tmp_path / name for name in ('whole', 'two_first', 'one_first'))
  flags = ('--config.num_epochs=2',)
  stop = (*flags, '--config.max_minutes=1e-6')
  _finish([_start(whole, 1, *flags)])
  _on_two_with_two_devices(two_first, *stop)
  assert len(_metrics(two_first)) == 1
  _finish([_start(two_first, 4, *flags)])
  _finish([_start(one_first, 1, *stop)])
  assert len(_metrics(one_first)) == 1
  first, second = _on_two_with_two_devices(one_first, *flags)
  assert 'student' in first[0] and 'epoch 2/2' in first[1]
  said = [line for line in second[0].splitlines() if '[Gloo]' not in line]
  assert not said and 'epoch' not in second[1], 'only process 0 prints'
  for run in (two_first, one_first):
    _assert_close(_metrics(whole), _metrics(run))
  # Whoever goes on, the same state is evaluated.
  results = [json.loads((run / 'results.json').read_text())['models']
             for run in (whole, two_first, one_first)]
  assert results[1]['teacher'] == results[0]['teacher'] == results[2]['teacher']


_EPOCH = """
import sys
import jax
import numpy as np
jax.config.update('jax_enable_x64', True)
jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2]))
assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
sys.path[:0] = sys.argv[4:]
import whole_epoch
found = whole_epoch.epoch('shard_map', 4, np.float64, 3)
if jax.process_index() == 0:
  np.savez(sys.argv[3], *jax.tree.leaves(found))
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
  port, file = _free_port(), tmp_path / 'found.npz'
  _finish([subprocess.Popen(
      [sys.executable, '-c', _EPOCH, str(port), str(rank), str(file),
       str(_ROOT), str(_ROOT / 'tests'), str(_ROOT / 'tests' / 'core')],
      text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=os.environ | {
          'JAX_PLATFORMS': 'cpu',
          'XLA_FLAGS': '--xla_force_host_platform_device_count=2'})
           for rank in range(2)])
  with np.load(file) as arrays:
    found = [arrays[f'arr_{i}'] for i in range(len(arrays.files))]
  for mode, num_devices in (('jit', 1), ('pmap', 4)):
    with jax.enable_x64(True):
      expected = whole_epoch.epoch(mode, num_devices, np.float64, 3)
    for one, other in zip(found, jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_two_processes_end_together_if_one_is_preempted(tmp_path, number):
  flags = '--config.num_epochs=200', '--config.log.samples_every=0'
  processes = _start_two(tmp_path, *flags)
  while len(_metrics(tmp_path) if (tmp_path / 'metrics.jsonl').exists()
            else ()) < 2:
    assert processes[0].poll() is None
    time.sleep(0.2)
  processes[1].send_signal(number)
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [143, 143], outputs
  lines = [line for line in outputs[0][1].splitlines()
           if line.startswith('stopped: ')]
  saved = re.fullmatch(r'stopped: SIGTERM; epoch (\d+) of 200 is saved; run '
                       'again to go on.', lines[0])
  assert len(lines) == 1 and int(saved[1]) >= 1
  # One more was started at most.
  assert len(_metrics(tmp_path)) - int(saved[1]) in (0, 1)
