"""Every program of a run lowers for GPUs and TPUs, as a CPU can tell.

A run goes through all of its compiled functions. In place of compiling and
running them, each is lowered for the platforms as it would be there, with its
loops rolled, and returns what has the right shapes: zeros, and True.
"""

import functools

import jax
from jax import export
import jax.numpy as jnp
import noting
import numpy as np
import pytest

from configs import cifar10
from configs import cifar100
from configs import tiny_imagenet
from ferd_jax import attacks
from ferd_jax import train
from ferd_jax.attacks import ensemble
from ferd_jax.core import parallel
from ferd_jax.evaluation import robustness
from ferd_jax.models import frozen as frozens
from ferd_jax.run import experiment as experiments
from ferd_jax.synthesis import pool as pools

_PLATFORMS = ('cuda', 'tpu')
_CONFIGS = {
    'cifar10': (cifar10, ''), 'mobilenet_v2': (cifar10, 'mobilenet_v2'),
    'cifar100': (cifar100, ''), 'tiny_imagenet': (tiny_imagenet, '')}


class Lowered:
  """Stands in for `Parallel.compile`.

  Attributes:
    modules: StableHLO of every function, by its name.
  """

  def __init__(self, compile_):
    self._compile, self.modules, self._shapes = compile_, {}, {}

  def compile(self, mapping, step, in_specs, out_specs, *, donate=()):
    compiled = self._compile(mapping, step, in_specs, out_specs, donate=donate)
    name = _name(step)

    def call(*args):
      kind = (compiled, jax.tree.structure(args), tuple(
          (np.shape(leaf), jnp.result_type(leaf))
          for leaf in jax.tree.leaves(args)))
      if kind not in self._shapes:
        exported = export.export(compiled, platforms=_PLATFORMS)(*args)
        assert exported.platforms == _PLATFORMS
        self.modules.setdefault(name, []).append(exported.mlir_module())
        self._shapes[kind] = jax.eval_shape(compiled, *args)
      return jax.tree.map(_made, self._shapes[kind])
    return call


def _name(step):
  """Returns the name of what a function calls in the end."""
  while True:
    if isinstance(step, functools.partial):
      step = step.func
    elif hasattr(step, '__wrapped__'):
      step = step.__wrapped__
    elif step.__name__ == 'on_shard':  # Of an attack.
      step, = (cell.cell_contents for cell in step.__closure__)
    else:
      return f'{step.__module__.rpartition(".")[2]}.{step.__qualname__}'


def _made(shape):
  """Returns zeros, or True, of a shape and type."""
  if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  return np.full(shape.shape, shape.dtype == bool, shape.dtype)


@pytest.fixture
def lowered(monkeypatch):
  """Yields what is lowered instead of compiled, as on an accelerator."""
  found = Lowered(parallel.Parallel.compile)
  monkeypatch.setattr(
      parallel.Parallel, 'compile',
      lambda mapping, *args, **kwargs: found.compile(mapping, *args, **kwargs))
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  # Models share what is compiled for them: nobody else shall have these.
  ensemble._shared.cache_clear()
  yield found
  ensemble._shared.cache_clear()


def _config(name, small, **changes):
  """Returns a config of the paper's, on noise with random weights.

  Args:
    name: in `_CONFIGS`.
    small: whether it has small networks and batches, of the same kinds.
    **changes: to it.
  """
  module, variant = _CONFIGS[name]
  config = module.get_config(
      ','.join(filter(None, [variant, 'smoke' if small else ''])))
  config.teacher.path, config.teacher.robustbench = 'random', None
  config.data.noise_examples = 24
  config.warmup_epochs = 0
  config.synthesis.steps = config.distill.steps = 1
  config.synthesis.bottleneck.steps = 50
  config.eval.select = 'synthetic_pgd'
  config.update_from_flattened_dict(changes)
  return config


def _epoch(run):
  """Goes through an epoch of a run, and a point of its learning curve."""
  method = run.method
  state, made = run.initial_state(0), method.synthesis.batch_size
  pool = pools.Pool.empty(made, method.image_shape)
  teachers = run.place_teachers()
  done = train.epoch(method, run.steps, state, teachers, pool)
  run.learning_curve.point(
      done.state.student.reported, teachers[frozens.ROBUST], pool,
      jax.random.key(0), noting.Reporter())


_WHOLE = 'compiled.CompiledAttack._whole.<locals>.whole'
_STEPS = {
    'state._initial', 'ferd.Ferd.begin', 'ferd.Ferd.step',
    'method.compile_steps.<locals>.labelled', 'method._judge',
    'trained_latents.TrainedLatents.end', 'distill.step', 'method._measure',
    'method._end_epoch', _WHOLE, 'robustness.correct_images',
    'robustness.predictor.<locals>.predictions'}
_SLOTS = [f'slots.Slots.__init__.<locals>.{name}' for name in (
    'start', 'admit', 'advance_with', 'look', 'images')]


def _slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize('name, small, mode, precision', [
    ('cifar10', True, 'shard_map', 'bfloat16'),
    *(_slow(name, small, 'jit', precision) for name in _CONFIGS
      for small in (True, False) for precision in ('float32', 'bfloat16'))])
def test_training_lowers(lowered, name, small, mode, precision):
  run = experiments.build(
      _config(name, small, parallel=mode, precision=precision),
      tuple(jax.devices()[:1 if mode == 'jit' else 4]))
  _epoch(run)
  assert set(lowered.modules) >= _STEPS
  # Loops are rolled, which for the CPU of this test they are not.
  for step in ('ferd.Ferd.step', 'distill.step', _WHOLE):
    assert 'stablehlo.while' in lowered.modules[step][0], step
  has_bfloat16 = 'bf16' in lowered.modules['distill.step'][0]
  assert has_bfloat16 == (precision == 'bfloat16')
  if mode == 'shard_map':
    assert 'stablehlo.all_reduce' in lowered.modules['distill.step'][0]


@pytest.mark.filterwarnings('ignore::UserWarning')  # Of zeros.
@pytest.mark.parametrize('name, versions', [
    ('cifar10', ('standard',)), _slow('cifar10', ('plus', 'torchattacks_compat')
                                      ), _slow('cifar100', ('standard',)),
    _slow('tiny_imagenet', ('standard',))])
def test_evaluations_lower(lowered, name, versions):
  run = experiments.build(_config(name, True), tuple(jax.devices()[:1]))
  model, variables = run.models(None)['teacher']
  images = run.examples.images
  labels, key = np.zeros(len(images), int), jax.random.key(0)
  names = ('clean', *attacks.PRESETS)
  evaluate = robustness.evaluator(model, names, 8 / 255, 10, 16, run.parallel)
  assert list(evaluate(variables, images, labels, key)) == list(names)
  assert len(lowered.modules[_WHOLE]) == len(attacks.PRESETS)
  for version in versions:
    attack = attacks.AutoAttack(8 / 255, 'Linf', version)
    before = len(lowered.modules.get(_SLOTS[0], ()))
    attack(jax.tree_util.Partial(evaluate.apply_fn, variables), key,
           images / np.float32(255), labels, batch_size=16, individual=True,
           parallel=run.parallel, progress=False)
    # Each of its attacks has all images, more than there are slots.
    members = attack.members(run.method.num_classes)
    for function in _SLOTS:
      found = len(lowered.modules[function]) - before
      assert found >= len(members), (version, function)
