"""Robustness and fairness of a PyTorch checkpoint or of a run's student.

  python -m ferd_jax.evaluate model.pt --arch=resnet18 --data=cifar10
  python -m ferd_jax.evaluate runs/digits --eps 0.05 0.1 0.15 --json=eps.json
  python -m ferd_jax.evaluate model.pt --arch=wrn_34_10 --data=cifar10 \
    --attacks=clean,autoattack --eps=8/255 --n-examples=1000 --targets
"""

import argparse
from collections.abc import Sequence
import dataclasses
import fractions
import json
import pathlib
import sys
from typing import Any

from etils import epath
import jax

from ferd_jax import atomic
from ferd_jax import checkpoint
from ferd_jax import data
from ferd_jax import experiment
from ferd_jax import loops
from ferd_jax import models
from ferd_jax import parallel as parallels
from ferd_jax import report
from ferd_jax import robustness
from ferd_jax import target_analysis
from ferd_jax import torch_io
from ferd_jax import train
from ferd_jax import validate

_DEFAULT_ATTACKS = 'clean,fgsm,pgd20,cw20,autoattack'


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated.

  Attributes:
    name: in tables.
    models: (module, variables) by name.
    examples: images, labels and names of the classes.
    dataset: its name.
    split: of it, None for noise.
    eps: radius that the models were trained for, None if unknown.
    epoch: of a run's student, None for a file.
  """
  name: str
  models: dict[str, tuple[Any, Any]]
  examples: data.Examples
  dataset: str
  split: str | None
  eps: float | None
  epoch: int | None


def evaluate(subject: Subject, names: Sequence[str], eps: float,
             parallel: parallels.Parallel, *, norm: str = 'Linf',
             seed: int = 0, batch_size: int = 128, targets: bool = False,
             state_dir: str | None = None) -> dict[str, Any]:
  """Returns how robust and fair the models are at one radius, JSON values.

  Args:
    subject: what is evaluated.
    names: of `robustness.ATTACKS`.
    eps: radius in [0, 1] pixels.
    parallel: the device mapping.
    norm: 'Linf' or 'L2'.
    seed: of the attacks.
    batch_size: images a step, over all devices.
    targets: whether to attack every wrong class of every image, too.
    state_dir: where an AutoAttack that is interrupted is gone on with.

  Raises:
    ValueError: for a model or images that AutoAttack refuses.
  """
  images, labels = subject.examples.images, subject.examples.labels
  num_classes = len(subject.examples.class_names)
  key = jax.random.key(seed)
  results = {
      'config': subject.name, 'dataset': subject.dataset,
      'split': subject.split, 'num_examples': len(labels), 'norm': norm,
      'eps': eps, 'seed': seed, 'epoch': subject.epoch,
      **parallel.description,
      'class_names': list(subject.examples.class_names), 'models': {}}
  if targets:
    results['targets'] = {}
  for name, (model, variables) in subject.models.items():
    variables = parallel.replicate(variables)
    evaluator = robustness.evaluator(model, names, eps, num_classes,
                                     batch_size, parallel, norm=norm)
    results['models'][name] = evaluator(variables, images, labels, key, names,
                                        state_dir=state_dir)
    if targets:
      analysis = target_analysis.TargetAnalysis(
          model, target_analysis.targeted_pgd20(eps, norm), num_classes,
          batch_size, parallel)
      results['targets'][name] = analysis(
          variables, images, labels, key).json_values()
  return report.json_values(results)


def from_run(workdir: pathlib.Path, args: argparse.Namespace) -> Subject:
  """Returns teacher and student of a work directory.

  Args:
    workdir: of the run.
    args: of the command line; what is not None replaces the run's.

  Raises:
    ValueError: if it is not a run's, or was not trained.
    OSError: if a file cannot be read.
  """
  config = experiment.saved_config(workdir)
  config.data.update({
      name: value for name, value in (
          ('name', args.data), ('dir', args.data_dir), ('split', args.split))
      if value is not None})
  if args.data is not None:
    config.data.noise_examples = 0
  if args.teacher_path is not None:
    config.teacher.path = args.teacher_path
  run = experiment.build(config)
  checkpoint.claim(workdir, run.identity, start=False)
  state, epoch, _ = train.saved_state(run, workdir)
  return Subject(
      name=config.name, examples=run.examples, eps=config.eps, epoch=epoch,
      **train.data_source(config.data),
      models={'teacher': (run.synthesis.teacher, run.teacher_variables),
              'student': (run.synthesis.student, state.student)})


def from_file(path: pathlib.Path, args: argparse.Namespace) -> Subject:
  """Returns a model from a file in PyTorch's key layout.

  Args:
    path: `.pt`, `.pth`, `.safetensors` or `.npz`.
    args: of the command line.

  Raises:
    ValueError: for missing or unfit settings, weights or data.
    OSError: if a file cannot be read.
  """
  for name in ('arch', 'data'):
    if getattr(args, name) is None:
      raise ValueError(f'Expected --{name} for a model from a file.')
  info = data.info(args.data)
  options = {name: getattr(args, name) for name in _NETWORK_OPTIONS
             if getattr(args, name) is not None}
  model = models.build(args.arch, info.num_classes, **options)
  variables = torch_io.load_variables(path, model, info.image_shape,
                                      args.select)
  split = args.split or 'test'
  examples = data.load(args.data, split, data_dir=args.data_dir)
  return Subject(name=path.name, models={'model': (model, variables)},
                 examples=examples, dataset=args.data, split=split, eps=None,
                 epoch=None)


_NETWORK_OPTIONS = ('width', 'mean', 'std', 'shortcut', 'shortcut_input',
                    'final_bn')


def _radii(text: str) -> list[float]:
  """Returns numbers such as '8/255' or '0.03', separated by commas."""
  try:
    return [float(fractions.Fraction(part)) for part in text.split(',')]
  except (ValueError, ZeroDivisionError) as error:
    raise argparse.ArgumentTypeError(
        f'expected numbers such as 8/255 or 0.03, got {text!r}') from error


def _floats(text: str) -> tuple[float, ...]:
  return tuple(float(part) for part in text.split(','))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m ferd_jax.evaluate', allow_abbrev=False,
      description='Accuracy under attack: average, worst class, worst 10% of '
      'the classes and NSD.')
  add = parser.add_argument
  add('model', type=pathlib.Path,
      help='a PyTorch checkpoint (.pt, .pth, .safetensors, .npz) or the work '
      'directory of a run')
  add('--attacks', default=_DEFAULT_ATTACKS,
      help=f'of {", ".join(robustness.ATTACKS)}; default: %(default)s')
  add('--eps', nargs='+', type=_radii, metavar='EPS',
      help='radii such as 8/255; default: the run\'s, 8/255 for a file')
  add('--norm', choices=('Linf', 'L2'), default='Linf')
  add('--n-examples', type=int, help='the first so many images; default: all')
  add('--seed', type=int, default=0, help='of the attacks')
  add('--targets', action='store_true',
      help='also the success rate of attacks by source and target class')
  add('--batch-size', type=int,
      help='images a step, over all devices; default: 32 per CPU device, 256 '
      'per accelerator')
  add('--json', help='where to write the results')
  add('--state-dir', help='where an AutoAttack that is interrupted is gone on '
      'with')
  add('--data', help='a data set\'s name or the path of an .npz')
  add('--data-dir', help='of TFDS')
  add('--split', help='in TFDS syntax; default: test, or the run\'s')
  file = parser.add_argument_group('a model from a file')
  file.add_argument('--arch', help='architecture, e.g. resnet18, wrn_34_10')
  file.add_argument('--select', help='the dict of weights in the file')
  file.add_argument('--width', type=int, help='channels of the first layer')
  file.add_argument('--mean', type=_floats, help='normalisation, e.g. 0.5')
  file.add_argument('--std', type=_floats, help='normalisation')
  file.add_argument('--shortcut', help='of cifar_resnet')
  file.add_argument('--shortcut-input', help='of preact_resnet')
  file.add_argument('--final-bn', action='store_true', default=None,
                    help='of preact_resnet')
  run = parser.add_argument_group('a run')
  run.add_argument('--teacher-path', help='if the file was moved')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Evaluates as the command line says, prints tables and writes JSON."""
  args = _parser().parse_args(argv)
  try:
    sweep = _evaluate_all(args)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  except KeyboardInterrupt:
    sys.exit('stopped: interrupted' + (
        '; run again to go on.' if args.state_dir else '.'))
  for results in sweep:
    print(report.text(results), end='\n\n')
  if len(sweep) > 1:
    print(report.sweep_table(sweep))


def _evaluate_all(args):
  """Returns the results at each radius; also writes them."""
  names = [name.strip() for name in args.attacks.split(',')]
  for name in names:
    validate.one_of(robustness.ATTACKS, attack=name)
  load = from_run if args.model.is_dir() else from_file
  subject = load(args.model, args)
  if args.n_examples is not None:
    validate.positive(n_examples=args.n_examples)
    if args.n_examples > len(subject.examples.labels):
      raise ValueError(f'Expected n_examples={args.n_examples} of at most '
                       f'{len(subject.examples.labels)} images.')
    subject = dataclasses.replace(subject, examples=data.Examples(
        subject.examples.images[:args.n_examples],
        subject.examples.labels[:args.n_examples],
        subject.examples.class_names))
  radii = (sum(args.eps, []) if args.eps else
           [8 / 255 if subject.eps is None else subject.eps])
  for eps in radii:
    validate.non_negative(eps=eps)
  parallel = parallels.create()
  batch_size = args.batch_size
  if batch_size is None:  # On CPU what fits the cache is faster.
    batch_size = parallel.num_devices * (32 if loops.unrolled_here() else 256)
  validate.positive(batch_size=batch_size)
  validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
  sweep = []
  for eps in radii:
    sweep.append(evaluate(
        subject, names, eps, parallel, norm=args.norm, seed=args.seed,
        batch_size=batch_size, targets=args.targets,
        state_dir=args.state_dir))
    if args.json is not None:  # After each, for a sweep takes its time.
      atomic.write_text(epath.Path(args.json),
                        json.dumps(sweep, indent=2) + '\n')
  return sweep


if __name__ == '__main__':
  main()
