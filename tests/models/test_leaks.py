"""What a mask hides no encoder sees, whatever the mask.

Every encoder gets many masks of all kinds in one batch, as arguments of one
compiled program per grid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convvit import tiny as tiny_convvit
from tiny_vit import tiny as tiny_vit

from models.masking import random_masking
from models.maskings import (
  attention_masking,
  block_masking,
  partition_masking,
)
from models.swin import Swin

# All of them show half of the cells, so that a batch can have them all.
MASKINGS = {
  'random': functools.partial(random_masking, ratio=0.5),
  'units': functools.partial(random_masking, ratio=0.5, unit=2),
  'shared': functools.partial(random_masking, ratio=0.5, shared=True),
  'block': functools.partial(block_masking, ratio=0.5, min_cells=2),
  'attention': functools.partial(attention_masking, ratio=0.5),
  'partition': functools.partial(partition_masking, parts=2),
}
GRIDS = ((4, 6), (8, 2))
SWIN = Swin(
  patch_size=2,
  width=8,
  depths=(2, 2),
  num_heads=(1, 2),
  window=3,
  mlp_ratio=2,
)
ENCODERS = {
  'vit': tiny_vit(depth=2),
  'vit_relative': tiny_vit(
    depth=2,
    positions='learned',
    positions_grid=(3, 5),
    relative='shared',
    class_token=False,
    pool='mean',
  ),
  'vit_mask_token': tiny_vit(depth=2, mask_token=True, relative='block'),
  'convvit': tiny_convvit(),
  'swin': SWIN,
  'swin_mask_token': SWIN.clone(mask_token=True),
}
IMAGES = 6


@functools.partial(jax.jit, static_argnums=0)
def masks(grid):
  """Masks of every kind, a row for each image (or for each part of it)."""
  found = {}
  for seed, (name, masking) in enumerate(MASKINGS.items()):
    key = jax.random.key(seed)
    hints = jax.random.uniform(key, (IMAGES, grid[0] * grid[1]))
    mask = masking(key, grid, hints, batch=IMAGES)
    found[name] = mask.rows(IMAGES) if name == 'shared' else mask
  return found


def numbers(encoder, size):
  """Parameters that all matter, without compiling their start."""
  rng = np.random.default_rng(0)
  x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

  def some(path, leaf):
    around = float(path[-1].key == 'scale')
    return around + 0.3 * rng.standard_normal(leaf.shape, np.float32)

  shapes = jax.eval_shape(encoder.init, jax.random.key(0), x)
  return jax.tree.map_with_path(some, shapes['params'])


def rows_that_differ(got, want):
  """Names of outputs -> which rows of them are not the same bit by bit."""
  found = {}
  for (path, a), b in zip(
    jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    a, b = (np.asarray(x).reshape(len(x), -1) for x in (a, b))
    found[jax.tree_util.keystr(path)] = (a != b).any(axis=1)
  return found


@pytest.mark.parametrize('grid', GRIDS, ids='{0[0]}x{0[1]}'.format)
@pytest.mark.parametrize('name', ENCODERS)
def test_nothing_hidden_is_seen(name, grid):
  encoder = ENCODERS[name]
  mask = jax.tree.map(lambda *x: jnp.concatenate(x), *masks(grid).values())
  size = tuple(n * encoder.cell for n in grid)
  params = numbers(encoder, size)
  run = jax.jit(lambda x, mask: encoder.apply({'params': params}, x, mask))
  rng = np.random.default_rng(1)
  rows = len(mask.hidden)
  x = rng.uniform(size=(rows, *size, 3)).astype(np.float32)
  want = run(x, mask)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
  hidden = np.asarray(mask.share(size)) > 0
  # Hidden pixels are anything.
  noise = 10 * rng.standard_normal(x.shape, np.float32)
  differ = rows_that_differ(
    run(np.where(hidden[..., None], noise, x), mask), want
  )
  assert len(differ) >= 2 + len(encoder.strides)
  seen = {output: np.flatnonzero(rows) for output, rows in differ.items()}
  assert not any(map(len, seen.values())), seen
  # One visible pixel is not.
  for row in range(rows):
    places = np.argwhere(~hidden[row])
    i, j = places[rng.integers(len(places))]
    x[row, i, j] += 1
  differ = rows_that_differ(run(x, mask), want)
  assert differ['.pooled'].all() and differ['.tokens'].all()


@pytest.mark.parametrize('grid', GRIDS, ids='{0[0]}x{0[1]}'.format)
def test_masks_of_all_kinds_are_tried(grid):
  half = grid[0] * grid[1] // 2
  kinds = {name: np.asarray(m.hidden) for name, m in masks(grid).items()}
  for name, rows in kinds.items():
    assert (rows.sum(1) == half).all(), name
    assert len(rows) == IMAGES * (2 if name == 'partition' else 1)
    assert (len(np.unique(rows, axis=0)) > 1) == (name != 'shared'), name
