"""Tests of ferd_jax.attacks.apgd, also against the official PyTorch code."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import apgd
from ferd_jax.attacks import apgd_steps
from ferd_jax.attacks import attack as attack_lib
from ferd_jax.attacks import geometry
from ferd_jax.core import loops
from ferd_jax.core import parallel

BATCH, SHAPE, NUM_CLASSES = 32, (4, 4, 3), 10
EPS = {'Linf': 0.03, 'L2': 0.2, 'L1': 0.6}
WIDE = {'Linf': 0.06, 'L2': 0.4}  # Most images are fooled.
ORDERS = {'Linf': np.inf, 'L2': 2, 'L1': 1}
LOSSES = {'ce': losses.cross_entropy, 'dlr': losses.dlr,
          'dlr-targeted': losses.targeted_dlr}
every_norm = pytest.mark.parametrize('norm', [
    'Linf', 'L1', pytest.param('L2', marks=pytest.mark.slow)])
both_norms = pytest.mark.parametrize('norm', ['Linf', 'L2'])  # of momentum


pytestmark = pytest.mark.usefixtures('float64')


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape)


class Net:
  """A two-layer tanh net on images of any shape, in JAX and PyTorch."""

  def __init__(self, size, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    # Some classes lie higher and some are steeper, so that the second highest
    # is not always the one to fall into.
    steep = np.exp(0.7 * rng.normal(size=num_classes))
    self.weights = (3 * rng.normal(size=(size, 16)) / np.sqrt(size),
                    steep * rng.normal(size=(16, num_classes)),
                    2 * rng.normal(size=(1, num_classes)))

  def __call__(self, x, tanh=jnp.tanh):
    first, second, last = (array.astype(x.dtype) for array in self.weights)
    return tanh((x - 0.5).reshape(len(x), -1) @ first) @ second + last

  def logits(self, x):
    return self(np.asarray(x), np.tanh)

  def torch(self, x):
    first, second, last = (x.new_tensor(array) for array in self.weights)
    return ((x - 0.5).flatten(1) @ first).tanh() @ second + last


NET = Net(48, NUM_CLASSES, seed=12)
IMAGES = np.clip(draw(BATCH, *SHAPE) * 1.4 - 0.2, 0, 1)
LOGITS = NET.logits(IMAGES)
LABELS = np.argmax(LOGITS, axis=-1)
LABELS[:2] = (LABELS[:2] + 1) % NUM_CLASSES  # Wrong as they are.
TARGETS = np.argsort(LOGITS, axis=-1)[:, -3]


def start_of(x, eps, norm, seed=5):
  """Returns a start near the surface of the ball; some pixels leave [0, 1]."""
  noise = np.random.default_rng(seed).uniform(-1, 1, x.shape)
  if norm != 'Linf':
    noise /= size(noise, norm)[(slice(None), *[None] * (x.ndim - 1))]
  return (x + 0.99 * eps * noise).astype(x.dtype)


def problem_of(x, y, eps, targets=None, x_init=None, seed=0):
  return attack_lib.Problem(
      jnp.asarray(x), jnp.asarray(y),
      None if targets is None else jnp.asarray(targets),
      jnp.asarray(np.broadcast_to(eps, len(x)), x.dtype),
      jax.random.split(jax.random.key(seed), len(x)),
      None if x_init is None else jnp.asarray(x_init))


@functools.partial(jax.jit, static_argnums=0)
def init(attack, problem):
  return attack.init(problem)


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(attack, net, problem, state):
  return attack.step(net, problem, state)


def trace(attack, net, problem):
  """Returns the states `[steps + 1, B, ...]`; queried are all `x[:-1]`.

  Targets are those that the attack chooses: any misclassification counts.
  """
  if problem.targets is not None:
    attack = dataclasses.replace(attack, num_targets=1)
  states = [init(attack, problem)]
  for _ in range(attack.num_steps):
    states.append(step(attack, net, problem, states[-1]))
  return jax.tree.map(lambda *leaves: np.stack(leaves),
                      *jax.device_get(states))


def last(states):
  return jax.tree.map(lambda leaf: leaf[-1], states)


# A call as one compiled program; the loops are rolled, to compile fast.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(attack, net, *arguments, **options):
  return attack.run(net, *arguments, **options)


def run(attack, net, *arguments, **options):
  attack = dataclasses.replace(attack, unroll=False)
  return jax.device_get(_run(attack, net, *arguments, **options))


def size(delta, norm):
  flat = np.reshape(delta, (len(delta), -1))
  return np.linalg.norm(flat, ORDERS[norm], axis=1)


def assert_equal_results(got, expected):
  for left, right in zip(got, expected, strict=True):
    np.testing.assert_allclose(left, right, atol=1e-12)


# The schedule and the controller.


@pytest.mark.parametrize('num_steps', [10, 20, 30, 50, 100, 200, 1000])
def test_checkpoints_against_official(official, num_steps):
  seen = []
  run = official(NET, 'Linf', 0.1, num_steps)
  check = run.attack.check_oscillation
  def recording(losses, iteration, period, *args, **options):
    seen.append((iteration + 1, period))
    return check(losses, iteration, period, *args, **options)
  run.attack.check_oscillation = recording
  run(IMAGES[:1], LABELS[:1])
  periods = apgd_steps.checkpoint_periods(num_steps)
  np.testing.assert_array_equal(
      seen, np.stack([np.flatnonzero(periods), periods[periods > 0]], axis=1))


def traces_of_losses(num_steps, batch, seed=0):
  """Returns `[num_steps + 1, batch]`, of the start first, with many ties."""
  rng = np.random.default_rng(seed)
  chance = np.linspace(0, 1, batch)  # to rise; the others fall or stay.
  steps = np.where(rng.uniform(size=(num_steps, batch)) < chance, 1,
                   rng.integers(-2, 1, size=(num_steps, batch)))
  return np.concatenate([rng.integers(-2, 3, size=(1, batch)),
                         steps]).cumsum(0).astype(float)


def first_logit(logits, y):
  del y
  return logits[:, 0]


def pixels(x):
  return jnp.concatenate([x, 0 * x], axis=1)


@pytest.mark.parametrize(('values', 'sizes'), [
    # The first comparison is with 0, not with the start.
    ([0.5, 0.2, 0.6, 0.7], [2., 2., 2., 2.]),
    ([-0.5, -0.2, -0.1, 0.], [2., 2., 1., 1.]),
    ([-0.5, 0., 0.1, 0.2], [2., 2., 1., 1.]),
    # The best loss has to rise too, but not right after a halving.
    ([0.9, 0.1, 0.2, 0.3, 0.4], [2., 2., 2., 1., 1.]),
    ([0.9, 0.1, 0., 0.1, 0.2], [2., 2., 1., 1., 0.5]),
    # A loss that stays has not risen.
    ([0.1, 0.2, 0.2, 0.3, 0.3], [2., 2., 1., 1., 0.5])])
def test_first_checkpoints(values, sizes):
  # The loss is the only pixel, so that it can be told.
  attack = apgd.APGD(1., num_iterations=10, loss=first_logit)
  problem = problem_of(np.zeros((1, 1)), [1], 1., x_init=np.zeros((1, 1)))
  state, got = init(attack, problem), []
  for value in values:
    state = step(attack, pixels, problem,
                 state._replace(x=jnp.full((1, 1), value)))
    got.append(state.controller.step_size.item())
  assert got == sizes  # The checkpoints are at 2, 3 and 4.


# Against the official code.


@pytest.fixture
def official(monkeypatch):
  """Returns the official attacks' class, which logs what is queried."""
  torch = pytest.importorskip('torch')
  base = pytest.importorskip('pyautoattack.autopgd_base')
  default = torch.get_default_dtype()

  class Official:

    def __init__(self, net, norm, eps, num_iterations, loss='ce',
                 large_radii=False):
      make = (base.APGDAttack_targeted if 'targeted' in loss else
              functools.partial(base.APGDAttack, loss=loss))
      def recorded(x):
        self.queried.append(x.detach().numpy().copy())
        return net.torch(x)
      self.attack = make(recorded, norm=norm, eps=eps, n_iter=num_iterations,
                         use_largereps=large_radii)
      self.queried = []
      if norm == 'L1':
        # It counts entries that differ by rounding, keeps by rounding one more
        # at some counts, and projects in float32.
        monkeypatch.setattr(
            base, 'L0_norm',
            lambda x: (x.abs() > 1e-9).flatten(1).sum(1) * (1 - 2. ** -40))
        monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)

    def __call__(self, x, y, x_init=None, targets=None, radii=None,
                 iterations=None):
      """Returns x_best, fooled, f_best, x_adv of one run, or of one per radius.

      With radii the start is the image and `torch.randn_like`.
      """
      torch.set_default_dtype(torch.as_tensor(x).dtype)
      x, y, x_init, targets = (
          None if array is None else torch.tensor(array)
          for array in (x, y, x_init, targets))
      self.attack.init_hyperparam(x)
      self.attack.y_target = targets
      x_best, robust, f_best, x_adv = (
          self.attack.attack_single_run(x, y, x_init) if radii is None else
          self.attack.decr_eps_pgd(x, y, radii, iterations))
      return tuple(found.detach().numpy()
                   for found in (x_best, ~robust, f_best, x_adv))

    def perturb(self, x, y):
      torch.set_default_dtype(torch.float64)
      # It casts to float32.
      monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
      return self.attack.perturb(torch.tensor(x), torch.tensor(y)
                                 ).detach().numpy()

  yield Official
  torch.set_default_dtype(default)


def ranks(logits, y):
  """Returns the rank of the label, 1 for the highest."""
  label = np.take_along_axis(logits, y[..., None], axis=-1)
  return 1 + (logits > label).sum(-1)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('norm', geometry.NORMS)
def test_equals_official(official, norm, loss):
  targets = TARGETS if 'targeted' in loss else None
  eps, start = EPS[norm], start_of(IMAGES, EPS[norm], norm)
  reference = official(NET, norm, eps, 100, loss)
  x_best, fooled, f_best, x_adv = reference(IMAGES, LABELS, start, targets)
  expected = np.stack(reference.queried)
  attack = apgd.APGD(eps, norm, LOSSES[loss])
  states = trace(attack, NET, problem_of(IMAGES, LABELS, eps, targets, start))
  error = np.abs(states.x[:-1] - expected).max((2, 3, 4))
  assert error.shape == (101, BATCH)

  # The gradient of DLR is rounding noise once the label is third.
  third = np.zeros((101, BATCH), bool)
  if loss == 'dlr':
    logits = NET.logits(expected.reshape(-1, *SHAPE))
    third[1:] = ranks(logits.reshape(101, BATCH, -1),
                      np.tile(LABELS, (101, 1)))[:-1] == 3
    third = np.maximum.accumulate(third)
  whole = ~third[-1]
  assert whole.mean() > 0.4 and (loss != 'dlr' or not whole.all())
  assert np.where(third, 0, error).max() < 1e-9
  state = last(states)
  for got, wanted in ((state.x_best, x_best), (state.x_adv, x_adv),
                      (state.controller.f_best, f_best)):
    np.testing.assert_allclose(got[whole], wanted[whole], rtol=1e-8, atol=1e-9)
  np.testing.assert_array_equal(state.fooled[whole], fooled[whole])
  assert 0.2 < fooled.mean() < 0.9


@pytest.mark.parametrize(('norm', 'loss'), [('Linf', 'ce'),
                                            ('L2', 'dlr-targeted')])
def test_equals_official_in_float32(official, norm, loss):
  x, y = IMAGES.astype(np.float32), LABELS
  targets = TARGETS if 'targeted' in loss else None
  eps, start = EPS[norm], start_of(x, EPS[norm], norm)
  reference = official(NET, norm, eps, 100, loss)
  _, fooled, f_best, _ = reference(x, y, start, targets)
  assert reference.queried[-1].dtype == np.float32
  attack = apgd.APGD(eps, norm, LOSSES[loss])
  states = trace(attack, NET, problem_of(x, y, eps, targets, start))
  assert states.x.dtype == np.float32
  error = np.abs(states.x[:-1] - np.stack(reference.queried))
  # Nine times what is seen: 1.1e-5 on an Intel Xeon.
  assert error[:23].max() < 1e-4
  state = last(states)
  assert (state.fooled == fooled).mean() >= 0.99
  # Rounding grows with the iterations; most images end alike.
  error_best = np.abs(state.controller.f_best / f_best - 1)
  assert np.quantile(error_best, 0.8) < 1e-3


def large_radii_run(norm, num_iterations, keep='fooling'):
  attack = apgd.APGD(EPS[norm], norm, num_iterations=num_iterations,
                     large_radii=True, keep=keep)
  # Far outside: the largest ball is reached.
  start = start_of(IMAGES, 5 * EPS[norm], norm)
  return attack, start, problem_of(IMAGES, LABELS, EPS[norm], x_init=start)


@pytest.mark.parametrize('targeted', [
    False, pytest.param(True, marks=pytest.mark.slow)])
def test_large_radii_equal_official(official, monkeypatch, targeted):
  loss, targets = ('dlr-targeted', TARGETS) if targeted else ('ce', None)
  attack, start, problem = large_radii_run('L1', 40)
  attack = dataclasses.replace(attack, loss=LOSSES[loss])
  reference = official(NET, 'L1', EPS['L1'], 40, loss, large_radii=True)
  torch = pytest.importorskip('torch')
  monkeypatch.setattr(torch, 'randn_like',
                      lambda x: torch.tensor(start - IMAGES))
  eps = EPS['L1']
  x_best, fooled, f_best, x_adv = reference(
      IMAGES, LABELS, targets=targets, radii=[3 * eps, 2 * eps, eps],
      iterations=[12, 12, 16])
  if targeted:
    problem = problem._replace(targets=jnp.asarray(targets))
  states = trace(attack, NET, problem)
  assert len(reference.queried) == attack.num_steps == 43
  np.testing.assert_allclose(states.x[:-1], np.stack(reference.queried),
                             rtol=0, atol=1e-9)
  state = last(states)
  np.testing.assert_allclose(state.x_best, x_best, rtol=0, atol=1e-9)
  np.testing.assert_allclose(state.x_adv[fooled], x_adv[fooled], rtol=0,
                             atol=1e-9)
  np.testing.assert_allclose(state.controller.f_best, f_best, rtol=1e-9)
  np.testing.assert_array_equal(state.fooled, fooled)
  assert 0.1 < fooled.mean() < 0.9


@pytest.mark.parametrize('norm', ['Linf', 'L1'])
def test_large_radii(norm):
  attack, _, problem = large_radii_run(norm, 10)
  states = trace(attack, NET, problem)
  radii = EPS[norm] * np.repeat([3, 2, 1], [4, 4, 5])
  assert len(states.x) == attack.num_steps + 1 == 14
  for images, radius in zip(states.x, radii, strict=False):
    assert size(images - IMAGES, norm).max() <= radius * (1 + 1e-12)
  # Each ball is begun at the best of the one before, as a run of its own.
  space = geometry.of(norm)
  for begun, radius in ((4, 2), (8, 1)):
    np.testing.assert_allclose(
        states.x[begun], space.project(states.x_best[begun], IMAGES,
                                       radius * EPS[norm], (0., 1.)))
    np.testing.assert_array_equal(states.x_best[begun + 1], states.x[begun])
  assert (size(states.x[7] - IMAGES, norm) > 1.5 * EPS[norm]).any()
  # What fools from further away is no success.
  wrong = np.array([NET.logits(x).argmax(-1) != LABELS for x in states.x[:-1]])
  wrong[:, :2] = True
  assert (wrong[:8].any(0) & ~wrong[8:].any(0)).any()
  np.testing.assert_array_equal(states.fooled[8], np.zeros(BATCH, bool))
  np.testing.assert_array_equal(states.fooled[-1], wrong[8:].any(0))
  # An image's state depends on its own iteration only.
  at = np.arange(BATCH) % 13
  mixed = step(attack, NET, problem, jax.tree.map(
      lambda leaf: leaf[at, np.arange(BATCH)], states))
  for got, expected in zip(jax.tree.leaves(mixed), jax.tree.leaves(
      jax.tree.map(lambda leaf: leaf[at + 1, np.arange(BATCH)], states)),
      strict=True):
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_large_radii_end_with_the_first_that_fools():
  attack, _, problem = large_radii_run('L1', 10)
  fooled = trace(attack, NET, problem).fooled
  attack = dataclasses.replace(attack, keep='first')
  states = trace(attack, NET, problem)
  expected = np.where(fooled[-1], fooled.argmax(0), 13)
  np.testing.assert_array_equal(states.iteration[-1], expected)
  images = attack.images(problem, last(states))
  assert size(images - IMAGES, 'L1').max() <= EPS['L1'] * (1 + 1e-12)


class Told:
  """A model whose losses and gradients are given, whatever the images.

  Logits are (loss, 0), so an image is misclassified as class 0 if the loss is
  positive; labels are 1.
  """

  def __init__(self, values, slopes):
    self.values, self.slopes, self.calls = values, slopes, 0

  def torch(self, x):
    import torch
    value, slope = (torch.tensor(array[self.calls]) for array in
                    (self.values, self.slopes))
    self.calls += 1
    value = value + (slope * (x - x.detach())).sum(1)
    return torch.stack([value, 0 * value], 1)


@pytest.mark.parametrize('norm', geometry.NORMS)
def test_equals_official_on_any_losses(official, norm):
  """Whatever losses and gradients a model has: with ties and plateaus."""
  # Upstream's projection onto the L1 ball is wrong at times of few features.
  batch, features, num_iterations = 100, 100 if norm == 'L1' else 6, 50
  values = traces_of_losses(num_iterations, batch) + 0.5
  slopes = np.random.default_rng(1).normal(
      size=(num_iterations + 1, batch, features))
  x, y = draw(batch, features), np.ones(batch, int)
  start = start_of(x, 0.1, norm)
  reference = official(Told(values, slopes), norm, 0.1, num_iterations, 'dlr')
  reference.attack.dlr_loss = lambda logits, y: logits[:, 0]
  x_best, fooled, f_best, x_adv = reference(x, y, start)

  attack = apgd.APGD(0.1, norm, first_logit, num_iterations)
  problem = problem_of(x, y, 0.1, x_init=start)
  @jax.jit
  def told_step(state, value, slope):
    def net(images):
      now = value + jnp.sum(slope * (images - lax.stop_gradient(images)),
                            axis=-1)
      return jnp.stack([now, 0 * now], axis=1)
    return attack.step(net, problem, state)
  state, queried = init(attack, problem), []
  for value, slope in zip(values, slopes, strict=True):
    queried.append(state.x)
    state = told_step(state, value, slope)
  np.testing.assert_allclose(queried, reference.queried, rtol=0, atol=1e-12)
  np.testing.assert_array_equal(state.fooled, fooled)
  assert 0.1 < fooled.mean() < 0.9
  np.testing.assert_array_equal(state.controller.f_best, f_best)
  np.testing.assert_allclose(state.x_best, x_best, rtol=0, atol=1e-12)
  np.testing.assert_allclose(state.x_adv, x_adv, rtol=0, atol=1e-12)


def test_target_classes_against_official(official):
  reference, seen = official(NET, 'Linf', 0.1, 1, 'dlr-targeted'), []
  def no_attack(x, y):
    seen.append(reference.attack.y_target.numpy())
    return x, y == y, None, x
  reference.attack.attack_single_run = no_attack
  reference.perturb(IMAGES, LABELS)
  robust = np.arange(BATCH) >= 2
  problem = problem_of(IMAGES, LABELS, 0.1)
  attack = apgd.APGD(0.1, loss=losses.targeted_dlr, num_targets=9)
  assert len(seen) == attack.num_attempts == 9
  targets = jax.jit(lambda number: attack.nth_attempt(problem, LOGITS,
                                                  number).targets)
  for number in range(9):
    np.testing.assert_array_equal(targets(number)[robust], seen[number])


@functools.cache
def targeted_run(norm):
  """Returns APGD-T, its start and what it achieves."""
  attack = apgd.APGD(WIDE[norm], norm, losses.targeted_dlr, num_targets=9)
  start = start_of(IMAGES, WIDE[norm], norm)
  # The same noise for all, so that images may be left out.
  start = IMAGES + (start - IMAGES)[:1]
  return attack, start, run(attack, NET, jax.random.key(0), IMAGES, LABELS,
                            x_init=start)


@pytest.mark.parametrize('norm', [
    'Linf', pytest.param('L2', marks=pytest.mark.slow)])
def test_targets_against_official(official, norm):
  attack, start, result = targeted_run(norm)
  reference = official(NET, norm, WIDE[norm], 100, 'dlr-targeted')
  single_run, noise = reference.attack.attack_single_run, start[0] - IMAGES[0]
  reference.attack.attack_single_run = lambda x, y: single_run(
      x, y, x + x.new_tensor(noise))
  images = reference.perturb(IMAGES, LABELS)
  np.testing.assert_allclose(result.images, images, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(result.success,
                                NET.logits(images).argmax(-1) != LABELS)


# By hand, on models of two pixels, of which the second is 1 - the first.


def valley_net(x):
  """Returns logits of three classes, label 1, whose last is the loss - 9.

  The loss is highest at 0.62. Misclassified as class 0 is what lies on both
  sides of 0.65, further away than 0.24.
  """
  loss = -jnp.sum((x - jnp.array([[0.62, 0.38]])) ** 2, axis=-1)
  return jnp.stack([jnp.abs(x[:, 0] - 0.65) - 0.24, 0 * loss, loss - 9],
                   axis=-1)


def last_logit(logits, y):
  del y
  return logits[:, 2]


def by_hand(net=valley_net, start=0.5, norm='Linf', keep='fooling'):
  """Returns the attack, its states and their images' first pixel."""
  # In L2 the same numbers on the diagonal.
  eps = 0.4 if norm == 'Linf' else 0.4 * 2 ** 0.5
  attack = apgd.APGD(eps, norm, last_logit, num_iterations=10, keep=keep)
  problem = problem_of(np.array([[0.5, 0.5]]), [1], eps,
                       x_init=np.array([[start, 1 - start]]))
  states = trace(attack, net, problem)
  # One example, so what is there per state may stand for a batch.
  images = np.asarray(attack.images(
      problem._replace(x=np.tile(problem.x, (12, 1))),
      jax.tree.map(lambda leaf: leaf[:, 0], states)))
  for x in (states.x, states.x_best, images):
    np.testing.assert_allclose(x[..., 1], 1 - x[..., 0], atol=1e-12)
  return attack, states, images[:, 0]


@both_norms
def test_momentum_after_a_jump(norm):
  _, states, _ = by_hand(norm=norm)
  # Checkpoint 2 jumps from 0.4 to the start, at half the step size. The
  # momentum is that from 0.9 to the start: 0.7 = 0.5 + 0.75 * 0.4 - 0.25 * 0.4.
  # Checkpoint 4 jumps from 0.45 to 0.7, where it had been before.
  np.testing.assert_allclose(states.x[:6, 0, 0],
                             [0.5, 0.9, 0.4, 0.7, 0.45, 0.55], atol=1e-12)
  np.testing.assert_allclose(states.x_best[1:7, 0, 0],
                             [0.5, 0.5, 0.5, 0.7, 0.7, 0.55], atol=1e-12)
  np.testing.assert_allclose(
      states.controller.step_size[:7, 0] / states.controller.step_size[0, 0],
      [1, 1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(('keep', 'kept'), [
    ('fooling', [0.5, 0.5, 0.9, 0.4, 0.4, 0.4, 0.4]),
    ('first', [0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]),
    ('best', [0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.55])])
def test_which_image_is_kept(keep, kept):
  attack, states, images = by_hand(keep=keep)
  np.testing.assert_allclose(images[:7], kept, atol=1e-12)
  np.testing.assert_array_equal(states.fooled[:, 0], np.arange(12) >= 2)
  first = keep == 'first'
  np.testing.assert_array_equal(states.iteration[:, 0],
                                np.minimum(np.arange(12), 2 if first else 11))
  np.testing.assert_array_equal(attack.done(states)[:, 0],
                                np.arange(12) >= (2 if first else 11))


def test_only_the_start_is_misclassified():
  def net(x):
    return valley_net(x).at[:, 0].set(jnp.where(x[:, 0] == 0.52, 1., -1.))
  _, states, images = by_hand(net, 0.52)
  np.testing.assert_array_equal(states.fooled[:, 0], np.arange(12) >= 1)
  np.testing.assert_array_equal(images, [0.5] + [0.52] * 11)
  assert states.x_best[-1, 0, 0] != 0.52


def test_nothing_is_misclassified():
  def net(x):
    return valley_net(x) - jnp.array([[9., 0., 0.]])
  _, states, images = by_hand(net, 0.55)
  assert not states.fooled.any() and states.x_best[-1, 0, 0] != 0.5
  np.testing.assert_array_equal(images, np.full(12, 0.5))


def test_only_a_higher_loss_is_a_better_one():
  def net(x):  # A slope, but all losses are the same.
    loss = 1 + x[:, 0] - x[:, 1]
    loss = loss - lax.stop_gradient(loss) + 0.5
    return jnp.stack([0 * loss, 0 * loss + 1, loss], axis=-1)
  _, states, _ = by_hand(net, 0.6)
  assert len(np.unique(states.x[:, 0, 0])) > 5
  np.testing.assert_array_equal(states.x_best[:, 0, 0], np.full(12, 0.6))
  # Nor has it risen, at any of the nine checkpoints.
  assert states.controller.step_size[-1, 0] == 0.8 / 2 ** 9


# Stochastic models.


def number_of(key):
  """Returns a number in [0, 1) that differs from key to key."""
  return jax.random.key_data(key)[-1] % 1024 / 1024  # Fast to compile.


def test_gradients_are_averaged():
  seen = []
  def noisy(x, key):
    return NET(x * (1 + number_of(key)).astype(x.dtype))
  def net(x, key):
    jax.debug.callback(lambda data: seen.append(np.array(data)),
                       jax.random.key_data(key), ordered=True)
    return noisy(x, key)
  attack = apgd.APGD(0.1, eot=3)
  start = start_of(IMAGES, 0.1, 'Linf').clip(0, 1)
  problem = problem_of(IMAGES, LABELS, 0.1, x_init=start)
  state = jax.jit(lambda problem, key: attack.step(
      net, problem, attack.init(problem), key))(problem, jax.random.key(7))
  jax.block_until_ready(state)
  jax.effects_barrier()
  assert len(np.unique(seen, axis=0)) == len(seen) == 3
  keys = jax.random.wrap_key_data(np.stack(seen))
  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def passes(x, key):
    def total(x):
      logits = noisy(x, key)
      loss = losses.cross_entropy(logits, LABELS)
      return jnp.sum(loss), (loss, logits)
    return jax.grad(total, has_aux=True)(x)
  gradients, (loss, logits) = jax.device_get(passes(start, keys))
  average = np.mean(gradients, axis=0)
  np.testing.assert_allclose(state.gradient_best, average, atol=1e-12)
  assert np.abs(gradients - average).max() > 0.1
  # The last pass says what the loss and the prediction are.
  np.testing.assert_allclose(state.controller.f_best, loss[-1])
  fooled = logits.argmax(-1) != LABELS
  np.testing.assert_array_equal(state.fooled, fooled[-1])
  assert (fooled[-1] != fooled[0]).any()
  moved = np.clip(start + 0.2 * np.sign(average), IMAGES - 0.1, IMAGES + 0.1)
  np.testing.assert_allclose(state.x, np.clip(moved, 0, 1), atol=1e-12)


def test_model_that_ignores_the_key():
  def deaf(x, key):
    assert key.shape == ()
    return NET(x)
  attack, plain = plain_run()
  got = run(dataclasses.replace(attack, eot=1), deaf, jax.random.key(0),
            IMAGES, LABELS, x_init=plain_start())
  assert_equal_results(got, plain)


# Calls.


def plain_start():
  return start_of(IMAGES, EPS['Linf'], 'Linf')


@functools.cache
def plain_run():
  """Returns an attack and what it achieves."""
  attack = apgd.APGD(EPS['Linf'])
  return attack, run(attack, NET, jax.random.key(0), IMAGES, LABELS,
                     x_init=plain_start())


def test_a_call_gives_the_images_of_the_last_state():
  attack, result = plain_run()
  problem = problem_of(IMAGES, LABELS, attack.eps, x_init=plain_start())
  state = last(trace(attack, NET, problem))
  assert 0.2 < state.fooled.mean() < 0.9
  np.testing.assert_allclose(
      result.images, geometry.where(state.fooled, state.x_adv, IMAGES),
      atol=1e-12)
  logits = NET.logits(result.images)
  np.testing.assert_allclose(result.logits, logits, atol=1e-12)
  np.testing.assert_array_equal(result.predictions, logits.argmax(-1))
  np.testing.assert_array_equal(result.success, logits.argmax(-1) != LABELS)
  np.testing.assert_array_equal(result.success, state.fooled)
  np.testing.assert_allclose(result.norm, size(result.images - IMAGES, 'Linf'))


def first_that_fools(images):
  """Returns of several runs' images the first that fool, else the last."""
  fooled = np.stack([NET.logits(x).argmax(-1) for x in images]) != LABELS
  chosen = np.where(fooled.any(0), fooled.argmax(0), len(images) - 1)
  expected = np.stack(images)[chosen, np.arange(BATCH)]
  already = LOGITS.argmax(-1) != LABELS
  return (np.where(already[:, None, None, None], IMAGES, expected),
          already | fooled.any(0), np.where(already, -1, chosen))


def test_restarts():
  attack = apgd.APGD(WIDE['L2'], 'L2', num_iterations=1)
  problem, _ = attack.check(NET, jax.random.key(3), IMAGES, LABELS)
  images = []
  for number in range(3):
    nth = attack.nth_attempt(problem, LOGITS, number)._replace(restart=None)
    images.append(attack.images(nth, last(trace(attack, NET, nth))))
  expected, fooled, chosen = first_that_fools(images)
  assert len(np.unique(chosen[fooled])) > 2 and not fooled.all()
  got = run(dataclasses.replace(attack, num_restarts=3), NET,
            jax.random.key(3), IMAGES, LABELS)
  np.testing.assert_allclose(got.images, expected, atol=1e-12)
  np.testing.assert_array_equal(got.success, fooled)


@both_norms
def test_targets(norm):
  attack, start, got = targeted_run(norm)
  single = apgd.APGD(attack.eps, norm, losses.targeted_dlr)
  problem, images = problem_of(IMAGES, LABELS, attack.eps, x_init=start), []
  for rank in range(2, 11):
    targets = np.argsort(LOGITS, axis=-1)[:, -rank]
    given = problem._replace(targets=jnp.asarray(targets))
    images.append(single.images(given, last(trace(single, NET, given))))
  expected, fooled, chosen = first_that_fools(images)
  assert len(np.unique(chosen[fooled])) > 3 and not fooled.all()
  np.testing.assert_allclose(got.images, expected, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(got.success, fooled)


def test_targets_of_the_caller():
  # Of a loss of which only the target matters.
  attack = apgd.APGD(0.3, loss=losses.targeted_cross_entropy,
                     num_iterations=20, keep='best')
  for shift in (1, 2):
    targets = (LABELS + shift) % NUM_CLASSES
    got = run(attack, NET, jax.random.key(0), IMAGES, LABELS, targets,
              x_init=plain_start())
    assert (got.predictions == targets).mean() > 0.9


def test_radii_of_examples_in_the_unit_of_the_images():
  attack, plain = plain_run()
  scaled = dataclasses.replace(attack, eps=1., bounds=(0, 255))
  half = np.arange(BATCH) < BATCH // 2
  got = run(scaled, lambda x: NET(x / 255), jax.random.key(0), IMAGES * 255,
            LABELS, eps=jnp.where(half, 255 * attack.eps, 0),
            x_init=plain_start() * 255)
  np.testing.assert_allclose(got.images[half] / 255, plain.images[half],
                             atol=1e-12)
  np.testing.assert_array_equal(got.images[~half], 255 * IMAGES[~half])
  np.testing.assert_array_equal(got.success[half], plain.success[half])


@pytest.mark.parametrize(('num_classes', 'norm'), [(2, 'Linf'), (3, 'L2'),
                                                   (4, 'Linf')])
def test_few_classes_of_vectors(num_classes, norm):
  net, x = Net(6, num_classes, seed=2), draw(40, 6)
  y = net.logits(x).argmax(-1)
  attack = apgd.APGD(0.15, norm, losses.targeted_dlr, num_iterations=10,
                     num_targets=num_classes - 1)
  got = run(attack, net, jax.random.key(0), x, y,
            x_init=start_of(x, 0.15, norm))
  assert size(got.images - x, norm).max() <= 0.15 + 1e-12
  fooled = net.logits(got.images).argmax(-1) != y
  np.testing.assert_array_equal(got.success, fooled)
  assert 0.2 < fooled.mean() < 0.95
  np.testing.assert_array_equal(got.images[~fooled], x[~fooled])


# What holds for every input.


@every_norm
def test_every_iterate_stays_in_ball_and_bounds(norm):
  # The program of another test, with other images.
  x, eps = np.round(IMAGES), np.linspace(0, 0.5, BATCH)
  start = start_of(IMAGES, 10, norm)  # Far outside of both.
  attack = apgd.APGD(EPS[norm], norm)
  states = trace(attack, NET, problem_of(x, LABELS, eps, x_init=start))
  assert states.x.min() == 0 and states.x.max() == 1
  for images in states.x:
    assert (size(images - x, norm) <= eps * (1 + 1e-12)).all()
  np.testing.assert_array_equal(states.x[:, 0], np.tile(x[0], (102, 1, 1, 1)))


@every_norm
def test_start(norm):
  attack = apgd.APGD(1., norm)
  x = np.full((BATCH, *SHAPE), 0.5)
  x[-1] = 1.
  eps = np.linspace(0, 0.4, BATCH)
  problem = problem_of(x, LABELS, eps)
  start = np.asarray(init(attack, problem).x)
  np.testing.assert_allclose(size(start - x, norm)[:-1], eps[:-1], rtol=1e-9)
  assert start.max() <= 1 and (start[-1] < 1).any()
  noise = ((start - x).reshape(BATCH, -1).T / np.maximum(eps, 1e-9)).T[1:-1]
  assert len(np.unique(noise, axis=0)) == BATCH - 2
  np.testing.assert_allclose(noise.mean(), 0, atol=0.1)
  if norm == 'Linf':  # Uniform in the cube, then enlarged.
    np.testing.assert_allclose((np.abs(noise) < 0.5).mean(), 0.5, atol=0.05)
  # An example's start depends on its key only.
  keys = jnp.concatenate([problem.keys[::-1][:3], problem.keys[:-3]])
  moved = np.asarray(init(attack, problem._replace(
      x=jnp.roll(problem.x, 3, axis=0), eps=jnp.roll(problem.eps, 3),
      keys=keys)).x)
  np.testing.assert_allclose(moved[3:], start[:-3], atol=1e-12)
  assert np.abs(moved[0] - start[-3]).max() > 0.1


def test_float32_stays_float32():
  x = jnp.asarray(IMAGES, jnp.float32)
  for norm in geometry.NORMS:
    attack = apgd.APGD(np.float64(0.1), norm, rho=np.float64(0.75),
                       large_radii=norm == 'L1')
    problem, _ = attack.check(NET, jax.random.key(0), x, LABELS)
    with jax.numpy_dtype_promotion('strict'):
      before = jax.eval_shape(attack.init, problem)
      after = jax.eval_shape(functools.partial(attack.step, NET), problem,
                             before)
    assert before == after
    for leaf in jax.tree.leaves(before):
      assert leaf.shape[0] == BATCH
      assert leaf.dtype in (jnp.float32, jnp.int32, bool)
    result = jax.eval_shape(functools.partial(attack.run, NET), problem.keys,
                            x, LABELS)
    assert result.images.dtype == result.norm.dtype == jnp.float32


def test_broken_models():
  attack = apgd.APGD(EPS['L2'], 'L2')
  problem = problem_of(IMAGES, LABELS, EPS['L2'],
                       x_init=start_of(IMAGES, EPS['L2'], 'L2'))
  states = trace(attack, NET, problem)
  index = np.arange(BATCH)
  second = jnp.asarray(states.x[1])
  def net(x):
    logits = NET(x)
    at_second = jnp.all(jnp.abs(x - second) < 1e-9, axis=(1, 2, 3))
    # A class that is never predicted, on the second iterate.
    lowest = logits == jnp.min(logits, axis=-1, keepdims=True)
    logits = jnp.where((at_second & (index == 0))[:, None] & lowest, -jnp.inf,
                       logits)
    # Another than the label's, on the second or on all iterates.
    wrong = jax.nn.one_hot((LABELS + 1) % NUM_CLASSES, NUM_CLASSES, dtype=bool)
    for i, where, bad in [(1, at_second, jnp.nan), (2, True, jnp.inf),
                          (3, True, jnp.nan)]:
      logits = jnp.where((where & (index == i))[:, None] & wrong, bad, logits)
    # No gradient: everywhere, or on the second.
    none = (index == 4) | (at_second & (index == 5))
    return jnp.where(none[:, None], 0 * logits, logits)
  broken = trace(attack, net, problem)
  np.testing.assert_array_equal(broken.finite[1], ~np.isin(index, [2, 3]))
  for finite in broken.finite[2:]:
    np.testing.assert_array_equal(finite, (index == 0) | (index >= 4))
  # Some have fooled with what was finite.
  assert broken.fooled[1, :2].all() and not broken.fooled[:, 2:4].any()
  images = attack.images(problem, last(broken))
  np.testing.assert_array_equal(
      np.isnan(images).all((1, 2, 3)), np.isin(index, [2, 3]))
  np.testing.assert_array_equal(images[1], states.x[0, 1])
  for zero_gradient in broken.zero_gradient[1:]:
    np.testing.assert_array_equal(zero_gradient, index == 4)
  np.testing.assert_array_equal(broken.x_best[-1, 4], states.x[0, 4])
  np.testing.assert_allclose(broken.x[:, 6:], states.x[:, 6:], atol=1e-9)


@pytest.mark.parametrize(('options', 'message'), [
    ({'eps': -0.1}, 'eps=-0.1'), ({'norm': 'L0'}, "norm='L0'"),
    ({'num_iterations': 0}, 'num_iterations=0'),
    ({'num_iterations': 1, 'large_radii': True}, 'num_iterations=1'),
    ({'num_restarts': 0}, 'num_restarts=0'), ({'rho': 1.5}, 'rho=1.5'),
    ({'num_targets': -1}, 'num_targets=-1'), ({'eot': -1}, 'eot=-1'),
    ({'keep': 'last'}, "keep='last'"),
    ({'bounds': (1., 0.)}, r'bounds=\(1.0, 0.0\)')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    apgd.APGD(**{'eps': 0.1, **options})


# Programs: compiled, mapped, on several devices.

NETS = [Net(4, 3, seed=3), Net(4, 3, seed=9)]


def apply(variables, x, key=None):
  first, second, last = variables
  if key is not None:
    x = x + 0.3 * number_of(key).astype(x.dtype)
  return jnp.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second + last


def pure(attack, variables, key, x, y, eps=None, x_init=None):
  return attack.run(functools.partial(apply, variables), key, x, y, eps=eps,
                    x_init=x_init)


def arguments_of(net, seed, batch=8):
  x = draw(batch, 4, seed=seed)
  return (net.weights, jax.random.key(seed), jnp.asarray(x),
          jnp.asarray(net.logits(x).argmax(-1)))


@pytest.mark.parametrize(('kind', 'stepped'), [
    ('targets', False), ('targets', True), ('stochastic', True)])
def test_compiled_attack(monkeypatch, kind, stepped):
  if kind == 'targets':
    attack = apgd.APGD(0.4, 'L2', losses.targeted_dlr, num_iterations=3,
                       num_targets=2, unroll=False)
  else:
    attack = apgd.APGD(0.4, num_iterations=2, num_restarts=2, eot=2,
                       unroll=False)
  monkeypatch.setattr(loops, 'unrolled_here', lambda: stepped)
  traces, counts = [], []
  def counted(variables, x, *key):
    traces.append(None)
    return apply(variables, x, *key)
  compiled, reference = attacks.jit(attack, counted), jax.jit(
      functools.partial(pure, attack))
  for seed, net in enumerate(NETS):
    arguments, eps = arguments_of(net, seed), 0.4 - 0.1 * seed
    start = arguments[2] + 0.01  # Noise takes longer to compile.
    got = compiled.run(*arguments, eps=eps, x_init=start)
    assert_equal_results(got, reference(*arguments, eps, start))
    assert 0.5 * eps < got.norm.max() <= eps + 1e-12
    counts.append(len(traces))
  np.testing.assert_array_equal(compiled(*arguments, eps=eps, x_init=start),
                                got.images)
  # Other variables, keys, images and radii: the same programs.
  assert 0 < counts[0] == counts[1] == len(traces)


def test_compiled_attack_of_variables_of_other_shapes():
  # A cheap one; labels as a list.
  attack = attacks.PGD(0.1, 0.1, 1, start='zero')
  compiled = attacks.jit(attack, apply)
  for net, highest in ((NETS[0], 2), (Net(4, 5), 4), (NETS[0], 2)):
    variables, key, x, _ = arguments_of(net, 0, batch=2)
    result = compiled.run(variables, key, x, [0, highest])
    assert result.logits.shape == (2, highest + 1)
    np.testing.assert_allclose(result.norm, 0.1)
    with pytest.raises(ValueError, match=f'y in 0..{highest}, got'):
      compiled(variables, key, x, [0, highest + 1])


ONE_RUN = apgd.APGD(0.1, num_iterations=2, keep='best', unroll=False)


def images_of(variables, key, x, y, attack=ONE_RUN):
  return attack(functools.partial(apply, variables), key, x, y)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
def test_compiled_attack_on_several_devices(mode):
  arguments = variables, key, x, y = arguments_of(NETS[0], 0)
  expected = jax.jit(images_of)(*arguments)
  assert np.abs(expected - x).max() > 0.09
  devices = parallel.create(mode)
  assert devices.num_devices == 4
  compiled = attacks.jit(ONE_RUN, apply, devices)
  x, y, indices = devices.shard(
      jax.device_get((x, y, jnp.arange(8, dtype=jnp.int32))))
  variables, key = devices.replicate((variables, key))
  got = compiled(variables, key, x, y, indices=indices)
  np.testing.assert_allclose(devices.gather(got), expected, atol=1e-12)
  with pytest.raises(ValueError, match='indices'):
    compiled(variables, key, x, y)
