"""RePre's fusion decoder, given visible tokens alone."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from models import layers
from models.decoders import FusionDecoder, lateral_widths
from models.dense import Dense
from models.features import Level
from models.initializers import NORMAL_02
from models.masked_decoders import in_grid
from models.posemb import sincos_2d


class MaskedFusionDecoder(nn.Module):
  """Several levels of visible tokens, fused from deep to shallow into pixels.

  A linear layer, the lateral of `FusionDecoder`, brings the visible tokens of
  each level to the width of the block that reads them. They go back to their
  places in the level's grid; a token learned for the level stands in every
  other place, and fixed sine-cosine positions are added (MAE's, arXiv:
  2111.06377). What follows is RePre's decoder (arXiv:2201.06857, section 3.3),
  whose convolutions carry what is visible to what is not. Tokens that stand for
  no patch stay out.

  Parameters: `lateral_l` and `mask_token_l` [1, 1, d] (l counts the levels from
  shallow) and `fusion`, a `FusionDecoder`'s less its laterals.

  Attributes:
    width: see `FusionDecoder`; multiples of 4.
    patch_size: the encoder's stride at the shallowest level.
    out_channels: channels c of the images.
    fusion: 'conv' or 'transformer'.
    fusion_layers: layers per fusion block.
    mean: what the output's bias starts with, per channel or one number; targets
      that are normalised have a mean of 0.
    dtype: 'float32' or 'bfloat16'.
  """

  width: int | tuple[int, ...]
  patch_size: int
  out_channels: int = 3
  fusion: str = 'conv'
  fusion_layers: int = 2
  mean: tuple[float, ...] = (0.0,)
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, levels: tuple[Level, ...]) -> jax.Array:
    """Predicts all places from the visible tokens.

    Args:
      levels: K levels, shallow to deep, on one grid or on ones that get
        coarser, with their index.

    Returns:
      [b, h, w, p * p * c] float32 on the grid of the first level.

    Raises:
      ValueError: see `FusionDecoder`, or a width that is no multiple of 4.
    """
    decoder = FusionDecoder(
      width=self.width,
      patch_size=self.patch_size,
      out_channels=self.out_channels,
      fusion=self.fusion,
      fusion_layers=self.fusion_layers,
      lateral=False,
      mean=self.mean,
      dtype=self.dtype,
      name='fusion',
    )
    widths = lateral_widths(self.width, len(levels))
    maps = tuple(
      self._placed(level, width, i)
      for i, (level, width) in enumerate(zip(levels, widths, strict=True))
    )
    return decoder(maps)

  def _placed(self, level: Level, width: int, i: int) -> jax.Array:
    """A level as a whole map [b, h, w, width]."""
    if width % 4:
      raise ValueError(
        f'width {width} of a decoder of visible tokens must be a multiple of '
        '4: sine and cosine of two coordinates'
      )
    dtype = layers.compute_dtype(self.dtype)
    init = nn.initializers.lecun_normal()
    lateral = Dense(width, dtype=dtype, kernel_init=init, name=f'lateral_{i}')
    table = jnp.asarray(sincos_2d(level.grid, width, columns_first=True), dtype)
    token = self.param(f'mask_token_{i}', NORMAL_02, (1, 1, width))
    empty = jnp.broadcast_to(token[0].astype(dtype), table.shape)
    x = in_grid(lateral(level.tokens), level.index, empty) + table
    return rearrange(x, 'b (h w) d -> b h w d', h=level.grid[0])
