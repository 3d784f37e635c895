"""Fixed position tables."""

import numpy as np


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """MoCo v3's 2-D sine-cosine table (Chen et al., arXiv:2104.02057, 4.1).

  The patch at row r and column c gets [sin rw, cos rw, sin cw, cos cw] with
  frequencies w_k = 10000^(-k / (width / 4)). MAE's table is this one with the
  row and column halves exchanged.

  Differs from the authors' code on grids that are not square: there entry i
  # is (i // h, i % h), which is not the order of the tokens; here it always is.

  Args:
    grid: (h, w) in patches.
    width: width of the tokens.

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
  return np.concatenate(table, axis=1).astype(np.float32)
