"""Measures the steps of a config in ferd_jax and in PyTorch, side by side.

  python benchmarks/steps.py --config=configs/fashion_mnist.py
  python benchmarks/steps.py --config=cifar10_resnet20 --rounds=3 \
    --output=steps.json

Four things, at the config's networks and batch sizes: a generator step, a
student step, PGD-20 on one batch of the evaluation, and an epoch. On the JAX
side they are the compiled functions that training and evaluation call, and
`train.epoch` itself; on the PyTorch side benchmarks/pytorch_steps.py, eager,
with the same converted weights, in the faster of its two memory layouts. No
data set or file is needed: images are noise and weights random, with which a
step takes as long as with others. Copies of batches to the device are not
measured, but in an epoch.

An epoch is one after the warm-up, cut to at most 20 generator and 20 student
steps and measured in JAX alone. What it takes beyond these steps, which is
printed, is the start of the phase, the pool, the sampler's attack and the host.

First, both sides take one step with the same weights, images and random
numbers, and the script ends if losses or gradients disagree. That is also the
warm-up. Then they take turns for some rounds, each time for at least
`--seconds`, from the first call until the last result is ready. The table has
the medians over rounds. The machine should do nothing else: the load is
printed with the results, and other programs slow PyTorch's threads most, which
wait for each other after every operation. Without torch, with `--nopytorch`, or
for other parts than FERD's, the JAX side is measured alone. On a GPU both sides
use it, PyTorch if it finds CUDA. With `--compile` the networks on PyTorch's
side are compiled as well, by torch.compile, a third side. In bfloat16
(`--config.precision=bfloat16`) PyTorch's training steps are under its autocast.
"""

from collections.abc import Callable
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

# The package and its configs.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import attacks
from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.distillation import distill
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.run import command_line
from ferd_jax.run import experiment as experiments
from ferd_jax.run import networks
from ferd_jax.synthesis import base
from ferd_jax.synthesis import bottleneck
from ferd_jax.synthesis import ferd
from ferd_jax.synthesis import pool

_ROUNDS = flags.DEFINE_integer(
    'rounds', 5, 'Measurements of every step and side.', lower_bound=1)
_SECONDS = flags.DEFINE_float(
    'seconds', 1., 'Least time of one measurement.', lower_bound=0.)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write.')
_PYTORCH = flags.DEFINE_bool('pytorch', True, 'Measure PyTorch as well.')
_COMPILE = flags.DEFINE_bool(
    'compile', False, 'Measure its torch.compile, too, which takes minutes to '
    'compile.')

ATTACK = 'pgd20'
STEPS = {'generator': 'generator step', 'student': 'student step',
         'evaluation': 'PGD-20 batch', 'epoch': 'epoch'}
_EPOCH_STEPS = 20  # of either phase, at most
# Parts that benchmarks/pytorch_steps.py has.
_IN_PYTORCH = {'synthesis': 'ferd', 'inner': 'utae', 'outer': 'decoupled_kl'}
# Largest relative difference, by whether both sides compute in full float32;
# on a GPU they may take TensorFloat-32; the last is for bfloat16. Where it
# exceeds rounding, signs of gradients and masks of channels are behind it,
# which flip close to zero.
_TOLERANCES = {
    'images': (1e-4, 1e-2, 2e-2), 'loss': (1e-3, 3e-2, 1e-1),
    'gradient': (2e-2, 3e-1, 5e-1), 'attacked': (2e-2, 1e-1, 2e-1)}


class JaxSteps:
  """The compiled steps of an experiment and what they need.

  Attributes:
    experiment: what is measured.
    first: by step, inputs and results of its first call, as numpy arrays.
  """

  def __init__(self, experiment: experiments.Experiment):
    self.experiment, self.first = experiment, {}
    method, parallel = experiment.method, experiment.parallel
    self._steps = experiment.steps
    evaluator = experiment.evaluators['student']
    self._attack, self._hits = evaluator.attacks[ATTACK], evaluator.hits
    # Past the warm-up, where all terms count and the student is trained.
    self._state = experiment.initial_state(
        experiment.config.seed).replace(
        epoch=parallel.replicate(jnp.int32(method.warmup_epochs)))
    self._teachers = experiment.place_teachers()
    self._key = parallel.replicate(jax.random.key(1))
    self._phase = self._steps.begin(
        self._state.synthesis, self._state.sampler.probs,
        parallel.shard(np.arange(method.synthesis.batch_size)), self._key)
    # Student step and epoch use up the buffers of the state they get.
    self._student = jax.tree.map(jnp.copy, self._state.student)
    self._variables = jax.tree.map(jnp.copy, self._state.student.variables)
    self._frozen = frozens.Frozen(
        teachers=self._teachers, student=self._variables,
        epoch=jnp.copy(self._state.epoch))
    size = method.distillation.batch_size
    images, labels = experiment.examples.images, experiment.examples.labels
    images = images.astype(np.float32) / 255
    self._batch = distill.StudentBatch(
        *parallel.shard((images[:size], labels[:size])))
    self._size = size = experiment.config.eval.batch_size
    # As an evaluation takes them: on CPU in batches that fit its cache.
    self._examples = [
        parallel.shard(batch) for batch in robustness.batches(
            images[:size], labels[:size], evaluator.batch_of(images.shape))]

  def generator(self) -> Any:
    before = None
    if 'generator' not in self.first:
      before = jax.tree.map(np.array, self._phase)
    self._phase, metrics = self._steps.generate(
        self._phase, self._frozen, self._key)
    if before is not None:
      self.first['generator'] = (
          before, jax.tree.map(np.array, self._phase), metrics.read())
    return metrics

  def student(self) -> Any:
    self._student, metrics, _ = self._steps.student(
        self._student, self._batch, self._frozen.replace(student=None),
        self._key)
    if 'student' not in self.first:
      self.first['student'] = (*jax.tree.map(
          np.array, (self._variables, self._batch, self._student)),
                               metrics.read())
    return metrics

  def evaluation(self) -> Any:
    found = []
    for batch in self._examples:
      attacked = self._attack(self._variables, self._key, batch.images,
                              batch.labels, indices=batch.indices)
      hits, _ = self._hits(self._variables, attacked, batch)
      found.append((batch, attacked, hits))
    if 'evaluation' not in self.first:
      self.first['evaluation'] = jax.tree.map(
          lambda *parts: np.concatenate(parts)[:self._size], *found)
    return found[-1]

  def epoch(self) -> Any:
    method = self.experiment.method
    images = method.synthesis.rounds.per_epoch * method.synthesis.batch_size
    done = train.epoch(
        method, self._steps, self._state, self._teachers,
        pool.Pool.empty(images, method.image_shape,
                        self.experiment.config.pool.dtype))
    self._state = done.state
    return done.state

  def wait(self, result: Any) -> None:
    jax.block_until_ready(result)

  def draws(self, settings: ferd.Ferd | distill.Settings
            ) -> tuple[np.ndarray, np.ndarray, jax.Array]:
    """Returns the randomness of the first call of a step.

    Args:
      settings: of the step.

    Returns:
      Of every image, the rows `[B, H]` and columns `[B, W]` that the
      augmentation takes (-1 for those outside), and the key `[B]` for all
      other noise of the step.
    """
    height, width, _ = self.experiment.method.image_shape
    keys = collectives.example_keys(
        self._key, jnp.arange(settings.batch_size))
    view_keys, noise_keys = (collectives.fold_in(keys, i) for i in range(2))
    # Augmenting images of coordinates tells where pixels come from.
    coordinates = jnp.stack(jnp.meshgrid(
        jnp.arange(1., height + 1), jnp.arange(1., width + 1), indexing='ij'),
                            axis=-1)
    view = augment.random_crop_flip(
        view_keys, jnp.tile(coordinates, (len(keys), 1, 1, 1)),
        pad=settings.pad, flip=settings.flip)
    rows, columns = jnp.max(view[..., 0], 2), jnp.max(view[..., 1], 1)
    return (*(np.asarray(x).round().astype(np.int64) - 1
              for x in (rows, columns)), noise_keys)

  def noise_levels(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns latents and bottleneck of the first generator step."""
    settings = self.experiment.method.synthesis
    _, after, _ = self.first['generator']

    def levels(teacher, examples):
      latents = forward.logits(settings.teacher, teacher, examples.view,
                               stop=settings.tap_stage)
      def tail_fn(latents):
        return forward.logits(settings.teacher, teacher, latents,
                              start=settings.tap_stage)
      return latents, bottleneck.noise_levels(
          tail_fn, latents, examples.labels, keys, settings.bottleneck)
    return jax.jit(levels)(self._teachers[frozens.ROBUST], after.examples)


class PyTorchSteps:
  """The same steps in PyTorch, on the inputs of the first calls in JAX."""

  def __init__(self, steps: JaxSteps, device: str, layout: str,
               compiled: bool = False):
    import pytorch_steps

    self.layout = layout
    before, *_ = steps.first['generator']
    student, batch, *_ = steps.first['student']
    examples, *_ = steps.first['evaluation']
    generator = {'params': before.generator.params,
                 'batch_stats': before.generator.batch_stats}
    self._steps = pytorch_steps.Steps(
        steps.experiment, generator, before.examples.latents, student, device,
        layout)
    if compiled:
      self._steps.compile()
    self.tensor = tensor = self._steps.tensor
    self._labels = tensor(before.examples.labels).long()
    self._batch = tensor(batch.images), tensor(batch.labels).long()
    self._examples = tensor(examples.images), tensor(examples.labels).long()
    self._attack = attacks.preset(ATTACK, steps.experiment.config.eps)

  def generator(self, **draws: Any) -> Any:
    with self._steps.autocast():
      return self._steps.generator_step(self._labels, **draws)

  def student(self, **draws: Any) -> Any:
    with self._steps.autocast():
      return self._steps.student_step(*self._batch, **draws)

  def evaluation(self, **draws: Any) -> Any:
    return self._steps.evaluate(*self._examples, self._attack, **draws)

  def wait(self, result: Any) -> None:
    del result
    self._steps.synchronize()

  def check(self, steps: JaxSteps) -> list[dict[str, Any]]:
    """Takes the first steps of the JAX side; call before any other method.

    Returns:
      What was compared: step, quantity, both values (of arrays, norms), their
      relative difference and its tolerance.
    """
    report = []
    def compare(step, name, kind, expected, got):
      expected, got = (
          np.concatenate([np.ravel(x).astype(np.float64) for x in leaves])
          for leaves in (expected, got))
      size = np.linalg.norm(expected)
      tolerance = _TOLERANCES[kind][
          2 if steps.experiment.config.precision == 'bfloat16'
          else jax.default_backend() != 'cpu']
      report.append({
          'step': STEPS[step], 'quantity': name, 'jax': float(size),
          'torch': float(np.linalg.norm(got)),
          'difference': float(np.linalg.norm(got - expected) / (size or 1)),
          'tolerance': tolerance})

    def losses(step, names, expected, got):
      for name in names:
        compare(step, name, 'loss', [expected[name]],
                [got[name].detach().cpu().numpy()])

    def trees(step, name, kind, model, expected, net, find):
      """Compares a Flax tree with what `find` returns of PyTorch tensors."""
      state_dict = torch_io.state_dict_from_variables(model, expected)
      pairs = [(state_dict[key], find(value).detach().cpu().numpy())
               for key, value in net.state_dict(keep_vars=True).items()
               if find(value) is not None]
      compare(step, name, kind, *zip(*pairs, strict=True))

    method, torch_steps = steps.experiment.method, self._steps
    synthesis, distillation = method.synthesis, method.distillation

    def images_of(tensor):
      return tensor.detach().permute(0, 2, 3, 1).cpu().numpy()

    # Noise of the bottleneck as `bottleneck.noise_levels` draws it.
    *sources, keys = steps.draws(synthesis)
    before, after, metrics = steps.first['generator']
    latents, levels = steps.noise_levels(keys)
    draw = jax.jit(jax.vmap(lambda key, i: jax.random.normal(
        jax.random.fold_in(key, i), levels.shape[1:]), in_axes=(0, None)))
    noise = [self.tensor(draw(keys, i))
             for i in range(synthesis.bottleneck.steps)]
    got = torch_steps.noise_levels(self.tensor(latents), self._labels, noise)
    compare('generator', 'noise levels', 'gradient', [levels],
            [got.cpu().numpy()])
    got = self.generator(
        sources=tuple(self.tensor(x) for x in sources), noise=noise)
    compare('generator', 'images', 'images', [after.examples.best_images],
            [images_of(torch_steps.best_images)])
    losses('generator', [name for name in (
        'bn', 'oh', 'adv', 'non_robust', 'uni', 'loss') if name in metrics],
           metrics, got)

    def moment(parameter):
      # Adam's first moment after one step is a multiple of the gradient.
      return torch_steps.adam.state.get(parameter, {}).get('exp_avg')
    trees('generator', 'gradient', 'gradient', synthesis.generator_module,
          {'params': optax.tree.get(after.generator.opt_state, 'mu'),
           'batch_stats': after.generator.batch_stats},
          torch_steps.generator, moment)
    compare('generator', 'gradient of latents', 'gradient',
            [optax.tree.get(after.examples.opt_state, 'mu')],
            [moment(torch_steps.latents).cpu().numpy()])

    batch, attacked, _ = steps.first['evaluation']
    keys = collectives.example_keys(steps._key, jnp.asarray(batch.indices))
    images = jnp.asarray(batch.images)
    start = self._attack.init(attacks.Problem(
        images, batch.labels, None,
        jnp.full(len(images), self._attack.eps, images.dtype), keys)).x_adv
    _, got = self.evaluation(start=self.tensor(start))
    compare('evaluation', 'perturbation', 'attacked',
            [attacked - batch.images], [images_of(got) - batch.images])

    *sources, keys = steps.draws(distillation)
    *_, after, metrics = steps.first['student']
    noise = jax.jit(jax.vmap(
        lambda key: jax.random.normal(key, method.image_shape)))(keys)
    got = self.student(sources=tuple(self.tensor(x) for x in sources),
                       noise=self.tensor(noise))
    losses('student', ('clean_loss', 'adv_loss', 'loss'), metrics, got)
    trees('student', 'gradient', 'gradient', distillation.student,
          {'params': optax.tree.get(after.opt_state, 'trace'),
           'batch_stats': after.variables['batch_stats']}, torch_steps.student,
          lambda p: torch_steps.sgd.state.get(p, {}).get('momentum_buffer'))
    return report


def measure(step: Callable[[], Any], wait: Callable[[Any], None],
            count: int) -> float:
  """Returns milliseconds per call of `count` calls in a row."""
  started = time.perf_counter()
  for _ in range(count):
    result = step()
  wait(result)
  return (time.perf_counter() - started) / count * 1e3


def hardware(device: str | None) -> dict[str, Any]:
  """Returns what the measurements depend on besides the code.

  Args:
    device: that PyTorch uses; None without it.
  """
  cpu = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as file:
      names = [line.split(':')[1].strip() for line in file
               if line.startswith('model name')]
    cpu = names[0] if names else cpu
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
           else os.cpu_count())
  found = {'cpu': cpu, 'cores': cores, 'python': platform.python_version(),
           'jax': jax.__version__, 'jax_device': jax.devices()[0].device_kind}
  if device:
    import torch
    found |= {'torch': torch.__version__, 'torch_device': device,
              'torch_threads': torch.get_num_threads()}
    if device == 'cuda':
      found['torch_device'] = torch.cuda.get_device_name()
  return found


def _load() -> float | None:
  """Returns the load of the last minute, None where it is not known."""
  return round(os.getloadavg()[0], 1) if hasattr(os, 'getloadavg') else None


def _pytorch_device(config: Any) -> str | None:
  """Returns PyTorch's device, None if it cannot be measured."""
  if not _PYTORCH.value:
    return None
  for group, part in _IN_PYTORCH.items():
    if config[group]['name'] != part:
      print(f'In PyTorch there is no {group} {config[group]["name"]}: '
            'measuring JAX only.')
      return None
  try:
    import torch
  except ImportError:
    print('PyTorch is not installed: measuring JAX only.')
    return None
  if jax.default_backend() == 'cpu':
    return 'cpu'
  if jax.default_backend() != 'gpu' or not torch.cuda.is_available():
    print(f'PyTorch does not find the {jax.default_backend()}: measuring JAX '
          'only.')
    return None
  torch.set_default_device('cuda')
  torch.backends.cudnn.benchmark = True
  # As JAX computes by default.
  torch.backends.cuda.matmul.allow_tf32 = True
  return 'cuda'


def _check(steps: JaxSteps, pytorch: PyTorchSteps) -> list[dict[str, Any]]:
  """Prints the comparison of the first steps; ends if they disagree."""
  report = pytorch.check(steps)
  print(f'\nOne step from the same start, PyTorch in {pytorch.layout}:')
  print(f'{"":16}{"":20}{"JAX":>12}{"PyTorch":>12}{"difference":>12}'
        f'{"tolerance":>11}')
  for row in report:
    print(f'{row["step"]:16}{row["quantity"]:20}{row["jax"]:12.5f}'
          f'{row["torch"]:12.5f}{row["difference"]:12.1e}'
          f'{row["tolerance"]:11.0e}')
  # Written so that NaN fails.
  wrong = [f'{row["quantity"]} of the {row["step"]}' for row in report
           if not row['difference'] <= row['tolerance']]
  if wrong:
    sys.exit('error: JAX and PyTorch do not compute the same: they differ in '
             f'{", ".join(wrong)}. Nothing was measured.')
  return report


def _print_table(results: dict[str, dict[str, Any]]) -> None:
  print(f'\n{"milliseconds":16}{"batch":>6}{"JAX":>10}{"PyTorch":>10}'
        f'{"layout":>8}{"PyTorch/JAX":>13}{"torch.compile/JAX":>19}')
  for name, row in results.items():
    text = f'{STEPS[name]:16}{row["batch_size"]:6}{row["jax"]["median"]:10.1f}'
    if 'torch' in row:
      text += (f'{row["torch"]["median"]:10.1f}{row["layout"]:>8}'
               f'{row["torch/jax"]:13.2f}')
    if 'torch.compile' in row:
      text += f'{row["torch.compile/jax"]:19.2f}'
    print(text)


def _print_epoch(results: dict[str, dict[str, Any]], rounds: base.Rounds
                 ) -> None:
  """Prints how much of an epoch is not its steps."""
  milliseconds = {name: row['jax']['median'] for name, row in results.items()}
  steps = rounds.per_epoch * (
      rounds.generator_steps * milliseconds['generator']
      + rounds.student_steps * milliseconds['student'])
  print(f'Rounds in the epoch: {rounds.per_epoch}, of {rounds.generator_steps} '
        f'generator and {rounds.student_steps} student steps; what is not '
        f'these: {milliseconds["epoch"] - steps:.1f} ms.')


def run_benchmark(config: Any) -> dict[str, Any]:
  """Measures a config's steps and prints and returns the results."""
  size = max(config.distill.batch_size, config.eval.batch_size)
  config.data.noise_examples = size
  # Nor are a teacher's weights: random ones take as long.
  for teacher in (config.teacher, *config.teachers.values()):
    teacher.path, teacher.robustbench = networks.RANDOM, None
  for group in (config.synthesis, config.distill):
    group.steps = min(group.steps, _EPOCH_STEPS)
  experiment = experiments.build(config, jax.devices()[:1])
  synthesis = experiment.method.synthesis
  device = _pytorch_device(config)
  found = hardware(device)
  print(', '.join(f'{name} {value}' for name, value in found.items()))

  jax_steps, compile_seconds = JaxSteps(experiment), {}
  for name in STEPS:
    compile_seconds[name] = measure(getattr(jax_steps, name), jax_steps.wait,
                                    1) / 1e3
  print('First calls, compilation included: ' + ', '.join(
      f'{STEPS[name]} {value:.1f} s'
      for name, value in compile_seconds.items()))
  sides, report = [('jax', jax_steps)], None
  if device:
    nchw, nhwc = (PyTorchSteps(jax_steps, device, layout)
                  for layout in ('nchw', 'nhwc'))
    report = _check(jax_steps, nchw)
    sides += [('torch', nchw), ('torch', nhwc)]
    if _COMPILE.value:
      sides.append(('torch.compile', PyTorchSteps(
          jax_steps, device, 'nhwc', compiled=True)))

  sizes = {'generator': synthesis.batch_size,
           'student': config.distill.batch_size,
           'evaluation': config.eval.batch_size,
           'epoch': synthesis.batch_size}
  results, load = {}, _load()
  for name in STEPS:
    # The second call tells how many to measure, and which layout.
    trials = []
    for side, steps in sides:
      step = getattr(steps, name, None)
      if step is None:  # PyTorch has no epoch.
        continue
      first = measure(step, steps.wait, 1) / 1e3
      if side == 'torch.compile':
        compile_seconds[f'{name}, {side}'] = first
      trials.append((side, measure(step, steps.wait, 1), steps))
    trials.sort(key=lambda trial: trial[1])
    chosen = {}
    for side, milliseconds, steps in trials:
      count = max(1, round(_SECONDS.value * 1e3 / milliseconds))
      chosen.setdefault(side, (steps, count))
    row = results[name] = {'batch_size': sizes[name]}
    times = {side: [] for side in sorted(chosen)}
    for _ in range(_ROUNDS.value):
      for side, found_times in times.items():
        steps, count = chosen[side]
        time.sleep(0.2)  # The other side's threads go to sleep.
        found_times.append(measure(getattr(steps, name), steps.wait, count))
    for side, found_times in times.items():
      row[side] = {'median': statistics.median(found_times),
                   'rounds': found_times, 'calls': chosen[side][1]}
    if 'torch' in row:
      row['layout'] = chosen['torch'][0].layout
      row['torch/jax'] = row['torch']['median'] / row['jax']['median']
    if 'torch.compile' in row:
      row['torch.compile/jax'] = (row['torch.compile']['median']
                                  / row['jax']['median'])
  _print_table(results)
  _print_epoch(results, synthesis.rounds)
  load = [load, _load()]
  print('Programs running on average, this one included, before and after: '
        f'{load[0]}, {load[1]}; cores: {found["cores"]}.')
  return {'config': config.name, 'hardware': found, 'load': load,
          'first_call_seconds': compile_seconds, 'check': report,
          'steps': results}


def _parse(argv: list[str]) -> command_line.Parsed:
  """Parses the command line as main.py does."""
  try:
    parsed = command_line.parse(
        argv, pathlib.Path(__file__).parents[1])
  except ValueError as error:
    sys.exit(f'error: {error}')
  if parsed.wants_help:
    print(f'{__doc__}{flags.FLAGS.main_module_help()}')
    sys.exit(0)
  return parsed


def main(parsed: command_line.Parsed) -> None:
  if len(parsed.positional) > 1:
    sys.exit(f'error: Expected flags only, got {parsed.positional[1:]}.')
  logging.set_verbosity(logging.WARNING)
  # Both sides share a GPU's memory.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  try:
    results = run_benchmark(parsed.config)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
