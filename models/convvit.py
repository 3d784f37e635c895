"""ConvMAE's encoder: masked convolutions, then a vision transformer."""

import itertools
import math
import operator
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import conv_blocks, layers, patches, pieces
from models.activations import gelu
from models.dense import Dense
from models.features import Features, Level
from models.initializers import (
  TORCH_PATCH,
  XAVIER,
  XAVIER_FUSED,
  XAVIER_PATCH,
)
from models.masking import Mask, check_mask
from models.posemb import sincos_2d


class ConvViT(nn.Module):
  """ConvMAE's hybrid encoder (Gao et al., arXiv:2205.03892).

  Stages of convolution blocks (`ConvBlock`) on ever coarser maps, then pre-norm
  transformer blocks on the last grid. Every stage begins with a convolution
  whose stride is its kernel's side, LayerNorm and GELU; the last one adds a
  linear layer and fixed 2-D sine-cosine positions, MAE's. There is no CLS.

  A mask is over the last grid, and its cells hide all that lies under them in
  the earlier stages: neither convolutions nor blocks see hidden pixels, and
  nothing is computed for them but the 5 x 5 kernels' sums.

  Before the final norm the maps of the convolution stages are added to the
  last block's output, each through a convolution to its grid and width. The
  authors do so in pre-training and leave these out when they fine-tune, where
  they norm the mean of the last block's output: that is `levels[-1]`.

  Initialised as the authors do: Xavier for the transformer blocks (query, key
  and value with the bound of one d x 3d matrix), the linear layer (biases 0)
  and, over the flattened patch, for the last stage's kernel; PyTorch's default
  for everything else of the convolutions.

  Parameters: `patch_embed` and `patch_norm` of the first stage, `embed_i` and
  `embed_norm_i` of stage i from 1 on (kernels [p, p, c, d]), `project`,
  `block_i` (counted over the whole network), `fuse_i` of convolution stage i
  and `norm`. They are float32 whatever `dtype` says.

  Attributes:
    patch_sizes: side of the kernel that begins each stage.
    widths: width of the tokens of each stage.
    depths: number of blocks of each stage; the last one is the transformer.
    num_heads: attention heads of the last stage.
    mlp_ratio: hidden width of the MLPs over the width.
    in_channels: channels c of the images.
    fuse: add the maps of the convolution stages before the final norm.
    drop_path: rate of stochastic depth in the last block; linear from 0.
    remat: recompute each block in the backward pass to save memory.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: 'auto', 'einsum', 'xla' or 'cudnn'; see `Attention`.
    mean: per-channel image mean, or one number for all; None is ImageNet's for
      three channels and 0.5 otherwise.
    std: per-channel image standard deviation; None as for `mean`.
    pool: 'mean' of the tokens after the final norm, or 'norm_mean', the norm of
      their mean (the authors' fine-tuning).
  """

  patch_sizes: tuple[int, ...] = (4, 2, 2)
  widths: tuple[int, ...] = (256, 384, 768)
  depths: tuple[int, ...] = (2, 2, 11)
  num_heads: int = 12
  mlp_ratio: float = 4
  in_channels: int = 3
  fuse: bool = True
  drop_path: float = 0.0
  remat: bool = False
  dtype: str = 'float32'
  attention_impl: str = 'auto'
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  pool: str = 'mean'

  norm_epsilon: ClassVar[float] = 1e-6  # of the blocks that attend and `norm`

  @property
  def patch_size(self) -> int:
    """Side in pixels of a token of the last stage, a cell of a mask."""
    return math.prod(self.patch_sizes)

  @property
  def cell(self) -> int:
    """Side in pixels of a cell of a mask."""
    return self.patch_size

  @property
  def width(self) -> int:
    """Width of the tokens of the last stage."""
    return self.widths[-1]

  @property
  def depth(self) -> int:
    """Number of blocks of all stages."""
    return sum(self.depths)

  @property
  def conv_depth(self) -> int:
    """Number of convolution blocks, which come before those that attend."""
    return sum(self.depths[:-1])

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels per token along a side, for every level."""
    stages = itertools.accumulate(self.patch_sizes[:-1], operator.mul)
    return (*stages, *(self.patch_size,) * self.depths[-1])

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: Mask | None = None,
    cuts: tuple[int, ...] = (),
    attention: tuple[int, ...] = (),
    noise: jax.Array | None = None,
  ) -> Features:
    """Encodes a batch of images.

    Args:
      x: images in [0, 1], [b, H, W, c] float.
      mask: hides tokens of the last stage and what lies under them; every
        level reports the visible tokens alone, with their index in its grid.
      cuts: levels (0-based; negative from the end) after which the stream is
        stop-gradiented, maps that are added at the end included, while the
        level reported there is not.
      attention: blocks, counted over all stages, whose attention weights are
        wanted; convolution blocks have none.
      noise: uniform numbers in [0, 1) for stochastic depth, [b, 2 * depth];
        column 2 * i + j is for branch j of block i. None switches it off
        (teachers, evaluation).

    Returns:
      Features: one level per convolution stage, then one per block of the last
      stage, in `dtype`, the last one before the maps are added; tokens of the
      last stage and their mean, pooled, after the final norm in float32. There
      is no cls.

    Raises:
      ValueError: for images, mask, noise or fields that do not fit together.
    """
    self._check(x, mask, noise)
    cuts = {layers.resolve(i, len(self.strides), 'cuts', 'level') for i in cuts}
    maps = self._resolve_attention(attention)
    grid = tuple(side // self.patch_size for side in x.shape[1:3])
    mask = mask and mask.rows(len(x))
    x = patches.normalize(x, self.mean, self.std)
    x = pieces.take(x, mask, self.patch_size)
    levels, kept, weights = [], [], {}
    for stage in range(len(self.depths) - 1):
      x = self._conv_stage(self._embed(x, stage), stage, mask, noise)
      levels.append(pieces.level(x, mask))
      kept.append(x)
      if stage in cuts:
        x, kept = jax.lax.stop_gradient((x, kept))
    x = self._tokens(self._embed(x, len(kept)), mask, grid)
    for i in range(self.conv_depth, self.depth):
      x, weights[i] = self._attend(x, i, noise, i in maps.values())
      index = None if mask is None else mask.visible
      levels.append(Level(x[:, :0], x, grid, index))
      if len(levels) - 1 in cuts:
        x, kept = jax.lax.stop_gradient((x, kept))
    if self.fuse:
      x = x + self._fused(kept)
    # float32 from here on, for losses and for what probes store.
    x = x.astype(jnp.float32)
    norm = layers.layer_norm('norm', epsilon=self.norm_epsilon)
    tokens, after = norm(x), self.pool == 'norm_mean'
    return Features(
      levels=tuple(levels),
      tokens=tokens,
      pooled=norm(x.mean(axis=1)) if after else tokens.mean(axis=1),
      attention={asked: weights[i] for asked, i in maps.items()},
    )

  def _embed(self, x: jax.Array, stage: int) -> jax.Array:
    """Begins a stage, on pieces [b, k, p, q, d]."""
    dtype = layers.compute_dtype(self.dtype)
    last = stage == len(self.depths) - 1
    x = conv_blocks.StrideConv(
      self.patch_sizes[stage],
      self.widths[stage],
      dtype=dtype,
      kernel_init=XAVIER_PATCH if last else TORCH_PATCH,
      name=f'embed_{stage}' if stage else 'patch_embed',
    )(x)
    name = f'embed_norm_{stage}' if stage else 'patch_norm'
    return gelu(layers.layer_norm(name, dtype, conv_blocks.EPSILON)(x))

  def _conv_stage(self, x, stage, mask, noise):
    """Convolution blocks on pieces [b, k, p, q, d]."""
    block_type = conv_blocks.ConvBlock
    block_type = nn.remat(block_type) if self.remat else block_type
    start = sum(self.depths[:stage])
    for i in range(start, start + self.depths[stage]):
      block = block_type(
        mlp_ratio=self.mlp_ratio,
        drop_path=self._rate(i),
        dtype=layers.compute_dtype(self.dtype),
        name=f'block_{i}',
      )
      x = block(x, mask, _branches(noise, i))
    return x

  def _tokens(self, x, mask, grid):
    """Pieces to tokens that know where they are, [b, n, d]."""
    dtype = layers.compute_dtype(self.dtype)
    x = rearrange(x, 'b k p q d -> b (k p q) d')
    x = Dense(self.width, dtype=dtype, kernel_init=XAVIER, name='project')(x)
    table = sincos_2d(grid, self.width, columns_first=True)
    positions = jnp.asarray(table, dtype)
    return x + (positions if mask is None else positions[mask.visible])

  def _attend(self, x, i, noise, with_map):
    """One block of the last stage on tokens [b, n, d], and its weights."""
    block_type = nn.remat(layers.Block) if self.remat else layers.Block
    block = block_type(
      num_heads=self.num_heads,
      mlp_ratio=self.mlp_ratio,
      drop_path=self._rate(i),
      dtype=layers.compute_dtype(self.dtype),
      attention_impl=self.attention_impl,
      with_map=with_map,
      kernel_init=XAVIER,
      qkv_init=XAVIER_FUSED,
      epsilon=self.norm_epsilon,
      name=f'block_{i}',
    )
    return block(x, _branches(noise, i))

  def _fused(self, kept):
    """Pieces of the convolution stages on the last grid, [b, n, d], summed."""
    total = 0
    for stage, x in enumerate(kept):
      x = conv_blocks.StrideConv(
        math.prod(self.patch_sizes[stage + 1 :]),
        self.width,
        dtype=layers.compute_dtype(self.dtype),
        name=f'fuse_{stage}',
      )(x)
      total += rearrange(x, 'b k p q d -> b (k p q) d')
    return total

  def _rate(self, block: int) -> float:
    return layers.drop_path_rates(self.depth, self.drop_path)[block]

  def _resolve_attention(self, attention) -> dict[int, int]:
    """{block as asked for: counted from 0}; none is a convolution."""
    out = {
      i: layers.resolve(i, self.depth, 'attention', 'block') for i in attention
    }
    for asked, block in out.items():
      if block < self.conv_depth:
        raise ValueError(
          f'attention names block {asked}, a convolution: blocks '
          f'{self.conv_depth} to {self.depth - 1} attend'
        )
    return out

  def _check(
    self, x: jax.Array, mask: Mask | None, noise: jax.Array | None
  ) -> None:
    """Raises ValueError, before anything compiles, for what cannot work."""
    layers.check_word('pool', self.pool, ('mean', 'norm_mean'))
    stages = (self.patch_sizes, self.widths, self.depths)
    if len(set(map(len, stages))) > 1 or len(self.depths) < 2:
      raise ValueError(
        'patch_sizes {}, widths {} and depths {} must have one number for '
        'every stage, of which there are at least 2'.format(*stages)
      )
    if min(map(min, stages)) < 1:
      raise ValueError(
        'patch_sizes {}, widths {} and depths {} must be at least 1'.format(
          *stages
        )
      )
    patches.check_images(x, self.in_channels)
    patches.check_divisible(x.shape[1:3], self.patch_size)
    check_mask(mask, x.shape, self.patch_size)
    layers.check_noise(noise, x.shape[0], self.depth)


def _branches(noise: jax.Array | None, block: int) -> jax.Array | None:
  """The numbers of a block's two branches, [b, 2]."""
  return None if noise is None else noise[:, 2 * block : 2 * block + 2]
