"""Trains the robust teachers shipped in ferd_jax/assets, in PyTorch.

A developer script: it needs PyTorch, which no user of ferd_jax needs. It
trains a small CIFAR-style ResNet by PGD adversarial training (Madry et al.
2018, arXiv:1706.06083), on clean and attacked images half and half, and writes
its state dict, under the key names of GitHub akamaster/pytorch_resnet_cifar10,
as safetensors:

  python benchmarks/train_teacher.py digits
  python benchmarks/train_teacher.py fashion_mnist --data_dir=DIR

The Fashion-MNIST teacher never sees the last 5,000 training images: they are
the validation set on which distillation is tuned.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from ferd_jax import data
from ferd_jax import torch_networks

ASSETS = pathlib.Path(__file__).parents[1] / 'ferd_jax' / 'assets'


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that defines a teacher; eps in the unit of the pixels."""
  dataset: str
  train_split: str
  eps: float
  epochs: int
  depth: int = 8
  width: int = 16
  batch_size: int = 128
  learning_rate: float = 0.1
  weight_decay: float = 5e-4
  attack_steps: int = 7
  max_shift: int = 1
  flip: bool = False
  seed: int = 0


RECIPES = {
    'digits': Recipe('digits', 'train', eps=0.1, epochs=60, batch_size=64,
                     learning_rate=0.05),
    'fashion_mnist': Recipe('fashion_mnist', 'train[:55000]', eps=0.1,
                            epochs=7, attack_steps=4, flip=True),
}


def pgd(model, x, y, eps, step_size, num_steps):
  """Returns x attacked by PGD on the cross-entropy from a uniform start."""
  x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
  for _ in range(num_steps):
    x_adv.requires_grad_()
    loss = F.cross_entropy(model(x_adv), y, reduction='sum')
    grad, = torch.autograd.grad(loss, x_adv)
    x_adv = x_adv.detach() + step_size * grad.sign()
    x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
  return x_adv.detach()


def shift_and_flip(x, max_shift, flip):
  """Returns x shifted by up to max_shift pixels per image, half mirrored."""
  batch, _, height, width = x.shape
  padded = F.pad(x, (max_shift,) * 4)
  offsets = torch.randint(0, 2 * max_shift + 1, (batch, 2))
  rows = offsets[:, :1] + torch.arange(height)
  columns = offsets[:, 1:] + torch.arange(width)
  if flip:
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns,
                          columns.flip(1))
  index = torch.arange(batch)[:, None, None]
  return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(
      0, 3, 1, 2)


def accuracy_per_class(model, x, y, eps, num_classes):
  """Returns per-class (clean, PGD-20) accuracy, two arrays [num_classes]."""
  model.eval()
  correct = torch.zeros(2, num_classes)
  for i in range(0, len(x), 500):
    x_b, y_b = x[i:i + 500], y[i:i + 500]
    for row, images in enumerate((x_b, pgd(model, x_b, y_b, eps, eps / 4, 20))):
      with torch.no_grad():
        hit = model(images).argmax(1) == y_b
      correct[row] += torch.bincount(y_b[hit], minlength=num_classes)
  return (correct / torch.bincount(y, minlength=num_classes)).numpy()


def tensors(dataset, split, data_dir):
  """Returns images float32 [N, C, H, W] in [0, 1] and labels int64 [N]."""
  examples = data.load(dataset, split, data_dir=data_dir)
  images = np.transpose(examples.images, (0, 3, 1, 2)).astype(np.float32)
  return torch.from_numpy(images / 255), torch.from_numpy(
      examples.labels.astype(np.int64))


def train(recipe, data_dir):
  """Returns the trained model and a dict of its test accuracies."""
  torch.manual_seed(recipe.seed)
  x, y = tensors(recipe.dataset, recipe.train_split, data_dir)
  num_classes = int(y.max()) + 1
  model = torch_networks.CifarResNet(recipe.depth, recipe.width, num_classes,
                                  'pad_both', 'akamaster', x.shape[1])
  model = model.to(memory_format=torch.channels_last)  # twice as fast on CPU
  optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate,
                              momentum=0.9, weight_decay=recipe.weight_decay)
  steps = len(x) // recipe.batch_size
  schedule = torch.optim.lr_scheduler.OneCycleLR(
      optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)
  for epoch in range(recipe.epochs):
    start, total = time.time(), 0.0
    order = torch.randperm(len(x))
    for i in range(steps):
      index = order[i * recipe.batch_size:(i + 1) * recipe.batch_size]
      x_b, y_b = x[index], y[index]
      x_b = shift_and_flip(x_b, recipe.max_shift, recipe.flip)
      x_b = x_b.contiguous(memory_format=torch.channels_last)
      model.eval()
      x_adv = pgd(model, x_b, y_b, recipe.eps,
                  2.5 * recipe.eps / recipe.attack_steps, recipe.attack_steps)
      model.train()
      optimizer.zero_grad()
      # Clean images too, in one batch: BatchNorm's statistics, from which
      # distillation synthesises, are then not those of attacked images alone.
      loss = F.cross_entropy(model(torch.cat([x_b, x_adv])),
                             torch.cat([y_b, y_b]))
      loss.backward()
      optimizer.step()
      schedule.step()
      total += loss.item()
    print(f'epoch {epoch + 1}/{recipe.epochs}: adversarial loss '
          f'{total / steps:.4f}, {time.time() - start:.0f} s', flush=True)
  x, y = tensors(recipe.dataset, 'test', data_dir)
  clean, adversarial = accuracy_per_class(model, x, y, recipe.eps, num_classes)
  report = {
      'recipe': dataclasses.asdict(recipe), 'torch': torch.__version__,
      'test': {'clean': float(clean.mean()), 'pgd20': float(adversarial.mean()),
               'clean_worst': float(clean.min()),
               'pgd20_worst': float(adversarial.min()),
               'pgd20_nsd': float(adversarial.std() / adversarial.mean()),
               'pgd20_per_class': [float(a) for a in adversarial]}}
  return model, report


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('recipe', choices=RECIPES)
  parser.add_argument('--data_dir', help='TFDS directory')
  parser.add_argument('--output_dir', type=pathlib.Path, default=ASSETS)
  args = parser.parse_args()
  recipe = RECIPES[args.recipe]
  model, report = train(recipe, args.data_dir)
  name = f'{recipe.dataset}_resnet{recipe.depth}_adv'
  safetensors.torch.save_file(
      {k: v.contiguous() for k, v in model.state_dict().items()},
      args.output_dir / f'{name}.safetensors')
  (args.output_dir / f'{name}.json').write_text(
      json.dumps(report, indent=2) + '\n')
  print(json.dumps(report['test'], indent=2))


if __name__ == '__main__':
  main()
