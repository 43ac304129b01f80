"""Robustness and fairness of a checkpoint or of a run's teacher and student.

  python -m ferd_jax.evaluate --robustbench=Rice2020Overfitting --data=cifar10
  python -m ferd_jax.evaluate runs/digits --eps 0.05 0.1 0.15 --json=eps.json
  python -m ferd_jax.evaluate model.pt --arch=wrn_34_10 --data=cifar10 \
    --attacks=clean,autoattack --eps=8/255 --n-examples=1000 --targets
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
import pathlib
import re
import sys
from typing import Any

from etils import epath
import jax
import numpy as np

import ferd_jax
from ferd_jax import data
from ferd_jax import train
from ferd_jax.attacks import checks
from ferd_jax.attacks import saved
from ferd_jax.core import atomic
from ferd_jax.core import loops
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.evaluation import target_analysis
from ferd_jax.run import experiment
from ferd_jax.run import work_directory
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import options as file_options
from ferd_jax.weights import robustbench

_DEFAULT_ATTACKS = 'clean,fgsm,pgd20,cw20,autoattack'


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated.

  Attributes:
    name: in tables.
    models: (module, variables) by name.
    examples: images, labels and names of the classes.
    dataset: its name.
    split: of it, None for noise and for an .npz.
    eps: radius that the models were trained for, None if unknown.
    epoch: of a run's student, None for a file.
    network: how a file became a model, JSON values; a run's config says it.
    published: clean accuracy of the model or the teacher, None if unknown.
  """
  name: str
  models: dict[str, tuple[Any, Any]]
  examples: data.Examples
  dataset: str
  split: str | None
  eps: float | None
  epoch: int | None
  network: dict[str, Any] = dataclasses.field(default_factory=dict)
  published: float | None = None


def evaluate(subject: Subject, names: Sequence[str], eps: float,
             parallel: parallels.Parallel, *, norm: str = 'Linf',
             seed: int = 0, batch_size: int = 128, targets: bool = False,
             state_dir: str | None = None,
             reporter: reporting.Reporter = reporting.SILENT
             ) -> dict[str, Any]:
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
    state_dir: where an AutoAttack keeps its state, so that one that was
      interrupted is gone on with, and one that is done is not repeated.
    reporter: shows what is done, and what each attack has left.

  Raises:
    FloatingPointError: for logits that are not finite.
    ValueError: for a model or images that AutoAttack refuses.
  """
  images, labels = subject.examples.images, subject.examples.labels
  num_classes = len(subject.examples.class_names)
  key = jax.random.key(seed)
  results = {
      'config': subject.name, 'dataset': subject.dataset,
      'split': subject.split, 'num_examples': len(labels),
      'class_counts': np.bincount(labels, minlength=num_classes).tolist(),
      'norm': norm,
      'eps': eps, 'seed': seed, 'epoch': subject.epoch,
      **subject.network, 'weights_digest': {
          name: saved.digest(variables)
          for name, (_, variables) in subject.models.items()},
      'batch_size': batch_size, 'ferd_jax': ferd_jax.__version__,
      **parallel.description,
      'class_names': list(subject.examples.class_names), 'models': {}}
  if targets:
    results['targets'] = {}
  for name, (model, variables) in subject.models.items():
    reporter.line(f'{name}, {norm} eps {eps:.5f}:')
    variables = parallel.replicate(variables)
    evaluator = robustness.evaluator(model, names, eps, num_classes,
                                     batch_size, parallel, norm=norm)
    results['models'][name] = evaluator(
        variables, images, labels, key, names, state_dir=state_dir,
        on_result=functools.partial(_show, reporter), reporter=reporter)
    clean = results['models'][name].get(robustness.CLEAN)
    if clean is not None and name != 'student':
      doubt = loading.implausible(clean['average'], len(labels), num_classes,
                                  subject.published)
      if doubt:
        reporter.line(f'Warning: {doubt}')
    if targets:
      analysis = target_analysis.TargetAnalysis(
          model, target_analysis.targeted_pgd20(eps, norm), num_classes,
          batch_size, parallel)
      results['targets'][name] = analysis(
          variables, images, labels, key, reporter=reporter).json_values()
  return tables.json_values(results)


def _show(reporter, name, found):
  """Shows what an attack has left."""
  reporter.line(
      f'{name}: {found["average"]:.2%}, worst class {found["worst"]:.2%}')


def from_run(workdir: pathlib.Path, args: argparse.Namespace) -> Subject:
  """Returns teacher and student of a work directory.

  Args:
    workdir: of the run.
    args: of the command line; what is not None replaces the run's.

  Raises:
    ValueError: if it is not a run's, or was not trained.
    OSError: if a file cannot be read.
  """
  _refuse(args, _FILE_OPTIONS, 'a run')
  config = experiment.saved_config(workdir)
  try:
    config.data.update({
        name: value for name, value in (
            ('name', args.data), ('dir', args.data_dir), ('split', args.split))
        if value is not None})
    if args.data is not None:
      config.data.noise_examples = 0
    if args.teacher_path is not None:
      config.teacher.path = args.teacher_path
    # One device: what divides the batches of training does not matter here.
    config.parallel = 'jit'
    run = experiment.build(config)
  except AttributeError as error:  # A setting that its config lacks.
    raise ValueError(
        f'Expected {workdir} to be a run of this version: {error}') from error
  work_directory.claim(workdir, run.identity, start=False)
  state, epoch, _ = train.saved_state(run, workdir)
  return Subject(
      name=config.name, examples=run.examples, eps=config.eps, epoch=epoch,
      published=run.published,
      **train.data_source(config.data),
      models={'teacher': (run.synthesis.teacher, run.teacher.variables),
              'student': (run.synthesis.student, state.student)})


def from_file(path: pathlib.Path | None, args: argparse.Namespace) -> Subject:
  """Returns a model from a file.

  Args:
    path: `.pt`, `.pth`, `.safetensors`, `.npz` or a network of `native`; None
      for that of a RobustBench id.
    args: of the command line.

  Raises:
    ValueError: for missing or unfit settings, weights or data.
    OSError: if a file cannot be read.
  """
  if path is not None and not path.exists():
    raise FileNotFoundError(f'{path}: there is no such file or directory.')
  # Of weights any name will do.
  if path is not None and path.suffix in ('.json', '.jsonl'):
    raise ValueError('Expected a PyTorch checkpoint (.pt, .pth, .safetensors, '
                     f'.npz) or the work directory of a run, got {path}.')
  _refuse(args, ('teacher_path',), 'a file')
  if args.data is None:
    raise ValueError('Expected --data for a model from a file.')
  info = data.info(args.data)
  options = {name: getattr(args, name) for name in file_options.OPTIONS
             if getattr(args, name) is not None}
  arch, select, published = args.arch or loading.AUTO, args.select, None
  if args.robustbench is not None:
    _refuse(args, ('arch',), '--robustbench')
    entry = robustbench.find(args.data, args.robustbench)
    options, published = entry.options_with(options), entry.clean
    arch, select = entry.arch, select or entry.select
    path = path or robustbench.fetch(entry)
  elif path is None:
    raise ValueError('Expected a model: a file, the work directory of a run, '
                     'or --robustbench=ID.')
  loaded = loading.load(path, arch=arch, options=options, select=select,
                        channels=info.image_shape[-1],
                        num_classes=info.num_classes)
  print(f'{path}: {loaded}', file=sys.stderr)
  own = args.data.endswith('.npz')
  if own:
    _refuse(args, ('split', 'data_dir'), 'an .npz')
  split = args.split or 'test'
  examples = data.load(args.data, split, data_dir=args.data_dir)
  network = loaded.network.json_values()
  return Subject(name=path.name,
                 models={'model': (loaded.model, loaded.variables)},
                 examples=examples, dataset=args.data,
                 split=None if own else split, eps=None, epoch=None,
                 published=published,
                 network={'arch': network['arch'], 'select': select,
                          'robustbench': args.robustbench,
                          'network_options': network['options']})


_FILE_OPTIONS = ('arch', 'select', 'robustbench', *file_options.OPTIONS)


def _refuse(args, names, kind):
  """Raises ValueError for an option that would do nothing."""
  for name in names:
    if getattr(args, name) is not None:
      raise ValueError(f'Expected no --{name.replace("_", "-")} for {kind}.')


class _Radii(argparse.Action):
  """Stores numbers such as 8/255 or 0.03, separated by commas or spaces."""

  def __call__(self, parser, namespace, values, option_string=None):
    try:
      setattr(namespace, self.dest, _radii(' '.join(values)))
    except ValueError as error:
      raise argparse.ArgumentError(self, str(error)) from error


def _radii(text: str) -> list[float]:
  """Returns different numbers, such as '8/255' and '0.03'.

  Those without a denominator have the last one's, as in '2,4,8/255'. They must
  be 0, or 1 or more: '0.25,0.5,1/255' may mean 0.5 or 0.5/255.

  Raises:
    ValueError: for what is no list of numbers, or may mean another.
  """
  items = re.split(r'\s*,\s*|\s+', text.strip())
  pairs = [_fraction(item) for item in items]
  denominators = {denominator for _, denominator in pairs}
  shared = 1.
  if None in denominators and len(denominators) > 1:
    shared = pairs[-1][1]
    if denominators != {None, shared} or shared is None:
      raise ValueError(
          f'{text!r} may mean several things; use one form for all, or one '
          'denominator at the end, as in 2,4,8/255')
    for item, (numerator, denominator) in zip(items, pairs, strict=True):
      if denominator is None and numerator < 1 and numerator != 0:
        raise ValueError(
            f'{item} may be itself or have the last denominator; write '
            f'{item}/{shared:g}, or use one form for all')
  radii = [numerator / (denominator or shared)
           for numerator, denominator in pairs]
  if len(set(radii)) < len(radii):
    raise ValueError(f'{text!r} has a radius twice')
  return radii


def _fraction(item):
  """Returns numerator and denominator, None for one that is not there."""
  numerator, slash, denominator = item.partition('/')
  try:
    pair = float(numerator), float(denominator) if slash else None
    valid = all(map(math.isfinite, (pair[0], pair[1] or 1))) and pair[1] != 0
  except ValueError:
    valid = False
  if not valid:
    raise ValueError(
        f'expected numbers such as 8/255 or 0.03, got {item!r}; for a model '
        'that follows: put the model first, or write --eps=8/255')
  return pair


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m ferd_jax.evaluate', allow_abbrev=False,
      description='Accuracy under attack: average, worst class, worst 10% of '
      'the classes and NSD.')
  add = parser.add_argument
  add('model', type=pathlib.Path, nargs='?',
      help='a PyTorch checkpoint (.pt, .pth, .safetensors, .npz), a network '
      'that `convert` wrote, or the work directory of a run')
  add('--attacks', default=_DEFAULT_ATTACKS,
      help=f'of {", ".join(robustness.ATTACKS)}; default: %(default)s')
  add('--eps', nargs='+', action=_Radii, metavar='EPS',
      help='radii such as 0.03 or 8/255, separated by commas or spaces; in '
      '2,4,8/255 those without a denominator, none between 0 and 1, have the '
      'last one\'s; default for Linf: the run\'s, 8/255 for a file')
  add('--norm', choices=('Linf', 'L2'), default='Linf')
  add('--n-examples', type=int, help='the first so many images; default: all')
  add('--seed', type=int, default=0, help='of the attacks')
  add('--targets', action='store_true',
      help='also the success rate of attacks by source and target class')
  add('--batch-size', type=int,
      help='images a step, over all devices; default: 256 per '
      'accelerator, on CPU what fits the cache')
  add('--json', help='where to write the results')
  add('--state-dir', help='keeps what every AutoAttack found: one that was '
      'interrupted is gone on with, one that is done is not repeated')
  add('--data', help='a data set\'s name or the path of an .npz')
  add('--data-dir', help='of TFDS')
  add('--split', help='in TFDS syntax; default: test, or the run\'s')
  file = parser.add_argument_group('a model from a file')
  file.add_argument('--robustbench', metavar='ID',
                    help='a network of RobustBench, fetched if no model is '
                    'named; python -m ferd_jax.teachers list shows all')
  file_options.add(file)
  run = parser.add_argument_group('a run')
  run.add_argument('--teacher-path', help='if the file was moved')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Evaluates as the command line says, prints tables and writes JSON."""
  args = _parser().parse_args(argv)
  before = _states(args.state_dir)
  try:
    sweep = []
    for results in _sweep(args):  # Each as it comes: they take their time.
      print(tables.text(results), end='\n\n', flush=True)
      sweep.append(results)
      if args.json is not None:
        atomic.write_text(epath.Path(args.json),
                          json.dumps(sweep, indent=2) + '\n')
  except (FloatingPointError, OSError, ValueError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')
  except KeyboardInterrupt:
    kept = _states(args.state_dir) != before
    sys.exit('stopped: interrupted' + (
        '; run again: AutoAttack goes on, the rest is repeated.' if kept
        else '.'))
  if len(sweep) > 1:
    print(tables.sweep_table(sweep))


def _states(state_dir):
  """Returns when each file of the directory was written, as a set."""
  if state_dir is None or not epath.Path(state_dir).is_dir():
    return set()
  return {(path.name, path.stat().mtime)
          for path in epath.Path(state_dir).glob('*.npz')}


def _sweep(args):
  """Yields the results at each radius, after checking all there is to."""
  names = [name.strip() for name in args.attacks.split(',')]
  robustness.check_names(attacks=names)
  validate.in_range(0, 2 ** 32 - 1, seed=args.seed)
  a_run = (args.model is not None and args.model.is_dir()
           and not native.is_native(args.model))
  load = from_run if a_run else from_file
  subject = load(args.model, args)
  if args.n_examples is not None:
    validate.positive(n_examples=args.n_examples)
    if args.n_examples > len(subject.examples.labels):
      raise ValueError(f'Expected n_examples={args.n_examples} of at most '
                       f'{len(subject.examples.labels)} images.')
    subject = dataclasses.replace(
        subject, examples=subject.examples.first(args.n_examples))
  radii = _checked_radii(args, subject)
  parallel = parallels.create()
  batch_size = args.batch_size
  if batch_size is None:
    height, width, _ = subject.examples.images.shape[1:]
    # On CPU what fits the cache is faster: 16 images of CIFAR.
    batch_size = parallel.num_devices * (
        min(max(2 ** 14 // (height * width), 8), 128)
        if loops.unrolled_here() else 256)
  validate.positive(batch_size=batch_size)
  validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
  _check_writable(args)
  for eps in radii:
    yield evaluate(
        subject, names, eps, parallel, norm=args.norm, seed=args.seed,
        batch_size=batch_size, targets=args.targets, state_dir=args.state_dir,
        reporter=reporting.TERMINAL)


def _check_writable(args):
  """Raises ValueError for what would else be known after hours."""
  probes = []
  if args.json is not None:
    if epath.Path(args.json).is_dir():
      raise ValueError(f'Cannot write --json={args.json}: it is a directory.')
    probes.append(('json', args.json, epath.Path(f'{args.json}.probe')))
  if args.state_dir is not None:
    directory = epath.Path(args.state_dir)
    if directory.exists() and not directory.is_dir():
      raise ValueError(
          f'Cannot write --state-dir={directory}: it is a file.')
    probes.append(('state-dir', directory, directory / '.probe'))
  for option, path, probe in probes:
    try:
      atomic.write_text(probe, '')
      probe.unlink()
    except OSError as error:
      raise ValueError(f'Cannot write --{option}={path}: {error}') from error


def _checked_radii(args, subject):
  """Returns the radii, all of them checked before the first is used."""
  if args.eps:
    radii = args.eps
  elif args.norm == 'L2':
    raise ValueError('Expected --eps for --norm=L2.')
  else:
    radii = [8 / 255 if subject.eps is None else subject.eps]
  for eps in radii:
    validate.non_negative(eps=eps)
    checks.radius(eps, args.norm, subject.examples.images.shape[1:], (0., 1.))
  return radii


if __name__ == '__main__':
  main()
