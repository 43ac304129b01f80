"""Tests of ferd_jax.torch_io.torch_file, against torch.save and torch.load."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from ferd_jax.torch_io import pickled
from ferd_jax.torch_io import torch_file

# Published checkpoints, which have no licence to be copied here.
REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'teachers'


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(params=['zip', 'stream'])
def save(request, torch, tmp_path):
  """Returns a function that saves a value and returns the file's path."""
  def function(value, **options):
    path = tmp_path / 'file.bin'
    torch.save(value, path, **options,
               _use_new_zipfile_serialization=request.param == 'zip')
    return path
  function.format = request.param
  return function


def bits(values):
  """Returns data type, shape and bytes of a tensor or an array."""
  if isinstance(values, np.ndarray):
    assert not values.flags.writeable
    return values.dtype.name, values.shape, values.tobytes()
  data = values.detach().contiguous().reshape(-1)
  return (str(values.dtype).removeprefix('torch.'), tuple(values.shape),
          bytes(data.view(data.new_empty(0).byte().dtype).numpy()))


def assert_same(torch, got, expected):
  """Compares with what torch.load returns, type by type and bit by bit."""
  if isinstance(expected, torch.Tensor):
    assert bits(got) == bits(expected)
  elif isinstance(expected, dict):
    assert isinstance(got, dict) and list(got) == list(expected)
    for key, value in expected.items():
      assert_same(torch, got[key], value)
  elif isinstance(expected, list | tuple):
    assert isinstance(got, list if isinstance(expected, list) else tuple)
    assert len(got) == len(expected)
    for values in zip(got, expected, strict=True):
      assert_same(torch, *values)
  elif isinstance(expected, torch.dtype | torch.device):
    assert got == str(expected)
  else:
    assert type(got) is type(expected) and (
        got == expected or got != got and expected != expected)


def values_of_all_kinds(torch):
  generator = torch.Generator().manual_seed(0)
  floats = torch.randn(4, 6, generator=generator)
  shared = torch.arange(24.)
  linear = torch.nn.Linear(3, 2)
  optimizer = torch.optim.SGD(linear.parameters(), 0.1, momentum=0.9)
  linear(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
  return collections.OrderedDict({
      **{str(dtype): (100 * floats).to(dtype) for dtype in (
          torch.float16, torch.bfloat16, torch.float32, torch.float64,
          torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
          torch.bool, torch.complex64)},
      'special': torch.tensor([np.nan, np.inf, -np.inf, -0.0, 1e-45]),
      'scalar': torch.tensor(3), 'empty': torch.zeros(0, 4),
      'transposed': floats.t(), 'strided': floats[1::2, ::3],
      'expanded': torch.ones(1).expand(3, 5), 'channels_last':
          torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
      'shared': [shared[3:], shared[:20:2], shared.view(4, 6)],
      'parameter': torch.nn.Parameter(floats, requires_grad=True),
      'optimizer': optimizer.state_dict(), 'schedule': schedule.state_dict(),
      'module': linear.state_dict(), 'size': floats.shape,
      'dtype': torch.float16, 'device': torch.device('cuda', 1),
      'plain': {'epoch': 3, 7: -1, 'big': 2 ** 70, 'negative': -2 ** 40,
                'float': 1e-300, 'nan': float('nan'), 'none': None,
                'text': 'größer 的', 'bytes': b'\0\xff', 'tuple': (1, (2,), ()),
                'true': True, 'list': [[], [False]], 300: 70000},
  })


def test_values_of_all_kinds(torch, save):
  value = values_of_all_kinds(torch)
  path = save(value)
  expected = torch.load(path, map_location='cpu', weights_only=True)
  assert_same(torch, torch_file.read(path), expected)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_all_pickle_protocols(torch, save, protocol):
  value = {'a': torch.arange(5), 'b': [torch.ones(1), 'x' * 300, {1: 2.5}],
           'set': {1, 2}, 'bytes': b'ab' * 200}
  got = torch_file.read(save(value, pickle_protocol=protocol))
  assert got.pop('set') == value.pop('set')
  assert_same(torch, got, value)


def test_what_torch_load_needs_a_list_for(save):
  path = save({'args': argparse.Namespace(lr=0.1, wide=True),
               'numpy': [np.float64(1.5), np.float32(0.25), np.int64(-7),
                         np.bool_(True)]})
  got = torch_file.read(path)
  assert got == {'args': {'lr': 0.1, 'wide': True},
                 'numpy': [1.5, 0.25, -7, True]}


@pytest.mark.parametrize('protocol', [2, 5])
def test_arrays_of_numpy(save, protocol):
  arrays = {'f8': np.arange(3.), 'empty': np.zeros((0, 3), np.int8),
            'scalar': np.array(3), 'order': np.asfortranarray(
                np.arange(6, dtype=np.float16).reshape(2, 3)),
            'big': np.arange(4, dtype='>i4'), 'u8': np.arange(2, dtype='u8'),
            'bool': np.array([True, False]), 'complex': np.ones(1, complex)}
  got = torch_file.read(save(arrays, pickle_protocol=protocol))
  for name, value in arrays.items():
    assert isinstance(got[name], torch_file.NumpyArray), name
    assert got[name].dtype == value.dtype and got[name].shape == value.shape
    np.testing.assert_array_equal(got[name], value, err_msg=name)


# What training saves beside the weights, and how it is named.
EXTRAS = {
    'generator': (lambda: np.random.default_rng(0), 'numpy.random'),
    'state': (lambda: np.random.RandomState(0), 'numpy.random'),
    'deque': (lambda: collections.deque([1.]), 'collections.deque'),
    'time': (datetime.datetime.now, 'datetime.datetime'),
    'path': (lambda: pathlib.Path('a/b'), 'pathlib'),
    'class': (lambda: Hostile, 'Hostile'),
    'text': (lambda: np.array(['a']), 'numpy'),
    'objects': (lambda: np.array([{}], object), 'ndarray of objects'),
    'longdouble': (lambda: np.ones(2, np.longdouble), 'ndarray of longdouble'),
    'function': (lambda: os.path.join, 'path.join'),
}


@pytest.mark.parametrize('name', EXTRAS)
@pytest.mark.parametrize('protocol', [2, 5])
def test_other_objects_become_placeholders(torch, save, name, protocol):
  make, named = EXTRAS[name]
  got = torch_file.read(save({'a': torch.ones(2), 'extra': make()},
                             pickle_protocol=protocol))
  assert isinstance(got['extra'], pickled.Unread) and named in str(got['extra'])
  np.testing.assert_array_equal(got['a'], [1, 1])
  assert torch_file.read(save({'d': collections.defaultdict(list, a=[1])},
                              pickle_protocol=protocol)) == {'d': {'a': [1]}}


@pytest.mark.filterwarnings('ignore:ComplexHalf')
def test_all_number_types_are_read_or_named(torch, save):
  for name in ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2',
               'float8_e4m3fnuz', 'float8_e5m2fnuz', 'float8_e8m0fnu'):
    dtype = getattr(torch, name)
    value = torch.tensor([[1., 2., 0.5], [4., 8., 16.]]).to(dtype)[:, 1:]
    got = torch_file.read(save({'a': value}))['a']
    expected = value.to(torch.float32).numpy()
    assert got.dtype.name == name and got.shape == (2, 2)
    if not name.startswith('float'):
      expected = value.numpy()
    np.testing.assert_array_equal(np.asarray(got, expected.dtype), expected)
  for value, name, cure in (
      (torch.zeros(2, dtype=torch.complex32), 'complex32', 'torch.float32'),
      (torch.zeros(2).to_sparse(), '_rebuild_sparse_tensor', 'to_dense'),
      (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
       '_rebuild_qtensor', 'dequantize'),
      (torch.ones(2, dtype=torch.complex64).conj(), 'conjugate', '_conj')):
    unread = torch_file.read(save({'a': value}))['a']
    assert name in unread.name and cure in unread.cure


def test_tensors_with_attributes_are_tensors(torch, save):
  value = torch.arange(3.)
  value.note = 'x'
  parameter = torch.nn.Parameter(torch.arange(3.))
  parameter.note = [1]
  got = torch_file.read(save([value, parameter, torch.nn.Buffer(value)]))
  for array in got:
    np.testing.assert_array_equal(array, [0, 1, 2])


@pytest.mark.parametrize('name', [
    'CIFAR10-resnet20-adv.pth', 'resnet20-12fca82f.th'])
def test_published_files(torch, name):
  path = REAL / name
  if not path.exists():
    # It has no licence to be copied here, and nobody has to have it.
    pytest.skip(f'needs the published {name}')
  assert_same(torch, torch_file.read(path), torch.load(
      path, map_location='cpu', weights_only=True))


def test_resnet18_of_pyautoattack(torch):
  package = pytest.importorskip('pyautoattack')
  path = pathlib.Path(package.__file__).parent / 'examples' / 'model_test.pt'
  assert_same(torch, torch_file.read(path), torch.load(
      path, map_location='cpu', weights_only=True))


class Hostile:
  """Calls a function when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(('function', 'arguments', 'name'), [
    (os.system, ('touch {}',), '.system'),
    (eval, ('open("{}", "w")',), 'builtins.eval'),
    (open, ('{}', 'w'), '.open'),
    (getattr, ('x', 'y'), 'builtins.getattr'),
])
def test_nothing_is_executed(save, tmp_path, function, arguments, name):
  trace = tmp_path / 'trace'
  path = save({'state_dict': {}, 'epoch': Hostile(
      function, *(part.format(trace) if isinstance(part, str) else part
                  for part in arguments))})
  got = torch_file.read(path)
  assert got['state_dict'] == {} and got['epoch'].name.endswith(name)
  assert not trace.exists()


@pytest.mark.filterwarnings('ignore')
def test_whole_modules_are_not_read(torch, save):
  got = torch_file.read(save(torch.nn.Linear(1, 1)))
  assert got.name == 'torch.nn.modules.linear.Linear'


def test_truncated_files(torch, save):
  path = save({'a': torch.arange(1000.), 'b': [torch.ones(3), 'text']})
  content = path.read_bytes()
  for size in np.random.default_rng(0).integers(20, len(content), 100):
    path.write_bytes(content[:size])
    with pytest.raises(pickled.Refusal):
      torch_file.read(path)
  path.write_bytes(content + b'\0\0\0')
  if save.format == 'stream':  # Of a zip archive it would be a comment.
    with pytest.raises(pickled.Refusal, match='3 bytes follow'):
      torch_file.read(path)


def test_damaged_files(torch, save):
  """They are refused, or hold what they held; streams have no checksum."""
  value = {'state_dict': {'a': torch.arange(40.).view(5, 8),
                          'b': torch.ones(3, dtype=torch.float16)},
           'epoch': 1.5, 'names': ['x', 'y']}
  path = save(value)
  content = path.read_bytes()
  rng, refused = np.random.default_rng(0), 0
  for _ in range(400):
    damaged = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 4)):
      damaged[place] = rng.integers(256)
    path.write_bytes(damaged)
    try:
      got = torch_file.read(path)
    except pickled.Refusal as error:
      assert '\n' not in str(error)
      refused += 1
    else:
      if save.format == 'zip':
        assert_same(torch, got, value)
  assert refused > 40


def stream(value, storages=(), persistent=None, keys=None):
  """Returns a stream of five pickles, made without torch."""
  class Pickler(pickle._Pickler):  # The one in C takes no persistent ids here.
    def persistent_id(self, item):
      return persistent(item) if persistent else None
  parts = [0x1950a86a20f9469cfc6c, 1001, {
      'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}]
  data = b''.join(pickle.dumps(part, 2) for part in parts)
  buffer = io.BytesIO()
  Pickler(buffer, 2).dump(value)
  data += buffer.getvalue()
  data += pickle.dumps([key for key, _ in storages] if keys is None else keys,
                       2)
  return data + b''.join(struct.pack('<q', len(values)) + values.tobytes()
                         for _, values in storages)


def tensor_program(offset, shape, strides, view='N'):
  """Returns the pickle of a tensor on a storage '0' of 6 floats."""
  def integers(values):
    return b'(' + b''.join(b'I%d\n' % value for value in values) + b't'
  return (b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\n'
          b'ctorch\nFloatStorage\nV0\nVcpu\nI6\n' + view.encode()
          + b'tQ' + b'I%d\n' % offset + integers(shape) + integers(strides)
          + b'\x89}tR.')


def tensor_stream(*arguments, **options):
  values = np.arange(6, dtype=np.float32)
  empty = stream(None, [('0', values)])
  none = pickle.dumps(None, 2)
  head, tail = empty.split(none + b'\x80', 1)
  return head + tensor_program(*arguments, **options) + b'\x80' + tail


def test_tensors_of_old_files(tmp_path):
  path = tmp_path / 'old.pth'
  path.write_bytes(tensor_stream(1, (2, 2), (2, 1)))
  np.testing.assert_array_equal(torch_file.read(path), [[1, 2], [3, 4]])
  # A part of a storage, from elements 2 to 5, as before PyTorch 0.4.
  view = '(Vv\nI2\nI4\nt'
  path.write_bytes(tensor_stream(1, (3,), (1,), view=view))
  np.testing.assert_array_equal(torch_file.read(path), [3, 4, 5])
  for size, part in ((4, view), (1, '(Vv\nI2\nI5\nt'),
                     (1, '(Vv\nI-1\nI4\nt')):
    path.write_bytes(tensor_stream(1, (size,), (1,), view=part))
    with pytest.raises(pickled.Refusal, match='storage'):
      torch_file.read(path)


@pytest.mark.parametrize(('offset', 'shape', 'strides'), [
    (0, (7,), (1,)), (6, (1,), (1,)), (0, (2, 3), (4, 1)), (-1, (2,), (1,)),
    (0, (2,), (-1,)), (0, (-2,), (1,)), (0, (2,), (1, 1)), (7, (0,), (1,)),
    (0, (2 ** 62, 2 ** 62), (0, 0)), (0, (0, 2 ** 80), (1, 1)),
    (0, (2 ** 30,), (0,)), (2 ** 80, (1,), (1,)), (0, (1,) * 100, (1,) * 100)])
def test_tensors_outside_of_their_storage(tmp_path, offset, shape, strides):
  path = tmp_path / 'net.pth'
  path.write_bytes(tensor_stream(offset, shape, strides))
  with pytest.raises(pickled.Refusal) as error:
    torch_file.read(path)
  assert '\n' not in str(error.value)


def run(program):
  return pickled.load(program, {'a.b': pickled.Constructor(tuple)},
                      lambda key: key).value


@pytest.mark.parametrize('program', [
    b'', b'.', b'\x80\x02', b'N', b'NN.', b'(N.', b'0.', b'R.', b'\xff.',
    b'K\x01K\x02R.', b'ca\nb\nK\x01R.', b'cos\nsystem\nK\x01R.',
    b'K\x01K\x02\x93.', b'}\x8a\x10' + b'\x7f' * 16 + b'Ns.', b'(o.',
    b'h\x05.', b'j\xff\xff\xff\xff.', b'X\xff\xff\xff\xffab.', b'I1x\n.',
    b'\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.', b'X\x02\0\0\0\xff\xff.',
    b'NK\x01K\x02s.', b'}K\x01u.', b'}(K\x01u.', b'](K\x01e', b'Na.', b'(.',
    b'})K\x01s.', b'}]K\x01s.', b'NNb.', b'\x82\x01.', b'\x97.', b'\x98.',
])
def test_programs_that_are_refused(program):
  with pytest.raises(pickled.Refusal):
    run(program)


@pytest.mark.parametrize('program', [
    b'cos\nsystem\n.', b'cos\nsystem\n(Vx\ntR.', b'(Vx\nios\nsystem\n.',
    b'(cos\nsystem\nVx\no.', b'cos\nsystem\n)\x81}b.',
    b'cos\nsystem\n)}\x92.', b'cos\nsystem\n)R(NNu.',
    b'cos\nsystem\n)R(NNe.', b'cos\nsystem\n)RNa.', b'cos\nsystem\n)R(N\x90.',
    b'Vos\nVsystem\n\x93)R.'])
def test_what_is_unknown_takes_all_and_does_nothing(program):
  assert run(program) == pickled.Unread('os.system')


def test_programs_that_cost_much():
  # Nested more deeply than Python recurses.
  value = run(b']' * 100_000 + b'a' * 99_999 + b'.')
  assert torch_file._with_arrays(value) is value
  while value:  # Not destroyed by recursion either.
    value = value.pop()
  # The hash of a tuple of tuples of ... takes 2 ** 100 steps.
  doubled = b')' + b'2\x86' * 100
  assert run(doubled + b'.')
  with pytest.raises(pickled.Refusal, match='tuple for a key'):
    run(b'}' + doubled + b'Ns.')
  # A list that contains itself.
  value = run(b']q\x00h\x00a.')
  assert torch_file._with_arrays(value)[0] is value


def test_random_programs_end():
  rng = np.random.default_rng(0)
  codes = np.frombuffer(b'.(0129NIJKMLFGVXUTC)]}taedsuqhrjcRbPQ\x80\x81\x85'
                        b'\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94\n1a',
                        np.uint8)
  ended = 0
  for _ in range(3000):
    try:
      run(bytes(rng.choice(codes, rng.integers(1, 40))) + b'.')
      ended += 1
    except pickled.Refusal:
      pass
  assert ended


def test_archives_that_are_refused(tmp_path):
  def refused(entries, match, method=zipfile.ZIP_STORED):
    path = tmp_path / 'net.pt'
    with zipfile.ZipFile(path, 'w', method) as archive:
      for name, content in entries.items():
        archive.writestr(name, content)
    with pytest.raises(pickled.Refusal, match=match):
      torch_file.read(path)

  tensor = tensor_program(0, (6,), (1,)).replace(b'I6\nNt', b'I6\nt')
  values = np.arange(6, dtype=np.float32).tobytes()
  good = {'net/data.pkl': tensor, 'net/data/0': values,
          'net/byteorder': 'little'}
  refused(good, 'compressed', zipfile.ZIP_DEFLATED)
  refused(good | {'net/byteorder': 'big'}, 'big-endian')
  refused(good | {'net/data/0': values[:-1]}, '23 bytes for 6 elements')
  refused({'net/data.pkl': tensor}, 'misses its part data/0')
  refused(good | {'other/data.pkl': tensor}, 'not one of torch.save')
  refused({'x': ''}, 'not one of torch.save')


def test_bfloat16_keeps_its_bits(torch, save):
  every = torch.from_numpy(np.arange(2 ** 16, dtype=np.uint16).view(np.int16))
  got = torch_file.read(save({'a': every.view(torch.bfloat16)}))['a']
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.view(np.uint16), np.arange(2 ** 16))


def write(tmp_path, state_dict):
  path = tmp_path / 'written.pt'
  with path.open('wb') as file:
    torch_file.write(file, state_dict)
  return path


def arrays_of_all_kinds():
  rng = np.random.default_rng(0)
  values = 100 * rng.normal(size=(3, 4))
  return {np.dtype(dtype).name: values.astype(dtype) for dtype in (
      np.float32, np.float64, np.float16, jnp.bfloat16, np.int64, np.int32,
      np.int16, np.int8, np.uint8, np.bool_)} | {
          'scalar': np.zeros((), np.int64), 'empty': np.zeros((0, 3)),
          'transposed': values.T, 'layer.0.größe': np.ones(70_000, np.uint8)}


def test_written_files_are_read_by_torch(torch, tmp_path):
  state_dict = arrays_of_all_kinds()
  path = write(tmp_path, state_dict)
  for mapped in (False, True):
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == list(state_dict)
    for name, tensor in loaded.items():
      assert tensor.is_contiguous() and tensor.device.type == 'cpu'
      value = np.ascontiguousarray(state_dict[name])
      value.flags.writeable = False
      assert bits(tensor)[0] == value.dtype.name
      assert bits(tensor)[2] == value.tobytes()
      assert tuple(tensor.shape) == state_dict[name].shape


def test_written_files_are_read(tmp_path):
  state_dict = arrays_of_all_kinds()
  path = write(tmp_path, state_dict)
  got = torch_file.read(path)
  assert list(got) == list(state_dict)
  for name, value in state_dict.items():
    assert got[name].dtype == value.dtype
    np.testing.assert_array_equal(got[name], value)
  assert path.read_bytes() == write(tmp_path, state_dict).read_bytes()


def test_arrays_that_no_tensor_holds(tmp_path):
  with pytest.raises(ValueError, match='x of type uint32 to be of one of fl'):
    write(tmp_path, {'x': np.zeros(2, np.uint32)})
