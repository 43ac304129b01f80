"""What turning convolution kernels around only once gains AutoAttack on CPU.

  python benchmarks/hoisting.py
  python benchmarks/hoisting.py --models cifar_resnet20 --rounds 25

Measures the function that AutoAttack calls for every step of APGD on its slots
(`advance` in ferd_jax/attacks/slots.py), as it is and compiled without
ferd_jax/attacks/hoisting.py, on images of 32x32x3 and random weights. Both take
turns, each for at least `--seconds`; the table has the medians over rounds, of
the time that passes and of that which the process gets on all cores. The latter
counts where other programs run. `turn` is what hoisting does once per attack.

On two busy cores of an Intel Xeon at 2.8 GHz, JAX 0.10.2, the first command
gave for resnet18, and the second for cifar_resnet20:

  milliseconds                      by the clock          of the process
  network          batch   plain  hoisted  ratio   plain  hoisted  ratio   turn
  resnet18             1   257.0    145.0   1.77    86.0     52.4   1.64   83.3
  resnet18             4   473.1    360.9   1.31   156.2    118.3   1.32  109.8
  resnet18            16  1143.3    999.9   1.14   571.5    534.7   1.07   80.9
  cifar_resnet20       1     7.0      6.4   1.09     5.4      5.4   1.00    0.9
  cifar_resnet20       4    31.9     29.1   1.10    24.0     22.0   1.09    1.4
  cifar_resnet20      16    88.6     85.0   1.04    69.0     70.7   0.98    1.0

Repeated with `--batches 16`, it was 1.06 and 1.08 for resnet18, 1.05 and 1.11
for cifar_resnet20: of the latter's differences nothing is sure.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

# The package.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import attacks
from ferd_jax import models
from ferd_jax.attacks import slots
from ferd_jax.core import loops
from ferd_jax.core import parallel as parallels
from ferd_jax.models import forward

_SHAPE, _CLASSES, _EPS = (32, 32, 3), 10, 8 / 255
MODELS = ('resnet18', 'cifar_resnet20')
BATCHES = (1, 4, 16)  # 16 is what python -m ferd_jax.evaluate takes on CPU.


class Advance:
  """One step of APGD on all slots, with and without hoisting."""

  def __init__(self, name: str, batch: int):
    model = models.build(name, _CLASSES)
    parallel = parallels.create('jit')
    attack = attacks.AutoAttack(_EPS).members(_CLASSES)['apgd-ce']
    self._slots = slots.Slots(
        attack, functools.partial(forward.logits, model), parallel, batch)
    rng = np.random.default_rng(0)
    zeros = np.zeros(batch, np.int32)
    self._rows = parallel.shard(slots._Rows(
        x=rng.random((batch, *_SHAPE), np.float32), y=zeros, index=zeros,
        attempt=zeros, scores=np.zeros((batch, _CLASSES), np.float32)))
    self._variables = jax.jit(
        lambda key: models.init_variables(model, key, _SHAPE))(
            jax.random.key(0))
    self._key, self._eps = jax.random.key(1), np.float32(_EPS)
    self._state = self._slots._start(self._rows, self._key, self._eps)
    self._turned = self.turn()

  def turn(self) -> list[jax.Array]:
    """Returns the kernels turned around."""
    return jax.block_until_ready(self._slots._turn(
        self._variables, self._rows, self._state, self._key, self._eps, None,
        np.int32(0)))

  def hoisted(self) -> None:
    self._step(self._turned)

  def plain(self) -> None:
    self._step([])

  def _step(self, turned):
    self._state = jax.block_until_ready(self._slots._advance(
        self._variables, turned, self._rows, self._state, self._key, self._eps,
        None, np.int32(0)))


def measure(function, count: int) -> np.ndarray:
  """Returns milliseconds per call, by the clock and of the process."""
  clock, process = time.perf_counter(), time.process_time()
  for _ in range(count):
    function()
  return np.array([time.perf_counter() - clock,
                   time.process_time() - process]) / count * 1e3


def medians(functions, rounds: int, seconds: float) -> list[np.ndarray]:
  """Returns `measure` of each function, medians over rounds in turns."""
  counts = []
  for function in functions:
    measure(function, 1)  # It compiles.
    counts.append(max(1, round(seconds * 1e3 / measure(function, 1)[0])))
  found = [[measure(function, count)
            for function, count in zip(functions, counts, strict=True)]
           for _ in range(rounds)]
  return [np.array([statistics.median(times) for times in zip(*one,
                                                              strict=True)])
          for one in zip(*found, strict=True)]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--models', nargs='+', choices=MODELS, default=MODELS)
  parser.add_argument('--batches', type=int, nargs='+', default=BATCHES)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=0.3)
  args = parser.parse_args()
  if not loops.unrolled_here():
    sys.exit('error: Nothing is turned around but on CPU; set '
             'JAX_PLATFORMS=cpu.')
  print(f'JAX {jax.__version__}, {len(os.sched_getaffinity(0))} cores, '
        f'programs running on average: {os.getloadavg()[0]:.1f}')
  print(f'{"milliseconds":22}{"by the clock":>24}{"of the process":>24}\n'
        f'{"network":16}{"batch":>6}'
        + f'{"plain":>8}{"hoisted":>9}{"ratio":>7}' * 2
        + f'{"turn":>7}')
  for name in args.models:
    for batch in args.batches:
      advance = Advance(name, batch)
      plain, hoisted, turn = medians(
          (advance.plain, advance.hoisted, advance.turn), args.rounds,
          args.seconds)
      cells = ''.join(f'{before:8.1f}{after:9.1f}{before / after:7.2f}'
                      for before, after in zip(plain, hoisted, strict=True))
      print(f'{name:16}{batch:6}{cells}{turn[0]:7.1f}', flush=True)


if __name__ == '__main__':
  main()
