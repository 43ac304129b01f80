"""LeNet-5, a network from outside of the package, and the same in PyTorch."""

from flax import linen as nn
import numpy as np
import pytest

from ferd_jax import models
from ferd_jax import torch_io
from ferd_jax.models import registry

SHAPE = (28, 28, 1)
LAYOUT = torch_io.Layout('tests/lenet.py, torch_lenet5', (
    (r'^conv1$', 'features.0'), (r'^conv2$', 'features.3'),
    (r'^fc1$', 'classifier.0'), (r'^fc2$', 'classifier.2'),
    (r'^fc3$', 'classifier.4')))


class LeNet5(models.StagedModel):
  """In stages, without BatchNorm; `width` is that of the first layer."""
  width: int = 6

  @property
  def stages(self):
    return ('conv1', 'conv2', 'fc1', 'fc2', 'fc3')

  @property
  def default_tap(self):
    return 'conv2'

  def run_stage(self, stage, x, train):
    match stage:
      case 'conv1':
        x = nn.Conv(self.width, (5, 5), padding=2, name=stage)(x)
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))
      case 'conv2':
        x = nn.Conv(16, (5, 5), padding=0, name=stage)(x)
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))
      case 'fc1':
        # PyTorch's channels come first.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return nn.relu(nn.Dense(120, name=stage)(x))
      case 'fc2':
        return nn.relu(nn.Dense(84, name=stage)(x))
    return nn.Dense(self.num_classes, name=stage)(x)


def torch_lenet5(num_classes=10):
  """Returns the PyTorch module whose names `LAYOUT` has, in evaluation mode."""
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  nn = torch.nn
  net = nn.Module()
  net.features = nn.Sequential(
      nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
      nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
  net.classifier = nn.Sequential(
      nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
      nn.Linear(84, num_classes))
  net.forward = lambda x: net.classifier(net.features(x).flatten(1))
  return net.eval()


def arrays(net):
  return {key: value.numpy().copy() for key, value in net.state_dict().items()}


def images(count=2, shape=SHAPE, seed=0):
  return np.random.default_rng(seed).uniform(
      size=(count, *shape)).astype(np.float32)


def torch_logits(net, x):
  import torch
  with torch.no_grad():
    return net(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()


def forget(monkeypatch):
  """Lets a test register networks that the next one does not know."""
  monkeypatch.setattr(registry, '_entries', {})
  monkeypatch.setattr(registry, '_layouts', {})


def register(monkeypatch):
  """Registers it as 'lenet5' for a test."""
  forget(monkeypatch)
  models.register('lenet5', LeNet5, options=('width', 'mean', 'std'),
                  layout=LAYOUT)
