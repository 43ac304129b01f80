"""Tests of ferd_jax.synthesis.ferd: losses, generator steps, margins."""

import dataclasses
import functools
import itertools

import as_if_trained
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax import losses
from ferd_jax import models
from ferd_jax.core import augment
from ferd_jax.core import parallel
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import layers
from ferd_jax.run import method as methods
from ferd_jax.synthesis import base
from ferd_jax.synthesis import bottleneck
from ferd_jax.synthesis import ferd

CLASSES, BATCH, SHAPE, TAP = 3, 4, (8, 8, 1), 'conv2'
# Compiling for speed takes longer than these tests run.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})


class TwoLayers(models.StagedModel):
  """A classifier that compiles fast."""

  @property
  def stages(self):
    return ('conv1', 'conv2', 'head')

  def run_stage(self, stage, x, train):
    if stage == 'head':
      x = layers.BatchNorm(self.axis_name, name='bn')(x, train=train)
      return layers.Dense(self.num_classes, name=stage)(
          layers.global_mean(nn.relu(x)))
    norm = layers.BatchNorm(self.axis_name, name=f'{stage}_bn')
    return nn.relu(norm(layers.Conv(6, name=stage)(x), train=train))


MODEL = TwoLayers(CLASSES)
SETTINGS = ferd.Ferd(
    teacher=MODEL, student=MODEL, image_shape=SHAPE, pad=2, flip=True,
    warmup_epochs=2, student_steps=6, eps=0.1, steps=4, batch_size=BATCH, nz=5,
    width=4, tap=TAP, bottleneck=bottleneck.Bottleneck(steps=2, unroll=True))
GENERATOR = SETTINGS.generator_module
pytestmark = pytest.mark.usefixtures('float64')


def random_variables(model, seed):
  return as_if_trained.random_variables(model, SHAPE, seed)


def assert_equal(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope='module')
def networks():
  teacher = random_variables(MODEL, 0)
  latents = forward.logits(MODEL, teacher, VIEW, stop=TAP)
  variance = float(bottleneck.spatial_variance(latents).max())
  # Latents as strong as the noise, so that some channels are robust.
  for name in ('scale', 'bias'):
    teacher['params']['conv2_bn'][name] *= np.log(2) / np.sqrt(variance)
  return frozens.Frozen(
      teachers={frozens.ROBUST: teacher}, student=random_variables(MODEL, 1),
      epoch=jnp.asarray(0))


def teacher_of(networks):
  return networks.teachers[frozens.ROBUST]


def with_teacher(networks, teacher):
  return networks.replace(teachers={frozens.ROBUST: teacher})


@pytest.fixture(scope='module')
def start():
  return new_phase(jax.random.key(0))


def new_phase(key):
  return begin(SETTINGS, None, jnp.full(CLASSES, 1 / CLASSES),
               np.arange(BATCH), key)


begin = jit(ferd.Ferd.begin, static_argnums=0)
step = jit(ferd.Ferd.step, static_argnums=0)
view_loss = jit(ferd.Ferd.view_loss, static_argnums=0)


@jit
def generate(generator, latents):
  return GENERATOR.apply(
      {'params': generator.params, 'batch_stats': generator.batch_stats},
      latents, mutable=['batch_stats'])[0]


@pytest.fixture(scope='module')
def run(start, networks):
  """Returns the states before and after four steps, and their metrics."""
  states, found = [start], []
  for i in range(4):
    state, metrics = step(SETTINGS, states[-1], networks, jax.random.key(i))
    states.append(state)
    found.append(metrics)
  return states, found


VIEW = np.random.default_rng(3).uniform(size=(BATCH, *SHAPE))
LABELS = np.array([0, 2, 1, 2])


def keys(seed=0):
  return jax.random.split(jax.random.key(seed), BATCH)


def terms(settings, networks, view=VIEW, seed=0):
  return view_loss(settings, view, LABELS, keys(seed), networks)[1]


@pytest.mark.parametrize('arch', ['cifar_resnet8', 'wrn_10_1'])
def test_tail_of_tap_is_the_teacher(arch):
  model = models.build(arch, CLASSES, width=4)
  variables = random_variables(model, 0)
  run = jit(forward.logits, static_argnums=0, static_argnames=('start', 'stop'))
  latents = run(model, variables, VIEW, stop=model.default_tap)
  np.testing.assert_allclose(
      run(model, variables, latents * np.ones((BATCH, 1, 1, 1)),
          start=model.default_tap),
      run(model, variables, VIEW), atol=1e-12)


def softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


@jit
def forwards(networks):
  """Returns logits of both networks, masked logits and the mask."""
  teacher = functools.partial(forward.logits, MODEL, teacher_of(networks))
  latents = teacher(VIEW, stop=TAP)
  sigma = bottleneck.noise_levels(
      lambda latents: teacher(latents, start=TAP), latents, LABELS, keys(),
      SETTINGS.bottleneck)
  mask = bottleneck.non_robust_mask(sigma, bottleneck.spatial_variance(latents))
  return (teacher(VIEW), forward.logits(MODEL, networks.student, VIEW),
          teacher(latents * mask, start=TAP), mask)


def test_terms_by_hand(networks):
  got = terms(SETTINGS, networks)
  logits, student_logits, masked, mask = map(np.array, forwards(networks))
  probs = softmax(logits)
  np.testing.assert_allclose(
      got['oh'], -np.log(probs[np.arange(BATCH), LABELS]).mean())

  weights, d = softmax(logits / 100), logits - student_logits
  mean = (weights * d).sum(-1, keepdims=True)
  wmse = 0.5 * (weights * (d - mean) ** 2).sum(-1).mean()
  sce = -(probs * np.log(softmax(student_logits))).sum(-1).mean()
  np.testing.assert_allclose(got['adv'], -(wmse + sce))

  np.testing.assert_allclose(
      got['uni'],
      (np.log(1 / CLASSES) - np.log(softmax(masked))).mean())
  np.testing.assert_allclose(got['non_robust'], mask.mean())
  assert 0 < mask.mean() < 1
  np.testing.assert_allclose(got['agreement'],
                             (logits.argmax(-1) == LABELS).mean())
  np.testing.assert_allclose(
      got['loss'],
      5 * got['bn'] + got['oh'] + got['adv'] + 5 * got['uni'])


@pytest.mark.parametrize('steps', [1, 2])
def test_attacked_views_by_hand(steps, networks):
  settings = dataclasses.replace(SETTINGS, attacked_steps=steps, w_uni=0.)
  teacher = teacher_of(networks)
  gradient = jit(jax.grad(lambda x: losses.cross_entropy(
      forward.logits(MODEL, teacher, x), LABELS).sum()))
  attacked = VIEW
  for _ in range(steps):
    attacked = attacked + 0.1 / steps * np.sign(gradient(attacked))
    attacked = np.clip(attacked, VIEW - 0.1, VIEW + 0.1).clip(0, 1)
  got = terms(settings, networks)
  logits = np.array(forward.logits(MODEL, teacher, attacked))
  np.testing.assert_allclose(
      got['oh'], -np.log(softmax(logits)[np.arange(BATCH), LABELS]).mean())
  np.testing.assert_allclose(got['withstood'],
                             (logits.argmax(-1) == LABELS).mean())
  # The other terms are those of the view.
  plain = terms(dataclasses.replace(SETTINGS, w_uni=0.), networks)
  for name in ('bn', 'adv', 'agreement'):
    np.testing.assert_allclose(got[name], plain[name])
  assert got['oh'] > plain['oh']
  # The gradient at an attacked view is that of the view.
  def loss(view):
    return ferd.Ferd.view_loss(
        dataclasses.replace(settings, w_bn=0., w_adv=0.), view, LABELS, keys(),
        networks)[0]
  np.testing.assert_allclose(jit(jax.grad(loss))(VIEW),
                             gradient(attacked) / BATCH, atol=1e-12)


def test_uniformity_of_attacked_views(networks):
  settings = dataclasses.replace(SETTINGS, attacked_steps=1)
  attacked = ferd.Ferd._attacked(settings, teacher_of(networks),
                                 jnp.asarray(VIEW), LABELS)
  np.testing.assert_allclose(
      terms(settings, networks)['uni'],
      terms(SETTINGS, networks, view=attacked)['uni'])


def test_disagreement_is_not_driven_further(networks):
  settings = dataclasses.replace(SETTINGS, adv_agreed=True, w_uni=0.)
  teacher = teacher_of(networks)
  logits = np.array(forward.logits(MODEL, teacher, VIEW))
  # A student that predicts class 0 where the teacher is less sure that it is
  # none.
  gaps = logits.max(-1) - logits[:, 0]
  shift = np.array([np.median(gaps), 0, 0])
  student = jax.tree.map(jnp.asarray, teacher)
  student['params']['head']['bias'] += shift
  agreed = logits.argmax(-1) == (logits + shift).argmax(-1)
  assert 0 < agreed.sum() < BATCH
  got = terms(settings, networks.replace(student=student))
  expected = losses.decoupled_kl_terms(logits, logits + shift,
                                       softmax(logits / 100))
  np.testing.assert_allclose(got['adv'], -np.mean(agreed * expected))
  np.testing.assert_allclose(got['adv_agreed'], agreed.mean())


def test_mask_of_ones_and_of_zeros(networks):
  # Strong features: the noise exceeds no variance, and every channel is
  # non-robust. Features constant in space: every channel is robust.
  strong = terms(SETTINGS, networks, view=100 * VIEW)
  logits = forward.logits(MODEL, teacher_of(networks), 100 * VIEW)
  assert strong['non_robust'] == 1
  np.testing.assert_allclose(strong['uni'], losses.uniformity(logits).mean())
  flat = jax.tree.map(jnp.asarray, networks)
  teacher_of(flat)['params']['conv2']['kernel'] *= 0
  weak = terms(SETTINGS, flat)
  latents = jnp.zeros((1, 8, 8, 6))
  logits = forward.logits(MODEL, teacher_of(flat), latents, start=TAP)
  assert weak['non_robust'] == 0
  np.testing.assert_allclose(weak['uni'], losses.uniformity(logits)[0])


def test_bn_is_zero_if_running_statistics_are_the_batchs(networks):
  @jit
  def moments(teacher):
    return forward.logits_and_moments(MODEL, teacher, VIEW)[1]
  teacher = teacher_of(networks)
  for _ in range(3):  # Each pass settles one layer more.
    teacher = teacher | {'batch_stats': moments(teacher)}
  assert terms(SETTINGS, networks)['bn'] > 0.1
  fitted = with_teacher(networks, teacher)
  np.testing.assert_allclose(terms(SETTINGS, fitted)['bn'], 0, atol=1e-12)
  # The statistics are those of a pass in training mode.
  np.testing.assert_allclose(
      forward.logits(MODEL, teacher, VIEW),
      forward.train_logits(MODEL, teacher_of(networks), VIEW)[0], atol=1e-12)
  gradient = jit(jax.grad(lambda view: SETTINGS.view_loss(
      view, LABELS, keys(), fitted)[0]))(VIEW)
  assert np.isfinite(gradient).all()


def test_bn_is_that_of_the_one_clean_pass(networks):
  @jit
  def clean(teacher):
    moments = forward.logits_and_moments(MODEL, teacher, VIEW)[1]
    return losses.moment_gap(moments, teacher['batch_stats'])
  expected = clean(teacher_of(networks))
  # Neither the bottleneck's passes nor the masked one enter it.
  without = dataclasses.replace(SETTINGS, w_uni=0.)
  for settings, seed in ((SETTINGS, 0), (SETTINGS, 1), (without, 0)):
    np.testing.assert_allclose(terms(settings, networks, seed=seed)['bn'],
                               expected, rtol=1e-12)


@pytest.mark.parametrize(('arch', 'count'),
                         [('wrn_34_10', 31), ('preact_resnet34', 33)])
def test_number_of_bn_terms(arch, count):
  model = models.build(arch, CLASSES, width=4)
  tap = model.default_tap

  def moments(key, view):
    teacher = models.init_variables(model, key, (32, 32, 3))
    latents, first = forward.logits_and_moments(model, teacher, view, stop=tap)
    return [first, forward.logits_and_moments(model, teacher, latents,
                                              start=tap)[1]]
  abstract = jax.eval_shape(moments, jax.random.key(0),
                            jnp.zeros((2, 32, 32, 3)))
  assert len(jax.tree.leaves(abstract)) == 2 * count


WEIGHTS = ('w_bn', 'w_oh', 'w_adv', 'w_uni')


@pytest.mark.parametrize('name', WEIGHTS)
def test_terms_of_weight_zero_are_not_computed(name, networks):
  found = {}
  for weight in (0., 1.):
    settings = dataclasses.replace(SETTINGS, **{name: weight})
    found[weight] = set(jax.eval_shape(
        settings.view_loss, VIEW, LABELS, keys(), networks)[1])
  term = name.removeprefix('w_')
  missing = {term, 'non_robust'} if term == 'uni' else {term}
  assert found[1.] - found[0.] == missing


@pytest.mark.parametrize(('epoch', 'warmup_adv', 'counts'), [
    (0, False, False), (1, False, False), (2, False, True), (9, False, True),
    (0, True, True), (1, True, True), (2, True, True)])
def test_adversarial_term_counts_after_the_warm_up(epoch, warmup_adv, counts,
                                                   networks):
  settings = dataclasses.replace(SETTINGS, warmup_adv=warmup_adv)
  without = dataclasses.replace(SETTINGS, w_adv=0.)
  got = terms(settings, networks.replace(epoch=jnp.asarray(epoch)))
  assert abs(got['adv']) > 0.1
  np.testing.assert_allclose(
      got['loss'],
      terms(without, networks)['loss'] + (got['adv'] if counts else 0),
      rtol=1e-12)


def test_networks_stay_as_they_are(networks, start):
  before = jax.tree.map(np.array, networks)
  state, _ = step(SETTINGS, start, networks, jax.random.key(0))
  SETTINGS.images(state, networks, jax.random.key(0))
  SETTINGS.measured_images(state, networks, jax.random.key(0))
  assert_equal(networks, before)


def test_best_images_are_the_uncropped_output_of_the_best_step(run):
  states, metrics = run
  losses_found = [float(found['loss']) for found in metrics]
  outputs = [np.array(generate(state.generator, state.examples.latents))
             for state in states[:-1]]
  for i in range(1, len(states)):
    best = np.argmin(losses_found[:i])
    np.testing.assert_allclose(states[i].examples.best_images, outputs[best],
                               atol=1e-12)
    assert states[i].generator.best_loss == losses_found[best]
  images = np.array(states[-1].examples.best_images)
  assert 0 < images.min() and images.max() < 1
  assert not np.allclose(outputs[0], outputs[1], atol=1e-6)


def test_view_is_a_crop_of_the_last_output(run):
  states, _ = run
  images = np.array(generate(states[-2].generator, states[-2].examples.latents))
  found = np.zeros(BATCH, bool)
  crop = jax.jit(augment.crop_flip, static_argnames='pad')
  for row, column, mirror in itertools.product(range(5), range(5), range(2)):
    candidate = crop(images, jnp.full((BATCH, 2), jnp.array([row, column])),
                     jnp.full(BATCH, bool(mirror)), pad=2)
    found |= np.isclose(candidate, states[-1].examples.view,
                        atol=1e-12).all((1, 2, 3))
  assert found.all()
  assert not np.allclose(images, states[-1].examples.view)


def test_only_a_smaller_loss_replaces_the_best(start, networks):
  key = jax.random.key(0)
  state, metrics = step(SETTINGS, start, networks, key)

  def images_after(best_loss):
    before = start.replace(
        generator=start.generator.replace(best_loss=best_loss),
        examples=start.examples.replace(
            best_images=jnp.full((BATCH, *SHAPE), 7., jnp.float64)))
    return step(SETTINGS, before, networks, key)[0].examples.best_images
  tie = metrics['loss']
  assert (np.asarray(images_after(tie)) == 7).all()
  assert_equal(images_after(jnp.nextafter(tie, np.float64(np.inf))),
               state.examples.best_images)


def test_keep_last(start, networks):
  # With one term only, to compile fast.
  settings = dataclasses.replace(SETTINGS, keep='last', w_bn=0., w_adv=0.,
                                 w_uni=0.)
  before = start.replace(
      generator=start.generator.replace(best_loss=np.float64(-1e9)))
  after, metrics = step(settings, before, networks, jax.random.key(3))
  np.testing.assert_allclose(
      after.examples.best_images,
      generate(before.generator, before.examples.latents), atol=1e-12)
  assert after.generator.best_loss == metrics['loss'] > 0


def test_first_steps_of_the_two_optimisers(run):
  before, after = run[0][:2]
  latents = np.abs(after.examples.latents - before.examples.latents)
  # Adam's first step is the learning rate, where there is a gradient.
  assert latents.max() <= 0.015 * (1 + 1e-6)
  np.testing.assert_allclose(np.median(latents), 0.015, rtol=1e-3)
  params = np.concatenate([
      np.abs(new - old).ravel() for new, old in zip(
          jax.tree.leaves(after.generator.params),
          jax.tree.leaves(before.generator.params), strict=True)])
  assert params.max() <= 2e-3 * (1 + 1e-6)
  np.testing.assert_allclose(np.median(params), 2e-3, rtol=1e-3)


@pytest.mark.parametrize(('name', 'rate'), [
    ('generator_optimizer', 2e-3), ('latent_optimizer', 0.015)])
def test_optimisers_are_adam_with_beta_half(name, rate):
  optimizer = getattr(SETTINGS, name)
  rng = np.random.default_rng(0)
  state, first, second = optimizer.init(jnp.zeros(3)), 0., 0.
  for i in range(1, 4):
    gradient = rng.normal(size=3)
    got, state = optimizer.update(jnp.asarray(gradient), state)
    first = 0.5 * first + 0.5 * gradient
    second = 0.999 * second + 0.001 * gradient ** 2
    expected = -rate * (first / (1 - 0.5 ** i)) / (
        np.sqrt(second / (1 - 0.999 ** i)) + 1e-8)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_each_phase_starts_anew(start):
  other = new_phase(jax.random.key(1))
  for one, two in zip(jax.tree.leaves(start.generator.params),
                      jax.tree.leaves(other.generator.params), strict=True):
    # Biases start at 0, weights are drawn.
    drawn = np.any(one)
    assert drawn == np.any(two)
    assert drawn != np.array_equal(one, two)
  assert not np.isclose(start.examples.latents, other.examples.latents).any()
  for state in (start, other):
    for optimiser in (state.generator.opt_state, state.examples.opt_state):
      assert not any(np.any(leaf) for leaf in jax.tree.leaves(optimiser))
    assert state.generator.best_loss == np.inf
    np.testing.assert_array_equal(state.examples.best_images,
                                  np.zeros((BATCH, *SHAPE)))


def test_labels_follow_the_probabilities_and_latents_are_normal(start):
  probs = np.array([0.7, 0., 0.3])
  examples = begin(SETTINGS, None, probs, np.arange(2000),
                   jax.random.key(0)).examples
  counts = np.bincount(examples.labels, minlength=3)
  assert examples.labels.dtype == jnp.int32 and counts[1] == 0
  np.testing.assert_allclose(counts / 2000, probs, atol=0.05)
  assert examples.latents.shape == (2000, 5)
  np.testing.assert_allclose(np.mean(examples.latents), 0, atol=0.05)
  np.testing.assert_allclose(np.std(examples.latents), 1, atol=0.05)
  # An example depends on its index, and not on who else is there.
  probs = np.full(CLASSES, 1 / CLASSES)
  whole = begin(SETTINGS, None, probs, np.arange(2000),
                jax.random.key(0)).examples
  assert_equal((whole.labels[:BATCH], whole.latents[:BATCH]),
               (start.examples.labels, start.examples.latents))
  # Neighbours share no label beyond chance: labels are not sorted.
  assert np.mean(np.diff(examples.labels) != 0) > 0.3


def test_margins_per_class(run, networks):
  examples = run[0][-1].examples
  labels = np.array([0, 2, 2, 0])
  attacked = np.random.default_rng(8).uniform(size=(BATCH, *SHAPE))
  measured = methods._measure(base.Measurement(), MODEL, CLASSES, attacked,
                              labels, teacher_of(networks))
  logits = np.array(forward.logits(MODEL, teacher_of(networks), attacked))
  margins = [row[y] - np.delete(row, y).max()
             for row, y in zip(logits, labels, strict=True)]
  np.testing.assert_allclose(
      measured.values,
      [margins[0] + margins[3], 0, margins[1] + margins[2]])
  np.testing.assert_array_equal(measured.counts, [2, 0, 2])
  # Of the teacher alone: there need not even be a student.
  judged = methods._judge(MODEL, examples.best_images, labels,
                          networks.replace(student=None))
  kept = forward.logits(MODEL, teacher_of(networks), examples.best_images)
  np.testing.assert_allclose(judged.agreement,
                             (np.argmax(kept, -1) == labels).mean())
  np.testing.assert_array_equal(judged.labels, np.argmax(kept, -1))


def test_images_and_measured_images(run, networks):
  state = run[0][-1]
  examples, key = state.examples, jax.random.key(0)
  best = dataclasses.replace(SETTINGS, measured='best')
  for settings, expected in ((SETTINGS, examples.view),
                             (best, examples.best_images)):
    images, labels = settings.measured_images(state, networks, key)
    assert images is expected and labels is examples.labels
    images, labels = settings.images(state, networks, key)
    assert images is examples.best_images and labels is examples.labels


def test_an_epoch_keeps_its_generator(run):
  state = run[0][-1]
  first = SETTINGS.init(jax.random.key(0))
  kept = SETTINGS.end(first, state)
  assert_equal(kept, {'params': state.generator.params,
                      'batch_stats': state.generator.batch_stats})
  assert jax.tree.structure(first) == jax.tree.structure(kept)
  module, network, variables = SETTINGS.generator(kept)
  assert variables is kept
  latents = state.examples.latents
  exported = network.build()
  assert exported == module == GENERATOR
  # One is compiled as a whole.
  np.testing.assert_allclose(
      exported.apply(variables, latents, mutable=['batch_stats'])[0],
      generate(state.generator, latents), atol=1e-12)


def test_a_phase_may_go_on_with_the_generator_of_the_one_before(run):
  state = run[0][-1]
  kept = SETTINGS.end(SETTINGS.init(jax.random.key(0)), state)
  begun = begin(dataclasses.replace(SETTINGS, new_generator=False), kept,
                jnp.full(CLASSES, 1 / CLASSES), np.arange(BATCH),
                jax.random.key(1))
  assert_equal(begun.generator.variables, kept)
  # All else is new.
  anew = new_phase(jax.random.key(1))
  assert_equal(begun.examples, anew.examples)
  assert_equal(begun.generator.opt_state, anew.generator.opt_state)
  assert begun.generator.best_loss == np.inf


def test_an_epoch_is_one_round_with_a_pool():
  assert SETTINGS.rounds == base.Rounds(4, 6, per_epoch=1, pooled=True)
  several = dataclasses.replace(SETTINGS, rounds_per_epoch=3)
  assert several.rounds == base.Rounds(4, 2, per_epoch=3, pooled=True)
  assert SETTINGS.samples_labels


def test_specs_say_what_belongs_to_examples(start):
  kept, phase = SETTINGS.specs()
  assert kept is parallel.REPLICATED
  specs = jax.tree.leaves(jax.tree.broadcast(phase, start))
  leaves = jax.tree_util.tree_leaves_with_path(start)
  for spec, (path, leaf) in zip(specs, leaves, strict=True):
    by_example = path[0].name == 'examples' and leaf.shape[:1] == (BATCH,)
    assert (spec is parallel.SHARDED) == by_example, path
  assert set(specs) == {parallel.SHARDED, parallel.REPLICATED}


@pytest.mark.parametrize(('options', 'message'), [
    ({'attacked_steps': 1, 'w_oh': 0., 'w_uni': 0.}, 'attacked_steps=1'),
    ({'tap': 'head'}, "tap='head'"), ({'keep': 'first'}, "keep='first'"),
    ({'measured': 'all'}, "measured='all'"), ({'width': 5}, 'width=5'),
    ({'w_uni': -1.}, 'w_uni=-1.0'), ({'pad': -1}, 'pad=-1'),
    ({'latent_lr': 0.}, 'latent_lr=0.0'), ({'batch_size': 0}, 'batch_size=0'),
    ({'steps': 0}, 'steps=0'), ({'rounds_per_epoch': 0}, 'rounds_per_epoch=0'),
    ({'rounds_per_epoch': 4}, 'rounds_per_epoch=4 to divide distill.steps=6'),
    (dict.fromkeys(WEIGHTS, 0.), 'w_bn=0.0 or one'),
    ({'image_shape': (6, 6, 1)}, 'divisible by 4, not .6, 6, 1.'),
    ({'teacher': nn.Dense(CLASSES)}, 'w_bn=5.0 to be 0'),
    ({'teacher': nn.Dense(CLASSES), 'w_bn': 0.}, 'w_uni=5.0 to be 0')])
def test_invalid_settings(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SETTINGS, **options)
