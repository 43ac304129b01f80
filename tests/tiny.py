"""A whole experiment of nets that compile in a second or two."""

import functools
import json

from flax import linen as nn
import jax
from ml_collections import config_dict

from configs import digits
from ferd_jax import models
from ferd_jax.core import reporting
from ferd_jax.models import layers
from ferd_jax.run import checkpoints as checkpointing
from ferd_jax.run import experiment as experiments
from ferd_jax.run import state as states
from ferd_jax.run import work_directory


class TwoLayers(models.StagedModel):
  """A classifier of two convolutions."""

  @property
  def stages(self):
    return ('conv1', 'conv2', 'head')

  @property
  def default_tap(self):
    return 'conv2'

  def run_stage(self, stage, x, train):
    if stage == 'head':
      return layers.Dense(self.num_classes, name=stage)(layers.global_mean(x))
    x = layers.Conv(4, strides=2, dtype=self.dtype, name=stage)(x)
    norm = layers.BatchNorm(self.axis_name, dtype=self.dtype,
                            name=f'{stage}_bn')
    return nn.relu(norm(x, train=train))


models.register('tiny', TwoLayers)


def before() -> None:
  """For `warm.py`, which imports this: the network has its name."""


# Of whatever synthesis.
_SMALL = {
    'generator_steps': 1, 'steps': 1, 'batch_size': 8, 'nz': 4, 'width': 4,
    'bank_size': 12, 'bank_draws': 6, 'head_features': 3,
    'student_steps_per_round': 1, 'w_l2': 0.1, 'w_js': 0.5,
    # What is drawn anew is drawn in the second epoch.
    'reset_epoch': 2, 'reset_every': 1}


def shrink(synthesis):
  """Makes a synthesis' group of settings compile and run fast."""
  for name, value in _SMALL.items():
    if name in synthesis:
      synthesis[name] = value


def config(**changes):
  """Returns the settings of a run of seconds, with changes by dotted name."""
  settings = digits.get_config('smoke')
  for network in (settings.teacher, settings.student):
    network.arch, network.width, network.shortcut = 'tiny', None, None
  settings.eval.attacks = ('clean',)
  settings.eval.every = settings.log.samples_every = 0
  settings.eval.curve_examples = 8
  settings.update_from_flattened_dict(changes)
  return settings


def build(settings, devices=1, **networks):
  """Returns the experiment of a config; nothing of it is compiled yet.

  Args:
    settings: the config.
    devices: how many.
    **networks: of `experiment.build`.
  """
  return experiments.build(settings, tuple(jax.devices()[:devices]),
                           **networks)


def shared(settings, devices=1):
  """Returns the experiment of a config, the same one for the same settings.

  What is compiled for one test is compiled for the next, too. Not for tests
  that patch what is traced.
  """
  if settings.teacher.path != 'random':  # What is in the file may change.
    return build(settings, devices)
  return _shared(config_dict.FrozenConfigDict(settings), devices)


@functools.lru_cache(maxsize=8)
def _shared(settings, devices):
  return build(config_dict.ConfigDict(settings), devices)


def claim(settings, workdir, devices=1, **networks):
  """Returns the experiment, a shared one, after claiming its work directory.
  """
  experiment = (build(settings, devices, **networks) if networks else
                shared(settings, devices))
  work_directory.claim(workdir, experiment.identity)
  return experiment


def save(experiment, workdir, epoch, state, pool, new_images):
  """Saves an epoch as a run does."""
  with checkpointing.Checkpoints(workdir, experiment.method,
                                 identity=experiment.identity) as checkpoints:
    checkpoints.save(epoch, states.gathered(experiment.method, state), pool,
                     new_images,
                     [json.dumps({'epoch': epoch})])


def resume(experiment, workdir, pool, new_images):
  """Returns the state that a run goes on from, and fills the pool."""
  with checkpointing.Checkpoints(workdir, experiment.method) as checkpoints:
    return checkpoints.resume(experiment.initial_state(0), pool,
                              new_images, reporting.SILENT).state
