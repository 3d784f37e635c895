"""Pieces of maps: the visible cells alone, so that the rest costs nothing.

A stage works on pieces [b, k, p, q, d]: the k visible cells of each map, p x q
tokens each, or, where nothing is hidden, the whole map as one piece.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from models.features import Level
from models.masking import Mask


def take(x: jax.Array, mask: Mask | None, side: int) -> jax.Array:
  """Maps to pieces.

  Args:
    x: [b, h * side, w * side, d], any dtype.
    mask: over the h x w cells, or None.
    side: of a cell.

  Returns:
    The visible cells [b, k, side, side, d], or the maps [b, 1, ...].
  """
  if mask is None:
    return x[:, None]
  x = rearrange(x, 'b (h p) (w q) d -> b (h w) p q d', p=side, q=side)
  return jnp.take_along_axis(x, mask.visible[:, :, None, None, None], axis=1)


def place(x: jax.Array, mask: Mask | None) -> jax.Array:
  """Undoes `take`, with zeros in the hidden cells.

  Args:
    x: pieces [b, k, p, q, d].
    mask: over the h x w cells, or None.

  Returns:
    [b, h * p, w * q, d], same dtype.
  """
  if mask is None:
    return x[:, 0]
  h, w = mask.grid

  def one(cells, visible):
    everywhere = jnp.zeros((h * w, *cells.shape[1:]), x.dtype)
    return everywhere.at[visible].set(cells, unique_indices=True)

  x = jax.vmap(one)(x, mask.rows(len(x)).visible)
  return rearrange(x, 'b (h w) p q d -> b (h p) (w q) d', h=h)


def places(mask: Mask, side: int) -> tuple[jax.Array, jax.Array]:
  """Where the tokens of pieces stand on the whole map.

  Args:
    mask: over the cells.
    side: of a cell, in tokens.

  Returns:
    Row and column of every token, each [b, k * side**2] int32 (or [1, ...] of a
    shared mask), cell by cell and row-major inside each.
  """
  row, column = jnp.divmod(mask.visible[:, :, None, None], mask.grid[1])
  inside = jnp.arange(side, dtype=jnp.int32)
  row, column = row * side + inside[:, None], column * side + inside
  return tuple(
    x.reshape(len(mask.visible), -1) for x in jnp.broadcast_arrays(row, column)
  )


def row_major(mask: Mask, side: int) -> tuple[jax.Array, jax.Array]:
  """What brings tokens of pieces into the row-major order of the map.

  Args:
    mask: over the cells.
    side: of a cell, in tokens.

  Returns:
    Positions in the map, ascending, and which token of the pieces stands there,
    each [b, k * side**2] int32 (or [1, ...] of a shared mask).
  """
  row, column = places(mask, side)
  index = row * (mask.grid[1] * side) + column
  order = jnp.argsort(index, axis=1)
  return jnp.take_along_axis(index, order, axis=1), order


def level(x: jax.Array, mask: Mask | None) -> Level:
  """Pieces as a level: tokens in row-major order, of visible cells only.

  Args:
    x: [b, k, p, q, d].
    mask: over the cells, or None.

  Returns:
    The Level, whose grid and index count tokens and not cells.
  """
  b, _, p, q, d = x.shape
  tokens = x.reshape(b, -1, d)
  prefix = jnp.zeros((b, 0, d), x.dtype)
  if mask is None:
    return Level(prefix, tokens, grid=(p, q))
  index, order = row_major(mask, p)
  return Level(
    prefix,
    jnp.take_along_axis(tokens, order[:, :, None], axis=1),
    grid=(mask.grid[0] * p, mask.grid[1] * q),
    index=jnp.broadcast_to(index, tokens.shape[:2]),
  )
