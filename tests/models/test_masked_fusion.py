"""RePre's decoder on visible tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoders import FusionDecoder
from models.features import Level
from models.masked_fusion import MaskedFusionDecoder
from models.posemb import sincos_2d

WIDTH = 8


def levels(*grids, index=None, width=6):
  keys = jax.random.split(jax.random.key(0), len(grids))
  found = []
  for key, (h, w) in zip(keys, grids, strict=True):
    k = h * w if index is None else index.shape[1]
    tokens = jax.random.normal(key, (2, k, width))
    found.append(Level(tokens[:, :0], tokens, (h, w), index))
  return tuple(found)


def drawn(decoder, given):
  params = decoder.init(jax.random.key(1), given)
  return params, jax.jit(decoder.apply)(params, given)


def test_of_whole_levels_it_is_the_decoder_of_repre_with_positions():
  given = levels((4, 4), (2, 2))
  decoder = MaskedFusionDecoder(width=WIDTH, patch_size=2)
  params, got = drawn(decoder, given)
  p = params['params']
  maps = []
  for i, level in enumerate(given):
    lateral = p[f'lateral_{i}']
    x = level.map() @ lateral['kernel'] + lateral['bias']
    table = sincos_2d(level.grid, WIDTH, columns_first=True)
    maps.append(x + table.reshape(*level.grid, WIDTH))
  plain = FusionDecoder(width=WIDTH, patch_size=2, lateral=False)
  want = plain.apply({'params': p['fusion']}, tuple(maps))
  assert got.shape == (2, 4, 4, 12) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_token_of_the_level_stands_where_nothing_is_visible():
  """Two of four places, moved to others and back by hand."""
  index = jnp.array([[0, 3], [1, 2]])
  given = levels((2, 2), (2, 2), index=index)
  decoder = MaskedFusionDecoder(width=(WIDTH,), patch_size=2)
  params, got = drawn(decoder, given)
  p, whole = dict(params['params']), []
  for i, level in enumerate(given):
    lateral = p[f'lateral_{i}']
    x = level.tokens @ lateral['kernel'] + lateral['bias']
    places = np.tile(p[f'mask_token_{i}'], (2, 4, 1))
    for row in range(2):
      places[row, index[row]] = x[row]
    # Given whole and in the decoder's width, they pass the lateral as they are.
    p[f'lateral_{i}'] = dict(kernel=jnp.eye(WIDTH), bias=jnp.zeros(WIDTH))
    whole.append(Level(level.prefix, jnp.asarray(places), (2, 2)))
  want = decoder.apply({'params': p}, tuple(whole))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_normalised_target_is_expected():
  params, _ = drawn(
    MaskedFusionDecoder(width=WIDTH, patch_size=2), levels((2, 2))
  )
  assert not params['params']['fusion']['out']['bias'].any()


@pytest.mark.parametrize(
  'width, told',
  [
    ((8, 8), '2 numbers for 1 fusion blocks of 2 levels'),
    (6, 'width 6 .* multiple of 4'),
  ],
)
def test_widths_that_do_not_fit(width, told):
  decoder = MaskedFusionDecoder(width=width, patch_size=2)
  with pytest.raises(ValueError, match=told):
    jax.eval_shape(decoder.init, jax.random.key(0), levels((2, 2), (2, 2)))
