"""Robustness and fairness of a checkpoint or of a run's teacher and student.

  python -m ferd_jax.evaluate --robustbench=Rice2020Overfitting --data=cifar10
  python -m ferd_jax.evaluate runs/digits --eps 0.05 0.1 0.15 --json=eps.json
  python -m ferd_jax.evaluate runs/digits --attacks=clean,pgd20 --diagnose
  python -m ferd_jax.evaluate model.pt --arch=wrn_34_10 --data=cifar10 \
    --attacks=clean,autoattack --eps=8/255 --n-examples=1000 --targets
  python -m ferd_jax.evaluate runs/digits --curve --norm=L2
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

import argparse
from collections.abc import Sequence
import dataclasses
import importlib
import json
import math
import pathlib
import re
import sys

from etils import epath

from ferd_jax import data
from ferd_jax import train
from ferd_jax.attacks import checks
from ferd_jax.attacks import geometry
from ferd_jax.attacks import minimum_norm
from ferd_jax.core import atomic
from ferd_jax.core import buckets
from ferd_jax.core import compilation
from ferd_jax.core import errors
from ferd_jax.core import parallel as parallels
from ferd_jax.core import program
from ferd_jax.core import reporting
from ferd_jax.core import stopping
from ferd_jax.core import validate
from ferd_jax.evaluation import results
from ferd_jax.evaluation import robustness
from ferd_jax.evaluation import tables
from ferd_jax.run import experiment as experiments
from ferd_jax.run import settings
from ferd_jax.run import work_directory
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import options as file_options
from ferd_jax.weights import robustbench

_DIAGNOSED = 64  # images
_DEFAULT_ATTACKS = 'clean,fgsm,pgd20,cw20,autoattack'


def from_run(workdir: epath.Path,
             args: argparse.Namespace) -> results.Subject:
  """Returns student and teacher, if any, of a work directory.

  Args:
    workdir: of the run.
    args: of the command line; what is not None replaces the run's.

  Raises:
    ValueError: if it is not a run's, or was not trained.
    OSError: if a file cannot be read.
  """
  _refuse(args, _FILE_OPTIONS, 'a run')
  config = experiments.saved_config(workdir)
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
  try:
    experiment = experiments.build(config, to_train=False)
  except (OSError, ValueError) as error:
    kind = type(error) if isinstance(error, OSError) else ValueError
    raise kind(_in_own_words(error)) from error
  work_directory.claim(workdir, experiment.identity, start=False)
  saved = train.saved_state(experiment, workdir)
  return train.run_subject(experiment, workdir, saved.state, saved.epoch)


# Flags of this command by the setting that they stand for, of the config's or
# of a function's.
_FLAGS = {
    'data.name': '--data', 'data.dir': '--data-dir', 'data.split': '--split',
    'teacher.path': '--teacher-path', 'n_examples': '--n-examples',
    'batch_size': '--batch-size', 'attacks': '--attacks', 'seed': '--seed',
    'eps': '--eps', 'robustbench': '--robustbench', 'arch': '--arch',
    'name': '--data', 'split': '--split', 'data_dir': '--data-dir',
    'curve': '--curve'}


def _in_own_words(error):
  """Returns the text of an error of the config with this command's flags."""
  text = str(error)
  for setting, flag in _FLAGS.items():
    text = re.sub(rf'(^|Expected |set |: ){re.escape(setting)}(?=[:=])',
                  rf'\g<1>{flag}', text)
  return text + _registered(error)


def _registered(error):
  """Returns what to do about a network or part that a config registers."""
  name = getattr(error, 'name', '')
  if name not in ('student.arch', *(f'{group}.name' for group in
                                    settings.REGISTRIES)):
    return ''
  return (' One of your own has to be registered first: --import=MODULE that '
          'does so.')


def from_file(path: epath.Path | None,
              args: argparse.Namespace) -> results.Subject:
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
    if args.norm == 'L2' and robustbench.in_both_norms(args.data,
                                                       args.robustbench):
      raise ValueError(
          f'Expected --robustbench={args.robustbench} to say which of two, '
          f'beside --norm=L2: L2/{args.robustbench}, or '
          f'Linf/{args.robustbench}, trained against Linf.')
    entry = robustbench.find(args.data, args.robustbench)
    if entry.remark and not args.straight_through:
      print(f'Warning: {entry.remark}', file=sys.stderr)
    options, published = entry.options_with(options), entry.clean
    arch, select = entry.arch, select or entry.select
  elif path is None:
    raise ValueError('Expected a model: a file, the work directory of a run, '
                     'or --robustbench=ID.')
  own = args.data.endswith('.npz')
  if own:
    _refuse(args, ('data_dir',), 'an .npz')
  # Before the weights: what does not fit is blamed on the data that is wrong.
  split = args.split or 'test'
  examples = data.load(args.data, split, data_dir=args.data_dir)
  if path is None:
    path = robustbench.fetch(entry)
  with data.blamed(args.data), buckets.local(path) as file:
    loaded = loading.load(file, arch=arch, options=options, select=select,
                          channels=info.image_shape[-1],
                          num_classes=info.num_classes,
                          image_shape=info.image_shape,
                          normaliser=args.normaliser)
  print(f'{path}: {loaded}', file=sys.stderr)
  network = loaded.network.json_values()
  return results.Subject(
      name=path.name, models={'model': (loaded.model, loaded.variables)},
      examples=examples, dataset=args.data,
      split=args.split if own else split, eps=None, epoch=None,
      published=published, about={
          'arch': network['arch'], 'select': select,
          'robustbench': args.robustbench,
          'network_options': network['options']})


_FILE_OPTIONS = ('arch', 'select', 'normaliser', 'robustbench',
                 *file_options.OPTIONS)


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


def _place(text: str) -> epath.Path:
  """Returns a path on this machine or in a bucket."""
  return epath.Path(text).expanduser()


def _import(name: str) -> None:
  """Imports a module by its name, or a file.

  Raises:
    ValueError: if there is none, or it fails.
  """
  path = pathlib.Path(name)
  try:
    if path.suffix == '.py':
      sys.path.append(str(path.resolve().parent))  # Its own modules.
      name = path.stem
      if not path.is_file():
        raise ValueError('there is no such file')
    elif '' not in sys.path:
      sys.path.append('')
    importlib.import_module(name)
  except Exception as error:  # It is code: anything can happen.
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise ValueError(f'Cannot import {path}: {kind}{errors.reason(error)}.'
                     ) from error


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog=program.name('evaluate'), allow_abbrev=False,
      description='Accuracy under attack: average, worst class, worst 10% of '
      'the classes and NSD.')
  add = parser.add_argument
  add('model', type=_place, nargs='?',
      help='a PyTorch checkpoint (.pt, .pth, .safetensors, .npz), a network '
      'that `convert` wrote, or the work directory of a run')
  add('--attacks',
      help=f'of {", ".join(robustness.ATTACKS)}; default: {_DEFAULT_ATTACKS}, '
      'with --curve only clean')
  add('--eps', nargs='+', action=_Radii, metavar='EPS',
      help='radii such as 0.03 or 8/255, separated by commas or spaces; in '
      '2,4,8/255 those without a denominator, none between 0 and 1, have the '
      'last one\'s; default for Linf: the run\'s, 8/255 for a file')
  add('--norm', choices=(*geometry.NORMS, 'L0'), default='Linf',
      help='L0 is for --curve')
  add('--curve', nargs='?', const='', metavar='ATTACKS',
      help='also the accuracy at all radii of --eps from one run of '
      'minimum-norm attacks: of fmn, ddn (L2), fab and fab-t (not L0); '
      'default: fmn, in L2 fmn,ddn. A model that follows: put it first')
  add('--n-examples', type=int, help='the first so many images; default: all')
  add('--seed', type=int, default=0, help='of the attacks')
  add('--targets', action='store_true',
      help='also the success rate of attacks by source and target class')
  add('--diagnose', action='store_true',
      help=f'also check on {_DIAGNOSED} images whether gradients are masked or '
      'the numbers otherwise not to be believed')
  add('--batch-size', type=int,
      help='images a step, over all devices; default: 256 per '
      'accelerator, on CPU what fits the cache')
  add('--json', help='where to write the results')
  add('--state-dir', help='keeps every attack and table that is finished, '
      'which is not repeated then, and what an AutoAttack has found so far')
  add('--data', help='a data set\'s name or the path of an .npz')
  add('--data-dir', help='of TFDS')
  add('--import', dest='imports', action='append', default=[],
      metavar='MODULE', help='a module or file of yours that registers '
      'networks or parts of a method; may be given several times')
  add('--split', help='in TFDS syntax; default: test, or the run\'s')
  file = parser.add_argument_group('a model from a file')
  file.add_argument('--robustbench', metavar='ID',
                    help='a network of RobustBench, L2/ID for one against '
                    'L2, fetched if no model is named; python -m '
                    'ferd_jax.teachers list shows all')
  file_options.add(file)
  run = parser.add_argument_group('a run')
  run.add_argument('--teacher-path', help='if the file was moved')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Evaluates as the command line says, prints tables and writes JSON."""
  args = _parser().parse_args(argv)
  compilation.keep_programs()
  with stopping.signals() as stop, compilation.counted() as programs:
    try:
      _evaluate(args, stop)
      reporting.TERMINAL.line(f'{programs}.')
    except KeyboardInterrupt as stopped:
      # From Python another one than those of `signals` may come.
      name, status = 'SIGINT', 130
      if isinstance(stopped, stopping.Stopped):
        name, status = stopped.signal.name, stopped.status
      reporting.TERMINAL.line(f'stopped: {name}; ' + (
          f'run again to go on: {args.state_dir} keeps what is finished.'
          if args.state_dir else '--state-dir would keep what is finished.'))
      sys.exit(status)


def _evaluate(args, stop):
  """Evaluates; a mistake ends in one line."""
  try:
    for place in (args.model, args.json, args.state_dir):
      if place is not None:
        buckets.check(place)
    sweep = []
    for found in _sweep(args, stop):  # Each as it comes: they take their time.
      print(tables.text(found), end='\n\n', flush=True)
      sweep.append(found)
      if args.json is not None:
        atomic.write_text(epath.Path(args.json),
                          json.dumps(sweep, indent=2) + '\n')
  except (FloatingPointError, OSError, ValueError) as error:
    sys.exit(f'error: {" ".join(_in_own_words(error).split())}')
  if len(sweep) > 1:
    print(tables.sweep_table(sweep))


def _sweep(args, stop):
  """Yields the results at each radius, after checking all there is to."""
  for module in args.imports:
    _import(module)
  attacks = args.attacks
  if attacks is None:
    attacks = _DEFAULT_ATTACKS if args.curve is None else robustness.CLEAN
  names = [name.strip() for name in attacks.split(',')]
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
  curve_radii, curve_attacks = _curve(args, subject)
  if args.norm not in geometry.NORMS and (args.diagnose or args.targets):
    raise ValueError(f'Expected --norm={args.norm} without --diagnose and '
                     f'--targets, which are for {", ".join(geometry.NORMS)}.')
  if curve_radii and args.attacks is None and not (
      args.diagnose or args.targets):
    radii = [max(curve_radii)]
  else:
    radii = _checked_radii(args, subject)
  parallel = parallels.create()
  batch_size = args.batch_size
  if batch_size is None:
    batch_size = robustness.fitting_batch(subject.examples.images.shape[1:],
                                          parallel)
  validate.positive(batch_size=batch_size)
  validate.divisible(parallel.num_devices, 'devices', batch_size=batch_size)
  _check_writable(args)
  protocols = [results.Protocol(
      attacks=tuple(names), eps=eps, norm=args.norm, seed=args.seed,
      batch_size=batch_size, target_examples=None if args.targets else 0,
      # One run has all of the curve.
      curve_radii=() if number else curve_radii, curve_attacks=curve_attacks,
      diagnosed_examples=_DIAGNOSED if args.diagnose else 0)
               for number, eps in enumerate(radii)]
  reporter = stop.reporter(reporting.TERMINAL)
  with reporter.kept():
    places = [reporter.within(f'eps {eps:.5f}') if len(radii) > 1 else reporter
              for eps in radii]
    for protocol, place in zip(protocols, places, strict=True):
      results.expect(subject, protocol, place)
    for protocol, place in zip(protocols, places, strict=True):
      with stop.deferred():
        found = results.evaluate(subject, protocol, parallel,
                                 state_dir=args.state_dir, reporter=place)
      yield found


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


def _curve(args, subject):
  """Returns the radii of the curve, none without one, and its attacks."""
  if args.curve is None:
    return (), None
  names = [name.strip() for name in args.curve.split(',')] if args.curve else (
      minimum_norm.defaults(args.norm))
  for name in names:
    validate.one_of(minimum_norm.names(args.norm), curve=name)
  minimum_norm.MinimumNorm(args.norm, tuple(names))
  if args.eps:
    return tuple(sorted(_checked_radii(args, subject))), tuple(names)
  widest = geometry.of(args.norm).diameter(
      subject.examples.images.shape[1:], (0., 1.))
  return tuple(eps for eps in minimum_norm.RADII[args.norm]
               if eps < widest), tuple(names)


def _checked_radii(args, subject):
  """Returns the radii, all of them checked before the first is used."""
  if args.eps:
    radii = args.eps
  elif args.norm != 'Linf':
    raise ValueError(f'Expected --eps for --norm={args.norm}.')
  else:
    radii = [8 / 255 if subject.eps is None else subject.eps]
  for eps in radii:
    validate.non_negative(eps=eps)
    checks.radius(eps, args.norm, subject.examples.images.shape[1:], (0., 1.))
  return radii


if __name__ == '__main__':
  main()
