"""Tests of ferd_jax.benchmark."""

from flax import linen as nn
from flax import nnx
import jax
import numpy as np
import pytest

import ferd_jax
from ferd_jax import attacks
from ferd_jax import benchmarking
from ferd_jax import data

_RNG = np.random.default_rng(0)
_IMAGES = _RNG.uniform(0.2, 0.8, size=(8, 4, 4, 1)).astype(np.float32)
_WEIGHTS = _RNG.normal(size=(16, 3)).astype(np.float32)
_WEIGHTS -= _WEIGHTS.mean(axis=0)  # Each class is some image's.


def _apply(weights, images):
  return images.reshape(len(images), -1) @ weights


def _linear(images):
  return _apply(_WEIGHTS, images)


_LABELS = np.argmax(_apply(_WEIGHTS, _IMAGES), axis=-1)
_SETTINGS = dict(eps=0.05, attacks=('fgsm',), progress=False, batch_size=8)


class Linear(nnx.Module):
  """With a layer whose state a step in training mode would move."""

  def __init__(self):
    self.norm = nnx.BatchNorm(1, use_scale=False, use_bias=False,
                              epsilon=0., rngs=nnx.Rngs(0))
    self.weights = nnx.Param(jax.numpy.asarray(_WEIGHTS))

  def __call__(self, images):
    return _apply(self.weights[...], self.norm(images))


@pytest.fixture(scope='module')
def expected():
  """What withstands the attack, by the attack itself."""
  fgsm = attacks.preset('fgsm', 0.05)
  result = fgsm.run(_linear, jax.random.key(0), _IMAGES, _LABELS)
  return float(np.mean(~np.asarray(result.success)))


def _equinox():
  eqx = pytest.importorskip('equinox')
  class Batched(eqx.Module):
    weights: jax.Array
    name: str = 'a leaf that is no array'
    def __call__(self, images):
      return _apply(self.weights, images)
  return Batched(jax.numpy.asarray(_WEIGHTS))


def _linen():
  module = nn.Sequential([lambda x: x.reshape(len(x), -1),
                          nn.Dense(3, use_bias=False)])
  return module, {'params': {'layers_1': {'kernel': _WEIGHTS}}}


def _nnx():
  net = Linear()
  net.eval()
  return net


@pytest.mark.parametrize('make', [
    lambda: _linear, lambda: jax.tree_util.Partial(_apply, _WEIGHTS), _linen,
    _nnx, _equinox], ids=['function', 'partial', 'linen', 'nnx', 'equinox'])
def test_one_line_for_models_of_every_kind(make, expected):
  found = ferd_jax.benchmark(make(), (_IMAGES, _LABELS), **_SETTINGS)
  assert found.clean_accuracy == 1.
  assert found.robust_accuracy == pytest.approx(expected)
  assert 0 < expected < 1
  assert list(found.attacks) == ['clean', 'fgsm']
  assert len(found.attacks['fgsm']['per_class']) == 3
  assert found.attacks['fgsm']['worst'] <= found.robust_accuracy
  assert 'fgsm' in str(found)


def test_other_data():
  """Classes without images have no accuracy; uint8 is scaled."""
  examples = data.Examples(
      np.round(_IMAGES * 255).astype(np.uint8), _LABELS.astype(np.int32),
      ('a', 'b', 'c'))
  found = ferd_jax.benchmark(_linear, examples, n_examples=4,
                             **_SETTINGS | {'attacks': ()})
  assert found.class_names == ('a', 'b', 'c')
  assert found.results['num_examples'] == 4
  assert found.robust_accuracy == found.clean_accuracy


@pytest.mark.parametrize('model, given, changes, words', [
    (_linear, (_IMAGES, _LABELS / 2), {}, 'whole numbers'),
    (_linear, (_IMAGES[:0], _LABELS[:0]), {}, 'got none'),
    (_linear, 3, {}, 'pair of images'),
    (_linear, (_IMAGES, _LABELS), {'norm': 'L2', 'eps': None}, 'Expected eps'),
    (_linear, (_IMAGES, _LABELS), {'n_examples': 9}, 'at most 8'),
    (_linear, (_IMAGES, _LABELS), {'attacks': ('pgd',)}, 'pgd'),
    (_linear, (_IMAGES, _LABELS - _LABELS.min() + 3), {}, 'model of . classes'),
    (lambda x: x, (_IMAGES, _LABELS), {}, 'logits'),
    (nn.Dense(3), (_IMAGES, _LABELS), {}, 'variables'),
    (3, (_IMAGES, _LABELS), {}, 'can be called')])
def test_mistakes(model, given, changes, words):
  with pytest.raises(ValueError, match=words):
    benchmarking.benchmark(model, given, **_SETTINGS | changes)
