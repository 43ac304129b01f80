"""What a command line says of the network in a file."""

import argparse
from typing import Any

from ferd_jax.models import layers
from ferd_jax.models import preact_resnet
from ferd_jax.models import resnet
from ferd_jax.models import xcit

# What keys do not reveal and a command line may say, beside mean and std.
OPTIONS = ('width', 'activation', 'padding', 'mean', 'std', 'shortcut',
           'shortcut_input', 'final_bn', 'stem', 'pooling', 'standardise',
           'patch', 'straight_through')


def add(parser: Any) -> None:
  """Adds the options that say what the network in a file is.

  Args:
    parser: an argparse parser or group of one.
  """
  option = parser.add_argument
  option('--arch', help='architecture, e.g. resnet18, wrn_34_10; default: '
      'recognised from the keys')
  option('--select', help='the dict of weights in the file, or what its keys '
         'begin with')
  option('--normaliser', metavar='MEAN,STD', help='keys of a normalising layer '
         'in the file, where their names do not tell')
  option('--width', type=int, help='channels of the first layer')
  option('--activation', help=f'{" or ".join(layers.ACTIVATIONS)}; no key '
         'tells them apart, the clean accuracy does')
  option('--padding', help='of convolutions of stride 2: '
      f'{" or ".join(layers.PADDINGS)}; no key tells them apart')
  option('--mean', type=_numbers, help='normalisation, e.g. 0.5; 0 for none')
  option('--std', type=_numbers, help='normalisation; 1 for none')
  option('--shortcut', help=f'of cifar_resnet: {", ".join(resnet.SHORTCUTS)}; '
         'no key tells the last two apart')
  option('--shortcut-input', help='of preact_resnet: '
      f'{" or ".join(preact_resnet.SHORTCUT_INPUTS)}; no key tells them apart')
  option('--final-bn', action='store_true', default=None,
      help='of preact_resnet')
  option('--stem', help=f'of resnet: {", ".join(resnet.STEMS)}')
  option('--standardise', action='store_true', default=None,
         help='every image by its own mean and standard deviation, in place of '
         '--mean and --std; no key tells it')
  option('--patch', type=int, help='of xcit, pixels of a token\'s side: '
         f'{", ".join(map(str, xcit.PATCHES))}; no key tells it')
  option('--straight-through', action='store_true', default=None,
         help='of MeanSparse layers: gradients as if they changed nothing; '
         'without it AutoAttack overrates the robustness')
  option('--pooling', help=f'of resnet: {" or ".join(resnet.POOLINGS)}')


def image_size(text: str) -> tuple[int, int]:
  """Returns height and width in pixels, for argparse.

  Args:
    text: '28', for a square, or '28x32'.

  Raises:
    argparse.ArgumentTypeError: if it is neither.
  """
  sides = text.split('x')
  if len(sides) > 2 or not all(side.isdecimal() and int(side)
                               for side in sides):
    raise argparse.ArgumentTypeError(
        f'expected a size in pixels such as 28 or 28x28, got {text!r}')
  return int(sides[0]), int(sides[-1])


def _numbers(text: str) -> tuple[float, ...]:
  """Returns one number per channel, separated by commas."""
  try:
    return tuple(float(part) for part in text.split(','))
  except ValueError as error:
    raise argparse.ArgumentTypeError(
        f'expected numbers such as 0.5,0.5,0.5, got {text!r}') from error
