"""How the seconds of a run grow, with one thing changed at a time.

  python benchmarks/growth.py
  python benchmarks/growth.py --small --output=growth.json

The networks of `cifar10_resnet20`, a ResNet-20 and one of half its width, with
random weights on noise. From a batch of 64 images of 32x32 pixels in 10
classes, and a pool of one epoch, it goes up in batch size, classes, image side,
images in the pool, and devices, where there are several. An epoch has as few
steps as `--steps` says; its time is that after the first, which compiles. The
table has seconds, and how often those of the row before.

A CPU's devices share its cores: what several would do, benchmarks/costs.py
says.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

# The package and its configs.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from configs import cifar10_resnet20
from ferd_jax import train
from ferd_jax.run import experiment as experiments
from ferd_jax.synthesis import pool as pools

_START = {'batch': 64, 'classes': 10, 'side': 32, 'pool': 64, 'devices': 1}
_ROWS = {'batch': (128, 256), 'classes': (100, 200), 'side': (64,),
         'pool': (6400, 64_000), 'devices': (2, 4, 8)}
_SMALL = {'batch': 8, 'classes': 4, 'side': 8, 'pool': 8, 'devices': 1}
_SMALL_ROWS = {'batch': (16,), 'classes': (8,), 'side': (16,),
               'pool': (800,), 'devices': ()}


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('--steps', type=int, default=4, help='of either phase, an epoch')
  add('--rounds', type=int, default=3,
      help='epochs, of which the fastest counts')
  add('--small', action='store_true', help='tiny, to try this script')
  add('--output', help='JSON file to write')
  return parser


def seconds(size: dict[str, int], args: argparse.Namespace,
            folder: pathlib.Path) -> float:
  """Returns the seconds of an epoch.

  Args:
    size: of everything that changes.
    args: of the command line.
    folder: where a data set of that size may be made.
  """
  config = cifar10_resnet20.get_config('smoke' if args.small else '')
  side, classes = size['side'], size['classes']
  path = folder / f'{side}_{classes}.npz'
  np.savez(path, x=np.zeros((classes, side, side, 3), np.uint8),
           y=np.arange(classes))
  config.data.name, config.data.noise_examples = str(path), 8
  config.data.split = 'test'
  config.teacher.path, config.warmup_epochs = 'random', 0
  for group in (config.synthesis, config.distill):
    group.batch_size, group.steps = size['batch'], args.steps
  config.eval.batch_size = size['devices']
  experiment = experiments.build(config, tuple(
      jax.devices()[:size['devices']]))
  method = experiment.method
  steps, state = experiment.steps, experiment.initial_state(0)
  teachers, found = experiment.place_teachers(), []
  rng = np.random.default_rng(0)
  for _ in range(args.rounds + 1):
    before = max(0, size['pool'] - size['batch'])
    pool = pools.Pool.empty(before + size['batch'], method.image_shape)
    pool.append(rng.random((before, *method.image_shape), np.float32),
                np.zeros(before, np.int32))
    started = time.perf_counter()
    done = train.epoch(method, steps, state, teachers, pool)
    state = jax.block_until_ready(done.state)
    found.append(time.perf_counter() - started)
  return min(found[1:])


def main() -> None:
  args = _parser().parse_args()
  start, rows = (_SMALL, _SMALL_ROWS) if args.small else (_START, _ROWS)
  found = []
  print(f'{len(jax.devices())} x {jax.devices()[0].device_kind}, '
        f'jax {jax.__version__}\n')
  print('| what grows | to | seconds | of the row before |\n|---|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    first = seconds(start, args, pathlib.Path(folder))
    for name, values in rows.items():
      before = first
      print(f'| {name} | {start[name]} | {first:.3f} | |', flush=True)
      for value in values:
        if name == 'devices' and (value > len(jax.devices())
                                  or jax.default_backend() == 'cpu'):
          continue
        now = seconds(start | {name: value}, args, pathlib.Path(folder))
        print(f'| {name} | {value} | {now:.3f} | {now / before:.2f} |',
              flush=True)
        found.append({'what': name, 'value': value, 'seconds': now,
                      'times': now / before})
        before = now
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(
        {'start': start, 'seconds': first, 'rows': found}, indent=2) + '\n')


if __name__ == '__main__':
  main()
