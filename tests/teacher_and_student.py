"""A small teacher and student, images and labels, for tests of syntheses."""

import functools

import as_if_trained
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from ferd_jax.models import forward
from ferd_jax.models import frozen as frozens

CLASSES, BATCH, SHAPE = 3, 4, (8, 8, 1)
MODEL = tiny.TwoLayers(CLASSES)
LABELS = np.array([0, 2, 1, 2])
# What the run gives a part.
GIVEN = dict(
    teacher=MODEL, student=MODEL, image_shape=SHAPE, num_classes=CLASSES, pad=2,
    flip=True, warmup_epochs=2, num_epochs=10, student_steps=6,
    batch_size=BATCH, width=4, nz=5)
# Compiling for speed takes longer than these tests run.
jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def make(part, **settings):
  """Returns a part of small size, with what it asks the run for."""
  known = part.__dataclass_fields__
  given = {name: value for name, value in GIVEN.items() if name in known}
  return part(**given | settings)


def networks(epoch=5):
  """Returns both networks, as if trained; float64 where x64 is enabled.

  The student is near enough to the teacher to agree with it now and then.
  """
  teacher, other = (as_if_trained.random_variables(MODEL, SHAPE, seed)
                    for seed in range(2))
  return frozens.Frozen(
      teachers={frozens.ROBUST: teacher},
      student=jax.tree.map(lambda t, s: 0.75 * t + 0.25 * s, teacher, other),
      epoch=jnp.asarray(epoch))


def teacher_of(frozen):
  return frozen.teachers[frozens.ROBUST]


def images(seed=3, number=BATCH):
  return np.random.default_rng(seed).uniform(size=(number, *SHAPE))


def keys(seed=0):
  return jax.random.split(jax.random.key(seed), BATCH)


@jit
def logits(frozen, x):
  """Returns the logits of teacher and student, and the teacher's moments."""
  teacher, moments = forward.logits_and_moments(MODEL, teacher_of(frozen), x)
  return teacher, forward.logits(MODEL, frozen.student, x), moments


def softmax(x):
  exp = np.exp(x - np.max(x, -1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def kl(target, logits):
  """Returns KL(softmax(target) || softmax(logits)) of each row."""
  p, q = softmax(np.array(target)), softmax(np.array(logits))
  return (p * (np.log(p) - np.log(q))).sum(-1)


def entropy_of_labels(logits, labels):
  """Returns the mean cross-entropy with labels."""
  return -np.log(softmax(np.array(logits))[np.arange(len(labels)),
                                           labels]).mean()


def gap(moments, running):
  """Returns L_bn in NumPy."""
  return sum(
      np.linalg.norm(running[layer][name] - moments[layer][name])
      for layer in moments for name in ('mean', 'var'))


def balance(logits):
  mean = softmax(np.array(logits)).mean(0)
  return (mean * np.log(mean)).sum()
