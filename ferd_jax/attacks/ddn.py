"""DDN: direction and norm of a perturbation decoupled, for L2."""

import dataclasses

import jax
import jax.numpy as jnp

from ferd_jax import losses
from ferd_jax.attacks import attack
from ferd_jax.attacks import geometry
from ferd_jax.attacks import nearest
from ferd_jax.core import validate


@dataclasses.dataclass(frozen=True)
class DDN(nearest.Nearest):
  """Looks for the closest image in L2 that the model gets wrong.

  Every step follows the gradient of the cross-entropy and puts the
  perturbation onto a sphere whose radius shrinks where the last iterate
  succeeded and grows where it did not. A call's targets are where it goes
  instead. Where the gradient is 0 the direction is Gaussian, from the image's
  key; else results do not depend on it.

  Attributes:
    eps: radius that the result is accepted within, at least 0, in the unit of
      the images; None for any.
    num_steps: gradients, at least 1.
    step_size: of the first step, per width of the bounds; it falls to 1% of
      that as a cosine.
    gamma: share by which the radius shrinks or grows, in [0, 1].
    init_radius: before the first step, per width of the bounds.
    keep: which images are returned where one was found within eps, and the
      clean image elsewhere: 'smallest', the closest of all steps; or 'first',
      the first found (iterating ends there).
    bounds: lowest and highest pixel value.
    unroll: None unrolls short loops on CPU.

  Raises:
    ValueError: for a setting out of range.

  References: Rony et al. 2019, arXiv:1811.09600, Algorithm 1; defaults and
    rules of foolbox 3.3.4 (`foolbox/attacks/ddn.py`), which are those of GitHub
    jeromerony/adversarial-library without its rounding to 256 levels.
  """
  eps: float | None = None
  num_steps: int = 100
  step_size: float = 1.
  gamma: float = 0.05
  init_radius: float = 1.
  keep: nearest.Keep = 'smallest'
  bounds: tuple[float, float] = (0., 1.)
  unroll: bool | None = None

  norm = 'L2'

  def __post_init__(self):
    validate.positive(init_radius=self.init_radius)
    self._check()
    attack.freeze(self, 'init_radius')

  def objective(self, logits: jax.Array,
                problem: attack.Problem) -> jax.Array:
    """Returns the cross-entropy, or minus that of the target, `[B]`."""
    return attack.loss_of(None, logits, problem, losses.targeted_cross_entropy)

  def first_radius(self, delta: jax.Array) -> jax.Array:
    """Returns the norm of the start, of the image itself `init_radius`."""
    norm = geometry.of(self.norm).size(delta)
    low, high = self.bounds
    return jnp.where(norm > 0, norm, self.init_radius * (high - low))

  def move(self, problem: attack.Problem, state: nearest.NearestState,
           hit: jax.Array, value: jax.Array, gradient: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Returns a step along the gradient, put onto the new sphere."""
    del value
    x, (low, high) = problem.x, self.bounds
    def draw():
      keys = jax.vmap(jax.random.fold_in)(problem.keys, state.iteration)
      return jax.vmap(
          lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    gradient = nearest.descend_or_draw(gradient, draw)
    step = (high - low) * self.annealed(state, self.step_size,
                                        self.step_size / 100)
    space = geometry.of(self.norm)
    delta = state.x - x + (geometry.per_example(step, x)
                           * space.direction(gradient, x, self.bounds))
    radius = jnp.minimum(
        state.radius * jnp.where(hit, 1 - self.gamma,
                                 1 + self.gamma).astype(x.dtype),
        self.reach(x))
    length = jnp.maximum(space.size(delta), geometry.TINY)
    return x + delta * geometry.per_example(radius / length, x), radius
