"""Tests of ferd_jax.attacks.ensemble: how AutoAttack runs and goes on."""

import dataclasses
import functools
import gc
import re
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.attacks import ensemble
from ferd_jax.attacks import saved
from ferd_jax.attacks import slots
from ferd_jax.core import parallel
from ferd_jax.core import reporting

NUM_IMAGES, SHAPE, NUM_CLASSES, EPS = 26, (4, 4, 3), 5, 0.02
X = np.random.default_rng(0).uniform(size=(NUM_IMAGES, *SHAPE)).astype('f')
TRACED = []  # with which batch sizes the model was
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def weights(seed=4):
  rng = np.random.default_rng(seed)
  return (3 * rng.normal(size=(48, 16)).astype('f'),
          rng.normal(size=(16, NUM_CLASSES)).astype('f'))


def apply_fn(variables, x):
  TRACED.append(len(x))
  first, second = variables
  return jnp.tanh((x - 0.5).reshape(len(x), -1) @ first) @ second


MODEL = jax.tree_util.Partial(apply_fn, weights())
Y = np.array(jnp.argmax(MODEL(jnp.asarray(X)), -1))
Y[[3, 11]] = (Y[[3, 11]] + 1) % NUM_CLASSES  # Not attacked.


def members(eps=EPS, norm='Linf', num_queries=6):
  """Returns attacks each of which fools some images, in several runs."""
  return (('square', attacks.Square(eps, norm, num_queries, num_restarts=2)),
          ('ce', attacks.APGD(eps, norm, num_iterations=1, keep='first')),
          ('targeted', attacks.APGD(
              eps, norm, losses.targeted_dlr, num_iterations=4, num_targets=4,
              keep='first')))


def autoattack(eps=EPS, norm='Linf', **options):
  return attacks.AutoAttack(eps, norm, 'custom', members(eps, norm, **options))


def run(model=MODEL, key=0, x=X, y=Y, *, settings=None, num_devices=1,
        **options):
  options = {'batch_size': 3, 'progress': False, 'parallel': parallel.create(
      'auto', tuple(jax.devices()[:num_devices]))} | options
  return (settings or autoattack())(model, jax.random.key(key), x, y, **options)


@functools.cache
def whole(individual=False):
  """Returns the result of a run that nothing interrupts."""
  return run(individual=individual)


def assert_same(result, expected):
  for field in dataclasses.fields(attacks.Result):
    if field.name == 'seconds':
      continue
    got, wanted = getattr(result, field.name), getattr(expected, field.name)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_every_attack_has_its_share():
  # Else what follows tests little.
  np.testing.assert_array_equal(
      np.bincount(whole().broken_by + 2), [8, 2, 5, 6, 5])


# Interruptions.


def interrupted_after(monkeypatch, num_outcomes, error=KeyboardInterrupt):
  """Lets the slots fail after so many images, over all attacks."""
  count = 0
  slots_run = slots.Slots.run
  def failing(self, *args):
    nonlocal count
    for outcome in slots_run(self, *args):
      if count == num_outcomes:
        raise error
      count += 1
      yield outcome
  monkeypatch.setattr(slots.Slots, 'run', failing)


@pytest.mark.parametrize('individual', [False, True])
@pytest.mark.parametrize('num_outcomes', [
    0, 41, 70, *(pytest.param(number, marks=pytest.mark.slow)
                 for number in (9, 44, 60))])
def test_an_interrupted_run_is_gone_on_with(monkeypatch, tmp_path, individual,
                                            num_outcomes):
  options = dict(state_file=tmp_path / 'state.npz', individual=individual)
  with monkeypatch.context() as context:
    interrupted_after(context, num_outcomes)
    with pytest.raises(KeyboardInterrupt):
      run(**options)
  assert [file.name for file in tmp_path.iterdir()] == ['state.npz']
  assert_same(run(**options), whole(individual))


def test_a_run_that_is_interrupted_all_the_time(monkeypatch, tmp_path):
  options = dict(state_file=tmp_path / 'state.npz')
  interruptions = 0
  while True:
    with monkeypatch.context() as context:
      # What is not verified yet, in batches of 3, is done again: with fewer it
      # would get nowhere.
      interrupted_after(context, 10)
      try:
        result = run(**options)
        break
      except KeyboardInterrupt:
        interruptions += 1
  assert interruptions > 4
  assert_same(result, whole())


@pytest.mark.parametrize('individual', [
    True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_time(monkeypatch, tmp_path, individual):
  """Goes on from every state that a run ever wrote."""
  path, states = tmp_path / 'state.npz', []
  write = saved.write
  def keeping(path, *args):
    write(path, *args)
    states.append(path.with_name(f'{len(states)}.npz'))
    shutil.copy(path, states[-1])
  monkeypatch.setattr(saved, 'write', keeping)
  options = dict(individual=individual, save_every=0)
  assert_same(run(state_file=path, **options), whole(individual))
  monkeypatch.setattr(saved, 'write', write)
  assert len(states) > 40
  for state in states[::20] + states[-1:]:
    assert_same(run(state_file=state, **options), whole(individual))


@pytest.mark.parametrize('individual', [False, True])
@pytest.mark.parametrize('number', range(2))
def test_interrupted_while_images_are_noted(monkeypatch, tmp_path, individual,
                                            number):
  """An interruption between any two arrays of an image's."""
  class Interrupting(np.ndarray):
    def __setitem__(self, index, value):
      nonlocal count
      count += 1
      if count == 2 * 3 + number + 1:  # of the fourth image
        raise KeyboardInterrupt
      super().__setitem__(index, value)
  count = 0
  options = dict(state_file=tmp_path / 'state.npz', individual=individual)
  verify = ensemble.Session._verify
  def interrupting(self, *args):
    # From here on there are two writes an image.
    self._broken_by = self._broken_by.view(Interrupting)
    self._fooled = {name: flags.view(Interrupting)
                    for name, flags in self._fooled.items()}
    verify(self, *args)
  with monkeypatch.context() as context:
    context.setattr(ensemble.Session, '_verify', interrupting)
    with pytest.raises(KeyboardInterrupt):
      run(**options)
  assert count == 7 + number
  assert_same(run(**options), whole(individual))


def test_an_error_keeps_the_state(monkeypatch, tmp_path):
  options = dict(state_file=tmp_path / 'state.npz')
  with monkeypatch.context() as context:
    interrupted_after(context, 25, error=MemoryError)
    with pytest.raises(MemoryError):
      run(**options)
  done = np.load(tmp_path / 'state.npz')['runs_done/square']
  assert done.sum() > 10
  assert_same(run(**options), whole())


def test_a_finished_run_attacks_nothing(monkeypatch, tmp_path):
  options = dict(state_file=tmp_path / 'state.npz')
  first = run(**options)
  interrupted_after(monkeypatch, 0)
  again = run(**options)
  assert_same(again, first)
  assert again.seconds == first.seconds
  # Devices and batch sizes may be others.
  assert_same(run(batch_size=8, num_devices=2, save_every=1e9, **options),
              first)


def test_seconds_of_all_sessions(monkeypatch, tmp_path):
  options = dict(state_file=tmp_path / 'state.npz')
  with monkeypatch.context() as context:
    interrupted_after(context, 9)
    with pytest.raises(KeyboardInterrupt):
      run(**options)
  before = float(np.load(tmp_path / 'state.npz')['seconds/square'])
  assert before > 0
  seconds = run(**options).seconds
  assert seconds['square'] > before and seconds['ce'] > 0


def test_warnings_of_all_sessions(monkeypatch, tmp_path):
  first, second = weights()
  model = jax.tree_util.Partial(apply_fn, (1e5 * first, second))
  y = np.array(jnp.argmax(model(jnp.asarray(X)), -1))
  options = dict(state_file=tmp_path / 'state.npz', y=y, model=model)
  with monkeypatch.context() as context:
    interrupted_after(context, 70)
    with pytest.raises(KeyboardInterrupt):
      run(**options)
  texts = ' '.join(run(**options).warnings)
  robust = int(np.load(tmp_path / 'state.npz')['runs_done/ce'].sum())
  assert f'ce: the gradient is 0 at the start for {robust} images' in texts
  assert f'targeted: the gradient is 0 at the start for {robust} ' in texts


def test_other_hardware_may_decide_a_clean_tie_otherwise(tmp_path):
  """What was said of clean images stays."""
  state_file = tmp_path / 'state.npz'
  first = run(state_file=state_file)
  logits = ensemble.Session._logits
  def otherwise(self, images):
    found = logits(self, images)
    found[:2] = -found[:2]
    return found
  with pytest.MonkeyPatch.context() as context:
    context.setattr(ensemble.Session, '_logits', otherwise)
    context.setattr(ensemble.Session, '_check_model', lambda self: [])
    assert_same(run(state_file=state_file), first)


# States of other runs.


@pytest.fixture(scope='module')
def state_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('state') / 'state.npz'
  run(state_file=path)
  return path


def closure(seed):
  first, second = (jnp.asarray(w) for w in weights(seed))
  return lambda x: apply_fn((first, second), x)


@pytest.mark.parametrize(('change', 'names'), [
    (dict(settings=autoattack(0.04)), {'eps'}),
    (dict(settings=autoattack(norm='L2')), {'norm'}),
    (dict(settings=autoattack(num_queries=13)), {'square.num_queries'}),
    (dict(settings=attacks.AutoAttack(EPS, version='custom',
                                      attacks=members()[::-1])), {'attacks'}),
    (dict(settings=attacks.AutoAttack(EPS)), {'version', 'attacks'}),
    (dict(individual=True), {'individual'}),
    (dict(key=1), {'seed'}),
    (dict(x=X[::-1]), {'x'}),
    (dict(x=X[:-1], y=Y[:-1]), {'x', 'y', 'images'}),
    (dict(y=(Y + (np.arange(NUM_IMAGES) == 3)) % NUM_CLASSES), {'y'}),
    (dict(model=jax.tree_util.Partial(apply_fn, weights(2))), {'variables'}),
    (dict(model=jax.tree_util.Partial(lambda v, x: 2 * apply_fn(v, x),
                                      weights())), {'model'})])
def test_a_state_of_another_run_is_refused(state_file, change, names):
  content = state_file.read_bytes()
  with pytest.raises(ValueError, match='is of another run: ') as error:
    run(state_file=state_file, **change)
  text = str(error.value).split('another run: ')[1]
  found = set(re.findall(r'(?:^|, )([\w.-]+) is ', text))
  if 'attacks' in names and 'version' not in names:
    assert found == names
  assert names <= found
  assert len(found) < 4 or 'version' in names  # Not what follows from it.
  assert state_file.read_bytes() == content


@pytest.mark.parametrize('jitted', [False, True])
def test_weights_in_a_closure_are_those_of_a_run(tmp_path, jitted):
  wrap = jax.jit if jitted else lambda function: function
  # Nothing is attacked: it is about what they are told apart by.
  options = dict(state_file=tmp_path / 'state.npz', y=(Y + 1) % NUM_CLASSES)
  run(wrap(closure(4)), **options)
  run(wrap(closure(4)), **options)
  with pytest.raises(ValueError, match='another run: variables is'):
    run(wrap(closure(2)), **options)


def test_losses_and_gradients_are_those_of_a_run(tmp_path):
  # Neither their text nor the logits tell these apart.
  def model(scale):
    @jax.custom_vjp
    def passed(logits):
      return logits
    passed.defvjp(lambda logits: (logits, None),
                  lambda _, gradient: (scale * gradient,))
    return lambda x: passed(apply_fn(weights(), x))
  def settings(sign):
    return attacks.AutoAttack(EPS, version='custom', attacks=[(
        'apgd', attacks.APGD(EPS, loss=lambda logits, y: sign *
                             losses.cross_entropy(logits, y)))])
  options = dict(state_file=tmp_path / 'state.npz', y=(Y + 1) % NUM_CLASSES)
  run(model(1.), settings=settings(1.), **options)
  run(model(1.), settings=settings(1.), **options)
  for other in ((model(0.), settings(1.)), (model(1.), settings(-1.))):
    with pytest.raises(ValueError, match='another run: code is'):
      run(other[0], settings=other[1], **options)


@pytest.mark.parametrize('setting', ['num_steps', 'num_restarts',
                                     'num_targets', 'target_order'])
def test_what_a_class_says_of_itself_is_that_of_a_run(setting, tmp_path):
  """An attack of a user need not have it as a field."""
  def settings(**changes):
    @dataclasses.dataclass(frozen=True)
    class Still(attacks.Attack):
      eps: float
      norm, bounds = 'Linf', (0., 1.)

      def init(self, problem):
        return problem.x

      def step(self, logits_fn, problem, state, key=None):
        return state

      def images(self, problem, state):
        return state
    for name, value in (dict(num_steps=1, num_restarts=1, num_targets=1,
                             target_order='logits') | changes).items():
      setattr(Still, name, value)
    return attacks.AutoAttack(EPS, version='custom',
                              attacks=(('still', Still(EPS)),))
  options = dict(state_file=tmp_path / 'state.npz', y=(Y + 1) % NUM_CLASSES)
  run(settings=settings(), **options)
  run(settings=settings(), **options)
  other = 'malt' if setting == 'target_order' else 2
  with pytest.raises(ValueError, match=rf'another run: .*still\.{setting} is'):
    run(settings=settings(**{setting: other}), **options)


def test_keys_of_another_generator_are_refused(tmp_path):
  def attack(impl):
    return autoattack()(
        MODEL, jax.random.key(3, impl=impl), X, (Y + 1) % NUM_CLASSES,
        batch_size=3, progress=False, parallel=parallel.create('jit'),
        state_file=tmp_path / 'state.npz')
  attack('rbg')
  with pytest.raises(ValueError, match='seed is .*, there'):
    attack('threefry2x32')


@pytest.mark.parametrize('impl', [
    'rbg', pytest.param('unsafe_rbg', marks=pytest.mark.slow)])
def test_batch_size_does_not_matter_with_any_generator(impl):
  def attack(batch_size):
    return autoattack()(MODEL, jax.random.key(3, impl=impl), X, Y,
                        batch_size=batch_size, progress=False,
                        parallel=parallel.create('jit'))
  first, second = attack(3), attack(16)
  np.testing.assert_array_equal(first.broken_by, second.broken_by)
  np.testing.assert_allclose(first.images, second.images, atol=1e-6)


def test_a_truncated_state_is_refused(state_file, tmp_path):
  path = tmp_path / 'state.npz'
  path.write_bytes(state_file.read_bytes()[:-100])
  with pytest.raises(ValueError, match='no state of AutoAttack, or damaged'):
    run(state_file=path)


@pytest.mark.parametrize('change', [
    lambda arrays: {'clean_predictions': arrays['clean_predictions'][:-1]},
    lambda arrays: {'runs_done/ce': np.zeros(1, np.int32)},
    lambda arrays: {'runs_done/ce': arrays['runs_done/ce'] * 1.},
    lambda arrays: {'zero_gradient/targeted': np.zeros((0,), bool)},
    lambda arrays: {'found/ce': np.array([len(X)]),
                    'images/ce': X[:1].astype(np.float32),
                    'predictions/ce': np.zeros(1, np.int32)},
    lambda arrays: {'found/ce': np.array([0, 0]),
                    'images/ce': X[:2].astype(np.float32),
                    'predictions/ce': np.zeros(2, np.int32)},
    lambda arrays: {'found/ce': np.array([0])},
    lambda arrays: {'found/ce': np.array(0)},
    lambda arrays: {'seconds/ce': np.zeros(2)}])
def test_a_state_with_arrays_of_another_length_is_refused(
    state_file, tmp_path, change):
  with np.load(state_file) as file:
    arrays = dict(file)
  path = tmp_path / 'state.npz'
  np.savez(path, **arrays | change(arrays))
  with pytest.raises(saved.Damaged, match='expected|positions') as error:
    run(state_file=path)
  assert str(path) in str(error.value)
  assert 'Without this file the attack starts anew' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_state_that_cannot_be_written_is_known_before(monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  interrupted_after(monkeypatch, 0)
  with pytest.raises(OSError, match='file'):
    run(state_file=tmp_path / 'file' / 'state.npz')


@pytest.mark.parametrize('save_every', [-1, np.nan])
def test_save_every_is_checked(save_every):
  with pytest.raises(ValueError, match='Expected save_every='):
    run(save_every=save_every)


# Compiling.


class Changing:
  """A model whose weights change in place, as an NNX module's."""

  def __init__(self):
    self.weights = weights()

  def __call__(self, x):
    return apply_fn(self.weights, x)


@pytest.mark.parametrize('wrap', [jax.tree_util.Partial, lambda model: model])
def test_weights_that_change_in_place(wrap):
  model = Changing()
  assert_same(run(model=wrap(model)), whole())
  model.weights = weights(5)
  expected = run(model=jax.tree_util.Partial(apply_fn, weights(5)))
  assert expected.clean_accuracy < whole().clean_accuracy
  assert_same(run(model=wrap(model)), expected)


def test_nothing_compiles_again():
  last = np.flatnonzero(whole().broken_by == 2)[:1]
  run(x=X[last], y=Y[last])  # All attacks with the smallest batch.
  everything = dict(x=X[::-1], y=Y[::-1], key=1, individual=True)
  other = jax.tree_util.Partial(apply_fn, (weights()[0], 2 * weights()[1]))
  for options in ({}, {'model': other}, {'settings': autoattack(0.03)},
                  everything, {'x': X[:15], 'y': Y[:15]}):
    TRACED.clear()
    assert run(**options).broken_by.max() == 2  # Every attack found some.
    # The checks of every run: the shape of its logits, and twice their code.
    assert TRACED == [1, 1, 1]


def test_an_attack_that_leaves_the_ball_is_named_at_once(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Leaves(attacks.Attack):
    """The image, brighter than the radius allows."""
    eps: float = EPS
    norm: str = 'Linf'
    bounds: tuple[float, float] = (0., 1.)
    num_steps: int = 1
    num_restarts: int = 1
    num_targets: int = 0

    def init(self, problem):
      return problem.x

    def step(self, logits_fn, problem, state, key=None):
      return problem.x + 0.3

    def images(self, problem, state):
      return state

  state_file = tmp_path / 'state.npz'
  settings = attacks.AutoAttack(EPS, version='custom', attacks=(
      ('mine', Leaves()), ('apgd', attacks.APGD(EPS, num_iterations=1))))
  for _ in range(2):
    with pytest.raises(ValueError, match=r'^mine returned .*out of the ball'):
      run(settings=settings, state_file=state_file)
  # What was found is not kept.
  assert not state_file.exists() or not np.load(state_file)['found/mine'].size


# What is seen of it.


def lines_of(capsys):
  captured = capsys.readouterr()
  assert captured.out == ''
  return captured.err.splitlines()


def test_lines(capsys):
  result = run(progress=True)
  lines = lines_of(capsys)
  assert lines[0] == f'clean: accuracy {result.clean_accuracy:.2%}'
  for line, name in zip(lines[1:], result.names, strict=True):
    robust = result.flags[name].sum()
    assert re.fullmatch(
        rf'{name}: robust accuracy {robust / NUM_IMAGES:.2%} \({robust} of '
        rf'{NUM_IMAGES}\), \d+ s', line), line


def test_where_it_is_while_an_attack_runs():
  shares = {}

  class Task(reporting.Task):

    def __init__(self, name):
      self.name = name

    def advance(self, count=1, shown=None):
      shares.setdefault(self.name, []).append(shown['robust'])

  class Reporter(reporting.Reporter):
    left_over = {}

    def task(self, name, *args, **options):
      return Task(name)

    def remains(self, units):
      self.left_over |= units
  reporter = Reporter()
  result = run(progress=reporter)
  assert list(shares) == list(result.names)
  every = sum(shares.values(), [])
  assert len(every) > 10 and every == sorted(every, reverse=True)
  assert every[0] <= result.clean_accuracy
  assert every[-1] >= result.robust_accuracy
  assert reporter.left_over == dict.fromkeys(result.names, 0)


def test_no_lines(capsys):
  run(progress=False)
  assert lines_of(capsys) == []


def test_lines_of_a_run_that_goes_on(capsys, tmp_path):
  run(state_file=tmp_path / 'state.npz')
  run(state_file=tmp_path / 'state.npz', progress=True)
  lines = lines_of(capsys)
  assert len(lines) == 4


def test_nothing_is_left_of_a_run_that_fails():
  terminal = reporting.Terminal(active=True)
  with pytest.raises(ValueError, match='finite logits') as error:
    run(lambda x: MODEL(x) * np.nan, progress=terminal)
  # Although the error still holds what showed it.
  assert not terminal.rows(80) and error.tb


@pytest.mark.parametrize('individual', [False, True])
def test_work_that_remains(monkeypatch, individual):
  """It falls to 0, and never rises."""
  remaining = []
  tick = ensemble._Display.tick
  def noting(self, name, work, left, robust):
    remaining.append((work, left))
    tick(self, name, work, left, robust)
  monkeypatch.setattr(ensemble._Display, 'tick', noting)
  run(individual=individual)
  work, left = np.array([
      (work, sum(left.values())) for work, left in remaining]).T
  assert (np.diff(left) <= 0).all() and left[-1] < left[0] / 5
  # At first all runs of all attacks: 2 * 7, 2 * 2 and 4 * 2 * 5 passes.
  assert left[0] == 24 * (14 + 4 + 40)
  assert left[-1] <= work.sum() <= left[0]


def test_warnings_are_warned_at_the_caller():
  with pytest.warns(UserWarning, match='usually have 9 target') as found:
    result = run()
  assert [str(warning.message) for warning in found] == result.warnings
  assert found[0].filename == __file__


# Results.


def test_result():
  for result in (whole(), whole(individual=True)):
    predictions = np.array(jnp.argmax(MODEL(jnp.asarray(result.images)), -1))
    np.testing.assert_array_equal(result.predictions, predictions)
    np.testing.assert_array_equal(result.robust, predictions == Y)
    np.testing.assert_array_equal(result.labels, Y)
    np.testing.assert_array_equal(~result.correct,
                                  np.isin(np.arange(NUM_IMAGES), [3, 11]))
    np.testing.assert_array_equal(result.correct, result.broken_by != -1)
    untouched = result.broken_by < 0
    np.testing.assert_array_equal(result.images[untouched], X[untouched])
    np.testing.assert_allclose(
        result.norms, np.abs(result.images - X).max((1, 2, 3)), atol=1e-7)
    assert result.robust_accuracy == result.robust.sum() / NUM_IMAGES
    assert result.clean_accuracy == (NUM_IMAGES - 2) / NUM_IMAGES
  assert not whole().images_by_attack
  assert list(result.images_by_attack) == list(result.names)
  for name, images in result.images_by_attack.items():
    predictions = np.array(jnp.argmax(MODEL(jnp.asarray(images)), -1))
    np.testing.assert_array_equal(predictions == Y, result.flags[name])
    untouched = result.flags[name] | ~result.correct
    np.testing.assert_array_equal(images[untouched], X[untouched])


@pytest.mark.parametrize('individual', [False, True])
def test_ties_fool_nobody(monkeypatch, individual):
  """Square ends at a margin of 0, where the model may still be right."""
  def model(x):
    other = -jax.nn.relu(x.mean((1, 2, 3)) - 0.3)
    return jnp.stack([jnp.zeros_like(other), other], -1)
  x = np.linspace(0.31, 0.45, 8, dtype='f').reshape(-1, 1, 1, 1)
  x = np.tile(x, (1, *SHAPE))
  settings = attacks.AutoAttack(0.1, version='custom', attacks=(
      ('square', attacks.Square(0.1, num_queries=30, num_restarts=2)),))
  said, slots_run = [], slots.Slots.run
  def noting(self, *args):
    for outcome in slots_run(self, *args):
      said.append((outcome.index, outcome.attempt, outcome.fooled))
      yield outcome
  monkeypatch.setattr(slots.Slots, 'run', noting)
  result = run(model, x=x, y=np.zeros(8, int), settings=settings,
               individual=individual, batch_size=1)
  # It says so of some, in both runs, and after that nobody asks again.
  assert sum(fooled for _, run, fooled in said if run == 1) > 2
  assert sorted(pair[:2] for pair in said) == [
      (index, number) for index in range(8) for number in range(2)]
  assert result.robust_accuracy == result.accuracy_after['square'] == 1
  np.testing.assert_array_equal(result.images, x)


def test_flags_of_attacks_in_turn():
  result = whole()
  for position, name in enumerate(result.names):
    np.testing.assert_array_equal(
        result.flags[name],
        (result.broken_by == -2) | (result.broken_by > position))
  after = list(result.accuracy_after.values())
  assert after == sorted(after, reverse=True)
  assert after[-1] == result.robust_accuracy


def test_flags_of_attacks_alone():
  alone, together = whole(individual=True), whole()
  # The same images are robust, as keys do not depend on who ran before.
  np.testing.assert_array_equal(alone.robust, together.robust)
  np.testing.assert_array_equal(alone.broken_by, together.broken_by)
  robust = alone.correct
  for name in alone.names:
    robust = robust & alone.flags[name]
    np.testing.assert_array_equal(robust, together.flags[name])
    assert alone.robust_accuracy <= alone.accuracy_after[name]
  assert max(alone.accuracy_after.values()) > alone.robust_accuracy


def test_per_class():
  result = whole()
  found = result.per_class()
  assert list(found) == ['clean', *result.names, 'autoattack']
  for label in range(NUM_CLASSES):
    of_class = Y == label
    assert found['clean'][label] == result.correct[of_class].mean()
    assert found['ce'][label] == result.flags['ce'][of_class].mean()
    assert found['autoattack'][label] == result.robust[of_class].mean()
  more = result.per_class(NUM_CLASSES + 2)
  np.testing.assert_array_equal(more['ce'][:-2], found['ce'])
  assert np.isnan(more['clean'][-2:]).all()
  for too_few in (0, 1, NUM_CLASSES - 1):
    with pytest.raises(ValueError, match='num_classes=. to be at least 5'):
      result.per_class(too_few)


def test_table():
  result = dataclasses.replace(
      whole(), labels=np.where(Y == 1, 2, Y), warnings=['Mind the gap.'])
  first, _, header, _, *rows, warning = result.table().splitlines()
  assert first.startswith('version custom, norm Linf, eps 0.02, ')
  assert f'images {NUM_IMAGES}, seed [0, 0], dtype float32, jax ' in first
  assert header == ('| after (and all before) | average | success | worst class'
                    ' | seconds | 0 | 2 | 3 | 4 |')  # No class 1.
  assert [row.split(' | ')[0] for row in rows] == [
      '| clean', '| square', '| ce', '| targeted', '| autoattack']
  classes = result.per_class()['targeted'][[0, 2, 3, 4]]
  assert rows[0].split(' | ')[2] == '-'
  assert rows[3] == (
      f'| targeted | {result.robust_accuracy:.2%} | '
      f'{result.success_rate:.2%} | {classes.min():.2%} | '
      f'{result.seconds["targeted"]:.1f} | '
      + ' | '.join(f'{value:.1%}' for value in classes) + ' |')
  assert warning == 'Warning: Mind the gap.'
  nothing_right = dataclasses.replace(
      result, correct=np.zeros(NUM_IMAGES, bool))
  assert 'nan' not in nothing_right.table()
  assert '| after (alone) |' in whole(individual=True).table()


def test_models_and_their_weights_are_let_go():
  def model(x, variables=weights()):  # noqa: B008
    return apply_fn(variables, x)
  run(model)
  gone = weakref.ref(model)
  del model
  gc.collect()
  assert gone() is None
