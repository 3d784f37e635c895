"""Windows on maps: partition, cyclic shift, padding, masks, position bias.

Everything here depends on static sizes only. Indices and masks are NumPy
arrays, made once per size while a program is traced.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

PADDINGS = ('masked', 'zeros', 'timm')
# Logit of pairs that may not attend. The authors add -100, which trained logits
# can come near. Every row has a pair that may, but -inf - -inf is in reach.
FORBIDDEN = -1e9


@dataclasses.dataclass(frozen=True)
class Windows:
  """How maps of one size are cut into windows (Liu et al., arXiv:2103.14030).

  Attributes:
    grid: (h, w) of the map.
    size: (p, q) of a window.
    shift: rows and columns by which the map is rolled up and left before it is
      cut; (0, 0) in blocks without a shift.
    padding: what happens where windows do not tile the map and zeros are put
      below and to the right of it. 'masked' hides them from attention;
      'zeros' lets queries see them, as Hugging Face and the authors' detection
      code do; 'timm' sees them too, and rolls the map before it pads it, so
      that windows at the seam can mix opposite edges.
  """

  grid: tuple[int, int]
  size: tuple[int, int]
  shift: tuple[int, int] = (0, 0)
  padding: str = 'masked'

  @property
  def padded(self) -> tuple[int, int]:
    """The smallest (h, w) that windows tile and that holds the map."""
    return tuple(
      -(-side // size) * size
      for side, size in zip(self.grid, self.size, strict=True)
    )

  def partition(self, x: jax.Array) -> jax.Array:
    """Pads, rolls and cuts maps.

    Args:
      x: [b, h, w, d], any dtype.

    Returns:
      [b, windows, p * q, d], both in row-major order; same dtype.
    """
    below, right = (b - a for a, b in zip(self.grid, self.padded, strict=True))
    amounts = ((0, 0), (0, below), (0, right), (0, 0))
    if self.padding == 'timm':
      x = jnp.pad(self._roll(x, -1), amounts)
    else:
      x = self._roll(jnp.pad(x, amounts), -1)
    p, q = self.size
    return rearrange(x, 'b (h p) (w q) d -> b (h w) (p q) d', p=p, q=q)

  def restore(self, x: jax.Array) -> jax.Array:
    """Undoes `partition`: [b, windows, p * q, d] to [b, h, w, d]."""
    rows, columns = self.padded
    p, q = self.size
    x = rearrange(
      x,
      'b (h w) (p q) d -> b (h p) (w q) d',
      h=rows // p,
      w=columns // q,
      p=p,
      q=q,
    )
    h, w = self.grid
    if self.padding == 'timm':
      return self._roll(x[:, :h, :w], 1)
    return self._roll(x, 1)[:, :h, :w]

  def _roll(self, x: jax.Array, sign: int) -> jax.Array:
    for axis, shift in enumerate(self.shift, start=1):
      if shift:
        x = jnp.roll(x, sign * shift, axis)
    return x


def fitting(
  grid: tuple[int, int], native: tuple[int, int], side: int, padding: str
) -> tuple[Windows, Windows]:
  """Windows of blocks without a shift and of those with one.

  Args:
    grid: (h, w) of the map.
    native: (h, w) of the map that decides where windows shrink, along an axis,
      and are not shifted; with 'zeros' they stay square.
    side: of a window that does not shrink.
    padding: see `Windows`.
  """
  if padding == 'zeros' and min(native) <= side:
    native = (min(native),) * 2
  size = tuple(min(side, n) for n in native)
  shift = tuple(side // 2 if n > side else 0 for n in native)
  plain = Windows(grid, size, padding=padding)
  return plain, dataclasses.replace(plain, shift=shift)


@functools.lru_cache(maxsize=256)
def attention_mask(windows: Windows) -> np.ndarray | None:
  """What forbids attention across the seam of a shift and to padding.

  After the roll a window at the edge holds up to four regions that are no
  neighbours in the image. Padding, where it is masked, is a region of its own.

  Args:
    windows: how the map is cut.

  Returns:
    [windows, n, n] bool, queries before keys, True = forbidden; None where
    nothing is.
  """
  wrapped, beyond = zip(
    *(
      _regions(side, full, shift)
      for side, full, shift in zip(
        windows.grid, windows.padded, windows.shift, strict=True
      )
    ),
    strict=True,
  )
  regions = 2 * wrapped[0][:, None] + wrapped[1][None, :]
  if windows.padding == 'masked':
    regions[beyond[0][:, None] | beyond[1][None, :]] = -1
  p, q = windows.size
  regions = rearrange(regions, '(h p) (w q) -> (h w) (p q)', p=p, q=q)
  forbidden = regions[:, :, None] != regions[:, None, :]
  return _read_only(forbidden) if forbidden.any() else None


def _regions(side: int, full: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
  """Of places of a rolled axis: came around the edge? is padding? [full]."""
  place = np.arange(full)
  return (place >= full - shift).astype(int), (place + shift) % full >= side


@functools.lru_cache(maxsize=256)
def relative_index(size: tuple[int, int], reach: int) -> np.ndarray:
  """Which row of a table of position biases belongs to a pair of places.

  Args:
    size: (p, q) of the windows.
    reach: side of the windows that the table is for. Smaller windows read the
      rows of the offsets that they have, so a table serves maps of any size.

  Returns:
    [n, n] int32 rows of a table [(2 * reach - 1)**2, heads], queries before
    keys: (row offset, column offset) in row-major order, from (1 - reach, 1 -
    reach) on.
  """
  places = np.stack(np.indices(size)).reshape(2, -1)
  rows, columns = places[:, :, None] - places[:, None, :] + reach - 1
  return _read_only((rows * (2 * reach - 1) + columns).astype(np.int32))


def _read_only(x: np.ndarray) -> np.ndarray:
  x.flags.writeable = False
  return x


def local_bias(
  table: jax.Array, size: tuple[int, int], reach: int
) -> jax.Array:
  """The bias of one whole window.

  Args:
    table: [(2 * reach - 1)**2, heads] float32.
    size: (p, q) of the window.
    reach: side of the windows that the table is for.

  Returns:
    [heads, n, n] float32, n = p * q.
  """
  return rearrange(table[relative_index(size, reach)], 'n m h -> h n m')


def position_bias(table: jax.Array, windows: Windows, reach: int) -> jax.Array:
  """What is added to the logits of every window, the mask included.

  Args:
    table: [(2 * reach - 1)**2, heads] float32.
    windows: how the map is cut.
    reach: side of the windows that the table is for.

  Returns:
    [windows, heads, n, n] float32, or [1, heads, n, n] where nothing is
    forbidden.
  """
  bias = local_bias(table, windows.size, reach)[None]
  forbidden = attention_mask(windows)
  if forbidden is None:
    return bias
  return jnp.where(forbidden[:, None], FORBIDDEN, bias)
