"""Networks in this package's own files: what they are, and their variables.

  net.npz   variables by path, 'params/conv1/kernel', and the network as JSON
  net/      the same as an Orbax checkpoint, with network.json beside it

Both say all that it takes to build the network again.
"""

from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True)
class Network:
  """What it takes to build a network.

  Attributes:
    arch: a name for `models.build`, or `models.GENERATOR`.
    channels: of the images.
    num_classes: of a classifier, None for a generator.
    options: of `models.build`, or of a generator `side`, `width` and `nz`.
  """
  arch: str
  channels: int
  num_classes: int | None = None
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def build(self) -> nn.Module:
    """Returns the module.

    Raises:
      ValueError: if there is no such network.
    """
    options = dict(self.options)
    if self.arch == models.GENERATOR:
      return models.Generator(side=options['side'], channels=self.channels,
                              width=options['width'])
    return models.build(self.arch, self.num_classes, **options)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one input: an image of a usual size, or a latent."""
    if self.arch == models.GENERATOR:
      return (self.options['nz'],)
    return (32, 32, self.channels)

  def __str__(self) -> str:
    options = ''.join(f', {name} {value}'
                      for name, value in self.options.items())
    classes = '' if self.num_classes is None else (
        f', {self.num_classes} classes')
    return f'{self.arch}{options}{classes}'

  def json_values(self) -> dict[str, Any]:
    """Returns the network as a dict that JSON can hold."""
    return dataclasses.asdict(self) | {
        'options': {name: list(value) if isinstance(value, tuple) else value
                    for name, value in self.options.items()}}


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
    variables: {'params': ..., 'batch_stats': ...}.

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
    ValueError: if it holds no network, or its variables do not fit it.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'Expected a network at {path}.')
  if not is_native(path):
    raise ValueError(f'Cannot read {path}: it holds no {_NETWORK}.')
  try:
    network, variables = (_read_directory if path.is_dir() else _read_file)(
        path)
  except Exception as error:  # Damage shows in errors of many kinds.
    raise ValueError(f'Cannot read {path}, which may be damaged: '
                     f'{errors.reason(error)}') from error
  return network, variables


def _read_file(path):
  with np.load(path, allow_pickle=False) as arrays:
    flat = dict(arrays)
  network = _network(str(flat.pop(_NETWORK)))
  expected = traverse_util.flatten_dict(_abstract(network), sep='/')
  if {name: value.shape for name, value in flat.items()} != {
      name: value.shape for name, value in expected.items()}:
    raise ValueError(f'its arrays are not those of {network.arch}.')
  return network, traverse_util.unflatten_dict(flat, sep='/')


def _read_directory(path):
  network = _network((path / _NETWORK).read_text())
  with ocp.StandardCheckpointer() as checkpointer:
    variables = checkpointer.restore(path.absolute() / _VARIABLES,
                                     _abstract(network))
  return network, jax.tree.map(np.asarray, variables)


def _network(text):
  values = json.loads(text)
  options = {name: tuple(value) if isinstance(value, list) else value
             for name, value in values.pop('options').items()}
  return Network(**values, options=options)


def _abstract(network):
  model = network.build()
  return jax.eval_shape(
      lambda key: models.init_variables(model, key, network.input_shape),
      jax.random.key(0))
