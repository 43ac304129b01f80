"""XCiT, a vision transformer whose attention is between channels.

The tokens are kept as images [B, H, W, C] between the stages.
"""

import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ferd_jax.models import layers
from ferd_jax.models import staged

# Channels of a token and heads, by the letter in a name.
SIZES = {'t': (192, 4), 's': (384, 8), 'm': (512, 8), 'l': (768, 16)}
PATCHES = (1, 2, 4, 8, 16)  # pixels of a token's side
_CHANNELS = 8  # of a token, for each of the first convolution
_CONVOLUTIONS = 4  # before the first block
_FREQUENCIES = 32  # of the positions, along each axis
_CLASS_BLOCKS = 2

_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


def _gelu(x):
  return nn.gelu(x, approximate=False)


def _dense(features, name, dtype=None):
  return layers.Dense(features, _normal, _zeros, dtype, name=name)


class PatchEmbed(nn.Module):
  """Four 3x3 convolutions with BatchNorm, of which some have stride 2.

  Attributes:
    features: channels of the last, of which those before have half each.
    patch: pixels of a token's side, a power of two: the last log2 convolutions
      have stride 2.
    axis_name: axis over which BatchNorm synchronises.
    dtype: in which it computes, see `layers`.
  """
  features: int
  patch: int
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to tokens [B, ceil(H/p), ceil(W/p), features]."""
    halved = int(math.log2(self.patch))
    for i in range(_CONVOLUTIONS):
      left = _CONVOLUTIONS - 1 - i
      x = layers.Conv(self.features // 2 ** left, 3,
                      2 if left < halved else 1, dtype=self.dtype,
                      name=f'proj_{2 * i}_0')(x)
      x = layers.BatchNorm(self.axis_name, dtype=self.dtype,
                           name=f'proj_{2 * i}_1')(x, train=train)
      x = _gelu(x) if left else x
    return x


class Positions(nn.Module):
  """What is added to a token for where it is: projected sines and cosines.

  Attributes:
    features: channels of a token.
  """
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [1, H, W, features] for tokens [B, H, W, C]."""
    height, width = x.shape[1:3]
    waves = np.zeros((1, height, width, 2, _FREQUENCIES))
    scale = 10000 ** (2 * (np.arange(_FREQUENCIES) // 2) / _FREQUENCIES)
    for axis, count in enumerate((height, width)):
      places = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
      angles = places.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)) / scale
      waves[0, :, :, axis, 0::2] = np.sin(angles[..., 0::2])
      waves[0, :, :, axis, 1::2] = np.cos(angles[..., 1::2])
    tokens = jnp.asarray(waves.reshape(1, height, width, -1),
                         layers.param_dtype(x))
    return layers.Conv(self.features, 1, use_bias=True,
                       name='token_projection')(tokens)


class ChannelAttention(nn.Module):
  """Cross-covariance attention: of channels, over all tokens.

  Attributes:
    heads: that the channels are divided among.
    dtype: in which it computes, see `layers`.
  """
  heads: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float tokens [B, N, C] to the same shape."""
    batch, number, channels = x.shape
    wide = layers.param_dtype(x)
    temperature = self.param('temperature', nn.initializers.ones,
                             (self.heads, 1, 1), wide)
    qkv = _dense(3 * channels, 'qkv', self.dtype)(x).reshape(
        batch, number, 3, self.heads, channels // self.heads)
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum('bnhc,bnhd->bhcd', _unit(query), _unit(key))
    weights = nn.softmax(scores.astype(wide) * temperature[None], axis=-1)
    x = jnp.einsum('bhcd,bnhd->bnhc', weights.astype(value.dtype), value)
    return _dense(channels, 'proj', self.dtype)(
        x.reshape(batch, number, channels))


def _unit(x):
  """Returns [B, N, ...] of norm 1 over the tokens."""
  wide = x.astype(layers.param_dtype(x))
  total = jnp.sum(jnp.square(wide), axis=1, keepdims=True)
  return (wide * lax.rsqrt(jnp.maximum(total, 1e-24))).astype(x.dtype)


class ClassAttention(nn.Module):
  """Attention of the class token, the first one, to all.

  Attributes:
    heads: that the channels are divided among.
    dtype: in which it computes, see `layers`.
  """
  heads: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float tokens [B, N, C] to one, [B, 1, C]."""
    batch, _, channels = x.shape
    def project(tokens, name):
      return _dense(channels, name, self.dtype)(tokens).reshape(
          batch, -1, self.heads, channels // self.heads)
    query, key, value = (
        project(x[:, :1], 'q'), project(x, 'k'), project(x, 'v'))
    scores = jnp.einsum('bqhc,bnhc->bhqn', query, key)
    weights = nn.softmax(scores.astype(layers.param_dtype(x))
                         * (channels // self.heads) ** -0.5, axis=-1)
    x = jnp.einsum('bhqn,bnhc->bqhc', weights.astype(value.dtype), value)
    return _dense(channels, 'proj', self.dtype)(x.reshape(batch, 1, channels))


class Mlp(nn.Module):
  """Two layers, the first four times as wide.

  Attributes:
    dtype: in which they compute, see `layers`.
  """
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float tokens [B, N, C] to the same shape."""
    channels = x.shape[-1]
    hidden = _gelu(_dense(4 * channels, 'fc1', self.dtype)(x))
    return _dense(channels, 'fc2', self.dtype)(hidden)


class LocalPatches(nn.Module):
  """Two depthwise convolutions between neighbouring tokens.

  Attributes:
    axis_name: axis over which BatchNorm synchronises.
    dtype: in which they compute, see `layers`.
  """
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to the same shape."""
    def conv(name):
      return layers.DepthwiseConv(use_bias=True, dtype=self.dtype, name=name)
    x = layers.BatchNorm(self.axis_name, dtype=self.dtype, name='bn')(
        _gelu(conv('conv1')(x)), train=train)
    return conv('conv2')(x)


class Block(nn.Module):
  """Attention between channels, between neighbours, and within tokens.

  Attributes:
    heads: of the attention.
    axis_name: axis over which BatchNorm synchronises.
    dtype: in which it computes, see `layers`.
  """
  heads: int
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps float [B, H, W, C] to the same shape."""
    shape, dtype = x.shape, self.dtype
    flat = (shape[0], shape[1] * shape[2], shape[3])
    hidden = layers.LayerNorm(dtype=dtype, name='norm1')(x).reshape(flat)
    hidden = ChannelAttention(self.heads, dtype, name='attn')(hidden)
    x = x + _scaled(self, 'gamma1', hidden.reshape(shape))
    hidden = layers.LayerNorm(dtype=dtype, name='norm3')(x)
    hidden = LocalPatches(self.axis_name, dtype, name='local_mp')(
        hidden, train=train)
    x = x + _scaled(self, 'gamma3', hidden)
    hidden = Mlp(dtype, name='mlp')(
        layers.LayerNorm(dtype=dtype, name='norm2')(x))
    return x + _scaled(self, 'gamma2', hidden)


class ClassBlock(nn.Module):
  """Attention of the class token; all tokens are normalised twice.

  Attributes:
    heads: of the attention.
    dtype: in which it computes, see `layers`.
  """
  heads: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float tokens [B, 1 + N, C] to the same shape."""
    dtype = self.dtype
    hidden = layers.LayerNorm(dtype=dtype, name='norm1')(x)
    attended = ClassAttention(self.heads, dtype, name='attn')(hidden)
    hidden = jnp.concatenate([attended, hidden[:, 1:]], axis=1)
    x = x + _scaled(self, 'gamma1', hidden)
    x = layers.LayerNorm(dtype=dtype, name='norm2')(x)
    changed = _scaled(self, 'gamma2', Mlp(dtype, name='mlp')(x[:, :1]))
    # The other tokens are added to themselves, as in the code of the paper.
    return x + jnp.concatenate([changed, x[:, 1:]], axis=1)


def _scaled(module, name, x):
  """Returns x times a parameter of the module's, one for each channel."""
  scale = module.param(name, nn.initializers.ones, x.shape[-1:],
                       layers.param_dtype(x))
  return x * layers.per_channel(scale, x.ndim).astype(x.dtype)


class Xcit(staged.StagedModel):
  """XCiT with normalised tokens, LayerNorm, exact GELU, and no dropout.

  Attributes:
    depth: blocks before those of the class token.
    heads: of every attention.
    width: channels of the first convolution; a token has 8 times as many, a
      multiple of the heads.
    patch: one of `PATCHES`, which no key of a file reveals: 4 for CIFAR, 16 for
      images of 224 pixels.

  References: El-Nouby et al. 2021, arXiv:2106.09681; huggingface/
    pytorch-image-models, timm/models/xcit.py; Debenedetti et al. 2022,
    arXiv:2209.07399; RobustBench/robustbench, model_zoo/architectures/xcit.py.
  """
  depth: int = 12
  heads: int = 8
  width: int = 48
  patch: int = 4

  @property
  def stages(self) -> tuple[str, ...]:
    return ('patch_embed', *(f'blocks_{i}' for i in range(self.depth)), 'head')

  @property
  def default_tap(self) -> str:
    return f'blocks_{self.depth - 1}'

  def run_stage(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
    features = _CHANNELS * self.width
    if stage == 'patch_embed':
      x = PatchEmbed(features, self.patch, self.axis_name, self.dtype,
                     name=stage)(x, train=train)
      # An addition to every image of the batch.
      places = Positions(features, name='pos_embed')(x).astype(x.dtype)
      return x + jnp.broadcast_to(places, x.shape)
    if stage != 'head':
      return Block(self.heads, self.axis_name, self.dtype, name=stage)(
          x, train=train)
    token = self.param('cls_token', _normal, (1, 1, features),
                       layers.param_dtype(x))
    token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, features))
    x = jnp.concatenate([token, x.reshape(len(x), -1, features)], axis=1)
    for i in range(_CLASS_BLOCKS):
      x = ClassBlock(self.heads, self.dtype, name=f'cls_attn_blocks_{i}')(x)
    x = layers.LayerNorm(name='norm')(x)[:, 0]
    return _dense(self.num_classes, 'head')(x)
