"""Vision transformer, in the flavours that weights are released for."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers, patches
from models.features import Features, Level
from models.initializers import NORMAL_02, VIT_INITS
from models.masking import Mask, MaskToken, check_mask
from models.posemb import resample, sincos_2d
from models.relative import RELATIVE, RelativePositions

POOLS = ('cls', 'mean', 'norm_mean')
POSITIONS = ('sincos', 'learned', 'none', 'mae_sincos')


class ViT(nn.Module):
  """Vision transformer: pre-norm blocks and a final LayerNorm.

  By default that of MoCo v3 (Chen et al., arXiv:2104.02057): fixed 2-D
  sine-cosine positions (CLS has none), Xavier-uniform for every d x d matrix of
  query, key, value and output and for the MLP and the patch kernel, biases 0,
  CLS N(0, 1e-6^2).

  With `positions='learned'` and `init_scheme='trunc_normal'` that of DINO
  (Caron et al., arXiv:2104.14294), also DeiT's and so MoBY's: learned
  positions, CLS included, resampled for images of another size; every kernel,
  CLS and the positions N(0, 0.02^2), biases 0, the patch embedding as PyTorch's
  default. Mind the heads: their Ti has 3 and their S has 6.

  With `positions='mae_sincos'` and `init_scheme='mae'` that of MAE (He et al.,
  arXiv:2111.06377): half tables exchanged, and MAE's start (`VIT_INITS`).

  Parameters: `patch_embed` (kernel [p, p, c, d], bias), `cls` [1, 1, d],
  `registers` [1, r, d], with learned positions `pos_embed` [1, prefix + h * w,
  d] with those of the first tokens first, `position_bias`
  (`RelativePositions`), `norm_pre`, `block_i` (norm1, attention/{query, key,
  value, out}, layer_scale1, norm2, mlp/{fc1, fc2}, layer_scale2), `norm`,
  `projection` [d, e] and `mask_token`; what fields leave out is not there. All
  are float32.

  Attributes:
    patch_size: side of a patch in pixels.
    width: width d of the tokens.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: hidden width of the MLPs over the width.
    in_channels: channels c of the images.
    pool: 'cls', 'mean' of the patch tokens after the final norm, or
      'norm_mean', the norm of their mean (MAE's fine-tuning, timm's fc_norm).
    positions: 'sincos' or 'mae_sincos', for any grid, 'learned', or 'none'.
    positions_grid: side in patches of the square grid of learned positions, or
      its (h, w); also of relative ones.
    positions_offset: how they are resampled for other grids: 0.1 as DINO does,
      0 as Hugging Face and DINOv2; see `posemb.interpolation_matrix`.
    positions_antialias: whether that is smooth where a grid shrinks (timm).
    init_scheme: 'moco_v3', 'trunc_normal', 'mae', see above, or 'simmim'.
    drop_path: rate of stochastic depth in the last block; linear from 0.
    remat: recompute each block in the backward pass to save memory.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: 'auto', 'einsum', 'xla' or 'cudnn'; see `Attention`.
    mean: per-channel image mean, or one number; None: ImageNet's if RGB or 0.5.
    std: per-channel image standard deviation; None as for `mean`.
    class_token: whether there is one. It and what follows differ from the
      default in weights of others (`interop`).
    registers: more tokens of no patch, after CLS (Darcet et al., 2309.16588); a
      distilled DeiT's second token is one with a position.
    positions_prefix: how many of the first tokens have a learned position.
    relative: 'none', or biases by relative position, 'shared' by all blocks or
      one table for each 'block'; see `RelativePositions`.
    pre_norm: LayerNorm before the first block (CLIP).
    mlp: its kind; CLIP has 'quick_gelu', DINOv2 'swiglu'; see `layers.Mlp`.
    biases: which of query, key and value have a bias, by first letter.
    patch_bias: whether the patch embedding has one.
    layer_scale: what learned factors of both branches start with; 0: none.
    norm_epsilon: of every LayerNorm.
    projection: width of a last linear map of `pooled`, 0 for none (CLIP).
    mask_token: a mask puts a learned vector in the place of patches, which stay
      (SimMIM, BEiT); positions are added after it.
  """

  patch_size: int = 16
  width: int = 384
  depth: int = 12
  num_heads: int = 12
  mlp_ratio: float = 4
  in_channels: int = 3
  pool: str = 'cls'
  positions: str = 'sincos'
  positions_grid: int | tuple[int, int] = 14
  positions_offset: float = 0.1
  positions_antialias: bool = False
  init_scheme: str = 'moco_v3'
  drop_path: float = 0.0
  remat: bool = False
  dtype: str = 'float32'
  attention_impl: str = 'auto'
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  class_token: bool = True
  registers: int = 0
  positions_prefix: int = 1
  relative: str = 'none'
  pre_norm: bool = False
  mlp: str = 'gelu'
  biases: str = 'qkv'
  patch_bias: bool = True
  layer_scale: float = 0.0
  norm_epsilon: float = 1e-6
  projection: int = 0
  mask_token: bool = False

  @property
  def depths(self) -> tuple[int, ...]:
    """Blocks of each stage, of which there is one."""
    return (self.depth,)

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels per token along a side, for every level."""
    return (self.patch_size,) * self.depth

  @property
  def cell(self) -> int:
    """Side in pixels of a cell of a mask."""
    return self.patch_size

  @property
  def native_grid(self) -> tuple[int, int]:
    """(h, w) in patches that learned positions are for."""
    if isinstance(self.positions_grid, int):
      return (self.positions_grid,) * 2
    return tuple(self.positions_grid)

  @property
  def prefix(self) -> int:
    """Number of tokens that stand for no patch."""
    return self.class_token + self.registers

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
      mask: hides patches; only `mask.visible` enter the blocks, and every
        level reports them as its index (but see `mask_token`).
      cuts: blocks (0-based; negative from the end) after which the stream is
        stop-gradiented, while the level reported there is not.
      attention: blocks whose attention weights are wanted.
      noise: uniform numbers in [0, 1) for stochastic depth, [b, 2 * depth];
        column 2 * i + j is for branch j of block i. None switches it off
        (teachers, evaluation).

    Returns:
      One level per block in `dtype`; what follows the final norm in float32.

    Raises:
      ValueError: for images, mask, noise or fields that do not fit together.
    """
    self._check(x, mask, noise)
    cuts = {layers.resolve(i, self.depth, 'cuts') for i in cuts}
    maps = {i: layers.resolve(i, self.depth, 'attention') for i in attention}
    grid = tuple(side // self.patch_size for side in x.shape[1:3])
    mask = mask and mask.rows(len(x))
    index = None if mask is None or self.mask_token else mask.visible
    biases = self._biases(grid, index)
    x = self._embed(x, mask)
    dtype, start = layers.compute_dtype(self.dtype), VIT_INITS[self.init_scheme]
    if self.pre_norm:
      x = layers.layer_norm('norm_pre', dtype, self.norm_epsilon)(x)
    block_type = nn.remat(layers.Block) if self.remat else layers.Block
    rates = layers.drop_path_rates(self.depth, self.drop_path)
    levels, weights = [], {}
    for i in range(self.depth):
      block = block_type(
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        drop_path=rates[i],
        dtype=dtype,
        attention_impl=self.attention_impl,
        with_map=i in maps.values(),
        kernel_init=start.kernel,
        qkv_init=start.qkv,
        last_init=start.last(i),
        mlp=self.mlp,
        biases=self.biases,
        layer_scale=self.layer_scale,
        epsilon=self.norm_epsilon,
        name=f'block_{i}',
      )
      branches = None if noise is None else noise[:, 2 * i : 2 * i + 2]
      x, weights[i] = block(x, branches, biases[i])
      prefix, tokens = x[:, : self.prefix], x[:, self.prefix :]
      levels.append(Level(prefix, tokens, grid, index))
      if i in cuts:
        x = jax.lax.stop_gradient(x)
    tokens, cls, pooled = self._final(x)
    return Features(
      levels=tuple(levels),
      tokens=tokens,
      pooled=pooled,
      cls=cls,
      attention={asked: weights[i] for asked, i in maps.items()},
    )

  def _final(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None, Any]:
    """Tokens, CLS and pooled feature, float32: for losses and for probes."""
    x = x.astype(jnp.float32)
    # Normed apart, so that whoever reads one does not pay for the other.
    norm = layers.layer_norm('norm', epsilon=self.norm_epsilon)
    cls = norm(x[:, 0]) if self.class_token else None
    tokens = norm(x[:, self.prefix :])
    pooled = cls if self.pool == 'cls' else tokens.mean(axis=1)
    if self.pool == 'norm_mean':
      pooled = norm(x[:, self.prefix :].mean(axis=1))
    if self.projection:
      shape = (self.width, self.projection)
      init = nn.initializers.normal(self.width**-0.5)
      pooled = pooled @ self.param('projection', init, shape)
    return tokens, cls, pooled

  def _embed(self, x: jax.Array, mask: Mask | None) -> jax.Array:
    """Images [b, H, W, c] to prefix and visible tokens, [b, p + k, d]."""
    dtype, start = layers.compute_dtype(self.dtype), VIT_INITS[self.init_scheme]
    x = patches.normalize(x, self.mean, self.std)
    x = patches.patchify(x, self.patch_size)
    at_prefix, positions = self._positions(x.shape[1:3])
    x = rearrange(x, 'b h w f -> b (h w) f')
    if mask is not None and not self.mask_token:
      # Choosing patches before embedding them is the same as choosing tokens
      # after it, without the work for the hidden ones.
      x = jnp.take_along_axis(x, mask.visible[:, :, None], axis=1)
      positions = positions[mask.visible]
    x = patches.PatchEmbed(
      patch_size=self.patch_size,
      in_channels=self.in_channels,
      width=self.width,
      dtype=dtype,
      start=start.patches,
      use_bias=self.patch_bias,
      name='patch_embed',
    )(x)
    if self.mask_token:
      x = MaskToken(start.token, name='mask_token')(x, mask)
    x = x + positions.astype(dtype)
    sizes = dict(cls=int(self.class_token), registers=self.registers)
    prefix = [
      self.param(name, start.token, (1, size, self.width))
      for name, size in sizes.items()
      if size
    ]
    if not prefix:
      return x
    prefix = jnp.concatenate(prefix, axis=1)
    prefix = prefix.at[:, : len(at_prefix)].add(at_prefix)
    shape = (x.shape[0], self.prefix, self.width)
    prefix = jnp.broadcast_to(prefix.astype(dtype), shape)
    return jnp.concatenate([prefix, x], axis=1)

  def _positions(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Positions of the first tokens and of the patches, [n, d], float32."""
    none = jnp.zeros((0, self.width))
    if self.positions == 'none':
      return none, jnp.zeros((grid[0] * grid[1], self.width))
    if self.positions != 'learned':
      mae = self.positions == 'mae_sincos'
      return none, jnp.asarray(sincos_2d(grid, self.width, columns_first=mae))
    first, old = self.positions_prefix, self.native_grid
    shape = (1, first + old[0] * old[1], self.width)
    table = self.param('pos_embed', NORMAL_02, shape)[0]
    how = dict(offset=self.positions_offset, antialias=self.positions_antialias)
    return table[:first], resample(table[first:], old, grid, **how)

  def _biases(
    self, grid: tuple[int, int], visible: jax.Array | None
  ) -> list[jax.Array | None]:
    """What every block adds to its logits."""
    if self.relative == 'none':
      return [None] * self.depth
    return RelativePositions(
      kind=self.relative,
      depth=self.depth,
      num_heads=self.num_heads,
      grid=self.native_grid,
      class_token=self.class_token,
      start=VIT_INITS[self.init_scheme].relative,
      name='position_bias',
    )(grid, visible)

  def _check(
    self, x: jax.Array, mask: Mask | None, noise: jax.Array | None
  ) -> None:
    """Raises ValueError, before anything compiles, for what cannot work."""
    for name, word, known in (
      ('pool', self.pool, POOLS),
      ('positions', self.positions, POSITIONS),
      ('relative', self.relative, RELATIVE),
      ('init_scheme', self.init_scheme, tuple(VIT_INITS)),
    ):
      layers.check_word(name, word, known)
    if self.pool == 'cls' and not self.class_token:
      raise ValueError("pool='cls' needs class_token=True; or take 'mean'")
    if self.relative != 'none' and self.registers:
      raise ValueError('relative positions know no registers')
    patches.check_images(x, self.in_channels)
    patches.check_divisible(x.shape[1:3], self.patch_size)
    check_mask(mask, x.shape, self.patch_size)
    layers.check_noise(noise, x.shape[0], self.depth)
