"""MAE's decoder: its size, and where visible tokens and mask tokens go."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.features import Level
from models.layers import layer_norm
from models.masked_decoders import MaskedDecoder
from models.masking import random_masking
from models.posemb import sincos_2d

GRID, KEEP, WIDTH = (2, 3), 2, 8


def level(prefix=1):
  mask = random_masking(jax.random.key(0), GRID, batch=4, ratio=0.6)
  assert mask.visible.shape == (4, KEEP)
  tokens = jax.random.normal(jax.random.key(1), (4, prefix + KEEP, 5))
  return Level(tokens[:, :prefix], tokens[:, prefix:], GRID, mask.visible)


def test_that_of_mae_has_26_million_parameters():
  tokens = jax.ShapeDtypeStruct((1, 50, 768), jnp.float32)

  def init(tokens):
    index = jnp.arange(49)[None]
    visible = Level(tokens[:, :1], tokens[:, 1:], (14, 14), index)
    return MaskedDecoder(out_features=768).init(jax.random.key(0), (visible,))

  leaves = jax.tree.leaves(jax.eval_shape(init, tokens))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == 26_008_320


@pytest.mark.parametrize('prefix', [0, 1])
def test_tokens_stand_where_their_patches_are(prefix):
  """Without blocks a prediction is that of its own token and position."""
  decoder = MaskedDecoder(out_features=7, width=WIDTH, depth=0)
  visible = level(prefix)
  params = decoder.init(jax.random.key(2), (visible,))['params']
  got = decoder.apply({'params': params}, (visible,))
  assert got.shape == (4, *GRID, 7)

  tokens = np.asarray(visible.tokens) @ params['embed']['kernel']
  table = sincos_2d(GRID, WIDTH, columns_first=True)
  x = np.tile(params['mask_token'][0] + table, (4, 1, 1))
  for row, index in enumerate(np.asarray(visible.index)):
    for token, place in zip(tokens[row], index, strict=True):
      x[row, place] = token + table[place]
  x = layer_norm('norm').apply({'params': params['norm']}, x)
  want = (x @ params['out']['kernel']).reshape(got.shape)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_every_token_has_a_say_in_every_patch():
  decoder = MaskedDecoder(out_features=1, width=WIDTH, depth=1, num_heads=2)
  visible = level()
  params = decoder.init(jax.random.key(2), (visible,))

  @jax.jit
  @jax.grad
  def slope(tokens):
    prefix, tokens = tokens
    moved = visible.replace(prefix=prefix, tokens=tokens)
    return decoder.apply(params, (moved,))[0, 0, 0, 0]

  for found in slope((visible.prefix, visible.tokens)):
    assert np.all(found[0]) and not np.any(found[1:])


def test_predictions_are_float32():
  decoder = MaskedDecoder(out_features=7, width=WIDTH, depth=1, num_heads=2)
  decoder = decoder.clone(dtype='bfloat16')
  got, params = jax.eval_shape(
    lambda: decoder.init_with_output(jax.random.key(2), (level(),))
  )
  assert got.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('f4')}
