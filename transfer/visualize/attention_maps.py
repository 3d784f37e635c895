"""Where an encoder looks: attention as maps over the image."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from models.convvit import ConvViT
from models.swin import Swin
from models.windows import Windows


def attending(encoder: Any) -> range:
  """The blocks that attend: ConvViT begins with convolutions."""
  first = encoder.conv_depth if isinstance(encoder, ConvViT) else 0
  return range(first, encoder.depth)


def windows_of(encoder: Any, block: int, size: tuple[int, int]) -> Windows:
  """How a block cuts its map; encoders without windows have one, the map.

  Args:
    encoder: the module.
    block: 0-based over the whole network; negative from the end.
    size: (height, width) of the images.
  """
  if isinstance(encoder, Swin):
    return encoder.windows_of(block, size)
  grid = tuple(side // encoder.patch_size for side in size)
  return Windows(grid=grid, size=grid)


def stride_of(encoder: Any, block: int) -> int:
  """Pixels between neighbouring tokens of a block."""
  if not isinstance(encoder, Swin):
    return encoder.patch_size
  block %= encoder.depth
  return encoder.strides[
    int(np.searchsorted(np.cumsum(encoder.depths), block, side='right'))
  ]


def in_image(windows: Windows) -> np.ndarray:
  """Which places of the windows are patches and not padding.

  Returns:
    [windows, p * q] bool.
  """
  with jax.ensure_compile_time_eval():
    ones = windows.partition(jnp.ones((1, *windows.grid, 1)))
  return np.asarray(ones)[0, :, :, 0] > 0


def among_patches(weights: jax.Array, windows: Windows) -> jax.Array:
  """Attention of patches to patches, by window.

  Args:
    weights: a block's, [b, heads, n, n] with n - h * w prefix tokens first, or
      [b, windows, heads, n, n].
    windows: how the block cuts its map.

  Returns:
    [b, windows, heads, m, m], m places of a window: 0 where the query or the
    key is padding, and not normalised again.
  """
  if weights.ndim == 4:
    prefix = weights.shape[-1] - windows.grid[0] * windows.grid[1]
    weights = weights[:, None, :, prefix:, prefix:]
  real = in_image(windows)
  both = real[:, :, None] & real[:, None, :]
  return jnp.where(both[:, None], weights, 0)


def query_map(weights: jax.Array, windows: Windows, *, cls: bool) -> jax.Array:
  """What one query sees: CLS, or all patches in the mean.

  The mean over the whole map of a block with windows has a share of every
  window that is in proportion to its patches; the shares are put back where the
  windows were cut.

  Args:
    weights: a block's, see `among_patches`.
    windows: how the block cuts its map.
    cls: whether the first token is CLS and is the query.

  Returns:
    [b, heads, h, w] float32 that sum to 1 for every head.
  """
  h, w = windows.grid
  if cls:
    maps = rearrange(weights[:, :, 0, -h * w :], 'b a (h w) -> b a h w', h=h)
  else:
    seen = among_patches(weights, windows).sum(axis=-2)
    maps = windows.restore(rearrange(seen, 'b k a m -> b k m a'))
    maps = rearrange(maps, 'b h w a -> b a h w')
  return maps / maps.sum(axis=(-2, -1), keepdims=True)


def mass_mask(maps: np.ndarray, mass: float) -> np.ndarray:
  """The fewest patches that hold a share of the attention (Caron et al., 2021).

  Args:
    maps: [..., h, w], not negative.
    mass: the share of the sum, within 0..1; up to a relative 1e-6, what
      rounding makes of a sum.

  Returns:
    [..., h, w] bool, True where a patch is kept.
  """
  flat = np.asarray(maps, np.float64)
  flat = flat.reshape(*flat.shape[:-2], -1)
  order = np.argsort(-flat, axis=-1, kind='stable')
  held = np.cumsum(np.take_along_axis(flat, order, -1), axis=-1)
  # A patch is kept while those before it hold too little.
  before = np.concatenate([np.zeros_like(held[..., :1]), held[..., :-1]], -1)
  keep = before < mass * held[..., -1:] * (1 - 1e-6)
  out = np.zeros(flat.shape, bool)
  np.put_along_axis(out, order, keep, -1)
  return out.reshape(np.shape(maps))
