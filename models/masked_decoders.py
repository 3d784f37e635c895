"""Decoders that are given visible tokens alone and predict every patch."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models import layers
from models.dense import Dense
from models.features import Level
from models.initializers import NORMAL_02, XAVIER, XAVIER_FUSED
from models.posemb import sincos_2d


class MaskedDecoder(nn.Module):
  """MAE's decoder (He et al., arXiv:2111.06377, section 3).

  A linear layer brings the visible tokens to `width`; they go back to their
  places in the grid, and the same learned token stands in every other place.
  MAE's fixed sine-cosine positions are added, tokens of no patch (CLS) come
  first and have none; then blocks, LayerNorm and a linear layer.

  Initialised as the authors do: Xavier for every kernel (query, key and value
  with the bound of one d x 3d matrix), biases 0, the mask token N(0, 0.02^2).

  Parameters: `embed`, `mask_token` [1, 1, d], `block_i`, `norm` and `out`;
  float32 whatever `dtype` says.

  Attributes:
    out_features: numbers f that are predicted for each patch.
    width: width d of the tokens.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: hidden width of the MLPs over the width.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: see `Attention`.
  """

  out_features: int
  width: int = 512
  depth: int = 8
  num_heads: int = 16
  mlp_ratio: float = 4
  dtype: str = 'float32'
  attention_impl: str = 'auto'

  @nn.compact
  def __call__(self, levels: tuple[Level]) -> jax.Array:
    """Predicts all patches from the visible ones.

    Args:
      levels: one level with an index.

    Returns:
      [b, h, w, f] float32.
    """
    (level,) = levels
    dtype = layers.compute_dtype(self.dtype)
    embed = Dense(self.width, dtype=dtype, kernel_init=XAVIER, name='embed')
    tokens = embed(jnp.concatenate([level.prefix, level.tokens], axis=1))
    first = level.prefix.shape[1]
    x = self._placed(tokens[:, first:], level)
    x = jnp.concatenate([tokens[:, :first], x], axis=1)
    for i in range(self.depth):
      x, _ = layers.Block(
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        dtype=dtype,
        attention_impl=self.attention_impl,
        qkv_init=XAVIER_FUSED,
        name=f'block_{i}',
      )(x)
    x = layers.layer_norm('norm', dtype)(x[:, first:])
    out = Dense(self.out_features, dtype=dtype, kernel_init=XAVIER, name='out')
    x = out(x).astype(jnp.float32)
    return x.reshape(x.shape[0], *level.grid, self.out_features)

  def _placed(self, tokens: jax.Array, level: Level) -> jax.Array:
    """Visible tokens [b, k, d] in the grid, [b, h * w, d], with positions."""
    table = jnp.asarray(
      sincos_2d(level.grid, self.width, columns_first=True), tokens.dtype
    )
    mask_token = self.param('mask_token', NORMAL_02, (1, 1, self.width))
    empty = jnp.broadcast_to(mask_token[0].astype(tokens.dtype), table.shape)

    def place(tokens, index):
      return empty.at[index].set(
        tokens, unique_indices=True, indices_are_sorted=True
      )

    return jax.vmap(place)(tokens, level.index) + table
