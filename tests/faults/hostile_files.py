"""Files that mean harm, made from a seed: to run code, or to take all memory.

  python tests/faults/hostile_files.py --count=210 --seed=0

reads them all as a teacher's and prints what docs/reliability.md shows.
"""

# ruff: noqa: E402
# As a script it has to find the package first.

import argparse
import collections
import io
import json
import os
import pathlib
import platform
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib

_ROOT = pathlib.Path(__file__).parents[2]
if __name__ == '__main__':
  sys.path[:0] = [str(_ROOT), str(_ROOT / 'tests')]

import numpy as np

# What reading a file may take beyond what the process has: so many bytes, and
# so many times the file's size.
MOST_BYTES, MOST_TIMES = 512 << 20, 24
_SAID = {'activation': 'relu', 'padding': 'both', 'mean': (0,), 'std': (1,),
         'shortcut': 'pad_both'}
_STATUS = pathlib.Path('/proc/self/status')


# Pickles, as programs of the stack machine.


def text(value):
  data = value if isinstance(value, bytes) else value.encode()
  return b'X' + struct.pack('<I', len(data)) + data


def integer(value):
  return b'I%d\n' % value


def integers(values):
  return b'(' + b''.join(map(integer, values)) + b't'


def named(name):
  module, _, attribute = name.rpartition('.')
  return b'c%s\n%s\n' % (module.encode(), attribute.encode())


def called(name, *arguments):
  return named(name) + b'(' + b''.join(arguments) + b'tR'


def dict_of(items):
  return b'}(' + b''.join(text(key) + value for key, value in items) + b'u'


def tensor(shape, strides=None, key='0', size=64, kind='Float', offset=0):
  strides = strides if strides is not None else [
      int(np.prod(shape[i + 1:])) for i in range(len(shape))]
  storage = (b'(' + text('storage') + named(f'torch.{kind}Storage') + text(key)
             + text('cpu') + integer(size) + b'tQ')
  return called('torch._utils._rebuild_tensor_v2', storage, integer(offset),
                integers(shape), integers(strides), b'\x89', b'}')


def torch_zip(program, storages=None, method=zipfile.ZIP_STORED):
  """Returns a file of torch.save around a pickle."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02' + program + b'.')
    for key, data in (storages or {'0': bytes(256)}).items():
      archive.writestr(f'archive/data/{key}', data)
    archive.writestr('archive/version', b'3\n')
  return buffer.getvalue()


def small_network(width=4):
  """Returns shapes of a CIFAR ResNet-8, of any width."""
  shapes = {'conv1.weight': (width, 3, 3, 3), **_norm('bn1', width)}
  inputs = width
  for group in (1, 2, 3):
    outputs = width * 2 ** (group - 1)
    head = f'layer{group}.0'
    shapes |= {f'{head}.conv1.weight': (outputs, inputs, 3, 3),
               f'{head}.conv2.weight': (outputs, outputs, 3, 3),
               **_norm(f'{head}.bn1', outputs), **_norm(f'{head}.bn2', outputs)}
    inputs = outputs
  return shapes | {'linear.weight': (10, inputs), 'linear.bias': (10,)}


def _norm(name, width):
  return {f'{name}.{leaf}': (width,) for leaf in (
      'weight', 'bias', 'running_mean', 'running_var')}


def npz(arrays, method=zipfile.ZIP_STORED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, data in arrays.items():
      if not isinstance(data, bytes):
        data = npy(data)
      archive.writestr(f'{name}.npy', data)
  return buffer.getvalue()


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def npy_header(descr, shape, data=b''):
  header = repr({'descr': descr, 'fortran_order': False, 'shape': shape})
  header = (header + ' ' * 63)[:len(header) + -len(header) % 64 + 54] + '\n'
  return (b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header))
          + header.encode() + data)


def native(network, arrays=(), method=zipfile.ZIP_STORED):
  return npz({'network.json': np.array(json.dumps(network)), **dict(arrays)},
             method)


def safetensors(header, data=b''):
  head = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(head)) + head + data


def stream(value, keys=b']', end=b'', protocol=b'M\xe9\x03'):
  """Returns a file of old PyTorch: five pickles and the storages."""
  parts = (b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19', protocol, dict_of([
      ('protocol_version', integer(1001)), ('little_endian', b'\x88'),
      ('type_sizes', b'}')]), value, keys)
  return b''.join(b'\x80\x02' + part + b'.' for part in parts) + end


# The kinds. Each takes a generator of numpy and a path that only code in the
# file would write to, and returns the file's content.

KINDS = {}


def kind(function):
  KINDS[function.__name__] = function
  return function


@kind
def code(rng, trace):
  """Asks for a call, in every way that a pickle has to."""
  command = f'touch {trace}'
  name, argument = [
      ('posix.system', command), ('os.system', command),
      ('builtins.eval', f'open({str(trace)!r}, "w")'),
      ('builtins.exec', f'open({str(trace)!r}, "w")'),
      ('__builtin__.eval', f'open({str(trace)!r}, "w")'),
      ('subprocess.getoutput', command), ('builtins.__import__', 'antigravity'),
      ('numpy.testing._private.utils.runstring', command),
      ('torch.hub.load', 'x/y'), ('runpy.run_path', str(trace)),
      ('functools.partial', command), ('codeop.compile_command', command),
  ][rng.integers(12)]
  module, _, attribute = name.rpartition('.')
  argument = text(argument)
  call = [
      called(name, argument), named(name) + argument + b'\x85\x81',
      named(name) + argument + b'\x85}\x92',
      b'(' + argument + b'i%s\n%s\n' % (module.encode(), attribute.encode()),
      b'(' + named(name) + argument + b'o',
      text(module) + text(attribute) + b'\x93' + argument + b'\x85R',
      named('torch.Tensor') + b')\x81' + called(name, argument) + b'b',
      called('copyreg._reconstructor', named(name), argument, b'N'),
      called('torch._tensor._rebuild_from_type_v2', named(name),
             named('torch.Tensor'), argument + b'\x85', b'}'),
      named(name) + argument + b'\x85Rq\x00h\x00(NNuh\x00b',
  ][rng.integers(10)]
  where = rng.integers(4)
  if where == 0:
    return torch_zip(call)
  if where == 1:
    return stream(call)
  items = [('state_dict', dict_of([('conv1.weight', tensor((4, 4)))]))]
  if where == 2:
    return torch_zip(dict_of([*items, ('extra', call)]))
  return torch_zip(dict_of([('a.weight', tensor((4, 4))), ('b.weight', call)]))


@kind
def texts_that_double(rng, trace):
  name = ['pathlib.PosixPath', 'pathlib.WindowsPath', 'pathlib.PurePath',
          'torch.device', 'posixpath.join', 'builtins.str'][rng.integers(6)]
  program = text('x' * int(rng.integers(1, 50)))
  for i in range(rng.integers(25, 60)):
    memo = b'q' + bytes([i])
    program += memo + b'0' + named(name) + (b'h' + bytes([i])) * 2 + b'\x86R'
  return torch_zip(dict_of([('a', tensor((4, 4))), ('b', program)]))


@kind
def copies_of_one_text(rng, trace):
  size, count = 1 << int(rng.integers(14, 18)), int(rng.integers(5000, 30000))
  one = [named('_codecs.encode') + b'h\x00' + text('latin1') + b'\x86R',
         named('builtins.bytearray') + b'h\x00' + text('latin1') + b'\x86R',
         named('builtins.set') + b'h\x01\x85R',
         named('collections.OrderedDict') + b'h\x02\x85R',
         named('argparse.Namespace') + b')Rh\x03b'][rng.integers(5)]
  items = b''.join(integer(i) for i in range(3000))
  pairs = b''.join(integer(i) + b'N\x86' for i in range(3000))
  entries = b''.join(integer(i) + b'N' for i in range(3000))
  setup = (text('x' * size) + b'q\x000(' + items + b'lq\x010(' + pairs
           + b'lq\x020}(' + entries + b'uq\x030')
  return torch_zip(setup + b'](' + one * count + b'e')


@kind
def numbers_for_sizes(rng, trace):
  size = integer(10 ** int(rng.integers(9, 13)))
  one = called(['builtins.bytearray', 'builtins.bytes', 'builtins.range',
                'builtins.list', 'numpy.zeros', 'torch.Size', 'array.array',
                'numpy.core.multiarray._reconstruct'][rng.integers(8)], size)
  return torch_zip(dict_of([('a.weight', tensor((4, 4))), ('b', one)]))


@kind
def repeated_elements(rng, trace):
  """Tensors that show one element again and again."""
  size = 1 << int(rng.integers(20, 27))
  kinds = ['Float', 'BFloat16', 'Half', 'Double'][rng.integers(4)]
  form = rng.integers(4)
  if form == 0:
    items = [(f'layer{i}.weight', tensor((size,), (0,), kind=kinds, size=8))
             for i in range(rng.integers(1, 40))]
  elif form == 1:  # A network that fits, and is as large as it says.
    shapes = small_network(1 << int(rng.integers(8, 12)))
    items = [(key, tensor(shape, (0,) * len(shape), size=8, kind=kinds))
             for key, shape in shapes.items()]
  elif form == 2:  # Of one shape with the weights of a network.
    shapes = small_network()
    items = [(key, tensor(shape if 'conv1' not in key else (size, 1, 1, 1),
                          (0,) * len(shape), size=8, kind=kinds))
             for key, shape in shapes.items()]
  else:
    names = [('_orig', '_mask'), ('_g', '_v')][rng.integers(2)]
    items = [(f'conv1.weight{name}', tensor((size,), (0,), size=8, kind=kinds))
             for name in names]
  return torch_zip(dict_of(items), {'0': bytes(
      8 * {'Float': 4, 'BFloat16': 2, 'Half': 2, 'Double': 8}[kinds])})


@kind
def outside_of_storages(rng, trace):
  shape, strides, size, offset = [
      ((2 ** 40,), (1,), 2 ** 40, 0), ((4,), (1,), -1, 0),
      ((2 ** 62, 4), (0, 1), 64, 0), ((4,), (2 ** 61,), 64, 0),
      ((0, 2 ** 70), (1, 1), 64, 0), ((1,) * 100, (1,) * 100, 64, 0),
      ((4,), (1,), 64, 2 ** 62), ((-1,), (1,), 64, 0), ((4,), (-1,), 64, 3),
      ((65,), (1,), 64, 0)][rng.integers(10)]
  key = ['0', '../../../etc/passwd', '/etc/passwd', 'x' * 500][rng.integers(4)]
  program = dict_of([('a.weight', tensor(shape, strides, key, size, 'Float',
                                         offset))])
  if rng.integers(2):
    return torch_zip(program)
  return stream(program, b']' + text(key) + b'a',
                struct.pack('<q', size) + bytes(256))


@kind
def nested(rng, trace):
  """Deeper than Python recurses, or in itself."""
  depth = int(rng.integers(2000, 200_000))
  value = [b']' * depth + b'a' * (depth - 1), b')' + b'\x85' * depth,
           b'}' + b''.join((text('a') + b'}',) * 2000) + b's' * 2000,
           b']q\x00h\x00a', b'}q\x00' + text('a') + b'h\x00s',
           b']q\x00(h\x00h\x00h\x00e', b'(' * depth][rng.integers(7)]
  if rng.integers(2):
    value = dict_of([('a.weight', tensor((4, 4))), ('more', value)])
  return torch_zip(value) if rng.integers(2) else stream(value)


@kind
def doubled(rng, trace):
  """Two of one of which each has two of one, so that walks never end."""
  count = int(rng.integers(40, 250))
  step = [b'2\x86', b'q%cq%c0](h%ch%ce', b'q%cq%c0}(X\x01\0\0\0ah%c'
          b'X\x01\0\0\0bh%cu'][rng.integers(3)]
  value = b')' if step == b'2\x86' else tensor((4, 4))
  for i in range(count):
    value += step.replace(b'%c', bytes([i]))
  form = rng.integers(5)
  if form == 0:
    return torch_zip(dict_of([('a.weight', tensor((4, 4))), ('b', value)]))
  if form == 1:
    return torch_zip(b'}' + value + b'Ns')
  if form == 2:
    return stream(b'}', protocol=value)
  if form == 3:
    return stream(b'}', keys=b']' + value + b'a')
  return torch_zip(called('torch.device', value, value))


@kind
def many_objects(rng, trace):
  count = int(rng.integers(200_000, 2_000_000))
  one = [b']', b'}', b'\x8f', b'(NNl', b'}NNs', b'G' + bytes(8), b'(t',
         named('argparse.Namespace') + b')R',
         named('collections.OrderedDict') + b')R', b'(\x91'][rng.integers(10)]
  return torch_zip(b'](' + one * (count // len(one)) + b'e')


@kind
def many_tensors(rng, trace):
  first = tensor((4,)) + b'0'
  again = (named('torch._utils._rebuild_parameter') + b'h\x00\x89}\x87R')
  setup = tensor((4,)) + b'q\x000'
  count = int(rng.integers(10_000, 60_000))
  body = (first if rng.integers(2) else again + b'0') * (count // 4)
  return torch_zip(setup + body + dict_of([('a', b'h\x00')]))


@kind
def long_numbers(rng, trace):
  digits = b'9' * int(rng.integers(5000, 1_000_000))
  one = [b'L' + digits + b'L\n', b'I' + digits + b'\n', b'F' + digits + b'\n',
         b'I' + digits, b'\x8b' + struct.pack('<I', 2 ** 31),
         b'\x8a\xff' + b'\x7f' * 255,
         b'F1e' + digits + b'\n'][rng.integers(7)]
  return torch_zip(dict_of([('a.weight', tensor((4, 4))), ('b', one)]))


@kind
def keys_of_one_hash(rng, trace):
  prime = 2 ** 61 - 1
  items = b''.join(
      b'\x8a\x0a' + (prime * i).to_bytes(10, 'little') + b'N'
      for i in range(1, int(rng.integers(20_000, 60_000))))
  return torch_zip(b'}(' + items + b'u' if rng.integers(2)
                   else b'\x8f(' + items + b'\x90')


@kind
def keys_of_many_names(rng, trace):
  """Keys that are long, or have names upon names."""
  form = rng.integers(4)
  if form == 0:
    keys = ['a.' * int(rng.integers(10 ** 5, 10 ** 6)) + 'weight']
  elif form == 1:
    keys = ['a.' * 40 + f'{i}.weight' for i in range(5000)]
  elif form == 2:
    keys = ['x' * 10 ** 6, 'module.' * 10 ** 5 + 'a']
  else:
    keys = [f'net{i}.layer3.0.conv1.weight' for i in range(20_000)]
  return torch_zip(dict_of([(key, b'h\x00') for key in keys]).replace(
      b'h\x00', tensor((4, 4)) + b'q\x00', 1))


@kind
def names_for_terminals(rng, trace):
  """Names that are long, of many lines, or orders to a terminal."""
  name = ['\x1b[2J\x1b]0;owned\x07', 'a\nTraceback (most recent call last):',
          '\u202egnp.exe', 'x' * 10 ** 6, '\r\r\r', '\x00'][rng.integers(6)]
  form = rng.integers(5)
  if form == 0:
    return torch_zip(dict_of([(name, tensor((4, 4))),
                              (f'{name}.weight', tensor((4, 4)))]))
  if form == 1:
    return torch_zip(text(name) + text(name) + b'\x93')
  if form == 2:
    return npz({name.replace('\0', '0') or 'x': np.ones(3)})
  if form == 3:
    return torch_zip(dict_of([('a', dict_of([(name, tensor((4, 4)))])),
                              (name, dict_of([('b', tensor((4, 5)))]))]))
  return safetensors({name: {'dtype': 'F32', 'shape': [1],
                             'data_offsets': [0, 4]}}, bytes(4))


@kind
def compressed(rng, trace):
  """Zeros of which a few bytes make many."""
  size = int(rng.integers(80, 200)) << 20
  method = [zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
            zipfile.ZIP_LZMA][rng.integers(4)]
  form = rng.integers(3)
  if form == 0:
    return npz({'a.weight': npy_header('|u1', (size,), bytes(size))}, method)
  if form == 1:
    return npz({'network.json': npy_header(f'<U{size // 4}', (), bytes(size))},
               method)
  value = tensor((size // 4,), size=size // 4)
  return torch_zip(dict_of([('a.weight', value)]), {'0': bytes(size)}, method)


@kind
def archives_that_lie(rng, trace):
  """Parts that lie on one another, or are larger than they say."""
  count = int(rng.integers(50, 2000))
  content = bytearray(npz({f'a{i}': np.zeros(64) for i in range(count)}
                          if rng.integers(2) else
                          {'a.weight': npy_header('|u1', (1 << 25,),
                                                  bytes(1 << 25))},
                          zipfile.ZIP_DEFLATED))
  place = content.find(b'PK\x01\x02')
  form = rng.integers(4)
  while place >= 0:
    if form == 0:  # All of them are the first.
      content[place + 42:place + 46] = bytes(4)
    elif form == 1:
      content[place + 24:place + 28] = struct.pack('<I', 1000)
    elif form == 2:
      content[place + 20:place + 28] = struct.pack('<II', 2 ** 31, 2 ** 31)
    else:
      content[place + 8] |= 1  # Encrypted.
    place = content.find(b'PK\x01\x02', place + 4)
  return bytes(content)


@kind
def many_entries(rng, trace):
  count = int(rng.integers(20_000, 60_000))
  name = ['a/{}', 'archive/data/{}', '{}.npy'][rng.integers(3)]
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for i in range(count):
      archive.writestr(name.format(i), b'')
    if rng.integers(2):
      archive.writestr('archive/data.pkl', b'\x80\x02}.')
  return buffer.getvalue()


@kind
def arrays_that_lie(rng, trace):
  descr, shape = [
      ('<f4', (10 ** 12,)), ('<f4', (-1,)), ('|O', (1,)), ('|V1000000', (1,)),
      ([('a', '<f4'), ('b', '|O')], (3,)), ('<f4', (2 ** 62, 2 ** 62)),
      ('<f4', (0, 10 ** 18)), ('<U900000000', ()), ('<f4', (1,) * 200),
      ('<f4', 'x'), ('<M8[s]', (1,)), ('<f4', (True,)), ("__import__('os')", ())
  ][rng.integers(13)]
  data = npy_header(descr, shape, bytes(int(rng.integers(0, 100))))
  form = rng.integers(4)
  if form == 0:
    data = data.replace(b"'descr'", b'(' * 90 + b"'descr'")
  if form == 1:
    return data
  return npz({'a.weight': data} if form < 3 else {
      'network.json': np.array('{"arch": "resnet18"}'), 'params/a': data})


@kind
def numpy_in_pickles(rng, trace):
  """Arrays of NumPy whose shape, type or bytes are not what they say."""
  def dtype(code):
    return called('numpy.dtype', text(code), b'\x89', b'\x88')

  code, shape, data = [
      ('f4', (10 ** 12,), b''), ('O', (2,), b'12345678'), ('f4', (-4,), b''),
      ('V100000000', (100,), b''), ('f4', (0, 2 ** 80), b''),
      ('f4', (1,) * 100, b'1234'), ('f4', (1,), b'12345'), ('U9999', (9,), b''),
      ("__import__('os').system('x')", (1,), b'1')][rng.integers(9)]
  state = (b'(' + integer(1) + integers(shape) + dtype(code) + b'\x89'
           + (b'](Ne' if rng.integers(4) == 0 else b'C' + bytes([len(data)])
              + data) + b't')
  array = (called('numpy.core.multiarray._reconstruct', named('numpy.ndarray'),
                  integers((0,)), text('b')) + state + b'b')
  if rng.integers(3) == 0:
    array = called('numpy.core.multiarray.scalar', dtype(code),
                   b'C' + bytes([len(data)]) + data)
  return torch_zip(dict_of([('a.weight', array), ('b.weight', array)]))


@kind
def networks_of_many_layers(rng, trace):
  """Own files that name more than any machine has."""
  arch = ['cifar_resnet60002', 'cifar_resnet6000002', 'wrn_60004_10',
          'wrn_10_1000000000', 'dm_wrn_6004_2', 'resnet_99999_1_1_1',
          'resnet_bottleneck_1_1_1_30000', 'preact_resnet_1_1_99999_1',
          'dm_preact_resnet_9999_9999_9999_9999',
          'cifar_resnet' + '9' * 5000][rng.integers(10)]
  network = {'arch': arch, 'channels': 3, 'num_classes': 10, 'options': {}}
  return native(network, {'params/a/kernel': np.zeros((3, 3))})


@kind
def networks_of_no_sense(rng, trace):
  change = [
      {'channels': 10 ** 9}, {'num_classes': 10 ** 12}, {'num_classes': 'ten'},
      {'options': {'width': 10 ** 9}}, {'options': {'width': 'x'}},
      {'options': {'width': 1e400}}, {'options': {'axis_name': 'batch'}},
      {'options': {'mean': [[0] * 3] * 3, 'std': 1}}, {'options': []},
      {'arch': ['resnet18']}, {'arch': 'x' * 10 ** 5}, {'arch': '\x1b[2J'},
      {'image_shape': [10 ** 6, 10 ** 6, 3]}, {'image_shape': 'big'},
      {'options': {'blocks': 5}}, {'channels': -1}, {'more': 1},
      {'arch': 'generator'}, {'arch': 'generator', 'num_classes': None,
                              'options': {'side': 10 ** 7, 'width': 10 ** 7,
                                          'nz': 10 ** 9}},
      {'options': {'width': True, 'activation': 5}}][rng.integers(20)]
  network = {'arch': 'cifar_resnet8', 'channels': 3, 'num_classes': 10,
             'options': {}} | change
  data = native(network, {'params/a/kernel': np.zeros((3, 3))})
  if rng.integers(8) == 0:
    deep = int(rng.integers(1000, 10 ** 6))
    data = npz({'network.json': np.array('{"options":' * deep),
                'params/a': np.zeros(3)})
  return data


@kind
def networks_of_bad_values(rng, trace):
  """Own and others' files that fit, with values that do not compute."""
  bad = [np.nan, np.inf, -1.0, 1e39][rng.integers(4)]
  named_bad = rng.choice(['bn1.running_var', 'linear.bias'])
  if bad == -1.0:
    named_bad = 'bn1.running_var'
  arrays = {key: np.ones(shape) for key, shape in small_network().items()}
  arrays[named_bad].flat[0] = bad
  kinds = [np.float64, complex, 'U5', 'S3'][rng.integers(4)]
  arrays = {key: value.astype(kinds) for key, value in arrays.items()}
  if rng.integers(2):
    return npz(arrays)
  leaves = {'running_mean': ('batch_stats', 'mean'), 'running_var':
            ('batch_stats', 'var')}
  own = {}
  for key, value in arrays.items():
    *modules, leaf = key.replace('.0.', '_0.').split('.')
    if leaf == 'weight':
      leaf = 'kernel' if value.ndim > 1 else 'scale'
    if value.ndim > 1:
      value = np.moveaxis(value, (0, 1), (-1, -2))
    collection, leaf = leaves.get(leaf, ('params', leaf))
    own['/'.join([collection, *modules, leaf])] = value
  return native({'arch': 'cifar_resnet8', 'channels': 3, 'num_classes': 10,
                 'options': {'width': 4}}, own)


@kind
def safetensors_that_lie(rng, trace):
  entry = {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}
  form = rng.integers(9)
  if form == 0:
    return struct.pack('<Q', 2 ** 63) + b'{' + bytes(100)
  if form == 1:
    return safetensors(b'{"a":' * int(rng.integers(1000, 10 ** 5)))
  change = [{'dtype': 'F4'}, {'dtype': 'X'}, {'shape': [10 ** 15]},
            {'shape': [2 ** 62, 4]}, {'shape': [-4]},
            {'data_offsets': [0, 10 ** 15]}, {'data_offsets': [8, 0]}][form - 2]
  return safetensors({'a.weight': entry | change, 'b.weight': entry}, bytes(16))


@kind
def streams_that_lie(rng, trace):
  value = dict_of([('a.weight', tensor((4,), key='k')[:-1] + b'R')]).replace(
      integer(64) + b'tQ', integer(64) + b'NtQ')
  keys = b']' + text('k') + b'a'
  form = rng.integers(6)
  if form == 0:
    return stream(value, keys, struct.pack('<q', 2 ** 62))
  if form == 1:
    return stream(value, b'](' + (text('k') * 10_000) + b'e')
  if form == 2:
    return stream(value, keys, struct.pack('<q', -1) + bytes(256))
  if form == 3:
    view = b'(' + text('v') + integer(0) + integer(2 ** 40) + b't'
    return stream(value.replace(b'NtQ', view + b'tQ'), keys,
                  struct.pack('<q', 64) + bytes(256))
  if form == 4:
    return stream(value, keys)[:int(rng.integers(20, 200))]
  return stream(value, keys, struct.pack('<q', 64) + bytes(256)
                + bytes(int(rng.integers(1, 1000))))


@kind
def many_dicts(rng, trace):
  """State dicts upon state dicts, in one another and side by side."""
  count = int(rng.integers(200, 5000))
  form = rng.integers(4)
  if form == 0:
    value = dict_of([(f'n{i}', dict_of([('conv1.weight', tensor(
        (4, 4), size=10 ** 4))])) for i in range(count)])
  elif form == 1:
    value = dict_of([(f'a{i}.weight', tensor((4, 4), size=10 ** 4))
                     for i in range(10 * count)])
  elif form == 2:
    value = dict_of([(f'm{i}.{key}', tensor(shape, size=10 ** 4))
                     for i in range(count // 50)
                     for key, shape in small_network().items()])
  else:
    value = dict_of([('x' * 150, dict_of([('y' * 150, b'h\x00')]))
                     for _ in range(count)]).replace(
                         b'h\x00', tensor((4, 4), size=10 ** 4) + b'q\x00', 1)
  return torch_zip(value, {'0': bytes(40_000)})


@kind
def networks_of_many_blocks(rng, trace):
  """Keys of a network that it would take hours to build."""
  count = int(rng.integers(2000, 20_000))
  head = ['layer1.{}', 'layer3.{}', 'block1.layer.{}', 'layer4.{}'][
      rng.integers(4)]
  shapes = small_network() | {
      'block1.layer.0.bn1.weight': (4,), 'block1.layer.0.conv1.weight':
      (4, 4, 3, 3), 'fc.weight': (10, 4), 'layer4.0.conv1.weight': (4, 4, 3, 3)}
  if 'block' not in head:
    del shapes['block1.layer.0.bn1.weight']
  items = [(key, tensor(shape, size=10 ** 4)) for key, shape in shapes.items()]
  items += [(f'{head.format(i)}.conv2.weight', b'h\x00') for i in range(count)]
  program = dict_of(items)
  return torch_zip(program.replace(
      b'h\x00', tensor((4, 4, 3, 3), size=10 ** 4) + b'q\x00', 1),
                   {'0': bytes(40_000)})


@kind
def other_files(rng, trace):
  """Files of other programs, whole or cut."""
  inside = torch_zip(dict_of([('a.weight', tensor((4, 4)))]))
  buffer = io.BytesIO()
  form = rng.integers(14)
  if form == 0:
    with tarfile.open(fileobj=buffer, mode='w') as archive:
      member = tarfile.TarInfo('model.pt')
      member.size = len(inside)
      archive.addfile(member, io.BytesIO(inside))
    return buffer.getvalue()
  if form == 1:
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('run/model.pt', inside)
    return buffer.getvalue()
  if form == 2:
    return zlib.compress(bytes(1 << 20)) * 3
  beginning = [b'\x1f\x8b\x08', b'BZh9', b'\xfd7zXZ\0', b'\x89HDF\r\n\x1a\n',
               b'\x08\x08\x12\x07pytorch', b'<!DOCTYPE html>', b'{"a": 1}',
               b'version https://git-lfs', b'\x93NUMPY\x01\x00',
               b'\x85\xa6params', b''][form - 3]
  return beginning + rng.bytes(int(rng.integers(0, 5000)))


@kind
def flipped(rng, trace):
  """A good file with bytes of it changed."""
  shapes = small_network()
  good = [
      torch_zip(dict_of([(key, tensor(shape, size=10 ** 4))
                         for key, shape in shapes.items()]),
                {'0': np.ones(10 ** 4, np.float32).tobytes()}),
      npz({key: np.ones(shape, np.float32) for key, shape in shapes.items()}),
      stream(dict_of([('a.weight', b'}')])),
  ][rng.integers(3)]
  content = bytearray(good)
  for place in rng.integers(0, len(content), int(rng.integers(1, 20))):
    content[place] = rng.integers(256)
  if rng.integers(3) == 0:
    del content[int(rng.integers(len(content))):]
  return bytes(content)


def make(directory, count, seed):
  """Yields (kind, path, path that only code in the file would write to)."""
  names = list(KINDS)
  for i in range(count):
    name = names[i % len(names)]
    trace = pathlib.Path(directory) / f'{i}.ran'
    path = pathlib.Path(directory) / f'{i}.bin'
    path.write_bytes(KINDS[name](np.random.default_rng([seed, i]), trace))
    yield name, path, trace


def _status(field):
  for line in _STATUS.read_text().splitlines():
    if line.startswith(field):
      return int(line.split()[1]) << 10
  return 0


def read(path):
  """Reads a file as a teacher's; returns what is said, seconds, and bytes.

  The bytes are the most that the process had at once beyond what it had before;
  0 where the system does not say.
  """
  from ferd_jax.weights import loading
  measured = _STATUS.exists()
  if measured:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forget the peak.
    before = _status('VmRSS')
  start = time.perf_counter()
  try:
    said = f'loaded {loading.load_any(path, options=_SAID)}'
  except (OSError, ValueError) as error:
    said = str(error)
  seconds = time.perf_counter() - start
  return said, seconds, (_status('VmHWM') - before if measured else 0)


def problems(path, trace, said, seconds, taken, most_seconds=30):
  """Returns what is wrong with how a file was read, () if nothing is."""
  allowed = MOST_BYTES + MOST_TIMES * path.stat().st_size
  found = []
  if trace.exists():
    found.append('code of the file ran')
  if not said or not said.isprintable() or len(said) > 4000:
    found.append(f'not one clear line: {said[:300]!r}')
  if taken > allowed:
    found.append(f'{taken >> 20} MiB, {allowed >> 20} are allowed')
  if seconds > most_seconds:
    found.append(f'{seconds:.0f} s')
  return tuple(found)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--count', type=int, default=210)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--verbose', action='store_true')
  args = parser.parse_args()
  rows, wrong = collections.defaultdict(list), 0
  with tempfile.TemporaryDirectory() as directory:
    for name, path, trace in make(directory, args.count, args.seed):
      said, seconds, taken = read(path)
      found = problems(path, trace, said, seconds, taken)
      wrong += bool(found)
      rows[name].append((path.stat().st_size, seconds, taken,
                         said.startswith('loaded')))
      if found or args.verbose:
        print(name, path.name, *found, said[-200:], sep=' | ')
      path.unlink()
  print('| kind | files | largest, kB | most seconds | most MiB | loaded |\n'
        '|---|---|---|---|---|---|')
  for name, values in rows.items():
    size, seconds, taken, loaded = zip(*values, strict=True)
    print(f'| {name.replace("_", " ")} | {len(values)} | '
          f'{max(size) / 1e3:,.0f} | {max(seconds):.1f} | '
          f'{max(taken) >> 20} | {sum(loaded)} |')
  print(f'{args.count} files, {wrong} not read as they should be; Python '
        f'{platform.python_version()}, {platform.machine()}, '
        f'{os.cpu_count()} cores.')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
