"""What BatchNorm costs an attack, and so what folding it could gain at most.

  python benchmarks/folding.py --models=cifar_resnet20 --batches=16,100

An attack differentiates a network in evaluation mode, where BatchNorm is a
multiplication and an addition per channel, constant while the attack runs. To
fold it into the convolution before it would save the multiplication, where
there is one: pre-activation networks have none. The bound is measured
with the same network without BatchNorm's multiplication anywhere, adding its
bias only: gradients of the cross-entropy by the images, of both in turns.
The table has medians and their ratio.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

from flax import linen as nn
import jax
import jax.numpy as jnp

# The package.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import losses
from ferd_jax import models
from ferd_jax.core import parallel as parallels
from ferd_jax.models import forward
from ferd_jax.models import layers


def _parser():
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  add = parser.add_argument
  add('--models', default='cifar_resnet20,resnet18,wrn_10_4')
  add('--batches', default='16,100', help='images, separated by commas')
  add('--rounds', type=int, default=5)
  add('--seconds', type=float, default=1., help='of one measurement, at least')
  add('--precision', choices=('float32', 'bfloat16'), default='float32')
  return parser


def _only_added(call, args, kwargs, context):
  """Runs a module, BatchNorm as the addition of its bias."""
  if not isinstance(context.module, layers.BatchNorm):
    return call(*args, **kwargs)
  x, = args
  bias = context.module.variables['params']['bias'].astype(x.dtype)
  return x + jnp.reshape(bias, (1,) * (x.ndim - 1) + (-1,))


def _gradient(model, only_added, variables, images, labels, axis_name=None):
  del axis_name
  def loss(images):
    if not only_added:
      logits = forward.logits(model, variables, images)
    else:
      with nn.intercept_methods(_only_added):
        logits = forward.logits(model, variables, images)
    return jnp.sum(losses.cross_entropy(logits, labels))
  return jax.grad(loss)(images)


def _seconds(step, count):
  started = time.perf_counter()
  for _ in range(count):
    result = step()
  jax.block_until_ready(result)
  return (time.perf_counter() - started) / count


def main() -> None:
  args = _parser().parse_args()
  parallel = parallels.create('jit')
  dtype = None if args.precision == 'float32' else jnp.bfloat16
  print(f'{jax.devices()[0].device_kind}, {args.precision}, jax '
        f'{jax.__version__}\n')
  print('| network | images | BatchNorm | added only | ratio |')
  print('|---|---|---|---|---|')
  for name in args.models.split(','):
    model = models.build(name, 10, dtype=dtype)
    variables = jax.jit(functools.partial(
        models.init_variables, model, image_shape=(32, 32, 3)))(
            jax.random.key(0))
    for size in map(int, args.batches.split(',')):
      images = jax.random.uniform(jax.random.key(1), (size, 32, 32, 3))
      labels = jnp.zeros(size, jnp.int32)
      sharded, replicated = parallels.SHARDED, parallels.REPLICATED
      steps = [functools.partial(parallel.compile(
          functools.partial(_gradient, model, only_added),
          (replicated, sharded, sharded), sharded), variables, images, labels)
               for only_added in (False, True)]
      for step in steps:
        _seconds(step, 1)
      count = max(1, round(args.seconds / _seconds(steps[0], 1)))
      times = [[_seconds(step, count) for step in steps]
               for _ in range(args.rounds)]
      whole, added = map(statistics.median, zip(*times, strict=True))
      print(f'| {name} | {size} | {whole * 1e3:.1f} ms | {added * 1e3:.1f} ms '
            f'| {whole / added:.2f} |', flush=True)


if __name__ == '__main__':
  main()
