"""AutoAttack: the ensemble by which robust accuracies are compared."""

import dataclasses
import functools
import os
import typing
from typing import Any
from typing import Literal

import jax
from jax.typing import ArrayLike

from ferd_jax import losses
from ferd_jax.attacks import apgd
from ferd_jax.attacks import attack
from ferd_jax.attacks import ddn
from ferd_jax.attacks import ensemble
from ferd_jax.attacks import fab
from ferd_jax.attacks import fmn
from ferd_jax.attacks import geometry
from ferd_jax.attacks import inputs
from ferd_jax.attacks import presets
from ferd_jax.attacks import square
from ferd_jax.core import parallel as parallels
from ferd_jax.core import reporting
from ferd_jax.core import validate

Version = Literal['standard', 'plus', 'rand', 'fast', 'torchattacks_compat',
                  'custom']
Member = Literal['apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square']
MEMBERS: tuple[Member, ...] = typing.get_args(Member)
Other = Literal['fmn', 'ddn']  # of a 'custom' version, besides presets
# The attacks of each version but 'custom', in order.
VERSIONS: dict[Version, tuple[Member, ...]] = {
    'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
    'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
    'rand': ('apgd-ce', 'apgd-dlr'),
    'fast': ('apgd-ce', 'apgd-t'),
    'torchattacks_compat': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
}


def _names(norm):
  """Returns the names of attacks that there are in a norm."""
  names = (*MEMBERS, *presets.PRESETS) if norm in geometry.NORMS else ()
  return (*names, 'fmn', *(('ddn',) if norm == 'L2' else ()))


@dataclasses.dataclass(frozen=True)
class AutoAttack:
  """The parameter-free ensemble; call it as `autoattack(logits_fn, key, x, y)`.

  Unlike the other attacks it is no part of a compiled program, but a loop of
  Python's over compiled parts: it takes a data set of any size.

  Attributes:
    eps: radius, in the unit of the images.
    norm: 'Linf', 'L2' or 'L1'; of a 'custom' version whatever its attacks have.
    version: 'standard', what published numbers are, 'plus' (more attacks and
      restarts) or 'rand' (for stochastic models) as upstream; 'fast', APGD
      with both losses, close to standard at a fifth of the cost;
      'torchattacks_compat', which reproduces the weaker ensemble of the
      package of that name (L-infinity); or 'custom'.
    attacks: of 'custom', in order: names of `MEMBERS`, set up as in
      'standard', 'fmn', 'ddn' (L2 only) and those of `presets.PRESETS`, or
      pairs of a name and any `Attack`, also one of your own, with the same eps,
      norm and bounds. (An eps of None becomes that of all; what takes a
      teacher's logits, as UTAE, gets the model's own.) An image is robust if
      no attack fools the model, whatever an attack says of itself.
    bounds: lowest and highest pixel value.

  Raises:
    ValueError: for a setting out of range.

  References: Croce & Hein 2020, arXiv:2003.01690; GitHub fra31/auto-attack.
    Differences: the noise of an image depends on the key and its index, not on
    its batch; less than 10 classes have less target classes; an attack on a
    deterministic model ends at the first image that fools, as flags are all
    that counts; an interrupted run is gone on with.
  """
  eps: float
  norm: geometry.Norm = 'Linf'
  version: Version = 'standard'
  attacks: tuple[Member | presets.Name | Other | tuple[str, attack.Attack],
                 ...] = ()
  bounds: tuple[float, float] = (0., 1.)

  def __post_init__(self):
    validate.non_negative(eps=self.eps)
    validate.one_of(geometry.DISTANCES if self.version == 'custom' else
                    geometry.NORMS, norm=self.norm)
    validate.one_of(typing.get_args(Version), version=self.version)
    attack.freeze(self, 'eps')
    if self.version == 'torchattacks_compat' and self.norm != 'Linf':
      raise ValueError(f"Expected norm={self.norm!r} to be 'Linf' for version="
                       "'torchattacks_compat'.")
    if (self.version == 'custom') != bool(self.attacks):
      raise ValueError(f'Expected attacks={self.attacks!r} to be given for '
                       f"version='custom', and only then.")
    if not isinstance(self.attacks, tuple | list):
      raise ValueError(f'Expected attacks={self.attacks!r} to be a tuple.')
    object.__setattr__(self, 'attacks', tuple(
        tuple(member) if isinstance(member, list) else member
        for member in self.attacks))
    for member in self.attacks:
      if isinstance(member, str):
        validate.one_of(_names(self.norm), attack=member)
      elif isinstance(member, tuple) and len(member) == 2:
        self._check_own(*member)
      else:
        raise ValueError('Expected attacks to be names, or pairs (name, '
                         f'attack) in brackets of their own, got {member!r}.')
    object.__setattr__(self, 'attacks', tuple(
        member if isinstance(member, str) else
        (member[0], self._with_radius(member[1])) for member in self.attacks))
    if len(set(self.names)) < len(self.names):
      raise ValueError(f'Expected attacks={self.names} to have one name each.')
    if len({not isinstance(member, str) and member[1].stochastic
            for member in self.attacks}) > 1:
      raise ValueError(f'Expected attacks={self.names} to be for stochastic '
                       'models all (APGD with eot > 0), or none.')

  def _check_own(self, name, own):
    attack.check_member(name, own, eps=self.eps, norm=self.norm,
                        bounds=self.bounds)
    if getattr(own, 'keep', None) == 'best':
      raise ValueError(f"Expected keep='best' of attack {name!r} to be 'first' "
                       "or 'fooling': the best image need not fool.")

  def _with_radius(self, own):
    return own if own.eps is not None else dataclasses.replace(
        own, eps=self.eps)

  @property
  def names(self) -> tuple[str, ...]:
    """Of the attacks, in order."""
    if self.version != 'custom':
      return VERSIONS[self.version]
    return tuple(member if isinstance(member, str) else member[0]
                 for member in self.attacks)

  def members(self, num_classes: int) -> dict[str, attack.Attack]:
    """Returns the attacks by name, in order, for a model with K classes.

    Args:
      num_classes: K; targeted attacks have 9 targets, or K - 1 if that is
        less ('torchattacks_compat': always K - 1). In L1 APGD has larger radii
        first, 5 restarts and 5 targets, but for 'plus' and 'rand'.

    Raises:
      ValueError: if an attack of your own has more targets than there are.
    """
    compat = self.version == 'torchattacks_compat'
    plus = self.version == 'plus'
    # Of L1, as upstream: 'plus' and 'rand' are set up as in the other norms.
    large_radii = self.norm == 'L1' and not plus and self.version != 'rand'
    restarts = 5 if plus or large_radii else 1
    targets = num_classes - 1 if compat else min(9, num_classes - 1)
    ascent_targets = min(targets, 5) if large_radii else targets
    common: dict[str, Any] = dict(eps=self.eps, norm=self.norm,
                                  bounds=self.bounds)
    # An image counts as soon as it fools: none is sought beyond. One that fools
    # a stochastic model once need not do so again; later ones more likely do.
    stochastic = self.version == 'rand'
    ascent = functools.partial(
        apgd.APGD, **common, keep='fooling' if stochastic else 'first',
        num_iterations=10 if compat else 100, eot=20 if stochastic else 0,
        large_radii=large_radii)
    boundary = functools.partial(fab.FAB, **common, keep='first',
                                 num_iterations=10 if compat else 100)
    standard: dict[str, attack.Attack] = {
        'apgd-ce': ascent(loss=losses.cross_entropy, num_restarts=restarts),
        'apgd-dlr': ascent(loss=losses.dlr, num_restarts=restarts),
        'apgd-t': ascent(loss=losses.targeted_dlr,
                         num_targets=ascent_targets),
        'fab': boundary(num_restarts=5 if plus else 1),
        'fab-t': boundary(num_targets=targets),
        'square': square.Square(**common, rescale_schedule=compat),
    } if self.norm in geometry.NORMS else {}
    own = dict(member for member in self.attacks
               if not isinstance(member, str))
    for name, member in own.items():
      if member.num_targets >= num_classes:
        raise ValueError(f'Expected num_targets={member.num_targets} of attack '
                         f'{name!r} below the {num_classes} classes.')
    nearest = {'ddn': ddn.DDN, 'fmn': functools.partial(fmn.FMN,
                                                        norm=self.norm)}
    def named(name):
      if name in own:
        return own[name]
      if name in presets.PRESETS:
        return presets.preset(name, **common)
      if name in nearest:
        return nearest[name](eps=self.eps, bounds=self.bounds, keep='first')
      return standard[name]
    return {name: named(name) for name in self.names}

  def __call__(self, logits_fn: attack.LogitsFn, key: jax.Array,
               x: ArrayLike, y: ArrayLike, *, batch_size: int = 256,
               individual: bool = False,
               state_file: os.PathLike | str | None = None,
               save_every: float = 60.,
               progress: bool | reporting.Reporter = True,
               parallel: parallels.Parallel | None = None
               ) -> ensemble.Result:
    """Attacks all images and says which are robust.

    Args:
      logits_fn: images `[B, ..., channels]` -> logits `[B, K]`, K >= 2: pure,
        in evaluation mode; for 'rand' (images, key) -> logits. As
        `jax.tree_util.Partial(apply_fn, variables)` its variables are an
        argument of the compiled functions, not constants in them.
      key: one PRNG key. Beyond it and the images results depend on nothing:
        not on the batch size, devices or interruptions, but for rounding (those
        of a stochastic model, whose own noise is a batch's, do).
      x: images `[N, ..., channels]` within `bounds`.
      y: int labels `[N]`.
      batch_size: images at a time, over all devices. On CPU small ones that
        fit the cache, such as 32, are faster.
      individual: whether every attack gets all images that the model
        classifies right, instead of those that the attacks before it left.
      state_file: an `.npz` that keeps the state of the run, for all processes
        to see. If it is there, the run goes on from it.
      save_every: seconds between two states; one is also kept after every
        attack and on interruption.
      progress: whether to show on stderr what was found, and how long it will
        take; or a reporter of `core.reporting` that does.
      parallel: mapping over devices; default: all.

    Returns:
      Flags, accuracies, images and predictions. Its warnings are also
      `warnings.warn`ed.

    Raises:
      ValueError: for inputs or a model that would make the numbers wrong (see
        `checks`), or a state file of another run.
    """
    if not inputs.is_concrete(logits_fn, key, x, y):
      raise ValueError('AutoAttack is a loop of Python\'s over compiled parts: '
                       'call it outside of jit.')
    # The model's variables are placed once, all else is this loop's own.
    with inputs.own_transfers():
      session = ensemble.Session(
          self.members, logits_fn, key, x, y, batch_size=batch_size,
          individual=individual, parallel=parallel or parallels.create(),
          reporter=(reporting.TERMINAL if progress is True else
                    progress or reporting.SILENT),
          stochastic=self._stochastic, settings={
              'version': self.version, 'norm': self.norm, 'eps': self.eps,
              'bounds': self.bounds})
      return session.finish(state_file, save_every)

  @property
  def _stochastic(self):
    return self.version == 'rand' or any(
        not isinstance(member, str) and member[1].stochastic
        for member in self.attacks)
