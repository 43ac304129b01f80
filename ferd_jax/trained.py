"""Trained networks by one name: a run, a file, a published id.

  module, variables, apply = ferd_jax.load_model('runs/digits')
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

from collections.abc import Callable
import difflib
import functools
import json
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
from jax.typing import ArrayLike

from ferd_jax import assets
from ferd_jax import data
from ferd_jax.models import forward
from ferd_jax.run import export
from ferd_jax.run import hub
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import robustbench

_STUDENT = 'student.npz'
# What a file of weights ends with, and no repository's name.
_FILES = ('.pt', '.pth', '.ckpt', '.npz', '.safetensors', '.tar', '.bin')
# Robust ResNet-8s that come with the package, each with a recipe beside it.
SHIPPED = ('digits_resnet8_adv', 'fashion_mnist_resnet8_adv')


class Model(NamedTuple):
  """A trained network, which unpacks into its three parts.

  It can be called itself, `model(images)`, so that an attack takes it as it is.

  Attributes:
    module: of Flax, which trains it on, or exports it.
    variables: {'params': ..., 'batch_stats': ...}, float32.
    apply: (variables, images float `[B, H, W, C]` in [0, 1]) -> logits
      `[B, K]`, in evaluation mode, normalisation inside.
  """
  module: nn.Module
  variables: Any
  apply: Callable[[Any, ArrayLike], jax.Array]

  def __call__(self, images: ArrayLike) -> jax.Array:
    return self.apply(self.variables, images)


def load_model(id_or_path: str | os.PathLike[str], **options: Any) -> Model:
  """Returns a trained network.

  Args:
    id_or_path: the work directory of a run or what it exported, for its
      student; a file of weights, of PyTorch or of this package; a RobustBench
      id ('Engstrom2019Robustness'), whose file is fetched, with its data set
      where several have one ('cifar10/Rice2020Overfitting'), with its norm for
      one against L2 ('L2/Rice2020Overfitting'); one of `SHIPPED`; or
      'user/name' on the Hugging Face hub, of an export of this package.
    **options: what a file does not say, as for `weights.loading.load`: `arch`,
      `num_classes`, `image_shape`, and in `options` the rest.

  Raises:
    FileNotFoundError: if there is nothing by that name.
    OSError: if a file cannot be read, or not be fetched.
    ValueError: if the file does not say what its network is, or `options` are
      given for what says all itself.
  """
  name = os.fspath(id_or_path)
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return _model(_from_path(path, options))
  if options:
    raise FileNotFoundError(f'{name}: there is no such file or directory, and '
                            f'{", ".join(options)} belong to one.')
  if name in SHIPPED:
    return _model(_shipped(name))
  entry = _published(name)
  if entry is not None:
    info = data.info(entry.dataset)
    return _model(loading.load(
        robustbench.fetch(entry), arch=entry.arch, options=entry.options,
        select=entry.select, num_classes=info.num_classes,
        image_shape=info.image_shape))
  if re.fullmatch(r'[\w.-]+/[\w.-]+', name) and (
      path.suffix.lower() not in _FILES):
    return _model(_from_path(hub.fetch(name), {}))
  ids = [*SHIPPED, *(each.id for each in robustbench.entries())]
  close = difflib.get_close_matches(name, ids, n=2)
  hint = f' Did you mean {" or ".join(close)}?' if close else ''
  raise FileNotFoundError(
      f'{name}: there is no such file or directory, and no network by that '
      f'id; python -m ferd_jax.teachers list shows those of RobustBench.{hint}')


def _model(loaded):
  return Model(loaded.model, loaded.variables,
               functools.partial(forward.logits, loaded.model))


def _from_path(path, options):
  """Returns the network of a file or directory."""
  if path.is_dir() and not native.is_native(path):
    for file in (path / export.DIRECTORY / _STUDENT, path / _STUDENT):
      if file.exists():
        return loading.load(file, **options)
    raise ValueError(
        f'Expected {path} to hold a network: there is neither '
        f'{export.DIRECTORY}/{_STUDENT}, which a finished run has, nor '
        f'{_STUDENT}.')
  return loading.load(path, **options)


def _shipped(name):
  """Returns a network that comes with the package."""
  recipe = json.loads(pathlib.Path(assets.path(f'{name}.json')).read_text()
                      )['recipe']
  info = data.info(recipe['dataset'])
  return loading.load(
      assets.path(f'{name}.safetensors'),
      arch=f'cifar_resnet{recipe["depth"]}', image_shape=info.image_shape,
      num_classes=info.num_classes,
      options={'width': recipe['width'], 'shortcut': 'pad_both'})


def _published(name):
  """Returns the RobustBench entry of an id, None if there is none.

  It may have its data set and norm before it, 'cifar10/L2/ID'; without a norm
  it is the one against Linf where there are both, as everywhere.

  Raises:
    ValueError: for an id that several data sets have.
  """
  *before, identifier = name.split('/')
  found = [entry for entry in robustbench.entries()
           if entry.id == identifier
           and all(part in (entry.dataset, entry.norm) for part in before)]
  norms = {entry.norm for entry in found}
  first = next((norm for norm in robustbench.NORMS if norm in norms), None)
  found = [entry for entry in found if entry.norm == first]
  if len(found) > 1:
    raise ValueError(f'Expected {name!r} with its data set: ' + ' or '.join(
        f'{entry.dataset}/{entry.id}' for entry in found) + '.')
  return found[0] if found else None
