"""DFHL-RS: images that the student, not the teacher, takes for their labels.

The teacher is not asked: it may be a black box that returns labels.

References: Yuan et al. 2024, arXiv:2312.05924; GitHub
  LetheSec/DFHL-RS-Attack.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import generator_losses
from ferd_jax.synthesis import trained_latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class DfhlRs(trained_latents.TrainedLatents):
  """DFHL-RS's synthesis, with the constants of its code for CIFAR-10.

  Attributes:
    generator_steps: of a phase.
    generator_lr: Adam's learning rate for the generator, which is never reset;
      its optimiser is, every phase.
    latent_lr: Adam's learning rate for the latents.
    w_oh: weight of the mean KL(smoothed label || student).
    w_balance: weight of the negative entropy, in decimal logarithms, of the
      student's mean prediction.
    smoothing: of the labels: the probability of all other classes; 0.02 for
      100 classes.
  """
  generator_steps: int = 10
  generator_lr: float = 2e-3
  latent_lr: float = 0.01
  w_oh: float = 1.
  w_balance: float = 3.
  smoothing: float = 0.2

  passes = passes.Passes()  # The student is asked, not the teacher.

  def __post_init__(self):
    super().__post_init__()
    validate.count(generator_steps=self.generator_steps)
    validate.non_negative(w_oh=self.w_oh, w_balance=self.w_balance)
    if not (self.w_oh or self.w_balance):
      raise validate.SettingError('w_oh', self.w_oh, 'or w_balance above 0.')
    validate.in_range(0, 1, smoothing=self.smoothing)

  @property
  def rounds(self) -> base.Rounds:
    """One phase, whose images join the pool, and the student's steps."""
    return base.Rounds(self.generator_steps, self.student_steps)

  def begin(self, kept: Any, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None
            ) -> trained_latents.SynthesisState:
    """Returns the state of a phase: the generator as it is, new latents."""
    del axis_name
    return self.begun(kept, self.drawn(probs, indices, key))

  def step(self, state: trained_latents.SynthesisState,
           frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None
           ) -> tuple[trained_latents.SynthesisState, dict[str, jax.Array]]:
    """Takes a step on generator and latents; see `base.Synthesis`."""
    labels = state.examples.labels
    keys = collectives.example_keys(
        key, collectives.example_indices(len(labels), axis_name))

    def loss_fn(images, _):
      view = augment.random_crop_flip(keys, images, pad=self.pad,
                                      flip=self.flip)
      logits = forward.logits(self.student, frozen.student, view)
      agree = jnp.argmax(logits, axis=-1) == labels
      oh = generator_losses.smoothed_label_kl(logits, labels, self.smoothing)
      balance = generator_losses.balance(logits, base=10, axis_name=axis_name)
      return trained_latents.Loss(view, {
          'student_agreement': jnp.mean(agree.astype(images.dtype)),
          'oh': oh, 'balance': balance,
          'loss': self.w_oh * oh + self.w_balance * balance})
    found = self.descend(state, loss_fn, axis_name=axis_name)
    return state.replace(generator=found.generator,
                         examples=found.examples), found.metrics
