"""LocalMIM's Swin against the authors' code, geometry and all.

The decoders' predictions are recorded for what the encoder said. Where the
whole record is at hand (REPRE_GOLDENS names its folder) the method takes that
whole step, from 224-px images to every gradient.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from official_names import below, blocks_from_torch

from models.features import Level
from models.masking import Mask
from models.swin import Swin
from pretrain.methods.local_mim import local_mim

GOLDEN = (
  pathlib.Path(__file__).parents[1] / 'goldens' / 'localmim_swin_decoders.npz'
)
WHOLE = (
  pathlib.Path(os.environ.get('REPRE_GOLDENS', '../shared/goldens'))
  / 'localmim_swin.npz'
)
STRIDE = 5
SIDES = (28, 14, 7, 7)  # of the four predictions
CELLS = (4, 2, 1, 1)  # tokens along a side of a unit there


@functools.cache
def record():
  return dict(np.load(GOLDEN))


@functools.cache
def method():
  cfg = json.loads(str(record()['cfg']))
  encoder = Swin(
    patch_size=cfg['patch'],
    width=cfg['dim'],
    depths=tuple(cfg['depths']),
    num_heads=tuple(cfg['heads']),
    window=cfg['window'],
    mlp_ratio=4,  # whatever the record says of the decoders
    norm_epsilon=cfg['ln_eps'],
    mean=(0.0,),
    std=(1.0,),
  )
  decoder = dict(
    width=tuple(cfg['dec_dim']),
    depth=cfg['dec_depth'],
    num_heads=cfg['dec_heads'],
    mlp_ratio=cfg['mlp_ratio'],
  )
  return local_mim(encoder, None, decoder=decoder, legacy_swin_geometry=True)


def mask():
  hidden = record()['out/mask']
  visible = np.flatnonzero(~hidden[0])[None].astype(np.int32)
  return Mask(jnp.asarray(hidden), jnp.asarray(visible), grid=(7, 7))


def decoder(weights):
  flat = blocks_from_torch(weights, 'blocks.', '', depth=1)
  flat['mask_token'] = weights['mask_token']
  for name, theirs in dict(embed='embed', out='pred').items():
    flat[f'{name}/kernel'] = weights[f'{theirs}.weight'].T
    flat[f'{name}/bias'] = weights[f'{theirs}.bias']
  flat['norm/scale'] = weights['norm.weight']
  flat['norm/bias'] = weights['norm.bias']
  return flat


def level(task):
  """What the tap's norm made of the encoder's output, in row-major order."""
  side, cell = SIDES[task], CELLS[task]
  places = np.arange(side * side).reshape(
    side // cell, cell, side // cell, cell
  )
  places = places.swapaxes(1, 2).reshape(49, -1)[mask().visible[0]].ravel()
  order = np.argsort(places)
  tokens = record()[f'out/latent{task}'][:, order]
  index = jnp.broadcast_to(
    jnp.asarray(places[order], jnp.int32), tokens.shape[:2]
  )
  return Level(
    jnp.asarray(tokens[:, :0]), jnp.asarray(tokens), (side,) * 2, index
  )


def test_the_authors_hide_one_unit_more_than_the_ratio_says():
  z = record()
  hidden = z['in/randperm'] <= 36
  np.testing.assert_array_equal(hidden, z['out/mask'][0])
  ours = method().masking(jax.random.key(0), (7, 7), None, batch=2)
  assert ours.hidden.sum() == hidden.sum() == 37 and len(ours.hidden) == 1


@pytest.mark.parametrize('task', range(4))
def test_predictions(task):
  weights = below(record(), f'w/decoder.{task}.')
  branch = list(method().branches.values())[task]
  plain = branch.decoder.clone(norm_input=False)
  params = traverse_util.unflatten_dict(decoder(weights), sep='/')
  got = jax.jit(plain.apply)({'params': params}, (level(task),))
  got = np.asarray(got).reshape(2, SIDES[task] ** 2, -1)
  if task == 0:
    got = got[:, ::3]  # as recorded
  want = record()[f'out/pred{task}']
  np.testing.assert_allclose(
    got.reshape(2, -1)[:, ::STRIDE], want, atol=2e-5 * np.abs(want).max()
  )


# The whole step.


def whole(weights):
  """Every parameter, or gradient, by our names."""
  flat = {
    'encoder/patch_embed/kernel': weights[
      'encoder.patch_embed.proj.weight'
    ].transpose(2, 3, 1, 0),
    'encoder/patch_embed/bias': weights['encoder.patch_embed.proj.bias'],
  }
  norms = {'encoder/patch_norm': 'encoder.patch_embed.norm'}
  for stage in range(4):
    blocks = f'encoder.layers.{stage}.blocks.'
    for i in range(2):
      block, mine = below(weights, f'{blocks}{i}.'), 2 * stage + i
      alone = {f'0.{name}': leaf for name, leaf in block.items()}
      for name, leaf in blocks_from_torch(alone, '', '', depth=1).items():
        flat[f'encoder/{name.replace("block_0", f"block_{mine}")}'] = leaf
      table = block['attn.relative_position_bias_table']
      flat[f'encoder/block_{mine}/position_bias'] = table
    if stage < 3:
      merge = f'encoder.layers.{stage}.downsample'
      flat[f'encoder/merge_{stage}/reduction/kernel'] = weights[
        f'{merge}.reduction.weight'
      ].T
      norms[f'encoder/merge_{stage}/norm'] = f'{merge}.norm'
    norms[f'level_{stage + 1}/norm_input'] = f'encoder.norm.{stage}'
    task = decoder(below(weights, f'decoder.{stage}.'))
    flat |= {f'level_{stage + 1}/{name}': leaf for name, leaf in task.items()}
  for name, theirs in norms.items():
    flat[f'{name}/scale'] = weights[f'{theirs}.weight']
    flat[f'{name}/bias'] = weights[f'{theirs}.bias']
  return flat


@pytest.mark.skipif(not WHOLE.exists(), reason=f'no {WHOLE}')
def test_a_whole_step():
  z = dict(np.load(WHOLE))
  weights = whole(below(z, 'w/'))
  weights |= {
    'encoder/norm/scale': np.ones(64),
    'encoder/norm/bias': np.zeros(64),
  }
  params = traverse_util.unflatten_dict(
    {k: jnp.asarray(v, jnp.float32) for k, v in weights.items()}, sep='/'
  )
  images = jnp.asarray(z['in/x'].transpose(0, 2, 3, 1))

  def loss(params):
    features = method().encode(params, images, mask())
    losses = {
      name: branch.mean(branch.errors(params[name], features, images), mask())
      for name, branch in method().branches.items()
    }
    return method().total(losses), losses

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, losses), grads = run(params)
  for task, value in enumerate(losses.values()):
    assert float(value) == pytest.approx(float(z[f'out/loss{task}']), rel=2e-5)
  assert float(total) == pytest.approx(float(z['out/loss']), rel=5e-6)
  got = traverse_util.flatten_dict(grads, sep='/')
  unknown = {
    name: np.full(leaf.shape, np.nan) for name, leaf in below(z, 'w/').items()
  }
  compared = 0
  for name, want in whole(unknown | below(z, 'grad/')).items():
    if np.isnan(want).any():
      continue  # not recorded
    compared += 1
    error = np.abs(np.asarray(got[name]) - want).max()
    assert error <= 5e-5 * max(np.abs(want).max(), 1e-3), name
  assert compared > 100
