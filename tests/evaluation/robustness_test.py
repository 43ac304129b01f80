"""Evaluation on fixed-shape batches, and attacks stepped from Python."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import noting
import numpy as np
import pytest
import tiny

import ferd_jax
from ferd_jax import attacks
from ferd_jax import data
from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.core import collectives
from ferd_jax.core import loops
from ferd_jax.core import parallel
from ferd_jax.core import reporting
from ferd_jax.evaluation import per_image
from ferd_jax.evaluation import robustness
from ferd_jax.models import forward

_EPS = 0.1
_NAMES = ('fgsm', 'clean', 'pgd20', 'cw20')
# A published teacher and CIFAR-10, neither of which is part of the repository.
_REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


@pytest.fixture(scope='module')
def net():
  model = tiny.TwoLayers(3)
  return model, models.init_variables(model, jax.random.key(0), (8, 8, 1))


@pytest.fixture(scope='module')
def examples(net):
  """All classes occur, and some images are classified right."""
  images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
  predicted = np.argmax(forward.logits(*net, images.astype(np.float32) / 255),
                        axis=-1)
  labels = np.where(np.arange(11) % 2, predicted, np.arange(11) % 3)
  return images, labels.astype(np.int32)


def _mapping(num_devices=1):
  return parallel.create('auto', tuple(jax.devices()[:num_devices]))


@pytest.fixture(scope='module')
def expected(net, examples):
  """Per-class accuracies from the attacks called directly, one batch."""
  model, variables = net
  images, labels = examples
  images = jnp.asarray(images, jnp.float32) / 255
  logits_fn = jax.jit(forward.logits_fn(model, variables))
  keys = collectives.example_keys(jax.random.key(1), jnp.arange(len(labels)))
  found = {}
  for name in _NAMES:
    attacked = images
    if name != 'clean':
      attacked = attacks.preset(name, _EPS)(logits_fn, keys, images, labels)
    correct = np.asarray(jnp.argmax(logits_fn(attacked), -1)) == labels
    found[name] = [correct[labels == c].mean() for c in range(3)]
  return found


@pytest.mark.parametrize('batch_size, num_devices', [
    (11, 1), (4, 4), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_accuracy_does_not_depend_on_batches_or_devices(
    net, examples, expected, batch_size, num_devices):
  model, variables = net
  mapping = _mapping(num_devices)
  evaluator = robustness.evaluator(model, _NAMES, _EPS, 3, batch_size,
                                   mapping)
  report = evaluator(mapping.replicate(variables), *examples,
                     jax.random.key(1))
  for name, per_class in expected.items():
    np.testing.assert_allclose(report[name]['per_class'], per_class)
    counts = np.bincount(examples[1], minlength=3)
    np.testing.assert_allclose(report[name]['average'],
                               np.average(per_class, weights=counts))
    # Image by image, in the order of the data.
    correct = per_image.flags(report[name]['correct'])
    assert correct.shape == examples[1].shape
    np.testing.assert_allclose(
        [correct[examples[1] == c].mean() for c in range(3)], per_class)
    if name != 'clean':  # Whichever comes first.
      right = per_image.flags(report['clean']['correct'])
      assert report[name]['success_rate'] == pytest.approx(
          (right & ~correct).sum() / right.sum())


def test_float_images_and_a_subset_of_attacks(net, examples, expected):
  model, variables = net
  images, labels = examples
  evaluator = robustness.evaluator(model, ('clean', 'fgsm'), _EPS, 3, 4,
                                 _mapping())
  report = evaluator(variables, images.astype(np.float32) / 255, labels,
                     jax.random.key(1), names=['clean'])
  assert list(report) == ['clean'] and 'success_rate' not in report['clean']
  np.testing.assert_allclose(report['clean']['per_class'], expected['clean'])


def test_every_result_is_told_once_it_is_there(net, examples, monkeypatch):
  model, variables = net
  told = []
  evaluator = robustness.evaluator(
      model, ('clean', 'fgsm', 'autoattack_fast'), _EPS, 3, 4, _mapping())
  call = attacks.AutoAttack.__call__
  def noting(*args, **options):
    assert [name for name, _ in told] == ['clean', 'fgsm']
    return call(*args, **options)
  monkeypatch.setattr(attacks.AutoAttack, '__call__', noting)
  report = evaluator(variables, *examples, jax.random.key(1),
                     on_result=lambda *result: told.append(result))
  assert told == list(report.items()) and len(told) == 3


def test_what_is_shown(net, examples, monkeypatch, capsys):
  model, variables = net
  evaluator = robustness.evaluator(model, ('clean', 'autoattack_fast'), _EPS,
                                   3, 4, _mapping())
  def shown(**options):
    evaluator(variables, *examples, jax.random.key(1), **options)
    return capsys.readouterr().err
  assert not shown()  # Nothing by default.
  reporter = noting.Reporter()
  shown(reporter=reporter)
  task, *autoattack = reporter.tasks
  assert task.started == ('clean', 11, 'image', 0) and task.closed
  assert [task.started[0] for task in autoattack] == [
      'autoattack_fast, apgd-ce', 'autoattack_fast, apgd-t']
  assert all(task.closed for task in autoattack)
  said = 'autoattack_fast, apgd-t: robust accuracy'
  assert any(line.startswith(said) for line in reporter.lines)
  assert task.counts == [4, 4, 3]
  assert said in shown(reporter=reporting.TERMINAL)


def test_autoattack_gets_the_first_images(net, examples, expected):
  model, variables = net
  images, labels = examples
  def report(images, labels, **options):
    evaluator = robustness.evaluator(model, ('clean', 'autoattack_fast'), _EPS,
                                     3, 4, _mapping(), **options)
    return evaluator(variables, images, labels, jax.random.key(1))
  some = report(images, labels, autoattack_examples=3)
  first = report(images[:3], labels[:3])
  found = some['autoattack_fast']
  assert found['num_examples'] == 3
  assert found['correct'] == first['autoattack_fast']['correct']
  assert len(found['correct']) == 3
  assert found['success_rate'] == first['autoattack_fast']['success_rate']
  assert found['average'] == first['autoattack_fast']['average']
  np.testing.assert_array_equal(found['per_class'],
                                first['autoattack_fast']['per_class'])
  np.testing.assert_allclose(some['clean']['per_class'], expected['clean'])


def test_states_of_other_models_and_versions_have_other_files(
    net, examples, tmp_path, monkeypatch):
  """What no weight tells apart: AutoAttack would refuse the file."""
  class Stop(Exception):
    pass
  def stop(self, *args, state_file, **options):
    raise Stop(state_file)
  monkeypatch.setattr(attacks.AutoAttack, '__call__', stop)
  def state_file(**options):
    model = models.build('cifar_resnet8', 3, width=4, **options)
    evaluator = robustness.evaluator(model, ('autoattack',), _EPS, 3, 4,
                                     _mapping())
    with pytest.raises(Stop) as stopped:
      evaluator(net[1], *examples, jax.random.key(1), state_dir=tmp_path)
    return str(stopped.value)
  found = [state_file(), state_file(shortcut='pad_after'),
           state_file(mean=(0.5,), std=(0.5,))]
  assert found[0] == state_file()
  for module in (jax, ferd_jax):
    with monkeypatch.context() as patch:
      patch.setattr(module, '__version__', '0.0')
      found.append(state_file())
  assert len(set(found)) == 5


def test_class_without_images_is_nan(net, examples):
  model, variables = net
  evaluator = robustness.evaluator(model, ('clean',), _EPS, 3, 4, _mapping())
  report = evaluator(variables, examples[0][:2], np.array([0, 2]),
                     jax.random.key(1))
  per_class = report['clean']['per_class']
  assert np.isnan(per_class[1]) and np.isfinite([per_class[0], per_class[2]]
                                                ).all()


def test_predictor(net, examples):
  model, variables = net
  images = examples[0].astype(np.float32) / 255
  predict = robustness.predictor(model, 4, _mapping())
  logits = forward.logits(model, variables, images)
  np.testing.assert_array_equal(predict(variables, images),
                                np.argmax(logits, -1))


def test_stepped_attack_equals_the_whole_one(net, examples, monkeypatch):
  model, variables = net
  images = jnp.asarray(examples[0], jnp.float32) / 255
  arguments = (variables, jax.random.key(2), images, jnp.asarray(examples[1]))
  attack = attacks.PGD(_EPS, _EPS / 2, 3)
  apply = functools.partial(forward.logits, model)
  stepped = attacks.jit(attack, apply, _mapping())(*arguments)
  monkeypatch.setattr(loops, 'unrolled_here', lambda: False)
  rolled = attacks.jit(attack, apply, _mapping())(*arguments)
  assert np.abs(stepped - images).max() > 0
  np.testing.assert_allclose(stepped, rolled, atol=1e-6)


@pytest.mark.slow
def test_accuracy_of_a_published_teacher_equals_that_in_pytorch():
  """Clean and PGD-20, 10,000 images: half an hour on two cores."""
  torch = pytest.importorskip('torch')
  from ferd_jax import torch_networks  # needs torch
  from ferd_jax import torch_twins

  path = _REAL / 'teachers' / 'CIFAR10-resnet20-adv.pth'
  if not path.exists():  # It has no licence to be copied here.
    pytest.skip(f'{path.name} is not here')
  eps, size = 4 / 255, 250
  examples = data.load('cifar10', 'test', data_dir=_REAL / 'tfds')
  key = jax.random.key(0)

  model = models.build('cifar_resnet20', 10, shortcut='pad_after')
  variables = torch_io.load_variables(path, model, (32, 32, 3))
  mapping = _mapping()
  evaluator = robustness.evaluator(model, ('clean', 'pgd20'), eps, 10, size,
                                 mapping)
  found = evaluator(variables, examples.images, examples.labels, key)

  net = torch_networks.CifarResNet(20, 16, 10, 'pad_after', 'stage').eval()
  torch_twins.load_published(net, path)
  net.requires_grad_(False)
  @jax.jit
  def start(images, indices):
    return attacks.preset('pgd20', eps).init(attacks.Problem(
        images, None, None, jnp.full(len(images), eps),
        collectives.example_keys(key, indices))).x_adv
  correct = {'clean': [], 'pgd20': []}

  def to_torch(array):
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).contiguous()
  for first in range(0, len(examples.labels), size):
    batch = slice(first, first + size)
    images = examples.images[batch].astype(np.float32) / 255
    labels = torch.from_numpy(examples.labels[batch].astype(np.int64))
    clean = to_torch(images)
    attacked = to_torch(start(images, np.arange(first, first + len(images))))
    correct['clean'].append(net(clean).argmax(-1) == labels)
    for _ in range(20):
      attacked.requires_grad_(True)
      loss = torch.nn.functional.cross_entropy(net(attacked), labels,
                                               reduction='sum')
      gradient, = torch.autograd.grad(loss, attacked)
      attacked = attacked.detach() + eps / 4 * gradient.sign()
      attacked = torch.clamp(torch.clamp(attacked, clean - eps, clean + eps),
                             0, 1)
    correct['pgd20'].append(net(attacked).argmax(-1) == labels)

  for attack, tolerance in (('clean', 0.), ('pgd20', 0.002)):
    hits = torch.cat(correct[attack]).numpy()
    expected = [hits[examples.labels == c].mean() for c in range(10)]
    print(attack, found[attack]['average'], hits.mean(),
          found[attack]['per_class'], expected)
    # sign() amplifies rounding: single images may differ under attack.
    assert found[attack]['average'] == pytest.approx(hits.mean(),
                                                     abs=tolerance / 2 + 1e-9)
    np.testing.assert_allclose(found[attack]['per_class'], expected,
                               atol=tolerance + 1e-9)


def test_batches_fit_the_cache_of_a_cpu(net, monkeypatch):
  model, _ = net
  evaluator = robustness.evaluator(model, ('clean',), _EPS, 3, 100,
                                   parallel.create('jit'))
  for shape, size in (((7, 32, 32, 3), 16), ((28, 28, 1), 20),
                      ((8, 8, 1), 100), ((224, 224, 3), 8)):
    assert evaluator.batch_of(shape) == size
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert evaluator.batch_of((32, 32, 3)) == 100
  assert robustness.fitting_batch((32, 32, 3), evaluator.parallel) == 256
