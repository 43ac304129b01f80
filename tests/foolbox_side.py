"""Foolbox's minimum-norm attacks on a JAX function, with what they query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


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
