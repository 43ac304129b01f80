"""What the steps of configs cost on paper: operations, memory, communication.

  python benchmarks/costs.py cifar10 cifar10:mobilenet_v2 tiny_imagenet
  python benchmarks/costs.py cifar10 --devices=8 --precision=bfloat16

A generator step and a student step of each config are compiled at full size for
the devices that there are, and for as many as `--devices` says, which a CPU can
stand for. Nothing runs, and no teacher's file is needed. The tables have

- operations of all devices: as XLA counts them in the program before it is
  optimised, with the attack's loop written out, and as the cost model has
  them, in passes through teacher, student and generator: T, S and G are one
  forward pass of one image each, t one through the teacher's stages after the
  tap; a backward pass to the inputs alone costs as much as a forward pass, to
  inputs and weights twice as much. A generator step is 2 T + 2 S + 3 G + 102 t
  (fewer t with fewer steps of the bottleneck), a student step T + (6 + 2 n) S
  with n attack steps;
- bytes of each device: what goes into a step, what it works in (by
  `compiled.memory_analysis()`), and how much of its results lies in donated
  arguments;
- bytes that a device sends in collective operations, of the compiled program,
  and the efficiency on 8 and 64 chips that follows from them: of a step whose
  batch is divided among the chips, at `--tflops` a chip, all-reduced in a ring
  of `--gigabytes` a second, with `--microseconds` for each collective operation
  and each doubling of the chips, nothing overlapping. That is a forecast.

Loops are rolled, as on accelerators. What a compiler for another device
reserves, differs.
"""

import argparse
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

# The package and its configs.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import models
from ferd_jax.core import compilation
from ferd_jax.core import loops
from ferd_jax.distillation import distill
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.run import command_line
from ferd_jax.run import experiment as experiments
from ferd_jax.run import state as states

_ROOT = pathlib.Path(__file__).parents[1]
_CHIPS = (8, 64)
_COLLECTIVE = re.compile(
    r'= (?P<result>\(?[^=]*?\)?) (?:all-reduce|all-gather|reduce-scatter|'
    r'all-to-all|collective-permute)(?:-start)?\(')
_ARRAY = re.compile(r'(?P<type>[a-z]+)(?P<bits>\d*)\[(?P<shape>[\d,]*)\]')


def build(place: str, devices: int, precision: str) -> experiments.Experiment:
  """Returns the experiment of a config, on noise and with random weights."""
  config = command_line.load(place, _ROOT)
  config.data.noise_examples = 24
  for teacher in (config.teacher, *config.teachers.values()):
    teacher.path, teacher.robustbench = 'random', None
  config.precision = precision
  config.parallel = 'jit' if devices == 1 else 'shard_map'
  # Nothing is evaluated.
  config.eval.batch_size = devices
  return experiments.build(config, tuple(jax.devices()[:devices]))


def arguments(experiment: experiments.Experiment) -> dict[str, tuple]:
  """Returns the shapes of the arguments of the steps, by name."""
  method, state = experiment.method, states.shapes(experiment.method)
  def shapes(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)
  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = frozens.Frozen(
      {name: shapes(loaded.variables)
       for name, loaded in experiment.teachers.items()},
      state.student.variables, state.epoch)
  phase = jax.eval_shape(
      method.synthesis.begin, state.synthesis, state.sampler.probs,
      array((method.synthesis.batch_size,), jnp.int32), key)
  size = method.distillation.batch_size
  batch = distill.StudentBatch(array((size, *method.image_shape), jnp.float32),
                               array((size,), jnp.int32))
  return {'generator step': (phase, frozen, key),
          'student step': (state.student, batch,
                           frozen.replace(student=None), key)}


def _flops(function, *shapes):
  """Returns the operations that XLA counts in a program as it is written."""
  return jax.jit(function).lower(*shapes).cost_analysis()['flops']


def cost_model(experiment: experiments.Experiment) -> dict[str, float]:
  """Returns the operations of the steps, in passes; see the module."""
  method = experiment.method
  synthesis, image = method.synthesis, jax.ShapeDtypeStruct(
      (1, *method.image_shape), jnp.float32)
  def of(model, shape):
    variables = models.abstract_variables(model, shape.shape[1:])
    if isinstance(model, models.Generator):
      return _flops(lambda v, z: model.apply(v, z, mutable=['batch_stats']),
                    variables, shape)
    return _flops(lambda v, x: forward.logits(model, v, x), variables, shape)
  teacher, student = (of(model, image) for model in (
      synthesis.teacher, method.distillation.student))
  generator = of(synthesis.generator_module,
                 jax.ShapeDtypeStruct((2, synthesis.nz), jnp.float32)) / 2
  tail = teacher * passes.tail_share(synthesis.teacher, method.image_shape,
                                     synthesis.tap_stage)
  turns = 2 * (synthesis.bottleneck.steps + 1) * bool(synthesis.w_uni)
  return {
      'generator step': synthesis.batch_size * (
          2 * teacher + 2 * student + 3 * generator + turns * tail),
      'student step': method.distillation.batch_size * (
          teacher + (6 + 2 * method.distillation.inner.steps) * student)}


def communicated(text: str) -> tuple[int, int]:
  """Returns how many collectives a compiled program has, and their bytes.

  Args:
    text: HLO of a program.
  """
  count = total = 0
  for found in _COLLECTIVE.finditer(text):
    count += 1
    for array in _ARRAY.finditer(found['result']):
      bits = int(array['bits'] or 8)  # pred
      size = np.prod([int(side) for side in array['shape'].split(',') if side],
                     dtype=np.int64)
      total += int(size) * bits // 8
  return count, total


def efficiency(flops: float, collectives: int, size: int, chips: int,
               args: argparse.Namespace) -> float:
  """Returns which share of the time the chips compute; see the module."""
  computing = flops / chips / (args.tflops * 1e12)
  waiting = (2 * (chips - 1) / chips * size / (args.gigabytes * 1e9)
             + collectives * np.log2(chips) * args.microseconds * 1e-6)
  return computing / (computing + waiting)


def measure(place: str, args: argparse.Namespace) -> dict:
  """Returns what the steps of a config cost."""
  experiment = build(place, args.devices, args.precision)
  given, model = arguments(experiment), cost_model(experiment)
  found = {'config': place, 'devices': args.devices,
           'precision': args.precision, 'device': jax.devices()[0].device_kind}
  # With loops written out, all of them are counted.
  written_out = build(place, 1, args.precision).steps
  for name, step in (('generator step', written_out.generate),
                     ('student step', written_out.student)):
    found[name] = {
        'flops': step.lower(*given[name]).cost_analysis()['flops'],
        'model_flops': model[name]}
  if args.count_only:
    return found
  unrolled, loops.unrolled_here = loops.unrolled_here, lambda: False
  try:
    steps = experiment.steps
    for name, step in (('generator step', steps.generate),
                       ('student step', steps.student)):
      compiled = step.lower(*given[name]).compile(
          compiler_options=compilation.options(jax.devices()[0].platform))
      memory = compiled.memory_analysis()
      count, size = communicated(compiled.as_text())
      found[name] |= {
          'argument_bytes': memory.argument_size_in_bytes,
          'output_bytes': memory.output_size_in_bytes,
          'alias_bytes': memory.alias_size_in_bytes,
          'temp_bytes': memory.temp_size_in_bytes,
          'collectives': count, 'communicated_bytes': size,
          'efficiency': {chips: efficiency(found[name]['flops'], count, size,
                                           chips, args) for chips in _CHIPS}}
  finally:
    loops.unrolled_here = unrolled
  return found


def table(rows: list[dict]) -> str:
  """Returns a table in Markdown."""
  lines = ['| config | step | TFLOP | of the model | arguments | working '
           'memory | donated | sent | 8 chips | 64 chips |',
           '|' + '---|' * 10]
  for row in rows:
    for name in ('generator step', 'student step'):
      one = row[name]
      cells = [row['config'], name, f'{one["flops"] / 1e12:.3g}',
               f'{one["flops"] / one["model_flops"]:.2f}']
      if 'temp_bytes' in one:
        cells += [f'{one[kind] / 1e6:,.0f} MB' for kind in (
            'argument_bytes', 'temp_bytes', 'alias_bytes')]
        cells += ['-'] * 3 if not one['collectives'] else [
            f'{one["communicated_bytes"] / 1e6:,.1f} MB in '
            f'{one["collectives"]}',
            *(f'{one["efficiency"][chips]:.0%}' for chips in _CHIPS)]
      else:
        cells += ['-'] * 6
      lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('configs', nargs='+', help='as after --config=')
  add('--devices', type=int, default=1, help='over which batches are divided')
  add('--precision', choices=('float32', 'bfloat16'), default='float32')
  add('--count-only', action='store_true',
      help='operations alone, which compiles nothing')
  add('--tflops', type=float, default=100., help='sustained, of a chip')
  add('--gigabytes', type=float, default=100., help='a second, of a link')
  add('--microseconds', type=float, default=10., help='of a collective')
  add('--output', help='JSON file to write')
  return parser


def main() -> None:
  args, rows = _parser().parse_args(), []
  # Before JAX looks for devices.
  jax.config.update('jax_num_cpu_devices', args.devices)
  for place in args.configs:
    rows.append(measure(place, args))
    if args.output:
      pathlib.Path(args.output).write_text(json.dumps(rows, indent=2) + '\n')
  print(f'{args.devices} x {jax.devices()[0].device_kind}, {args.precision}, '
        f'jax {jax.__version__}')
  print(table(rows))


if __name__ == '__main__':
  main()
