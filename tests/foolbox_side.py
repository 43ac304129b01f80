"""Foolbox's minimum-norm attacks on a JAX function, with what they query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BATCH, SHAPE, NUM_CLASSES, STEPS = 8, (3, 3, 2), 4, 30
_RNG = np.random.default_rng(1)
FIRST = 0.6 * _RNG.normal(size=(18, 8))
SECOND = _RNG.normal(size=(8, NUM_CLASSES))
X = np.clip(_RNG.uniform(-.2, 1.2, (BATCH, *SHAPE)), 0, 1)


def net(x, tanh=jnp.tanh):
  first, second = (w.astype(x.dtype) for w in (FIRST, SECOND))
  return tanh((x - 0.5).reshape(len(x), -1) @ first) @ second


Y = net(X, np.tanh).argmax(-1)
Y[0] = (Y[0] + 1) % NUM_CLASSES  # Wrong as it is.


def trace(attack, x, y, targets=None):
  """Returns what is queried `[steps, B, ...]`, and the images."""
  problem, _ = attack.check(net, jax.random.key(0), x, y, targets)
  def step(state, _):
    after = attack.step(net, problem, state)
    return after, state.x
  def run():
    last, queried = jax.lax.scan(step, attack.init(problem),
                                 length=attack.num_steps)
    return queried, attack.images(problem, last)
  return map(np.asarray, jax.jit(run)())


def run(name, net, x, y, targets=None, project=None, **settings):
  """Returns the queried points `[steps, B, ...]` and the result.

  Skips the test where foolbox is not installed.

  Args:
    name: of a class of `foolbox.attacks`.
    net: images -> logits, without `jit`.
    x: images.
    y: labels.
    targets: classes, or None.
    project: (delta, radius) -> delta, in place of the attack's own.
    **settings: of the attack.
  """
  foolbox = pytest.importorskip('foolbox')
  eagerpy = pytest.importorskip('eagerpy')
  queried = []
  def recorded(images):
    jax.debug.callback(lambda value: queried.append(np.array(value)), images)
    return net(images)
  attack = getattr(foolbox.attacks, name)(**settings)
  if project is not None:
    attack.project = lambda x, x0, epsilon: x0 + eagerpy.astensor(
        project((x - x0).raw, epsilon.raw))
  criterion = (foolbox.Misclassification(jnp.asarray(y)) if targets is None
               else foolbox.TargetedMisclassification(jnp.asarray(targets)))
  with jax.numpy_rank_promotion('allow'):
    found = attack.run(foolbox.JAXModel(recorded, (0, 1)), jnp.asarray(x),
                       criterion)
  jax.effects_barrier()
  return np.stack(queried), np.asarray(found)
