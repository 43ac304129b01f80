"""Networks from files: recognised, built and filled.

A file says much of its network, and never all. What it does not say has to be
said, as options of `models.build`: it is asked for, not guessed.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

from flax import linen as nn

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.torch_io import recognise
from ferd_jax.weights import native

AUTO = 'auto'
# What even a file whose architecture is named leaves open: the names of
# architectures say nothing of it.
_NEVER_BY_NAME = ('shortcut', 'shortcut_input')
_TEST_IMAGES = 10_000  # of CIFAR, behind the published accuracies


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network from a file.

  Attributes:
    network: what it is.
    model: its module.
    variables: {'params': ..., 'batch_stats': ...}, float32.
    definition: the PyTorch code whose names the file has, if it is known.
  """
  network: native.Network
  model: nn.Module
  variables: dict[str, Any]
  definition: str | None = None

  def __str__(self) -> str:
    code = f', keys of {self.definition}' if self.definition else ''
    return f'{self.network}{code}'


def load(path: str | os.PathLike[str], *, arch: str = AUTO,
         options: Mapping[str, Any] | None = None, channels: int | None = None,
         num_classes: int | None = None, select: str | None = None) -> Loaded:
  """Returns the classifier in a file.

  Args:
    path: as for `load_any`.
    arch: the same.
    options: the same.
    channels: of the images that it is for; None for those of the file.
    num_classes: that it should have; None for those of the file.
    select: as for `load_any`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: as by `load_any`, and for a generator.
  """
  loaded = load_any(path, arch=arch, options=options, channels=channels,
                    num_classes=num_classes, select=select)
  if loaded.network.arch == models.GENERATOR:
    raise ValueError(f'{os.fspath(path)}: Cannot classify with it: it is a '
                     'generator.')
  for name, expected in (('num_classes', num_classes), ('channels', channels)):
    found = getattr(loaded.network, name)
    if expected not in (None, found):
      kind = name.removeprefix('num_')
      raise ValueError(f'{os.fspath(path)}: The weights have {found} {kind}, '
                       f'{name}={expected} was expected.')
  return loaded


def load_any(path: str | os.PathLike[str], *, arch: str = AUTO,
             options: Mapping[str, Any] | None = None,
             channels: int | None = None, num_classes: int | None = None,
             select: str | None = None) -> Loaded:
  """Returns the network in a file, a classifier or a generator.

  Args:
    path: a PyTorch file, `.safetensors`, `.npz`, or a network of `native`.
    arch: a name for `models.build`; 'auto' recognises it from the keys.
    options: of `models.build`; None stands for one that is not given. Buffers
      of a normalising layer in the file are used if `mean` and `std` are not
      given, and have to agree if they are. With 'auto', whatever the keys do
      not reveal has to be given, `mean=(0,)` and `std=(1,)` for no
      normalisation; with a name, its defaults hold, but not for the shortcuts
      of CIFAR ResNets and PreActResNets, which no name says.
    channels: of the images, for weights whose keys do not tell.
    num_classes: the same.
    select: the key of the state dict in the file, where it has several.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read, is of no known architecture or of
      another than expected, or something has to be said.
  """
  given = {name: value for name, value in (options or {}).items()
           if value is not None}
  if os.path.exists(path) and native.is_native(path):
    return _load_native(path, arch, given, select)
  return _load_torch(path, arch, given, channels, num_classes, select)


def implausible(accuracy: float, count: int, num_classes: int,
                published: float | None = None) -> str | None:
  """Returns a sentence if a teacher's clean accuracy is not to be believed.

  Beside a published accuracy, that is one further off than three standard
  errors of a sample of CIFAR's test images and 0.2 points. Without, it is one
  below the fourth root of chance: 56% for 10 classes, 32% for 100. A wrong
  normalisation, activation, padding or shortcut shows there.

  Args:
    accuracy: of the teacher on clean images, a fraction.
    count: how many images those were.
    num_classes: of the data.
    published: clean accuracy on the whole test set.
  """
  def tolerance(share):
    missing = max(0, 1 - count / _TEST_IMAGES)
    return 3 * math.sqrt(share * (1 - share) / count * missing)

  if published is not None:
    if abs(accuracy - published) <= 0.002 + tolerance(published):
      return None
    expected = f'{published:.2%} is published'
  else:
    least = num_classes ** -0.25
    if accuracy >= least - 3 * math.sqrt(least * (1 - least) / count):
      return None
    expected = f'a usable teacher of {num_classes} classes has {least:.0%}'
  return (f'A clean accuracy of {accuracy:.2%} on {count} images is '
          f'implausible; {expected}. Do mean, std, activation, padding, '
          'shortcuts and the data set fit the weights?')


def _load_native(path, arch, given, select):
  network, variables = native.read(path)
  where = os.fspath(path)
  if select is not None:
    raise ValueError(f'{where}: Expected no select={select!r}, as it holds one '
                     'network.')
  model = network.build()
  for name, value in given.items():
    if getattr(model, name, None) != (
        tuple(value) if isinstance(value, list) else value):
      raise ValueError(f'{where}: Expected {name}={value!r} to be what the '
                       f'network in it has, {getattr(model, name, None)!r}.')
  if arch not in (AUTO, network.arch):
    raise ValueError(f'{where}: Expected arch={arch!r} to be what the network '
                     f'in it is, {network.arch!r}.')
  return Loaded(network, model, variables)


def _load_torch(path, arch, given, channels, num_classes, select):
  state_dict = torch_io.read_state_dict(path, select)
  try:
    if not {'mean', 'std'} & given.keys():
      given |= torch_io.normalisation(state_dict)
    found = _recognised(state_dict, arch)
    if found is not None:
      _ask(found, arch, given)
      if arch == AUTO:
        arch, given = found.arch, {**found.options, **given}
      classes, depth = found.num_classes, found.channels
    elif num_classes is None or channels is None:
      raise ValueError(f'The keys are not those of {arch!r}.')
    else:
      classes, depth = num_classes, channels
    network = native.Network(arch, depth, classes, _without_identity(given))
    model = network.build()
    variables = torch_io.variables_from_state_dict(
        model, state_dict, network.input_shape)
  except ValueError as error:
    raise ValueError(f'{os.fspath(path)}: {error}') from error
  return Loaded(network, model, variables, found and found.definition)


def _without_identity(options):
  """Returns options without a normalisation that changes nothing."""
  if set(options.get('mean') or ()) == {0} and set(
      options.get('std') or ()) == {1}:
    return {name: value for name, value in options.items()
            if name not in ('mean', 'std')}
  return options


def _recognised(state_dict, arch):
  """Returns what the keys say; None if nothing, and the name is given."""
  try:
    return recognise.recognise(state_dict)
  except ValueError:
    if arch == AUTO:
      raise
    return None


def _ask(found, arch, given):
  """Raises ValueError for what has to be said, or contradicts the keys."""
  if found.arch == models.GENERATOR and given:
    raise ValueError('It is a generator, of which nothing is to be said; got '
                     f'{", ".join(given)}.')
  if arch == AUTO:
    for name, value in found.options.items():
      if given.get(name, value) != value:
        raise ValueError(f'Expected {name}={given[name]!r} to be what the '
                         f'weights have, {value!r}.')
    missing = found.missing(given)
  elif arch == found.arch:
    missing = [name for name in found.missing(given) if name in _NEVER_BY_NAME]
  else:
    return  # The conversion will say in what they differ.
  if not missing:
    return
  choices = ', '.join(
      f'{name} ({" or ".join(map(repr, found.open[name]))})'
      for name in missing if name in found.open)
  normalisation = ' and '.join(
      name for name in missing if name not in found.open)
  if normalisation:
    normalisation = f'{normalisation} (0 and 1 for no normalisation)'
  usual = ', '.join(f'{name}={found.usual[name]!r}' for name in missing
                    if name in found.usual)
  raise ValueError(
      f'The keys and shapes are those of {found}. They do not reveal '
      f'{", ".join(filter(None, (choices, normalisation)))}; wrong ones would '
      'load, and give other logits. Set them.' + (
          f' The code with these keys, {found.definition}, has {usual}.'
          if usual else ''))
