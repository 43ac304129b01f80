"""DDN and FMN here and in foolbox: what they find, and how long they take.

  python benchmarks/minimum_norm.py
  python benchmarks/minimum_norm.py --network=cifar_resnet20 --images=16 \
    --skip-jax

Attacks the first images of a data set, with the weights of a network, on three
sides: `attacks.jit` here, foolbox on PyTorch (the twin of the network, with the
same weights) and foolbox on the JAX function itself, compiled. `digits` is the
shipped ResNet-8 on scikit-learn's digits; any other network of 32x32x3 images
has random weights and gets noise, which takes as long as other images.

The sides take turns for some rounds; the table has the medians over rounds,
after a first call that compiles. What is found is compared on the JAX function:
`overshoot=1` are foolbox's rules. Of foolbox, projections that are wrong are
replaced for that: L2 (which does none) by the clip, L0 (an entry too many) by
that of the largest; what foolbox finds as it is stands beside it. Needs
foolbox 3.3.4 (eagerpy, GitPython, requests and scipy come with it) and
PyTorch.
"""

import argparse
import functools
import os
import pathlib
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

# The package.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import assets
from ferd_jax import attacks
from ferd_jax import data
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax import torch_twins
from ferd_jax.attacks import fmn
from ferd_jax.models import forward
from ferd_jax.weights import loading

ATTACKS = {'DDN': ('DDNAttack', 'L2'), 'FMN L0': ('L0FMNAttack', 'L0'),
           'FMN L1': ('L1FMNAttack', 'L1'), 'FMN L2': ('L2FMNAttack', 'L2'),
           'FMN Linf': ('LInfFMNAttack', 'Linf')}
_ORDERS = {'L0': 0, 'L1': 1, 'L2': 2, 'Linf': np.inf}
_MENDED = ('L0', 'L2')


def subject(network, number):
  """Returns the Flax module, its variables and images `[N, H, W, C]`."""
  if network == 'digits':
    loaded = loading.load(
        assets.path('digits_resnet8_adv.safetensors'), arch='cifar_resnet8',
        options={'shortcut': 'pad_both'}, channels=1, num_classes=10,
        image_shape=(8, 8, 1))
    examples = data.load('digits', 'test').first(number)
    return (loaded.model, loaded.variables,
            examples.images.astype(np.float32) / 255)
  model = models.build(network, 10)
  variables = jax.jit(lambda key: models.init_variables(
      model, key, (32, 32, 3)))(jax.random.key(0))
  images = np.random.default_rng(0).random((number, 32, 32, 3), np.float32)
  return model, variables, images


class Here:
  """The attacks of this package."""

  def __init__(self, apply_fn, variables, images, labels, steps):
    self._apply, self._variables = apply_fn, variables
    self._images, self._labels = jnp.asarray(images), jnp.asarray(labels)
    self._steps, self._compiled = steps, {}

  def __call__(self, name, **settings):
    """Returns the adversarial images."""
    which = name, *settings.items()
    if which not in self._compiled:
      _, norm = ATTACKS[name]
      attack = (attacks.DDN(num_steps=self._steps) if name == 'DDN' else
                attacks.FMN(norm=norm, num_steps=self._steps, **settings))
      self._compiled[which] = attacks.jit(attack, self._apply)
    found = self._compiled[which](self._variables, jax.random.key(0),
                                  self._images, self._labels)
    return np.asarray(found)


class Foolbox:
  """Those of foolbox, on a model of either framework."""

  def __init__(self, model, images, labels, steps, to_host):
    import foolbox
    self._foolbox, self._model, self._steps = foolbox, model, steps
    self._images, self._to_host = images, to_host
    self._criterion = foolbox.Misclassification(labels)

  def __call__(self, name, mended=False):
    """Returns the adversarial images."""
    kind, norm = ATTACKS[name]
    attack = getattr(self._foolbox.attacks, kind)(steps=self._steps)
    if mended and name != 'DDN' and norm in _MENDED:
      import eagerpy
      def project(x, x0, epsilon):
        moved = fmn.project((x - x0).raw, epsilon.raw, norm)
        return x0 + eagerpy.astensor(moved)
      attack.project = project
    return self._to_host(attack.run(self._model, self._images,
                                    self._criterion))


def torch_net(model, variables, channels):
  """Returns the network's twin in PyTorch, in evaluation mode."""
  import torch
  net = torch_twins.twin(model, channels)
  net.load_state_dict({
      name: torch.tensor(np.array(value)) for name, value in
      torch_io.state_dict_from_variables(model, variables).items()},
      strict=False)
  net.eval()
  return net.requires_grad_(False)


def on_torch(model, variables, images, labels, steps):
  """Returns foolbox on the network's twin in PyTorch."""
  import foolbox
  import torch
  net = torch_net(model, variables, images.shape[-1])
  return Foolbox(
      foolbox.PyTorchModel(net, (0, 1), device='cpu'),
      torch.tensor(images.transpose(0, 3, 1, 2).copy()), torch.tensor(labels),
      steps, lambda x: x.detach().numpy().transpose(0, 2, 3, 1))


def on_jax(apply_fn, variables, images, labels, steps):
  """Returns foolbox on the JAX function."""
  import foolbox
  predict = functools.partial(jax.jit(apply_fn), variables)
  return Foolbox(foolbox.JAXModel(predict, (0, 1)), jnp.asarray(images),
                 jnp.asarray(labels), steps, np.asarray)


def distances(predict, images, found, labels, norm):
  """Returns norms, inf where the images found do not fool."""
  norms = np.linalg.norm((found - images).reshape(len(images), -1),
                         _ORDERS[norm], axis=1)
  fooled = np.asarray(predict(found)).argmax(-1) != labels
  return np.where(fooled, norms, np.inf)


def seconds_of(sides, name, rounds):
  """Returns medians of the seconds of a call, the sides in turns."""
  for side in sides.values():
    side(name)  # It compiles.
  found = {side: [] for side in sides}
  for _ in range(rounds):
    for side, call in sides.items():
      started = time.perf_counter()
      call(name)
      found[side].append(time.perf_counter() - started)
  return {side: statistics.median(times) for side, times in found.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--network', default='digits')
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--attacks', nargs='+', choices=ATTACKS,
                      default=list(ATTACKS))
  parser.add_argument('--skip-jax', action='store_true',
                      help='leaves foolbox on JAX, and what is found, out')
  args = parser.parse_args()
  import foolbox
  import torch
  model, variables, images = subject(args.network, args.images)
  apply_fn = functools.partial(forward.logits, model)
  predict = functools.partial(jax.jit(apply_fn), variables)
  labels = np.asarray(predict(images)).argmax(-1)
  common = images, labels, args.steps
  here = Here(apply_fn, variables, *common)
  sides = {'here': here, 'PyTorch': on_torch(model, variables, *common)}
  if not args.skip_jax:
    sides['JAX'] = on_jax(apply_fn, variables, *common)
  print(f'{args.network}, {len(images)} images {images.shape[1:]}, '
        f'{args.steps} steps; {platform.machine()}, '
        f'{len(os.sched_getaffinity(0))} cores, load '
        f'{os.getloadavg()[0]:.1f}; JAX {jax.__version__}, PyTorch '
        f'{torch.__version__}, foolbox {foolbox.__version__}')
  print('\n| attack | ' + ' | '.join(f'{side}, s' for side in sides)
        + ' | ' + ' | '.join(f'{side} / here' for side in list(sides)[1:])
        + ' |\n|' + '---|' * (2 * len(sides)))
  for name in args.attacks:
    times = seconds_of(sides, name, args.rounds)
    print(f'| {name} | ' + ' | '.join(
        f'{value:.2f}' for value in times.values()) + ' | ' + ' | '.join(
            f'{times[side] / times["here"]:.2f}'
            for side in list(sides)[1:]) + ' |', flush=True)
  if args.skip_jax:
    return
  print('\n| attack | median here | fooled | at overshoot 1 | fooled '
        '| foolbox, mended | norms within 0.1% | foolbox as it is | fooled |\n|'
        + '---|' * 9)
  for name in args.attacks:
    _, norm = ATTACKS[name]
    measure = functools.partial(distances, predict, images, labels=labels,
                                norm=norm)
    parity = {} if name == 'DDN' else {'overshoot': 1}
    found, plain, mended, as_is = map(measure, (
        here(name), here(name, **parity), sides['JAX'](name, mended=True),
        sides['JAX'](name)))
    same = np.isclose(plain, mended, rtol=1e-3, atol=1e-6).mean()
    print(f'| {name} | {np.median(found):.4f} | {np.isfinite(found).mean():.0%}'
          f' | {np.median(plain):.4f} | {np.isfinite(plain).mean():.0%} | '
          f'{np.median(mended):.4f} | {same:.0%} | {np.median(as_is):.4f} | '
          f'{np.isfinite(as_is).mean():.0%} |', flush=True)


if __name__ == '__main__':
  main()
