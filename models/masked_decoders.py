"""Decoders that are given visible tokens alone and predict every place."""

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn

from models import layers
from models.activations import gelu
from models.dense import Dense, flat_product
from models.features import Level
from models.initializers import (
  NORMAL_02,
  TORCH,
  XAVIER,
  XAVIER_FUSED,
  torch_bias,
)
from models.posemb import sincos_2d

SCALES = (4, 2, 1, 0.5)


def in_grid(
  tokens: jax.Array, index: jax.Array | None, empty: jax.Array
) -> jax.Array:
  """Puts visible tokens back into their grid.

  Args:
    tokens: [b, k, d].
    index: their places, [b, k], ascending; None: all h * w are there.
    empty: what stands in every other place, [h * w, d], same dtype.

  Returns:
    [b, h * w, d].
  """
  if index is None:
    return tokens

  def place(tokens, index):
    return empty.at[index].set(
      tokens, unique_indices=True, indices_are_sorted=True
    )

  return jax.vmap(place)(tokens, index)


class MaskedDecoder(nn.Module):
  """MAE's decoder (He et al., arXiv:2111.06377, section 3), and LocalMIM's.

  A linear layer brings the visible tokens to `width`; they go back to their
  places in the grid, and the same learned token stands in every other place.
  MAE's fixed sine-cosine positions are added, tokens of no patch (CLS) come
  first and have none; then blocks, LayerNorm and a linear layer.

  LocalMIM's (Wang et al., arXiv:2303.05251, authors' code) are small, norm what
  they read (`norm_input`) and predict on a grid `scale` times as fine as the
  tokens': through 2 x 2 deconvolutions, or the mean of 2 x 2 tokens. Several
  levels of one grid are summed after a linear layer each (the paper's ablation
  "fused").

  Initialised as the authors do: Xavier for every kernel (query, key and value
  with the bound of one d x 3d matrix), biases 0, the mask token N(0, 0.02^2);
  with `conv_out` the last layer is a 1 x 1 convolution and starts, like the
  deconvolutions, as PyTorch's.

  Parameters: `embed`, `mask_token` [1, 1, d], `block_i`, `norm` and `out`;
  `norm_input` where asked for, `embed_i` and `norm_input_i` of several levels,
  `up_0`, `up_norm`, `up_1` of finer scales; float32 whatever `dtype` says.

  Attributes:
    out_features: numbers f that are predicted for each place.
    width: width d of the tokens.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: hidden width of the MLPs over the width.
    norm_input: LayerNorm before the first linear layer.
    scale: 4, 2, 1 or 0.5 places per token along a side.
    conv_out: how the last layer starts, see above.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: see `Attention`.
  """

  out_features: int
  width: int = 512
  depth: int = 8
  num_heads: int = 16
  mlp_ratio: float = 4
  norm_input: bool = False
  scale: float = 1
  conv_out: bool = False
  dtype: str = 'float32'
  attention_impl: str = 'auto'

  @nn.compact
  def __call__(self, levels: tuple[Level, ...]) -> jax.Array:
    """Predicts all places from the visible tokens.

    Args:
      levels: one level, or several of one grid, with their index.

    Returns:
      [b, h * scale, w * scale, f] float32.

    Raises:
      ValueError: an unknown scale, half of a grid with an odd side, or levels
        of several grids.
    """
    self._check(levels)
    dtype = layers.compute_dtype(self.dtype)
    tokens = sum(self._embedded(levels, i) for i in range(len(levels)))
    level = levels[-1]
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
    x = rearrange(x, 'b (h w) d -> b h w d', h=level.grid[0])
    x = self._rescaled(x)
    starts = dict(kernel_init=XAVIER)
    if self.conv_out:
      starts = dict(kernel_init=TORCH, bias_init=torch_bias(x.shape[-1]))
    out = Dense(self.out_features, dtype=dtype, name='out', **starts)
    return out(x).astype(jnp.float32)

  def _check(self, levels: tuple[Level, ...]) -> None:
    if self.scale not in SCALES:
      raise ValueError(f'scale {self.scale} of a decoder must be in {SCALES}')
    grids = sorted({level.grid for level in levels})
    if len(grids) > 1:
      raise ValueError(
        f'levels on the grids {grids} cannot be summed: one decoder for each'
      )
    h, w = grids[0]
    if self.scale == 0.5 and (h % 2 or w % 2):
      raise ValueError(
        f'a grid of {h}x{w} tokens has no half: choose scales of at least 1, '
        'or images with an even number of patches'
      )

  def _embedded(self, levels: tuple[Level, ...], i: int) -> jax.Array:
    """One level in the decoder's width, prefix first."""
    dtype = layers.compute_dtype(self.dtype)
    ending = f'_{i}' if len(levels) > 1 else ''
    x = jnp.concatenate([levels[i].prefix, levels[i].tokens], axis=1)
    if self.norm_input:
      x = layers.layer_norm(f'norm_input{ending}', dtype)(x)
    embed = Dense(
      self.width, dtype=dtype, kernel_init=XAVIER, name=f'embed{ending}'
    )
    return embed(x)

  def _placed(self, tokens: jax.Array, level: Level) -> jax.Array:
    """Visible tokens [b, k, d] in the grid, [b, h * w, d], with positions."""
    table = jnp.asarray(
      sincos_2d(level.grid, self.width, columns_first=True), tokens.dtype
    )
    mask_token = self.param('mask_token', NORMAL_02, (1, 1, self.width))
    empty = jnp.broadcast_to(mask_token[0].astype(tokens.dtype), table.shape)
    return in_grid(tokens, level.index, empty) + table

  def _rescaled(self, x: jax.Array) -> jax.Array:
    """Maps [b, h, w, d] on the grid of the prediction."""
    if self.scale == 0.5:
      return reduce(x, 'b (h p) (w q) d -> b h w d', 'mean', p=2, q=2)
    dtype = layers.compute_dtype(self.dtype)
    if self.scale > 1:
      x = Deconv(self.width // 2, dtype=dtype, name='up_0')(x)
    if self.scale > 2:
      x = gelu(layers.layer_norm('up_norm', dtype)(x))
      x = Deconv(self.width // 4, dtype=dtype, name='up_1')(x)
    return x


class Deconv(nn.Module):
  """Transposed convolution of kernel and stride 2: a product, no more.

  Every token becomes 2 x 2 of them. Starts as PyTorch's, whose fan_in of a
  transposed convolution counts what goes out.

  Parameters: `kernel` [c, 2, 2, width], `bias` [width].
  """

  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [b, h, w, c] to [b, 2 * h, 2 * w, width]."""
    start = torch_bias(4 * self.width)
    kernel = self.param('kernel', start, (x.shape[-1], 2, 2, self.width))
    bias = self.param('bias', start, (self.width,))
    kernel = kernel.reshape(x.shape[-1], -1).astype(self.dtype)
    x = flat_product(x.astype(self.dtype), kernel)
    x = rearrange(x, 'b h w (p q d) -> b (h p) (w q) d', p=2, q=2)
    return x + bias.astype(self.dtype)
