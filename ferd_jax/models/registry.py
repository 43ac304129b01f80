"""Networks from outside of this package: their names, and their layouts."""

from collections.abc import Callable
from collections.abc import Collection
import dataclasses
import inspect
import re
from typing import Any

from flax import linen as nn

_entries: dict[str, 'Entry'] = {}  # By name.
_layouts: dict[type, Any] = {}  # By type of module.


@dataclasses.dataclass(frozen=True)
class Layout:
  """The names that a PyTorch code has for the submodules of a network.

  Attributes:
    definition: the code, such as the public repository on GitHub and the file
      in it.
    names: regular expressions that rewrite dotted paths of modules, applied in
      order. In these paths an index at the end of a submodule's name is one of
      its own, `layer1.0.conv1` for `layer1_0/conv1`.
  """
  definition: str
  names: tuple[tuple[str, str], ...] = ()

  def rename(self, dotted: str) -> str:
    """Returns the code's name of a module, given that in `ferd_jax`."""
    for pattern, replacement in self.names:
      dotted = re.sub(pattern, replacement, dotted)
    return dotted


@dataclasses.dataclass(frozen=True)
class Entry:
  """A registered network.

  Attributes:
    factory: called with `num_classes` and options by name.
    options: their names.
    layout: of the module that it returns, or None.
  """
  factory: Callable[..., nn.Module]
  options: tuple[str, ...]
  layout: Layout | None

  def build(self, name: str, num_classes: int, **options: Any) -> nn.Module:
    """Returns the network.

    Args:
      name: that it has.
      num_classes: number of logits.
      **options: among `self.options`.

    Raises:
      ValueError: if the factory returns no Linen module, or one whose type has
        another layout.
    """
    model = self.factory(num_classes=num_classes, **options)
    if not isinstance(model, nn.Module):
      raise ValueError(f'Expected the factory of {name!r} to return a module '
                       f'of flax.linen, got {type(model).__name__}.')
    if self.layout is not None:
      _keep_layout(type(model), self.layout)
    return model


def add(name: str, factory: Callable[..., nn.Module],
        options: Collection[str], layout: Layout | None) -> None:
  """Keeps a network; see `models.register`."""
  entry = Entry(factory, tuple(options), layout)
  if _entries.get(name, entry) != entry:
    raise ValueError(f'Expected name={name!r} to be free, but another network '
                     'is registered by it; choose another name.')
  if layout is not None and inspect.isclass(factory):
    # A function's type is known once it has built something.
    _keep_layout(factory, layout)
  _entries[name] = entry


def names() -> tuple[str, ...]:
  """Returns the registered names, in the order of their registration."""
  return tuple(_entries)


def find(name: str) -> Entry | None:
  """Returns what is registered by a name, or None."""
  return _entries.get(name)


def layout_of(model: nn.Module) -> Layout | None:
  """Returns the layout registered for a module's type, or None."""
  return _layouts.get(type(model))


def _keep_layout(kind, layout):
  if f'{kind.__module__}.'.startswith(f'{__package__}.'):
    raise ValueError(f'Expected layout=None for {kind.__name__}, whose names '
                     'are known; derive a class of its own for others.')
  if _layouts.setdefault(kind, layout) != layout:
    raise ValueError(
        f'Expected layout={layout!r} to be the one that {kind.__name__} is '
        'registered with; derive a class of its own for another.')
