"""Windows against loops, and attention in windows against all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import assert_close, away_from_zero

from models.activations import gelu
from models.attention import attend, attention_weights
from models.swin_blocks import SwinBlock
from models.windows import Windows, attention_mask, relative_index

CASES = [
  Windows((8, 12), (4, 4)),
  Windows((8, 12), (4, 4), (2, 2)),
  Windows((7, 5), (4, 4), (2, 2)),
  Windows((7, 5), (4, 4), (2, 2), 'zeros'),
  Windows((7, 5), (4, 4), (2, 2), 'timm'),
  Windows((9, 3), (7, 3), (3, 0)),
  Windows((2, 3), (2, 3)),
]


def where_from(windows):
  """Row and column in the map of every place of every window, by loops.

  Padding is (-1, -1).
  """
  (h, w), (p, q), (down, right) = windows.grid, windows.size, windows.shift
  rows, columns = windows.padded
  found = []
  for i in range(rows // p):
    for j in range(columns // q):
      window = []
      for k in range(p):
        for m in range(q):
          r, c = i * p + k, j * q + m
          if windows.padding == 'timm':  # rolled, then padded
            inside = r < h and c < w
            r, c = (r + down) % h, (c + right) % w
          else:
            r, c = (r + down) % rows, (c + right) % columns
            inside = r < h and c < w
          window.append((r, c) if inside else (-1, -1))
      found.append(window)
  return np.array(found)


@pytest.mark.parametrize('windows', CASES)
def test_partition_by_loops_and_back(windows):
  h, w = windows.grid
  x = np.arange(1.0, 2 * h * w * 3 + 1, dtype=np.float32).reshape(2, h, w, 3)
  rows, columns = np.moveaxis(where_from(windows), -1, 0)
  want = np.where((rows >= 0)[..., None], x[:, rows, columns], 0)
  got = windows.partition(jnp.asarray(x))
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(windows.restore(got), x)


@pytest.mark.parametrize('windows', CASES)
def test_mask_by_the_authors_slices(windows):
  """Nine regions of the rolled map; where it is masked, padding is a tenth."""
  regions, count = np.zeros(windows.padded), 0
  axes = [
    (slice(0, -size), slice(-size, -shift or None), slice(-shift or None, None))
    for size, shift in zip(windows.size, windows.shift, strict=True)
  ]
  for rows in axes[0][: 3 if windows.shift[0] else 2]:
    for columns in axes[1][: 3 if windows.shift[1] else 2]:
      regions[rows, columns] = count
      count += 1
  regions = Windows(windows.padded, windows.size).partition(
    regions[None, :, :, None]
  )[0, ..., 0]
  if windows.padding == 'masked':
    regions = np.where(where_from(windows)[..., 0] < 0, -1, regions)
  want = regions[:, :, None] != regions[:, None, :]
  got = attention_mask(windows)
  if got is None:
    assert not want.any()
  else:
    np.testing.assert_array_equal(got, want)
    # Nobody is left without a key.
    assert not got.all(axis=-1).any()


def test_relative_index_by_loops():
  got = relative_index((3, 2), reach=4)
  for i in range(6):
    for j in range(6):
      row, column = i // 2 - j // 2, i % 2 - j % 2
      assert got[i, j] == (row + 3) * 7 + column + 3
  assert set(relative_index((4, 4), 4).flat) == set(range(49))
  # Its own full size: the numbers of the authors.
  assert relative_index((7, 7), 7)[0, 0] == 84


def all_pairs(params, x, grid, window, shift, heads):
  """A block whose every token looks at every one, masked by window."""

  def dense(p, x):
    return x @ p['kernel'] + p['bias']

  def norm(p, x):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
    return x * p['scale'] + p['bias']

  row, column = (i.reshape(-1) for i in np.indices(grid))
  # Windows of the unrolled map, partial at its edges.
  home = [
    (i + (window - shift) % window) // window if shift else i // window
    for i in (row, column)
  ]
  same = np.all([i[:, None] == i[None, :] for i in home], axis=0)
  offsets = [
    np.clip(i[:, None] - i[None, :] + window - 1, 0, 2 * window - 2)
    for i in (row, column)
  ]
  bias = params['position_bias'][offsets[0] * (2 * window - 1) + offsets[1]]
  y = norm(params['norm1'], x)
  q, k, v = (
    np.stack(
      np.split(dense(params['attention'][name], y), heads, axis=-1), axis=1
    )
    for name in ('query', 'key', 'value')
  )
  logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
  logits = np.where(same, logits + bias.transpose(2, 0, 1), -np.inf)
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  y = weights / weights.sum(axis=-1, keepdims=True) @ v
  y = y.swapaxes(1, 2).reshape(x.shape)
  x = x + dense(params['attention']['out'], y)
  y = dense(params['mlp']['fc1'], norm(params['norm2'], x))
  return x + dense(params['mlp']['fc2'], np.asarray(gelu(y)))


@pytest.mark.parametrize(
  'grid, shift', [((7, 5), 2), ((7, 5), 0), ((8, 4), 2), ((3, 2), 0)]
)
def test_masked_padding_is_attention_among_real_neighbours(grid, shift):
  """So what padding holds has no say, and a small map needs no padding."""
  windows = Windows(grid, (4, 4), (shift, shift))
  block = SwinBlock(num_heads=2, windows=windows, reach=4, mlp_ratio=1)
  x = jax.random.normal(jax.random.key(0), (2, grid[0] * grid[1], 8))
  params = away_from_zero(jax.jit(block.init)(jax.random.key(1), x)['params'])
  got, _ = jax.jit(block.apply)({'params': params}, x)
  exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  want = all_pairs(exact, np.asarray(x, np.float64), grid, 4, shift, heads=2)
  assert_close(got, want)


@pytest.mark.parametrize('shape', [(3, 2, 5, 5), (1, 2, 5, 5), (2, 1, 5)])
def test_gradients_of_a_bias_are_those_of_autodiff(shape):
  keys = jax.random.split(jax.random.key(0), 5)
  q, k, v, dy = (jax.random.normal(key, (2, 3, 2, 5, 4)) for key in keys[:4])
  bias = jax.random.normal(keys[4], shape)

  def written_out(q, k, v, bias):
    return (attend(q, k, v, bias) * dy).sum()

  def plain(q, k, v, bias):
    return ((attention_weights(q, k, bias) @ v) * dy).sum()

  every = (0, 1, 2, 3)
  got = jax.jit(jax.grad(written_out, every))(q, k, v, bias)
  want = jax.jit(jax.grad(plain, every))(q, k, v, bias)
  for ours, theirs in zip(got, want, strict=True):
    assert_close(ours, theirs)
