"""Tests of ferd_jax.torch_io.choosing, .wrappers and .normalisers."""

import functools

import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.torch_io import choosing
from ferd_jax.torch_io import mapping
from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file
from ferd_jax.torch_io import wrappers

SHAPE = (8, 8, 3)
MODEL = models.build('cifar_resnet8', 5, width=2)
WANTED = choosing.Wanted(
    mapping.marks(MODEL, SHAPE),
    functools.partial(mapping.fits, MODEL, image_shape=SHAPE))
MEAN, STD = (np.full((3, 1, 1), value, np.float32) for value in (0.4, 0.2))


def weights(seed=0):
  rng = np.random.default_rng(seed)
  return {key: rng.uniform(0.5, 1.5, shape).astype(np.float32)
          for key, shape in torch_io.torch_shapes(MODEL, SHAPE).items()}


NET, OTHER = weights(0), weights(1)


def under(prefix, arrays=NET):
  return {prefix + key: value for key, value in arrays.items()}


def copied(arrays):
  return {key: value.copy() for key, value in arrays.items()}


def found(content, **options):
  return choosing.choose(content, wanted=WANTED, **options)


def assert_net(got, expected=NET):
  own = {key: value for key, value in got.arrays.items()
         if not key.startswith('normalize.')}
  assert own.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(own[key], value)


def from_numpy(value):
  return np.asarray(value).view(torch_file.NumpyArray)


@pytest.mark.parametrize(('content', 'where', 'left'), [
    ({**NET, 'epoch': 3, 'best': None, 'name': 'x'}, '',
     {'epoch': 'int', 'best': 'NoneType', 'name': 'str'}),
    ({**NET, 'acc': from_numpy(np.ones(10)), 'n_averaged': np.array(3)}, '',
     {'acc': 'an array of NumPy', 'n_averaged': 'a counter'}),
    ({**NET, 'linear._extra_state': np.ones(3)}, '',
     {'linear._extra_state': ''}),
    ({**NET, 'acc.correct': np.array(3)}, '', {'acc.correct': 'a counter'}),
    ({**NET, 'steps': np.array(3), 'best': np.array(.5)}, '',
     {'steps': 'a counter', 'best': 'a number'}),
    ({key: from_numpy(value) for key, value in NET.items()}, '', {}),
    ({'state_dict': {**NET, 'best_acc': 0.5}, 'acc': from_numpy(np.ones(10))},
     'state_dict', {'best_acc': 'float'}),
    ({'weights': NET, 'class_accuracy': np.ones(10)}, 'weights', {}),
    ({'net': NET, 'copy': dict(NET)}, 'net', {}),
    ({'a': NET, 'b': copied(NET)}, 'a', {}),
    ({'state_dict': NET, 'ema': copied(NET)}, 'state_dict', {}),
    ([NET, copied(NET)], '0', {}),
    ([NET], '0', {}),
    ({'models': [NET], 'log': [1] * 1000}, 'models.0', {}),
    (under('model.') | {'criterion.weight': np.ones(10)}, 'model',
     {'criterion.*': ''}),
    ({'state_dict': under('net.') | {'ema.decay': np.ones(3)}},
     'state_dict.net', {'ema.*': ''}),
    (under('a.student.') | {'a.teacher.fc.weight': np.ones((2, 2))},
     'a.student', {'a.teacher.*': ''}),
    ({'G': {'fc.weight': np.ones((2, 2))}, 'S': NET}, 'S', {}),
    ({'state_dict': NET, 'initial': OTHER}, 'state_dict', {}),
    ({'last': NET, 'best': OTHER}, 'last', {}),
])
def test_the_complete_network_is_found(content, where, left):
  got = found(content)
  assert_net(got)
  assert (got.where, dict(got.left_out)) == (where, left)
  for key in left:
    assert key in got.remark()


@pytest.mark.parametrize(('content', 'choices'), [
    ({'state_dict': {**NET, 'best_acc': 0.5}, 'state_dict_ema': OTHER},
     'state_dict, state_dict_ema'),
    ({**NET, 'epoch': 3, 'ema': OTHER}, '., ema'),
    ({'G': NET, 'S': OTHER}, 'G, S'),
    ([NET, OTHER], '0, 1'),
    ({'state_dict': NET, 'best_state_dict': OTHER},
     'state_dict, best_state_dict'),
    ({'model': NET, 'swa_model': OTHER}, 'model, swa_model'),
    (under('student.') | under('teacher.', OTHER), 'student, teacher'),
    (under('model.') | under('teacher.', OTHER), 'model, teacher'),
    ({'model': {**NET, 'ema': OTHER}}, 'model, model.ema'),
    # One of them is damaged, and the other not what was meant.
    ({'state_dict': {**NET, 'conv1.weight': np.ones(3)}, 'ema': OTHER},
     'ema, state_dict'),
])
def test_of_several_one_has_to_be_selected(content, choices):
  with pytest.raises(pickled.Refusal, match=f'select one of {choices}'):
    found(content)
  for choice in choices.split(', '):
    if not (isinstance(content, dict) and np.shape(
        content.get(choice, NET)['conv1.weight']) == (3,)):
      assert_net(found(content, select=choice),
                 OTHER if choice in (
                     '1', 'S', 'ema', 'teacher', 'model.ema', 'state_dict_ema',
                     'best_state_dict', 'swa_model') else NET)


@pytest.mark.parametrize(('content', 'select'), [
    ({'model': under('module.student.') | under('module.teacher.', OTHER)},
     'module.student'),
    ({'model': under('module.student.') | under('module.teacher.', OTHER)},
     'model.module.student'),
    ({'state_dict': under('net.') | under('teacher.', OTHER)}, 'net'),
    ({'state_dict': under('net.') | under('teacher.', OTHER)}, 'net.*'),
    ({'best': {'epoch': 1, 'state_dict': NET}, 'last': {'state_dict': OTHER}},
     'best'),
    ({**NET, 'ema': OTHER}, '.'),
])
def test_paths_and_prefixes_are_selected(content, select):
  assert_net(found(content, select=select))


def test_what_is_selected_has_to_be_there():
  with pytest.raises(pickled.Refusal, match="select='net' to name .* keys are "
                                            'state_dict'):
    found({'state_dict': NET}, select='net')


@pytest.mark.parametrize('name', [
    '_orig_mod', 'module', '_fsdp_wrapped_module', '_forward_module',
    '_module', '_checkpoint_wrapped_module',
    '_fsdp_wrapped_module._checkpoint_wrapped_module'])
@pytest.mark.parametrize('place', ['', 'layer1.', 'layer1.0.', 'linear.'])
def test_names_of_wrappers_are_cut_anywhere(name, place):
  assert_net(found({
      key.replace(place, f'{place}{name}.', 1) if key.startswith(place)
      else key: value for key, value in NET.items()}))


def test_names_that_become_one_are_refused():
  double = NET | {'layer1._orig_mod.0.conv1.weight':
                  NET['layer1.0.conv1.weight']}
  with pytest.raises(pickled.Refusal, match='both layer1.0.conv1.weight'):
    found(double)
  with pytest.raises(pickled.Refusal, match='FSDP'):
    found({'_fsdp_wrapped_module._flat_param': np.ones(10)})


@pytest.mark.parametrize('names', [
    ('mean', 'std'), ('new_mean', 'new_std'), ('means', 'sds'),
    ('MEAN', 'STD'), ('mu', 'sigma'), ('pixelMean', 'pixelStd')])
@pytest.mark.parametrize(('layer', 'prefix'), [
    ('', ''), ('norm.', ''), ('', 'model.'), ('norm.', 'model.'),
    ('0.', '1.'), ('module.normalizer.', 'module.model.')])
def test_normalisers_of_all_names(names, layer, prefix):
  got = found(under(prefix) | {layer + names[0]: MEAN, layer + names[1]: STD})
  assert_net(got)
  assert got.arrays['normalize.mean'] is MEAN
  assert got.arrays['normalize.std'] is STD
  assert torch_io.normalisation(got.arrays) == {
      'mean': pytest.approx((0.4,) * 3), 'std': pytest.approx((0.2,) * 3)}


def test_normalisers_that_a_person_names():
  content = under('net.') | {'norm.a': MEAN, 'norm.b': STD}
  got = found(content, normaliser='norm.a,norm.b')
  assert got.arrays['normalize.mean'] is MEAN
  with pytest.raises(pickled.Refusal, match="normaliser='a,x' to name"):
    found(content, normaliser='a,x')
  for shape in ((3,), (3, 1, 1), (1, 3, 1, 1)):
    pair = {'a': MEAN.reshape(shape), 'b': STD.reshape(shape)}
    for content in (under('net.') | under('norm.', pair),
                    under('x.net.') | under('x.norm.', pair),
                    under('net.') | pair):
      assert len(found(content).unclear) == 2, content.keys()
  elsewhere = under('net.') | {'loss.a.x': MEAN, 'b': np.ones(3)}
  assert not found(elsewhere).unclear
  with pytest.raises(ValueError, match='If norm.a, norm.b normalise the '
                                       'images, name'):
    torch_io.variables_from_state_dict(
        MODEL, NET | {'norm.a': MEAN, 'norm.b': STD}, SHAPE)


def test_the_normaliser_of_the_network_counts():
  robustness = {
      **under('module.model.'), **under('module.attacker.model.'),
      'module.normalizer.new_mean': MEAN, 'module.normalizer.new_std': STD,
      'module.attacker.normalize.new_mean': MEAN,
      'module.attacker.normalize.new_std': STD}
  got = found({'model': robustness})
  assert_net(got)
  assert got.where == 'model.model' and 'attacker.*' in got.left_out
  assert got.arrays['normalize.std'] is STD
  two = under('model.') | {'a.mean': MEAN, 'b.mean': STD}
  with pytest.raises(pickled.Refusal, match='several normalising layers, a'):
    found(two)
  assert found(two | {'b.std': STD}, normaliser='a.mean,b.std')
  inside = under('model.') | {'norm.mean': MEAN, 'model.norm.mean': MEAN}
  with pytest.raises(pickled.Refusal, match='several normalising layers'):
    found(inside)


def test_weights_that_are_stored_in_parts_are_computed():
  torch = pytest.importorskip('torch')
  from torch.nn.utils import parametrizations
  from torch.nn.utils import prune
  kinds = {
      'weight_norm': parametrizations.weight_norm,
      'spectral_norm': parametrizations.spectral_norm,
      'old_weight_norm': torch.nn.utils.weight_norm,
      'old_spectral_norm': torch.nn.utils.spectral_norm,
      'pruned': lambda net: prune.random_unstructured(net, 'weight', 0.5)}
  for name, change in kinds.items():
    for make, images in (
        (lambda: torch.nn.Conv2d(3, 4, 3), torch.ones(2, 3, 5, 5)),
        (lambda: torch.nn.Linear(3, 4), torch.ones(2, 3))):
      torch.manual_seed(0)
      net = change(make())
      net(images)
      net.eval()(images)
      arrays = {f'a.{key}': value.numpy() for key, value in
                net.state_dict().items()}
      got = wrappers.unwrapped(arrays)
      assert set(got) == {'a.weight', 'a.bias'}, name
      np.testing.assert_allclose(got['a.weight'], net.weight.detach(),
                                 rtol=0, atol=1e-6, err_msg=name)
  net = parametrizations.orthogonal(torch.nn.Linear(2, 2))
  with pytest.raises(pickled.Refusal, match='remove_parametrizations'):
    wrappers.unwrapped({key: value.numpy()
                        for key, value in net.state_dict().items()})


def test_keys_that_no_network_has():
  for key in ('a.' * 60 + 'b', 'x' * 1000):
    with pytest.raises(pickled.Refusal, match='which no network has'):
      found({key: np.ones(3)})
  with pytest.raises(pickled.Refusal, match='40,001 arrays in one dict'):
    found(dict.fromkeys(map(str, range(40_001)), np.ones(3)))
  with pytest.raises(pickled.Refusal, match='40 networks or parts'):
    found({f'{i}.{WANTED.marks[0]}': np.ones(3) for i in range(40)})


def test_what_takes_more_than_a_file_can_hold():
  with pytest.raises(pickled.Refusal, match='to 400 bytes, more than the 100'):
    found({'a.weight': np.broadcast_to(np.float32(1), (100,))}, largest=100)


def test_a_weight_that_is_not_read_is_named():
  content = NET | {'conv1.weight': pickled.Unread('sparse', 'save it dense')}
  assert found(content).left_out['conv1.weight'] == (
      'a pickled sparse, which is not read; save it dense')


def test_no_tensor_of_a_whole_dict_is_dropped():
  content = NET | {'x': pickled.Unread('tensor of type complex32', 'cast it'),
                   'date': pickled.Unread('datetime.date')}
  with pytest.raises(pickled.Refusal, match='x is a pickled tensor of type '
                                            'complex32, which is not read; '
                                            'cast it'):
    choosing.choose(content)
  assert 'x' in found(content).left_out
  del content['x']
  assert_net(choosing.choose(content))
