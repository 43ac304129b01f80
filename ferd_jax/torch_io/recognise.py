"""What the keys and shapes of a state dict say of its architecture.

They never say all. The rest has to come from whoever knows the file: a wrong
guess would load without complaint and give another function.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

import numpy as np

from ferd_jax import models
from ferd_jax.core import errors
from ferd_jax.models import layers
from ferd_jax.models import preact_resnet
from ferd_jax.models import resnet
from ferd_jax.models import xcit
from ferd_jax.torch_io import layouts

# What no network's keys reveal, with the values that there are.
_OPEN = {'activation': tuple(layers.ACTIVATIONS), 'padding': layers.PADDINGS}
_NORMALISATION = ('mean', 'std')


@dataclasses.dataclass(frozen=True)
class Recognised:
  """What a state dict reveals, and what not.

  Attributes:
    arch: a name for `models.build`, or `models.GENERATOR`.
    options: of `models.build`, as far as revealed, or `side`, `width` and `nz`
      of a generator.
    num_classes: rows of the classifier; None for a generator.
    channels: of the images.
    open: the values to choose from, by the option that is not revealed; `mean`
      and `std` are neither, and not listed.
    usual: the values of these in the code whose names the keys are, as far as
      it has only one.
    definition: that code.
  """
  arch: str
  options: Mapping[str, Any]
  num_classes: int | None
  channels: int
  open: Mapping[str, tuple[Any, ...]]
  usual: Mapping[str, Any]
  definition: str

  def missing(self, options: Mapping[str, Any]) -> list[str]:
    """Returns the options that are neither revealed nor given."""
    if self.arch == models.GENERATOR:
      return []
    normalised = () if options.get('standardise') else _NORMALISATION
    return [name for name in (*self.open, *normalised)
            if options.get(name) is None]

  def __str__(self) -> str:
    revealed = ''.join(f', {name}={value!r}'
                       for name, value in self.options.items())
    classes = '' if self.num_classes is None else (
        f', {self.num_classes} classes')
    return f'{self.arch}{revealed}{classes}'


def recognise(state_dict: Mapping[str, np.ndarray]) -> Recognised:
  """Returns the architecture that a state dict belongs to.

  Whether every key and shape fits is for the conversion to check.

  Args:
    state_dict: without wrappers and prefixes (`files.read_state_dict`).

  Raises:
    ValueError: if the keys are those of no supported architecture.
  """
  other = foreign(state_dict)
  for key, find in _FAMILIES:
    if key in state_dict and other is None:
      try:
        return find(state_dict)
      except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f'Cannot tell the architecture: there is {key}, but not what comes '
            f'with it ({error}).') from error
  shown = ', '.join(errors.shown(key) for key in sorted(state_dict)[:10])
  what = ('Cannot tell the architecture from the keys, which are those of'
          if other is None else
          f'Cannot use the architecture: the keys are those of {other},')
  raise ValueError(
      f'{what} none of {", ".join(models.ARCHITECTURES)}. They begin with '
      f'{shown}. A network that models.register knows is not recognised, but '
      'has to be named.')


def foreign(state_dict: Mapping[str, np.ndarray]) -> str | None:
  """Returns what known network the keys are of that is none of these, or None.

  Args:
    state_dict: as for `recognise`.
  """
  if _XCIT in state_dict:  # Whose other keys are those of transformers.
    return None
  for pattern, what in _FOREIGN:
    if any(re.match(pattern, key) for key in state_dict):
      return what
  return None


_XCIT = 'blocks.0.local_mp.conv1.weight'
# Keys of networks that are none of `models.ARCHITECTURES`, and what they are.
_FOREIGN = tuple((re.compile(pattern), what) for pattern, what in (
    (r'features\.denseblock\d', "torchvision's DenseNet"),
    (r'(dense\d|trans\d)\.(0\.)?(bn1|conv1)\.', "kuangliu's DenseNet"),
    (r'features\.0\.0\.weight$|features\.1\.conv\.0',
     "torchvision's MobileNet, EfficientNet or ConvNeXt"),
    (r'features\.\d+\.(weight|conv)', 'VGG, AlexNet or another network of '
     'torchvision whose layers are numbered'),
    (r'conv_stem\.weight$', "timm's EfficientNet or MobileNet"),
    (r'stages\.\d+\.blocks\.\d+\.(conv_dw|mlp|gamma)', "timm's ConvNeXt"),
    (r'stages\.\d+\.blocks\.', "timm's ResNetV2 (BiT) or another network of "
     'stages and blocks'),
    (r'layers\.\d+\.blocks\.\d+\.attn\.', 'a Swin Transformer'),
    (r'(cls_token|class_token|pos_embed|blocks\.\d+\.attn\.|'
     r'encoder\.layers?\.|vit\.|deit\.)', 'a Vision Transformer'),
    (r'(Conv2d_1a_3x3|Mixed_5b|inception\d[a-eA-E])\.',
     'Inception or GoogLeNet'),
    (r'trunk_output\.|s1\.b1\.', 'RegNet'),
    (r'(text_model|transformer|bert|embeddings|roberta)\.', 'a network of '
     'Hugging Face for other data than images'),
    (r'layer1\.0\.se\.', "timm's SE-ResNet"),
    (r'conv1\.[03]\.weight$', "timm's ResNet with a deep stem (resnet18d and "
     'the like), three convolutions'),
    (r'stem\.conv\.weight$', "timm's network of a stem and stages"),
))


def _wide(state_dict, arch, layout, first_conv, first_block, group, classifier):
  width, channels = _sides(state_dict[f'{first_conv}.weight'])
  inside, _ = _sides(state_dict[first_block])
  if inside % width:
    raise ValueError(
        f'Cannot tell the architecture: {first_block} has {inside} channels, '
        f'which is no multiple of the {width} of {first_conv}.')
  count = _count(state_dict, group)
  _check_blocks(state_dict, 3 * count)
  depth = 6 * count + 4
  return _found(f'{arch}_{depth}_{inside // width}', layout, state_dict,
                classifier, channels, _width(width, 16))


def _trades_wide(state_dict):
  return _wide(state_dict, 'wrn', layouts.TRADES, 'conv1',
               'block1.layer.0.conv1.weight', r'block1\.layer\.', 'fc')


def _deepmind_wide(state_dict):
  sparse = 'layer.0.block.0.meansparse_0.threshold' in state_dict
  if 'layer.0.block.0.se.fc1.weight' in state_dict:
    width, channels = _sides(state_dict['init_conv.weight'])
    blocks = [_count(state_dict, rf'layer\.{i}\.block\.') for i in range(3)]
    _check_blocks(state_dict, sum(blocks))
    counts = '70_16' if blocks == [30, 31, 10] else '_'.join(map(str, blocks))
    return _found(
        f'meansparse_ra_wrn_{counts}' if sparse else f'ra_wrn_{counts}',
        layouts.MEAN_SPARSE_ROBUST if sparse else layouts.ROBUST_ARCHITECTURE,
        state_dict, 'logits', channels, _width(width, 96))
  if sparse:
    return _wide(state_dict, 'meansparse_dm_wrn', layouts.MEAN_SPARSE,
                 'init_conv', 'layer.0.block.0.conv_0.weight',
                 r'layer\.0\.block\.', 'logits')
  return _wide(state_dict, 'dm_wrn', layouts.DEEPMIND_WIDE, 'init_conv',
               'layer.0.block.0.conv_0.weight', r'layer\.0\.block\.', 'logits')


def _deepmind_preact(state_dict):
  width, channels = _sides(state_dict['conv_2d.weight'])
  blocks = [_count(state_dict, rf'layer_{i}\.') for i in range(4)]
  _check_blocks(state_dict, sum(blocks))
  # Shortcuts that read the raw input are part of this code.
  return _found(models.resnet_name('dm_preact_resnet', blocks),
                layouts.DEEPMIND_PREACT, state_dict, 'logits', channels,
                _width(width, 64))


def _mobilenet(state_dict):
  width, channels = _sides(state_dict['conv1.weight'])
  classifier, layout = (('fc', layouts.FERD_MOBILENET)
                        if 'fc.weight' in state_dict
                        else ('linear', layouts.MOBILENET))
  return _found('mobilenet_v2', layout, state_dict, classifier, channels,
                _width(width, 32))


def _resnet(state_dict):
  width, channels = _sides(state_dict['conv1.weight'])
  blocks = [_count(state_dict, rf'layer{i}\.') for i in range(1, 5)]
  _check_blocks(state_dict, sum(blocks))
  bottleneck = 'layer1.0.conv3.weight' in state_dict
  if 'bn1.weight' not in state_dict:
    if bottleneck:
      raise ValueError('Cannot use the architecture: it is a PreActResNet of '
                       'bottleneck blocks.')
    return _found(models.resnet_name('preact_resnet', blocks), layouts.PREACT,
                  state_dict, 'linear', channels,
                  _width(width, 64) | {'final_bn': 'bn.weight' in state_dict},
                  {'shortcut_input': preact_resnet.SHORTCUT_INPUTS})
  if bottleneck:
    _check_bottleneck(state_dict, width)
  arch = models.resnet_name('resnet', blocks, bottleneck)
  if not any('.downsample.' in key for key in state_dict):
    return _found(arch, layouts.RESNET, state_dict, 'linear', channels,
                  _width(width, 64))
  # torchvision's and timm's, whose first layers many have exchanged.
  if state_dict.get('layer2.0.downsample.1.weight', np.zeros(1)).ndim == 4:
    raise ValueError("Cannot use the architecture: it is timm's ResNet whose "
                     'shortcuts average (resnet50d and the like).')
  side = state_dict['conv1.weight'].shape[-1]
  stems = tuple(name for name, (kernel, _) in resnet.STEMS.items()
                if kernel == side)
  if not stems:
    raise ValueError(f'Cannot use the architecture: it is {arch} with a first '
                     f'convolution of {side}x{side} pixels.')
  usual = {'stem': '7x7/2', 'pooling': 'max'} if side == 7 else {}
  return _found(arch, layouts.TORCHVISION, state_dict, 'fc', channels,
                _width(width, 64), {'stem': stems, 'pooling': resnet.POOLINGS},
                usual)


def _check_bottleneck(state_dict, width):
  """Raises ValueError for blocks of another width, or grouped convolutions."""
  outputs, inputs = _sides(state_dict['layer1.0.conv2.weight'])
  if inputs != outputs:
    raise ValueError(f'Cannot use the architecture: it is a ResNeXt of '
                     f'{outputs // max(inputs, 1)} groups.')
  if outputs != width:
    raise ValueError('Cannot use the architecture: it is a ResNet whose '
                     f'blocks have {outputs} channels inside for the {width} '
                     'of conv1, such as wide_resnet50_2.')


def _staged_cifar(state_dict):
  if any('.downsample.' in key for key in state_dict):
    raise ValueError(
        'Cannot use the architecture: it is a CIFAR ResNet whose shortcuts '
        'have weights (stage_*.downsample); the keys do not tell what they '
        'compute.')
  return _cifar(state_dict, layouts.STAGES, 'conv_1_3x3', 'stage_1',
                'classifier', None)


def _akamaster_or_chenyaofo(state_dict):
  if 'layer2.0.downsample.0.weight' in state_dict:
    return _cifar(state_dict, layouts.CHENYAOFO, 'conv1', 'layer1', 'fc',
                  'conv')
  with_conv = 'layer2.0.shortcut.0.weight' in state_dict
  return _cifar(state_dict, layouts.AKAMASTER, 'conv1', 'layer1', 'linear',
                'conv' if with_conv else None)


def _cifar(state_dict, layout, first_conv, group, classifier, shortcut):
  width, channels = _sides(state_dict[f'{first_conv}.weight'])
  count = _count(state_dict, rf'{group}\.')
  _check_blocks(state_dict, 3 * count)
  depth = 6 * count + 2
  options = _width(width, 16)
  if shortcut is not None:
    return _found(f'cifar_resnet{depth}', layout, state_dict, classifier,
                  channels, options | {'shortcut': shortcut})
  usual = 'pad_after' if layout is layouts.STAGES else 'pad_both'
  return _found(f'cifar_resnet{depth}', layout, state_dict, classifier,
                channels, options, {'shortcut': ('pad_both', 'pad_after')},
                {'shortcut': usual})


def _xcit(state_dict):
  first, channels = _sides(state_dict['patch_embed.proj.0.0.weight'])
  if 'patch_embed.proj.6.0.weight' not in state_dict:
    raise ValueError('Cannot use the architecture: it is an XCiT whose patches '
                     'are made by three convolutions (p8).')
  depth, heads = (_count(state_dict, r'blocks\.'),
                  len(state_dict['blocks.0.attn.temperature']))
  _check_blocks(state_dict, depth)
  arch, options = f'xcit_{depth}_{heads}', _width(first, 24)
  for letter, size in xcit.SIZES.items():
    if size == (8 * first, heads):
      arch, options = f'xcit_{letter}{depth}', {}
  return Recognised(
      arch, options, len(state_dict['head.weight']), channels,
      {'patch': xcit.PATCHES}, {'patch': 4}, layouts.XCIT.definition)


def _generator(state_dict):
  start = len(state_dict['conv_blocks.0.weight'])
  rows, nz = _sides(state_dict['l1.0.weight'])
  side = 4 * math.isqrt(rows // start)
  kernels = {int(key.split('.')[1]): value for key, value in state_dict.items()
             if re.fullmatch(r'conv_blocks\.\d+\.weight', key)
             and value.ndim == 4}
  channels = len(kernels[max(kernels, default=0)])
  width = len(state_dict['conv_blocks.3.weight'])
  options = {'side': side, 'width': width, 'nz': nz}
  layout = layouts.GENERATOR
  if start == 2 * width:
    options['wide_start'], layout = True, layouts.LARGE_GENERATOR
  return Recognised(models.GENERATOR, options, None, channels, {}, {},
                    layout.definition)


# The key by which each is known. The first that is there counts.
_FAMILIES = (
    ('block1.layer.0.bn1.weight', _trades_wide),
    ('layer.0.block.0.conv_0.weight', _deepmind_wide),
    ('conv_2d.weight', _deepmind_preact),
    ('layers.16.conv1.weight', _mobilenet),
    ('conv_1_3x3.weight', _staged_cifar),
    ('layer4.0.conv1.weight', _resnet),
    ('layer3.0.conv1.weight', _akamaster_or_chenyaofo),
    (_XCIT, _xcit),
    ('conv_blocks.0.weight', _generator),
)


MARKS = tuple(key for key, _ in _FAMILIES)


def _found(arch, layout, state_dict, classifier, channels, options,
           more_open=None, more_usual=None):
  usual = {'padding': layout.padding} | (more_usual or {})
  if len(layout.activations) == 1:
    usual['activation'], = layout.activations
  return Recognised(
      arch, options, len(state_dict[f'{classifier}.weight']), channels,
      _OPEN | (more_open or {}), usual, layout.definition)


def _sides(kernel):
  """Returns output and input channels of a convolution [O, I, k, k]."""
  if kernel.ndim not in (2, 4) or 0 in kernel.shape:
    raise KeyError(f'a weight of shape {kernel.shape}')
  return kernel.shape[0], kernel.shape[1]


def _width(width, usual):
  """Returns the option, unless it is the architecture's own."""
  return {} if width == usual else {'width': width}


def _check_blocks(state_dict, blocks):
  """Raises ValueError for more blocks than there are arrays for.

  Each has two convolutions and two BatchNorm layers, at least. The keys of a
  block cost a file little, and building it takes a while.
  """
  if 8 * blocks > len(state_dict) + 100:
    raise ValueError(
        f'Cannot use the architecture: its keys name {blocks:,} blocks, and '
        f'there are only {len(state_dict):,} arrays.')


def _count(state_dict, prefix):
  """Returns how many blocks a group has, by the indices after its name."""
  matches = (re.match(rf'{prefix}(\d+)\.', key) for key in state_dict)
  count = len({match[1] for match in matches if match})
  if not count:
    raise KeyError(prefix.replace('\\', ''))
  return count
