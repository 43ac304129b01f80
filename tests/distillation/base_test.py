"""What the student step gives to inner attacks and outer losses, by need."""

import dataclasses
import functools

import as_if_trained
from flax import core as flax_core
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ferd_jax import models
from ferd_jax.distillation import base
from ferd_jax.distillation import distill
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import layers

CLASSES, BATCH, SHAPE, SHIFT = 3, 4, (4, 4, 1), 0.1
OTHER = 'clean'  # a second teacher


class OneLayer(models.StagedModel):
  """A classifier that compiles fast."""

  @property
  def stages(self):
    return ('conv', 'head')

  def run_stage(self, stage, x, train):
    if stage == 'conv':
      x = layers.Conv(4, name=stage)(x)
      norm = layers.BatchNorm(self.axis_name, name='bn')
      return nn.relu(norm(x, train=train))
    return layers.Dense(self.num_classes, name=stage)(layers.global_mean(x))


class Forbidden(nn.Module):
  """A network that must not be evaluated."""

  @nn.compact
  def __call__(self, x):
    raise AssertionError('This network must not be evaluated.')


MODEL = OneLayer(CLASSES)


@dataclasses.dataclass(frozen=True)
class Shift:
  """Makes images brighter, and notices what it can see; counts batches."""
  needs: tuple[str, ...] = ()
  notices: tuple[str, ...] = ('labels', 'word')

  def init(self, num_classes):
    del num_classes
    return jnp.zeros([])

  def update(self, state, outputs, *, axis_name=None):
    del axis_name
    return state + jnp.sum(outputs.labels)

  def __call__(self, state, networks, images, labels, t_clean, class_state,
               keys):
    assert set(self.needs) <= set(t_clean)
    noticed = {
        'labels': labels, 'count': jnp.full(BATCH, class_state),
        'own': jnp.full(BATCH, state),
        'student': networks.student(images)[:, 0],
        'student_train': networks.student_train(images)[:, 0],
        'word': jax.vmap(jax.random.bits)(keys)}
    # It would have a gradient if none was stopped.
    noise = 1e-3 * networks.student(images)[:, :1, None, None]
    return base.Attacked(images + SHIFT + noise, noticed)


@dataclasses.dataclass(frozen=True)
class Looking:
  """A loss that counts batches and shows what it reads in the metrics."""
  needs: base.Needs = base.Needs()

  def init(self, num_classes):
    del num_classes
    return jnp.zeros([])

  def __call__(self, state, outputs, *, axis_name=None):
    del axis_name
    weights = 1 + outputs.noticed['labels']
    found = [jnp.mean(weights[:, None] * logits ** 2)
             for logits in (outputs.s_clean, outputs.s_adv)
             if logits is not None]
    return sum(found), state + 1, {'outputs': outputs}
pytestmark = pytest.mark.usefixtures('float64')


def random_variables(seed):
  return as_if_trained.random_variables(MODEL, SHAPE, seed)


def settings(needs=None, *, inner=(), teachers=(), **options):
  return distill.Settings(**{
      'teachers': flax_core.FrozenDict({frozens.ROBUST: MODEL, OTHER: MODEL}
                                       | dict(teachers)),
      'student': MODEL, 'inner': Shift(inner),
      'outer': Looking(needs or base.Needs()), 'optimizer': optax.sgd(0.1),
      'batch_size': BATCH, 'pad': 0, 'flip': False} | options)


STUDENT, ROBUST_SEED, OTHER_SEED = 0, 1, 2
IMAGES = np.random.default_rng(3).uniform(size=(BATCH, *SHAPE))
LABELS = np.array([0, 2, 1, 2], np.int32)
# Compiling for speed takes longer than these tests run.
step = jax.jit(lambda *args: distill.step(*args)[:2], static_argnums=0,
               compiler_options={'xla_backend_optimization_level': 0})


def run(settings, labels=LABELS):
  """Returns the state after a step, what the loss read, and the metrics."""
  state = distill.init(settings, random_variables(STUDENT), CLASSES)
  frozen = frozens.Frozen(
      teachers={frozens.ROBUST: random_variables(ROBUST_SEED),
                OTHER: random_variables(OTHER_SEED)},
      student=None, epoch=jnp.asarray(7))
  batch = distill.StudentBatch(jnp.asarray(IMAGES), labels)
  state = state.replace(inner=state.inner + 3, outer=state.outer + 5)
  state, metrics = step(settings, state, batch, frozen, jax.random.key(0))
  metrics = dict(metrics)
  return state, metrics.pop('outputs'), metrics


def logits(seed, images):
  return forward.logits(MODEL, random_variables(seed), images)


def trained(variables, images):
  """Returns logits in training mode and the variables after them."""
  found, batch_stats = forward.train_logits(MODEL, variables, images)
  return found, variables | {'batch_stats': batch_stats}


def attacked(variables):
  student = forward.logits(MODEL, variables, IMAGES)
  return IMAGES + SHIFT + 1e-3 * np.array(student)[:, :1, None, None]


def assert_close(first, second):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9,
                                 atol=1e-12), first, second)


@pytest.fixture(scope='module')
def usual():
  return run(settings())


def test_clean_pass_then_attack_then_adversarial_pass(usual):
  state, outputs, metrics = usual
  s_clean, after = trained(random_variables(STUDENT), IMAGES)
  images = attacked(after)
  s_adv, after = trained(after, images)
  assert_close(outputs.s_clean, s_clean)
  assert_close(outputs.s_adv, s_adv)
  assert_close(state.variables['batch_stats'], after['batch_stats'])
  assert_close(outputs.t_clean, {frozens.ROBUST: logits(ROBUST_SEED, IMAGES)})
  assert outputs.t_adv == {} and outputs.epoch == 7
  np.testing.assert_array_equal(outputs.labels, LABELS)
  teacher = np.argmax(logits(ROBUST_SEED, IMAGES), -1)
  for name, student in (('clean', s_clean), ('adv', s_adv)):
    assert metrics[f'{name}_agreement'] == np.mean(
        np.argmax(student, -1) == teacher)


def test_adversarial_pass_first(usual):
  state, outputs, _ = run(settings(base.Needs(adversarial_first=True)))
  images = attacked(random_variables(STUDENT))
  s_adv, after = trained(random_variables(STUDENT), images)
  s_clean, after = trained(after, IMAGES)
  assert_close(outputs.s_clean, s_clean)
  assert_close(outputs.s_adv, s_adv)
  assert_close(state.variables['batch_stats'], after['batch_stats'])
  # By hand: both means enter with a tenth, the last one most.
  start = random_variables(STUDENT)
  usual_mean, mean = (found.variables['batch_stats']['bn']['mean']
                      for found in (usual[0], state))
  clean, adv = (
      np.array(forward.logits_and_moments(MODEL, start, x)[1]['bn']['mean'])
      for x in (IMAGES, images))
  before = np.array(start['batch_stats']['bn']['mean'])
  np.testing.assert_allclose(mean, 0.81 * before + 0.09 * adv + 0.1 * clean)
  assert np.abs(np.subtract(usual_mean, mean)).max() > 1e-4


@pytest.mark.parametrize('adversarial_first', [False, True])
@pytest.mark.parametrize('seen', ['clean', 'adv'])
def test_student_passes_once_where_once_is_needed(seen, adversarial_first):
  needs = base.Needs(s_clean=seen == 'clean', s_adv=seen == 'adv',
                     adversarial_first=adversarial_first)
  state, outputs, metrics = run(settings(needs))
  start = random_variables(STUDENT)
  images = IMAGES if seen == 'clean' else attacked(start)
  student, after = trained(start, images)
  assert_close(state.variables['batch_stats'], after['batch_stats'])
  found = {'clean': outputs.s_clean, 'adv': outputs.s_adv}
  assert_close(found.pop(seen), student)
  assert list(found.values()) == [None]
  assert {name for name in metrics if name.endswith('agreement')} == {
      f'{seen}_agreement'}


def test_teachers_see_attacked_images_where_needed():
  _, outputs, _ = run(settings(base.Needs(t_adv=(frozens.ROBUST,))))
  _, after = trained(random_variables(STUDENT), IMAGES)
  images = attacked(after)
  assert_close(outputs.t_clean, {frozens.ROBUST: logits(ROBUST_SEED, IMAGES)})
  assert_close(outputs.t_adv, {frozens.ROBUST: logits(ROBUST_SEED, images)})
  assert np.abs(outputs.t_adv[frozens.ROBUST]
                - outputs.t_clean[frozens.ROBUST]).max() > 1e-3


def test_a_second_teacher_by_name():
  needs = base.Needs(t_clean=(OTHER,), t_adv=(OTHER, frozens.ROBUST))
  _, outputs, metrics = run(settings(needs, inner=(frozens.ROBUST,)))
  _, after = trained(random_variables(STUDENT), IMAGES)
  images = attacked(after)
  # The attack reads the other one.
  assert_close(outputs.t_clean, {OTHER: logits(OTHER_SEED, IMAGES),
                                 frozens.ROBUST: logits(ROBUST_SEED, IMAGES)})
  assert_close(outputs.t_adv, {OTHER: logits(OTHER_SEED, images),
                               frozens.ROBUST: logits(ROBUST_SEED, images)})
  teacher = np.argmax(logits(ROBUST_SEED, IMAGES), -1)
  assert metrics['clean_agreement'] == np.mean(
      np.argmax(outputs.s_clean, -1) == teacher)


@pytest.mark.parametrize('teachers', [(OTHER,), ()])
def test_without_labels_they_are_the_robust_teachers_predictions(teachers):
  _, outputs, _ = run(settings(base.Needs(t_clean=teachers)), labels=None)
  predictions = np.argmax(logits(ROBUST_SEED, IMAGES), -1)
  assert not np.array_equal(predictions, np.argmax(logits(OTHER_SEED, IMAGES),
                                                   -1))
  np.testing.assert_array_equal(outputs.labels, predictions)
  assert outputs.labels.dtype == jnp.int32
  np.testing.assert_array_equal(outputs.noticed['labels'], predictions)


def test_what_the_attack_notices_reaches_loss_and_metrics(usual):
  _, outputs, metrics = usual
  _, after = trained(random_variables(STUDENT), IMAGES)
  noticed = outputs.noticed
  np.testing.assert_array_equal(noticed['labels'], LABELS)
  # In evaluation mode after the clean pass, and on the batch.
  assert_close(noticed['student'], forward.logits(MODEL, after, IMAGES)[:, 0])
  assert_close(noticed['student_train'],
               trained(random_variables(STUDENT), IMAGES)[0][:, 0])
  assert len(np.unique(noticed['word'])) == BATCH  # one key per image
  assert {f'noticed_{name}' for name in noticed} == {
      name for name in metrics if name.startswith('noticed')}
  for name in ('labels', 'count', 'own', 'student', 'student_train'):
    np.testing.assert_allclose(metrics[f'noticed_{name}'],
                               np.mean(noticed[name]))
  np.testing.assert_allclose(metrics['loss'], sum(
      np.mean((1 + LABELS)[:, None] * np.square(student))
      for student in (outputs.s_clean, outputs.s_adv)))


def test_states_of_loss_and_attack_go_through_the_step(usual):
  state, outputs, _ = usual
  np.testing.assert_array_equal(outputs.noticed['count'], np.full(BATCH, 5))
  np.testing.assert_array_equal(outputs.noticed['own'], np.full(BATCH, 3))
  assert state.outer == 6
  assert state.inner == 3 + LABELS.sum()  # It saw the batch.


def test_attacked_images_are_constants_for_the_gradient(usual):
  def loss(params):
    variables = random_variables(STUDENT) | {'params': params}
    s_clean, variables = trained(variables, IMAGES)
    s_adv, _ = trained(variables, images)
    return sum(jnp.mean((1 + LABELS)[:, None] * student ** 2)
               for student in (s_clean, s_adv))
  start = random_variables(STUDENT)
  images = attacked(trained(start, IMAGES)[1])
  gradient = jax.jit(jax.grad(loss))(start['params'])
  assert_close(usual[0].variables['params'], jax.tree.map(
      lambda p, g: p - 0.1 * g, start['params'], gradient))


@pytest.mark.parametrize(('needs', 'inner', 'unused'), [
    (base.Needs(), (), OTHER),
    (base.Needs(t_clean=(), t_adv=(OTHER,)), (), frozens.ROBUST),
    (base.Needs(t_clean=()), (OTHER,), frozens.ROBUST)])
def test_only_teachers_that_somebody_needs_are_evaluated(needs, inner, unused):
  _, outputs, _ = run(settings(needs, inner=inner,
                               teachers={unused: Forbidden()}))
  assert unused not in outputs.t_clean and unused not in outputs.t_adv
  used = next(name for name in (frozens.ROBUST, OTHER) if name != unused)
  with pytest.raises(AssertionError, match='must not be evaluated'):
    run(settings(needs, inner=inner, teachers={used: Forbidden()}))


def test_views_are_what_everybody_sees():
  flipped = settings(flip=True)
  _, outputs, _ = run(flipped)
  teacher = np.stack([logits(ROBUST_SEED, x)
                      for x in (IMAGES, IMAGES[:, :, ::-1])])
  found = outputs.t_clean[frozens.ROBUST]
  same = np.isclose(teacher, found[None]).all(-1)
  np.testing.assert_array_equal(same.sum(0), np.ones(BATCH))
  assert same.any(1).all()  # One image is mirrored, another is not.
  views = np.where(same[0][:, None, None, None], IMAGES, IMAGES[:, :, ::-1])
  assert_close(outputs.s_clean, trained(random_variables(STUDENT), views)[0])


@pytest.mark.parametrize('options', [
    {'needs': base.Needs(t_clean=('big',))},
    {'needs': base.Needs(t_adv=('big',))}, {'inner': ('big',)}])
def test_a_missing_teacher_is_named(options):
  with pytest.raises(ValueError, match="^Expected a teacher 'big', which the "
                     "method needs; there are 'robust', 'clean'. Groups of "
                     'config.teachers are further ones.$'):
    settings(**options)


def test_what_nobody_notices_is_named():
  with pytest.raises(ValueError, match="^Expected the inner attack Shift to "
                     "notice 'kappa', which the outer loss Looking reads.$"):
    settings(base.Needs(noticed=('labels', 'kappa')))
  assert settings(base.Needs(noticed=('labels', 'word')))


@pytest.mark.parametrize('weights', [None, np.array([0.5, 2., 0., 1.])])
def test_means_are_weighed(weights, usual):
  outputs = usual[1].replace(weights=weights)
  values = np.array([1., 2., 3., 4.])
  expected = (values * (1 if weights is None else weights)).mean()
  np.testing.assert_allclose(outputs.mean(values), expected)
