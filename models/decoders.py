"""Decoders that turn encoder levels into predictions per patch."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers, patches
from models.dense import Dense
from models.initializers import TORCH, torch_bias
from models.swin_blocks import SwinBlock
from models.windows import Windows

FUSIONS = ('conv', 'transformer')
# Transformer fusion: maps with more tokens are attended to in windows, and
# heads are this wide.
GLOBAL_TOKENS, WINDOW, HEAD_WIDTH = 256, 7, 32


def level_indices(depth: int, k: int = 4) -> tuple[int, ...]:
  """RePre's choice of levels (Wang et al., arXiv:2201.06857, section 3.2).

  The paper's layers floor(L / K) * i for i < K and L itself, counted from 0.

  Args:
    depth: number of blocks L.
    k: number of levels K; 1 is the paper's "Single" ablation.

  Returns:
    K block indices, shallow to deep.

  Raises:
    ValueError: if K is not in 1..L.
  """
  if not 1 <= k <= depth:
    raise ValueError(f'{k} levels of {depth} blocks: choose 1 to {depth}')
  return tuple(depth // k * i - 1 for i in range(1, k)) + (depth - 1,)


def _block_widths(width: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
  """Width of every fusion block, from deep to shallow.

  Raises:
    ValueError: not one per block.
  """
  blocks = max(levels - 1, 1)
  if isinstance(width, int):
    return (width,) * blocks
  if len(width) != blocks:
    raise ValueError(
      f'width {tuple(width)} has {len(width)} numbers for {blocks} fusion '
      f'blocks of {levels} levels: give {blocks}, or one for all'
    )
  return tuple(width)


def lateral_widths(
  width: int | tuple[int, ...], levels: int
) -> tuple[int, ...]:
  """What levels are brought to before they are fused, shallow to deep.

  Args:
    width: of `FusionDecoder`.
    levels: how many.

  Raises:
    ValueError: widths that are not one per fusion block.
  """
  widths = _block_widths(width, levels)
  # The deepest two meet in the first block.
  return (widths[0], *widths)[::-1][-levels:]


class FusionDecoder(nn.Module):
  """RePre's light decoder (arXiv:2201.06857, section 3.3).

  From deep to shallow, each of the K - 1 fusion blocks concatenates what it has
  with the next shallower level and applies `fusion_layers` times 3x3
  convolution and ReLU; a 1x1 convolution predicts every patch's pixels. With
  one level (the "Single" ablation) one block works on it alone. Where levels
  get coarser with depth (Swin), what a block has is first upsampled to the
  shallower level's grid, bilinearly.

  Differs from the paper: 1x1 laterals bring the levels to `width` first. The
  # paper's width, the encoder's, costs 20 % of a step where it claims 4 %.

  With `fusion='transformer'` (Table 5) a block is a linear layer to `width` and
  `fusion_layers` pre-norm transformer blocks: over all tokens of a map, or over
  shifted windows of 7 x 7 where it has more than 256. Without positions of
  their own: the encoder's tokens know where they are.

  Parameters: `lateral_l` (l counts the levels from shallow), `fusion_i_j`
  (block i from deep, layer j) and `out`, each a kernel and a bias; with
  transformers `reduce_i` too, and `fusion_i_j` is a block.

  Attributes:
    width: width of the decoder, or of each fusion block from deep to shallow,
      such as (128, 64, 32) for four levels of Swin-T.
    patch_size: side p of what one position of the shallowest map predicts, in
      pixels: the encoder's `strides` at that level. A patch of a ViT, or of
      Swin's first stage; 32 for Swin's last one alone.
    out_channels: channels c of the images.
    fusion: 'conv' or 'transformer'.
    fusion_layers: layers per fusion block (paper: 2).
    lateral: project levels to `width`; off, the first convolution of a block
      takes them at their own width.
    mean: mean of the images in [0, 1], per channel or one number, with which
      the output's bias starts; None is ImageNet's, 0.5 if not three channels.
    dtype: 'float32' or 'bfloat16' for the convolutions.
  """

  width: int | tuple[int, ...]
  patch_size: int
  out_channels: int = 3
  fusion: str = 'conv'
  fusion_layers: int = 2
  lateral: bool = True
  mean: tuple[float, ...] | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, maps: tuple[jax.Array, ...]) -> jax.Array:
    """Predicts pixels from maps of several levels (`Level.map()`).

    Args:
      maps: K maps [b, h, w, d], shallow to deep, on one grid or on ones that
        get coarser.

    Returns:
      [b, h, w, p * p * c] float32 on the grid of the first map, in the order
      of `patches.patchify`.

    Raises:
      ValueError: without a map, for maps that get finer, for widths that are
        not one per fusion block, or an unknown fusion.
    """
    widths = self._widths(maps)
    if self.lateral:
      # No ReLU follows, hence a gain of 1 where the 3x3 take He's 2.
      init = nn.initializers.lecun_normal()
      laterals = lateral_widths(self.width, len(maps))
      maps = [
        self._conv(width, 1, init, f'lateral_{i}')(m)
        for i, (m, width) in enumerate(zip(maps, laterals, strict=True))
      ]
    *shallower, x = maps
    if not shallower:
      x = self._fuse(x, 0, widths[0])
    for i, shallow in enumerate(reversed(shallower)):
      if x.shape[1:3] != shallow.shape[1:3]:
        # Half-pixel centres; to the exact grid, as maps of odd sides were
        # padded before they were halved.
        shape = (*shallow.shape[:3], x.shape[-1])
        x = jax.image.resize(x, shape, 'bilinear')
      x = self._fuse(jnp.concatenate([x, shallow], axis=-1), i, widths[i])
    return self._pixels(x)

  def _widths(self, maps: tuple[jax.Array, ...]) -> tuple[int, ...]:
    """Width of every fusion block; raises ValueError for unfit maps."""
    layers.check_word('fusion', self.fusion, FUSIONS)
    if not maps:
      raise ValueError('the decoder needs at least one level')
    grids = [tuple(m.shape[1:3]) for m in maps]
    for (h, w), (deeper_h, deeper_w) in zip(grids, grids[1:], strict=False):
      if deeper_h > h or deeper_w > w:
        raise ValueError(
          f'levels must not get finer from shallow to deep: grids {grids}'
        )
    return _block_widths(self.width, len(maps))

  def _fuse(self, x: jax.Array, block: int, width: int) -> jax.Array:
    if self.fusion == 'transformer':
      return self._attend(x, block, width)
    for j in range(self.fusion_layers):
      init = nn.initializers.he_normal()
      x = nn.relu(self._conv(width, 3, init, f'fusion_{block}_{j}')(x))
    return x

  def _attend(self, x: jax.Array, block: int, width: int) -> jax.Array:
    """Transformer blocks on a map [b, h, w, d]; the result is `width` wide."""
    dtype = layers.compute_dtype(self.dtype)
    grid = x.shape[1:3]
    x = Dense(width, dtype=dtype, name=f'reduce_{block}')(x)
    x = rearrange(x, 'b h w d -> b (h w) d')
    fields = dict(num_heads=max(width // HEAD_WIDTH, 1), dtype=dtype)
    for j in range(self.fusion_layers):
      name = f'fusion_{block}_{j}'
      if x.shape[1] <= GLOBAL_TOKENS:
        x, _ = layers.Block(name=name, **fields)(x)
        continue
      half = WINDOW // 2 if j % 2 else 0
      windows = Windows(
        grid=grid,
        size=tuple(min(WINDOW, side) for side in grid),
        shift=tuple(half if side > WINDOW else 0 for side in grid),
        padding='masked',
      )
      x, _ = SwinBlock(windows=windows, reach=WINDOW, name=name, **fields)(x)
    return rearrange(x, 'b (h w) d -> b h w d', h=grid[0])

  def _pixels(self, x: jax.Array) -> jax.Array:
    """The 1x1 convolution, which starts close to the mean colour."""
    c = self.out_channels
    mean = patches.per_channel('mean', self.mean, patches.IMAGENET_MEAN, c)
    area = self.patch_size**2

    def mean_color(rng, shape, dtype=jnp.float32):
      del rng
      return jnp.tile(jnp.array(mean, dtype), area).reshape(shape)

    init = nn.initializers.normal(0.01)
    conv = self._conv(area * c, 1, init, 'out', bias_init=mean_color)
    return conv(x).astype(jnp.float32)

  def _conv(self, width, size, init, name, **kwargs) -> nn.Conv:
    return nn.Conv(
      width,
      (size, size),
      kernel_init=init,
      dtype=layers.compute_dtype(self.dtype),
      name=name,
      **kwargs,
    )


class LinearDecoder(nn.Module):
  """SimMIM's head (Xie et al., arXiv:2111.09886, section 3.3).

  One 1x1 convolution of one map predicts everything, hidden or not. Starts as
  PyTorch's default, which is the authors'.

  Parameters: `out`, a kernel and a bias, float32 whatever `dtype` says.

  Attributes:
    out_features: numbers f that are predicted for each place.
    scale: places per token along a side.
    dtype: 'float32' or 'bfloat16' for the product.
  """

  out_features: int
  scale: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, maps: tuple[jax.Array, ...]) -> jax.Array:
    """Maps the only element [b, h, w, d] to [b, h * s, w * s, f] float32."""
    (x,) = maps
    out = Dense(
      self.out_features * self.scale**2,
      dtype=layers.compute_dtype(self.dtype),
      kernel_init=TORCH,
      bias_init=torch_bias(x.shape[-1]),
      name='out',
    )
    x = out(x).astype(jnp.float32)
    places = 'b h w (p q f) -> b (h p) (w q) f'
    return rearrange(x, places, p=self.scale, q=self.scale)
