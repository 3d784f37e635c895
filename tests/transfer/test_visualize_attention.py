"""Attention maps and measures against NumPy written out, and by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from models import make_encoder
from models.windows import Windows
from transfer.visualize.attention_depth import (
  attention_distance,
  by_depth,
  mutual_information,
  neighbourhoods,
)
from transfer.visualize.attention_maps import (
  attending,
  mass_mask,
  query_map,
  stride_of,
  windows_of,
)

MADE = {
  'vit_mini4': dict(width=16, depth=2, num_heads=2),
  # Maps of 6 x 6 and 3 x 3: windows are padded, shifted, and shrunk.
  'swin_mini': dict(width=8, depths=(2, 1), num_heads=(1, 2), window=4),
  'convvit_mini': dict(widths=(4, 8, 16), depths=(1, 1, 2), num_heads=2),
}


@functools.cache
def looked_at(name):
  """(encoder, its parameters, images, features with all attention)."""
  encoder = make_encoder(name, **MADE[name])
  images = np.random.default_rng(0).random((2, 12, 12, 3), np.float32)
  variables = jax.jit(encoder.init)(jax.random.key(0), images)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), variables
  )
  blocks = tuple(attending(encoder))
  encode = jax.jit(functools.partial(encoder.apply, attention=blocks))
  return encoder, variables, images, encode(variables, images)


def cells(windows):
  """Of every place of every window its cell of the map, -1 for padding."""
  h, w = windows.grid
  p, q = windows.size
  padded = np.full((-(-h // p) * p, -(-w // q) * q), -1)
  padded[:h, :w] = np.arange(h * w).reshape(h, w)
  padded = np.roll(padded, [-s for s in windows.shift], (0, 1))
  corners = itertools.product(
    range(0, len(padded), p), range(0, padded.shape[1], q)
  )
  return [padded[i : i + p, j : j + q].ravel() for i, j in corners]


def whole(weights, windows):
  """Attention among all patches of the map, [b, heads, h * w, h * w]."""
  total = windows.grid[0] * windows.grid[1]
  if weights.ndim == 4:  # a prefix, no windows
    return np.asarray(weights, np.float64)[:, :, -total:, -total:]
  out = np.zeros((len(weights), weights.shape[2], total, total))
  for window, where in enumerate(cells(windows)):
    for (a, query), (b, key) in itertools.product(enumerate(where), repeat=2):
      if query >= 0 and key >= 0:
        out[:, :, query, key] = weights[:, window, :, a, b]
  return out


class TestMaps:
  def test_cls_looks_where_query_and_key_say(self):
    """The weights again from the block's input, its query and key."""
    encoder, variables, _, features = looked_at('vit_mini4')
    block = variables['params']['block_1']
    level = features.levels[0]
    x = np.concatenate([level.prefix, level.tokens], axis=1).astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + encoder.norm_epsilon
    )
    x = x * block['norm1']['scale'] + block['norm1']['bias']
    q, k = (
      (x @ block['attention'][n]['kernel'] + block['attention'][n]['bias'])
      .reshape(2, 10, 2, 8)
      .transpose(0, 2, 1, 3)
      for n in ('query', 'key')
    )
    exps = np.exp(np.einsum('bhe,bhke->bhk', q[:, :, 0], k) / 8**0.5)
    want = exps[:, :, 1:] / exps[:, :, 1:].sum(-1, keepdims=True)
    windows = windows_of(encoder, -1, (12, 12))
    got = query_map(features.attention[1], windows, cls=True)
    assert got.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(got, want.reshape(2, 2, 3, 3), rtol=2e-4)
    np.testing.assert_allclose(got.sum((2, 3)), 1, rtol=1e-6)
    assert np.std(want) > 0.01  # not flat, so that places matter

  @pytest.mark.parametrize('name', list(MADE))
  def test_the_mean_query_of_every_block(self, name):
    encoder, _, _, features = looked_at(name)
    for block in attending(encoder):
      windows = windows_of(encoder, block, (12, 12))
      got = query_map(features.attention[block], windows, cls=False)
      full = whole(features.attention[block], windows)
      if name == 'vit_mini4':
        full /= full.sum((2, 3), keepdims=True) / full.shape[-1]
      want = full.mean(axis=2).reshape(got.shape)
      np.testing.assert_allclose(got, want, atol=2e-6)
      np.testing.assert_allclose(got.sum((2, 3)), 1, rtol=1e-5)

  def test_windows_are_those_of_the_block(self):
    encoder, _, _, features = looked_at('swin_mini')
    grids = [windows_of(encoder, b, (12, 12)) for b in range(3)]
    assert [w.grid for w in grids] == [(6, 6), (6, 6), (3, 3)]
    assert [w.shift for w in grids] == [(0, 0), (2, 2), (0, 0)]
    assert windows_of(encoder, -1, (12, 12)) == grids[2]
    assert [stride_of(encoder, b) for b in range(3)] == [2, 2, 4]
    for block, windows in enumerate(grids):
      shape = features.attention[block].shape
      places = windows.size[0] * windows.size[1]
      assert shape[1] == len(cells(windows)) and shape[-1] == places

  @pytest.mark.parametrize('shift', [0, 2])
  def test_a_marked_patch_is_put_back_at_its_place(self, shift):
    windows = Windows(grid=(6, 6), size=(4, 4), shift=(shift, shift))
    marked = (4, 1)
    weights = np.zeros((1, 4, 1, 16, 16), np.float32)
    for window, where in enumerate(cells(windows)):
      real = where >= 0
      weights[0, window, 0] = real / real.sum()
      if 4 * 6 + 1 in where:
        here = where == 4 * 6 + 1
        weights[0, window, 0] = here
        crowd = real.sum()  # all of this window look at it
        others = where[real & ~here]
    got = np.asarray(query_map(jnp.asarray(weights), windows, cls=False))[0, 0]
    assert np.unravel_index(got.argmax(), got.shape) == marked
    np.testing.assert_allclose(got[marked], crowd / 36, rtol=1e-6)
    np.testing.assert_array_equal(got.ravel()[others], 0)
    rest = np.setdiff1d(np.arange(36), [*others, 4 * 6 + 1])
    np.testing.assert_allclose(got.ravel()[rest], 1 / 36, rtol=1e-6)


class TestMass:
  def test_the_fewest_patches_that_hold_it(self):
    maps = np.random.default_rng(0).dirichlet(np.ones(9), (3, 2))
    kept = mass_mask(maps.reshape(3, 2, 3, 3), 0.6).reshape(3, 2, 9)
    for values, chosen in zip(
      maps.reshape(-1, 9), kept.reshape(-1, 9), strict=True
    ):
      sizes = [
        len(some)
        for r in range(10)
        for some in itertools.combinations(values, r)
        if sum(some) >= 0.6
      ]
      assert chosen.sum() == min(sizes)
      assert values[chosen].sum() >= 0.6

  def test_edges(self):
    even = np.full((1, 2, 5), 0.1, np.float32)  # 0.6 is six of them, not seven
    assert mass_mask(even, 0.6).sum() == 6
    assert mass_mask(even, 1.0).all()
    one = np.zeros((2, 2))
    one[1, 0] = 3.0  # need not sum to 1
    np.testing.assert_array_equal(mass_mask(one, 0.9), one > 0)


GRID = Windows(grid=(2, 3), size=(2, 3))


def heads(*rows):
  """Weights [1, heads, 7, 7] with a CLS that must not count."""
  out = np.full((1, len(rows), 7, 7), 0.5, np.float32)
  out[0, :, 1:, 1:] = np.stack(rows) / 2
  return jnp.asarray(out)


class TestMutualInformation:
  def test_limits(self):
    same = np.tile(np.random.default_rng(0).dirichlet(np.ones(6)), (6, 1))
    one = np.tile(np.eye(6)[2], (6, 1))
    weights = heads(np.full((6, 6), 1 / 6), same, one, np.eye(6))
    (got,) = mutual_information(weights, GRID)
    np.testing.assert_allclose(got, [0, 0, 0, 1], atol=1e-4)

  def test_scikit_learn_agrees(self):
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, rng.dirichlet(np.ones(6) / 3, 6))
    query, key = np.indices(counts.shape)
    seen = (np.repeat(x.ravel(), counts.ravel()) for x in (query, key))
    want = normalized_mutual_info_score(*seen, average_method='geometric')
    (got,) = mutual_information(heads(counts / 1000), GRID)
    np.testing.assert_allclose(got, [want], rtol=1e-5)
    assert 0.1 < want < 0.9

  def test_the_seam_of_a_shift_is_no_dependence(self):
    """Uniform where attention is allowed: no query differs from its set."""
    windows = Windows(grid=(6, 6), size=(4, 4), shift=(2, 2))
    of, member = neighbourhoods(windows)
    assert member.sum() == 36  # every patch in one set
    even = np.zeros((1, 4, 1, 16, 16), np.float32)
    own = np.zeros_like(even)
    own[:] = np.eye(16)
    for window, row in zip(of, member, strict=True):
      even[0, window, 0][np.ix_(row, row)] = 1 / row.sum()
    for weights, want in ((even, 0), (own, 1)):
      got = mutual_information(jnp.asarray(weights), windows)
      np.testing.assert_allclose(got, [[want]], atol=1e-5)

  def test_a_window_of_one_patch_has_none(self):
    windows = Windows(grid=(1, 1), size=(1, 1))
    got = mutual_information(jnp.ones((2, 1, 3, 1, 1)), windows)
    assert got.shape == (2, 3) and np.isnan(got).all()


class TestDistance:
  def test_by_hand(self):
    """Uniform on 1 x 3: (0 + 1 + 2 + 1 + 0 + 1 + 2 + 1 + 0) / 9 patches."""
    row = Windows(grid=(1, 3), size=(1, 3))
    weights = np.stack([np.full((3, 3), 1 / 3), np.eye(3), np.eye(3)[::-1]])
    got = attention_distance(jnp.asarray(weights[None]), row, 16)
    np.testing.assert_allclose(got, [[16 * 8 / 9, 0, 16 * 4 / 3]], rtol=1e-6)

  def test_diagonals_and_no_cls(self):
    """Only the far corner: sqrt(1 + 4) patches for four of six queries."""
    far = np.eye(6)[::-1].copy()  # patch i looks at patch 5 - i
    got = attention_distance(heads(far), GRID, 8)
    np.testing.assert_allclose(got, [[8 * (4 * 5**0.5 + 2) / 6]], rtol=1e-6)

  @pytest.mark.parametrize('name', list(MADE))
  def test_every_block_of_an_encoder(self, name):
    """`by_depth` against loops over the attention of the whole map."""
    encoder, variables, images, features = looked_at(name)
    pixels = np.round(images * 255).astype(np.uint8)
    found = jax.jit(by_depth(encoder))(variables, pixels)
    for i, block in enumerate(attending(encoder)):
      windows = windows_of(encoder, block, (12, 12))
      full = whole(features.attention[block], windows)
      full /= full.sum(-1, keepdims=True)
      places = np.stack(np.indices(windows.grid), -1).reshape(-1, 2)
      apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
      want = (full * apart).sum(-1).mean(-1) * stride_of(encoder, block)
      # The pixels were rounded to 8 bits.
      np.testing.assert_allclose(found['distance'][i], want, rtol=0.03)
      nmi = np.asarray(found['nmi'][i])
      assert nmi.shape == want.shape
      assert (nmi >= 0).all() and (nmi <= 1).all() and nmi.max() > 0.001
