"""Blocks, cells that a teacher looks at, partitions: counts and laws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.masking import random_masking
from models.maskings import (
  attention_masking,
  block_masking,
  partition_masking,
)

GRID = (4, 6)
HINTS = np.random.default_rng(0).uniform(size=(8, 24)).astype(np.float32)


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=('grid', 'batch', 'fields')
)
def run(masking, rng, hints=None, *, grid=GRID, batch=8, fields=()):
  return masking(rng, grid, hints, batch=batch, **dict(fields))


def draw(masking, seed=0, hints=None, grid=GRID, batch=8, **fields):
  """One compiled call."""
  fields = tuple(fields.items())
  key = jax.random.key(seed)
  return run(masking, key, hints, grid=grid, batch=batch, fields=fields)


KINDS = {
  'block': (block_masking, dict(ratio=0.6), 1),
  'sample': (attention_masking, dict(ratio=0.6), 1),
  'topk': (attention_masking, dict(ratio=0.75, pick='topk'), 1),
  'partition': (partition_masking, dict(parts=3), 3),
}
kinds = pytest.mark.parametrize('kind', KINDS)


@kinds
def test_every_row_shows_equally_many(kind):
  masking, fields, repeats = KINDS[kind]
  visible = 8 if kind == 'partition' else int(24 * (1 - fields['ratio']))
  mask = draw(masking, hints=HINTS, **fields)
  assert mask.grid == GRID
  assert mask.hidden.shape == (8 * repeats, 24)
  assert mask.hidden.dtype == jnp.bool_
  assert mask.visible.shape == (8 * repeats, visible)
  assert mask.visible.dtype == jnp.int32
  for hidden, seen in zip(mask.hidden, mask.visible, strict=True):
    np.testing.assert_array_equal(np.flatnonzero(~hidden), seen)


@kinds
def test_a_row_does_not_depend_on_the_batch(kind):
  masking, fields, repeats = KINDS[kind]
  many = draw(masking, hints=HINTS, **fields)
  few = draw(masking, hints=HINTS[:3], batch=3, **fields)
  np.testing.assert_array_equal(few.hidden, many.hidden[: 3 * repeats])
  other = draw(masking, seed=1, hints=HINTS, **fields)
  assert (other.hidden != many.hidden).any() == (kind != 'topk')
  assert len(np.unique(many.hidden, axis=0)) > 4


# Blocks.


def beit(rng, grid, count, min_cells=16, aspect=0.3, tries=10):
  """One mask as BEiT draws it, [h, w], and how many are left to be hidden."""
  hidden, left, failed = np.zeros(grid, bool), count, 0
  while left and failed < tries:
    failed += 1
    area = rng.uniform(*sorted((min(min_cells, count), left)))
    ratio = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
    h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if h > grid[0] or w > grid[1]:
      continue
    top, first = (
      rng.integers(n - side + 1) for n, side in zip(grid, (h, w), strict=True)
    )
    block = hidden[top : top + h, first : first + w]
    new = block.size - block.sum()
    if 0 < new <= left:
      block[:], left, failed = True, left - new, 0
  return hidden, left


def adjacent(hidden):
  """Share of the pairs of neighbours that are hidden both, by row."""
  across = hidden[:, :, 1:] & hidden[:, :, :-1]
  down = hidden[:, 1:] & hidden[:, :-1]
  return (across.mean((1, 2)) + down.mean((1, 2))) / 2


def bars(hidden):
  """Mean length of runs of hidden cells, across and down."""
  for x in (hidden, hidden.transpose(0, 2, 1)):
    starts = x & ~np.pad(x, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    yield x.sum() / starts.sum()


@pytest.mark.parametrize('grid, count', [((14, 14), 75), ((8, 12), 57)])
def test_blocks_have_the_law_of_the_paper(grid, count):
  n, rows = math.prod(grid), 2000
  mask = draw(block_masking, grid=grid, batch=rows, ratio=count / n)
  got = np.asarray(mask.hidden).reshape(rows, *grid)
  rng = np.random.default_rng(0)
  drawn = [beit(rng, grid, count) for _ in range(rows)]
  want = np.stack([hidden for hidden, _ in drawn])
  left = np.mean([left for _, left in drawn])
  assert (got.sum((1, 2)) == count).all() and left < 0.015 * count
  # What is left is hidden too: so much more, and some noise.
  np.testing.assert_allclose(got.mean(0), want.mean(0), atol=0.05)
  assert got.mean(0)[0, 0] < 0.6 * got.mean()  # corners are in few blocks
  near, far = adjacent(got).mean(), (count / n) ** 2
  assert near == pytest.approx(adjacent(want).mean(), rel=0.03)
  assert near > 1.5 * far
  for ours, theirs in zip(bars(got), bars(want), strict=True):
    assert ours == pytest.approx(theirs, rel=0.05)


def test_few_cells_make_one_block():
  """Fewer are to be hidden than the smallest block has."""
  masks = [draw(block_masking, seed=i, ratio=0.6) for i in range(50)]
  hidden = np.concatenate([m.hidden for m in masks]).reshape(-1, *GRID)
  assert (hidden.sum((1, 2)) == 15).all()
  # Hardly any stands alone, and hardly any gap is inside.
  for x in (hidden, ~hidden):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    beside = x[:, :-2, 1:-1] | x[:, 2:, 1:-1] | x[:, 1:-1, :-2] | x[:, 1:-1, 2:]
    inside = x[:, 1:-1, 1:-1]
    assert (inside & ~beside).sum() < 0.02 * inside.sum()


def test_blocks_may_be_squares_of_one_size():
  mask = draw(
    block_masking, batch=200, grid=(8, 8), ratio=16 / 64, max_aspect=1.0
  )
  places = np.argwhere(np.asarray(mask.hidden).reshape(-1, 8, 8))
  for row in range(200):
    cells = places[places[:, 0] == row, 1:]
    assert (np.ptp(cells, axis=0) == 3).all()
  corners = [places[places[:, 0] == row, 1:].min(0) for row in range(200)]
  assert len(np.unique(corners, axis=0)) == 25  # wherever they fit


def test_blocks_in_a_single_row():
  mask = draw(block_masking, grid=(1, 9), ratio=0.5)
  assert (mask.hidden.sum(1) == 5).all()


# Attention.


def test_cells_are_drawn_by_their_hints():
  rows = 20_000
  hints = np.array([0, 1, 2, 3, 4, 10, 0, 20], np.float32)
  many = jnp.asarray(np.tile(hints, (rows, 1)))
  p = hints / hints.sum()
  # The first cell drawn is the only one where but one is visible.
  mask = draw(
    attention_masking, hints=many, grid=(2, 4), batch=rows, ratio=0.87
  )
  counts = rows - np.asarray(mask.hidden).sum(0)
  assert (counts[p == 0] == 0).all()
  want = rows * p[p > 0]
  chi2 = ((counts[p > 0] - want) ** 2 / want).sum()
  assert chi2 < 20.5  # of five degrees of freedom: one chance in a thousand
  # More of them, against draws one after the other.
  mask = draw(attention_masking, hints=many, grid=(2, 4), batch=rows, ratio=0.6)
  rng = np.random.default_rng(0)
  want = np.zeros((rows, 8))
  for row in want:
    row[rng.choice(8, 3, replace=False, p=p)] = 1
  seen = 1 - np.asarray(mask.hidden).mean(0)
  np.testing.assert_allclose(seen, want.mean(0), atol=0.02)


def test_hints_may_be_zero_tiny_or_huge():
  hints = np.zeros((8, 24), np.float32)
  hints[1] = 1e-30
  hints[2, :4] = 1e30
  hints[3, 20:] = 1
  hints[4, 7] = np.nan
  for pick in ('sample', 'topk'):
    mask = draw(attention_masking, hints=hints, ratio=0.75, pick=pick)
    assert (mask.hidden.sum(1) == 18).all()
    assert not mask.hidden[2, :4].any() and not mask.hidden[3, 20:].any()
  # Equal hints are a random mask, also where all are 0.
  many = jnp.zeros((4000, 24))
  mask = draw(attention_masking, hints=many, batch=4000, ratio=0.75)
  np.testing.assert_allclose(mask.hidden.mean(0), 0.75, atol=0.03)


def test_the_largest_hints():
  mask = draw(attention_masking, hints=HINTS, ratio=0.75, pick='topk')
  want = np.sort(np.argsort(HINTS, axis=1)[:, -6:], axis=1)
  np.testing.assert_array_equal(mask.visible, want)


# Partitions.


@pytest.mark.parametrize('parts', [1, 3, 24])
def test_parts_show_every_cell_once(parts):
  mask = draw(partition_masking, parts=parts)
  seen = ~np.asarray(mask.hidden).reshape(8, parts, 24)
  assert (seen.sum(1) == 1).all() and (seen.sum(2) == 24 // parts).all()


def test_a_part_is_a_random_mask():
  mask = draw(partition_masking, batch=4000, parts=4)
  hidden = np.asarray(mask.hidden).reshape(4000, 4, 24)
  np.testing.assert_allclose(hidden.mean(0), 0.75, atol=0.03)
  # Two cells are seen together as often as chance has it.
  seen = ~hidden[:, 0]
  together = (seen[:, 0] & seen[:, 1]).mean()
  assert together == pytest.approx(0.25 * 5 / 23, abs=0.015)


# Errors.


def test_what_cannot_work_is_said():
  call = functools.partial(draw, ratio=0.5)
  with pytest.raises(ValueError, match='needs a teacher'):
    call(attention_masking)
  with pytest.raises(
    ValueError, match=r'\[8, 16\], the masks \[8, 24\]: .*4x6'
  ):
    call(attention_masking, hints=HINTS[:, :16])
  with pytest.raises(ValueError, match=r'\[8, 24\], the masks \[5, 24\]'):
    call(attention_masking, hints=HINTS, batch=5)
  with pytest.raises(ValueError, match="pick='top' is none of"):
    call(attention_masking, hints=HINTS, pick='top')
  with pytest.raises(ValueError, match='at least 1, not 16, 0.3 and 10'):
    call(block_masking, max_aspect=0.3)
  with pytest.raises(ValueError, match='4x6 = 24 cells cannot .* into 5 equal'):
    draw(partition_masking, parts=5)
  with pytest.raises(ValueError, match='into 0 equal'):
    draw(partition_masking, parts=0)
  for masking in (block_masking, attention_masking, random_masking):
    with pytest.raises(ValueError, match=r'in \[0, 1\), not 1'):
      draw(masking, hints=HINTS, ratio=1)
