"""Attacks in a ball here and in PyTorch, in turns: seconds and what they leave.

  python benchmarks/ball_attacks.py --norm=L1 --eps=1 --images=48 --rounds=3
  python benchmarks/ball_attacks.py --norm=L1 --eps=4 --images=16 \
    --network=cifar_resnet20

Each attack gets the first images of a data set, as `AutoAttack` calls it: APGD,
FAB-T and Square of pyautoattack, set up as 'standard' does, against the same
here; PGD against foolbox's, in L1 its `SparseL1DescentAttack`. `digits` is the
shipped ResNet-8 on scikit-learn's digits; any other network of 32x32x3 images
has random weights and gets noise, which takes as long as other images. Labels
are the network's own, so that all images are right.

The sides take turns for some rounds; the table has the medians over rounds,
after a first call that compiles, and how many images withstand, by which the
sides do the same work: an image is through as soon as it is fooled. Needs
requirements-test.txt.
"""

import argparse
import dataclasses
import functools
import logging
import os
import pathlib
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np

# The package.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import minimum_norm  # Beside this script.

from ferd_jax import attacks
from ferd_jax.models import forward

ATTACKS = ('pgd', 'apgd-ce', 'apgd-t', 'fab-t', 'square')
_PGD = {'L1': 'SparseL1DescentAttack', 'L2': 'L2ProjectedGradientDescentAttack',
        'Linf': 'LinfProjectedGradientDescentAttack'}
_STEP = 0.2  # of PGD, of eps


class Here:
  """The attacks of this package."""

  def __init__(self, apply_fn, variables, images, labels, args):
    self._model = jax.tree_util.Partial(apply_fn, variables)
    self._images, self._labels, self._args = images, labels, args
    members = attacks.AutoAttack(args.eps, args.norm).members(10)
    self._members = {'pgd': attacks.PGD(
        args.eps, _STEP * args.eps, args.iterations, start='zero',
        norm=args.norm)} | {
            name: dataclasses.replace(member, **(
                {'num_queries': args.queries} if name == 'square' else
                {'num_iterations': args.iterations}))
            for name, member in members.items()}

  def __call__(self, name):
    """Returns how many images withstand."""
    args = self._args
    found = attacks.AutoAttack(
        args.eps, args.norm, 'custom', ((name, self._members[name]),))(
            self._model, jax.random.key(0), self._images, self._labels,
            batch_size=args.jax_batch_size, progress=False)
    return int(found.robust.sum())


class PyTorch:
  """Those of pyautoattack and foolbox."""

  def __init__(self, net, images, labels, args):
    import torch
    self._net, self._args = net, args
    self._images = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    self._labels = torch.tensor(labels.astype(np.int64))

  def __call__(self, name):
    """Returns how many images withstand."""
    found = (self._pgd if name == 'pgd' else
             functools.partial(self._official, name))()
    return int((self._net(found).argmax(-1) == self._labels).sum())

  def _pgd(self):
    import foolbox
    attack = getattr(foolbox.attacks, _PGD[self._args.norm])(
        steps=self._args.iterations, rel_stepsize=_STEP, random_start=False)
    return attack.run(
        foolbox.PyTorchModel(self._net, (0, 1), device='cpu'), self._images,
        foolbox.Misclassification(self._labels), epsilon=self._args.eps)

  def _official(self, name):
    import pyautoattack
    args = self._args
    # Anew each time: in L1 it shortens its iterations for good.
    official = pyautoattack.AutoAttack(self._net, eps=args.eps, norm=args.norm,
                                       seed=0)
    official.attacks_to_run = [name]
    for attack in (official.apgd, official.apgd_targeted, official.fab):
      attack.n_iter = args.iterations
    official.square.n_queries = args.queries
    return official.run_standard_evaluation(
        self._images, self._labels, batch_size=args.batch_size)[0]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--network', default='digits')
  parser.add_argument('--norm', choices=list(_PGD), default='L1')
  parser.add_argument('--eps', type=float, required=True,
                      help='in the range of a pixel, 0 to 1')
  parser.add_argument('--images', type=int, default=48)
  parser.add_argument('--iterations', type=int, default=100)
  parser.add_argument('--queries', type=int, default=5000)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--batch_size', type=int, default=64,
                      help='of PyTorch')
  parser.add_argument('--jax_batch_size', type=int, default=16)
  parser.add_argument('--attacks', nargs='+', choices=ATTACKS,
                      default=list(ATTACKS))
  args = parser.parse_args()
  import foolbox
  import torch
  logging.getLogger('auto-attack').setLevel(logging.ERROR)
  model, variables, images = minimum_norm.subject(args.network, args.images)
  apply_fn = functools.partial(forward.logits, model)
  labels = np.asarray(jax.jit(apply_fn)(variables, jnp.asarray(images))
                      ).argmax(-1)
  sides = {
      'here': Here(apply_fn, variables, images, labels, args),
      'PyTorch': PyTorch(minimum_norm.torch_net(
          model, variables, images.shape[-1]), images, labels, args)}
  print(f'{args.network}, {len(images)} images {images.shape[1:]}, {args.norm} '
        f'eps {args.eps:g}, {args.iterations} iterations, {args.queries} '
        f'queries; {platform.machine()}, {len(os.sched_getaffinity(0))} cores, '
        f'load {os.getloadavg()[0]:.1f}; JAX {jax.__version__}, PyTorch '
        f'{torch.__version__}, foolbox {foolbox.__version__}')
  print('\n| attack | here, s | PyTorch, s | PyTorch / here | withstand here '
        '| in PyTorch |\n|' + '---|' * 6)
  for name in args.attacks:
    left = {side: call(name) for side, call in sides.items()}
    times = minimum_norm.seconds_of(sides, name, args.rounds)
    print(f'| {name} | {times["here"]:.2f} | {times["PyTorch"]:.2f} | '
          f'{times["PyTorch"] / times["here"]:.2f} | {left["here"]} | '
          f'{left["PyTorch"]} |', flush=True)


if __name__ == '__main__':
  main()
