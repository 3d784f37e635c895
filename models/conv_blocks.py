"""Masked convolution: its block and what comes before it, on pieces.

All layers but one treat tokens or whole cells by themselves, so that what is
hidden is neither computed nor able to leak; the depth-wise convolution alone
looks over the edge of a cell and finds zeros in hidden ones.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers
from models.activations import gelu
from models.dense import Dense, flat_product
from models.depthwise import Depthwise
from models.initializers import TORCH, TORCH_PATCH, Initializer, torch_bias
from models.masking import Mask
from models.pieces import place, take

EPSILON = 1e-5  # of every LayerNorm outside the transformer blocks
KERNEL = 5  # side of the depth-wise kernels


class StrideConv(nn.Module):
  """Convolution whose stride is the side of its kernel, on pieces.

  Parameters: `kernel` [side, side, c, width] (HWIO), `bias`; both start as
  PyTorch's default, the kernel unless told otherwise.
  """

  side: int
  width: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: Initializer = TORCH_PATCH

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, k, p, q, c] to [b, k, p / side, q / side, width]."""
    shape = (self.side, self.side, x.shape[-1], self.width)
    kernel = self.param('kernel', self.kernel_init, shape)
    fan_in = self.side**2 * x.shape[-1]
    bias = self.param('bias', torch_bias(fan_in), (self.width,))
    x = rearrange(
      x.astype(self.dtype),
      'b k (p r) (q s) c -> b k p q (r s c)',
      r=self.side,
      s=self.side,
    )
    kernel = kernel.reshape(fan_in, self.width).astype(self.dtype)
    return flat_product(x, kernel) + bias.astype(self.dtype)


class ConvBlock(nn.Module):
  """ConvMAE's block (Gao et al., arXiv:2205.03892): 5 x 5 instead of attention.

  x + point2(depthwise(point1(norm1(x)))), then x + fc2(gelu(fc1(norm2(x)))).
  All matrices are 1 x 1 convolutions and start, like the 5 x 5, as PyTorch's.

  Parameters: norm1, point1, depthwise (`Depthwise`), point2, norm2, fc1, fc2.

  Attributes:
    mlp_ratio: hidden width of the MLP over the width.
    drop_path: rate of stochastic depth for both residual branches.
    dtype: compute dtype, also of the residual stream.
  """

  mlp_ratio: float = 4
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: Mask | None, noise: jax.Array | None = None
  ) -> jax.Array:
    """Applies convolution and MLP, each with its residual.

    Args:
      x: pieces [b, k, p, q, d].
      mask: over the cells, or None.
      noise: uniform numbers for the two branches, [b, 2]; None = keep both.

    Returns:
      [b, k, p, q, d].
    """
    first, second = (None, None) if noise is None else noise.T
    pieces, width = x.shape, x.shape[-1]
    x = x.reshape(len(x), -1, width)
    y = layers.layer_norm('norm1', self.dtype, EPSILON)(x)
    y = self._point(y, width, 'point1').reshape(pieces)
    y = place(y, mask)
    y = Depthwise(KERNEL, dtype=self.dtype, name='depthwise')(y)
    y = take(y, mask, pieces[2]).reshape(x.shape)
    y = self._point(y, width, 'point2')
    x = x + layers.drop_branch(y, first, self.drop_path)
    y = layers.layer_norm('norm2', self.dtype, EPSILON)(x)
    y = gelu(self._point(y, int(width * self.mlp_ratio), 'fc1'))
    y = self._point(y, width, 'fc2')
    x = x + layers.drop_branch(y, second, self.drop_path)
    return x.reshape(pieces)

  def _point(self, x: jax.Array, width: int, name: str) -> jax.Array:
    return Dense(
      width,
      dtype=self.dtype,
      kernel_init=TORCH,
      bias_init=torch_bias(x.shape[-1]),
      name=name,
    )(x)
