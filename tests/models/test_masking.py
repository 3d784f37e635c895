"""Masks: True is hidden."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.masking import mask_from_noise, random_masking

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'mae_masking.npz'


def test_mask_of_mae():
  z = np.load(GOLDEN)
  mask = mask_from_noise(jnp.asarray(z['in/noise']), keep=4)
  np.testing.assert_array_equal(mask.hidden, z['out/mask'] == 1)
  kept = np.argsort(z['out/ids_restore'], axis=1)[:, :4]
  np.testing.assert_array_equal(mask.visible, np.sort(kept, axis=1))


@pytest.mark.parametrize(
  'grid, ratio, visible',
  [((14, 14), 0.75, 49), ((3, 5), 0.5, 7), ((2, 2), 0.0, 4), ((7, 7), 0.6, 19)],
)
def test_random_masking_partitions_the_grid(grid, ratio, visible):
  n = grid[0] * grid[1]
  mask = random_masking(jax.random.key(0), grid, batch=6, ratio=ratio)
  assert mask.hidden.shape == (6, n) and mask.hidden.dtype == jnp.bool_
  assert mask.visible.shape == (6, visible)
  assert mask.visible.dtype == jnp.int32
  for hidden, seen in zip(mask.hidden, mask.visible, strict=True):
    np.testing.assert_array_equal(np.flatnonzero(~hidden), seen)


def test_random_masking_is_uniform_and_differs_by_row():
  mask = random_masking(jax.random.key(0), (4, 4), batch=4000, ratio=0.75)
  np.testing.assert_allclose(mask.hidden.mean(axis=0), 0.75, atol=0.03)
  assert len(np.unique(mask.hidden, axis=0)) > 1000


def test_a_row_does_not_depend_on_the_batch():
  few, many = (
    random_masking(jax.random.key(5), (4, 4), batch=b, ratio=0.5)
    for b in (3, 8)
  )
  np.testing.assert_array_equal(few.hidden, many.hidden[:3])
  other = random_masking(jax.random.key(6), (4, 4), batch=8, ratio=0.5)
  assert (other.hidden != many.hidden).any()


@pytest.mark.parametrize('ratio', [1.0, -0.1, 75])
def test_ratio_out_of_range(ratio):
  with pytest.raises(ValueError, match=rf'in \[0, 1\), not {ratio}'):
    random_masking(jax.random.key(0), (4, 4), batch=2, ratio=ratio)


@pytest.mark.parametrize('keep', [0, 5])
def test_a_mask_leaves_some_patch_visible(keep):
  with pytest.raises(ValueError, match=f'1 to 4 of 4 .* visible, not {keep}'):
    mask_from_noise(jnp.ones((2, 4)), keep)
