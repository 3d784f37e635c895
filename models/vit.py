"""Vision transformer in the flavours of MoCo v3 and of DINO."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers, patches
from models.features import Features, Level
from models.initializers import NORMAL_02, XAVIER, Initializer
from models.masking import Mask
from models.posemb import interpolation_matrix, sincos_2d

# Ti is the extrapolation that solo-learn uses: 12 heads like MoCo v3's S and B
# (DINO's Ti has 3 and its S has 6). Mini is for 32-px images and patch 4; three
# heads of 32 are faster on a CPU than four of 24.
VARIANTS = {
  'mini': dict(width=96, depth=6, num_heads=3),
  'ti': dict(width=192, depth=12, num_heads=12),
  's': dict(width=384, depth=12, num_heads=12),
  'b': dict(width=768, depth=12, num_heads=12),
  'l': dict(width=1024, depth=24, num_heads=16),
}


class Init(NamedTuple):
  """How a ViT's parameters start."""

  kernel: Initializer  # of query, key, value, output and MLP
  cls: Initializer
  torch_patches: bool  # the patch embedding as PyTorch's default


INITS = {
  'moco_v3': Init(XAVIER, nn.initializers.normal(1e-6), torch_patches=False),
  'trunc_normal': Init(NORMAL_02, NORMAL_02, torch_patches=True),
}


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

  Parameters: `patch_embed` (kernel [p, p, c, d], bias), `cls` [1, 1, d], with
  learned positions `pos_embed` [1, 1 + grid * grid, d] with that of CLS first,
  `block_i` (norm1, attention/{query, key, value, out}, norm2, mlp/{fc1, fc2})
  and `norm`. They are float32 whatever `dtype` says.

  Attributes:
    patch_size: side of a patch in pixels.
    width: width d of the tokens.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: hidden width of the MLPs over the width.
    in_channels: channels c of the images.
    pool: 'cls', or 'mean' of the patch tokens after the final norm.
    positions: 'sincos', fixed for any grid, or 'learned'.
    positions_grid: side in patches of the square grid of learned positions.
    positions_offset: how they are resampled for other grids: 0.1 as DINO does,
      0 as Hugging Face and DINOv2; see `posemb.interpolation_matrix`.
    init_scheme: 'moco_v3' or 'trunc_normal', see above.
    drop_path: rate of stochastic depth in the last block; linear from 0.
    remat: recompute each block in the backward pass to save memory.
    dtype: 'float32' or 'bfloat16': products and residual stream.
    attention_impl: 'auto', 'einsum', 'xla' or 'cudnn'; see `Attention`.
    mean: per-channel image mean, or one number for all; None is ImageNet's for
      three channels and 0.5 otherwise.
    std: the same for the standard deviation.
  """

  patch_size: int = 16
  width: int = 384
  depth: int = 12
  num_heads: int = 12
  mlp_ratio: float = 4
  in_channels: int = 3
  pool: str = 'cls'
  positions: str = 'sincos'
  positions_grid: int = 14
  positions_offset: float = 0.1
  init_scheme: str = 'moco_v3'
  drop_path: float = 0.0
  remat: bool = False
  dtype: str = 'float32'
  attention_impl: str = 'auto'
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None

  norm_epsilon: ClassVar[float] = 1e-6  # of every LayerNorm

  @property
  def depths(self) -> tuple[int, ...]:
    """Blocks of each stage, as Swin's: there is one."""
    return (self.depth,)

  @property
  def strides(self) -> tuple[int, ...]:
    """Pixels per token along a side, for every level."""
    return (self.patch_size,) * self.depth

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
        level reports them as its index.
      cuts: blocks (0-based; negative from the end) after which the stream is
        stop-gradiented, while the level reported there is not.
      attention: blocks whose attention weights are wanted.
      noise: uniform numbers in [0, 1) for stochastic depth, [b, 2 * depth];
        column 2 * i + j is for branch j of block i. None switches it off
        (teachers, evaluation).

    Returns:
      Features: one level per block in `dtype`; tokens, cls and pooled after
      the final norm in float32.

    Raises:
      ValueError: for images, mask, noise or fields that do not fit together.
    """
    self._check(x, mask, noise)
    cuts = {layers.resolve(i, self.depth, 'cuts') for i in cuts}
    maps = {i: layers.resolve(i, self.depth, 'attention') for i in attention}
    grid = tuple(side // self.patch_size for side in x.shape[1:3])
    x = self._embed(x, mask)
    block_type = nn.remat(layers.Block) if self.remat else layers.Block
    rates = layers.drop_path_rates(self.depth, self.drop_path)
    levels, weights = [], {}
    for i in range(self.depth):
      block = block_type(
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        drop_path=rates[i],
        dtype=layers.compute_dtype(self.dtype),
        attention_impl=self.attention_impl,
        with_map=i in maps.values(),
        kernel_init=INITS[self.init_scheme].kernel,
        name=f'block_{i}',
      )
      branches = None if noise is None else noise[:, 2 * i : 2 * i + 2]
      x, weights[i] = block(x, branches)
      index = None if mask is None else mask.visible
      levels.append(Level(x[:, :1], x[:, 1:], grid, index))
      if i in cuts:
        x = jax.lax.stop_gradient(x)
    # float32 from here on, for losses and for what probes store.
    # Normed apart, so that whoever reads one does not pay for the other.
    norm = layers.layer_norm('norm', epsilon=self.norm_epsilon)
    cls, tokens = norm(x[:, 0]), norm(x[:, 1:])
    return Features(
      levels=tuple(levels),
      tokens=tokens,
      pooled=cls if self.pool == 'cls' else tokens.mean(axis=1),
      cls=cls,
      attention={asked: weights[i] for asked, i in maps.items()},
    )

  def _embed(self, x: jax.Array, mask: Mask | None) -> jax.Array:
    """Images [b, H, W, c] to CLS and visible tokens, [b, 1 + k, d]."""
    dtype = layers.compute_dtype(self.dtype)
    x = patches.normalize(x, self.mean, self.std)
    x = patches.patchify(x, self.patch_size)
    at_cls, positions = self._positions(x.shape[1:3])
    x = rearrange(x, 'b h w f -> b (h w) f')
    if mask is not None:
      # Choosing patches before embedding them is the same as choosing tokens
      # after it, without the work for the hidden ones.
      x = jnp.take_along_axis(x, mask.visible[:, :, None], axis=1)
      positions = positions[mask.visible]
    x = patches.PatchEmbed(
      patch_size=self.patch_size,
      in_channels=self.in_channels,
      width=self.width,
      dtype=dtype,
      torch_init=INITS[self.init_scheme].torch_patches,
      name='patch_embed',
    )(x)
    x = x + positions.astype(dtype)
    cls = (
      self.param('cls', INITS[self.init_scheme].cls, (1, 1, self.width))
      + at_cls
    )
    cls = jnp.broadcast_to(cls.astype(dtype), (x.shape[0], 1, self.width))
    return jnp.concatenate([cls, x], axis=1)

  def _positions(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Positions of CLS, [d], and of the patches, [n, d], float32."""
    if self.positions == 'sincos':
      return jnp.zeros(()), jnp.asarray(sincos_2d(grid, self.width))
    side = self.positions_grid
    shape = (1, 1 + side * side, self.width)
    table = self.param('pos_embed', NORMAL_02, shape)[0]
    if grid == (side, side):
      return table[0], table[1:]
    matrix = interpolation_matrix(
      (side, side), grid, offset=self.positions_offset
    )
    highest = jax.lax.Precision.HIGHEST
    return table[0], jnp.matmul(matrix, table[1:], precision=highest)

  def _check(
    self, x: jax.Array, mask: Mask | None, noise: jax.Array | None
  ) -> None:
    """Raises ValueError, before anything compiles, for what cannot work."""
    for name, word, known in (
      ('pool', self.pool, ('cls', 'mean')),
      ('positions', self.positions, ('sincos', 'learned')),
      ('init_scheme', self.init_scheme, tuple(INITS)),
    ):
      if word not in known:
        words = ', '.join(map(repr, known))
        raise ValueError(f'unknown {name} {word!r}; known: {words}')
    patches.check_images(x, self.in_channels)
    b, height, width, _ = x.shape
    patches.check_divisible((height, width), self.patch_size)
    n = height * width // self.patch_size**2
    if mask is not None and mask.hidden.shape != (b, n):
      raise ValueError(
        f'mask is {list(mask.hidden.shape)}, the images have [{b}, {n}] patches'
      )
    layers.check_noise(noise, b, self.depth)
