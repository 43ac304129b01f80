"""PGD and its one-step case FGSM, on any loss, in a ball of any norm."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ferd_jax.attacks import ascent
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.core import validate


class PGDState(NamedTuple):
  """The iterates `[B, ...]`."""
  x_adv: jax.Array


@dataclasses.dataclass(frozen=True)
class PGD(attack.Attack):
  """Projected gradient ascent; call it as `pgd(logits_fn, key, x, y)`.

  Frozen and hashable, so it may be a static argument of `jit`.

  Attributes:
    eps: radius of the ball, at least 0, in the unit of the images.
    step_size: at least 0, in the unit of the images, in the attack's norm.
    num_steps: how many, at least 1; the last iterate is returned.
    loss: (logits `[B, K]`, y) -> `[B]`, ascended; a targeted one,
      (logits, y, targets) -> `[B]`, for calls with targets. None is the
      cross-entropy, or that of the target class.
    start: 'uniform' in the ball, 'normal' with standard deviation `noise`, or
      'zero' (the image itself). FGSM is one step of size eps from 'zero'. A
      call's `x_init` replaces it.
    clip_start: whether the start is clipped to the bounds before the first
      gradient; sources differ.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.
    norm: 'Linf', 'L2' or 'L1', where a step moves the 1% of the entries with
      the steepest gradients, as in SLIDE.
    noise: standard deviation of the 'normal' start.
    num_restarts: repetitions from other starts on what is not yet fooled.
    clip_steps: whether every iterate is clipped to the bounds, or the last one
      only.

  Raises:
    ValueError: for a setting out of range.

  References: Madry et al. 2018, arXiv:1706.06083, Sec. 2; for L1 Tramer &
    Boneh 2019, arXiv:1904.13000 (SLIDE).
  """
  eps: float
  step_size: float
  num_steps: int
  loss: Callable[..., jax.Array] | None = None
  start: geometry.Start = 'uniform'
  clip_start: bool = True
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None
  norm: geometry.Norm = 'Linf'
  noise: float = 0.001
  num_restarts: int = 1
  clip_steps: bool = True

  def __post_init__(self):
    validate.non_negative(eps=self.eps, step_size=self.step_size,
                          noise=self.noise)
    validate.count(num_steps=self.num_steps, num_restarts=self.num_restarts)
    validate.one_of(geometry.STARTS, start=self.start)
    validate.one_of(geometry.NORMS, norm=self.norm)
    attack.freeze(self, 'eps', 'step_size', 'noise')

  def init(self, problem: attack.Problem) -> PGDState:
    """Returns the start."""
    x, start = problem.x, problem.x_init
    if start is None and self.start == 'zero':
      return PGDState(x)
    if start is None:
      start = geometry.start(self.start, problem.keys, x, problem.eps,
                             self.noise, self.norm)
    return PGDState(jnp.clip(start, *self.bounds) if self.clip_start
                    else start)

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: PGDState, key: jax.Array | None = None) -> PGDState:
    """Returns the next iterate, projected."""
    def total(images):
      logits = attack.evaluate(logits_fn, images, key)
      # The sum keeps examples apart.
      return jnp.sum(self.objective(logits, problem)), logits
    limits = jnp.finfo(problem.x.dtype)  # No infinities for `jax_debug_infs`.
    bounds = (self.bounds if self.clip_steps else
              (float(limits.min), float(limits.max)))
    gradient, logits = jax.grad(total, has_aux=True)(state.x_adv)
    if self.clip_steps and attack.target_classes(problem.targets) is not None:
      # Without a gradient an image stays where it is, but for the projection.
      # What lies out of the bounds is not yet the image that is returned.
      gradient = geometry.where(self.succeeds(logits, problem),
                                jnp.zeros_like(gradient), gradient)
    return PGDState(ascent.advance(
        state.x_adv, gradient, problem.x, problem.eps, self.step_size,
        norm=self.norm, bounds=bounds))

  def iterate(self, problem: attack.Problem, state: PGDState) -> jax.Array:
    """Returns the images that the next gradient is taken at."""
    del problem
    return state.x_adv

  def images(self, problem: attack.Problem, state: PGDState) -> jax.Array:
    """Returns the last iterate, inside the bounds."""
    if self.clip_steps:
      return state.x_adv
    return jnp.clip(state.x_adv, *self.bounds)
