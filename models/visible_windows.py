"""Windows on what a mask leaves visible: one group of tokens, kept apart.

Which windows hold how many visible tokens changes with every mask. GreenMIM
(Huang et al., arXiv:2205.13515) packs them into groups of one size; here all
tokens of a stage are one group, whose shape is static, and a mask of pairs
keeps windows apart. It is the same function, at n^2 pairs for n visible tokens
where packing has about 49 n: 768 of 3,136 in the first stage of 224 px.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from models.masking import Mask
from models.windows import FORBIDDEN, Windows, local_bias


@struct.dataclass
class VisibleWindows:
  """Which visible tokens share a window, and where they stand in it.

  The blocks of a stage share it, those with a shift and those without.

  Attributes:
    inside: place of a token in its window, one-hot, [b, n, p * q] float32; b =
      1 where all images share one mask.
    apart: pairs in different windows, [b, n, n] bool.
    order: which token comes where in row-major order, [b, n] int32.
    windows: how the whole map is cut; static.
  """

  inside: jax.Array
  apart: jax.Array
  order: jax.Array
  windows: Windows = struct.field(pytree_node=False)

  @classmethod
  def at(
    cls,
    windows: Windows,
    row: jax.Array,
    column: jax.Array,
    order: jax.Array,
  ) -> VisibleWindows:
    """Windows of the tokens at these places.

    A shifted window that the edge of the map cuts is partial. Nothing is
    rolled: it equals the roll, which puts the other part of the window beside
    it and then hides it.

    Args:
      windows: how the whole map is cut.
      row: of every token, [b, n] int32.
      column: the same.
      order: see the attribute.

    Raises:
      ValueError: where attention is meant to see padding.
    """
    if windows.padding != 'masked' and windows.padded != windows.grid:
      raise ValueError(
        'padding {!r} shows attention the zeros around a map of {}x{} in '
        'windows of {}x{}, which a masked map has not: set padding={!r}, or '
        'take images whose maps windows tile'.format(
          windows.padding, *windows.grid, *windows.size, 'masked'
        )
      )
    along, inside = zip(
      *(
        jnp.divmod(place + (size - shift) % size, size)
        for place, size, shift in zip(
          (row, column), windows.size, windows.shift, strict=True
        )
      ),
      strict=True,
    )
    window = along[0] * (windows.grid[1] + 1) + along[1]
    p, q = windows.size
    return cls(
      inside=jax.nn.one_hot(inside[0] * q + inside[1], p * q),
      apart=window[:, :, None] != window[:, None, :],
      order=order,
      windows=windows,
    )

  def bias(self, table: jax.Array, reach: int) -> jax.Array:
    """What is added to the logits, FORBIDDEN across windows included.

    The bias of whole windows, with rows and then columns chosen by products
    with one-hot matrices: exact, and their gradient is two products and no
    scatter of n^2 numbers into a table of a few rows. Forward and backward on
    two cores: 6.1 against 9.9 ms for 768 tokens and 4 heads in windows of 7,
    48 against 79 ms for 4 masks of their own.

    Args:
      table: [(2 * reach - 1)**2, heads] float32.
      reach: side of the windows that the table is for.

    Returns:
      [b, heads, n, n] float32.
    """
    bias = local_bias(table, self.windows.size, reach)
    exact = jax.lax.Precision.HIGHEST
    bias = jnp.einsum('bnp,hpq->bhnq', self.inside, bias, precision=exact)
    bias = jnp.einsum('bhnq,bmq->bhnm', bias, self.inside, precision=exact)
    return jnp.where(self.apart[:, None], FORBIDDEN, bias)

  def in_order(self, weights: jax.Array) -> jax.Array:
    """Attention weights [b, heads, n, n] as [b, 1, heads, n, n], row-major."""
    for axis in (2, 3):
      order = jnp.expand_dims(self.order, {2: (1, 3), 3: (1, 2)}[axis])
      weights = jnp.take_along_axis(weights, order, axis)
    return weights[:, None]


def released_places(mask: Mask, side: int) -> tuple[jax.Array, jax.Array]:
  """Where LocalMIM's released code thinks tokens stand after a merging.

  It counts tokens cell by cell, as they are stored, and reads the number as if
  it ran row by row over the whole map.

  Args:
    mask: over the cells.
    side: of a cell, in tokens.

  Returns:
    Row and column of every token as from `pieces.places`, mostly wrong.
  """
  number = mask.visible[:, :, None] * side**2
  number = number + jnp.arange(side**2, dtype=jnp.int32)
  number = number.reshape(len(mask.visible), -1)
  return tuple(jnp.divmod(number, mask.grid[1] * side))
