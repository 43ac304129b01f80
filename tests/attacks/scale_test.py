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


class Planned(parallel.Parallel):
  """Compiles what it is asked to, and runs nothing: found is 0, or True.

  Its bytes are noted in `planned`.
  """
  planned = []

  def compile(self, step, in_specs, out_specs, *, donate=()):
    step, known = jax.jit(step), {}
    def call(*args):
      kind = (jax.tree.structure(args), *(
          (np.shape(leaf), jnp.result_type(leaf))
          for leaf in jax.tree.leaves(args)))
      if kind not in known:
        lowered = step.lower(*args)
        self.planned.append(
            lowered.compile().memory_analysis().temp_size_in_bytes)
        known[kind] = lowered.out_info
      # Bools say that all is fine.
      return jax.tree.map(
          lambda leaf: jnp.full(leaf.shape, leaf.dtype == bool, leaf.dtype),
          known[kind])
    return call


def noisy_net(weights, x, key):
  return net(weights, x + 0.1 * jax.random.normal(key, x.shape, x.dtype))


def distances(norm, attacks_, model, x, y, **options):
  return attacks.MinimumNorm(norm, attacks_)(
      functools.partial(net, model), jax.random.key(0), x, y, progress=False,
      **options)


def randomised(norm, model, x, y, **options):
  return attacks.Randomised(
      EPS, norm, ('apgd-ce', 'square'), eot=2, num_iterations=4, num_queries=3,
      num_draws=3)(
          functools.partial(noisy_net, model), jax.random.key(0), x, y,
          progress=False, **options)


def diagnosed(norm, model, x, y, **options):
  return attacks.diagnose(
      functools.partial(net, model), jax.random.key(0), x, y, EPS, norm=norm,
      num_queries=2, num_draws=2, **options)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize(('call', 'images'), [
    (functools.partial(distances, 'L0', ('fmn',)), 12),
    pytest.param(functools.partial(distances, 'L1', ('fmn', 'fab-t')), 24,
                 marks=pytest.mark.slow),
    pytest.param(functools.partial(distances, 'L2', ('fmn', 'ddn', 'fab-t')),
                 24, marks=pytest.mark.slow),
    pytest.param(functools.partial(distances, 'Linf', ('fmn', 'fab-t')), 24,
                 marks=pytest.mark.slow),
    (functools.partial(randomised, 'Linf'), 16),
    pytest.param(functools.partial(randomised, 'L1'), 16,
                 marks=pytest.mark.slow),
    (functools.partial(diagnosed, 'Linf'), 16),
    pytest.param(functools.partial(diagnosed, 'L1'), 16,
                 marks=pytest.mark.slow)],
    ids=['fmn-l0', 'l1', 'l2', 'linf', 'randomised', 'randomised-l1',
         'diagnose', 'diagnose-l1'])
def test_what_drives_attacks_takes_the_memory_of_some_images(call, images):
  """At 224 pixels and 1,000 classes, of every program there is, by batch."""
  batch, number = 2, 5
  x = np.random.default_rng(0).uniform(
      size=(number, LARGE, LARGE, 3)).astype('f')
  Planned.planned.clear()
  call(weights(CLASSES), x, np.zeros(number, int), batch_size=batch,
       parallel=Planned('jit', tuple(jax.devices()[:1])))
  assert len(Planned.planned) >= 5
  image = LARGE * LARGE * 3 * 4
  assert max(Planned.planned) <= images * batch * image


def several():
  return parallel.create('shard_map', tuple(jax.devices()[:4]))


@functools.cache
def small():
  """Returns weights, images and labels."""
  x = np.random.default_rng(1).uniform(size=(12, SIDE, SIDE, 3)).astype('f')
  model = weights(CLASSES)
  return model, x, np.array(jnp.argmax(net(model, jnp.asarray(x)), -1))


def test_distances_on_several_devices():
  member = attacks.FMN(norm='Linf', num_steps=6)
  alone, found = (
      distances('Linf', (('fmn', member),), *small(), batch_size=4,
                parallel=where) for where in (parallel.create('jit'),
                                              several()))
  assert alone.success.any()
  np.testing.assert_array_equal(found.success, alone.success)
  np.testing.assert_allclose(found.distances, alone.distances, rtol=1e-4)


def test_draws_on_several_devices():
  alone, found = (randomised('Linf', *small(), batch_size=4, parallel=where)
                  for where in (parallel.create('jit'), several()))
  assert 0 < alone.robust_accuracy < 1
  np.testing.assert_array_equal(found.correct, alone.correct)
  np.testing.assert_array_equal(found.chosen, alone.chosen)
  np.testing.assert_allclose(found.images, alone.images, atol=1e-6)


def test_checks_on_several_devices():
  alone, found = (diagnosed('Linf', *small(), batch_size=4, parallel=where)
                  for where in (parallel.create('jit'), several()))
  assert found.accuracies == alone.accuracies
  assert [check.verdict for check in found.checks] == [
      check.verdict for check in alone.checks]
  for one, other in zip(found.checks, alone.checks, strict=True):
    assert one.value == pytest.approx(other.value, abs=1e-5), one.name


def test_a_thousand_classes_on_several_devices():
  """The same flags as on one."""
  model, x, y = small()
  model = jax.tree_util.Partial(net, model)
  eps = 0.7 / 255
  common = dict(eps=eps, keep='first')
  member = attacks.APGD(**common, loss=losses.targeted_dlr, num_iterations=3,
                        num_targets=3)
  autoattack = attacks.AutoAttack(eps, version='custom',
                                  attacks=(('apgd-t', member),))
  def run(where):
    return autoattack(model, jax.random.key(0), x, y, batch_size=4,
                      individual=True, progress=False, parallel=where)
  alone, found = map(run, (parallel.create('jit'), several()))
  assert 0 < alone.robust.sum() < len(x)
  for name in alone.flags:
    np.testing.assert_array_equal(found.flags[name], alone.flags[name])
  np.testing.assert_allclose(found.images, alone.images, atol=1e-6)
