"""Which masking the words of a config mean for an encoder."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from models.layers import check_word
from models.masking import Mask, random_masking
from models.maskings import (
  PICKS,
  attention_masking,
  block_masking,
  partition_masking,
)
from models.swin import Swin

KINDS = ('random', 'blocks')
FOCUS = ('none', *PICKS)
# BEiT's smallest block is 16 of 196 patches; in other grids as large a part.
SMALLEST = 16 / 196


def choose_masking(
  encoder: Any,
  *,
  kind: str = 'random',
  ratio: float,
  unit: int = 1,
  parts: int = 1,
  focus: str = 'none',
  masks_per_image: int = 1,
) -> Callable[..., Mask]:
  """The masking of a method.

  Args:
    encoder: a Swin without a mask token gets one mask for the whole batch,
      which its attention then shares, unless a teacher or the number of masks
      asks for one per image.
    kind: 'random' cells or units, or 'blocks' (BEiT's).
    ratio: share of what is hidden.
    unit: cells along a side of what is hidden as a whole; of random masks.
    parts: how much finer than the encoder's cells masks are, along a side.
    focus: 'none', or how visible cells follow a teacher's attention: 'sample',
      'topk'.
    masks_per_image: 1, or so many that every cell is visible in one of them.

  Returns:
    (rng, grid, hints, batch=b) -> Mask.

  Raises:
    ValueError: unknown words, or what does not go together.
  """
  check_word('method.masking', kind, KINDS)
  check_word('method.focus', focus, FOCUS)
  if masks_per_image < 1:
    raise ValueError(
      f'method.masks_per_image={masks_per_image} must be at least 1'
    )
  if sum((kind != 'random', focus != 'none', masks_per_image > 1)) > 1:
    raise ValueError(
      f'method.masking={kind!r}, method.focus={focus!r} and '
      f'method.masks_per_image={masks_per_image} each say what is hidden: set '
      'all but one to random, none and 1'
    )
  if masks_per_image > 1:
    # A ratio that is written with some digits, as below, will do.
    if abs(masks_per_image * (1 - ratio) - 1) > 1e-4:
      raise ValueError(
        f'method.masks_per_image={masks_per_image} shows 1/{masks_per_image} '
        'of the patches: set method.mask_ratio to '
        f'{1 - 1 / masks_per_image:g}'
      )
    return functools.partial(partition_masking, parts=masks_per_image)
  if focus != 'none':
    return functools.partial(attention_masking, ratio=ratio, pick=focus)
  shared = isinstance(encoder, Swin) and not encoder.mask_token
  if kind == 'blocks':
    return functools.partial(_blocks, ratio=ratio, parts=parts, shared=shared)
  return functools.partial(
    _random, ratio=ratio, parts=parts, unit=unit, shared=shared
  )


def _random(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  parts: int,
  **fields: Any,
) -> Mask:
  return random_masking(rng, _finer(grid, parts), hints, **fields)


def _blocks(
  rng: jax.Array,
  grid: tuple[int, int],
  hints: jax.Array | None = None,
  *,
  batch: int,
  ratio: float,
  parts: int,
  shared: bool,
) -> Mask:
  grid = _finer(grid, parts)
  smallest = max(round(SMALLEST * grid[0] * grid[1]), 1)
  rows = 1 if shared else batch
  return block_masking(
    rng, grid, hints, batch=rows, ratio=ratio, min_cells=smallest
  )


def _finer(grid: tuple[int, int], parts: int) -> tuple[int, int]:
  return grid[0] * parts, grid[1] * parts
