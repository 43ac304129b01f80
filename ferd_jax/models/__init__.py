"""Networks by name, and their variables.

`build('wrn_34_10', num_classes=10)` returns a Linen module; see
`ferd_jax.models.staged` for what all classifiers of this package have in
common. `register` gives names to networks from outside of it.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax.core import validate
from ferd_jax.models import cifar_resnet
from ferd_jax.models import forward
from ferd_jax.models import layers
from ferd_jax.models import mobilenet_v2
from ferd_jax.models import preact_resnet
from ferd_jax.models import registry
from ferd_jax.models import resnet
from ferd_jax.models import staged
from ferd_jax.models import wide_resnet
from ferd_jax.models import xcit
from ferd_jax.models.generator import Generator
from ferd_jax.models.staged import StagedModel

__all__ = ['ARCHITECTURES', 'GENERATOR', 'Generator', 'StagedModel',
           'abstract_variables', 'build', 'check_name', 'init_variables',
           'names', 'register', 'resnet_name']

GENERATOR = 'generator'  # Its name where those of classifiers are.
# What stands for something else where a network is named.
_RESERVED = ('', 'auto', GENERATOR)

# The names of this package's own, by example and rule.
ARCHITECTURES = (
    'wrn_{6n+4}_{widen} (wrn_28_10, wrn_34_10, wrn_70_16, ...)',
    'dm_wrn_{6n+4}_{widen} (DeepMind\'s)',
    'resnet18',
    'resnet34',
    'resnet50',
    'resnet101',
    'resnet152',
    'cifar_resnet{6n+2} (cifar_resnet20, cifar_resnet56, ...)',
    'preact_resnet18',
    'preact_resnet34',
    'dm_preact_resnet18',
    'dm_preact_resnet34 (DeepMind\'s)',
    'mobilenet_v2',
    'ra_wrn_70_16, or by its blocks (ra_wrn_30_31_10)',
    'meansparse_dm_wrn_{6n+4}_{widen}, meansparse_ra_wrn_70_16',
    'xcit_{t, s, m or l}{blocks} (xcit_s12, ...), or by blocks and heads '
    '(xcit_12_8)',
    'any of the ResNets of four groups by its blocks (resnet_2_2_2_2, '
    'resnet_bottleneck_3_4_6_3, preact_resnet_1_1_1_1, ...)',
)

_COMMON = ('width', 'mean', 'std', 'standardise', 'axis_name', 'dtype')
_STYLED = ('activation', 'padding')
_STEM = ('stem', 'pooling')
# Calls of modules' methods for each array, more than networks have: those of
# stages have half a call, others may have modules without arrays.
_STAGED_CALLS, _OTHER_CALLS, _MORE_CALLS = 1, 4, 500
# Blocks by depth, of which the deeper ones are bottlenecks.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Layers and blocks that a network may have: ResNet-1202 has 1,202 and 600.
_MOST_LAYERS, _MOST_BLOCKS = 2000, 1000
_COUNTS = r'_(\d+)_(\d+)_(\d+)_(\d+)'


@dataclasses.dataclass(frozen=True)
class _Family:
  """Names of one kind, what the numbers in them set, and the options."""
  pattern: str
  module: type[StagedModel]
  fields: Callable[..., dict[str, Any] | None]
  options: tuple[str, ...] = ()
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def valid_options(self) -> tuple[str, ...]:
    styled = _STYLED if issubclass(self.module, staged.StyledModel) else ()
    return _COMMON + styled + self.options


def _depth(number, remainder):
  """Returns the depth 6n + remainder for n >= 1, None for other numbers."""
  depth = int(number)
  valid = depth >= 6 + remainder and (depth - remainder) % 6 == 0
  return depth if valid else None


def _wide_fields(depth, widen):
  fields = {'depth': _depth(depth, 4), 'widen': int(widen)}
  return fields if fields['depth'] and fields['widen'] else None


def _cifar_fields(depth):
  return {'depth': _depth(depth, 2)} if _depth(depth, 2) else None


def _basic_fields(depth):
  return {'blocks': _BASIC[int(depth)]}


def _counted_fields(*counts):
  blocks = tuple(map(int, counts))
  return {'blocks': blocks} if min(blocks) else None


def _sized_fields(letter, depth):
  features, heads = xcit.SIZES[letter]
  fields = {'depth': int(depth), 'heads': heads, 'width': features // 8}
  return fields if fields['depth'] else None


def _xcit_fields(depth, heads):
  fields = {'depth': int(depth), 'heads': int(heads)}
  return fields if min(fields.values()) else None


# What tells DeepMind's networks from the others.
_DEEPMIND = {'activation': 'silu', 'padding': 'same'}
_SPARSE = _DEEPMIND | {'sparse': True}
_DEEPMIND_PREACT = _DEEPMIND | {'shortcut_input': 'input', 'shortcut_size': 3}

_FAMILIES = (
    _Family(r'wrn_(\d+)_(\d+)', wide_resnet.WideResNet, _wide_fields),
    _Family(r'dm_wrn_(\d+)_(\d+)', wide_resnet.WideResNet, _wide_fields,
            defaults=_DEEPMIND),
    _Family(r'resnet(18|34)', resnet.ResNet, _basic_fields, _STEM),
    _Family(f'resnet{_COUNTS}', resnet.ResNet, _counted_fields, _STEM),
    _Family(r'resnet(50|101|152)', resnet.ResNet,
            lambda depth: {'blocks': _BOTTLENECKS[int(depth)]}, _STEM,
            defaults={'bottleneck': True}),
    _Family(f'resnet_bottleneck{_COUNTS}', resnet.ResNet, _counted_fields,
            _STEM, defaults={'bottleneck': True}),
    _Family(r'cifar_resnet(\d+)', cifar_resnet.CifarResNet, _cifar_fields,
            ('shortcut',)),
    _Family(r'preact_resnet(18|34)', preact_resnet.PreActResNet,
            _basic_fields, ('shortcut_input', 'final_bn')),
    _Family(f'preact_resnet{_COUNTS}', preact_resnet.PreActResNet,
            _counted_fields, ('shortcut_input', 'final_bn')),
    _Family(r'dm_preact_resnet(18|34)', preact_resnet.PreActResNet,
            _basic_fields, defaults=_DEEPMIND_PREACT),
    _Family(f'dm_preact_resnet{_COUNTS}', preact_resnet.PreActResNet,
            _counted_fields, defaults=_DEEPMIND_PREACT),
    _Family(r'mobilenet_v2', mobilenet_v2.MobileNetV2, dict),
    _Family(r'ra_wrn_70_16', wide_resnet.RaWideResNet, dict,
            defaults=_DEEPMIND),
    _Family(r'ra_wrn_(\d+)_(\d+)_(\d+)', wide_resnet.RaWideResNet,
            _counted_fields, defaults=_DEEPMIND),
    _Family(r'meansparse_dm_wrn_(\d+)_(\d+)', wide_resnet.WideResNet,
            _wide_fields, ('straight_through',), _SPARSE),
    _Family(r'meansparse_ra_wrn_70_16', wide_resnet.RaWideResNet, dict,
            ('straight_through',), _SPARSE),
    _Family(r'meansparse_ra_wrn_(\d+)_(\d+)_(\d+)', wide_resnet.RaWideResNet,
            _counted_fields, ('straight_through',), _SPARSE),
    _Family(r'xcit_([tsml])(\d+)', xcit.Xcit, _sized_fields, ('patch',)),
    _Family(r'xcit_(\d+)_(\d+)', xcit.Xcit, _xcit_fields, ('patch',),
            {'width': 24}),
)


def resnet_name(kind: str, blocks: Sequence[int],
                bottleneck: bool = False) -> str:
  """Returns the name of a ResNet of four groups, the usual one if it has one.

  Args:
    kind: 'resnet', 'preact_resnet' or 'dm_preact_resnet'.
    blocks: number of blocks in each group.
    bottleneck: whether they are bottlenecks.
  """
  blocks = tuple(blocks)
  for depth, usual in (_BOTTLENECKS if bottleneck else _BASIC).items():
    if usual == blocks:
      return f'{kind}{depth}'
  return '_'.join([kind, *(['bottleneck'] if bottleneck else []),
                   *map(str, blocks)])


def names() -> tuple[str, ...]:
  """Returns the names for `build`: the built-in forms, then registered ones."""
  return ARCHITECTURES + registry.names()


def check_name(arch: str) -> None:
  """Raises ValueError unless `build` knows a name."""
  if registry.find(arch) is None:
    _find(arch)


def register(name: str, factory: Callable[..., nn.Module], *,
             options: Collection[str] = (),
             layout: registry.Layout | None = None) -> None:
  """Gives a network from outside of this package a name.

  It holds in this process, so it has to be done before the name is used, or a
  file read that says it.

  Args:
    name: for `build`, and wherever else an architecture is named.
    factory: `factory(num_classes=..., **options)` returns a Linen module that
      maps images [B, H, W, C] to logits [B, num_classes]; `models.forward` says
      how it is called. A class of modules is one.
    options: names of the options that `build` accepts and gives to the factory.
      `mean` and `std`, where they are among them, are what they are for the
      built-in networks.
    layout: PyTorch's names of its submodules, a `torch_io.Layout`; None for
      their own. It holds for all modules of the type that the factory is or
      returns.

  Raises:
    ValueError: if the name is one of a built-in network, or taken by another
      factory, options or layout; if the type of module has another layout. The
      same registration again has no effect.
  """
  if name in _RESERVED or _is_built_in(name):
    raise ValueError(f'Expected name={name!r} to be none of a built-in '
                     'network; choose another name.')
  registry.add(name, factory, options, layout)


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
  """Returns the classifier of that name.

  Args:
    arch: one of the forms in `ARCHITECTURES`, or a registered name.
    num_classes: number of logits.
    **options: of a registered network those that it was registered with, of
      the others `width`, the channels of the first convolution, with which all
      others scale (16 for WideResNet and CIFAR ResNet, 64 for ResNet and
      PreActResNet, 32 for MobileNetV2 and 96 for RaWideResNet, where it is a
      multiple of 4, 48 to 96 for XCiT, where 8 times it is a multiple of the
      heads); `mean` and `std`, the per-channel normalisation done inside the
      model (default: none), or `standardise`, True for that of each image by
      itself (see `staged.standardised`); but for XCiT `activation` (see
      `layers.ACTIVATIONS`; default: 'relu', for DeepMind's networks 'silu') and
      `padding` (see `layers.PADDINGS`; default: 'both', for DeepMind's 'same');
      `axis_name`, the axis over which BatchNorm synchronises; `dtype`, in which
      its layers compute, such as `jnp.bfloat16` (default: that of images and
      variables); for networks with MeanSparse layers `straight_through` (see
      `mean_sparse.MeanSparse`); for XCiT `patch` (see `xcit.PATCHES`; default:
      4); for ResNets `stem` and `pooling` (see `resnet.STEMS` and
      `resnet.POOLINGS`; default: '3x3' and 'none'); for CIFAR ResNets
      `shortcut` (see `resnet.SHORTCUTS`), for PreActResNets `shortcut_input`
      (see `preact_resnet.SHORTCUT_INPUTS`) and `final_bn`.

  Returns:
    A frozen, hashable module, a `StagedModel` unless it is a registered one;
    its variables come from `init_variables` or `torch_io.load_variables`.

  Raises:
    ValueError: if the name is unknown, or an option unknown or out of range.
  """
  entry = registry.find(arch)
  if entry is None:
    family, fields = _find(arch)
  valid = entry.options if entry else family.valid_options
  validate.positive(num_classes=num_classes)
  unknown = sorted(set(options) - set(valid))
  if unknown:
    raise ValueError(f'Expected the options of {arch!r} to be among '
                     f'{", ".join(valid) or "none"}; got {", ".join(unknown)}.')
  _check_normalisation(options)
  if not entry:
    _check(family, fields, options)
    if options.get('dtype') is not None:
      options['dtype'] = jnp.dtype(options['dtype'])  # Which has a hash.
  for name in ('mean', 'std'):
    if options.get(name) is not None:
      # Numbers of any kind become floats in a tuple, which has a hash.
      options[name] = tuple(float(value) for value in options[name])
  if entry:
    return entry.build(arch, num_classes, **options)
  return family.module(num_classes=num_classes,
                       **{**family.defaults, **fields, **options})


def init_variables(model: nn.Module, key: jax.Array,
                   image_shape: Sequence[int],
                   dtype: jax.typing.DTypeLike = jnp.float32
                   ) -> dict[str, Any]:
  """Returns freshly drawn variables {'params': ..., 'batch_stats': ...}.

  Both are always there, and {} where a model has none; collections of other
  names that it has come with them.

  Args:
    model: a classifier or a generator, any Linen module.
    key: typed PRNG key.
    image_shape: shape of one input, without the batch: (H, W, C) for a
      classifier, (nz,) for a generator.
    dtype: precision of the variables; at least float32.
  """
  variables = model.init(key, jnp.zeros((1, *image_shape), dtype),
                         **forward.mode_arguments(model, train=False))
  return {'params': {}, 'batch_stats': {}, **variables}


def abstract_variables(model: nn.Module, image_shape: Sequence[int],
                       limit: int | None = None) -> dict[str, Any]:
  """Returns the shapes and types of what `init_variables` draws.

  Args:
    model: as there.
    image_shape: as there.
    limit: number of arrays that the model may have, as those of a file are that
      names it; None for any number. One of very many more is not traced to its
      end, since a few bytes can name a network of 60,000 layers.

  Raises:
    ValueError: if it has very many more.
  """
  if limit is None:
    most = float('inf')
  else:
    each = _STAGED_CALLS if isinstance(model, StagedModel) else _OTHER_CALLS
    most = each * limit + _MORE_CALLS
  calls = itertools.count(1)

  def counted(method, args, kwargs, context):
    if next(calls) > most:
      raise ValueError(f'{type(model).__name__} has many more layers than the '
                       f'{limit} arrays that are there.')
    return method(*args, **kwargs)

  with nn.intercept_methods(counted):
    return jax.eval_shape(
        lambda key: init_variables(model, key, image_shape), jax.random.key(0))


def _is_built_in(name):
  return any(re.fullmatch(family.pattern, name) for family in _FAMILIES)


def _find(arch):
  for family in _FAMILIES:
    match = re.fullmatch(family.pattern, arch)
    fields = family.fields(*match.groups()) if match else None
    if fields is not None:
      if fields.get('depth', 0) > _MOST_LAYERS or (
          sum(fields.get('blocks', ())) > _MOST_BLOCKS):
        raise validate.SettingError(
            'arch', arch, f'to have at most {_MOST_LAYERS:,} layers, or '
            f'{_MOST_BLOCKS:,} blocks, which take minutes to build.')
      return family, fields
  raise validate.SettingError(
      'arch', arch, f'to be one of {", ".join(names())}; any other has to be '
      'registered first, by models.register.')


def _check(family, fields, options):
  """Raises ValueError for the first option out of range."""
  if 'width' in options:
    validate.positive(width=options['width'])
    if family.module in (mobilenet_v2.MobileNetV2, wide_resnet.RaWideResNet):
      validate.divisible(4, 'channels', width=options['width'])
  if family.module is xcit.Xcit:
    width = {**family.defaults, **fields, **options}['width']
    if 8 * width % fields['heads']:
      raise validate.SettingError(
          'width', width, 'to give 8 times as many channels to '
          f'{fields["heads"]} heads of one size.')
  if 'patch' in options:
    validate.one_of(xcit.PATCHES, patch=options['patch'])
  for name in ('standardise', 'straight_through'):
    if name in options:
      validate.one_of((True, False), **{name: options[name]})
  if 'activation' in options:
    validate.one_of(tuple(layers.ACTIVATIONS), activation=options['activation'])
  if options.get('dtype') is not None:
    validate.one_of(layers.DTYPES, dtype=jnp.dtype(options['dtype']).name)
  if 'padding' in options:
    validate.one_of(layers.PADDINGS, padding=options['padding'])
  if 'stem' in options:
    validate.one_of(tuple(resnet.STEMS), stem=options['stem'])
  if 'pooling' in options:
    validate.one_of(resnet.POOLINGS, pooling=options['pooling'])
  if 'shortcut' in options:
    validate.one_of(resnet.SHORTCUTS, shortcut=options['shortcut'])
  if 'shortcut_input' in options:
    validate.one_of(preact_resnet.SHORTCUT_INPUTS,
                    shortcut_input=options['shortcut_input'])
  if 'final_bn' in options:
    validate.one_of((True, False), final_bn=options['final_bn'])


def _check_normalisation(options):
  """Raises ValueError for a mean or std that does not normalise."""
  mean, std = options.get('mean'), options.get('std')
  if options.get('standardise') and (mean is not None or std is not None):
    raise validate.SettingError(
        'standardise', options['standardise'], 'not to be set beside '
        f'mean={mean!r} and std={std!r}; an image is normalised once.')
  if (mean is None) != (std is None):
    raise validate.SettingError('mean', mean, f'and std={std!r} together.')
  if mean is not None:
    if len(mean) != len(std):
      raise validate.SettingError(
          'mean', mean, f'and std={std!r} to have the same length.')
    for value in std:
      validate.positive(std=value)
      validate.sensible(std=value)
    for value in mean:
      validate.sensible(mean=value)
