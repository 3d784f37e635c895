"""MAE on a Swin against GreenMIM's code, on a recorded step.

The record begins with what the encoder makes of the visible units, one mask for
the batch; pixels that no loss sees are 0, and of the prediction every seventh
number is kept. The encoder has tests of its own.

The authors' encoder gives the visible units in the order of the grid, and their
decoder takes them to be in that of the noise: each lands in another one's
place. Here they are exchanged likewise before our decoder reads them.
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

from models.features import Features, Level
from models.masking import mask_from_noise
from models.posemb import sincos_2d
from models.swin import Swin
from pretrain.methods.mae import mae

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens' / 'greenmim_decoder.npz'
STRIDE, KEEP = 7, 4


@functools.cache
def record():
  return dict(np.load(GOLDEN))


def ours(weights):
  """The decoder's parameters, or their gradients, by our paths."""
  flat = blocks_from_torch(weights, 'decoder_blocks.', '', depth=1)
  flat['mask_token'] = weights['mask_token']
  flat['norm/scale'] = weights['decoder_norm.weight']
  flat['norm/bias'] = weights['decoder_norm.bias']
  for name, theirs in dict(embed='decoder_embed', out='decoder_pred').items():
    if f'{theirs}.weight' in weights:  # of the last layer no gradient is kept
      flat[f'{name}/kernel'] = weights[f'{theirs}.weight'].T
      flat[f'{name}/bias'] = weights[f'{theirs}.bias']
  return flat


@functools.cache
def step():
  """(mask, prediction, loss, gradients) of our branch."""
  z = record()
  cfg = json.loads(str(z['cfg']))['model']
  method = mae(
    Swin(patch_size=cfg['patch'], mean=(0.0,), std=(1.0,)),
    None,
    decoder=dict(
      width=cfg['dec_dim'],
      depth=cfg['dec_depth'],
      num_heads=cfg['dec_heads'],
      mlp_ratio=cfg['mlp_ratio'],
    ),
  )
  branch = method.branches['decoder']
  mask = mask_from_noise(jnp.asarray(z['in/noise']), KEEP)
  rank = np.argsort(np.argsort(z['in/noise'][0]))
  tokens = jnp.asarray(z['out/latent'][:, rank[mask.visible[0]]])
  level = Level(tokens[:, :0], tokens, mask.grid, mask.rows(2).visible)
  features = Features((level,), tokens, tokens.mean(1))
  images = jnp.asarray(z['in/x'].transpose(0, 2, 3, 1))
  params = jax.tree.map(
    jnp.asarray,
    traverse_util.unflatten_dict(ours(below(z, 'w/')), sep='/'),
  )

  def loss(params):
    prediction = branch.predict(params, features)
    errors = branch.errors(params, features, images)
    return branch.mean(errors, mask), prediction

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, prediction), grads = run(params)
  return mask, prediction, value, grads


def test_all_images_of_a_batch_share_the_mask():
  mask = step()[0]
  assert mask.hidden.shape == (1, 16)
  np.testing.assert_array_equal(mask.rows(2).hidden, record()['out/mask'])
  drawn = mae(Swin(), None, decoder={}).masking(
    jax.random.key(0), (7, 7), batch=3
  )
  assert drawn.visible.shape == (1, 12)


def test_prediction_and_loss():
  z, (_, prediction, value, _) = record(), step()
  got = np.asarray(prediction).reshape(2, 16, -1)[:, :, ::STRIDE]
  want = z['out/pred']
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
  assert float(value) == pytest.approx(float(z['out/loss']), rel=2e-6)


def test_gradients():
  want = ours(below(record(), 'grad/'))
  got = traverse_util.flatten_dict(step()[-1], sep='/')
  assert got.keys() == {*want, 'out/kernel', 'out/bias'}
  for name, leaf in want.items():
    error = np.abs(np.asarray(got[name]) - leaf).max()
    # Of a key's bias the gradient is 0 but for rounding.
    assert error <= 2e-5 * max(np.abs(leaf).max(), 1e-3), name


def test_positions():
  mine = sincos_2d((4, 4), 16, columns_first=True)
  np.testing.assert_allclose(
    mine, record()['w/decoder_pos_embed'][0], atol=2e-6
  )
