"""Logits of a batch, and PyTorch's words for what is made of them."""

import jax.numpy as jnp
import numpy as np

from ferd_jax.distillation import base

BATCH, CLASSES = 6, 4
LABELS = np.array([0, 2, 2, 1, 0, 2], np.int32)  # no image of class 3


def draw(seed, scale=2.):
  rng = np.random.default_rng(seed)
  return scale * rng.normal(size=(BATCH, CLASSES))


ROBUST, CLEAN, ROBUST_ADV, CLEAN_ADV, S_CLEAN, S_ADV = (
    draw(seed) for seed in range(6))


def outputs(needs=None, **changes):
  """Returns what a loss may read: of the teachers only what it needs."""
  needs = needs or base.Needs(t_clean=('robust', 'clean'),
                              t_adv=('robust', 'clean'))
  t_clean, t_adv = ({name: jnp.asarray(logits[name]) for name in names}
                    for logits, names in (
                        ({'robust': ROBUST, 'clean': CLEAN}, needs.t_clean),
                        ({'robust': ROBUST_ADV, 'clean': CLEAN_ADV},
                         needs.t_adv)))
  values = {
      'labels': jnp.asarray(LABELS), 't_clean': t_clean, 't_adv': t_adv,
      's_clean': jnp.asarray(S_CLEAN) if needs.s_clean else None,
      's_adv': jnp.asarray(S_ADV), 'noticed': {}, 'epoch': jnp.asarray(0)}
  return base.Outputs(**values | changes)


def sharded(given):
  """Returns outputs as two shards see them, for `vmap` over an axis."""
  def split(leaf):
    if not jnp.ndim(leaf):
      return jnp.broadcast_to(leaf, [2])
    return jnp.reshape(leaf, (2, len(leaf) // 2, *leaf.shape[1:]))
  return given.replace(**{
      name: None if value is None else (
          {key: split(leaf) for key, leaf in value.items()}
          if isinstance(value, dict) else split(value))
      for name, value in vars(given).items()})


def softmax(logits, temperature=1.):
  exp = np.exp(np.asarray(logits) / temperature)
  return exp / exp.sum(-1, keepdims=True)


def kl(target, logits, temperature=1.):
  """Returns KL(softmax(target / T) || softmax(logits / T)), `[B]`."""
  p, q = softmax(target, temperature), softmax(logits, temperature)
  return (p * np.log(p / q)).sum(-1)


def cross_entropy(logits, labels=LABELS):
  return -np.log(softmax(logits)[np.arange(len(labels)), labels])
