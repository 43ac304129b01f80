"""The generator that turns latents into images."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ferd_jax.core import validate
from ferd_jax.models import layers

_kernel_init = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class Generator(nn.Module):
  """Two rounds of upsampling and convolution from a quarter of the side.

  BatchNorm always uses the batch's statistics. It keeps running ones only for
  the sake of exported files, and updates them if 'batch_stats' is mutable.

  Attributes:
    side: height and width of the images, a multiple of 4.
    channels: channels of the images.
    width: channels of the first convolution, even; the second has half.
    wide_start: whether the first convolution reads twice as many channels as
      it has, not as many.
    axis_name: axis over which BatchNorm synchronises.
    dtype: in which its layers compute, see `layers`; None: that of latents and
      parameters. Images are at least float32.

  References:
    zju-vipa/CMI, Generator, whose attribute names the submodules carry; its
      LargeGenerator starts wide.
  """
  side: int
  channels: int = 3
  width: int = 128
  wide_start: bool = False
  axis_name: str | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    """Maps latents float [B, nz] to images [B, side, side, channels] in (0, 1).

    Raises:
      ValueError: if `side` is not a multiple of 4, or `width` is odd.
    """
    validate.positive(side=self.side, channels=self.channels, width=self.width)
    validate.divisible(4, 'pixels', side=self.side)
    validate.divisible(2, 'channels', width=self.width)
    if latents.ndim != 2:
      raise ValueError(f'Expected latents [B, nz], got shape {latents.shape}.')

    def norm(x, name):
      return layers.BatchNorm(self.axis_name, scale_init=_scale_init,
                              dtype=self.dtype, name=name)(x, train=True)

    def activate(x):
      return nn.leaky_relu(x, 0.2)

    quarter, start = self.side // 4, self.width * (1 + self.wide_start)
    x = layers.Dense(start * quarter ** 2, kernel_init=_kernel_init,
                     bias_init=nn.initializers.zeros, name='l1_0')(latents)
    # PyTorch's channels come first in the linear layer's output.
    x = x.reshape(-1, start, quarter, quarter).transpose(0, 2, 3, 1)
    x = layers.upsample(norm(x, 'conv_blocks_0'))
    x = layers.Conv(self.width, kernel_init=_kernel_init, dtype=self.dtype,
                    name='conv_blocks_2')(x)
    x = layers.upsample(activate(norm(x, 'conv_blocks_3')))
    x = layers.Conv(self.width // 2, kernel_init=_kernel_init,
                    dtype=self.dtype, name='conv_blocks_6')(x)
    x = activate(norm(x, 'conv_blocks_7'))
    x = layers.Conv(self.channels, use_bias=True, kernel_init=_kernel_init,
                    bias_init=nn.initializers.zeros, dtype=self.dtype,
                    name='conv_blocks_9')(x)
    return nn.sigmoid(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
