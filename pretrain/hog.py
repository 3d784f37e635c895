"""Histograms of oriented gradients as a target (MaskFeat, LocalMIM).

Wei et al.: Masked Feature Prediction for Self-Supervised Visual Pre-Training,
2022 (arXiv:2112.09133); Wang et al.: Masked Image Modeling with Local
Multi-Scale Reconstruction, 2023 (arXiv:2303.05251). Votes are hard, over
unsigned directions: bin k has the angles [kπ/n, (k + 1)π/n) of atan2(gx, gy),
and a channel's votes in a cell have length 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from models.patches import normalize

# What PyTorch draws a convolution's bias from, for the 3 x 3 of one channel.
OFFSET_BOUND, OFFSET_SEED = 1 / 3, 20230305
SMALLEST = 2  # px: a cell of one pixel would only tell which bin that is in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hog:
  """Histograms of the gradients of the image as the encoder sees it.

  Attributes:
    cell: side in pixels of what has one histogram, at least 2.
    bins: directions n in half a turn.
    offset: added to (gx, gy) of every pixel; None: nothing. LocalMIM's
      `hog_bias`: its gradients are a convolution whose random bias stays, so
      that flat cells have a direction instead of zeros. See `random_offset`.
    mean: the encoder's; see `models.patches.normalize`.
    std: the encoder's.
  """

  cell: int
  bins: int = 9
  offset: tuple[float, float] | None = None
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None

  def __post_init__(self):
    _check(self.cell, self.bins)

  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, H, W, c] in [0, 1] -> [b, H / cell, W / cell, c·n], see `hog`."""
    x = normalize(images.astype(jnp.float32), self.mean, self.std)
    return hog(x, cell=self.cell, bins=self.bins, offset=self.offset)

  def restore(self, prediction: jax.Array, images: jax.Array) -> jax.Array:
    """A drawing of histograms, to be looked at.

    Every cell shows a line for each bin, along the edge that has such
    gradients, as bright as the bin is full (the mean over channels; what is
    negative is dark).

    Args:
      prediction: [b, h, w, c·n].
      images: the true ones, [b, H, W, c]; only their channels matter.

    Returns:
      [b, h · cell, w · cell, c] in [0, 1], float32; all channels are the same.
    """
    weights = reduce(
      prediction.astype(jnp.float32),
      'b h w (c n) -> b h w n',
      'mean',
      n=self.bins,
    )
    # [b, h, p, w, q]: the brightest of the lines that cross a pixel.
    drawn = jnp.max(
      weights[:, :, None, :, None] * _lines(self.cell, self.bins), axis=-1
    )
    drawn = rearrange(drawn, 'b h p w q -> b (h p) (w q) 1')
    shape = (*drawn.shape[:3], images.shape[-1])
    return jnp.broadcast_to(jnp.clip(drawn, 0, 1), shape)


def hog(
  x: jax.Array,
  *,
  cell: int,
  bins: int = 9,
  offset: tuple[float, float] | None = None,
) -> jax.Array:
  """Histograms of the Sobel gradients of images, by channel and cell.

  A pure function of normalised images: unlike brightness and contrast, what
  counts is how the channels of `x` are scaled only where there is an offset.

  Args:
    x: images, [b, H, W, c] of any range.
    cell: side of a cell in pixels.
    bins: directions n in half a turn.
    offset: added to (gx, gy).

  Returns:
    [b, H / cell, W / cell, c·n] float32, the first channel's n bins first; of
    length 1 for every channel, or 0 where a cell is flat.

  Raises:
    ValueError: cells that do not tile the image or are too small, or no bins.
  """
  gx, gy = sobel(x.astype(jnp.float32))
  if offset is not None:
    gx, gy = gx + offset[0], gy + offset[1]
  return histograms(gx, gy, cell=cell, bins=bins)


def sobel(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gradients gx (left minus right) and gy (up minus down), [b, H, W, c].

  The image is mirrored at its border, without repeating the border.
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
  # Differences first: they are exactly 0 where the image is flat.
  across = x[:, :, :-2] - x[:, :, 2:]
  down = x[:, :-2] - x[:, 2:]
  gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
  gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
  return gx, gy


def histograms(
  gx: jax.Array, gy: jax.Array, *, cell: int, bins: int
) -> jax.Array:
  """Votes of gradients [b, H, W, c] by cell, channel and bin.

  Several sizes of cells in one program share all but their last steps.

  Returns:
    [b, H / cell, W / cell, c·n] float32, each channel's n of length 1 or 0.

  Raises:
    ValueError: see `hog`.
  """
  _check(cell, bins)
  _check_tiles(gx.shape[1:3], cell)
  size = jnp.sqrt(gx**2 + gy**2)
  # An angle and its opposite are the same: into [0, π), where a gradient is
  # past the angle a if gx · cos a >= gy · sin a. Exact at 0, π/4, π/2, 3π/4,
  # which atan2 and a division are not once they are compiled.
  turn = (gx < 0) | ((gx == 0) & (gy < 0))
  gx, gy = (jnp.where(turn, -g, g)[..., None] for g in (gx, gy))
  edges = np.arange(bins + 1) * np.pi / bins
  cos, sin = (f(edges).astype(np.float32) for f in (np.cos, np.sin))
  past = gx * cos[1:-1] >= gy * sin[1:-1]
  beyond = jnp.pad(past, [(0, 0)] * 4 + [(1, 0)], constant_values=True)
  before = ~jnp.pad(past, [(0, 0)] * 4 + [(0, 1)], constant_values=False)
  votes = jnp.where(beyond & before, size[..., None], 0)
  votes = _means(votes, cell)
  length = jnp.linalg.norm(votes, axis=-1, keepdims=True)
  return rearrange(
    votes / jnp.maximum(length, 1e-12), 'b h w c n -> b h w (c n)'
  )


def random_offset(index: int) -> tuple[float, float]:
  """An offset (gx, gy) as LocalMIM's code draws one for each scale.

  U(-1/3, 1/3) for each direction, the same numbers in every run.

  Args:
    index: of the scale.
  """
  rng = np.random.default_rng((OFFSET_SEED, index))
  gx, gy = rng.uniform(-OFFSET_BOUND, OFFSET_BOUND, 2)
  return float(gx), float(gy)


def _means(x: jax.Array, cell: int) -> jax.Array:
  """Means over cells of [b, H, W, c, n], in steps that other cells share."""
  while cell > 1:
    step = 2 if cell % 2 == 0 else cell
    x = reduce(x, 'b (h p) (w q) c n -> b h w c n', 'mean', p=step, q=step)
    cell //= step
  return x


def _lines(cell: int, bins: int) -> np.ndarray:
  """A line through a cell for every bin, [p, 1, q, n] in [0, 1]."""
  angle = (np.arange(bins) + 0.5) * np.pi / bins
  places = np.arange(cell) - (cell - 1) / 2
  y, x = places[:, None, None, None], places[None, None, :, None]
  # Gradients are along (sin, cos) of the angle, edges across that.
  aside = np.abs(x * np.sin(angle) + y * np.cos(angle))
  width = max(1, cell / 12)
  line = np.clip(width - aside, 0, 1)
  return (line * (np.hypot(x, y) <= cell / 2)).astype(np.float32)


def _check(cell: int, bins: int) -> None:
  if cell < SMALLEST:
    raise ValueError(
      f'a HOG cell must be at least {SMALLEST} pixels wide, not {cell}: take '
      'pixels as the target of so fine a scale'
    )
  if bins < 1:
    raise ValueError(f'HOG needs at least 1 bin, not {bins}')


def _check_tiles(size: tuple[int, int], cell: int) -> None:
  if not (size[0] % cell or size[1] % cell):
    return
  lower = [max(s // cell, 1) * cell for s in size]
  upper = [-(-s // cell) * cell for s in size]
  nearest = dict.fromkeys(f'{h}x{w}' for h, w in (lower, upper))
  raise ValueError(
    f'HOG cells of {cell} pixels do not tile an image of {size[0]}x{size[1]}; '
    f'nearest sizes that work: {", ".join(nearest)}'
  )
