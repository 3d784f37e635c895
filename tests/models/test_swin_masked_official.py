"""Swin under masks against GreenMIM's, LocalMIM's and SimMIM's own code.

The records are of the first one or two of four stages.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_swin import load, nhwc, norm, official_params
from tiny_vit import assert_close, encode, gradient

from models.masking import Mask, mask_from_noise
from models.pieces import places
from models.visible_windows import VisibleWindows, released_places
from models.windows import Windows


def completed(encoder, params, x):
  """With zeros for the stages that are not in the record."""
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.asarray(x))
  zeros = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), shapes['params'])
  return zeros | params


# GreenMIM.


@pytest.fixture(scope='module')
def green():
  z, encoder = load('greenmim.npz')
  x = nhwc(z['in/x'])
  params = completed(encoder, official_params(z, merges=2), x)
  return z, encoder, params, x, mask_from_noise(jnp.asarray(z['in/noise']), 4)


def test_greenmim_stages(green):
  z, encoder, params, x, mask = green
  assert len(mask.hidden) == 1  # one for the batch
  features = encode(encoder, params, x, mask=mask)
  for i in range(2):
    assert_close(features.merged[i].tokens, z[f'out/stage{i}_out'])


def test_greenmim_gradients(green):
  z, encoder, params, x, mask = green

  def scalar(features):
    return (features.merged[1].tokens * z['in/cotangent']).sum()

  got = gradient(encoder, params, x, scalar, mask=mask)
  want = official_params(z, 'grad', merges=2)
  # A softmax ignores what is added to all keys: rounding noise around 0.
  for i in range(4):
    a, b = got[f'block_{i}']['attention'], want[f'block_{i}']['attention']
    scale = np.abs(b['query']['bias']).max()
    difference = a['key'].pop('bias') - b['key'].pop('bias')
    assert np.abs(difference).max() < 2e-5 * scale
  leaves = jax.tree.leaves_with_path(want)
  assert len(leaves) == 4 + 2 * 3 + 4 * 16
  for path, b in leaves:
    a = got
    for key in path:
      a = a[key.key]
    assert_close(a, b, name=jax.tree_util.keystr(path))


@pytest.mark.parametrize('case', 'abc')
def test_greenmim_groups(green, case):
  """Who attends to whom, and by which row of the table of biases."""
  z = {
    name.removeprefix(f'grouping_{case}/'): value
    for name, value in green[0].items()
  }
  row, column = z['coords'].astype(np.int32).transpose(2, 0, 1)
  side, shift = int(z['window']), int(z['shift'])
  grid = row.max() + 1, column.max() + 1
  windows = Windows(grid=grid, size=(side, side), shift=(shift, shift))
  order = np.arange(row.shape[1])[None]
  visible = VisibleWindows.at(windows, row, column, order)
  rows = np.arange((2 * side - 1) ** 2, dtype=np.float32)[:, None]
  bias = np.asarray(visible.bias(rows, reach=side))[0, 0]
  filled = np.isin(np.arange(z['idx_shuffle'].size), z['idx_unshuffle'])
  together = np.zeros(bias.shape, bool)
  for tokens, real, forbidden, index in zip(
    z['idx_shuffle'].reshape(len(z['attn_mask']), -1),
    filled.reshape(len(z['attn_mask']), -1),  # the others are padding
    z['attn_mask'],
    z['rel_pos_idx'],
    strict=True,
  ):
    tokens = tokens[real]
    pairs = np.ix_(tokens, tokens)
    allowed = ~forbidden[np.ix_(real, real)]
    together[pairs] |= allowed
    index = index[np.ix_(real, real)]
    np.testing.assert_array_equal(bias[pairs][allowed], index[allowed])
  np.testing.assert_array_equal(together, ~np.asarray(visible.apart[0]))


# LocalMIM, with the defects of its geometry.


@pytest.fixture(scope='module')
def local():
  z, encoder = load('localmim_swin.npz', legacy_geometry=True)
  hidden = jnp.asarray(z['out/mask'])
  visible = jnp.argsort(hidden, axis=1)[:, :12].astype(jnp.int32)
  return z, encoder, Mask(hidden, visible, (7, 7))


def test_localmim_stages(local):
  z, encoder, mask = local
  x = nhwc(z['in/x'])
  params = completed(encoder, official_params(z, merges=2), x)
  merged = encode(encoder, params, x, mask=mask).merged
  for i, side in enumerate((4, 2)):
    after = norm(z, f'w/norm.{i}')
    y = np.asarray(merged[i].tokens)
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
    # They keep cells together.
    row, column = np.divmod(np.asarray(merged[i].index[0]), 7 * side)
    cell = row // side * 7 + column // side
    order = np.argsort(cell, stable=True)
    got = (y * after['scale'] + after['bias'])[:, order]
    assert_close(got, z[f'out/latent{i}'], name=f'latent{i}')


def test_localmim_places(local):
  z, _, mask = local
  wrong = []
  for stage, side in enumerate((8, 4, 2, 1)):
    found = (released_places if stage else places)(mask, side)
    np.testing.assert_array_equal(
      np.stack(found, axis=-1)[0], z[f'out/coords_in{stage}']
    )
    true = np.stack(places(mask, side), axis=-1)[0]
    wrong.append((true != z[f'out/coords_in{stage}']).any(axis=1).mean())
  assert wrong[0] == wrong[3] == 0
  assert min(wrong[1:3]) > 0.8


# SimMIM.


def test_simmim_stage():
  z, encoder = load('simmim_swin.npz', mask_token=True)
  x, hidden = nhwc(z['in/x']), z['in/mask'].reshape(2, -1)
  params = official_params(z, stages=1)
  params |= {'mask_token': {'token': z['w/mask_token']}}
  params = completed(encoder, params, x)
  mask = Mask(hidden, np.zeros((2, 1), np.int32), z['in/mask'].shape[1:])
  merged = encode(encoder, params, x, mask=mask).merged[0]
  assert merged.index is None
  assert_close(merged.tokens, z['out/stage0_out'])
