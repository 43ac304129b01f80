"""Uniform-Target Adversarial Examples (UTAE), the attack that trains students.

RSLAD's inner maximisation pushes the attacked model's prediction away from
the teacher's; which wrong class it lands on is left to the model, and a few
classes take most of it. UTAE also pulls the prediction towards the uniform
distribution, so that no target is preferred.
"""

import dataclasses
import functools

import jax

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import pgd
from ferd_jax.core import validate


@dataclasses.dataclass(frozen=True)
class UniformTargetLoss:
  """KL(P_T || P) - gamma KL(U || P): what UTAEs ascend.

  Its gradient in the logits is (1 - gamma) P - P_T + gamma U.

  Attributes:
    gamma: weight of the uniform-target term.
  """
  gamma: float

  takes_logits = True  # in place of labels

  def __call__(self, logits: jax.Array,
               teacher_logits: jax.Array) -> jax.Array:
    """Returns the loss `[B]`.

    Args:
      logits: `[B, K]` of the attacked model on the attacked images.
      teacher_logits: `[B, K]` of the teacher on the clean images.

    Raises:
      ValueError: if the shapes differ; one class would broadcast.
    """
    gap = losses.divergence_from(logits, teacher_logits)
    if self.gamma == 0:
      return gap
    return gap - self.gamma * losses.uniformity(logits)


@dataclasses.dataclass(frozen=True)
class UTAE(attack.Attack):
  """Ascends KL(P_T || P) - gamma KL(U || P) over the attacked model's P.

  Call it as `utae(logits_fn, key, x, teacher_logits)`: an attack whose `y`
  are the teacher's logits on the clean images. With gamma = 0 it is RSLAD's
  attack, bit for bit.

  Attributes:
    eps: radius of the L-infinity ball, at least 0, in the unit of the images.
    step_size: at least 0, in the unit of the images.
    num_steps: how many, at least 1; the last iterate is returned.
    gamma: weight of the uniform-target term, at least 0; the paper finds
      0.1-0.5 best.
    noise: standard deviation of the Gaussian start, which is not clipped, at
      least 0.
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: FERD, arXiv:2509.20793; for gamma = 0 RSLAD, arXiv:2108.07969,
    and GitHub mayaobuduyao/FERD query_sample.py (where gamma is 0).
  """
  eps: float
  step_size: float
  num_steps: int
  gamma: float = 0.3
  noise: float = 0.001
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  norm = 'Linf'
  takes_targets = False

  def __post_init__(self):
    validate.non_negative(gamma=self.gamma)
    _ = self._pgd  # It checks the rest.
    attack.freeze(self, 'eps', 'step_size', 'noise', 'gamma')

  @property
  def loss(self) -> UniformTargetLoss:
    """What is ascended: (logits, teacher_logits) -> `[B]`."""
    return UniformTargetLoss(self.gamma)

  @functools.cached_property
  def _pgd(self) -> pgd.PGD:
    return pgd.PGD(self.eps, self.step_size, self.num_steps, loss=self.loss,
                   start='normal', clip_start=False, bounds=self.bounds,
                   noise=self.noise)

  def init(self, problem: attack.Problem) -> pgd.PGDState:
    """Returns the start."""
    return self._pgd.init(problem)

  def step(self, logits_fn: attack.LogitsFn, problem: attack.Problem,
           state: pgd.PGDState, key: jax.Array | None = None) -> pgd.PGDState:
    """Returns the next iterate, projected."""
    return self._pgd.step(logits_fn, problem, state, key)

  def iterate(self, problem: attack.Problem,
              state: pgd.PGDState) -> jax.Array:
    """Returns the images that the next gradient is taken at."""
    return self._pgd.iterate(problem, state)

  def images(self, problem: attack.Problem,
             state: pgd.PGDState) -> jax.Array:
    """Returns the last iterate."""
    return self._pgd.images(problem, state)
