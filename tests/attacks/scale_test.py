"""A thousand classes and images of 224 x 224: memory, and several devices.

Bytes are those that XLA plans for what it compiles, beside arguments and
results.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import parallel

EPS = 4 / 255
SIDE, LARGE, CLASSES = 8, 224, 1000


def net(weights, x):
  """A convolution of stride 4, a mean, and a linear layer."""
  kernel, last = weights
  x = jax.lax.conv_general_dilated(
      x - 0.5, kernel.astype(x.dtype), (4, 4), 'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  x = jnp.tanh(x)
  return x.reshape(len(x), -1, x.shape[-1]).mean(1) @ last.astype(x.dtype)


def weights(classes):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(4, 4, 3, 16)).astype('f'),
          8 * rng.normal(size=(16, classes)).astype('f'))


def planned_bytes(attack, side, classes, batch=2):
  """Returns the bytes that a whole attack takes while it runs."""
  x = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
  y = jax.ShapeDtypeStruct((batch,), jnp.int32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  def run(weights, keys, x, y):
    return attack(functools.partial(net, weights), keys, x, y)
  compiled = jax.jit(run).lower(weights(classes), keys, x, y).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('attack', ['apgd-t', 'fab-t', 'fab'])
def test_memory_does_not_grow_with_targets(attack):
  common = dict(eps=EPS, num_iterations=2, unroll=False)
  if attack == 'fab':  # Which goes through all classes itself.
    few, many = (planned_bytes(attacks.FAB(**common), SIDE, classes)
                 for classes in (10, CLASSES))
    # There are more logits, of two images, and the last layer's gradient.
    assert many - few <= 40 * CLASSES * 4 * 2
    return
  kind = attacks.APGD if attack == 'apgd-t' else attacks.FAB
  few, many = (planned_bytes(kind(**common, num_targets=targets), SIDE, CLASSES)
               for targets in (2, CLASSES - 1))
  assert many == few


@pytest.mark.parametrize(('attack', 'images'), [
    (attacks.APGD(EPS, num_iterations=2, num_targets=9, unroll=False), 16),
    (attacks.FAB(EPS, num_iterations=2, num_targets=9, unroll=False), 20),
    (attacks.Square(EPS, num_queries=2, unroll=False), 10),
    (attacks.Square(1., 'L2', num_queries=2, unroll=False), 10)],
    ids=['apgd-t', 'fab-t', 'square', 'square-l2'])
def test_memory_at_224_pixels_is_that_of_some_images(attack, images):
  batch = 2
  image = LARGE * LARGE * 3 * 4
  assert planned_bytes(attack, LARGE, CLASSES, batch) <= images * batch * image


def test_a_thousand_classes_on_several_devices():
  """The same flags as on one."""
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(12, SIDE, SIDE, 3)).astype('f')
  model = jax.tree_util.Partial(net, weights(CLASSES))
  y = np.array(jnp.argmax(model(jnp.asarray(x)), -1))
  eps = 0.7 / 255
  common = dict(eps=eps, keep='first')
  member = attacks.APGD(**common, loss=losses.targeted_dlr, num_iterations=3,
                        num_targets=3)
  autoattack = attacks.AutoAttack(eps, version='custom',
                                  attacks=(('apgd-t', member),))
  def run(where):
    return autoattack(model, jax.random.key(0), x, y, batch_size=4,
                      individual=True, progress=False, parallel=where)
  alone, found = map(run, (parallel.create('jit'), parallel.create(
      'shard_map', tuple(jax.devices()[:4]))))
  assert 0 < alone.robust.sum() < len(x)
  for name in alone.flags:
    np.testing.assert_array_equal(found.flags[name], alone.flags[name])
  np.testing.assert_allclose(found.images, alone.images, atol=1e-6)
