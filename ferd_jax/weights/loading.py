"""Networks from files: recognised, built and filled.

A file says much of its network, and never all. What it does not say has to be
said, as options of `models.build`: it is asked for, not guessed.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import os
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.core import errors
from ferd_jax.core import validate
from ferd_jax.models import registry
from ferd_jax.torch_io import choosing
from ferd_jax.torch_io import files
from ferd_jax.torch_io import mapping
from ferd_jax.torch_io import recognise
from ferd_jax.weights import native

AUTO = 'auto'
# What even a file whose architecture is named leaves open: the names of
# architectures say nothing of it.
_NEVER_BY_NAME = ('shortcut', 'shortcut_input', 'stem', 'pooling')
_USUAL_SIZE = (32, 32)
_TEST_IMAGES = 10_000  # of CIFAR, behind the published accuracies


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network from a file.

  Attributes:
    network: what it is.
    model: its module.
    variables: {'params': ..., 'batch_stats': ...}, float32, either of them {}
      where the network has none.
    definition: the PyTorch code whose names the file has, if it is known.
    remark: where it was among other things, and what was left out beside it.
  """
  network: native.Network
  model: nn.Module
  variables: dict[str, Any]
  definition: str | None = None
  remark: str = ''

  def __str__(self) -> str:
    code = f', keys of {self.definition}' if self.definition else ''
    remark = f' ({self.remark})' if self.remark else ''
    return f'{self.network}{code}{remark}'


def load(path: str | os.PathLike[str], *, arch: str = AUTO,
         options: Mapping[str, Any] | None = None, channels: int | None = None,
         num_classes: int | None = None, select: str | None = None,
         image_shape: Sequence[int] | None = None,
         normaliser: str | None = None) -> Loaded:
  """Returns the classifier in a file.

  Args:
    path: as for `load_any`.
    arch: the same.
    options: the same.
    channels: the same.
    num_classes: the same.
    select: the same.
    image_shape: the same.
    normaliser: the same.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: as by `load_any`, and for a generator.
  """
  loaded = load_any(path, arch=arch, options=options, channels=channels,
                    num_classes=num_classes, select=select,
                    image_shape=image_shape, normaliser=normaliser)
  if loaded.network.arch == models.GENERATOR:
    raise ValueError(f'{os.fspath(path)}: Cannot classify with it: it is a '
                     'generator.')
  return loaded


def load_any(path: str | os.PathLike[str], *, arch: str = AUTO,
             options: Mapping[str, Any] | None = None,
             channels: int | None = None, num_classes: int | None = None,
             select: str | None = None,
             image_shape: Sequence[int] | None = None,
             normaliser: str | None = None) -> Loaded:
  """Returns the network in a file, a classifier or a generator.

  Args:
    path: a PyTorch file, `.safetensors`, `.npz`, or a network of `native`.
    arch: a name for `models.build`; 'auto' recognises it from the keys, but
      no network that was registered by `models.register`.
    options: of `models.build`; None stands for one that is not given. Buffers
      of a normalising layer in the file are used if `mean` and `std` are not
      given, and have to agree if they are. With 'auto', whatever the keys do
      not reveal has to be given, `mean=(0,)` and `std=(1,)` for no
      normalisation; with a name, its defaults hold, but not for the shortcuts
      of CIFAR ResNets and PreActResNets, which no name says.
    channels: that a classifier's images should have; None for those of the
      file, which the keys of a registered network do not tell.
    num_classes: that a classifier should have, the same.
    select: which network, where the file has several: the path of keys to its
      state dict, the prefix of its keys, or both, with dots; '.' for the
      outermost dict. Without it the only complete one is taken.
    image_shape: shape (H, W, C) of the images of a classifier, on which the
      shapes of its weights may depend; (H, W) where `channels` or the keys say
      the rest; None for 32x32 pixels, or what a network of `native` has.
    normaliser: the keys of mean and standard deviation in the file, with a
      comma, where their names do not tell which they are.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file cannot be read, is of no known architecture or of
      another than expected, or something has to be said.
  """
  given = {name: value for name, value in (options or {}).items()
           if value is not None}
  size, channels = _size_and_channels(image_shape, channels)
  if os.path.exists(path) and native.is_native(path):
    loaded = _load_native(path, arch, given, select, size, normaliser)
  else:
    loaded = _load_torch(path, arch, given, channels, num_classes, select, size,
                         normaliser)
  if loaded.network.arch == models.GENERATOR:
    return loaded
  for name, expected in (('num_classes', num_classes), ('channels', channels)):
    found = getattr(loaded.network, name)
    if expected not in (None, found):
      kind = name.removeprefix('num_')
      raise ValueError(f'{os.fspath(path)}: The weights have {found} {kind}, '
                       f'{name}={expected} was expected.')
  return loaded


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


def _size_and_channels(image_shape, channels):
  """Returns height and width, or None, and the channels, if either says."""
  if image_shape is None:
    return None, channels
  shape = tuple(image_shape)
  if len(shape) not in (2, 3):
    raise ValueError(f'Expected image_shape={shape} to be (H, W, C) or (H, W).')
  for side in shape:
    validate.count(image_shape=side)
  if len(shape) == 3 and channels not in (None, shape[2]):
    raise ValueError(f'Expected image_shape={shape} to have '
                     f'channels={channels}.')
  return shape[:2], shape[2] if len(shape) == 3 else channels


def _load_native(path, arch, given, select, size, normaliser):
  network, variables = native.read(path)
  where = os.fspath(path)
  for name, value in (('select', select), ('normaliser', normaliser)):
    if value is not None:
      raise ValueError(f'{where}: Expected no {name}={value!r}, as it holds '
                       'one network, which says all.')
  model = network.build()
  for name, value in given.items():
    # Options of registered networks need not be fields of their modules.
    stored = network.options.get(name, getattr(model, name, None))
    if stored != (tuple(value) if isinstance(value, list) else value):
      raise ValueError(f'{where}: Expected {name}={value!r} to be what the '
                       f'network in it has, {stored!r}.')
  if arch not in (AUTO, network.arch):
    raise ValueError(f'{where}: Expected arch={arch!r} to be what the network '
                     f'in it is, {network.arch!r}.')
  if size is not None and network.arch != models.GENERATOR:
    wanted = native.abstract(dataclasses.replace(
        network, image_shape=(*size, network.channels)))
    if jax.tree.map(np.shape, wanted) != jax.tree.map(np.shape, variables):
      raise ValueError(
          f'{where}: The weights are for images of {_sides(network)} pixels, '
          f'{size[0]}x{size[1]} were expected.')
  return Loaded(network, model, variables)


def _sides(network):
  return 'x'.join(map(str, network.input_shape[:2]))


def _load_torch(path, arch, given, channels, num_classes, select, size,
                normaliser):
  if arch not in (AUTO, models.GENERATOR):
    try:
      models.check_name(arch)
    except ValueError as error:
      raise ValueError(f'{os.fspath(path)}: {error}') from error
  wanted = _wanted(arch, given, channels, num_classes, size)
  weights = files.read(path, select, wanted, normaliser)
  state_dict, remark = weights.arrays, weights.remark()
  registered = registry.find(arch) is not None
  try:
    if not {'mean', 'std', 'standardise'} & given.keys():
      given |= torch_io.normalisation(state_dict)
      _check_normalised(given, weights.unclear)
    # A registered network's keys may look like a built-in one's.
    found = None if registered else _recognised(state_dict, arch)
    if found is not None:
      _ask(found, arch, given)
      if arch == AUTO:
        arch, given = found.arch, {**found.options, **given}
      classes, depth = found.num_classes, found.channels
    elif num_classes is None or channels is None:
      raise ValueError(
          f'Expected num_classes={num_classes} and channels={channels} to be '
          f'said, as the keys of {arch!r} do not tell them.' if registered
          else f'The keys are not those of {arch!r}.')
    else:
      classes, depth = num_classes, channels
    if np.size(given.get('mean', 0)) not in (1, depth):
      raise ValueError(f'Expected mean={given["mean"]} to have one value for '
                       f'each of the {depth} channels.')
    network = native.Network(
        arch, depth, classes, _without_identity(given),
        None if size is None or arch == models.GENERATOR else (*size, depth))
    model = network.build()
    variables = torch_io.variables_from_state_dict(
        model, state_dict, network.input_shape)
  except ValueError as error:
    beside = f' In the file: {remark}.' if weights.left_out else ''
    text = weights.in_its_words(str(error))
    raise ValueError(f'{os.fspath(path)}: {text}{beside}') from error
  definition = found.definition if found else (
      torch_io.definition(model) if registered else None)
  return Loaded(network, model, variables, definition, remark)


def _check_normalised(given, unclear):
  """Raises ValueError for arrays of a normaliser's shape that nobody used."""
  if unclear and 'mean' not in given and 'std' not in given:
    names = ', '.join(errors.shown(key, 60) for key in unclear[:8])
    raise ValueError(
        f'{names} may normalise the images. Name those of mean and standard '
        'deviation by normaliser, or set mean and std (0 and 1 for none).')


def _wanted(arch, given, channels, num_classes, size):
  """Returns what is looked for in a file, None if that is not said."""
  if registry.find(arch) is not None:
    if num_classes is None or channels is None:
      return None
    shape = (*(size or _USUAL_SIZE), channels)
    try:
      model = models.build(arch, num_classes, **given)
      marks = mapping.marks(model, shape)
    except Exception:
      # Of an option out of range, or a size; both will be said later on.
      return None
    return choosing.Wanted(
        marks, lambda arrays: mapping.fits(model, arrays, shape))

  def fits(arrays):
    try:
      found = recognise.recognise(arrays)
      if arch not in (AUTO, models.GENERATOR, found.arch):
        options = given
      else:
        options = {**given, **found.options}
      options |= {name: found.open[name][0] for name in ('stem',)
                  if name in found.open and name not in given}
      network = native.Network(
          arch if arch != AUTO else found.arch, found.channels,
          found.num_classes, {name: value for name, value in options.items()
                              if name not in ('mean', 'std')})
      return mapping.fits(network.build(), arrays, network.input_shape)
    except ValueError:
      return False

  return choosing.Wanted(recognise.MARKS, fits)


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
    normalisation = (f'{normalisation} (0 and 1 for no normalisation, or '
                     'standardise)')
  usual = ', '.join(f'{name}={found.usual[name]!r}' for name in missing
                    if name in found.usual)
  raise ValueError(
      f'The keys and shapes are those of {found}. They do not reveal '
      f'{", ".join(filter(None, (choices, normalisation)))}; wrong ones would '
      'load, and give other logits. Set them.' + (
          f' The code with these keys, {found.definition}, has {usual}.'
          if usual else ''))
