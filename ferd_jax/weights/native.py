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
from ferd_jax.core import atomic
from ferd_jax.core import errors

_NETWORK = 'network.json'  # Also the name of the array in an .npz.
_VARIABLES = 'variables'
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
  try:
    with zipfile.ZipFile(path) as archive:
      return f'{_NETWORK}.npy' in archive.namelist()
  except (OSError, zipfile.BadZipFile):
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
    checkpointer.save(path.absolute() / _VARIABLES, variables, force=True)
  atomic.write_text(path / _NETWORK, text + '\n')


def read(path: os.PathLike[str] | str) -> tuple[Network, dict[str, Any]]:
  """Reads what `write` wrote.

  Returns:
    The network, and its variables as arrays.

  Raises:
    FileNotFoundError: if nothing is there.
    ValueError: if it holds no network, one that has to be registered first, or
      its variables do not fit it.
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


def abstract(network: Network) -> dict[str, Any]:
  """Returns the variables that a network has, as shapes and types."""
  model = network.build()
  return jax.eval_shape(
      lambda key: models.init_variables(model, key, network.input_shape),
      jax.random.key(0))


@contextlib.contextmanager
def _damage_shows(path):
  """Turns errors of the many kinds in which damage shows into ValueError."""
  try:
    yield
  except Exception as error:
    raise ValueError(f'Cannot read {path}, which may be damaged: '
                     f'{errors.reason(error)}') from error


def _read_file(path, network):
  with np.load(path, allow_pickle=False) as arrays:
    flat = {name: arrays[name] for name in arrays.files if name != _NETWORK}
  expected = traverse_util.flatten_dict(abstract(network), sep='/')
  if {name: value.shape for name, value in flat.items()} != {
      name: value.shape for name, value in expected.items()}:
    raise ValueError(f'its arrays are not those of {network.arch}.')
  # Of an empty collection there is no array.
  return {'params': {}, 'batch_stats': {},
          **traverse_util.unflatten_dict(flat, sep='/')}


def _read_directory(path, network):
  with ocp.StandardCheckpointer() as checkpointer:
    variables = checkpointer.restore(path.absolute() / _VARIABLES,
                                     abstract(network))
  return jax.tree.map(np.asarray, variables)


def _network(path):
  if path.is_dir():
    text = (path / _NETWORK).read_text()
  else:
    with np.load(path, allow_pickle=False) as arrays:
      text = str(arrays[_NETWORK])
  values = json.loads(text)
  options = {name: _hashable(value)
             for name, value in values.pop('options').items()}
  return Network(**values, options=options)


def _hashable(value):
  """Returns a JSON value with its lists, of any depth, as tuples."""
  return tuple(map(_hashable, value)) if isinstance(value, list) else value
