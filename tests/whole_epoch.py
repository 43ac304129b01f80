"""An epoch of both phases on some devices, and all that it computes."""

import as_if_trained
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from ferd_jax import train
from ferd_jax.models import frozen as frozens
from ferd_jax.synthesis import pool as pools


def _cast(tree, dtype):
  def cast(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.asarray(leaf, dtype)
    return leaf
  return jax.tree.map(cast, tree)


def epoch(mode, num_devices, dtype, num_steps):
  """Returns all that an epoch of both phases computes, on the host."""
  config = tiny.config(parallel=mode, warmup_epochs=0)
  config.synthesis.steps = config.distill.steps = num_steps
  assert config.sampler.name == 'margin_softmax'
  # The paper's. Adam divides a gradient by its size: where that is rounding,
  # the first step is too, times the learning rate.
  config.synthesis.generator_lr = 2e-3
  # Noise large enough for some of the channels to be robust.
  config.synthesis.bottleneck.mask = 'global'
  config.synthesis.bottleneck.learning_rate = 6.
  config.augment.flip = True
  run = tiny.build(config, num_devices)
  method, place = run.method, run.parallel.replicate
  state = place(_cast(run.initial_state(config.seed), dtype))
  # Latents of a freshly initialised net hardly vary.
  teacher = place(_cast(as_if_trained.random_variables(
      run.teacher.model, method.image_shape, seed=1), dtype))
  # Images of an epoch before, so that the order of drawing matters.
  rng, size = np.random.default_rng(0), method.synthesis.batch_size
  pool = pools.Pool(np.zeros((3 * size, *method.image_shape), dtype),
                    np.zeros(3 * size, np.int32))
  pool.append(rng.uniform(size=(size, *method.image_shape)).astype(dtype),
              rng.integers(0, method.num_classes, size))
  phases, metrics, steps = [], [], run.steps

  def end(kept, phase):
    phases.append(phase)
    return steps.end(kept, phase)
  done = train.epoch(
      method, steps._replace(end=end), state, {frozens.ROBUST: teacher}, pool,
      lambda _, values: metrics.append(values))
  phase, = phases
  means = {name: value for name, value in done.metrics.items()
           if not name.endswith(('seconds', 'ms_per_step'))}
  return jax.tree.map(np.asarray, {
      'generator': phase.generator,
      'latents': run.parallel.gather(phase.examples.latents),
      'view': run.parallel.gather(phase.examples.view),
      'images': done.images, 'labels': done.labels, 'pool': vars(pool),
      'metrics': metrics, 'means': means,
      'state': done.state.replace(
          key=jax.random.key_data(done.state.key))})
