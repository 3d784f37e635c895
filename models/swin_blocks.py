"""Parts of a Swin transformer: its block and its patch merging."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers
from models.attention import Attention
from models.dense import Dense
from models.initializers import NORMAL_02
from models.windows import Windows, position_bias

EPSILON = 1e-5  # of every LayerNorm, unless somebody differs


class SwinBlock(nn.Module):
  """Pre-norm block whose attention stays inside windows.

  Parameters: `position_bias` [(2 * reach - 1)**2, heads], norm1,
  attention/{query, key, value, out}, norm2, mlp/{fc1, fc2}.

  Attributes:
    num_heads: number of attention heads.
    windows: how the map is cut.
    reach: side of the windows that `position_bias` is for.
    mlp_ratio: hidden width of the MLP over the width.
    drop_path: rate of stochastic depth for both residual branches.
    dtype: compute dtype, also of the residual stream.
    attention_impl: see `Attention`.
    with_map: also return the attention weights.
    epsilon: of the two LayerNorms.
  """

  num_heads: int
  windows: Windows
  reach: int
  mlp_ratio: float = 4
  drop_path: float = 0.0
  dtype: jnp.dtype = jnp.float32
  attention_impl: str = 'auto'
  with_map: bool = False
  epsilon: float = EPSILON

  @nn.compact
  def __call__(
    self, x: jax.Array, noise: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Applies attention and MLP, each with its residual.

    Args:
      x: tokens of the map, [b, h * w, d].
      noise: uniform numbers for the two branches, [b, 2]; None = keep both.

    Returns:
      [b, h * w, d], and the attention weights [b, windows, heads, n, n] float32
      or None.
    """
    first, second = (None, None) if noise is None else noise.T
    offsets = (2 * self.reach - 1) ** 2
    table = self.param('position_bias', NORMAL_02, (offsets, self.num_heads))
    y = layers.layer_norm('norm1', self.dtype, self.epsilon)(x)
    h, w = self.windows.grid
    y = self.windows.partition(rearrange(y, 'b (h w) d -> b h w d', h=h, w=w))
    y, weights = Attention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      impl=self.attention_impl,
      with_map=self.with_map,
      kernel_init=NORMAL_02,
      name='attention',
    )(y, position_bias(table, self.windows, self.reach))
    y = rearrange(self.windows.restore(y), 'b h w d -> b (h w) d')
    x = x + layers.drop_branch(y, first, self.drop_path)
    y = layers.Mlp(
      int(x.shape[-1] * self.mlp_ratio),
      dtype=self.dtype,
      kernel_init=NORMAL_02,
      name='mlp',
    )(layers.layer_norm('norm2', self.dtype, self.epsilon)(x))
    return x + layers.drop_branch(y, second, self.drop_path), weights


class PatchMerging(nn.Module):
  """Four neighbours become one token of twice the width.

  They are concatenated in the authors' order: (row, column) offsets (0, 0),
  (1, 0), (0, 1), (1, 1). A map with an odd side gets a row or column of zeros
  below or to the right, as in the authors' detection code and in timm.

  Parameters: norm, reduction (no bias).
  """

  dtype: jnp.dtype = jnp.float32
  epsilon: float = EPSILON

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, h, w, d] to [b, ceil(h / 2), ceil(w / 2), 2 * d]."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = rearrange(x, 'b (h r) (w s) d -> b h w (s r d)', r=2, s=2)
    x = layers.layer_norm('norm', self.dtype, self.epsilon)(x)
    return Dense(
      x.shape[-1] // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=NORMAL_02,
      name='reduction',
    )(x)
