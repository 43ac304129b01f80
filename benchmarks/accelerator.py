"""All that is to be measured on an accelerator, in as many slices as it takes.

  python benchmarks/accelerator.py --workdir=runs/accelerator --minutes=30 \
    --teacher=CIFAR10-resnet20-adv.pth

The same command goes on where the last one stopped. In this order: the tests,
file by file, on this device; the steps of configs beside PyTorch's
(benchmarks/steps.py), in float32 and in bfloat16; what they cost as the
device's compiler sees it (benchmarks/costs.py); seconds against batch and image
size (benchmarks/growth.py); then `cifar10_resnet20:paper_length` from the
teacher's file, trained and evaluated with AutoAttack, resumed slice by slice.
What a part printed is in `<workdir>/logs`, its JSON in `<workdir>`, and
`results.md` has all that is there so far, with the hardware named.

Nothing runs beyond `--minutes`: a part that is not done by then is told to
stop, and killed if it does not within a minute. A part of no more use, such as
one that fails on this device, is passed by with `--skip=NAME`. `--evaluate`
evaluates the training as far as it went. `--small` does everything with tiny
networks, to try the script itself, without a teacher's file.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).parents[1]
_GRACE = 60  # seconds that a part has to stop in
_HARDWARE = """
import json, os, platform, jax
devices = jax.devices()
print(json.dumps({
    'devices': [device.device_kind for device in devices],
    'platform': devices[0].platform, 'jax': jax.__version__,
    'python': platform.python_version(), 'cpus': os.cpu_count(),
    'memory': (devices[0].memory_stats() or {}).get('bytes_limit')}))
"""


@dataclasses.dataclass(frozen=True)
class Part:
  """One thing to do, by a process of its own.

  Attributes:
    name: of its log.
    command: after the interpreter.
    result: a file that is there once it is done; None for its exit status 0.
    may_fail: whether a failure is a result, too.
    environment: beside this one's.
  """
  name: str
  command: tuple[str, ...]
  result: pathlib.Path | None = None
  may_fail: bool = False
  environment: tuple[tuple[str, str], ...] = ()


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('--workdir', type=pathlib.Path, required=True, help='of all that is left')
  add('--minutes', type=float, default=30., help='of this slice')
  add('--teacher', type=pathlib.Path, help='CIFAR10-resnet20-adv.pth')
  add('--skip', action='append', default=[], help='a part, by its name')
  add('--only', help='parts whose name begins so')
  add('--evaluate', action='store_true',
      help='evaluate the training as far as it went')
  add('--small', action='store_true', help='tiny, to try this script')
  return parser


def parts(args: argparse.Namespace) -> Iterator[Part]:
  """Yields all there is to do, in order."""
  workdir = args.workdir.absolute()
  yield Part('hardware', ('-c', _HARDWARE))
  files = sorted((_ROOT / 'tests').rglob('*_test.py'))
  if args.small:
    files = [file for file in files if file.name == 'class_sums_test.py']
  for file in files:
    name = file.relative_to(_ROOT / 'tests').with_suffix('')
    yield Part(f'tests/{name}', ('-m', 'pytest', '-q', '-n', '0', '-p',
                                 'no:cacheprovider', str(file)),
               may_fail=True, environment=(('FERD_JAX_TEST_PLATFORMS', ''),))
  configs = (('digits:smoke',) if args.small else
             ('digits', 'fashion_mnist', 'cifar10_resnet20:paper_length',
              'cifar10', 'cifar10:mobilenet_v2'))
  rounds = ('--rounds=1', '--seconds=0') if args.small else ('--rounds=5',)
  for config in configs:
    for precision in ('float32', 'bfloat16'):
      name = f'steps/{re.sub("[:,]", "_", config)}_{precision}'
      result = workdir / f'{name}.json'
      yield Part(name, (
          'benchmarks/steps.py', f'--config={config}', *rounds,
          f'--config.precision={precision}', f'--output={result}',
          *(['--nopytorch'] if args.small else ['--compile'])), result,
                 may_fail=True)
  for precision in ('float32', 'bfloat16'):
    result = workdir / f'costs_{precision}.json'
    yield Part(f'costs/{precision}', (
        'benchmarks/costs.py', *configs, f'--precision={precision}',
        f'--output={result}'), result, may_fail=True)
  result = workdir / 'growth.json'
  yield Part('growth', (
      'benchmarks/growth.py', f'--output={result}',
      *(['--small'] if args.small else [])), result, may_fail=True)
  run = workdir / 'training'
  config = ('cifar10_resnet20:smoke' if args.small else
            'cifar10_resnet20:paper_length')
  path = 'random' if args.small else args.teacher and args.teacher.absolute()
  command = ('main.py', f'--config={config}', f'--config.teacher.path={path}',
             f'--workdir={run}')
  if args.evaluate:
    yield Part('evaluation', (*command, '--mode=evaluate'),
               run / 'evaluation.json')
  else:
    yield Part('training', command, run / 'results.json')


def run(part: Part, args: argparse.Namespace, deadline: float) -> str:
  """Runs a part until it is done or the time is over.

  Returns:
    'done', 'failed' or 'stopped'.
  """
  left = deadline - time.monotonic()
  command = list(part.command)
  if part.name == 'training':  # No epoch is begun that would be lost.
    command.append(f'--config.max_minutes={left / 60:.3f}')
  log = args.workdir / 'logs' / f'{part.name}.txt'
  log.parent.mkdir(parents=True, exist_ok=True)
  if part.result is not None:
    part.result.parent.mkdir(parents=True, exist_ok=True)
  # That of the training goes on, as it does.
  with log.open('a' if part.name == 'training' else 'w') as file:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=_ROOT, stdout=file,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env=os.environ | dict(part.environment))
    try:
      status = process.wait(max(left, 1))
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      try:
        process.wait(_GRACE)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      return 'stopped'
  if status == 0 and (part.result is None or part.result.exists()):
    return 'done'
  return 'stopped' if status in (0, 143) else 'failed'


def _summary(workdir, name):
  """Returns the last line that pytest printed of a file of tests."""
  text = (workdir / 'logs' / f'{name}.txt').read_text()
  found = re.findall(r'^.*\b(?:passed|failed|skipped|error).* in .*$', text,
                     re.MULTILINE)
  return found[-1].strip('= ') if found else 'no result'


def report(workdir: pathlib.Path, state: dict[str, str]) -> str:
  """Returns all results so far, as Markdown."""
  lines = ['# Results', '']
  hardware = workdir / 'logs' / 'hardware.txt'
  if hardware.exists():
    found = json.loads(hardware.read_text().splitlines()[-1])
    lines += [', '.join(f'{name} {value}' for name, value in found.items()), '']
  tests = [name for name in state if name.startswith('tests/')]
  if tests:
    passed = sum(state[name] == 'done' for name in tests)
    lines += ['## Tests', '', f'{passed} of {len(tests)} files pass.', '']
    lines += [f'- {name}: {_summary(workdir, name)}' for name in tests
              if state[name] == 'failed'] + ['']
  rows = []
  for path in sorted(workdir.glob('steps/*.json')):
    for name, step in json.loads(path.read_text())['steps'].items():
      ratio = f'{step["torch/jax"]:.2f}' if 'torch/jax' in step else '-'
      rows.append(f'| {path.stem} | {name} | {step["jax"]["median"]:.1f} ms | '
                  f'{ratio} |')
  if rows:
    lines += ['## Steps', '', '| config | step | median | PyTorch over JAX |',
              '|---|---|---|---|', *rows, '']
  for title, name in (('Costs, float32', 'costs/float32'),
                      ('Costs, bfloat16', 'costs/bfloat16'),
                      ('Growth', 'growth')):
    log = workdir / 'logs' / f'{name}.txt'
    table = [line for line in (
        log.read_text().splitlines() if log.exists() else ())
             if line.startswith('|')]
    if table:
      lines += [f'## {title}', '', *table, '']
  metrics = workdir / 'training' / 'metrics.jsonl'
  if metrics.exists():
    epochs = metrics.read_text().splitlines()
    seconds = sum(json.loads(line)['seconds'] for line in epochs)
    lines += ['## Training', '',
              f'{len(epochs)} epochs in {seconds / 60:.1f} minutes.', '']
  for name in ('training', 'evaluation'):
    log = workdir / 'logs' / f'{name}.txt'
    table = [line for line in (
        log.read_text().splitlines() if log.exists() else ())
             if line.startswith('|')]
    if table:
      lines += [*table, '']
  failed = [f'- {name}' for name, what in state.items()
            if what == 'failed' and not name.startswith('tests/')]
  if failed:
    lines += ['## Failed, see logs', '', *failed, '']
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Does what there is time for; returns 0 once all is done, else 75."""
  args = _parser().parse_args(argv)
  deadline = time.monotonic() + 60 * args.minutes
  if not args.small and (args.teacher is None or not args.teacher.exists()):
    sys.exit('error: Expected --teacher=FILE, CIFAR10-resnet20-adv.pth; '
             f'{args.teacher or "it"} is absent.')
  args.workdir.mkdir(parents=True, exist_ok=True)
  path = args.workdir / 'state.json'
  state = json.loads(path.read_text()) if path.exists() else {}
  left = 0
  for part in parts(args):
    done = state.get(part.name) in ('done', 'failed')
    if done or part.name in args.skip or not part.name.startswith(
        args.only or ''):
      continue
    if time.monotonic() + 5 > deadline:
      left += 1
      continue
    started = time.monotonic()
    found = run(part, args, deadline)
    print(f'{part.name}: {found}, {time.monotonic() - started:.0f} s',
          flush=True)
    if found == 'failed' and not part.may_fail:
      print(f'See {args.workdir}/logs/{part.name}.txt; --skip={part.name} '
            'passes it by.')
      left += 1
    elif found == 'stopped':
      left += 1
    else:
      state[part.name] = found
      path.write_text(json.dumps(state, indent=2) + '\n')
    (args.workdir / 'results.md').write_text(report(args.workdir, state))
  print(f'{args.workdir}/results.md; ' + (
      f'{left} parts are left: the same command goes on.' if left else
      'all is done.'))
  return 75 if left else 0  # 75: EX_TEMPFAIL, try again.


if __name__ == '__main__':
  sys.exit(main())
