"""Runs of main.py in processes of their own, and what they leave."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(flags: list[str], workdir: pathlib.Path) -> int:
  """Runs main.py in a work directory to its end and returns its status.

  Its output is shown, and appended to `log.txt` in the work directory.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, str(ROOT / 'main.py'), f'--workdir={workdir}',
             *flags]
  with (workdir / 'log.txt').open('a') as log:
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
      for line in process.stdout:
        print(line, end='', flush=True)
        log.write(line)
        log.flush()
  return process.returncode


def metrics(workdir: pathlib.Path) -> list[dict]:
  """Returns the metrics of the epochs done so far."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def results(workdir: pathlib.Path) -> dict | None:
  """Returns the results, None if the run has not ended."""
  path = workdir / 'results.json'
  return json.loads(path.read_text()) if path.exists() else None
