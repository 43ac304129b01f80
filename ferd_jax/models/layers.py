"""Layers with PyTorch's conventions: padding, initialisers, BatchNorm.

Images are [B, H, W, C]. Parameters are created in the precision of the input
(at least float32), and computations follow inputs and parameters, so the
layers work in float64 as well.

With a `dtype`, bfloat16, convolutions take their factors and give their results
in it. What sums over many values stays in float32, and so do parameters:
moments and normalisation, biases, means over space, and the last dense layer,
which is a thousandth of a network and decides its predictions.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from ferd_jax.core import collectives
from ferd_jax.core import loops

# Weights U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for
# convolutions and linear layers.
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


ACTIVATIONS = {'relu': nn.relu, 'silu': nn.silu}

# Where a 3x3 convolution of stride 2 finds its zeros: on every side, as in
# PyTorch, or like XLA's and TensorFlow's 'SAME', which on even sides is one row
# at the bottom and one column on the right.
PADDINGS = ('both', 'same')

# What layers compute in, if not in the type of images and parameters.
DTYPES = ('bfloat16', 'float32')


def torch_bias(fan_in: int) -> nn.initializers.Initializer:
  """Returns the initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of biases."""
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in ** 0.5
  return init


class Conv(nn.Module):
  """Square convolution, zero-padded so that stride 1 keeps the size.

  Attributes:
    features: number of output channels.
    kernel_size: odd side of the kernel.
    strides: step in both directions.
    padding: one of `PADDINGS`.
    use_bias: whether to add a bias.
    kernel_init: initialiser of the kernel [k, k, C_in, C_out].
    bias_init: initialiser of the bias; None for PyTorch's default.
    dtype: of the factors and the result; None: that of input and parameters.
  """
  features: int
  kernel_size: int = 3
  strides: int = 1
  padding: str = 'both'
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = torch_uniform
  bias_init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float [B, H, W, C_in] to [B, ceil(H/s), ceil(W/s), features]."""
    size, dtype = self.kernel_size, param_dtype(x)
    shape = (size, size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, dtype)
    x, kernel = rounded(self.dtype, x, kernel)
    x = _convolve(x, kernel, self.strides, self.padding)
    if self.use_bias:
      bias_init = self.bias_init or torch_bias(size * size * shape[2])
      bias = self.param('bias', bias_init, (self.features,), dtype)
      # In float32, in which its gradient is summed then.
      x, = rounded(self.dtype, x.astype(dtype) + per_channel(bias, x.ndim))
    return x


class DepthwiseConv(nn.Module):
  """3x3 convolution of every channel by itself, zero-padded.

  Attributes:
    strides: step in both directions.
    padding: one of `PADDINGS`.
    use_bias: whether to add a bias.
    dtype: of the factors and the result; None: that of input and parameters.
  """
  strides: int = 1
  padding: str = 'both'
  use_bias: bool = False
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float [B, H, W, C] to [B, ceil(H/s), ceil(W/s), C]."""
    wide = param_dtype(x)
    kernel = self.param('kernel', torch_uniform, (3, 3, 1, x.shape[-1]), wide)
    x, kernel = rounded(self.dtype, x, kernel)
    # XLA:CPU runs grouped convolutions an order of magnitude slower than the
    # nine multiply-adds that they stand for.
    if loops.unrolled_here():
      # Their sum is not rounded on the way, as that of a convolution is not.
      x = depthwise_shifted(x.astype(wide), kernel.astype(wide), self.strides,
                            self.padding)
    else:
      x = depthwise_grouped(x, kernel, self.strides, self.padding)
    if self.use_bias:
      bias = self.param('bias', torch_bias(9), x.shape[-1:], wide)
      x = x.astype(wide) + per_channel(bias, x.ndim)
    return rounded(self.dtype, x)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_shifted(x: jax.Array, kernel: jax.Array, strides: int,
                      padding: str = 'both') -> jax.Array:
  """Depthwise 3x3 convolution as nine shifted multiply-adds.

  It has its own backward pass, of the same form, since the transposed slices
  that differentiation would make of it take XLA twice as long to compile. So
  it has no forward-mode derivative.

  Args:
    x: float [B, H, W, C].
    kernel: float [3, 3, 1, C].
    strides: step in both directions.
    padding: one of `PADDINGS`.

  Returns:
    [B, ceil(H/s), ceil(W/s), C].
  """
  return sum(
      window * per_channel(kernel[i, j, 0], x.ndim)
      for i, j, window in _windows(x, strides, padding))


def _depthwise_forward(x, kernel, strides, padding):
  return depthwise_shifted(x, kernel, strides, padding), (x, kernel)


def _depthwise_backward(strides, padding, residuals, cotangent):
  x, kernel = residuals
  # With zeros where the stride skipped positions, the gradient of the input
  # is a convolution by the reversed kernel. An image without zeros before it
  # was met by the kernel one position later.
  (before_row, _), (before_column, _) = _zeros_around(x, 3, strides, padding)
  spread = lax.pad(
      cotangent, jnp.zeros((), cotangent.dtype),
      ((0, 0, 0), *(
          (1 - before, side - (1 - before) - (count - 1) * strides - 1,
           strides - 1)
          for before, side, count in zip(
              (before_row, before_column), x.shape[1:3], cotangent.shape[1:3],
              strict=True)), (0, 0, 0)))
  x_grad = depthwise_shifted(spread, kernel[::-1, ::-1], 1)
  kernel_grad = jnp.stack([
      jnp.sum(window * cotangent, axis=(0, 1, 2))
      for _, _, window in _windows(x, strides, padding)])
  return (x_grad.astype(x.dtype),
          kernel_grad.reshape(kernel.shape).astype(kernel.dtype))


depthwise_shifted.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise_grouped(x: jax.Array, kernel: jax.Array, strides: int,
                      padding: str = 'both') -> jax.Array:
  """`depthwise_shifted` as one grouped convolution, for accelerators."""
  return _convolve(x, kernel, strides, padding, groups=x.shape[-1])


class Dense(nn.Module):
  """Linear layer with bias, of vectors or of every token by itself.

  Attributes:
    features: number of outputs.
    kernel_init: initialiser of the kernel [C_in, C_out].
    bias_init: initialiser of the bias; None for PyTorch's default.
    dtype: of the factors and the result; None: that of input and parameters.
  """
  features: int
  kernel_init: nn.initializers.Initializer = torch_uniform
  bias_init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float [..., C_in] to [..., features]."""
    dtype = param_dtype(x)
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, dtype)
    bias_init = self.bias_init or torch_bias(shape[0])
    bias = self.param('bias', bias_init, (self.features,), dtype)
    x, kernel = rounded(self.dtype, x, kernel)
    x = (x @ kernel).astype(dtype) + per_channel(bias, x.ndim)
    return rounded(self.dtype, x)[0]


class LayerNorm(nn.Module):
  """LayerNorm of PyTorch over the channels, each position by itself.

  Attributes:
    epsilon: added to the variance.
    dtype: of the result; None: that of input and parameters.
  """
  epsilon: float = 1e-6
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises float [..., C] over its last axis."""
    dtype, shape = param_dtype(x), x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape, dtype)
    bias = self.param('bias', nn.initializers.zeros, shape, dtype)
    x = x.astype(dtype)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    x = centred * lax.rsqrt(var + self.epsilon)
    x = x * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)
    return rounded(self.dtype, x)[0]


class BatchNorm(nn.Module):
  """BatchNorm2d of PyTorch, synchronised over an axis if one is named.

  In train mode it normalises by the biased variance of the batch and stores
  the unbiased one, as PyTorch does (Flax's own layer stores the biased one).
  The running statistics are updated where the caller makes 'batch_stats'
  mutable, and left alone where it does not.

  In either mode, `mutable=['moments']` returns the batch's moments at this
  layer's input, {'mean': [C], 'var': [C]} with the biased variance over
  (B, H, W), of the local batch whatever `axis_name` is. They are
  differentiable, and computed only if asked for.

  Attributes:
    axis_name: axis over whose shards, of equal size, the batch extends.
    momentum: weight of the new statistics.
    epsilon: added to the variance.
    scale_init: initialiser of the scale [C].
    dtype: of the result; None: that of input and parameters. Statistics and
      moments are at least float32.
  """
  axis_name: str | None = None
  momentum: float = 0.1
  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalises float [..., C] over all axes but the last.

    Raises:
      ValueError: in train mode with a single value per channel, which has no
        unbiased variance.
    """
    dtype, shape = param_dtype(x), x.shape[-1:]
    x = x.astype(dtype)
    scale = self.param('scale', self.scale_init, shape, dtype)
    bias = self.param('bias', nn.initializers.zeros, shape, dtype)
    running_mean = self.variable(
        'batch_stats', 'mean', jnp.zeros, shape, dtype)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape, dtype)
    mean, var = running_mean.value, running_var.value

    # Initialisation only makes variables: no axis is bound there, and
    # 'moments' are not part of a model's state.
    if not self.is_initializing():
      wants_moments = self.is_mutable_collection('moments')
      if train or wants_moments:
        batch_mean, batch_var = _moments(x)
      if wants_moments:
        self._sow_last('mean', batch_mean)
        self._sow_last('var', batch_var)
      if train:
        count = x.size // x.shape[-1] * collectives.axis_size(self.axis_name)
        if count < 2:
          raise ValueError('Expected more than one value per channel in train '
                           f'mode, got input shape {x.shape}.')
        mean, var = _combine(batch_mean, batch_var, self.axis_name)
        if self.is_mutable_collection('batch_stats'):
          unbiased = var * (count / (count - 1))
          for running, new in ((running_mean, mean), (running_var, unbiased)):
            running.value += self.momentum * (new - running.value)

    inverse = scale * lax.rsqrt(var + self.epsilon)
    centred = x - per_channel(mean, x.ndim)
    x = centred * per_channel(inverse, x.ndim) + per_channel(bias, x.ndim)
    return rounded(self.dtype, x)[0]

  def _sow_last(self, name, value):
    """Sows `value` bare, where Flax would append it to a tuple."""
    self.sow('moments', name, value, init_fn=lambda: None,
             reduce_fn=lambda _, new: new)


@dataclasses.dataclass(frozen=True)
class Style:
  """What all layers of one network have in common.

  Attributes:
    activation: one of `ACTIVATIONS`.
    padding: one of `PADDINGS`.
    axis_name: axis over which BatchNorm synchronises.
    kernel_init: initialiser of the convolutions' kernels.
    dtype: in which they compute; None: that of inputs and parameters.
  """
  activation: str = 'relu'
  padding: str = 'both'
  axis_name: str | None = None
  kernel_init: nn.initializers.Initializer = torch_uniform
  dtype: jnp.dtype | None = None

  def activate(self, x: jax.Array) -> jax.Array:
    """Returns the activations of float `x` of any shape."""
    return ACTIVATIONS[self.activation](x)

  def conv(self, features: int, kernel_size: int = 3, strides: int = 1, *,
           name: str) -> Conv:
    """Returns a convolution without bias, a submodule of the caller."""
    return Conv(features, kernel_size, strides, self.padding,
                kernel_init=self.kernel_init, dtype=self.dtype, name=name)

  def norm(self, name: str) -> BatchNorm:
    """Returns a BatchNorm, a submodule of the caller."""
    return BatchNorm(self.axis_name, dtype=self.dtype, name=name)


def global_mean(x: jax.Array) -> jax.Array:
  """Averages [B, H, W, C] over space, to [B, C], at least in float32."""
  return jnp.mean(x, axis=(1, 2), dtype=param_dtype(x))


def max_pool(x: jax.Array) -> jax.Array:
  """Returns the largest of 3x3 pixels at every other one of [B, H, W, C].

  What lies outside of the image does not count, as in PyTorch's MaxPool2d(3, 2,
  1); the result has shape [B, ceil(H/2), ceil(W/2), C].
  """
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def upsample(x: jax.Array) -> jax.Array:
  """Doubles both sides of [B, H, W, C] by repeating every pixel."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _convolve(x, kernel, strides, padding, groups=1):
  """Convolves [B, H, W, C] by an odd kernel [k, k, C / groups, C_out]."""
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  return lax.conv_general_dilated(
      x.astype(dtype), kernel.astype(dtype), (strides, strides),
      _zeros_around(x, kernel.shape[0], strides, padding),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


def _zeros_around(x, size, strides, padding):
  """Returns ((above, below), (left, right)) for a kernel of that size."""
  if padding == 'both':
    pad = (size - 1) // 2
    return ((pad, pad), (pad, pad))
  return lax.padtype_to_pads(x.shape[1:3], (size, size), (strides, strides),
                             'SAME')


def _windows(x, strides, padding):
  """Yields (i, j, what the kernel's element [i, j] sees of `x`)."""
  batch, height, width, channels = x.shape
  zeros = _zeros_around(x, 3, strides, padding)
  padded = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
  last_row, last_column = ((side - 1) // strides * strides
                           for side in (height, width))
  for i in range(3):
    for j in range(3):
      yield i, j, lax.slice(
          padded, (0, i, j, 0),
          (batch, i + last_row + 1, j + last_column + 1, channels),
          (1, strides, strides, 1))


def _moments(x):
  """Returns mean and biased variance [C] over all axes but the last.

  In two passes: E[x^2] - E[x]^2 cancels where the mean is large.
  """
  axes = tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axis=axes)
  return mean, jnp.mean(jnp.square(x - per_channel(mean, x.ndim)), axis=axes)


def _combine(mean, var, axis_name):
  """Returns the moments of the union of all shards, without cancellation."""
  if axis_name is None:
    return mean, var
  total_mean = collectives.pmean(mean, axis_name)
  spread = jnp.square(mean - total_mean)
  return total_mean, collectives.pmean(var + spread, axis_name)


def rounded(dtype: jnp.dtype | None, *arrays: jax.Array
            ) -> tuple[jax.Array, ...]:
  """Returns the arrays in a type, as they are if it is None."""
  return tuple(x if dtype is None else x.astype(dtype) for x in arrays)


def param_dtype(x: jax.Array) -> jnp.dtype:
  """Returns the type of the parameters of a layer with that input."""
  return jnp.promote_types(x.dtype, jnp.float32)


def per_channel(vector: jax.Array, ndim: int) -> jax.Array:
  """Returns `vector` [C] as [1, ..., 1, C], to broadcast by intent."""
  return jnp.reshape(vector, (1,) * (ndim - 1) + (-1,))
