"""Runs main.py on tiny nets, and compares what two runs left."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import timeless

_TESTS = pathlib.Path(__file__).parents[1]
_ROOT = _TESTS.parent


@contextlib.contextmanager
def runner(folder):
  """Yields a function that runs main.py, or a module of the package.

  Args:
    folder: for what they print.
  """
  env = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(
          map(str, (_TESTS, _ROOT))),
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      # They all compile the same.
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}
  env.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp(dir=folder))
  with contextlib.ExitStack() as stack:
    programs = {}

    def run(workdir, *flags, before=None, main=_ROOT / 'main.py',
            config=_TESTS / 'faults' / 'tiny_run.py', program=None, **more):
      out, err = folder / 'out', folder / 'err'
      if main not in programs:
        programs[main] = stack.enter_context(subprocess.Popen(
            [sys.executable, _TESTS / 'warm.py', main], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE))
      argv = [f'--config={config}', f'--workdir={workdir}'] if config else []
      command = {'argv': [*argv, *map(str, flags)], 'cwd': str(folder),
                 'env': more, 'out': str(out), 'err': str(err)}
      if program is not None:
        command['program'] = program
      if before is not None:
        command['before'] = before
      print(json.dumps(command), file=programs[main].stdin, flush=True)
      status = int(programs[main].stdout.readline())
      return subprocess.CompletedProcess(argv, status, out.read_text(),
                                         err.read_text())
    try:
      yield run
    finally:
      for program in programs.values():
        program.stdin.close()


def left_by(workdir):
  """Returns all that a run left that does not depend on clocks."""
  results = json.loads((workdir / 'results.json').read_text())
  results.pop('train_seconds')
  results['budget'].pop('seconds')
  last = max(int(path.name) for path in (workdir / 'checkpoints').iterdir()
             if path.name.isdigit())
  record = json.loads(
      (workdir / 'checkpoints' / str(last) / '_CHECKPOINT_METADATA'
       ).read_text())['custom_metadata']['record']
  arrays = {}
  for path in [*workdir.glob('pool/*.npz'), *workdir.glob('export/*.npz')]:
    with np.load(path) as file:
      arrays[path.name] = {name: file[name].tolist() for name in file.files}
  names = sorted(str(path.relative_to(workdir)) for path in workdir.rglob('*')
                 if path.relative_to(workdir).parts[0] not in (
                     'checkpoints', 'damaged'))
  unfinished = [path.name for path in (workdir / 'checkpoints').iterdir()
                if not path.name.isdigit()]
  return {'unfinished': unfinished, 'metrics': timeless.records(workdir),
          'results': results,
          'state': [record[name] for name in ('epoch', 'state', 'pool')],
          'arrays': arrays, 'names': names,
          'config': json.loads((workdir / 'config.json').read_text())}


def one_line(done):
  """Returns the line with which a command said why it ended, checked."""
  assert 'Traceback' not in done.stderr, done.stderr
  lines = [line for line in done.stderr.splitlines()
           if line.startswith(('error: ', 'stopped: '))]
  assert len(lines) == 1, done.stderr
  assert done.stderr.splitlines()[-1] == lines[0], done.stderr
  return lines[0]
