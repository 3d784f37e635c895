"""More ways to choose what is hidden; see `masking.random_masking`.

All are called `masking(rng, grid, hints, batch=b)` once their other arguments
are given, hide equally many cells of every image, and row i depends on (rng, i)
and its own hints alone.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from models.masking import Mask, keep_count, mask_from_noise

PICKS = ('sample', 'topk')
# Tries in all, as a multiple of those for one block. With 10 a row needs 11 on
# average where BEiT hides 75 of 196 cells, and of 2000 rows none more than 46,
# up to three quarters hidden.
PATIENCE = 5
LEAST = float(np.finfo(np.float32).tiny)


def block_masking(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  ratio: float,
  min_cells: int = 16,
  max_aspect: float = 1 / 0.3,
  tries: int = 10,
) -> Mask:
  """Hides rectangles, which may overlap, as BEiT does.

  Bao et al., arXiv:2106.08254, Algorithm 1, with the released code's limit of
  tries. A rectangle's area is uniform between `min_cells` and what is still to
  be hidden, its aspect ratio log-uniform; it is taken where it fits the grid
  and hides something new, but not too much.

  Differs from the released code, which hides up to as many as are asked for:
  where its tries are used up, the cells with most hidden neighbours follow
  (above, below, left, right; drawn among equals), so that blocks grow and all
  rows hide the same number. With the defaults that is about one hidden cell in
  a hundred. Where fewer than `min_cells` are to be hidden in all, the first
  block is of as many as are.

  Args:
    rng: one key.
    grid: (h, w) in cells.
    hints: what a teacher says of the cells; ignored here.
    batch: number of images b.
    ratio: share of hidden cells; int(n * (1 - ratio)) stay visible.
    min_cells: area of the smallest blocks, in cells.
    max_aspect: of the longest ones, the longer side over the shorter.
    tries: how often a block is tried in vain before blocks end.

  Returns:
    The Mask, [b, h * w] and [b, k].

  Raises:
    ValueError: a ratio outside [0, 1) or that leaves no cell visible, or other
      numbers that make no block.
  """
  del hints
  if min_cells < 1 or max_aspect < 1 or tries < 1:
    raise ValueError(
      f'block masking needs min_cells, max_aspect and tries of at least 1, not '
      f'{min_cells}, {max_aspect:g} and {tries}'
    )
  n = math.prod(grid)
  keep = keep_count(n, ratio)
  blocks_key, rest_key = jax.random.split(rng)
  # A number of steps that is fixed, so that rows need not wait for each other.
  numbers = jax.random.uniform(blocks_key, (batch, PATIENCE * tries, 4))
  smallest = min(min_cells, n - keep)

  def attempt(i, state):
    hidden, left, failed = state
    block = _block(numbers[:, i], grid, left, smallest, max_aspect)
    new = jnp.sum(block & ~hidden, axis=(1, 2), dtype=jnp.int32)
    good = (new > 0) & (new <= left) & (failed < tries)
    hidden |= block & good[:, None, None]
    return (
      hidden,
      left - jnp.where(good, new, 0),
      jnp.where(good, 0, failed + 1),
    )

  start = (
    jnp.zeros((batch, *grid), bool),
    jnp.full((batch,), n - keep, jnp.int32),
    jnp.zeros((batch,), jnp.int32),
  )
  hidden, _, _ = jax.lax.fori_loop(0, PATIENCE * tries, attempt, start)
  order = jax.random.uniform(rest_key, (batch, n))
  # Hidden cells above all, then by hidden neighbours, of which there are <= 4.
  order += jnp.where(hidden, 6, _neighbours(hidden)).reshape(batch, n)
  return mask_from_noise(order, keep, grid)


def _block(numbers, grid, left, smallest, max_aspect):
  """A rectangle for every row from four numbers, [b, h, w]; none if too big."""
  sizes = smallest + numbers[:, 0] * (left - smallest)
  log_aspect = math.log(max_aspect) * (2 * numbers[:, 1] - 1)
  aspect = jnp.exp(log_aspect)
  sides = jnp.sqrt(sizes * aspect), jnp.sqrt(sizes / aspect)
  inside = []
  for axis, (side, n) in enumerate(zip(sides, grid, strict=True)):
    side = jnp.round(side).astype(jnp.int32)
    places = (n - side + 1).astype(jnp.float32)
    first = jnp.floor(numbers[:, 2 + axis] * places).astype(jnp.int32)
    # Where the side is too long there is no place, and nothing is inside.
    at = jnp.arange(n) - jnp.minimum(first, n - side)[:, None]
    inside.append((at >= 0) & (at < side[:, None]) & (side <= n)[:, None])
  return inside[0][:, :, None] & inside[1][:, None, :]


def _neighbours(hidden: jax.Array) -> jax.Array:
  """How many of the four cells beside each are hidden, [b, h, w] int32."""
  x = jnp.pad(hidden.astype(jnp.int32), ((0, 0), (1, 1), (1, 1)))
  beside = x[:, :-2, 1:-1] + x[:, 2:, 1:-1]
  return beside + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]


def attention_masking(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  ratio: float,
  pick: str = 'sample',
) -> Mask:
  """Keeps what a teacher looks at: MR-MAE's focused mimicking.

  Gao et al., arXiv:2303.05475. Visible cells are drawn one after the other
  with probability in proportion to their hints (the Gumbel top-k trick, Kool
  et al., arXiv:1903.06059), or are those with the largest.

  Args:
    rng: one key.
    grid: (h, w) in cells.
    hints: of every cell, [b, h * w], at least 0, of any sum. Cells of 0 are
      seen only where there are too few others.
    batch: number of images b.
    ratio: share of hidden cells; int(n * (1 - ratio)) stay visible.
    pick: 'sample' or 'topk' (of equals the first).

  Returns:
    The Mask, [b, h * w] and [b, k].

  Raises:
    ValueError: no hints, or those of another grid or batch; a ratio as in
      `random_masking`.
  """
  if pick not in PICKS:
    raise ValueError(f'attention masking: pick={pick!r} is none of {PICKS}')
  if hints is None:
    raise ValueError(
      'attention masking needs a teacher that says which patches matter: give '
      'the method one, or take random masks'
    )
  n = math.prod(grid)
  if hints.shape != (batch, n):
    raise ValueError(
      f'hints are {list(hints.shape)}, the masks {[batch, n]}: the grid of the '
      f"teacher must be the student's, {grid[0]}x{grid[1]}"
    )
  hints = hints.astype(jnp.float32)
  hints = jnp.where(hints > 0, hints, 0)
  if pick == 'topk':
    return mask_from_noise(-hints, keep_count(n, ratio), grid)
  total = jnp.maximum(jnp.sum(hints, axis=1, keepdims=True), LEAST)
  # Of 0 the logarithm is -87, and noise is within -5 and 20.
  score = jnp.log(jnp.maximum(hints / total, LEAST))
  score += jax.random.gumbel(rng, (batch, n))
  return mask_from_noise(-score, keep_count(n, ratio), grid)


def partition_masking(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  parts: int,
) -> Mask:
  """Deals the cells of every image into disjoint visible sets (FastConvMAE).

  Alpha-VL/FastConvMAE's code: an image that is shown `parts` times is seen
  whole, and every cell is predicted in all rows but one.

  Args:
    rng: one key.
    grid: (h, w) in cells.
    hints: what a teacher says of the cells; ignored here.
    batch: number of images b.
    parts: number of sets; 1 - 1 / parts of the cells are hidden in each.

  Returns:
    The Mask, [b * parts, h * w] and [b * parts, h * w / parts]; rows i * parts
    to (i + 1) * parts - 1 are of image i.

  Raises:
    ValueError: parts of unequal size, or none.
  """
  del hints
  n = math.prod(grid)
  if parts < 1 or n % parts:
    raise ValueError(
      f'{grid[0]}x{grid[1]} = {n} cells cannot be dealt into {parts} equal '
      f'parts: take a divisor of {n}'
    )
  order = jnp.argsort(jax.random.uniform(rng, (batch, n)), axis=1)
  visible = order.reshape(batch * parts, n // parts).astype(jnp.int32)
  part = jnp.argsort(order, axis=1) // (n // parts)
  hidden = part[:, None, :] != jnp.arange(parts)[:, None]
  return Mask(
    hidden=hidden.reshape(batch * parts, n),
    visible=jnp.sort(visible, axis=1),
    grid=grid,
  )
