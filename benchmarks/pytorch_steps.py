"""The steps of ferd_jax in PyTorch, for benchmarks/steps.py to measure.

Written as one would write them for speed in eager PyTorch: networks that are
not trained get no weight gradients, one backward pass a step, fused
optimisers, no copies to the host. Images are `[B, C, H, W]`. Every step draws
its random numbers itself, or takes those of ferd_jax, to be compared with it.

Needs torch.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ferd_jax import attacks
from ferd_jax import torch_io
from ferd_jax import torch_networks
from ferd_jax import torch_twins
from ferd_jax.run import experiment as experiments

LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}


def tail(net: torch.nn.Module, stages: tuple[str, ...], tap: str,
         latents: torch.Tensor) -> torch.Tensor:
  """Returns the logits `[B, C]` of the output of stage `tap`."""
  for name in stages[stages.index(tap) + 1:-1]:
    latents = getattr(net, name)(latents)
  if isinstance(net, torch_networks.WideResNet) or hasattr(net, 'bn'):
    latents = F.relu(latents)  # before the head of pre-activation networks
  *_, linear = (m for m in net.modules() if isinstance(m, torch.nn.Linear))
  return linear(torch_networks.pooled(latents))


def crop_flip(images: torch.Tensor, rows: torch.Tensor,
              columns: torch.Tensor) -> torch.Tensor:
  """Returns images made of their own rows and columns, zero where outside.

  Args:
    images: `[B, C, H, W]`.
    rows, columns: int `[B, H]` and `[B, W]`, the sources; outside if below 0 or
      beyond the last.
  """
  _, channels, height, width = images.shape
  rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
  images = F.pad(images, (1, 1, 1, 1))
  images = images.gather(
      2, rows[:, None, :, None].expand(-1, channels, -1, width + 2))
  return images.gather(
      3, columns[:, None, None, :].expand(-1, channels, height, -1))


def uniformity(logits):
  return -math.log(logits.shape[1]) - F.log_softmax(logits, 1).mean(1)


def decoupled_kl(target, logits, weights, norm='weights'):
  """Returns wMSE + soft cross-entropy; only the wMSE moves the target."""
  diff, total = target - logits, weights.sum(1)
  mean = (weights * diff).sum(1) / total
  spread = (weights * (diff - mean[:, None]).square()).sum(1)
  wmse = (0.5 * total * spread).mean()
  if norm == 'weights':
    wmse = wmse / total.square().mean()
  return wmse + F.cross_entropy(logits, target.detach().softmax(1))


class Steps:
  """The networks, optimisers and steps of an experiment.

  All four terms of the generator's loss are computed, whatever their weights.
  """

  def __init__(self, experiment: experiments.Experiment,
               generator: Mapping[str, Any], latents: np.ndarray,
               student: Mapping[str, Any], device: str, layout: str):
    """Builds everything.

    Args:
      experiment: with FERD's synthesis, inner attack and outer loss.
      generator: Flax variables.
      latents: `[B, nz]`.
      student: Flax variables.
      device: 'cpu' or 'cuda'.
      layout: of images and kernels, 'nchw' or 'nhwc' (channels_last).
    """
    self.method, self.device = experiment.method, device
    self.autocast = functools.partial(
        torch.autocast, device, torch.bfloat16,
        experiment.config.precision == 'bfloat16')
    self.format = LAYOUTS[layout]
    settings = self.method.synthesis
    self.generator = self._network(settings.generator_module,
                                   generator).train()
    self.teacher = self._network(settings.teacher,
                                 experiment.teacher.variables)
    self.student = self._network(settings.student, student)
    self.teacher.eval().requires_grad_(False)
    self._gaps = None
    for module in self.teacher.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.register_forward_pre_hook(self._watch)
    self.latents = self.tensor(latents).requires_grad_()
    self.adam = torch.optim.Adam(
        [{'params': list(self.generator.parameters()),
          'lr': settings.generator_lr},
         {'params': [self.latents], 'lr': settings.latent_lr}],
        betas=(0.5, 0.999), fused=True)
    self.best_loss = torch.tensor(torch.inf, device=device)
    self.best_images = None
    options = experiment.config.distill
    self.sgd = torch.optim.SGD(
        self.student.parameters(), lr=options.learning_rate,
        momentum=options.momentum, weight_decay=options.weight_decay,
        fused=True)
    num_classes = self.method.num_classes
    shape = (num_classes, num_classes)
    self.prior = torch.full(shape, 1 / num_classes, device=device)
    self.prior_sums = torch.zeros(shape, device=device)

  def _network(self, model, variables):
    channels = self.method.image_shape[-1]
    net = torch_twins.twin(model, channels, self.method.synthesis.nz)
    state_dict = torch_io.state_dict_from_variables(model, variables)
    net.load_state_dict({name: torch.tensor(value)
                         for name, value in state_dict.items()})
    return net.to(self.device, memory_format=self.format)

  def tensor(self, array: Any) -> torch.Tensor:
    """Returns an array on the device; images `[B, H, W, C]` transposed."""
    array = torch.tensor(np.asarray(array))
    if array.ndim == 4:
      array = array.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
    return array.to(self.device)

  def compile(self) -> None:
    """Has torch.compile compile the networks at their next calls."""
    for network in (self.generator, self.teacher, self.student):
      network.compile()

  def synchronize(self) -> None:
    if self.device == 'cuda':
      torch.cuda.synchronize()

  def _watch(self, module, inputs):
    """Adds a layer's distance of moments to those of the pass, if watched."""
    if self._gaps is not None:
      var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
      self._gaps.append(torch.linalg.vector_norm(module.running_var - var)
                        + torch.linalg.vector_norm(module.running_mean - mean))

  def _sources(self, images, settings):
    """Draws the rows `[B, H]` and columns `[B, W]` of an augmentation."""
    size, _, height, width = images.shape
    offsets = torch.randint(-settings.pad, settings.pad + 1, (2, size, 1),
                            device=self.device)
    rows = offsets[0] + torch.arange(height, device=self.device)
    columns = offsets[1] + torch.arange(width, device=self.device)
    if settings.flip:
      mirror = torch.rand(size, 1, device=self.device) < 0.5
      columns = torch.where(mirror, columns.flip(1), columns)
    return rows, columns

  def generator_step(self, labels: torch.Tensor,
                     sources: tuple[torch.Tensor, torch.Tensor] | None = None,
                     noise: Iterable[torch.Tensor] | None = None
                     ) -> dict[str, torch.Tensor]:
    """Takes one step on generator and latents, and returns the loss terms.

    Args:
      labels: int64 `[B]`.
      sources: rows and columns of the view; None to draw them.
      noise: `[B, C_l]` for every step of the bottleneck; None to draw it.
    """
    settings = self.method.synthesis
    self.student.eval()
    images = self.generator(self.latents)
    rows, columns = sources or self._sources(images, settings)
    view = crop_flip(images, rows, columns).contiguous(
        memory_format=self.format)

    self._gaps = []
    for name, latents in self.teacher.stages(view):
      if name == settings.tap_stage:
        tapped = latents
    logits = latents
    terms = {'bn': sum(self._gaps)}
    self._gaps = None
    terms['oh'] = F.cross_entropy(logits, labels)
    terms['adv'] = -decoupled_kl(
        logits, self.student(view), (logits / 100).softmax(1))
    mask = self._mask(tapped.detach(), labels, noise)
    terms['uni'] = uniformity(self._tail(tapped * mask)).mean()
    loss = sum(getattr(settings, f'w_{name}') * term
               for name, term in terms.items())

    self.adam.zero_grad()
    loss.backward(inputs=[p for group in self.adam.param_groups
                          for p in group['params']])
    self.adam.step()
    loss, images = loss.detach(), images.detach()
    if self.best_images is None:
      self.best_images = images
    better = loss < self.best_loss
    self.best_images = torch.where(better, images, self.best_images)
    self.best_loss = torch.where(better, loss, self.best_loss)
    return {'loss': loss, 'non_robust': mask.mean()} | terms

  def _tail(self, latents):
    settings = self.method.synthesis
    return tail(self.teacher, settings.teacher.stages, settings.tap_stage,
                latents)

  def _mask(self, latents, labels, noise):
    """Returns the non-robust mask `[B, C_l, 1, 1]`."""
    variance = latents.var((2, 3))
    threshold = (variance.max()
                 if self.method.synthesis.bottleneck.mask == 'global' else
                 variance.amax(1, keepdim=True))
    sigma = self.noise_levels(latents, labels, noise)
    robust = sigma.square() > threshold
    return (~robust).to(latents.dtype)[:, :, None, None]

  def noise_levels(self, latents: torch.Tensor, labels: torch.Tensor,
                   noise: Iterable[torch.Tensor] | None = None
                   ) -> torch.Tensor:
    """Returns the bottleneck's standard deviations `[B, C_l]`.

    Args:
      latents: `[B, C_l, h, w]`, without gradient.
      labels: int64 `[B]`.
      noise: `[B, C_l]` for every step; None to draw it.
    """
    settings = self.method.synthesis.bottleneck
    variance = latents.var((2, 3))
    levels = torch.zeros_like(variance, requires_grad=True)
    adam = torch.optim.Adam([levels], lr=settings.learning_rate, fused=True)
    noise = iter(noise) if noise is not None else None
    for _ in range(settings.steps):
      sigma = F.softplus(levels)
      sample = torch.randn_like(sigma) if noise is None else next(noise)
      noisy = latents + (sigma * sample)[:, :, None, None]
      square = sigma.square() + 1e-10
      penalty = variance / square + (square / (variance + 1e-10)).log() - 1
      information = (0.5 * penalty.mean() if settings.kl == 'mean' else
                     penalty.sum(1).mean())
      loss = F.cross_entropy(self._tail(noisy), labels)
      loss = loss + settings.beta * information
      levels.grad, = torch.autograd.grad(loss, levels)
      adam.step()
    return F.softplus(levels.detach())

  def student_step(self, images: torch.Tensor, labels: torch.Tensor,
                   sources: tuple[torch.Tensor, torch.Tensor] | None = None,
                   noise: torch.Tensor | None = None
                   ) -> dict[str, torch.Tensor]:
    """Takes one step on the student, and returns the loss terms.

    Args:
      images: `[B, C, H, W]`.
      labels: int64 `[B]`.
      sources: rows and columns of the augmentation; None to draw them.
      noise: standard normal, of the shape of `images`, which the attack starts
        from; None to draw it.
    """
    settings = self.method.distillation
    inner, outer = settings.inner, settings.outer
    attack = attacks.UTAE(inner.eps, inner.step_size, inner.steps,
                          gamma=inner.gamma)
    rows, columns = sources or self._sources(images, settings)
    images = crop_flip(images, rows, columns).contiguous(
        memory_format=self.format)
    with torch.no_grad():
      target = self.teacher(images)
    logits = self.student.train()(images)

    attacked = self.student.eval()
    if inner.source == 'teacher':
      attacked = self.teacher
    probs = target.softmax(1)

    def objective(logits):
      log_probs = F.log_softmax(logits, 1)
      # KL(P_T || P) without the entropy of P_T, and KL(U || P) likewise.
      return (attack.gamma * log_probs.mean(1).sum()
              - (probs * log_probs).sum())
    if noise is None:
      noise = torch.randn_like(images)
    adversarial = self._ascend(
        lambda x: objective(attacked(x)), images + attack.noise * noise, images,
        attack)
    adv_logits = self.student.train()(adversarial)

    weights = {
        'one_hot': lambda: F.one_hot(labels, target.shape[1]).to(target.dtype),
        'sample': lambda: (target / 100).softmax(1),
        'class_mean': lambda: self.prior[labels] ** outer.power,
    }[outer.prior]()
    clean, adv = (decoupled_kl(target, outputs, weights, outer.norm)
                  for outputs in (logits, adv_logits))
    loss = outer.w_clean * clean + outer.w_adv * adv
    self.sgd.zero_grad()
    loss.backward()
    self.sgd.step()
    self.prior_sums.index_add_(0, labels, probs)
    return {'loss': loss.detach(), 'clean_loss': clean.detach(),
            'adv_loss': adv.detach()}

  def _ascend(self, objective, adversarial, images, attack):
    """Returns `adversarial` after the attack's steps of projected ascent."""
    low = (images - attack.eps).clamp(*attack.bounds)
    high = (images + attack.eps).clamp(*attack.bounds)
    for _ in range(attack.num_steps):
      adversarial.requires_grad_()
      gradient, = torch.autograd.grad(objective(adversarial), adversarial)
      adversarial = adversarial.detach().add_(
          gradient.sign_(), alpha=attack.step_size)
      adversarial = torch.clamp(adversarial, low, high)
    return adversarial

  def evaluate(self, images: torch.Tensor, labels: torch.Tensor, attack: Any,
               start: torch.Tensor | None = None
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the correct images per class `[C]`, and the attacked images.

    Args:
      images: `[B, C, H, W]`.
      labels: int64 `[B]`.
      attack: PGD on the student's cross-entropy, a `ferd_jax.attacks.PGD`.
      start: where it starts; None to draw a uniform start.
    """
    self.student.eval()
    if start is None:
      start = images + torch.empty_like(images).uniform_(-attack.eps,
                                                         attack.eps)
      start = start.clamp_(*attack.bounds)
    adversarial = self._ascend(
        lambda x: F.cross_entropy(self.student(x), labels, reduction='sum'),
        start, images, attack)
    with torch.no_grad():
      hits = self.student(adversarial).argmax(1) == labels
    return torch.bincount(labels[hits],
                          minlength=self.method.num_classes), adversarial
