"""The PyTorch codes that networks were published in: names and definitions.

Submodules of `ferd_jax.models` carry PyTorch's attribute names, with an
underscore before an index (`layer1_0/conv1/kernel` is `layer1.0.conv1.weight`).
Where codes of one architecture differ in their names, a layout lists the
substitutions. A network from outside brings its own by `models.register`.
"""

import dataclasses

from flax import linen as nn

from ferd_jax import models
from ferd_jax.models import cifar_resnet
from ferd_jax.models import mobilenet_v2
from ferd_jax.models import preact_resnet
from ferd_jax.models import registry
from ferd_jax.models import resnet
from ferd_jax.models import wide_resnet
from ferd_jax.models import xcit

_ROBUSTBENCH = 'RobustBench/robustbench, robustbench/model_zoo/architectures/'


@dataclasses.dataclass(frozen=True)
class Published(registry.Layout):
  """The layout of a code that a network of this package was published in.

  Attributes:
    activations: those that the code has.
    padding: of its convolutions of stride 2.
  """
  activations: tuple[str, ...] = ('relu',)
  padding: str = 'both'


TRADES = Published(f'{_ROBUSTBENCH}wide_resnet.py', ((r'_layer\.', '.layer.'),))
DEEPMIND_WIDE = Published(
    f'{_ROBUSTBENCH}dm_wide_resnet.py, DMWideResNet',
    (
        (r'^block1_layer\.', 'layer.0.block.'),
        (r'^block2_layer\.', 'layer.1.block.'),
        (r'^block3_layer\.', 'layer.2.block.'),
        (r'\.bn1$', '.batchnorm_0'),
        (r'\.bn2$', '.batchnorm_1'),
        (r'\.conv1$', '.conv_0'),
        (r'\.conv2$', '.conv_1'),
        (r'\.convShortcut$', '.shortcut'),
        (r'^conv1$', 'init_conv'),
        (r'^bn1$', 'batchnorm'),
        (r'^fc$', 'logits'),
        (r'^meansparse\.end$', 'meansparse_end'),
        (r'\.meansparse\.(\d)$', r'.meansparse_\1'),
    ), ('relu', 'silu'), 'same')
ROBUST_ARCHITECTURE = dataclasses.replace(
    DEEPMIND_WIDE, definition=f'{_ROBUSTBENCH}robustarch_wide_resnet.py, '
    'NormalizedWideResNet')
MEAN_SPARSE = dataclasses.replace(
    DEEPMIND_WIDE,
    definition=f'{_ROBUSTBENCH}Meansparse_wrn_70_16.py, DMWideResNet')
MEAN_SPARSE_ROBUST = dataclasses.replace(
    DEEPMIND_WIDE, definition=f'{_ROBUSTBENCH}Meansparse_ra_wrn_70_16.py, '
    'NormalizedWideResNet')
DEEPMIND_PREACT = Published(
    f'{_ROBUSTBENCH}dm_wide_resnet.py, DMPreActResNet',
    (
        (r'^layer1\.', 'layer_0.'),
        (r'^layer2\.', 'layer_1.'),
        (r'^layer3\.', 'layer_2.'),
        (r'^layer4\.', 'layer_3.'),
        (r'\.bn1$', '.batchnorm_0'),
        (r'\.bn2$', '.batchnorm_1'),
        (r'\.conv1$', '.conv_2d_1'),
        (r'\.conv2$', '.conv_2d_2'),
        (r'\.shortcut\.0$', '.shortcut'),
        (r'^conv1$', 'conv_2d'),
        (r'^bn$', 'batchnorm'),
        (r'^linear$', 'logits'),
    ), ('relu', 'silu'), 'same')
PREACT = Published(f'{_ROBUSTBENCH}resnet.py, PreActResNet')
RESNET = Published('kuangliu/pytorch-cifar, models/resnet.py')
TORCHVISION = Published(
    'pytorch/vision, torchvision/models/resnet.py',
    ((r'\.shortcut\.', '.downsample.'), (r'^linear$', 'fc')))
FERD_MOBILENET = Published('mayaobuduyao/FERD, models/mobilenetv2.py',
                           ((r'^linear$', 'fc'),))
MOBILENET = Published('kuangliu/pytorch-cifar, models/mobilenetv2.py')
AKAMASTER = Published('akamaster/pytorch_resnet_cifar10, resnet.py')
CHENYAOFO = Published(
    'chenyaofo/pytorch-cifar-models, pytorch_cifar_models/resnet.py',
    ((r'\.shortcut\.', '.downsample.'), (r'^linear$', 'fc')))
STAGES = Published(
    'fanghenshaometeor/vanilla-adversarial-training, model/resnet_v1.py',
    (
        (r'^conv1$', 'conv_1_3x3'),
        (r'^bn1$', 'bn_1'),
        (r'^layer(\d)\.', r'stage_\1.'),
        (r'\.(conv|bn)1$', r'.\1_a'),
        (r'\.(conv|bn)2$', r'.\1_b'),
        (r'^linear$', 'classifier'),
    ))
XCIT = Published(
    'huggingface/pytorch-image-models, timm/models/xcit.py, with the strides '
    f'of {_ROBUSTBENCH}xcit.py',
    ((r'^patch_embed\.proj_(\d)\.', r'patch_embed.proj.\1.'),), ('gelu',))
GENERATOR = Published('zju-vipa/CMI, Generator')
LARGE_GENERATOR = Published('zju-vipa/CMI, LargeGenerator')

_CIFAR = {'pad_both': (AKAMASTER, STAGES), 'pad_after': (STAGES, AKAMASTER),
          'conv': (CHENYAOFO, AKAMASTER)}


def is_own(model: nn.Module) -> bool:
  """Returns whether a module is one of this package's."""
  return type(model).__module__.startswith(f'{models.__name__}.')


def _is_small(model):
  return (model.stem, model.pooling) == ('3x3', 'none')


def of_model(model: nn.Module) -> tuple[registry.Layout, ...]:
  """Returns the layouts in which weights of a network exist.

  The first is the one to write: the code whose modules compute the same.
  """
  registered = registry.layout_of(model)
  if registered is not None:
    return (registered,)
  match model:
    case wide_resnet.RaWideResNet():
      return ((MEAN_SPARSE_ROBUST,) if model.sparse
              else (ROBUST_ARCHITECTURE,))
    case wide_resnet.WideResNet(sparse=True):
      return (MEAN_SPARSE,)
    case xcit.Xcit():
      return (XCIT,)
    case wide_resnet.WideResNet():
      return ((TRADES, DEEPMIND_WIDE) if model.padding == 'both'
              else (DEEPMIND_WIDE, TRADES))
    case preact_resnet.PreActResNet():
      return (PREACT,) if model.shortcut_size == 1 else (DEEPMIND_PREACT,)
    case resnet.ResNet():
      # Of another stem there is no code with the names of the first.
      return ((RESNET, TORCHVISION) if _is_small(model)
              else (TORCHVISION, RESNET))
    case mobilenet_v2.MobileNetV2():
      return (FERD_MOBILENET, MOBILENET)
    case cifar_resnet.CifarResNet():
      return _CIFAR[model.shortcut]
    case models.Generator():
      return (LARGE_GENERATOR if model.wide_start else GENERATOR,)
  # A module of somebody else's: its submodules' own names.
  return (registry.Layout(f'{type(model).__module__}, {type(model).__name__}, '
                          'by the names of its Flax submodules'),)


def definition(model: nn.Module) -> str:
  """Returns where the PyTorch module that computes the same is defined.

  It is a public repository on GitHub and a file in it; its defaults may differ
  from the network's width, depth or number of classes. What the code itself
  has to be changed in is said. Of a network from outside it is the definition
  in its registered layout, or its class and that its own names are used.
  """
  layout = of_model(model)[0]
  text = layout.definition
  if isinstance(model, models.Generator) or not isinstance(layout, Published):
    return text
  if layout is XCIT:
    return f'{text} (patches of {model.patch} pixels)'
  arguments, changes = [], []
  if layout is TORCHVISION:
    changes += [f'a stem of {model.stem}'] * (model.stem != '7x7/2')
    changes += ['no max-pooling'] * (model.pooling == 'none')
  if layout is PREACT:
    arguments += [f'bn_before_fc={model.final_bn}',
                  f'out_shortcut={model.shortcut_input == "preact"}']
  if len(layout.activations) > 1:
    arguments.append('activation_fn='
                     + {'relu': 'nn.ReLU', 'silu': 'nn.SiLU'}[model.activation])
  elif model.activation not in layout.activations:
    changes.append(f'{model.activation} in place of relu')
  if model.padding != layout.padding:
    changes.append(f'stride 2 padded as by padding={model.padding!r}')
  if arguments:
    text += f' ({", ".join(arguments)})'
  return text + (f', with {" and ".join(changes)}' if changes else '')
