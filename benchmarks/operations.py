"""Where the time of a generator and a student step goes, by kind of operation.

  python benchmarks/operations.py --config=cifar10_resnet20 --steps=2

The compiled steps of a run, at the config's networks and batch sizes, with
random weights on noise, run under `jax.profiler`. The tables have, by kind of
HLO operation, the share of the time that the devices' (on CPU: the threads')
events of that kind took together; `loop fusions` are the elementwise operations
around them, BatchNorm's among them. A line says how many operations a second
that is, from what XLA counts (see benchmarks/costs.py), and which share of
`--tflops`, the peak of the device. `--trace=FOLDER` keeps the trace, for
Perfetto or TensorBoard.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

# The package and its configs.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import costs

from ferd_jax.distillation import distill
from ferd_jax.models import frozen as frozens

# Kinds by what the name of an event begins with, the first that fits.
_KINDS = (
    ('convolutions', r'(wrapped_|ynn_|cudnn|cutlass|.*conv)'),
    ('dense layers', r'(dot|gemm|cublas|.*gemm)'),
    ('reductions', r'(.*reduce)'), ('copies', r'(copy|transpose|.*copy)'),
    ('loop fusions', r'(.*fusion|broadcast|add|multiply|select|maximum)'),
    ('collectives', r'(all-|reduce-scatter|nccl)'))


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('--config', default='cifar10_resnet20', help='as of main.py')
  add('--precision', choices=('float32', 'bfloat16'), default='float32')
  add('--steps', type=int, default=2, help='of either kind, under the profiler')
  add('--tflops', type=float, help='peak of the device')
  add('--trace', help='folder that keeps the trace')
  return parser


def kind_of(name: str) -> str:
  """Returns the kind of operation that an event's name says."""
  return next((kind for kind, pattern in _KINDS if re.match(pattern, name)),
              'others')


def shares(folder: pathlib.Path) -> dict[str, float]:
  """Returns the seconds of events by kind, of a trace."""
  found = collections.Counter()
  for path in folder.rglob('*.xplane.pb'):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        for event in line.events:
          stats = dict(event.stats)
          if 'hlo_op' in stats and not str(stats['hlo_op']).startswith(
              ('while', 'call', 'conditional')):  # They contain others.
            found[kind_of(str(stats['hlo_op']))] += event.duration_ns / 1e9
  return dict(found)


def main() -> None:
  args = _parser().parse_args()
  run = costs.build(args.config, 1, args.precision)
  method, steps = run.method, run.steps
  state, key = run.initial_state(0), jax.random.key(0)
  frozen = frozens.Frozen(
      run.place_teachers(), jax.tree.map(jnp.copy, state.student.variables),
      jnp.copy(state.epoch))
  phase = steps.begin(state.synthesis, state.sampler.probs,
                      np.arange(method.synthesis.batch_size), key)
  size = method.distillation.batch_size
  batch = distill.StudentBatch(
      jax.random.uniform(key, (size, *method.image_shape)),
      jnp.arange(size, dtype=jnp.int32) % method.num_classes)
  given = costs.arguments(run)
  print(f'{args.config}, {args.precision}, {jax.devices()[0].device_kind}, '
        f'jax {jax.__version__}')
  for name, step, current, others in (
      ('generator step', steps.generate, phase, (frozen, key)),
      ('student step', steps.student, state.student,
       (batch, frozen.replace(student=None), key))):
    flops = step.lower(*given[name]).cost_analysis()['flops']
    current, *_ = jax.block_until_ready(step(current, *others))
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(args.trace or folder) / name.replace(' ', '_')
      started = time.perf_counter()
      with jax.profiler.trace(str(folder)):
        for _ in range(args.steps):
          current, *_ = jax.block_until_ready(step(current, *others))
        seconds = (time.perf_counter() - started) / args.steps
      found = shares(folder)
    rate = flops / seconds / 1e12
    peak = f', {rate / args.tflops:.0%} of the peak' if args.tflops else ''
    print(f'\n{name}: {seconds * 1e3:.0f} ms, {flops / 1e12:.3g} TFLOP, '
          f'{rate:.3g} TFLOP/s{peak}\n\n| operations | share |\n|---|---|')
    total = sum(found.values()) or 1
    for kind, value in sorted(found.items(), key=lambda item: -item[1]):
      print(f'| {kind} | {value / total:.1%} |')


if __name__ == '__main__':
  main()
