"""Position tables: fixed ones, and learned ones for other grids."""

import jax
import jax.numpy as jnp
import numpy as np


def sincos_2d(
  grid: tuple[int, int], width: int, *, columns_first: bool = False
) -> np.ndarray:
  """MoCo v3's 2-D sine-cosine table (Chen et al., arXiv:2104.02057, 4.1).

  The patch at row r and column c gets [sin rw, cos rw, sin cw, cos cw] with
  frequencies w_k = 10000^(-k / (width / 4)). MAE's table is this one with the
  row and column halves exchanged.

  Differs from the authors' code on grids that are not square: there entry i
  # is (i // h, i % h), which is not the order of the tokens; here it always is.

  Args:
    grid: (h, w) in patches.
    width: width of the tokens.
    columns_first: MAE's table, of which ConvMAE's is one.

  Returns:
    [h * w, width] float32 in row-major order; computed in float64.

  Raises:
    ValueError: if the width is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(
      f'sine-cosine positions need a width divisible by 4, not {width}: '
      f'{width - width % 4} or {width + 4 - width % 4} would do'
    )
  h, w = grid
  frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
  row = np.repeat(np.arange(h), w)[:, None] * frequency
  column = np.tile(np.arange(w), h)[:, None] * frequency
  table = [np.sin(row), np.cos(row), np.sin(column), np.cos(column)]
  if columns_first:
    table = table[2:] + table[:2]
  return np.concatenate(table, axis=1).astype(np.float32)


def interpolation_matrix(
  old: tuple[int, int],
  new: tuple[int, int],
  *,
  offset: float = 0.1,
  antialias: bool = False,
) -> np.ndarray:
  """Bicubic resampling of a grid of positions as one fixed matrix.

  What PyTorch's bicubic `interpolate` does without antialiasing: the four
  nearest rows and columns with Keys' kernel of a = -0.75, pixels of the border
  repeated. `jax.image.resize` has a = -0.5 and antialiases.

  DINO's authors ask for a scale of (new + 0.1) / old, so that rounding gives
  the right size, and PyTorch then samples by that scale: `offset` 0.1. Hugging
  Face's ViT and DINOv2 ask for the size: `offset` 0. The same weights give
  different positions. timm, and DINOv2 with registers, antialias: the kernel,
  then of a = -0.5, grows with the old grid's share of the new one.

  Args:
    old: (h, w) of the grid that there is.
    new: (h, w) of the grid that is wanted.
    offset: added to the new sides before their ratio to the old is taken.
    antialias: PyTorch's `antialias=True`, for which there is no offset.

  Returns:
    [new h * new w, old h * old w] float32, for positions in row-major order;
    the identity if the grids are the same, whatever the offset.
  """
  if old == new:
    return np.eye(old[0] * old[1], dtype=np.float32)
  rows, columns = (
    _antialiased(a, b) if antialias else _bicubic(a, b, offset)
    for a, b in zip(old, new, strict=True)
  )
  return np.kron(rows, columns).astype(np.float32)


def resample(
  table: jax.Array,
  old: tuple[int, int],
  new: tuple[int, int],
  *,
  offset: float,
  antialias: bool = False,
) -> jax.Array:
  """A learned table for another grid, see `interpolation_matrix`.

  Args:
    table: [old h * old w, d] float32.
    old: (h, w) of the grid that it is for.
    new: (h, w) of the grid that is wanted.
    offset: see `interpolation_matrix`.
    antialias: see `interpolation_matrix`.

  Returns:
    [new h * new w, d] float32; the table itself if the grids are the same.
  """
  if old == new:
    return table
  matrix = interpolation_matrix(old, new, offset=offset, antialias=antialias)
  return jnp.matmul(matrix, table, precision=jax.lax.Precision.HIGHEST)


def _bicubic(old: int, new: int, offset: float) -> np.ndarray:
  """Weights of `old` samples for `new` ones, [new, old] float64."""
  source = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
  first = np.floor(source).astype(int) - 1
  matrix = np.zeros((new, old))
  for tap in range(4):
    weight = _keys(np.abs(source - (first + tap)))
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), column), weight)
  return matrix


def _antialiased(old: int, new: int) -> np.ndarray:
  """The same with a kernel that is as wide as a new sample, [new, old]."""
  place = (np.arange(new)[:, None] + 0.5) * old / new
  distance = np.abs(np.arange(old) + 0.5 - place) / max(old / new, 1)
  matrix = np.where(distance < 2, _keys(distance, a=-0.5), 0)
  return matrix / matrix.sum(axis=1, keepdims=True)


def _keys(x: np.ndarray, a: float = -0.75) -> np.ndarray:
  """The cubic convolution kernel (Keys, 1981) at distances 0 <= x <= 2."""
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((x - 5) * x + 8) * x * a - 4 * a
  return np.where(x <= 1, near, far)
