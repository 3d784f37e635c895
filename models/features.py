"""What every encoder returns: all levels, final tokens, pooled features."""

from __future__ import annotations

import jax
from einops import rearrange
from flax import struct


@struct.dataclass
class Level:
  """The raw residual stream after one block or stage, before any final norm.

  `Features.final` alone is what follows that norm.

  Attributes:
    prefix: tokens that stand for no patch, such as CLS, [b, p, d].
    tokens: patch tokens in row-major order, [b, k, d]; in the compute dtype.
    grid: (h, w) of the whole image in patches; static.
    index: where the tokens stand in the grid when a mask hid the others,
      [b, k] int32, ascending; None when all h * w patches are here.
  """

  prefix: jax.Array
  tokens: jax.Array
  grid: tuple[int, int] = struct.field(pytree_node=False)
  index: jax.Array | None = None

  def map(self) -> jax.Array:
    """Returns the patch tokens as a map [b, h, w, d]; the prefix stays out.

    Raises:
      ValueError: if a mask left only some of the patches.
    """
    if self.index is not None:
      raise ValueError(
        'a masked level has no full map: place its tokens by level.index, or '
        'call the encoder without a mask'
      )
    h, w = self.grid
    return rearrange(self.tokens, 'b (h w) d -> b h w d', h=h, w=w)


@struct.dataclass
class Features:
  """All that one call of an encoder yields; `jit` drops what nobody uses.

  Attributes:
    levels: one Level per block or stage, shallow to deep.
    tokens: patch tokens after the final norm, [b, k, d] float32.
    pooled: the image feature that probes read, [b, d] float32.
    cls: CLS token after the final norm, [b, d] float32; None without one.
    merged: the stream after each patch merging, shallow to deep, of encoders
      that merge patches; `merged[i]` follows `levels[i]`.
    attention: {block as asked for: weights float32}: [b, heads, n, n], n with
      prefix, or [b, windows, heads, n, n] of blocks that attend in windows.
  """

  levels: tuple[Level, ...]
  tokens: jax.Array
  pooled: jax.Array
  cls: jax.Array | None = None
  merged: tuple[Level, ...] = ()
  attention: dict[int, jax.Array] = struct.field(default_factory=dict)

  def tap(self, where: int | str) -> Level:
    """One of all these by name.

    Args:
      where: number of a level; 'merged_i' for `merged[i]`; 'final'.

    Raises:
      ValueError: there is none of that name.
    """
    if where == 'final':
      return self.final
    merged = {f'merged_{i}': level for i, level in enumerate(self.merged)}
    if where in merged:
      return merged[where]
    if where not in range(-len(self.levels), len(self.levels)):
      known = (f'0 to {len(self.levels) - 1}', 'final', *merged)
      raise ValueError(f'no level {where!r}; known: {", ".join(known)}')
    return self.levels[where]

  @property
  def final(self) -> Level:
    """What follows the final norm, CLS and patches, as a level; float32."""
    last = self.levels[-1]
    prefix = self.tokens[:, :0] if self.cls is None else self.cls[:, None]
    return last.replace(prefix=prefix, tokens=self.tokens)
