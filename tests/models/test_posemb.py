"""The sine-cosine table."""

import pathlib

import numpy as np
import pytest

from models.posemb import sincos_2d

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'enc_mocov3_vit.npz'


@pytest.mark.parametrize('side, width', [(4, 48), (14, 64)])
def test_table_of_moco_v3_on_square_grids(side, width):
  want = np.load(GOLDEN)[f'pos/grid{side}_dim{width}'][0]
  assert not want[0].any()  # CLS has no position
  table = sincos_2d((side, side), width)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table, want[1:], atol=2e-6)


def test_other_grids_follow_the_tokens():
  square = sincos_2d((6, 6), 8).reshape(6, 6, 8)
  for h, w in ((3, 5), (6, 2), (1, 4)):
    np.testing.assert_array_equal(
      sincos_2d((h, w), 8).reshape(h, w, 8), square[:h, :w]
    )


def test_row_half_comes_first():
  table = sincos_2d((3, 5), 8).reshape(3, 5, 8)
  assert (table[..., :4] == table[:, :1, :4]).all()
  assert (table[..., 4:] == table[:1, :, 4:]).all()
  np.testing.assert_allclose(
    table[2, 4],
    [
      *np.sin([2, 0.02]),
      *np.cos([2, 0.02]),
      *np.sin([4, 0.04]),
      *np.cos([4, 0.04]),
    ],
    rtol=1e-6,
  )


def test_width_must_be_divisible_by_four():
  with pytest.raises(ValueError, match='divisible by 4, not 10: 8 or 12'):
    sincos_2d((2, 2), 10)
