"""MAE against the authors' code, on a recorded step.

The record is of a ViT of three blocks and a decoder of two; kept are the last
block's output and all that follows: norm, decoder, prediction, both losses and
their gradients.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from official_names import below, blocks_from_torch

from models import layers
from models.features import Features, Level
from models.masking import mask_from_noise
from models.posemb import sincos_2d
from models.vit import ViT
from pretrain.methods.mae import mae

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'mae.npz'
GRID, KEEP, STRIDE = (4, 4), 4, 7


@functools.cache
def record():
  return dict(np.load(GOLDEN))


def ours(weights):
  """The norm's and the decoder's parameters, from the authors' names."""
  decoder = blocks_from_torch(weights, 'decoder_blocks.', '')
  decoder['mask_token'] = weights['mask_token']
  for name, theirs in dict(embed='decoder_embed', out='decoder_pred').items():
    decoder[f'{name}/kernel'] = weights[f'{theirs}.weight'].T
    decoder[f'{name}/bias'] = weights[f'{theirs}.bias']
  found = dict(norm='norm', **{'decoder/norm': 'decoder_norm'})
  flat = {f'decoder/{name}': leaf for name, leaf in decoder.items()}
  for name, theirs in found.items():
    flat[f'{name}/scale'] = weights[f'{theirs}.weight']
    flat[f'{name}/bias'] = weights[f'{theirs}.bias']
  return flat


def mask():
  return mask_from_noise(jnp.asarray(record()['in/noise']), KEEP)


def last_level():
  """The last block's output; the authors keep the order of the noise."""
  tokens = record()['out/enc_block2']
  kept = np.argsort(record()['in/noise'], axis=1)[:, :KEEP]
  order = np.argsort(kept, axis=1)[:, :, None]
  patches = np.take_along_axis(tokens[:, 1:], order, axis=1)
  prefix, patches = jnp.asarray(tokens[:, :1]), jnp.asarray(patches)
  return Level(prefix, patches, GRID, mask().visible)


@pytest.fixture(scope='module', params=[False, True])
def step(request):
  """(normalised, prediction, loss, gradients) of our branch."""
  z, level = record(), last_level()
  cfg = json.loads(str(z['cfg']))
  method = mae(
    ViT(patch_size=cfg['patch'], mean=(0.0,), std=(1.0,)),
    None,
    decoder=dict(
      width=cfg['dec_dim'], depth=cfg['dec_depth'], num_heads=cfg['dec_heads']
    ),
    normalize_pixels=request.param,
  )
  branch = method.branches['decoder']
  images = jnp.asarray(z['in/imgs'].transpose(0, 2, 3, 1))

  def loss(params):
    norm = layers.layer_norm('norm')
    prefix, tokens = (
      norm.apply({'params': params['norm']}, x)
      for x in (level.prefix, level.tokens)
    )
    features = Features((level,), tokens, tokens.mean(1), prefix[:, 0])
    prediction = branch.predict(params['decoder'], features)
    errors = branch.errors(params['decoder'], features, images)
    return branch.mean(errors, mask()), prediction

  params = traverse_util.unflatten_dict(ours(below(z, 'w/')), sep='/')
  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, prediction), grads = run(params)
  return request.param, prediction, value, grads


def test_the_mask_hides_what_theirs_hides():
  np.testing.assert_array_equal(mask().hidden, record()['out/mask'])


def test_prediction(step):
  want = record()['out/pred']
  got = np.asarray(step[1]).reshape(3, 16, -1)[:, :, ::STRIDE]
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_loss(step):
  normalised, _, value, _ = step
  want = record()[f'norm_pix_{normalised}/loss']
  assert float(value) == pytest.approx(float(want), rel=2e-6)


def test_gradients(step):
  normalised, *_, grads = step
  z = record()
  shapes = {name: leaf.shape for name, leaf in below(z, 'w/').items()}
  # Every seventh element is recorded.
  spread = {}
  for name, sparse in below(z, f'norm_pix_{normalised}/grad/').items():
    full = np.full(np.prod(shapes[name]), np.nan, np.float32)
    full[::STRIDE] = sparse
    spread[name] = full.reshape(shapes[name])
  want, got = ours(spread), traverse_util.flatten_dict(grads, sep='/')
  assert got.keys() == want.keys() and len(want) == 2 + 7 + 2 * 16
  for name, leaf in want.items():
    there = ~np.isnan(leaf)
    assert there.any(), name
    error = np.abs(np.asarray(got[name])[there] - leaf[there]).max()
    # Of a key's bias the gradient is 0 but for rounding.
    assert error <= 2e-5 * max(np.abs(leaf[there]).max(), 1e-3), name


def test_positions():
  table = record()['pos/dim48_grid4_cls1']
  assert not table[0].any()  # of CLS
  ours = sincos_2d(GRID, 48, columns_first=True)
  np.testing.assert_allclose(ours, table[1:], atol=2e-6)
  ours = sincos_2d((14, 14), 64, columns_first=True)[:, ::STRIDE]
  want = record()['pos/dim64_grid14_cls1'][1:]
  np.testing.assert_allclose(ours, want, atol=2e-6)
