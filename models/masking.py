"""Which patches an encoder does not see.

One convention, everywhere: `hidden` is True where a patch is hidden from the
encoder and has to be predicted, False where it is visible.
"""

import math

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from flax import linen as nn
from flax import struct

from models.initializers import NORMAL_02, Initializer


@struct.dataclass
class Mask:
  """Hidden cells of a batch; every image shows the same number of them.

  A cell is what an encoder takes or leaves as a whole, `encoder.cell` pixels
  wide: a patch of a ViT, a token of the last stage of a ConvViT or a Swin.

  Attributes:
    hidden: True = hidden, [b, n] bool, over the row-major grid of cells; [1, n]
      where all images of the batch share one mask.
    visible: positions of the visible cells, ascending, [b, k] or [1, k] int32.
    grid: (h, w) in cells; static.
  """

  hidden: jax.Array
  visible: jax.Array
  grid: tuple[int, int] = struct.field(pytree_node=False)

  def rows(self, batch: int) -> 'Mask':
    """The mask with a row for each image, also where they share it."""
    if len(self.hidden) == batch:
      return self
    hidden, visible = (
      jnp.broadcast_to(x, (batch, x.shape[1]))
      for x in (self.hidden, self.visible)
    )
    return self.replace(hidden=hidden, visible=visible)

  def share(self, grid: tuple[int, int]) -> jax.Array:
    """How much of every place of a finer or coarser grid is hidden.

    Args:
      grid: (h, w), each a multiple or a part of the mask's own.

    Returns:
      [b, h, w] (or [1, h, w]) float32: 0 or 1, and between them where a place
      covers several cells (LocalMIM's scale of one half).

    Raises:
      ValueError: a grid that does not fit.
    """
    hidden = self.hidden.reshape(-1, *self.grid).astype(jnp.float32)
    for axis, (old, new) in enumerate(zip(self.grid, grid, strict=True), 1):
      if new % old and old % new:
        raise ValueError(
          f'a grid of {grid[0]}x{grid[1]} does not fit a mask of '
          f'{self.grid[0]}x{self.grid[1]} cells: neither divides the other'
        )
      if new >= old:
        hidden = jnp.repeat(hidden, new // old, axis)
      else:
        part = 'b (h p) w -> b h w' if axis == 1 else 'b h (w p) -> b h w'
        hidden = reduce(hidden, part, 'mean', p=old // new)
    return hidden


class MaskToken(nn.Module):
  """One learned vector in the place of hidden tokens (SimMIM, BEiT).

  Parameters: `token` [1, 1, d].

  Attributes:
    start: how it starts.
  """

  start: Initializer = NORMAL_02

  @nn.compact
  def __call__(self, x: jax.Array, mask: Mask | None) -> jax.Array:
    """Replaces hidden tokens.

    Args:
      x: all tokens in row-major order, [b, h * w, d].
      mask: over the same grid, or over one that it refines; None: x stays.

    Returns:
      [b, h * w, d], same dtype.
    """
    token = self.param('token', self.start, (1, 1, x.shape[-1]))
    if mask is None:
      return x
    side = math.isqrt(x.shape[1] // math.prod(mask.grid))
    hidden = finer(mask, side).hidden[:, :, None]
    return jnp.where(hidden, token.astype(x.dtype), x)


def check_mask(mask: Mask | None, images: tuple[int, ...], cell: int) -> None:
  """Raises ValueError for a mask of other images than [b, H, W, c]."""
  if mask is None:
    return
  b, height, width, _ = images
  grid = (height // cell, width // cell)
  rows, n = mask.hidden.shape
  if rows not in (1, b) or n != math.prod(grid) or mask.grid != grid:
    raise ValueError(
      f'mask is {list(mask.hidden.shape)}, the images have '
      f'[{b}, {math.prod(grid)}] patches: {mask.grid} and {grid}'
    )


def mask_from_noise(
  noise: jax.Array, keep: int, grid: tuple[int, int] | None = None
) -> Mask:
  """Keeps the `keep` cells of lowest noise of each row visible.

  MAE's shuffle (He et al., 2022, arXiv:2111.06377, section 3) with the visible
  patches put back into grid order, which attention does not notice.

  Args:
    noise: one number per cell, [b, n] float.
    keep: number of visible cells, 1..n.
    grid: (h, w) in cells; None: square.

  Returns:
    The Mask, [b, n] and [b, keep].

  Raises:
    ValueError: if `keep` is not in 1..n.
  """
  n = noise.shape[1]
  if not 1 <= keep <= n:
    raise ValueError(
      f'a mask must leave 1 to {n} of {n} patches visible, not {keep}: change '
      'the mask ratio'
    )
  order = jnp.argsort(noise, axis=1)
  visible = jnp.sort(order[:, :keep], axis=1)
  # By rank: a scatter over rows would make devices gather each other's.
  hidden = jnp.argsort(order, axis=1) >= keep
  return Mask(
    hidden=hidden,
    visible=visible.astype(jnp.int32),
    grid=grid or (math.isqrt(n),) * 2,
  )


def coarser(grid: tuple[int, int], unit: int) -> tuple[int, int]:
  """The grid of units of unit x unit cells.

  Raises:
    ValueError: units that do not tile the grid.
  """
  if grid[0] % unit or grid[1] % unit:
    raise ValueError(
      f'units of {unit}x{unit} do not tile a mask of {grid[0]}x{grid[1]} cells'
    )
  return grid[0] // unit, grid[1] // unit


def finer(mask: Mask, unit: int) -> Mask:
  """Every cell becomes unit x unit cells, all hidden or all visible."""
  if unit == 1:
    return mask
  keep = mask.visible.shape[1] * unit**2
  hidden = repeat(
    mask.hidden.reshape(-1, *mask.grid),
    'b h w -> b (h p w q)',
    p=unit,
    q=unit,
  )
  # Stable: what is visible comes first, in its order.
  visible = jnp.argsort(hidden, axis=1)[:, :keep].astype(jnp.int32)
  grid = (mask.grid[0] * unit, mask.grid[1] * unit)
  return Mask(hidden=hidden, visible=visible, grid=grid)


def keep_count(n: int, ratio: float) -> int:
  """How many of n cells stay visible: int(n · (1 − ratio)).

  Raises:
    ValueError: a ratio outside [0, 1).
  """
  if not 0 <= ratio < 1:
    raise ValueError(f'mask ratio must be in [0, 1), not {ratio}')
  return int(n * (1 - ratio))


def random_masking(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  ratio: float,
  unit: int = 1,
  shared: bool = False,
) -> Mask:
  """Hides a random set of cells, another one for each image, as MAE does.

  Row i depends on (rng, grid, i) alone, not on how many rows or devices
  there are (JAX's partitionable threefry counts elements).

  Args:
    rng: one key.
    grid: (h, w) in cells.
    hints: what a teacher says of the cells; ignored here.
    batch: number of images b.
    ratio: share of hidden cells; int(n * (1 - ratio)) stay visible.
    unit: cells that are hidden or visible together, as squares of this side
      (SimMIM hides 32 px on patches of 16); the ratio counts these.
    shared: one mask for all images (GreenMIM, LocalMIM on Swin).

  Returns:
    The Mask, [b, h * w] and [b, k]; b = 1 where it is shared.

  Raises:
    ValueError: if the ratio is outside [0, 1) or leaves no patch visible, or
      units do not tile the grid.
  """
  del hints
  coarse = coarser(grid, unit)
  n = math.prod(coarse)
  noise = jax.random.uniform(rng, (1 if shared else batch, n))
  return finer(mask_from_noise(noise, keep_count(n, ratio), coarse), unit)
