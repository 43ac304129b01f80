"""AutoAttack 'standard' here and in the official PyTorch code, image by image.

  python benchmarks/autoattack_parity.py run --model=resnet20 --eps=8 \
    --teacher=CIFAR10-resnet20-adv.pth --data_dir=TFDS --results=parity/
  python benchmarks/autoattack_parity.py run --model=digits --norm=L1 --eps=1 \
    --images=300 --batch_size=300 --jax_batch_size=128 --results=parity/
  python benchmarks/autoattack_parity.py write --results=parity/ \
    --document=docs/autoattack_parity.md

`run` attacks the same weights and images with this package (seed 0) and with
pyautoattack (seeds 0, 1, 2), in turns, and keeps what each found in the
directory; what is there is not run again, and `--first` adds images to those
there. `resnet18` is pyautoattack's own network, `digits` the teacher that this
package ships. `write` replaces what it has results for in the document and
leaves the rest, which may come from another machine. Needs
requirements-test.txt.
"""

import argparse
import itertools
import json
import logging
import math
import os
import pathlib
import platform
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT)]

_NAMES = {'resnet18': "pyautoattack's ResNet-18",
          'resnet20': 'CIFAR10-resnet20-adv.pth',
          'digits': 'digits_resnet8_adv.safetensors'}
ATTACKS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
SEEDS = (0, 1, 2)
SIDES = ('jax', *(f'official{seed}' for seed in SEEDS))
_ENOUGH = 200  # images for a share of 0.5% to be one
_LINE = 64  # images of a line of flags
_MARKS = dict(zip(ATTACKS, 'ctfs', strict=True))  # of what broke an image
_INTRODUCTION = """# AutoAttack here and in the official code

Made by `benchmarks/autoattack_parity.py`: version 'standard', L-infinity and L1
(radii marked so), of `ferd_jax.attacks.AutoAttack` (seed 0) and of
`pyautoattack` 0.2.0 (PyPI, the package of fra31/auto-attack; three seeds) on
the same weights and the first images of CIFAR-10's test split in TFDS's order,
or of scikit-learn's digits. Both sides take an image as robust until an attack
changes its prediction; the flags below are compared image by image.

What is the same to rounding, in the test suite: losses and their gradients, the
schedules, the step-size controller on recorded losses, all iterates of APGD
(in L1 through its three radii, too) and of FAB-T in float64, the projections,
and Square under the same draws, bit by bit in L-infinity (`apgd_test.py`,
`fab_test.py`, `geometry_test.py`, `box_projection_test.py` and `square_test.py`
of `tests/attacks`).

What differs on purpose:

* The noise of an image depends on the key, the attack and the image's index.
  The official code draws it for a batch: Square shares one window per query
  among all images of a batch. The distribution for an image is the same.
* An attack ends for an image with its first misclassified iterate; the official
  APGD returns the last, FAB the closest. Flags do not change. (Those of
  stochastic models could: there APGD returns the last, too.)
* Between 2 and 9 classes there are K - 1 targets, where the official code
  raises an error; such numbers carry a warning.
* An interrupted run goes on where it was; the official code does not.

What differs on purpose in L1 alone:

* APGD's steps move two thirds of so many pixels and channels as the best image
  so far has changed. Here these are counted as they are. The official count
  takes in all that differ from the image by rounding, in float32 758 to 830 of
  3072 after the first projection instead of 53 to 62, and the division by 1.5
  adds one at some counts. The tests give the official code exact counts.
* The official projection onto the ball within the box takes a wrong slope where
  the level sought is below all but one of the breakpoints: in 14% of random
  cases of two pixels, 0.3% of twelve, none of 2000 of twenty and more. Here it
  is exact, found by halving instead of sorting, within the box to the bit and
  within the ball to rounding (officially beyond them by up to 2.4e-7 and
  2.9e-4).
* What a projection leaves of a pixel below rounding is 0. The official Square
  scales a window that holds nothing else up to noise.
* FAB moves pixels of equal weights by equal shares of their ways, the official
  code one after the other in the order of a sort that is not stable. The
  distance is the same.
* A start of the caller's is projected if it is out of the ball, and noise has
  the unit of the bounds.
* Attacks that 'custom' takes by name are set up as in 'standard': APGD with
  three radii and five restarts. The official 'custom' has no larger radii.

What the time goes into are forward and backward passes, on either side. Here an
image leaves the batch as soon as it is fooled, another takes its place, and
batches of 16 images fit the cache (APGD and FAB on a ResNet-20 take a tenth
less than with 32). FAB finds its projections without sorting, and L1 knows no
sorting at all: for an image of 32 x 32 x 3, on one core, the projection onto
its ball takes 11 us (officially 291), FAB's onto a plane 11 (365), the choice
of the steepest entries 14 (152 for the sort alone).
Convolution kernels are turned around for the gradient once per attack instead
of in every step (`ferd_jax/attacks/hoisting.py`): a gradient of ResNet-18 takes
16 instead of 51 ms for one image, 97 instead of 150 for eight, 222 instead of
256 for sixteen (PyTorch: 34, 127 and 234; one core).
For a ResNet-20 the forward pass, most of Square's time, takes 0.57 ms an image
here and 0.51 in PyTorch on one core (XLA's convolutions of 16 to 64 channels),
a gradient 1.21 and 1.20: the more images withstand, the more of the time is
Square's. CPU seconds are compared, as seconds depend on what else runs.
BatchNorm is not folded into the convolutions, since XLA fuses its scale and
shift with the ReLU: left out altogether, a gradient of ResNet-20 takes 1.45
instead of 1.48 ms per image (batches of 32, two cores of an AMD EPYC; at 64
images there is no difference).
"""

_OVERVIEW = """## Overview

Robust accuracies after all four attacks. Accepted ('yes') are, with each of
three official seeds, differences of at most 0.3 points, the same flag for at
least 99.5% of the images, and after every attack no side that is fooled more
often where flags differ (McNemar, p > 0.05); with 200 images and more also no
difference above 0.5 points after any attack (of fewer one image is more than
that). 'As the seeds' are those where it is not so, but flags here differ from
each seed's for no more images than the flags of two official seeds do. The last
column is the CPU time of the official code (the median of the seeds for which
it was taken) over that here, compilation included. Below, seconds of a run that
did not have its core for itself are longer than its CPU seconds. A pass of the
digits' network takes microseconds: there the time is that of all around it,
compilation included, and batches are of 16 images here and of 300 there.

| network | eps | images | here | official, seed by seed | images with the \
same flag | of two official seeds | largest difference after any attack | \
accepted | time |
|---|---|---|---|---|---|---|---|---|---|"""
_LEGEND = """What broke each image, side by side: `c` apgd-ce, `t` apgd-t, `f` \
fab-t, `s` square,
`.` nothing, `-` wrong as it is."""


def _package_file(name):
  import pyautoattack
  return pathlib.Path(pyautoattack.__file__).parent / 'examples' / name


def _jax_model(name, path):
  """Returns (images -> logits) of the weights, its variables an argument."""
  import functools

  import jax

  from ferd_jax import torch_io
  from ferd_jax.models import forward
  model = _flax_module(name)
  shape = (8, 8, 1) if name == 'digits' else (32, 32, 3)
  variables = torch_io.load_variables(path, model, shape)
  return jax.tree_util.Partial(functools.partial(forward.logits, model),
                               variables)


def _flax_module(name):
  from ferd_jax import models
  if name == 'resnet18':
    return models.build('resnet18', 10)
  if name == 'resnet20':
    return models.build('cifar_resnet20', 10, shortcut='pad_after')
  return models.build('cifar_resnet8', 10, shortcut='pad_both')


def _torch_model(name, path):
  """Returns the same as a PyTorch module."""
  import torch

  from ferd_jax import torch_networks
  from ferd_jax import torch_twins
  if name == 'resnet18':
    from pyautoattack.examples import resnet
    net = resnet.ResNet18()
    net.load_state_dict(torch.load(path, map_location='cpu',
                                   weights_only=True))
  elif name == 'resnet20':
    net = torch_networks.CifarResNet(20, 16, 10, 'pad_after', 'stage')
    torch_twins.load_published(net, path)
  else:
    import safetensors.torch
    net = torch_twins.twin(_flax_module(name), channels=1)
    net.load_state_dict(safetensors.torch.load_file(path))
  return net.eval().requires_grad_(False)


def run_jax(name, path, images, labels, eps, norm, batch_size):
  """Returns flags by attack, and seconds."""
  import jax

  from ferd_jax import attacks
  model = _jax_model(name, path)
  result = attacks.AutoAttack(eps, norm)(
      model, jax.random.key(0), images, labels, batch_size=batch_size)
  return {'clean': result.correct.tolist(), 'batch_size': batch_size,
          'seconds_by_attack': result.seconds,
          'version': f'jax {jax.__version__}',
          'flags': {name: flags.tolist()
                    for name, flags in result.flags.items()}}


def run_official(name, path, images, labels, eps, norm, batch_size, seed):
  """Returns flags by attack, and seconds, of pyautoattack."""
  import pyautoattack
  import torch
  net = _torch_model(name, path)
  x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
  y = torch.from_numpy(labels.astype(np.int64))
  clean = np.concatenate([
      (net(x[i:i + 100]).argmax(-1) == y[i:i + 100]).numpy()
      for i in range(0, len(y), 100)])
  logging.basicConfig(level=logging.WARNING)
  logging.getLogger('auto-attack').setLevel(logging.DEBUG)
  flags, robust, spent = {}, clean.copy(), {}
  for attack in ATTACKS:
    # Attack by attack on what is left, as its own loop does, so that the
    # flags after each can be read.
    begun = time.monotonic()
    left = np.flatnonzero(robust)
    if len(left):
      autoattack = pyautoattack.AutoAttack(net, eps=eps, norm=norm, seed=seed)
      autoattack.attacks_to_run = [attack]
      x_adv, _ = autoattack.run_standard_evaluation(
          x[left], y[left], batch_size=batch_size)
      for i in range(0, len(left), 100):
        part = left[i:i + 100]
        robust[part] = (net(x_adv[i:i + 100]).argmax(-1)
                        == y[part]).numpy()
    flags[attack] = robust.tolist()
    spent[attack] = time.monotonic() - begun
  return {'clean': clean.tolist(), 'flags': flags, 'batch_size': batch_size,
          'seconds_by_attack': spent, 'version': f'torch {torch.__version__}'}


def run(args):
  """Runs what is missing of one model at one radius."""
  import torch

  from ferd_jax import assets
  from ferd_jax import data
  torch.set_num_threads(args.threads)
  path = {'resnet18': lambda: _package_file('model_test.pt'),
          'resnet20': lambda: args.teacher,
          'digits': lambda: assets.path(_NAMES['digits'])}[args.model]()
  examples = data.load('digits' if args.model == 'digits' else 'cifar10',
                       f'test[{args.first}:{args.first + args.images}]',
                       data_dir=args.data_dir)
  images = examples.images.astype(np.float32) / 255
  labels = examples.labels
  args.results.mkdir(parents=True, exist_ok=True)
  for side in args.sides:
    norm = '' if args.norm == 'Linf' else f'{args.norm}_'
    file = args.results / (f'{args.model}_{norm}{args.eps:g}_{args.first}_'
                           f'{args.images}_{side}.json')
    if file.exists():
      continue
    eps = args.eps / 255 if args.norm == 'Linf' else args.eps
    common = (args.model, path, images, labels, eps, args.norm)
    started, cpu_before = time.monotonic(), time.process_time()
    found = (run_jax(*common, args.jax_batch_size) if side == 'jax' else
             run_official(*common, args.batch_size, seed=int(side[-1])))
    found |= {'model': args.model, 'eps': args.eps, 'norm': args.norm,
              'first': args.first,
              'images': args.images, 'side': side,
              'seconds': time.monotonic() - started,
              'cpu_seconds': time.process_time() - cpu_before,
              'cores': len(os.sched_getaffinity(0)),
              'processor': _processor()}
    file.write_text(json.dumps(found))
    robust = np.mean(found['flags']['square'])
    print(f'{file.stem}: {robust:.2%} in {found["seconds"]:.0f} s', flush=True)


def _processor():
  """Returns the CPU's name as Linux has it."""
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  return next((line.partition(': ')[2] for line in lines
               if line.startswith('model name')), platform.processor())


def write(args):
  """Writes the report of all results."""
  by_setting = _by_setting([json.loads(file.read_text())
                            for file in args.results.glob('*.json')])
  rows, sections = _kept(args.document)
  for (model, norm, eps), (ours, official) in by_setting.items():
    radius = _radius(norm, eps)
    setting = f'{_NAMES[model]}, eps {radius}'
    rows[setting] = _row(model, radius, ours, official)
    sections[setting] = _section(setting, ours, official)
  order = sorted(rows, reverse=True, key=_place)
  args.document.write_text('\n'.join([
      _INTRODUCTION, _OVERVIEW, *(rows[setting] for setting in order), '',
      *(sections[setting] for setting in order)]))


def _radius(norm, eps):
  """Returns a radius as it is shown."""
  return f'{eps:g}/255' if norm == 'Linf' else f'{eps:g} ({norm})'


def _place(setting):
  """Returns what settings are sorted by: L1 last, then network and radius."""
  name, _, radius = setting.partition(', eps ')
  return '/255' in radius, name, float(radius.split()[0].partition('/')[0])


def _by_setting(found):
  """Returns {(model, norm, eps): (here, {side: official})}, parts joined."""
  parts = {}
  for one in sorted(found, key=lambda one: one['first']):
    sides = parts.setdefault(
        (one['model'], one.get('norm', 'Linf'), one['eps']), {})
    sides.setdefault(one['side'], []).append(one)
  joined = {setting: {side: _join(ones) for side, ones in sorted(of.items())}
            for setting, of in parts.items()}
  for setting, sides in joined.items():
    if len({side['images'] for side in sides.values()}) > 1:
      raise SystemExit(f'{setting}: not the same images on all sides')
  return {setting: (sides.pop('jax'), sides)
          for setting, sides in joined.items()
          if 'jax' in sides and len(sides) > 1}


def _join(parts):
  """Returns consecutive parts of one side as one."""
  ends = list(itertools.accumulate(part['images'] for part in parts))
  firsts = [part['first'] for part in parts]
  if firsts != [0, *ends[:-1]]:
    raise SystemExit('{model} at {eps}/255, {side}: images are missing or twice'
                     .format(**parts[0]) + f' there; parts start at {firsts}')
  whole = parts[0] | {
      'images': ends[-1], 'clean': sum((part['clean'] for part in parts), []),
      'flags': {attack: sum((part['flags'][attack] for part in parts), [])
                for attack in ATTACKS},
      'seconds_by_attack': {
          attack: sum(part['seconds_by_attack'][attack] for part in parts)
          for attack in ATTACKS}}
  for name in ('seconds', 'cpu_seconds'):
    whole[name] = sum(part[name] for part in parts)
  return whole


def _kept(document):
  """Returns the rows and the sections of a report, by setting."""
  if not document.exists():
    return {}, {}
  overview, *sections = document.read_text().split('\n## ')[1:]
  sections = {section.splitlines()[0].rpartition(', ')[0]: section
              for section in sections}
  rows = [line for line in overview.splitlines()[1:]
          if line.startswith('| ') and not line.startswith('| network')]
  return ({'{}, eps {}'.format(*(cell.strip() for cell in row.split('|')[1:3])):
           row for row in rows},
          {setting: f'## {section.rstrip()}\n'
           for setting, section in sections.items()})


def _row(model, radius, ours, official):
  """Returns the overview's line of one model at one radius."""
  final = _final(ours)
  flags = [_final(side) for side in official.values()]
  null = [np.mean(one == other)
          for one, other in itertools.combinations(flags, 2)]
  largest = max(_difference(ours, side, attack)
                for side in official.values() for attack in ATTACKS)
  return (
      f'| {_NAMES[model]} | {radius} | {ours["images"]} |'
      f' {final.mean():.2%} | '
      + ', '.join(f'{one.mean():.2%}' for one in flags) + ' | '
      + ', '.join(f'{np.mean(one == final):.1%}' for one in flags) + ' | '
      + (', '.join(f'{share:.1%}' for share in null) or '-')
      + f' | {100 * largest:.2f} points'
      f' | {_verdict(ours, official)}'
      f' | {_time_ratio(ours, official):.2f} |')


def _final(side):
  """Returns which images are robust in the end, bool `[N]`."""
  return np.array(side['flags'][ATTACKS[-1]])


def _time_ratio(ours, official):
  """Returns how much CPU time the official code takes for one second here."""
  return (np.median([side['cpu_seconds'] for side in official.values()
                     if 'cpu_seconds' in side]) / ours['cpu_seconds'])


def _difference(ours, side, attack):
  """Returns the difference of the robust accuracies after an attack."""
  return abs(np.mean(ours['flags'][attack]) - np.mean(side['flags'][attack]))


def _mcnemar(ours, side, attack):
  """Returns how likely so uneven a split of the differing images is."""
  ours, side = np.array(ours['flags'][attack]), np.array(side['flags'][attack])
  count = int(np.sum(ours != side))
  fewer = min(int(np.sum(ours & ~side)), int(np.sum(side & ~ours)))
  tail = sum(math.comb(count, i) for i in range(fewer + 1)) / 2 ** count
  return min(1., 2 * tail)


def _accepted(ours, official):
  """Returns whether both sides agree as well as two correct ones should."""
  final = _final(ours)
  return len(official) == len(SEEDS) and all(
      abs(final.mean() - _final(side).mean()) <= 0.003 + 1e-9
      and np.mean(final == _final(side)) >= 0.995
      and all(_mcnemar(ours, side, attack) > 0.05 for attack in ATTACKS)
      and (ours['images'] < _ENOUGH or all(
          _difference(ours, side, attack) <= 0.005 + 1e-9
          for attack in ATTACKS))
      for side in official.values())


def _verdict(ours, official):
  """Returns 'yes', 'as the seeds' or 'no'."""
  if _accepted(ours, official):
    return 'yes'
  final = [_final(side) for side in official.values()]
  spread = [np.sum(one != other)
            for one, other in itertools.combinations(final, 2)]
  alike = len(official) == len(SEEDS) and all(
      np.sum(_final(ours) != one) <= max(spread) for one in final) and all(
          _mcnemar(ours, side, attack) > 0.05
          for side in official.values() for attack in ATTACKS)
  return 'as the seeds' if alike else 'no'


def _section(setting, ours, official):
  """Returns what one model at one radius gave."""
  sides = {'here': ours} | {f'official, seed {name[-1]}': side
                            for name, side in official.items()}
  same = all(ours['clean'] == side['clean'] for side in official.values())
  lines = [
      f'## {setting}, {ours["images"]} images', '',
      f'Clean accuracy {np.mean(ours["clean"]):.2%}, '
      + ('the same images on both sides.' if same else
         'on the official side other images.'), '',
      f'| robust accuracy after | {" | ".join(sides)} |',
      '|' + '---|' * (1 + len(sides))]
  for attack in ATTACKS:
    lines.append(f'| {attack} | ' + ' | '.join(
        f'{np.mean(side["flags"][attack]):.2%}'
        for side in sides.values()) + ' |')
  for attack in ATTACKS:
    lines.append(f'| {attack}, seconds | ' + ' | '.join(
        f'{side["seconds_by_attack"][attack]:.0f}'
        for side in sides.values()) + ' |')
  for name, title in (('seconds', 'seconds in all'),
                      ('cpu_seconds', 'CPU seconds in all')):
    lines.append(f'| {title} | ' + ' | '.join(
        f'{side[name]:.0f}' if name in side else '-'
        for side in sides.values()) + ' |')
  lines += ['', *(
      f'* {name}: {side["version"]}, {side["cores"]} core(s) of '
      f'{side["processor"]}, batches of {side["batch_size"]}'
      for name, side in sides.items())]
  return '\n'.join([*lines, '', *_flags(sides)])


def _flags(sides):
  """Returns lines that say for each image what broke it, side by side."""
  final = np.array([_final(side) for side in sides.values()])
  differing = np.any(final != final[0], axis=0)
  marks = {name: ''.join(_mark(side, index)
                         for index in range(len(differing)))
           for name, side in sides.items()}
  if differing.any():
    marks['final flags differ'] = ''.join(
        '^' if differs else ' ' for differs in differing)
  lines = [_LEGEND, '', '```text']
  for first in range(0, len(differing), _LINE):
    width = max(len(name) for name in marks)
    lines += [f'{f"image {first} to":{width}}  '
              f'{min(first + _LINE, len(differing)) - 1}', *(
                  f'{name:{width}}  {of[first:first + _LINE]}'.rstrip()
                  for name, of in marks.items())]
  return [*lines, '```', '']


def _mark(side, index):
  """Returns the letter of the attack that broke an image."""
  if not side['clean'][index]:
    return '-'
  return next((_MARKS[attack] for attack in ATTACKS
               if not side['flags'][attack][index]), '.')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('mode', choices=['run', 'write'])
  parser.add_argument('--model', choices=list(_NAMES))
  parser.add_argument('--norm', choices=['Linf', 'L1'], default='Linf')
  parser.add_argument('--eps', type=float,
                      help='in 255ths, of L1 in the range of a pixel')
  parser.add_argument('--images', type=int, default=200)
  parser.add_argument('--first', type=int, default=0,
                      help='image, to go on where another run ended')
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=SIDES,
                      help='to run some, for example on a core of their own')
  parser.add_argument('--batch_size', type=int, default=64,
                      help='of the official code')
  parser.add_argument('--jax_batch_size', type=int, default=16)
  parser.add_argument('--threads', type=int,
                      default=len(os.sched_getaffinity(0)))
  parser.add_argument('--teacher', type=pathlib.Path)
  parser.add_argument('--data_dir')
  parser.add_argument('--results', type=pathlib.Path, required=True)
  parser.add_argument('--document', type=pathlib.Path)
  args = parser.parse_args()
  if args.mode == 'run' and not (args.model and args.eps and (
      args.teacher or args.model != 'resnet20')):
    parser.error('run needs --model, --eps and, for resnet20, --teacher')
  if args.mode == 'write' and not args.document:
    parser.error('write needs --document')
  (run if args.mode == 'run' else write)(args)


if __name__ == '__main__':
  main()
