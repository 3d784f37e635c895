"""Biases by relative position for a ViT's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from models.initializers import NORMAL_02, Initializer
from models.posemb import resample

TO_CLS = 3  # rows at the end of a table: CLS to patch, patch to CLS, CLS itself
RELATIVE = ('none', 'shared', 'block')


class RelativePositions(nn.Module):
  """Learned biases of a ViT's attention by relative position (BEiT's).

  Bao et al., arXiv:2106.08254, as released; SimMIM's ViT shares one table
  between all blocks.

  Parameters: `shared`, or `block_i` for every block, [(2h - 1)(2w - 1) + 3,
  heads]: offsets in row-major order from (1 - h, 1 - w) on, then CLS to patch,
  patch to CLS, CLS to itself; without these three where there is no CLS.

  Attributes:
    kind: 'shared' or 'block'.
    depth: number of blocks.
    num_heads: attention heads.
    grid: (h, w) in patches that the tables are for; resampled bicubically for
      others, as PyTorch does when it is given the size.
    class_token: whether there is a CLS token before the patches.
    start: how tables start.
  """

  kind: str
  depth: int
  num_heads: int
  grid: tuple[int, int]
  class_token: bool = True
  start: Initializer = NORMAL_02

  @nn.compact
  def __call__(
    self, grid: tuple[int, int], visible: jax.Array | None = None
  ) -> list[jax.Array]:
    """The biases of every block.

    Args:
      grid: (h, w) of the image in patches.
      visible: positions of the visible patches, [b, k]; None for all.

    Returns:
      `depth` times [heads, n, n] float32, or [b, heads, n, n] of the visible.
    """
    h, w = self.grid
    rows = (2 * h - 1) * (2 * w - 1) + (TO_CLS if self.class_token else 0)
    names = ['shared']
    if self.kind == 'block':
      names = [f'block_{i}' for i in range(self.depth)]
    biases = [
      self._bias(
        self.param(name, self.start, (rows, self.num_heads)), grid, visible
      )
      for name in names
    ]
    return biases * (self.depth // len(biases))

  def _bias(self, table, grid, visible):
    old, new = (tuple(2 * n - 1 for n in sides) for sides in (self.grid, grid))
    count = old[0] * old[1]
    offsets, rest = table[:count], table[count:]
    offsets = resample(offsets, old, new, offset=0.0)
    table = jnp.concatenate([offsets, rest])
    index = jnp.asarray(_index(grid, self.class_token))
    if visible is None:
      return jnp.moveaxis(table[index], -1, 0)
    if self.class_token:
      cls = jnp.zeros((visible.shape[0], 1), visible.dtype)
      visible = jnp.concatenate([cls, visible + 1], axis=1)
    index = index[visible[:, :, None], visible[:, None, :]]
    return jnp.moveaxis(table[index], -1, 1)


@functools.lru_cache(maxsize=64)
def _index(grid: tuple[int, int], class_token: bool) -> np.ndarray:
  """Row of the table for every pair, [n, n], queries before keys."""
  h, w = grid
  places = np.stack(np.indices(grid)).reshape(2, -1)
  rows, columns = places[:, :, None] - places[:, None, :]
  index = (rows + h - 1) * (2 * w - 1) + columns + w - 1
  if class_token:
    index = np.pad(index, ((1, 0), (1, 0)))
    last = (2 * h - 1) * (2 * w - 1) + TO_CLS - 1
    index[0, :], index[:, 0], index[0, 0] = last - 2, last - 1, last
  index.flags.writeable = False
  return index
