"""Tests of ferd_jax.attacks.slots, with an attack whose outcome is known."""

import collections
import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.attacks import attack
from ferd_jax.attacks import slots
from ferd_jax.core import loops
from ferd_jax.core import parallel

NUM_IMAGES, SHAPE, NUM_CLASSES = 37, (2, 3), 9
NUM_STEPS, NUM_RUNS, EPS = 7, 3, 0.25
X = np.random.default_rng(0).uniform(size=(NUM_IMAGES, *SHAPE)).astype('f')
# An image is fooled after as many steps as its label says, if ever.
Y = np.random.default_rng(1).integers(1, NUM_CLASSES, NUM_IMAGES).astype('i')
CLEAN = np.random.default_rng(2).normal(
    size=(NUM_IMAGES, NUM_CLASSES)).astype('f')
# They and not the logits order the target classes.
SCORES = np.random.default_rng(3).normal(size=CLEAN.shape).astype('f')
VARIABLES = {'scale': np.float32(2)}


class State(NamedTuple):
  iteration: jax.Array
  noise: jax.Array
  seen: jax.Array  # [B, steps], what the model said
  fooled: jax.Array
  finite: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy(attack.Attack):
  """Fools run r of an image with label l after l + r steps, if it has them."""
  num_steps: int = NUM_STEPS
  num_restarts: int = NUM_RUNS
  num_targets: int = 0
  stochastic: bool = False

  def init(self, problem):
    false = jnp.zeros(problem.y.shape, bool)
    return State(jnp.zeros(problem.y.shape, jnp.int32),
                 noise_of(problem.keys).reshape(-1, 2, 1),
                 jnp.zeros((len(problem.y), self.num_steps)), false, ~false)

  def step(self, logits_fn, problem, state, key=None):
    logits = attack.evaluate(logits_fn, problem.x + state.noise, key)
    now = jnp.arange(self.num_steps)[None] == state.iteration[:, None]
    iteration = state.iteration + 1
    return State(
        iteration, state.noise,
        jnp.where(now, logits[:, :1] + state.iteration[:, None], state.seen),
        iteration >= problem.y + problem.restart,
        state.finite & jnp.isfinite(logits).all(-1))

  def done(self, state):
    return state.fooled | (state.iteration >= self.num_steps)

  def images(self, problem, state):
    """Returns something of everything that there is of an image."""
    found = problem.x + state.noise + state.seen.sum(-1)[:, None, None]
    found += problem.eps[:, None, None] + 10 * problem.restart[:, None, None]
    if problem.targets is not None:
      found += 100 * problem.targets[:, None, None]
    return found


def noise_of(keys):
  """Returns what is cheap to compile, `[..., 2]` in [0, 1)."""
  return (jax.random.key_data(keys) % 1024).astype(jnp.float32) / 1024


def apply_fn(variables, images):
  mean = images.mean(axis=(1, 2)) * variables['scale']
  return jnp.tile(mean[:, None], NUM_CLASSES)


def mapping(mode='jit', num_devices=1):
  return parallel.create(mode, tuple(jax.devices()[:num_devices]))


@functools.cache
def toy_slots(batch_size=4, mode='jit', num_devices=1):
  return slots.Slots(Toy(), apply_fn, mapping(mode, num_devices), batch_size)


def outcomes(engine, tasks, x=X, y=Y, repeat=False, ticks=None):
  """Returns the outcomes by (index, run), which must be different.

  Args:
    engine: slots of `Toy`.
    tasks: (index, run) pairs.
    x: images.
    y: labels.
    repeat: whether what was not fooled gets another run, while it goes on.
    ticks: a list that gets the steps taken.
  """
  tasks, found = collections.deque(tasks), {}
  run = engine.run(
      engine._parallel.replicate(VARIABLES), jax.random.key(3), EPS, x, y,
      CLEAN, SCORES, tasks, ([] if ticks is None else ticks).append)
  for outcome in run:
    assert (outcome.index, outcome.attempt) not in found
    assert type(outcome.index) is int and type(outcome.fooled) is bool
    found[outcome.index, outcome.attempt] = outcome
    if repeat and not outcome.fooled and outcome.attempt + 1 < NUM_RUNS:
      tasks.append((outcome.index, outcome.attempt + 1))
  assert not tasks
  return found


def expected_image(index, run, num_targets=0):
  """Returns what `Toy.images` says, from NumPy."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), index), run)
  noise = np.asarray(noise_of(key)).reshape(2, 1)
  restart = run // max(num_targets, 1)
  steps = Y[index] + restart
  seen = steps * 2 * (X[index] + noise).mean() + steps * (steps - 1) / 2
  image = X[index] + noise + seen + EPS + 10 * restart
  if num_targets:
    image += 100 * np.argsort(SCORES[index])[-2 - run % num_targets]
  return image


def assert_right(found, tasks, num_targets=0):
  assert set(found) == set(tasks)
  for (index, run), outcome in found.items():
    restart = run // max(num_targets, 1)
    assert outcome.fooled == (Y[index] + restart <= NUM_STEPS)
    assert outcome.finite and not outcome.zero_gradient
    if outcome.fooled:
      np.testing.assert_allclose(
          outcome.image, expected_image(index, run, num_targets), rtol=1e-5)
      assert outcome.image.base is None  # Else it would keep the whole batch.
    else:
      assert outcome.image is None


ALL = [(index, 0) for index in range(NUM_IMAGES)]


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_every_task_has_its_outcome_whatever_the_batch_size(batch_size):
  engine = toy_slots(batch_size)
  assert_right(outcomes(engine, ALL), ALL)
  # In any order, a few, one, none; a slot is used again and again.
  order = np.random.default_rng(0).permutation(NUM_IMAGES)
  tasks = [(int(i), int(i) % NUM_RUNS) for i in order]
  assert_right(outcomes(engine, tasks), tasks)
  for some in (tasks[:2], tasks[:1], []):
    assert_right(outcomes(engine, some), some)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
def test_several_devices(mode):
  engine = toy_slots(8, mode, 4)
  assert_right(outcomes(engine, ALL), ALL)


def test_loops_of_accelerators(monkeypatch):
  monkeypatch.setattr(loops, 'unrolled_here', lambda: False)
  engine = slots.Slots(Toy(), apply_fn, mapping(), 16)
  ticks = []
  assert_right(outcomes(engine, ALL, ticks=ticks), ALL)
  # A look every 10 steps, or as many as there are.
  assert set(np.array(ticks) % NUM_STEPS) == {0}


def test_tasks_may_be_appended_meanwhile():
  engine = toy_slots()
  found = outcomes(engine, ALL, repeat=True)
  fooled = Y + np.arange(NUM_RUNS)[:, None] <= NUM_STEPS
  tasks = [(i, run) for run in range(NUM_RUNS) for i in range(NUM_IMAGES)
           if not fooled[:run, i].any()]
  assert len(tasks) > NUM_IMAGES  # Some have had another run.
  assert_right(found, tasks)


def test_runs_go_through_targets_then_restarts():
  toy = Toy(num_targets=2)
  tasks = [(i, run) for i in range(5) for run in range(toy.num_attempts)]
  engine = slots.Slots(toy, apply_fn, mapping(), 4)
  assert_right(outcomes(engine, tasks), tasks, num_targets=2)


def test_each_size_compiles_once():
  traced = []
  def counting(variables, images):
    traced.append(len(images))
    return apply_fn(variables, images)
  engine = slots.Slots(Toy(), counting, mapping(), 16)
  y = np.ones_like(Y)
  y[-1], y[-4:-1] = 7, 4
  for _ in range(2):
    outcomes(engine, ALL, y=y)
  # The last 5 do not need 16 slots, and the last one not 5. What kernels are to
  # be turned around is seen from the first step.
  assert traced == [16, 16, 5, 1]


@pytest.mark.parametrize(('batch_size', 'devices'), [
    (256, 1), (256, 8), (128, 1), (16, 4), (100, 1), (5, 1), (1, 1), (24, 8)])
@pytest.mark.parametrize('fine', [False, True])
def test_sizes(batch_size, devices, fine):
  sizes = slots._sizes(batch_size, devices, fine)
  assert sizes == sorted(set(sizes)) and sizes[-1] == batch_size
  assert all(size % devices == 0 and size > 0 for size in sizes)
  # At most half of the slots stay empty, on a CPU an eighth.
  assert all(larger <= 2 * size for size, larger in itertools.pairwise(sizes))
  if fine:
    assert sizes[0] == devices
    steps = np.diff(sizes, prepend=0)
    assert steps.max() <= devices * max(1, -(-batch_size // devices // 8))
  else:
    assert sizes[0] == devices * -(-batch_size // devices // 16)
    assert len(sizes) <= 5


def test_ticks_count_steps_of_images():
  engine = toy_slots()
  ticks = []
  outcomes(engine, [(0, 0)], ticks=ticks)
  needed = min(Y[0], NUM_STEPS)
  assert ticks == [3] * -(-needed // 3)  # A look every 3 steps.
  ticks = []
  outcomes(engine, ALL, ticks=ticks)
  needed = np.minimum(Y, NUM_STEPS)
  assert needed.sum() <= sum(ticks) <= (needed + 2).sum()


def test_logits_that_are_not_finite():
  x = X.copy()
  x[[2, 30]] = np.inf
  found = outcomes(toy_slots(), ALL, x=x)
  assert {i for (i, _), o in found.items() if not o.finite} == {2, 30}


def test_stochastic_models_get_another_key_every_step():
  def noisy(variables, images, key):
    del variables
    return jax.random.uniform(key, (len(images), NUM_CLASSES))
  class Seen(Toy):
    def images(self, problem, state):
      return state.seen - jnp.arange(self.num_steps)[None]
  engine = slots.Slots(Seen(stochastic=True), noisy, mapping(), 4)
  found = outcomes(engine, ALL[:12])
  longest = max((o for o in found.values() if o.fooled),
                key=lambda outcome: Y[outcome.index])
  steps = Y[longest.index]
  assert steps > 3
  assert len(np.unique(longest.image[:steps])) == steps


def test_images_are_left_alone():
  before = X.copy(), Y.copy(), CLEAN.copy(), SCORES.copy()
  outcomes(toy_slots(), ALL)
  for now, then in zip((X, Y, CLEAN, SCORES), before, strict=True):
    np.testing.assert_array_equal(now, then)
