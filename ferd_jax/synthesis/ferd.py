"""FERD's generator phase: Fairness-Aware Examples from the teacher alone.

An epoch starts with a new generator, new latents and labels drawn from the
class probabilities, and takes N_G generator steps; the images of the best one
are the epoch's FAEs. It may have several such phases, and go on with the
generator of the one before.

References: FERD, arXiv:2509.20793; GitHub mayaobuduyao/FERD
  datafree/synthesis/IBD_module_cmi.py; the layout of an epoch is that of
  Fast-Datafree, arXiv:2112.06253.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax import attacks
from ferd_jax import losses
from ferd_jax.core import augment
from ferd_jax.core import collectives
from ferd_jax.core import validate
from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens
from ferd_jax.models import passes
from ferd_jax.synthesis import base
from ferd_jax.synthesis import batches
from ferd_jax.synthesis import bottleneck as bottlenecks
from ferd_jax.synthesis import trained_latents

# L_adv weights classes by the teacher's prediction at this temperature, which
# makes them nearly uniform (public code).
_ADV_TEMPERATURE = 100.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ferd(trained_latents.TrainedLatents):
  """FERD's synthesis; see `base.Synthesis`.

  Attributes:
    eps: radius of the attack on views, in [0, 1] pixels.
    steps: N_G, generator steps of a phase.
    batch_size: images of a phase, over all devices.
    rounds_per_epoch: phases of an epoch, each followed by its share of the
      student's steps; more of fewer steps make more images in the same time.
    new_generator: whether each phase begins with a new generator; else with
      that of the phase before, which needs fewer steps.
    w_bn: weight of L_bn, the gap to the teacher's BatchNorm statistics; a term
      of weight 0 is not computed.
    w_oh: weight of L_oh, the cross-entropy with the sampled label.
    w_adv: weight of L_adv, the disagreement of teacher and student.
    w_uni: weight of L_uni, a uniform prediction from non-robust features.
    warmup_adv: whether L_adv counts while the student is untrained.
    adv_agreed: whether L_adv counts only the images on which student and
      teacher predict the same, so that it drives no image further away.
    attacked_steps: of an attack on the teacher at the view, of whose images
      L_oh and L_uni are taken then, so that FAEs lie where the teacher is
      robust; 0: they are taken of the view itself.
    tap: stage of the teacher whose output L_uni splits; '' is the
      architecture's default.
    bottleneck: settings of the mask that L_uni uses.
  """
  eps: float
  steps: int = 200
  rounds_per_epoch: int = 1
  new_generator: bool = True
  nz: int = 100
  generator_lr: float = 2e-3
  latent_lr: float = 0.015
  w_bn: float = 5.
  w_oh: float = 1.
  w_adv: float = 1.
  w_uni: float = 5.
  warmup_adv: bool = True
  adv_agreed: bool = False
  attacked_steps: int = 0
  measured: str = 'last_view'
  tap: str = ''
  bottleneck: bottlenecks.Bottleneck = bottlenecks.Bottleneck()

  def __post_init__(self):
    validate.count(steps=self.steps, rounds_per_epoch=self.rounds_per_epoch)
    batches.check_shares(self.student_steps, self.rounds_per_epoch)
    super().__post_init__()
    validate.attack_steps(0, attacked_steps=self.attacked_steps)
    validate.non_negative(w_bn=self.w_bn, w_oh=self.w_oh, w_adv=self.w_adv,
                          w_uni=self.w_uni)
    if not (self.w_bn or self.w_oh or self.w_adv or self.w_uni):
      raise validate.SettingError(
          'w_bn', self.w_bn, 'or one of w_oh, w_adv, w_uni above 0.')
    if self.attacked_steps and not (self.w_oh or self.w_uni):
      raise validate.SettingError(
          'attacked_steps', self.attacked_steps, '0 without L_oh and L_uni '
          '(w_oh, w_uni), which alone are taken of attacked views.')
    batches.check_moments(self.w_bn, self.teacher, self.image_shape)
    if self.w_uni:
      self._check_tap()

  def _check_tap(self):
    """Raises SettingError if the teacher cannot be split at the tap."""
    stages = forward.stages(self.teacher)
    if not stages:
      raise validate.SettingError(
          'w_uni', self.w_uni, 'to be 0 for a teacher without stages, which '
          'cannot be split at a tap.')
    validate.one_of(stages[:-1], tap=self.tap_stage)
    image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    latent = jax.eval_shape(
        lambda variables, x: forward.logits(self.teacher, variables, x,
                                            stop=self.tap_stage),
        batches.shapes(self.teacher, self.image_shape), image)
    if len(latent.shape) != 4 or latent.shape[1] * latent.shape[2] < 2:
      raise validate.SettingError(
          'tap', self.tap_stage, 'to have more than one position, got the '
          f'shape {latent.shape[1:]}; choose an earlier stage of {stages}.')

  @property
  def rounds(self) -> base.Rounds:
    """Generator phases, whose images join the pool, and student phases."""
    return base.Rounds(
        self.steps, self.student_steps // self.rounds_per_epoch,
        per_epoch=self.rounds_per_epoch)

  @functools.cached_property  # It traces the teacher.
  def passes(self) -> passes.Passes:
    """One through the teacher, and for L_uni some more through its tail.

    With attacked views one more for each step, and one for what they become.
    """
    attacked = passes.Passes(1, 1) * (
        self.attacked_steps + bool(self.attacked_steps))
    if not self.w_uni:
      return attacked + passes.Passes(1, 1)
    tail = passes.tail_share(self.teacher, self.image_shape, self.tap_stage)
    again = passes.Passes(tail, tail) * (self.bottleneck.steps + 1)
    to_logits = bool(self.w_bn or self.w_oh or self.w_adv)
    return attacked + again + passes.Passes(1, 1 - tail + tail * to_logits)

  @property
  def tap_stage(self) -> str:
    """The stage at which L_uni splits the teacher."""
    return self.tap or forward.default_tap(self.teacher)

  def begin(self, kept: Any, probs: jax.Array, indices: jax.Array,
            key: jax.Array, *, axis_name: str | None = None
            ) -> trained_latents.SynthesisState:
    """Returns the state of a new phase: generator, latents and labels."""
    del axis_name
    generator_key, example_key = jax.random.split(key)
    examples = self.drawn(probs, indices, example_key)
    return self.begun(
        self.drawn_generator(examples, generator_key) if self.new_generator
        else kept, examples)

  def step(self, state: trained_latents.SynthesisState,
           frozen: frozens.Frozen, key: jax.Array, *,
           axis_name: str | None = None
           ) -> tuple[trained_latents.SynthesisState, dict[str, jax.Array]]:
    """Takes one step on the generator and the latents.

    Args:
      state: of the generator phase.
      frozen: teacher, student and epoch.
      key: typed PRNG key of this step.
      axis_name: mapped axis over which the examples are sharded.

    Returns:
      The new state and scalar metrics: the loss, its terms, the fraction of
      non-robust channels, and how often the teacher predicts the sampled
      label.
    """
    labels = state.examples.labels
    keys = collectives.example_keys(
        key, collectives.example_indices(labels.shape[0], axis_name))
    view_keys, mask_keys = (collectives.fold_in(keys, i) for i in range(2))

    def loss_fn(images, _):
      view = augment.random_crop_flip(view_keys, images, pad=self.pad,
                                      flip=self.flip)
      _, metrics = self.view_loss(view, labels, mask_keys, frozen,
                                  axis_name=axis_name)
      return trained_latents.Loss(view, metrics)

    found = self.descend(state, loss_fn, axis_name=axis_name)
    return state.replace(generator=found.generator,
                         examples=found.examples), found.metrics

  def view_loss(self, view: jax.Array, labels: jax.Array, keys: jax.Array,
                frozen: frozens.Frozen, *, axis_name: str | None = None
                ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the generator's loss on augmented images, and its terms.

    Args:
      view: images `[B, H, W, C]`.
      labels: int `[B]`, sampled.
      keys: typed PRNG keys `[B]`, for the bottleneck's noise.
      frozen: teacher, student and epoch.
      axis_name: mapped axis over which the examples are sharded.
    """
    teacher = frozen.teachers[frozens.ROBUST]
    logits, latents, moments = self._teacher_pass(teacher, view)
    metrics = {'agreement': _share(jnp.argmax(logits, axis=-1) == labels, view)}
    labelled = logits  # Those that are to show the label.
    if self.attacked_steps:
      labelled, latents, _ = self._teacher_pass(
          teacher, self._attacked(teacher, view, labels))
      metrics['withstood'] = _share(
          jnp.argmax(labelled, axis=-1) == labels, view)
    terms = {}
    if self.w_bn:
      running = teacher['batch_stats']
      terms['bn'] = sum(
          losses.moment_gap(found, running, axis_name=axis_name)
          for found in moments)
    if self.w_oh:
      terms['oh'] = jnp.mean(losses.cross_entropy(labelled, labels))
    if self.w_adv:
      student_logits = forward.logits(self.student, frozen.student, view)
      apart = losses.decoupled_kl_terms(
          logits, student_logits, jax.nn.softmax(logits / _ADV_TEMPERATURE),
          axis_name=axis_name)
      if self.adv_agreed:
        agreed = jnp.argmax(student_logits, axis=-1) == jnp.argmax(
            logits, axis=-1)
        metrics['adv_agreed'] = _share(agreed, view)
        apart = jnp.where(agreed, apart, 0)
      terms['adv'] = -jnp.mean(apart)
    if self.w_uni:
      terms['uni'], metrics['non_robust'] = self._uniformity(
          teacher, latents, labels, keys, axis_name)
    warming_up = frozen.epoch < self.warmup_epochs
    adv_scale = jnp.where(warming_up & (not self.warmup_adv), 0., 1.).astype(
        view.dtype)
    weights = {'bn': self.w_bn, 'oh': self.w_oh,
               'adv': self.w_adv * adv_scale, 'uni': self.w_uni}
    loss = sum(weights[name] * term for name, term in terms.items())
    return loss, metrics | terms | {'loss': loss}

  def _teacher_pass(self, teacher, images):
    """Returns logits, the tap's output if it is split, and all moments."""
    latents, moments, tail = images, [], {}
    if self.w_uni:
      tail = {'start': self.tap_stage}
      latents, found = forward.logits_and_moments(
          self.teacher, teacher, images, stop=self.tap_stage)
      moments.append(found)
    logits, found = forward.logits_and_moments(self.teacher, teacher, latents,
                                               **tail)
    return logits, latents, [*moments, found]

  def _attacked(self, teacher, view, labels):
    """Returns attacked views, which move as the views do."""
    def ascended(x):
      return losses.cross_entropy(
          forward.logits(self.teacher, teacher, x), labels), {}
    fixed = lax.stop_gradient(view)
    # Steps that reach the ball's corners, from the view itself.
    attacked, _ = attacks.ascend(
        ascended, fixed, fixed, eps=self.eps,
        step_size=self.eps / self.attacked_steps, num_steps=self.attacked_steps)
    return view + lax.stop_gradient(attacked - fixed)

  def _uniformity(self, teacher, latents, labels, keys, axis_name):
    """Returns L_uni and the fraction of non-robust channels."""
    def tail_fn(latents):
      return forward.logits(self.teacher, teacher, latents,
                            start=self.tap_stage)
    settings = self.bottleneck
    if self.tap_stage == forward.stages(self.teacher)[-2]:
      # The head alone is left, where nothing convolves: no need to unroll.
      settings = dataclasses.replace(settings, unroll=False)
    sigma = bottlenecks.noise_levels(tail_fn, latents, labels, keys, settings,
                                     axis_name=axis_name)
    mask = bottlenecks.non_robust_mask(
        sigma, bottlenecks.spatial_variance(latents), mask=settings.mask,
        axis_name=axis_name)
    uni = jnp.mean(losses.uniformity(tail_fn(latents * mask)))
    return uni, jnp.mean(mask)


def _share(flags, like):
  """Returns how many of the flags `[B]` are set, as `like` counts."""
  return jnp.mean(flags.astype(like.dtype))
