"""AutoAttack 'standard' here and in the official PyTorch code, image by image.

  python benchmarks/autoattack_parity.py run --model=resnet20 --eps=8 \
    --teacher=CIFAR10-resnet20-adv.pth --data_dir=TFDS --results=parity/
  python benchmarks/autoattack_parity.py write --results=parity/ \
    > docs/autoattack_parity.md

`run` attacks the same weights and images with this package (seed 0) and with
pyautoattack (seeds 0, 1, 2), in turns, and keeps what each found in the
directory; what is there is not run again. `resnet18` is pyautoattack's own
network. Needs requirements-test.txt.
"""

import argparse
import json
import logging
import os
import pathlib
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

ATTACKS = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
SEEDS = (0, 1, 2)


def _package_file(name):
  import pyautoattack
  return pathlib.Path(pyautoattack.__file__).parent / 'examples' / name


def _jax_model(name, path):
  """Returns (images -> logits) of the weights, its variables an argument."""
  import functools

  import jax

  from ferd_jax import forward
  from ferd_jax import models
  from ferd_jax import torch_io
  model = (models.build('resnet18', 10) if name == 'resnet18' else
           models.build('cifar_resnet20', 10, shortcut='pad_after'))
  variables = torch_io.load_variables(path, model, (32, 32, 3))
  return jax.tree_util.Partial(functools.partial(forward.logits, model),
                               variables)


def _torch_model(name, path):
  """Returns the same as a PyTorch module."""
  import torch
  import torch_twins
  if name == 'resnet18':
    from pyautoattack.examples import resnet
    net = resnet.ResNet18()
    net.load_state_dict(torch.load(path, weights_only=True))
  else:
    net = torch_twins.CifarResNet(20, 16, 10, 'pad_after', 'stage')
    torch_twins.load_published(net, path)
  return net.eval().requires_grad_(False)


def run_jax(name, path, images, labels, eps, batch_size):
  """Returns flags by attack, and seconds."""
  import jax

  from ferd_jax import attacks
  model = _jax_model(name, path)
  started = time.monotonic()
  result = attacks.AutoAttack(eps)(model, jax.random.key(0), images, labels,
                                   batch_size=batch_size)
  seconds = time.monotonic() - started
  return {'clean': result.correct.tolist(), 'seconds': seconds,
          'seconds_by_attack': result.seconds, 'version': jax.__version__,
          'flags': {name: flags.tolist()
                    for name, flags in result.flags.items()}}


def run_official(name, path, images, labels, eps, batch_size, seed):
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
  started = time.monotonic()
  for attack in ATTACKS:
    # Attack by attack on what is left, as its own loop does, so that the
    # flags after each can be read.
    begun = time.monotonic()
    left = np.flatnonzero(robust)
    if len(left):
      autoattack = pyautoattack.AutoAttack(net, eps=eps, seed=seed)
      autoattack.attacks_to_run = [attack]
      x_adv, _ = autoattack.run_standard_evaluation(
          x[left], y[left], batch_size=batch_size)
      for i in range(0, len(left), 100):
        part = left[i:i + 100]
        robust[part] = (net(x_adv[i:i + 100]).argmax(-1)
                        == y[part]).numpy()
    flags[attack] = robust.tolist()
    spent[attack] = time.monotonic() - begun
  return {'clean': clean.tolist(), 'flags': flags,
          'seconds': time.monotonic() - started, 'seconds_by_attack': spent,
          'version': f'torch {torch.__version__}'}


def run(args):
  """Runs what is missing of one model at one radius."""
  import torch

  from ferd_jax import data
  torch.set_num_threads(args.threads)
  path = (_package_file('model_test.pt') if args.model == 'resnet18'
          else args.teacher)
  examples = data.load('cifar10', f'test[:{args.images}]',
                       data_dir=args.data_dir)
  images = examples.images.astype(np.float32) / 255
  labels = examples.labels
  args.results.mkdir(parents=True, exist_ok=True)
  for side in ('jax', *(f'official{seed}' for seed in SEEDS)):
    file = args.results / (f'{args.model}_{args.eps:g}_{args.images}_'
                           f'{side}.json')
    if file.exists():
      continue
    common = (args.model, path, images, labels, args.eps / 255,
              args.batch_size)
    found = (run_jax(*common) if side == 'jax' else
             run_official(*common, seed=int(side[-1])))
    found |= {'model': args.model, 'eps': args.eps, 'images': args.images,
              'side': side, 'batch_size': args.batch_size,
              'cores': len(os.sched_getaffinity(0))}
    file.write_text(json.dumps(found))
    robust = np.mean(found['flags']['square'])
    print(f'{file.stem}: {robust:.2%} in {found["seconds"]:.0f} s', flush=True)


def write(args):
  """Prints the report of all results."""


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('mode', choices=['run', 'write'])
  parser.add_argument('--model', choices=['resnet18', 'resnet20'])
  parser.add_argument('--eps', type=float, help='in 255ths')
  parser.add_argument('--images', type=int, default=200)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--threads', type=int,
                      default=len(os.sched_getaffinity(0)))
  parser.add_argument('--teacher', type=pathlib.Path)
  parser.add_argument('--data_dir')
  parser.add_argument('--results', type=pathlib.Path, required=True)
  args = parser.parse_args()
  (run if args.mode == 'run' else write)(args)


if __name__ == '__main__':
  main()
