"""Parts of a Swin transformer: its block and its patch merging."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers
from models.attention import Attention
from models.dense import Dense
from models.initializers import NORMAL_02
from models.visible_windows import VisibleWindows
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
    self,
    x: jax.Array,
    noise: jax.Array | None = None,
    visible: VisibleWindows | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Applies attention and MLP, each with its residual.

    Args:
      x: tokens of the map, [b, h * w, d]; of a masked map the visible ones, in
        any order.
      noise: uniform numbers for the two branches, [b, 2]; None = keep both.
      visible: windows of these tokens, or None for those of the whole map.

    Returns:
      The tokens, and the attention weights or None: [b, windows, heads, n, n]
      float32; of visible tokens one group, [b, 1, heads, n, n], row-major.
    """
    first, second = (None, None) if noise is None else noise.T
    offsets = (2 * self.reach - 1) ** 2
    table = self.param('position_bias', NORMAL_02, (offsets, self.num_heads))
    y = layers.layer_norm('norm1', self.dtype, self.epsilon)(x)
    if visible is None:
      h, w = self.windows.grid
      y = self.windows.partition(rearrange(y, 'b (h w) d -> b h w d', h=h, w=w))
      bias = position_bias(table, self.windows, self.reach)
    else:
      bias = visible.bias(table, self.reach)
    y, weights = Attention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      impl=self.attention_impl,
      with_map=self.with_map,
      kernel_init=NORMAL_02,
      name='attention',
    )(y, bias)
    if visible is None:
      y = rearrange(self.windows.restore(y), 'b h w d -> b (h w) d')
    elif self.with_map:
      weights = visible.in_order(weights)
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

  Attributes:
    row_by_row: concatenate in the order (0, 0), (0, 1), (1, 0), (1, 1), as
      LocalMIM's released code does in pre-training.
    dtype: compute dtype.
    epsilon: of the norm.
  """

  row_by_row: bool = False
  dtype: jnp.dtype = jnp.float32
  epsilon: float = EPSILON

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., h, w, d] to [..., ceil(h / 2), ceil(w / 2), 2 * d]."""
    h, w = x.shape[-3:-1]
    if h % 2 or w % 2:
      whole = ((0, 0),) * (x.ndim - 3)
      x = jnp.pad(x, (*whole, (0, h % 2), (0, w % 2), (0, 0)))
    four = 'r s d' if self.row_by_row else 's r d'
    x = rearrange(x, f'... (h r) (w s) d -> ... h w ({four})', r=2, s=2)
    x = layers.layer_norm('norm', self.dtype, self.epsilon)(x)
    return Dense(
      x.shape[-1] // 2,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=NORMAL_02,
      name='reduction',
    )(x)
