"""Converts networks between PyTorch's files and this package's.

  python -m ferd_jax.convert teacher.pth teacher.npz --activation=relu \
    --padding=both --shortcut=pad_after --mean=0 --std=1
  python -m ferd_jax.convert cifar10/Rice2020Overfitting.pt teacher/ \
    --robustbench=cifar10/Rice2020Overfitting
  python -m ferd_jax.convert runs/digits/export/student.npz student.pt --check

PyTorch's are .pt, .pth and .safetensors; this package's, which also say what
the network is, .npz and directories, Orbax checkpoints. Of a PyTorch file the
architecture is recognised; what its keys do not reveal is asked for. A network
that `models.register` knows is named by --arch, by a program that registers it
and calls `main`.
"""

# ruff: noqa: E402
# The check comes before what it checks.
from ferd_jax.core import extras

extras.need_training(__name__)

import argparse
from collections.abc import Sequence
import contextlib
import os
import sys
from typing import Any

from etils import epath
import jax
import numpy as np

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.core import buckets
from ferd_jax.core import program
from ferd_jax.models import forward
from ferd_jax.weights import loading
from ferd_jax.weights import native
from ferd_jax.weights import options as file_options
from ferd_jax.weights import robustbench

_TORCH = ('.pt', '.pth', '.safetensors')
_TOLERANCE = 1e-4  # of logits, relative to the largest where that is above 1
_CHECKED = 16  # inputs


def read(path: epath.Path, args: argparse.Namespace
         ) -> tuple[native.Network, dict[str, Any]]:
  """Returns the network in a file or directory, and its variables.

  Args:
    path: of either kind.
    args: of the command line.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no network, or something has to be said.
  """
  options = {name: getattr(args, name) for name in file_options.OPTIONS
             if getattr(args, name) is not None}
  arch, select = args.arch or loading.AUTO, args.select
  if args.robustbench:
    entry = robustbench.find(*_dataset_and_id(args.robustbench))
    arch, options = entry.arch, entry.options_with(options)
    select = select or entry.select
  buckets.check(path)
  with (contextlib.nullcontext(path) if native.is_native(path)
        else buckets.local(path)) as file:
    loaded = loading.load_any(
        file, arch=arch, options=options, select=select,
        channels=args.channels, num_classes=args.num_classes,
        image_shape=args.image_size, normaliser=args.normaliser)
  return loaded.network, loaded.variables


def _dataset_and_id(text):
  dataset, slash, name = text.partition('/')
  if not slash:
    raise ValueError(f'Expected robustbench={text!r} to be a data set and an '
                     'id, such as cifar10/Rice2020Overfitting.')
  return dataset, name


def write(path: epath.Path, network: native.Network,
          variables: Any) -> None:
  """Writes a network in the format that the name of the path ends with.

  Raises:
    OSError: if it cannot be written.
    ValueError: if the name ends in no format, or something else is there.
  """
  buckets.check(path)
  if path.suffix in _TORCH:
    torch_io.write_state_dict(path, torch_io.state_dict_from_variables(
        network.build(), jax.tree.map(np.asarray, variables)))
  elif path.suffix in ('', '.npz'):
    native.write(path, network, variables)
  else:
    raise ValueError(f'Expected {path} to end in {", ".join(_TORCH)}, .npz, or '
                     'like a directory.')


def difference(network: native.Network, variables: Any,
               torch_file: os.PathLike[str] | None = None) -> float:
  """Returns how far the outputs are from PyTorch's, on random inputs.

  The largest difference, relative to the largest output where that is above 1.
  Needs PyTorch.

  Args:
    network: what the variables belong to.
    variables: {'params': ..., 'batch_stats': ...}.
    torch_file: a file to load into PyTorch's module, strictly; None for what
      the variables are as a state dict.

  Raises:
    ValueError: if there is no module of PyTorch's to compare with.
  """
  import torch

  from ferd_jax import torch_twins
  model = network.build()
  net = torch_twins.twin(model, network.channels, network.options.get('nz'))
  if torch_file is None:
    state_dict = torch_io.state_dict_from_variables(
        model, jax.tree.map(np.asarray, variables))
  else:
    state_dict = torch_io.read_state_dict(torch_file)
  net.load_state_dict({name: torch.tensor(value)
                       for name, value in state_dict.items()}, strict=True)
  rng = np.random.default_rng(0)
  if isinstance(model, models.Generator):
    x = rng.normal(size=(_CHECKED, *network.input_shape)).astype(np.float32)
    # As in synthesis, on the batch's statistics.
    got, _ = model.apply(variables, x, mutable=['batch_stats'])
    with torch.no_grad():
      expected = net.train()(torch.from_numpy(x)).permute(0, 2, 3, 1).numpy()
  else:
    x = rng.uniform(size=(_CHECKED, *network.input_shape)).astype(np.float32)
    got = jax.jit(forward.logits, static_argnums=0)(model, variables, x)
    with torch.no_grad():
      expected = net.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
  scale = max(1., float(np.abs(expected).max()))
  return float(np.abs(np.asarray(got) - expected).max()) / scale


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog=program.name('convert'), allow_abbrev=False,
      description='Converts networks between PyTorch\'s files and this '
      'package\'s.')
  add = parser.add_argument
  add('source', type=epath.Path, help='a PyTorch file, or a network as .npz '
      'or Orbax directory')
  add('target', type=epath.Path, help=f'{", ".join(_TORCH)}, .npz, or a '
      'directory for Orbax')
  add('--check', action='store_true',
      help='compare the outputs with PyTorch\'s, which has to be installed')
  add('--robustbench', metavar='DATASET/ID',
      help='what the file is, instead of the options below')
  file = parser.add_argument_group('a PyTorch file')
  file_options.add(file)
  file.add_argument('--image-size', type=file_options.image_size,
                    metavar='SIZE', help='of the images, e.g. 28 or 28x28, for '
                    'networks whose weights depend on it; default: 32')
  file.add_argument('--channels', type=int, help='of the images; has to be '
                    'said of a registered network')
  file.add_argument('--num-classes', type=int, help='the same')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Converts as the command line says."""
  args = _parser().parse_args(argv)
  try:
    network, variables = read(args.source, args)
    print(f'{args.source}: {network}')
    write(args.target, network, variables)
    print(f'{args.target}: ' + (
        f'for {torch_io.definition(network.build())}'
        if args.target.suffix in _TORCH else f'{network}'))
    if args.check:
      _check(network, variables, args.target)
  except (OSError, ValueError) as error:
    sys.exit(f'error: {" ".join(str(error).split())}')


def _check(network, variables, target):
  """Compares both files' networks, and them with PyTorch's."""
  torch_file = target if target.suffix in _TORCH else None
  if torch_file is None:
    _, written = native.read(target)
    same = jax.tree.map(np.array_equal, written, dict(variables))
    if not all(jax.tree.leaves(same)):
      raise ValueError(f'{target} holds other values than were converted.')
  try:
    found = difference(network, variables, torch_file)
  except ImportError as error:
    raise ValueError(f'--check needs PyTorch: {error}.') from error
  print(f'Largest difference from PyTorch on {_CHECKED} random inputs: '
        f'{found:.1e} (relative to the largest output, at least 1).')
  if not found <= _TOLERANCE:
    raise ValueError(f'Expected a difference of at most {_TOLERANCE:g}.')


if __name__ == '__main__':
  main()
