"""A process that has imported main.py's modules, and forks for each command.

  python warm.py    reads a JSON line {"argv", "cwd", "env", "out", "err"} for
                    each command, and answers with its exit status; with
                    "before": [module, arguments] the module's `before` is
                    called first, and with "program" another file than main.py
                    is run, or a module by its name

Starting Python and JAX takes longer than most of the commands.
"""

import importlib
import json
import os
import runpy
import sys
import traceback


def _child(command, main):
  """Runs a command in this process, which it ends."""
  for stream, path in ((1, command['out']), (2, command['err'])):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
  os.chdir(command['cwd'])
  os.environ.update(command['env'])
  sys.argv, status = [main, *command['argv']], 0
  try:
    if 'before' in command:
      module, arguments = command['before']
      importlib.import_module(module).before(**arguments)
    program = command.get('program', main)
    run = runpy.run_path if program.endswith('.py') else runpy.run_module
    run(program, run_name='__main__')
  except SystemExit as stop:
    status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    if isinstance(stop.code, str):
      print(stop.code, file=sys.stderr)
  except BaseException:
    traceback.print_exc()
    status = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def main():
  path = sys.argv[1]
  sys.path.insert(0, os.path.dirname(path))
  # Neither starts a device, which a fork would not survive.
  import ferd_jax.evaluate
  import ferd_jax.run.command_line  # noqa: F401
  for line in sys.stdin:
    child = os.fork()
    if not child:
      _child(json.loads(line), path)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
  main()
