"""Networks in this package's own files: what they are, and their variables.

  net.npz   variables by path, 'params/conv1/kernel', and the network as JSON
  net/      the same as an Orbax checkpoint, with network.json beside it

Both say all that it takes to build the network again.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
from typing import Any
import zipfile

from etils import epath
from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
from orbax import checkpoint as ocp

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.core import atomic
from ferd_jax.core import buckets
from ferd_jax.core import errors
from ferd_jax.core import npz

_NETWORK = 'network.json'  # Also the name of the array in an .npz.
_VARIABLES = 'variables'
# What its arrays may take, in bytes: so many times the file, and more. A file
# of `write` is not compressed, others may be.
_LARGEST_RATIO, _LARGEST_EXTRA = 16, 64 << 20
_MOST_ARRAYS = 8_000
_LONGEST_TEXT = 1 << 20  # bytes of JSON
_USUAL_SIZE = (32, 32)  # of images, of which files say nothing.


@dataclasses.dataclass(frozen=True)
class Network:
  """What it takes to build a network.

  Attributes:
    arch: a name for `models.build`, or `models.GENERATOR`.
    channels: of the images.
    num_classes: of a classifier, None for a generator.
    options: of `models.build`, or of a generator `side`, `width`, `nz`, and
      `wide_start` if it does.
    image_shape: shape (H, W, C) of the images of a classifier, on which the
      number of parameters may depend; None for (32, 32, channels), which is
      kept as None.

  Raises:
    ValueError: if the shape is none, has other channels, or is a generator's.
  """
  arch: str
  channels: int
  num_classes: int | None = None
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  image_shape: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.image_shape is None:
      return
    shape = tuple(self.image_shape)
    if self.arch == models.GENERATOR:
      raise ValueError(f'Expected image_shape={shape} to be None for a '
                       'generator; its side and channels say it.')
    if len(shape) != 3 or shape[-1] != self.channels:
      raise ValueError(f'Expected image_shape={shape} to be (H, W, '
                       f'{self.channels}), for channels={self.channels}.')
    # The same network is equal however it is said, and in the same file.
    usual = (*_USUAL_SIZE, self.channels)
    object.__setattr__(self, 'image_shape', None if shape == usual else shape)

  def build(self) -> nn.Module:
    """Returns the module.

    Raises:
      ValueError: if there is no such network.
    """
    options = dict(self.options)
    if self.arch == models.GENERATOR:
      return models.Generator(side=options['side'], channels=self.channels,
                              width=options['width'],
                              wide_start=options.get('wide_start', False))
    return models.build(self.arch, self.num_classes, **options)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one input: an image or a latent."""
    if self.arch == models.GENERATOR:
      return (self.options['nz'],)
    return self.image_shape or (*_USUAL_SIZE, self.channels)

  def __str__(self) -> str:
    options = ''.join(f', {name} {value}'
                      for name, value in self.options.items())
    classes = '' if self.num_classes is None else (
        f', {self.num_classes} classes')
    images = '' if self.image_shape is None else (
        ', images of {}x{} pixels'.format(*self.image_shape))
    return f'{self.arch}{options}{classes}{images}'

  def json_values(self) -> dict[str, Any]:
    """Returns the network as a dict that JSON can hold.

    It has an `image_shape` only if that is not the usual one.
    """
    values = dataclasses.asdict(self) | {
        'options': {name: list(value) if isinstance(value, tuple) else value
                    for name, value in self.options.items()}}
    shape = values.pop('image_shape')
    return values | ({} if shape is None else {'image_shape': list(shape)})


def is_native(path: os.PathLike[str] | str) -> bool:
  """Returns whether `read` is the function for a path that exists."""
  path = epath.Path(path)
  if path.is_dir():
    return (path / _NETWORK).exists()
  # A device or a pipe, which may never begin; epath calls it a file.
  if not buckets.is_one(path) and not os.path.isfile(path):
    return False
  try:
    with zipfile.ZipFile(path) as archive:
      return f'{_NETWORK}.npy' in archive.namelist()
  except Exception:
    # Of no archive, or a damaged one: zipfile has errors of many kinds.
    return False


def write(path: os.PathLike[str] | str, network: Network,
          variables: Mapping[str, Any]) -> None:
  """Writes a network: a file if the name ends in .npz, else a directory.

  Args:
    path: what is there is replaced, if it is a network.
    network: what the variables belong to.
    variables: {'params': ..., 'batch_stats': ...}, and any further collections.

  Raises:
    ValueError: if a directory is there that holds no network.
  """
  path = epath.Path(path)
  text = json.dumps(network.json_values())
  variables = jax.tree.map(np.asarray, dict(variables))
  if path.suffix == '.npz':
    flat = traverse_util.flatten_dict(variables, sep='/')
    with atomic.writing(path) as file:
      np.savez(file, **{_NETWORK: np.array(text)}, **flat)
    return
  if path.exists() and not is_native(path):
    raise ValueError(f'Expected a new directory, or one that holds a network, '
                     f'to write to; {path} is none.')
  path.mkdir(parents=True, exist_ok=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(buckets.absolute(path) / _VARIABLES, variables,
                      force=True)
  atomic.write_text(path / _NETWORK, text + '\n')


def read(path: os.PathLike[str] | str) -> tuple[Network, dict[str, Any]]:
  """Reads what `write` wrote.

  Returns:
    The network, and its variables as arrays.

  Raises:
    FileNotFoundError: if nothing is there.
    ValueError: if it holds no network, one that has to be registered first, or
      its variables do not fit it, are no numbers, not finite, or variances
      below 0.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'Expected a network at {path}.')
  if not is_native(path):
    raise ValueError(f'Cannot read {path}: it holds no {_NETWORK}.')
  with _damage_shows(path):
    network = _network(path)
  if network.arch != models.GENERATOR:
    try:
      models.check_name(network.arch)
    except ValueError as error:
      raise ValueError(f'Cannot read {path}: {error}') from error
  with _damage_shows(path):
    variables = (_read_directory if path.is_dir() else _read_file)(
        path, network)
  return network, variables


def abstract(network: Network, limit: int | None = None) -> dict[str, Any]:
  """Returns the variables that a network has, as shapes and types.

  Args:
    network: the network.
    limit: see `models.abstract_variables`.
  """
  return models.abstract_variables(network.build(), network.input_shape, limit)


@contextlib.contextmanager
def _damage_shows(path):
  """Turns errors of the many kinds in which damage shows into ValueError."""
  try:
    yield
  except Exception as error:
    raise ValueError(f'Cannot read {path}, which may be damaged: '
                     f'{errors.reason(error)}') from error


def _read_file(path, network):
  largest = os.path.getsize(path) * _LARGEST_RATIO + _LARGEST_EXTRA
  flat = npz.read(path, largest)
  del flat[_NETWORK]
  if len(flat) > _MOST_ARRAYS:
    raise ValueError(f'it holds {len(flat):,} arrays, more than any network.')
  return _checked(flat, abstract(network, len(flat)))


def _read_directory(path, network):
  directory = buckets.absolute(path) / _VARIABLES
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(directory).item_metadata
    # What is empty has no shape.
    stored = {name: value for name, value in _flat(metadata.tree).items()
              if hasattr(value, 'shape')}
    expected = abstract(network, len(stored))
    _compare(stored, _flat(expected))
    variables = checkpointer.restore(directory, expected)
  return _checked(_flat(jax.tree.map(np.asarray, variables)), expected)


def _checked(flat, expected):
  """Returns variables by collection, if they are those of a network.

  Raises:
    ValueError: if they have other names, shapes or types, or values that no
      network computes by; see `torch_io.checked_values`.
  """
  wanted = _flat(expected)
  _compare(flat, wanted)
  floats = {name: flat[name] for name in wanted
            if name.partition('/')[0] in torch_io.FLOATS}
  values = torch_io.checked_values(
      floats, [name for name in floats if not name.startswith('params/')
               and name.endswith('/var')])
  others = {name: flat[name] for name in wanted if name not in floats}
  for name, value in others.items():
    if value.dtype != wanted[name].dtype:
      raise ValueError(f'its {name} is of {value.dtype}, not '
                       f'{wanted[name].dtype}.')
  # Of an empty collection there is no array.
  return {'params': {}, 'batch_stats': {},
          **traverse_util.unflatten_dict(values | others, sep='/')}


def _compare(found, wanted):
  """Raises ValueError unless names and shapes are those of a network."""
  shapes = {name: tuple(value.shape) for name, value in found.items()}
  expected = {name: tuple(value.shape) for name, value in wanted.items()}
  if shapes == expected:
    return
  differing = sorted(name for name in shapes.keys() | expected.keys()
                     if shapes.get(name) != expected.get(name))
  name = differing[0]
  raise ValueError(
      'its arrays are not those of the network that it names: '
      f'{len(differing)} differ, such as {errors.shown(name)}, '
      f'{shapes.get(name, "absent")} where it has '
      f'{expected.get(name, "none")}.')


def _flat(variables):
  return traverse_util.flatten_dict(dict(variables), sep='/')


def _network(path):
  if path.is_dir():
    if (path / _NETWORK).stat().length > _LONGEST_TEXT:
      raise ValueError(f'its {_NETWORK} is no description of a network.')
    text = (path / _NETWORK).read_text()
  else:
    array = npz.read(path, _LONGEST_TEXT, [_NETWORK])[_NETWORK]
    text = str(array) if array.ndim == 0 else ''
  values = json.loads(text)
  kinds = {'arch': str, 'channels': int, 'num_classes': int | None,
           'options': dict, 'image_shape': list | None}
  if not isinstance(values, dict) or not values.keys() <= kinds.keys() or any(
      not isinstance(values.get(name), kind) or isinstance(
          values.get(name), bool) for name, kind in kinds.items()):
    raise ValueError(f'its {_NETWORK} describes no network.')
  options = {name: _hashable(value)
             for name, value in values.pop('options').items()}
  if 'axis_name' in options:
    raise ValueError(f'its {_NETWORK} sets axis_name, which no file does.')
  return Network(**values, options=options)


def _hashable(value):
  """Returns a JSON value with its lists, of any depth, as tuples."""
  return tuple(map(_hashable, value)) if isinstance(value, list) else value
